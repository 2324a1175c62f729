/* What a pass adds to the sums: choices, pairs, classes, logits, scores and, of every stride-th row, activations. */
#include "statistics_internal.h"

#include <espalier/parallel.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

const double esp_near_zero_levels[ESP_NEAR_ZERO_LEVELS] = {0.001, 0.01, 0.1};
const int esp_top_mass_percents[ESP_TOP_MASS_LEVELS] = {1, 5, 10, 20, 30, 50};

static const double bins_per_unit = 20;

double esp_histogram_edge(int index) { return (index - 0.5 * ESP_HISTOGRAM_BINS) / bins_per_unit; }

/* --- routing -------------------------------------------------------------------------------------------- */

static void add_choices(layer_sums *layer, const esp_moe_record *record) {
  const esp_routing *r = record->routing;
  for (int64_t slot = 0; slot < r->slots; slot++) {
    expert_sums *expert = &layer->experts[r->choice[slot]];
    const bool first = r->first_slot && r->first_slot[r->token[slot]] == slot; /* in Soft MoE nothing is chosen */
    expert->count++;
    expert->first_choices += first;
    expert->gate_mass += (double)record->gates->data[slot];
    if (r->row[slot] >= 0) expert->gate_served += (double)record->gates->data[slot];
  }
  for (int e = 0; e < r->experts; e++) layer->experts[e].served += r->served[e];
}

static void add_pairs(layer_sums *layer, const esp_routing *r) {
  const int experts = layer->layout.experts;
  for (int64_t t = 0; r->first_slot && t < r->tokens; t++)
    for (int64_t a = r->first_slot[t]; a < r->first_slot[t + 1]; a++)
      for (int64_t b = a + 1; b < r->first_slot[t + 1]; b++) {
        layer->pairs[r->choice[a] * experts + r->choice[b]]++;
        layer->pairs[r->choice[b] * experts + r->choice[a]]++;
      }
}

/* The members of an E3 see the same images, one copy after another. */
static void add_classes(layer_sums *layer, const esp_moe_record *record) {
  const esp_routing *r = record->routing;
  if (!record->labels || !r->token) return;
  for (int64_t slot = 0; slot < r->slots; slot++) {
    const int32_t label = record->labels[r->token[slot] / record->tokens_per_image % record->images];
    class_sums *sums = &layer->by_class[r->choice[slot] * layer->classes + label];
    sums->count++;
    sums->served += r->row[slot] >= 0;
  }
}

/* Scores are divided by their sum first: softmax scores sum to 1 already, sigmoid scores do not. */
static double entropy_of_scores(const esp_real *scores, int count) {
  double sum = 0, weighted = 0; /* H = log S - (sum of p log p) / S */
  for (int e = 0; e < count; e++) {
    const double p = (double)scores[e];
    sum += p;
    if (p > 0) weighted += p * log(p);
  }
  return sum > 0 ? log(sum) - weighted / sum : 0;
}

/* Soft MoE has several columns for each expert. */
static void add_logits(layer_sums *layer, const esp_tensor *logits) {
  if (!logits) return;
  const int experts = layer->layout.experts;
  const int64_t of_expert = esp_tensor_columns(logits) / experts;
  for (int64_t t = 0; t < esp_tensor_rows(logits); t++)
    for (int e = 0; e < experts; e++) {
      const esp_real *z = logits->data + (t * experts + e) * of_expert;
      if (layer->layout.index[e] == ESP_EXPERT_MASKED) continue;
      layer->logits += of_expert;
      for (int64_t i = 0; i < of_expert; i++) layer->squared_logits += (double)z[i] * (double)z[i];
    }
}

static void add_scores(layer_sums *layer, const esp_moe_record *record) {
  if (!record->scores) return;
  const int experts = layer->layout.experts;
  layer->scored += record->routing->tokens;
  for (int64_t t = 0; t < record->routing->tokens; t++) {
    const esp_real *scores = record->scores->data + t * experts;
    layer->token_entropy += entropy_of_scores(scores, experts);
    for (int e = 0; e < experts; e++) layer->experts[e].score += (double)scores[e];
  }
}

/* --- neurons -------------------------------------------------------------------------------------------- */

static int descending(const void *a, const void *b) {
  const float x = *(const float *)a, y = *(const float *)b;
  return (x < y) - (x > y);
}

static void bin_value(neuron_sums *sums, double value) {
  const double place = value * bins_per_unit + 0.5 * ESP_HISTOGRAM_BINS;
  if (place < 0) sums->below++;
  else if (place >= ESP_HISTOGRAM_BINS) sums->above++;
  else sums->histogram[(int)place]++;
  for (int i = 0; i < ESP_NEAR_ZERO_LEVELS; i++) sums->near_zero[i] += fabs(value) < esp_near_zero_levels[i];
}

