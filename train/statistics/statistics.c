/* The life of esp_statistics: made, forgotten, merged, freed. */
#include "statistics_internal.h"

#include <espalier/memory.h>
#include <espalier/parallel.h>

#include <string.h>

static esp_status prepare_neurons(layer_sums *layer, const esp_moe *moe) {
  layer->parts = esp_alloc(ESP_PARTS, sizeof *layer->parts);
  layer->scratch = esp_alloc(ESP_PARTS * (size_t)layer->hidden, sizeof *layer->scratch);
  if (!layer->parts || !layer->scratch) return ESP_ERR_MEMORY;
  return esp_neuron_counts_create(&layer->selected, moe);
}

static void describe_layer(layer_sums *layer, const esp_model *model, const esp_moe *moe) {
  const bool soft = moe->config.router.policy == ESP_ROUTER_SOFT;
  const bool expert_choice = moe->config.router.policy == ESP_ROUTER_EXPERT_CHOICE;
  memcpy(layer->scope, model->blocks[moe->block].layer_scope, sizeof layer->scope);
  layer->kind = moe->kind;
  layer->layout = moe->layout;
  layer->activation = moe->bank.activation;
  layer->block = moe->block;
  layer->hidden = moe->bank.hidden;
  layer->members = moe->config.members;
  layer->pairable = expert_choice || (!soft && moe->config.top_k > 1);
  layer->classes = soft ? 0 : model->config.classes;
}

static esp_status prepare_layer(layer_sums *layer, const esp_model *model, const esp_moe *moe, bool neurons) {
  const size_t experts = (size_t)moe->layout.experts;
  describe_layer(layer, model, moe);
  layer->experts = esp_alloc(experts, sizeof *layer->experts);
  layer->pairs = esp_alloc(experts * experts, sizeof *layer->pairs);
  layer->by_class = esp_alloc(experts * (size_t)layer->classes, sizeof *layer->by_class);
  if (!layer->experts || !layer->pairs || !layer->by_class) return ESP_ERR_MEMORY;
  return neurons ? prepare_neurons(layer, moe) : ESP_OK;
}

static esp_status prepare(esp_statistics *statistics, const esp_model *model, int stride) {
  statistics->stride = stride;
  const int count = esp_model_moe_count(model);
  if (count == 0) return ESP_OK;
  statistics->layers = esp_alloc((size_t)count, sizeof *statistics->layers);
  if (!statistics->layers) return ESP_ERR_MEMORY;
  statistics->layer_count = count;
  for (int i = 0; i < count; i++)
    ESP_TRY(prepare_layer(&statistics->layers[i], model, esp_model_moe(model, i), stride > 0));
  return ESP_OK;
}

esp_status esp_statistics_create(esp_statistics **statistics, const esp_model *model, int stride) {
  *statistics = NULL;
  if (stride < 0)
    return esp_fail(ESP_ERR_USAGE, "a statistic of every %d-th row: the number must be positive, or 0 for none",
                    stride);
  esp_statistics *made = esp_alloc(1, sizeof *made);
  if (!made) return ESP_ERR_MEMORY;
  const esp_status status = prepare(made, model, stride);
  if (status != ESP_OK) {
    esp_statistics_free(made);
    return status;
  }
  *statistics = made;
  return ESP_OK;
}

void esp_statistics_free(esp_statistics *statistics) {
  if (!statistics) return;
  for (int i = 0; i < statistics->layer_count; i++) {
    esp_free(statistics->layers[i].experts);
    esp_free(statistics->layers[i].pairs);
    esp_free(statistics->layers[i].by_class);
    esp_free(statistics->layers[i].parts);
    esp_free(statistics->layers[i].scratch);
    esp_neuron_counts_free(&statistics->layers[i].selected);
  }
  esp_free(statistics->layers);
  esp_free(statistics);
}

/* --- forgetting and merging
 * -------------------------------------------------------------------------------------------- */

void esp_neuron_sums_add(neuron_sums *sums, const neuron_sums *other) {
  sums->rows += other->rows;
  sums->values += other->values;
  sums->not_finite += other->not_finite;
  sums->below += other->below;
  sums->above += other->above;
  sums->silent_rows += other->silent_rows;
  for (int i = 0; i < ESP_HISTOGRAM_BINS; i++) sums->histogram[i] += other->histogram[i];
  for (int i = 0; i < ESP_NEAR_ZERO_LEVELS; i++) sums->near_zero[i] += other->near_zero[i];
  for (int i = 0; i < ESP_TOP_MASS_LEVELS; i++) sums->top_mass[i] += other->top_mass[i];
}

