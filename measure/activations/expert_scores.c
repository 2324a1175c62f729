#include <espalier/expert_scores.h>
#include <espalier/memory.h>
#include <espalier/parallel.h>

#include <math.h>
#include <string.h>

typedef struct layer_sums {
  int block, width;
  esp_expert_layout layout;
  int64_t tokens;
  esp_expert_sums *experts; /* [layout.experts], `deviation` unused */
  double *mean, *squares;   /* [layout.experts, width] Welford's mean and sum of squared deviations */
} layer_sums;

struct esp_expert_scores {
  esp_gate_form gates;
  int layer_count;
  layer_sums *layers;
};

static esp_status prepare_layer(layer_sums *layer, const esp_moe *moe) {
  const size_t experts = (size_t)moe->layout.experts;
  layer->layout = moe->layout;
  layer->block = moe->block;
  layer->width = moe->bank.width;
  layer->experts = esp_alloc(experts, sizeof *layer->experts);
  layer->mean = esp_alloc(experts * (size_t)layer->width, sizeof *layer->mean);
  layer->squares = esp_alloc(experts * (size_t)layer->width, sizeof *layer->squares);
  return layer->experts && layer->mean && layer->squares ? ESP_OK : ESP_ERR_MEMORY;
}

static esp_status prepare(esp_expert_scores *scores, const esp_model *model) {
  const int count = esp_model_moe_count(model);
  if (count == 0)
    return esp_fail(ESP_ERR_MISMATCH, "the model has no mixture layers, so there are no experts to score");
  scores->layers = esp_alloc((size_t)count, sizeof *scores->layers);
  if (!scores->layers) return ESP_ERR_MEMORY;
  scores->layer_count = count;
  for (int i = 0; i < count; i++) ESP_TRY(prepare_layer(&scores->layers[i], esp_model_moe(model, i)));
  return ESP_OK;
}

esp_status esp_expert_scores_create(esp_expert_scores **scores, const esp_model *model, esp_gate_form gates) {
  *scores = NULL;
  esp_expert_scores *made = esp_alloc(1, sizeof *made);
  if (!made) return ESP_ERR_MEMORY;
  made->gates = gates;
  const esp_status status = prepare(made, model);
  if (status != ESP_OK) {
    esp_expert_scores_free(made);
    return status;
  }
  *scores = made;
  return ESP_OK;
}

void esp_expert_scores_free(esp_expert_scores *scores) {
  if (!scores) return;
  for (int i = 0; i < scores->layer_count; i++) {
    esp_free(scores->layers[i].experts);
    esp_free(scores->layers[i].mean);
    esp_free(scores->layers[i].squares);
  }
  esp_free(scores->layers);
  esp_free(scores);
}

/* --- watching -------------------------------------------------------------------------------------------- */

typedef struct watching {
  layer_sums *layer;
  const esp_moe_record *record;
  esp_gate_form gates;
} watching;

static double gate_of(const watching *w, int64_t slot) {
  const esp_routing *r = w->record->routing;
  const esp_real *gates = w->record->gates->data;
  if (w->gates == ESP_GATES_MODEL || r->k == 0) return (double)gates[slot];
  double sum = 0;
  for (int64_t i = slot / r->k * r->k; i < (slot / r->k + 1) * r->k; i++) sum += (double)gates[i];
  return sum > 0 ? (double)gates[slot] / sum : 0;
}

static void add_moments(esp_expert_sums *sums, double gate, double norm) {
  const double gates[ESP_MOMENTS] = {1, gate, gate * gate}, norms[ESP_MOMENTS] = {1, norm, norm * norm};
  for (int a = 0; a < ESP_MOMENTS; a++)
    for (int b = 0; b < ESP_MOMENTS; b++) sums->moment[a][b] += gates[a] * norms[b];
}

/* One output of an expert. */
static void add_output(layer_sums *layer, int expert, double gate, const esp_real *f) {
  esp_expert_sums *sums = &layer->experts[expert];
  double *mean = layer->mean + (int64_t)expert * layer->width,
         *squares = layer->squares + (int64_t)expert * layer->width;
  const double weight = 1 / (double)++sums->count;
  double norm = 0, largest = sums->count > 1 ? sums->largest : (double)f[0];
  for (int c = 0; c < layer->width; c++) {
    const double x = (double)f[c], step = x - mean[c];
    mean[c] += step * weight;
    squares[c] += step * (x - mean[c]);
    norm += x * x;
    largest = x > largest || isnan(x) ? x : largest; /* keeps not-a-number */
  }
  sums->largest = largest;
  add_moments(sums, gate, sqrt(norm));
}

/* A logical expert's outputs all lie in one stored expert's rows, so these can be dealt out to threads. */
static void add_rows_of_stored(void *context, int64_t begin, int64_t end) {
  const watching *w = context;
  const esp_routing *r = w->record->routing;
  for (int64_t row = r->first_row[begin]; row < r->first_row[end]; row++) {
    const int64_t slot = r->slot[row];
    if (r->token && !esp_record_counts(w->record, r->token[slot])) continue;
    add_output(w->layer, r->choice[slot], gate_of(w, slot),
               w->record->experts.output->data + row * (int64_t)w->layer->width);
  }
}

/* The slot of a token's first choice. */
static int64_t first_of(const esp_moe_record *record, int64_t token) {
  const esp_routing *r = record->routing;
  int64_t best = r->first_slot[token];
  if (r->k > 0) return best;
  for (int64_t i = best + 1; i < r->first_slot[token + 1]; i++)
    if (record->gates->data[i] > record->gates->data[best]) best = i;
  return best;
}

