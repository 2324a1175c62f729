#include <espalier/csv.h>
#include <espalier/memory.h>
#include <espalier/routing_log.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { LINE_SIZE = 1024, LIST_SIZE = 256 };

typedef struct expert_sums {
  int64_t wanted, served;
  double gates;
  int low; /* evaluations in a row with a share below the limit */
} expert_sums;

typedef struct layer_sums {
  const esp_moe *moe;
  int64_t wanted, logits;
  double squared_logits;
  expert_sums *experts; /* [layout.experts] */
} layer_sums;

struct esp_routing_log {
  esp_csv routing, alarms;
  esp_routing_alarm alarm;
  int layer_count;
  layer_sums layers[ESP_MAX_BLOCKS];
};

/* --- watching -------------------------------------------------------------------------------------------- */

static layer_sums *layer_of(esp_routing_log *log, int block) {
  for (int i = 0; i < log->layer_count; i++)
    if (log->layers[i].moe->block == block) return &log->layers[i];
  esp_panic("the log was not made for a model with a mixture in block %d", block);
}

static void add_logits(layer_sums *layer, const esp_moe_record *record) {
  if (!record->logits) return;
  const int64_t count = esp_tensor_count(record->logits);
  for (int64_t i = 0; i < count; i++)
    layer->squared_logits += (double)record->logits->data[i] * (double)record->logits->data[i];
  layer->logits += count;
}

static void observe(void *context, const esp_moe_record *record) {
  layer_sums *layer = layer_of(context, record->layer->block);
  const esp_routing *r = record->routing;
  for (int e = 0; e < r->experts; e++) {
    layer->experts[e].wanted += r->wanted[e];
    layer->experts[e].served += r->served[e];
  }
  for (int64_t i = 0; i < r->slots; i++) layer->experts[r->choice[i]].gates += (double)record->gates->data[i];
  layer->wanted += r->slots;
  add_logits(layer, record);
}

esp_observer esp_routing_log_observer(esp_routing_log *log) { return (esp_observer){observe, log}; }

/* --- rows ------------------------------------------------------------------------------------------------ */

static double share_of(const layer_sums *layer, int expert) {
  return layer->wanted ? (double)layer->experts[expert].wanted / (double)layer->wanted : 0;
}

typedef struct load {
  double entropy, imbalance;
} load;

static load load_of(const layer_sums *layer) {
  const int routable = esp_routable_experts(&layer->moe->layout);
  load l = {.imbalance = 0};
  for (int e = 0; e < layer->moe->layout.experts; e++) {
    const double share = share_of(layer, e);
    if (share > 0) l.entropy -= share * log(share);
    l.imbalance = fmax(l.imbalance, share * routable);
  }
  l.entropy = routable > 1 ? l.entropy / log(routable) : 0;
  return l;
}

static esp_status write_expert(esp_csv *csv, const layer_sums *layer, int e, const load *l, int64_t step,
                               double epoch) {
  const expert_sums *sums = &layer->experts[e];
  const esp_moe *moe = layer->moe;
  fprintf(csv->file, "%lld,%.4f,%s,%d,%d,%lld,%lld,%.6g,%.6g,%.6g,", (long long)step, epoch, moe->scope, e,
          moe->layout.original_ids[e], (long long)sums->wanted, (long long)sums->served, share_of(layer, e),
          sums->gates, sums->wanted ? sums->gates / (double)sums->wanted : 0);
  if (moe->router) fprintf(csv->file, "%.6g", esp_router_norm(moe, e));
  fprintf(csv->file, ",%.4f,%.4f,", l->entropy, l->imbalance);
  if (layer->logits) fprintf(csv->file, "%.6g", sqrt(layer->squared_logits / (double)layer->logits));
  return esp_csv_end_row(csv);
}

static void forget(layer_sums *layer) {
  layer->wanted = layer->logits = 0;
  layer->squared_logits = 0;
  for (int e = 0; e < layer->moe->layout.experts; e++)
    layer->experts[e] = (expert_sums){.low = layer->experts[e].low};
}

/* --- the alarm ------------------------------------------------------------------------------------------- */