static void reset_layer(layer_sums *layer) {
  const size_t experts = (size_t)layer->layout.experts;
  layer->tokens = layer->slots = layer->served = layer->skipped = layer->scored = layer->logits = 0;
  layer->token_entropy = layer->squared_logits = 0;
  memset(layer->experts, 0, experts * sizeof *layer->experts);
  memset(layer->pairs, 0, experts * experts * sizeof *layer->pairs);
  memset(layer->by_class, 0, experts * (size_t)layer->classes * sizeof *layer->by_class);
  memset(&layer->neurons, 0, sizeof layer->neurons);
  esp_neuron_counts_reset(&layer->selected);
}

void esp_statistics_reset(esp_statistics *statistics) {
  for (int i = 0; i < statistics->layer_count; i++) reset_layer(&statistics->layers[i]);
}

static bool same_layout(const layer_sums *a, const layer_sums *b) {
  const size_t size = (size_t)a->layout.experts * sizeof a->layout.index[0];
  return a->layout.experts == b->layout.experts && a->classes == b->classes && strcmp(a->scope, b->scope) == 0 &&
         a->hidden == b->hidden && a->activation == b->activation && a->selected.experts == b->selected.experts &&
         memcmp(a->layout.index, b->layout.index, size) == 0 &&
         memcmp(a->layout.original_ids, b->layout.original_ids, size) == 0 &&
         memcmp(a->layout.widths, b->layout.widths, sizeof a->layout.widths) == 0;
}

static esp_status check_same(const esp_statistics *a, const esp_statistics *b) {
  if (a->layer_count != b->layer_count)
    return esp_fail(ESP_ERR_MISMATCH, "statistics of %d and of %d mixture layers cannot be merged", a->layer_count,
                    b->layer_count);
  for (int i = 0; i < a->layer_count; i++)
    if (!same_layout(&a->layers[i], &b->layers[i]))
      return esp_fail(ESP_ERR_MISMATCH,
                      "statistics of different models cannot be merged: %s, with %d experts of %d neurons, is "
                      "not %s, with %d experts of %d neurons, or its experts are others",
                      a->layers[i].scope, a->layers[i].layout.experts, a->layers[i].hidden, b->layers[i].scope,
                      b->layers[i].layout.experts, b->layers[i].hidden);
  return ESP_OK;
}

static void merge_layer(layer_sums *layer, const layer_sums *other) {
  layer->tokens += other->tokens;
  layer->slots += other->slots;
  layer->served += other->served;
  layer->skipped += other->skipped;
  layer->scored += other->scored;
  layer->logits += other->logits;
  layer->token_entropy += other->token_entropy;
  layer->squared_logits += other->squared_logits;
  for (int e = 0; e < layer->layout.experts; e++) {
    layer->experts[e].count += other->experts[e].count;
    layer->experts[e].served += other->experts[e].served;
    layer->experts[e].first_choices += other->experts[e].first_choices;
    layer->experts[e].gate_mass += other->experts[e].gate_mass;
    layer->experts[e].gate_served += other->experts[e].gate_served;
    layer->experts[e].score += other->experts[e].score;
  }
  const int64_t experts = layer->layout.experts;
  for (int64_t i = 0; i < experts * experts; i++) layer->pairs[i] += other->pairs[i];
  for (int64_t i = 0; i < experts * layer->classes; i++) {
    layer->by_class[i].count += other->by_class[i].count;
    layer->by_class[i].served += other->by_class[i].served;
  }
  esp_neuron_counts_merge(&layer->selected, &other->selected);
  esp_neuron_sums_add(&layer->neurons, &other->neurons);
}

esp_status esp_statistics_merge(esp_statistics *statistics, const esp_statistics *other) {
  ESP_TRY(check_same(statistics, other));
  for (int i = 0; i < statistics->layer_count; i++) merge_layer(&statistics->layers[i], &other->layers[i]);
  return ESP_OK;
}