static void add_first_choices(const watching *w) {
  const esp_moe_record *record = w->record;
  const esp_routing *r = record->routing;
  for (int64_t t = 0; t < r->tokens; t++) {
    if (!esp_record_counts(record, t)) continue;
    w->layer->tokens++;
    if (!r->first_slot || r->first_slot[t] == r->first_slot[t + 1]) continue;
    const int64_t slot = first_of(record, t);
    esp_expert_sums *sums = &w->layer->experts[r->choice[slot]];
    sums->first_choices++;
    sums->first_confidence +=
        (double)(record->scores ? record->scores->data[t * r->experts + r->choice[slot]] : record->gates->data[slot]);
  }
}

static layer_sums *layer_of(const esp_expert_scores *scores, const esp_moe *moe) {
  for (int i = 0; i < scores->layer_count; i++) {
    layer_sums *layer = &scores->layers[i];
    if (layer->block == moe->block && layer->layout.experts == moe->layout.experts && layer->width == moe->bank.width)
      return layer;
  }
  esp_panic("the expert scores were not made for the model with %s, which has %d experts", moe->scope,
            moe->layout.experts);
}

static void observe(void *context, const esp_moe_record *record) {
  const esp_expert_scores *scores = context;
  watching w = {layer_of(scores, record->layer), record, scores->gates};
  esp_parallel_for_uneven(record->routing->stored, 1, add_rows_of_stored, &w);
  add_first_choices(&w);
}

esp_observer esp_expert_scores_observer(esp_expert_scores *scores) { return (esp_observer){observe, scores}; }

/* --- merging -------------------------------------------------------------------------------------------- */

static bool same_layout(const layer_sums *a, const layer_sums *b) {
  const size_t size = (size_t)a->layout.experts * sizeof a->layout.index[0];
  return a->block == b->block && a->width == b->width && a->layout.experts == b->layout.experts &&
         memcmp(a->layout.index, b->layout.index, size) == 0 &&
         memcmp(a->layout.original_ids, b->layout.original_ids, size) == 0;
}

static esp_status check_same(const esp_expert_scores *a, const esp_expert_scores *b) {
  bool same = a->gates == b->gates && a->layer_count == b->layer_count;
  for (int i = 0; same && i < a->layer_count; i++) same = same_layout(&a->layers[i], &b->layers[i]);
  return same ? ESP_OK
              : esp_fail(ESP_ERR_MISMATCH, "expert scores of models with other layers or experts, or of gates of "
                                           "another form, cannot be merged");
}

/* With na and nb outputs: the mean moves by delta nb / n, M2 grows by M2b + delta^2 na nb / n. */
static void merge_spread(layer_sums *layer, const layer_sums *other, int expert) {
  const double na = (double)layer->experts[expert].count, nb = (double)other->experts[expert].count, n = na + nb;
  for (int64_t i = (int64_t)expert * layer->width; i < (int64_t)(expert + 1) * layer->width; i++) {
    const double delta = other->mean[i] - layer->mean[i];
    layer->mean[i] += delta * nb / n;
    layer->squares[i] += other->squares[i] + delta * delta * na * nb / n;
  }
}

static void merge_expert(layer_sums *layer, const layer_sums *other, int expert) {
  esp_expert_sums *a = &layer->experts[expert];
  const esp_expert_sums *b = &other->experts[expert];
  a->first_choices += b->first_choices;
  a->first_confidence += b->first_confidence;
  if (b->count == 0) return;
  merge_spread(layer, other, expert);
  a->largest = a->count == 0 || b->largest > a->largest || isnan(b->largest) ? b->largest : a->largest;
  a->count += b->count;
  for (int i = 0; i < ESP_MOMENTS; i++)
    for (int j = 0; j < ESP_MOMENTS; j++) a->moment[i][j] += b->moment[i][j];
}

esp_status esp_expert_scores_merge(esp_expert_scores *scores, const esp_expert_scores *other) {
  ESP_TRY(check_same(scores, other));
  for (int i = 0; i < scores->layer_count; i++) {
    scores->layers[i].tokens += other->layers[i].tokens;
    for (int e = 0; e < scores->layers[i].layout.experts; e++) merge_expert(&scores->layers[i], &other->layers[i], e);
  }
  return ESP_OK;
}

/* --- results -------------------------------------------------------------------------------------------- */

static const layer_sums *layer_at(const esp_expert_scores *scores, int layer, int expert) {
  if (layer < 0 || layer >= scores->layer_count)
    esp_panic("mixture layer %d of %d was asked for", layer, scores->layer_count);
  if (expert < 0 || expert >= scores->layers[layer].layout.experts)
    esp_panic("expert %d of %d was asked for", expert, scores->layers[layer].layout.experts);
  return &scores->layers[layer];
}

int esp_expert_scores_layer_count(const esp_expert_scores *scores) { return scores->layer_count; }

int64_t esp_expert_scores_tokens(const esp_expert_scores *scores, int layer) {
  return layer_at(scores, layer, 0)->tokens;
}

const double *esp_expert_scores_mean(const esp_expert_scores *scores, int layer, int expert) {
  const layer_sums *sums = layer_at(scores, layer, expert);
  return sums->mean + (int64_t)expert * sums->width;
}

void esp_expert_scores_expert(const esp_expert_scores *scores, int layer, int expert, esp_expert_sums *sums) {
  const layer_sums *of = layer_at(scores, layer, expert);
  double squares = 0;
  for (int c = 0; c < of->width; c++) squares += of->squares[(int64_t)expert * of->width + c];
  *sums = of->experts[expert];
  sums->deviation = sums->count > 1 ? sqrt(squares / (double)(sums->count - 1)) : 0;
}

double esp_family_score(const esp_expert_sums *sums, int b, int alpha, int beta) {
  if (sums->count == 0) return 0;
  return b == 0 ? sums->moment[alpha][beta] : sums->moment[alpha][beta] / (double)sums->count;
}