static void count_low(const esp_routing_log *log, layer_sums *layer, int expert, double share) {
  const double limit = log->alarm.share / esp_routable_experts(&layer->moe->layout);
  const bool low = layer->moe->layout.index[expert] != ESP_EXPERT_MASKED && share < limit;
  layer->experts[expert].low = low ? layer->experts[expert].low + 1 : 0;
}

/* The experts for which the alarm is due now, by blanks; their number. */
static int list_unused(const esp_routing_log *log, const layer_sums *layer, char list[LIST_SIZE]) {
  int count = 0;
  size_t length = 0;
  list[0] = '\0';
  for (int e = 0; e < layer->moe->layout.experts; e++) {
    if (layer->experts[e].low != log->alarm.evaluations) continue;
    if (length + 8 < LIST_SIZE)
      length += (size_t)snprintf(list + length, LIST_SIZE - length, "%s%d", count ? " " : "", e);
    count++;
  }
  return count;
}

static esp_status sound(esp_routing_log *log, const layer_sums *layer, int64_t step, esp_progress_bar *bar) {
  char list[LIST_SIZE];
  const int count = list_unused(log, layer, list);
  if (count == 0) return ESP_OK;
  esp_progress_note(bar,
                    "alarm: in %s %d of %d experts (%s) have had less than %g of an even share in %d evaluations in a "
                    "row. Try a larger model.moe.router.balance_weight (now %g), noise (%g) or bias_rate (%g), or a "
                    "lower optimizer.router_rate",
                    layer->moe->scope, count, layer->moe->layout.experts, list, log->alarm.share,
                    log->alarm.evaluations, layer->moe->config.router.balance_weight,
                    layer->moe->config.router.noise, layer->moe->config.router.bias_rate);
  fprintf(log->alarms.file, "%lld,%s,%s,%d", (long long)step, layer->moe->scope, list, log->alarm.evaluations);
  return esp_csv_end_row(&log->alarms);
}

esp_status esp_routing_log_write(esp_routing_log *log, int64_t step, double epoch, esp_progress_bar *bar) {
  for (int i = 0; i < log->layer_count; i++) {
    layer_sums *layer = &log->layers[i];
    const load l = load_of(layer);
    for (int e = 0; e < layer->moe->layout.experts; e++) {
      ESP_TRY(write_expert(&log->routing, layer, e, &l, step, epoch));
      count_low(log, layer, e, share_of(layer, e));
    }
    ESP_TRY(sound(log, layer, step, bar));
    forget(layer);
  }
  return ESP_OK;
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
    layer_sums *layer = &log->layers[i];
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
    log->layers[i].experts = esp_alloc((size_t)log->layers[i].moe->layout.experts, sizeof(expert_sums));
    if (!log->layers[i].experts) return ESP_ERR_MEMORY;
  }
  ESP_TRY(esp_csv_open(&log->routing, folder, "routing.csv",
                       "step,epoch,layer,expert,original_id,wanted,served,share,gate_mass,mean_gate,router_norm,"
                       "entropy,imbalance,logit_rms",
                       step));
  ESP_TRY(recall(log));
  return esp_csv_open(&log->alarms, folder, "alarms.csv", "step,layer,experts,evaluations", step);
}

esp_status esp_routing_log_open(esp_routing_log **log, const char *folder, const esp_model *model,
                                const esp_routing_alarm *alarm, int64_t step) {
  *log = NULL;
  esp_routing_log *made = esp_alloc(1, sizeof *made);
  if (!made) return ESP_ERR_MEMORY;
  made->alarm = *alarm;
  const esp_status status = prepare(made, folder, model, step);
  if (status == ESP_OK)
    *log = made;
  else if (esp_routing_log_close(made) != ESP_OK)
    return status; /* the first failure is the one to tell */
  return status;
}

esp_status esp_routing_log_close(esp_routing_log *log) {
  if (!log) return ESP_OK;
  const esp_status routing = esp_csv_close(&log->routing), alarms = esp_csv_close(&log->alarms);
  for (int i = 0; i < log->layer_count; i++) esp_free(log->layers[i].experts);
  esp_free(log);
  return routing != ESP_OK ? routing : alarms;
}
