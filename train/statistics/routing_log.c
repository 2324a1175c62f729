#include <espalier/csv.h>
#include <espalier/memory.h>
#include <espalier/routing_log.h>
#include <espalier/statistics_rows.h>

#include <string.h>

enum { LINE_SIZE = 1024, LIST_SIZE = 256 };

typedef struct logged_layer {
  const esp_moe *moe;
  int *low; /* [layout.experts] evaluations in a row with a share below the limit */
} logged_layer;

struct esp_routing_log {
  esp_csv routing, coactivation, specialisation, alarms;
  esp_statistics *statistics; /* of the evaluation that goes on */
  esp_routing_alarm alarm;
  int layer_count;
  logged_layer layers[ESP_MAX_BLOCKS];
};

esp_observer esp_routing_log_observer(esp_routing_log *log) { return esp_statistics_observer(log->statistics); }

/* --- rows ------------------------------------------------------------------------------------------------ */

static void write_expert(FILE *file, const char *start, const esp_moe *moe, int e, const esp_expert_statistics *expert,
                         const esp_layer_statistics *layer) {
  fprintf(file, "%s%s,%d,%d,%lld,%lld,%.6g,%.6g,%.6g,", start, moe->scope, e, moe->layout.original_ids[e],
          (long long)expert->count, (long long)expert->served, expert->share, expert->gate_mass, expert->mean_gate);
  if (moe->router) fprintf(file, "%.6g", esp_router_norm(moe, e));
  fprintf(file, ",%.4f,%.4f,", layer->normalised_entropy, layer->imbalance);
  if (layer->logits) fprintf(file, "%.6g", layer->logit_rms);
  fputc(',', file);
  if (layer->scored) fprintf(file, "%.4f", layer->token_entropy);
  fprintf(file, ",%d,%.6g\n", layer->dead_experts, expert->gate_served);
}

/* --- the alarm ------------------------------------------------------------------------------------------- */

static void count_low(const esp_routing_log *log, logged_layer *layer, int expert, double share) {
  const double limit = log->alarm.share / esp_routable_experts(&layer->moe->layout);
  const bool low = layer->moe->layout.index[expert] != ESP_EXPERT_MASKED && share < limit;
  layer->low[expert] = low ? layer->low[expert] + 1 : 0;
}

/* The experts for which the alarm is due now, by blanks; their number. */
static int list_unused(const esp_routing_log *log, const logged_layer *layer, char list[LIST_SIZE]) {
  int count = 0;
  size_t length = 0;
  list[0] = '\0';
  for (int e = 0; e < layer->moe->layout.experts; e++) {
    if (layer->low[e] != log->alarm.evaluations) continue;
    if (length + 8 < LIST_SIZE)
      length += (size_t)snprintf(list + length, LIST_SIZE - length, "%s%d", count ? " " : "", e);
    count++;
  }
  return count;
}

static esp_status sound(esp_routing_log *log, const logged_layer *layer, int64_t step, esp_progress_bar *bar) {
  char list[LIST_SIZE];
  const int count = list_unused(log, layer, list);
  if (count == 0) return ESP_OK;
  esp_progress_note(bar,
                    "alarm: in %s %d of %d experts (%s) have had less than %g of an even share in %d evaluations in a "
                    "row. Try a larger model.moe.router.balance_weight (now %g), noise (%g) or bias_rate (%g), or a "
                    "lower optimizer.router_rate",
                    layer->moe->scope, count, layer->moe->layout.experts, list, log->alarm.share,
                    log->alarm.evaluations, layer->moe->config.router.balance_weight, layer->moe->config.router.noise,
                    layer->moe->config.router.bias_rate);
  fprintf(log->alarms.file, "%lld,%s,%s,%d", (long long)step, layer->moe->scope, list, log->alarm.evaluations);
  return esp_csv_end_row(&log->alarms);
}

/* --- an evaluation's rows --------------------------------------------------------------------------------- */

static void write_experts(esp_routing_log *log, int index, int64_t step, double epoch) {
  logged_layer *layer = &log->layers[index];
  esp_layer_statistics of_layer;
  esp_expert_statistics of_expert;
  char start[64];
  snprintf(start, sizeof start, "%lld,%.4f,", (long long)step, epoch);
  esp_statistics_layer(log->statistics, index, &of_layer);
  for (int e = 0; e < of_layer.experts; e++) {
    esp_statistics_expert(log->statistics, index, e, &of_expert);
    write_expert(log->routing.file, start, layer->moe, e, &of_expert, &of_layer);
    count_low(log, layer, e, of_expert.share);
  }
}

