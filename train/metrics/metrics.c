#include <espalier/csv.h>
#include <espalier/memory.h>
#include <espalier/metrics.h>

#include <stdarg.h>
#include <string.h>

enum { HEADER_SIZE = 4096 };

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
  esp_csv csv;
  double opened;                           /* esp_seconds() */
  int blocks[ESP_MAX_BLOCKS], block_count; /* the mixture layers */
};

/* Appends formatted text to a header under way. */
static void append(char header[HEADER_SIZE], const char *format, ...) ESP_PRINTF(2, 3);

static void append(char header[HEADER_SIZE], const char *format, ...) {
  const size_t length = strlen(header);
  va_list arguments;
  va_start(arguments, format);
  const int added = vsnprintf(header + length, HEADER_SIZE - length, format, arguments);
  va_end(arguments);
  if (added < 0 || length + (size_t)added >= HEADER_SIZE) esp_panic("the header of metrics.csv is too long");
}

static esp_status open_file(esp_metrics *metrics, const char *folder, int64_t step) {
  char header[HEADER_SIZE] = "step,epoch,split,loss,task_loss";
  for (int kind = 0; kind < ESP_LOSS_KINDS; kind++) {
    const char *name = esp_loss_kind_name((esp_loss_kind)kind);
    append(header, ",%s_raw,%s_weighted", name, name);
  }
  append(header, ",accuracy,images,learning_rate,gradient_norm,images_per_second,seconds");
  for (int i = 0; i < metrics->block_count; i++) append(header, ",imbalance.blocks.%d", metrics->blocks[i]);
  return esp_csv_open(&metrics->csv, folder, "metrics.csv", header, step);
}

esp_status esp_metrics_open(esp_metrics **metrics, const char *folder, const esp_model *model, int64_t step) {
  *metrics = NULL;
  esp_metrics *made = esp_alloc(1, sizeof *made);
  if (!made) return ESP_ERR_MEMORY;
  for (int i = 0; i < esp_model_moe_count(model); i++)
    made->blocks[made->block_count++] = esp_model_moe(model, i)->block;
  const esp_status status = open_file(made, folder, step);
  if (status != ESP_OK) {
    esp_free(made);
    return status;
  }
  made->opened = esp_seconds();
  *metrics = made;
  return ESP_OK;
}

esp_status esp_metrics_write_training(esp_metrics *metrics, int64_t step, double epoch, double learning_rate,
                                      const esp_window *w) {
  const double seconds = esp_seconds() - w->started;
  fprintf(metrics->csv.file, "%lld,%.4f,train,%.6g,%.6g", (long long)step, epoch, esp_window_mean(w, w->loss),
          esp_window_mean(w, w->task_loss));
  for (int kind = 0; kind < ESP_LOSS_KINDS; kind++) {
    if (w->computed[kind])
      fprintf(metrics->csv.file, ",%.6g,%.6g", esp_window_mean(w, w->raw[kind]), esp_window_mean(w, w->weighted[kind]));
    else fputs(",,", metrics->csv.file);
  }
  fprintf(metrics->csv.file, ",%.6g,%lld,%.6g,%.6g,%.1f,%.1f", w->images ? w->correct / (double)w->images : 0,
          (long long)w->images, learning_rate, esp_window_mean(w, w->gradient_norm),
          seconds > 0 ? (double)w->images / seconds : 0, esp_seconds() - metrics->opened);
  for (int i = 0; i < metrics->block_count; i++)
    fprintf(metrics->csv.file, ",%.4g", esp_window_mean(w, w->imbalance[metrics->blocks[i]]));
  return esp_csv_end_row(&metrics->csv);
}

/* A run that stopped after its last evaluations, and before it said so, does them again, with the same results. The
 * test split comes last. */
static bool is_written(const esp_metrics *metrics, int64_t step, esp_split_name split) {
  long long last;
  char of[16];
  return sscanf(metrics->csv.last, "%lld,%*[^,],%15[^,]", &last, of) == 2 && last == step &&
         (strcmp(of, esp_split_text(split)) == 0 || strcmp(of, esp_split_text(ESP_TEST)) == 0);
}

esp_status esp_metrics_write_evaluation(esp_metrics *metrics, int64_t step, double epoch, esp_split_name split,
                                        const esp_evaluation *e) {
  if (is_written(metrics, step, split)) return ESP_OK;
  fprintf(metrics->csv.file, "%lld,%.4f,%s,%.6g,%.6g", (long long)step, epoch, esp_split_text(split), e->loss, e->loss);
  for (int kind = 0; kind < ESP_LOSS_KINDS; kind++) fputs(",,", metrics->csv.file);
  fprintf(metrics->csv.file, ",%.6g,%lld,,,%.1f,%.1f", e->accuracy, (long long)e->examples,
          e->seconds > 0 ? (double)e->examples / e->seconds : 0, esp_seconds() - metrics->opened);
  for (int i = 0; i < metrics->block_count; i++) fputc(',', metrics->csv.file);
  return esp_csv_end_row(&metrics->csv);
}

esp_status esp_metrics_sync(const esp_metrics *metrics) { return esp_csv_sync(&metrics->csv); }

esp_status esp_metrics_close(esp_metrics *metrics) {
  if (!metrics) return ESP_OK;
  const esp_status status = esp_csv_close(&metrics->csv);
  esp_free(metrics);
  return status;
}
