#include "neuron_counts_internal.h"

#include <espalier/memory.h>
#include <espalier/parallel.h>
#include <espalier/statistics.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

const double esp_near_zero_levels[ESP_NEAR_ZERO_LEVELS] = {0.001, 0.01, 0.1};
const int esp_top_mass_percents[ESP_TOP_MASS_LEVELS] = {1, 5, 10, 20, 30, 50};

static const double bins_per_unit = 20;
static const double dead_share = 0.1; /* of an even share */

double esp_histogram_edge(int index) { return (index - 0.5 * ESP_HISTOGRAM_BINS) / bins_per_unit; }

typedef struct expert_sums {
  int64_t count, served, first_choices;
  double gate_mass, gate_served, score;
} expert_sums;

/* Slots of tokens of images of one class. */
typedef struct class_sums {
  int64_t count, served;
} class_sums;

typedef struct neuron_sums {
  int64_t rows, values, not_finite, below, above, silent_rows;
  int64_t histogram[ESP_HISTOGRAM_BINS];
  int64_t near_zero[ESP_NEAR_ZERO_LEVELS];
  double top_mass[ESP_TOP_MASS_LEVELS];
} neuron_sums;

typedef struct layer_sums {
  char scope[32];
  esp_layer_kind kind;
  esp_expert_layout layout;
  esp_activation_kind activation;
  int block, hidden;
  int members;
  bool pairable; /* a token may have several experts of a member */
  int64_t tokens, slots, served, skipped, scored, logits;
  double token_entropy, squared_logits;
  expert_sums *experts; /* [layout.experts] */
  int64_t *pairs;       /* [experts, experts] tokens that chose both */
  class_sums *by_class; /* [experts, classes] */
  int classes;          /* 0: slots do not belong to images */
  esp_neuron_counts selected;
  neuron_sums neurons;
  neuron_sums *parts; /* [ESP_PARTS] of one batch */
  float *scratch;     /* [ESP_PARTS, hidden] */
} layer_sums;

struct esp_statistics {
  int stride, layer_count;
  layer_sums *layers;
};

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

/* Of scores over their sum: softmax scores sum to 1 already, sigmoid scores do not. */
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

static void add_neuron_sums(neuron_sums *sums, const neuron_sums *other) {
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

static void add_neurons(layer_sums *layer, const esp_moe_record *record, int stride) {
  const bool gated = esp_activation_is_gated(layer->activation);
  sampling s = {layer, gated ? record->experts.pre : record->experts.activation, record, stride, 0};
  s.rows = (record->routing->rows + stride - 1) / stride;
  esp_parallel_for(ESP_PARTS, 1, add_part, &s);
  for (int part = 0; part < ESP_PARTS; part++) add_neuron_sums(&layer->neurons, &layer->parts[part]);
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

/* --- forgetting and merging --------------------------------------------------------------------------------------- */

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
  add_neuron_sums(&layer->neurons, &other->neurons);
}

esp_status esp_statistics_merge(esp_statistics *statistics, const esp_statistics *other) {
  ESP_TRY(check_same(statistics, other));
  for (int i = 0; i < statistics->layer_count; i++) merge_layer(&statistics->layers[i], &other->layers[i]);
  return ESP_OK;
}

/* --- results -------------------------------------------------------------------------------------------- */

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