static void write_layer(esp_routing_log *log, int index, int64_t step, double epoch) {
  char start[32];
  snprintf(start, sizeof start, "%lld,", (long long)step);
  write_experts(log, index, step, epoch);
  esp_coactivation_rows(log->coactivation.file, start, log->statistics, index);
  esp_specialisation_rows(log->specialisation.file, start, log->statistics, index);
}

esp_status esp_routing_log_write(esp_routing_log *log, int64_t step, double epoch, esp_progress_bar *bar) {
  for (int i = 0; i < log->layer_count; i++) {
    write_layer(log, i, step, epoch);
    ESP_TRY(sound(log, &log->layers[i], step, bar));
  }
  esp_statistics_reset(log->statistics);
  ESP_TRY(esp_csv_flush(&log->routing));
  ESP_TRY(esp_csv_flush(&log->coactivation));
  return esp_csv_flush(&log->specialisation);
}

/* --- opening and closing --------------------------------------------------------------------------------- */

/* Counts from a row of routing.csv as if its evaluation had just been. */
static void recall_row(esp_routing_log *log, const char *line) {
  long long step;
  double epoch, share;
  char name[64];
  int expert, id;
  long long wanted, served;
  if (sscanf(line, "%lld,%lf,%63[^,],%d,%d,%lld,%lld,%lf", &step, &epoch, name, &expert, &id, &wanted, &served,
             &share) != 8)
    return;
  for (int i = 0; i < log->layer_count; i++) {
    logged_layer *layer = &log->layers[i];
    if (strcmp(layer->moe->scope, name) == 0 && expert >= 0 && expert < layer->moe->layout.experts)
      count_low(log, layer, expert, share);
  }
}

static esp_status recall(esp_routing_log *log) {
  char line[LINE_SIZE];
  FILE *file = fopen(log->routing.path, "r");
  if (!file) return esp_fail(ESP_ERR_IO, "%s cannot be read", log->routing.path);
  while (fgets(line, sizeof line, file)) recall_row(log, line);
  fclose(file);
  return ESP_OK;
}

static esp_status prepare(esp_routing_log *log, const char *folder, const esp_model *model, int64_t step) {
  log->layer_count = esp_model_moe_count(model);
  for (int i = 0; i < log->layer_count; i++) {
    log->layers[i].moe = esp_model_moe(model, i);
    log->layers[i].low = esp_alloc((size_t)log->layers[i].moe->layout.experts, sizeof *log->layers[i].low);
    if (!log->layers[i].low) return ESP_ERR_MEMORY;
  }
  ESP_TRY(esp_statistics_create(&log->statistics, model, 0));
  ESP_TRY(esp_csv_open(&log->routing, folder, "routing.csv",
                       "step,epoch,layer,expert,original_id,wanted,served,share,gate_mass,mean_gate,router_norm,"
                       "entropy,imbalance,logit_rms,token_entropy,dead_experts,gate_served",
                       step));
  ESP_TRY(recall(log));
  ESP_TRY(esp_csv_open(&log->coactivation, folder, "coactivation.csv", "step," ESP_COACTIVATION_COLUMNS, step));
  ESP_TRY(esp_csv_open(&log->specialisation, folder, "specialisation.csv", "step," ESP_SPECIALISATION_COLUMNS, step));
  return esp_csv_open(&log->alarms, folder, "alarms.csv", "step,layer,experts,evaluations", step);
}

esp_status esp_routing_log_open(esp_routing_log **log, const char *folder, const esp_model *model,
                                const esp_routing_alarm *alarm, int64_t step) {
  *log = NULL;
  esp_routing_log *made = esp_alloc(1, sizeof *made);
  if (!made) return ESP_ERR_MEMORY;
  made->alarm = *alarm;
  const esp_status status = prepare(made, folder, model, step);
  if (status == ESP_OK) *log = made;
  else if (esp_routing_log_close(made) != ESP_OK) return status; /* the first failure is the one to tell */
  return status;
}

esp_status esp_routing_log_sync(const esp_routing_log *log) {
  ESP_TRY(esp_csv_sync(&log->routing));
  ESP_TRY(esp_csv_sync(&log->coactivation));
  ESP_TRY(esp_csv_sync(&log->specialisation));
  return esp_csv_sync(&log->alarms);
}

esp_status esp_routing_log_close(esp_routing_log *log) {
  if (!log) return ESP_OK;
  esp_csv *const files[] = {&log->routing, &log->coactivation, &log->specialisation, &log->alarms};
  esp_status status = ESP_OK;
  for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
    const esp_status closed = esp_csv_close(files[i]);
    if (status == ESP_OK) status = closed;
  }
  for (int i = 0; i < log->layer_count; i++) esp_free(log->layers[i].low);
  esp_statistics_free(log->statistics);
  esp_free(log);
  return status;
}
