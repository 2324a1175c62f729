/* What the sums say: shares, entropies, imbalance, histograms. */
#include "statistics_internal.h"

#include <math.h>
#include <string.h>

static const double dead_share = 0.1; /* of an even share */

static double ratio(double a, double b) { return b > 0 ? a / b : 0; }

int esp_statistics_layer_count(const esp_statistics *statistics) { return statistics->layer_count; }

static const layer_sums *layer_at(const esp_statistics *statistics, int layer) {
  if (layer < 0 || layer >= statistics->layer_count)
    esp_panic("mixture layer %d of %d was asked for", layer, statistics->layer_count);
  return &statistics->layers[layer];
}

/* What depends on the distribution of slots over experts. */
static void set_load(const layer_sums *layer, esp_layer_statistics *result) {
  int64_t most = 0;
  const double slots = (double)layer->slots;
  for (int e = 0; e < layer->layout.experts; e++) {
    const int64_t count = layer->experts[e].count;
    const double share = ratio((double)count, slots);
    if (count > most) most = count;
    if (share > 0) result->entropy -= share * log(share);
    if (layer->layout.index[e] != ESP_EXPERT_MASKED && layer->slots > 0)
      result->dead_experts += share < dead_share / result->routable;
  }
  result->normalised_entropy = ratio(result->entropy, log(result->routable));
  result->imbalance = ratio((double)most * result->routable, slots);
}

static void set_neurons(const neuron_sums *sums, esp_layer_statistics *result) {
  result->rows = sums->rows;
  result->values = sums->values;
  result->not_finite = sums->not_finite;
  result->below = sums->below;
  result->above = sums->above;
  result->silent_rows = sums->silent_rows;
  memcpy(result->histogram, sums->histogram, sizeof result->histogram);
  const double values = (double)(sums->values - sums->not_finite), rows = (double)(sums->rows - sums->silent_rows);
  for (int i = 0; i < ESP_NEAR_ZERO_LEVELS; i++) result->near_zero[i] = ratio((double)sums->near_zero[i], values);
  for (int i = 0; i < ESP_TOP_MASS_LEVELS; i++) result->top_mass[i] = ratio(sums->top_mass[i], rows);
}

static int width_of(const layer_sums *layer, int stored) {
  return layer->layout.widths[stored] ? layer->layout.widths[stored] : layer->hidden;
}

static void set_usage(const layer_sums *layer, esp_layer_statistics *result) {
  int serving = 0;
  for (int e = 0; e < layer->selected.experts; e++) {
    const esp_neuron_usage usage = esp_neuron_counts_usage(&layer->selected, e, width_of(layer, e));
    if (usage.rows == 0) continue;
    serving++;
    result->neuron_gini += usage.gini;
    result->dead_neurons += usage.dead;
    result->counted_neurons += usage.neurons;
  }
  result->neuron_gini = ratio(result->neuron_gini, serving);
}

void esp_statistics_layer(const esp_statistics *statistics, int layer, esp_layer_statistics *result) {
  const layer_sums *sums = layer_at(statistics, layer);
  *result = (esp_layer_statistics){.scope = sums->scope,
                                   .kind = sums->kind,
                                   .block = sums->block,
                                   .experts = sums->layout.experts,
                                   .tokens = sums->tokens,
                                   .slots = sums->slots,
                                   .served = sums->served,
                                   .skipped = sums->skipped,
                                   .scored = sums->scored,
                                   .logits = sums->logits};
  result->routable = esp_routable_experts(&sums->layout);
  result->token_entropy = ratio(sums->token_entropy, (double)sums->scored);
  result->logit_rms = sqrt(ratio(sums->squared_logits, (double)sums->logits));
  set_load(sums, result);
  set_usage(sums, result);
  set_neurons(&sums->neurons, result);
}

static void check_expert(const layer_sums *layer, int expert) {
  if (expert < 0 || expert >= layer->layout.experts)
    esp_panic("expert %d of %d of %s was asked for", expert, layer->layout.experts, layer->scope);
}

bool esp_statistics_neurons(const esp_statistics *statistics, int layer, int stored, esp_neuron_usage *usage) {
  const layer_sums *sums = layer_at(statistics, layer);
  if (stored < 0 || stored >= sums->layout.stored)
    esp_panic("stored expert %d of %d of %s was asked for", stored, sums->layout.stored, sums->scope);
  if (sums->selected.experts == 0) return false;
  *usage = esp_neuron_counts_usage(&sums->selected, stored, width_of(sums, stored));
  return true;
}

int64_t esp_statistics_pair(const esp_statistics *statistics, int layer, int expert, int other) {
  const layer_sums *sums = layer_at(statistics, layer);
  check_expert(sums, expert);
  check_expert(sums, other);
  return sums->pairs[expert * sums->layout.experts + other];
}

bool esp_statistics_can_pair(const esp_statistics *statistics, int layer, int expert, int other) {
  const layer_sums *sums = layer_at(statistics, layer);
  check_expert(sums, expert);
  check_expert(sums, other);
  const int of_member = sums->layout.experts / sums->members;
  return sums->pairable && expert != other && expert / of_member == other / of_member;
}

int esp_statistics_classes(const esp_statistics *statistics, int layer) { return layer_at(statistics, layer)->classes; }

static const class_sums *class_at(const esp_statistics *statistics, int layer, int expert, int class_) {
  const layer_sums *sums = layer_at(statistics, layer);
  check_expert(sums, expert);
  if (class_ < 0 || class_ >= sums->classes) esp_panic("class %d of %d was asked for", class_, sums->classes);
  return &sums->by_class[expert * sums->classes + class_];
}

int64_t esp_statistics_class(const esp_statistics *statistics, int layer, int expert, int class_) {
  return class_at(statistics, layer, expert, class_)->count;
}

int64_t esp_statistics_class_served(const esp_statistics *statistics, int layer, int expert, int class_) {
  return class_at(statistics, layer, expert, class_)->served;
}

void esp_statistics_expert(const esp_statistics *statistics, int layer, int expert, esp_expert_statistics *result) {
  const layer_sums *sums = layer_at(statistics, layer);
  check_expert(sums, expert);
  const expert_sums *e = &sums->experts[expert];
  *result = (esp_expert_statistics){.count = e->count,
                                    .served = e->served,
                                    .first_choices = e->first_choices,
                                    .gate_mass = e->gate_mass,
                                    .gate_served = e->gate_served,
                                    .share = ratio((double)e->count, (double)sums->slots),
                                    .mean_gate = ratio(e->gate_mass, (double)e->count),
                                    .mean_score = ratio(e->score, (double)sums->tokens)};
}
