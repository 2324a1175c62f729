#include <espalier/memory.h>
#include <espalier/metrics.h>
#include <espalier/run_folder.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { LINE_SIZE = 4096 };

static void observe_imbalance(void *context, const esp_moe_record *record) {
  esp_window *window = context;
  const esp_routing *r = record->routing;
  int64_t most = 0;
  for (int e = 0; e < r->experts; e++)
    if (r->wanted[e] > most) most = r->wanted[e];
  const double mean = (double)r->slots / esp_routable_experts(&record->layer->layout);
  window->imbalance[record->layer->block] += (double)most / mean;
}

esp_observer esp_window_observer(esp_window *window) { return (esp_observer){observe_imbalance, window}; }

void esp_window_add_losses(esp_window *window, const esp_auxiliary_losses *losses) {
  for (int i = 0; i < losses->count; i++) {
    const esp_auxiliary_loss *loss = &losses->loss[i];
    window->computed[loss->kind] = true;
    window->raw[loss->kind] += (double)loss->raw->data[0];
    window->weighted[loss->kind] += loss->weight * (double)loss->raw->data[0];
  }
}

double esp_window_mean(const esp_window *window, double sum) { return window->steps ? sum / (double)window->steps : 0; }

struct esp_metrics {
  FILE *file;
  char path[ESP_PATH_SIZE];
  int blocks[ESP_MAX_BLOCKS], block_count; /* the mixture layers */
};

static esp_status failed(const esp_metrics *metrics) {
  return esp_fail(ESP_ERR_IO, "%s cannot be written: %s", metrics->path, strerror(errno));
}

static esp_status write_header(esp_metrics *metrics) {
  fputs("step,epoch,split,loss,task_loss", metrics->file);
  for (esp_loss_kind kind = 0; kind < ESP_LOSS_KINDS; kind++)
    fprintf(metrics->file, ",%s_raw,%s_weighted", esp_loss_kind_name(kind), esp_loss_kind_name(kind));
  fputs(",accuracy,learning_rate,gradient_norm,images_per_second", metrics->file);
  for (int i = 0; i < metrics->block_count; i++) fprintf(metrics->file, ",imbalance.blocks.%d", metrics->blocks[i]);
  return fputc('\n', metrics->file) < 0 || fflush(metrics->file) != 0 ? failed(metrics) : ESP_OK;
}

/* Stops at the first row that a resumed run will write again, or that was not written to its end. */
static esp_status cut_after(esp_metrics *metrics, int64_t step) {
  char line[LINE_SIZE];
  long keep = 0;
  bool header = true;
  while (fgets(line, sizeof line, metrics->file)) {
    if (!strchr(line, '\n') || (!header && strtoll(line, NULL, 10) > step)) break;
    header = false;
    keep = ftell(metrics->file);
  }
  if (fseek(metrics->file, keep, SEEK_SET) != 0 || ftruncate(fileno(metrics->file), keep) != 0) return failed(metrics);
  return keep ? ESP_OK : write_header(metrics);
}

static esp_status open_file(esp_metrics *metrics, const char *folder, int64_t step) {
  ESP_TRY(esp_folder_path(metrics->path, folder, "metrics.csv"));
  const bool continues = step > 0 && esp_file_exists(metrics->path);
  metrics->file = fopen(metrics->path, continues ? "r+" : "w");
  if (!metrics->file) return failed(metrics);
  return continues ? cut_after(metrics, step) : write_header(metrics);
}

esp_status esp_metrics_open(esp_metrics **metrics, const char *folder, const esp_model *model, int64_t step) {
  *metrics = NULL;
  esp_metrics *made = esp_alloc(1, sizeof *made);
  if (!made) return ESP_ERR_MEMORY;
  for (int i = 0; i < esp_model_moe_count(model); i++)
    made->blocks[made->block_count++] = esp_model_moe(model, i)->block;
  const esp_status status = open_file(made, folder, step);
  if (status != ESP_OK) {
    if (made->file) fclose(made->file);
    esp_free(made);
    return status;
  }
  *metrics = made;
  return ESP_OK;
}

esp_status esp_metrics_write_training(esp_metrics *metrics, int64_t step, double epoch, double learning_rate,
                                      const esp_window *w) {
  const double seconds = esp_seconds() - w->started;
  fprintf(metrics->file, "%lld,%.4f,train,%.6g,%.6g", (long long)step, epoch, esp_window_mean(w, w->loss),
          esp_window_mean(w, w->task_loss));
  for (int kind = 0; kind < ESP_LOSS_KINDS; kind++) {
    if (w->computed[kind])
      fprintf(metrics->file, ",%.6g,%.6g", esp_window_mean(w, w->raw[kind]), esp_window_mean(w, w->weighted[kind]));
    else
      fputs(",,", metrics->file);
  }
  fprintf(metrics->file, ",%.6g,%.6g,%.6g,%.1f", w->images ? w->correct / (double)w->images : 0, learning_rate,
          esp_window_mean(w, w->gradient_norm), seconds > 0 ? (double)w->images / seconds : 0);
  for (int i = 0; i < metrics->block_count; i++)
    fprintf(metrics->file, ",%.4g", esp_window_mean(w, w->imbalance[metrics->blocks[i]]));
  return fputc('\n', metrics->file) < 0 || fflush(metrics->file) != 0 ? failed(metrics) : ESP_OK;
}

esp_status esp_metrics_write_evaluation(esp_metrics *metrics, int64_t step, double epoch, const esp_evaluation *e) {
  fprintf(metrics->file, "%lld,%.4f,test,%.6g,%.6g", (long long)step, epoch, e->loss, e->loss);
  for (int kind = 0; kind < ESP_LOSS_KINDS; kind++) fputs(",,", metrics->file);
  fprintf(metrics->file, ",%.6g,,,%.1f", e->accuracy, e->seconds > 0 ? (double)e->examples / e->seconds : 0);
  for (int i = 0; i < metrics->block_count; i++) fputc(',', metrics->file);
  return fputc('\n', metrics->file) < 0 || fflush(metrics->file) != 0 ? failed(metrics) : ESP_OK;
}

esp_status esp_metrics_close(esp_metrics *metrics) {
  if (!metrics) return ESP_OK;
  const esp_status status = fclose(metrics->file) == 0 ? ESP_OK : failed(metrics);
  esp_free(metrics);
  return status;
}