/* Adds the share of the sum that lies in each top p percent of `count` magnitudes, which get sorted. */
static void add_top_mass(neuron_sums *sums, float *magnitudes, int count) {
  double total = 0, top = 0;
  for (int j = 0; j < count; j++) total += (double)magnitudes[j];
  if (total <= 0) {
    sums->silent_rows++;
    return;
  }
  qsort(magnitudes, (size_t)count, sizeof *magnitudes, descending);
  for (int i = 0, j = 0; i < ESP_TOP_MASS_LEVELS; i++) {
    const int end = (esp_top_mass_percents[i] * count + 99) / 100;
    for (; j < end; j++) top += (double)magnitudes[j];
    sums->top_mass[i] += top / total;
  }
}

/* `gate` makes the gate activations of the row. */
static void add_row(neuron_sums *sums, const esp_real *row, esp_gate_kind gate, int hidden, float *scratch) {
  int count = 0;
  esp_gate_values(gate, row, hidden, scratch);
  for (int j = 0; j < hidden; j++) {
    const esp_real value = scratch[j];
    if (!isfinite(value)) continue;
    bin_value(sums, (double)value);
    scratch[count++] = fabsf(value);
  }
  sums->rows++;
  sums->values += hidden;
  sums->not_finite += hidden - count;
  add_top_mass(sums, scratch, count);
}

typedef struct sampling {
  layer_sums *layer;
  const esp_tensor *activations;
  const esp_moe_record *record;
  int stride;
  int64_t rows; /* to look at */
} sampling;

/* Neurons of the expert that has the row; they are the first columns. */
static int neurons_of_row(const esp_moe_record *record, int64_t row, int *expert) {
  while (row >= record->routing->first_row[*expert + 1]) ++*expert;
  return esp_expert_width(&record->layer->bank, *expert);
}

static void add_part(void *context, int64_t begin, int64_t end) {
  const sampling *s = context;
  const esp_activation_kind activation = s->layer->activation;
  const esp_gate_kind gate = esp_activation_is_gated(activation) ? esp_activation_gate(activation) : ESP_GATE_IDENTITY;
  const int64_t columns = esp_tensor_columns(s->activations);
  for (int64_t part = begin; part < end; part++) {
    neuron_sums *sums = &s->layer->parts[part];
    int expert = 0;
    memset(sums, 0, sizeof *sums);
    for (int64_t i = esp_part_begin(s->rows, part); i < esp_part_begin(s->rows, part + 1); i++)
      add_row(sums, s->activations->data + i * s->stride * columns, gate,
              neurons_of_row(s->record, i * s->stride, &expert), s->layer->scratch + part * s->layer->hidden);
  }
}

static void add_neurons(layer_sums *layer, const esp_moe_record *record, int stride) {
  const bool gated = esp_activation_is_gated(layer->activation);
  sampling s = {layer, gated ? record->experts.pre : record->experts.activation, record, stride, 0};
  s.rows = (record->routing->rows + stride - 1) / stride;
  esp_parallel_for(ESP_PARTS, 1, add_part, &s);
  for (int part = 0; part < ESP_PARTS; part++) esp_neuron_sums_add(&layer->neurons, &layer->parts[part]);
}

/* --- the observer --------------------------------------------------------------------------------------- */

static layer_sums *layer_of(esp_statistics *statistics, const esp_moe *moe) {
  for (int i = 0; i < statistics->layer_count; i++) {
    layer_sums *layer = &statistics->layers[i];
    if (layer->block == moe->block && layer->layout.experts == moe->layout.experts && layer->hidden == moe->bank.hidden)
      return layer;
  }
  esp_panic("the statistics were not made for the model with %s, which has %d experts of %d neurons", moe->scope,
            moe->layout.experts, moe->bank.hidden);
}

static void observe(void *context, const esp_moe_record *record) {
  esp_statistics *statistics = context;
  layer_sums *layer = layer_of(statistics, record->layer);
  layer->tokens += record->routing->tokens;
  layer->slots += record->routing->slots;
  layer->served += record->routing->rows;
  layer->skipped += record->routing->skipped;
  add_choices(layer, record);
  add_pairs(layer, record->routing);
  add_classes(layer, record);
  add_logits(layer, record->slot_logits ? record->slot_logits : record->logits);
  add_scores(layer, record);
  if (statistics->stride == 0) return;
  esp_neuron_counts_add(&layer->selected, record);
  add_neurons(layer, record, statistics->stride);
}

esp_observer esp_statistics_observer(esp_statistics *statistics) { return (esp_observer){observe, statistics}; }
