/* Which experts to drop so that each layer's output on calibration data changes least (Lu et al., "Not All Experts are
 * Equal", arXiv 2402.14800): X and Z are a layer's input and output in the unpruned model, Z' its output on X with
 * fewer experts, and the loss is the Frobenius norm of Z - Z', the difference taken in double.
 *
 * Layer by layer from the unpruned model's X, or progressively: X from the model whose earlier layers are pruned
 * already, Z still from the unpruned one. All subsets are tried, in lexicographic order of the dropped indices, the
 * first of equal ones wins; where there are too many, and if asked for, experts go one by one (greedy: an extension of
 * ours). With an E3 each member's subset is sought for itself: their tokens and experts have nothing in common, so that
 * their squared losses add up. */
#include "criteria_internal.h"
#include <espalier/layer_cache.h>
#include <espalier/memory.h>
#include <espalier/surgeon.h>

#include <math.h>
#include <string.h>

static const int64_t most_bytes = (int64_t)4 << 30;
static const int64_t most_tokens = (int64_t)1 << 20;
static const double most_subsets = 20000;

/* One layer's search. */
typedef struct search {
  const esp_moe *moe;
  esp_tape *tape;
  const esp_layer_cache *input, *target; /* X and Z, of the same batches */
  esp_real **experts, **shared;          /* [batches] what esp_run_every_expert() and .._shared_expert() made of X */
  esp_real *y;                           /* [tokens of a batch, width] */
  esp_reconstruction_loss form;
  int32_t dropped_index;    /* esp_dropped_index() */
  esp_expert_layout layout; /* of the subset that is tried */
} search;

/* --- the loss ------------------------------------------------------------------------------------------------ */

static esp_status loss_of(search *s, double *loss) {
  double squares = 0, norms = 0;
  for (int b = 0; b < s->input->count; b++) {
    const esp_layer_batch *batch = &s->input->batches[b];
    ESP_TRY(esp_recombine(s->moe, s->tape, batch,
                          &(esp_recombination){.layout = &s->layout, .experts = s->experts[b], .shared = s->shared[b]},
                          s->y));
    const double of_batch = esp_squared_distance(s->target->outputs[b], s->y, batch->tokens * s->moe->bank.width);
    squares += of_batch;
    norms += sqrt(of_batch);
  }
  *loss = s->form == ESP_RECONSTRUCTION_ONE_NORM ? sqrt(squares) : norms;
  if (isfinite(*loss)) return ESP_OK;
  return esp_fail(ESP_ERR_NOT_FINITE, "the reconstruction loss of %s is not finite: are all parameters of the model?",
                  s->moe->scope);
}

static esp_status loss_without(search *s, const int *experts, int count, double *loss) {
  for (int i = 0; i < count; i++) s->layout.index[experts[i]] = s->dropped_index;
  const esp_status status = loss_of(s, loss);
  for (int i = 0; i < count; i++) s->layout.index[experts[i]] = s->moe->layout.index[experts[i]];
  return status;
}

/* --- subsets ------------------------------------------------------------------------------------------------- */

static double subset_count(int from, int size) {
  double count = 1;
  for (int i = 0; i < size; i++) count = count * (from - i) / (i + 1);
  return count;
}

/* The next combination of `size` of `from` in lexicographic order; false after the last one. */
static bool next_subset(int *places, int size, int from) {
  int i = size - 1;
  while (i >= 0 && places[i] == from - size + i) i--;
  if (i < 0) return false;
  places[i]++;
  for (int j = i + 1; j < size; j++) places[j] = places[j - 1] + 1;
  return true;
}

/* Finds the `size` among candidates[from] whose loss is least: best[size]. */
static esp_status try_all(search *s, const int *candidates, int from, int size, int *best, double *least) {
  int places[ESP_MAX_EXPERTS], subset[ESP_MAX_EXPERTS];
  for (int i = 0; i < size; i++) places[i] = i;
  *least = INFINITY;
  do {
    double loss;
    for (int i = 0; i < size; i++) subset[i] = candidates[places[i]];
    ESP_TRY(loss_without(s, subset, size, &loss));
    if (loss >= *least) continue;
    *least = loss;
    memcpy(best, subset, (size_t)size * sizeof *best);
  } while (next_subset(places, size, from));
  return ESP_OK;
}

/* One by one; the first candidates are those left. */
static esp_status try_greedily(search *s, int *candidates, int from, int size, int *best, double *least) {
  for (int n = 0; n < size; n++) {
    int place = -1;
    for (int c = 0; c < from - n; c++) {
      double loss;
      best[n] = candidates[c];
      ESP_TRY(loss_without(s, best, n + 1, &loss));
      if (place >= 0 && loss >= *least) continue;
      place = c;
      *least = loss;
    }
    best[n] = candidates[place];
    memmove(candidates + place, candidates + place + 1, (size_t)(from - n - place - 1) * sizeof *candidates);
  }
  return ESP_OK;
}

/* --- one layer ----------------------------------------------------------------------------------------------- */

static void free_search(search *s) {
  for (int b = 0; s->experts && s->shared && b < s->input->count; b++) {
    esp_free(s->experts[b]);
    esp_free(s->shared[b]);
  }
  esp_free(s->experts);
  esp_free(s->shared);
  esp_free(s->y);
}

static esp_status run_batch(search *s, int b) {
  const esp_layer_batch *batch = &s->input->batches[b];
  const size_t size = (size_t)(batch->tokens * s->moe->bank.width) * sizeof(esp_real);
  s->experts[b] = esp_alloc((size_t)s->moe->layout.stored, size);
  if (!s->experts[b]) return ESP_ERR_MEMORY;
  ESP_TRY(esp_run_every_expert(s->moe, s->tape, batch, s->experts[b]));
  if (!s->moe->has_shared) return ESP_OK;
  s->shared[b] = esp_alloc(1, size);
  return s->shared[b] ? esp_run_shared_expert(s->moe, s->tape, batch, s->shared[b]) : ESP_ERR_MEMORY;
}

static esp_status start_search(search *s) {
  const size_t batches = (size_t)s->input->count;
  s->layout = s->moe->layout;
  s->experts = esp_alloc(batches, sizeof *s->experts);
  s->shared = esp_alloc(batches, sizeof *s->shared);
  s->y = esp_alloc((size_t)(s->input->batches[0].tokens * s->moe->bank.width), sizeof *s->y); /* the first is largest */
  if (!s->experts || !s->shared || !s->y) return ESP_ERR_MEMORY;
  for (int b = 0; b < s->input->count; b++) ESP_TRY(run_batch(s, b));
  return ESP_OK;
}

/* What dropping each candidate alone costs is its score, for people to read. */
static esp_status score_singly(search *s, esp_layer_plan *layer, const int *candidates, int count) {
  for (int c = 0; c < count; c++) ESP_TRY(loss_without(s, &candidates[c], 1, &layer->score[candidates[c]]));
  return ESP_OK;
}

typedef struct reconstruction {
  const esp_criterion_inputs *inputs;
  esp_plan *plan;
  const int *drops;
  bool progressive, greedy;
  esp_tape *tape;
  esp_layer_cache targets[ESP_MAX_BLOCKS]; /* X and Z of the unpruned model */
} reconstruction;

/* Experts of a member that could go. */
static int list_candidates(const esp_layer_plan *layer, int begin, int end, int *candidates) {
  int count = 0;
  for (int e = begin; e < end; e++)
    if (layer->target[e] >= 0) candidates[count++] = e;
  return count;
}

static esp_status choose_in_member(const reconstruction *r, search *s, int i, int begin, int end) {
  esp_layer_plan *layer = &r->plan->layers[i];
  const int drop = r->drops[i] / s->moe->config.members;
  int candidates[ESP_MAX_EXPERTS], best[ESP_MAX_EXPERTS];
  const int count = list_candidates(layer, begin, end, candidates);
  if (count <= drop) return esp_fail(ESP_ERR_USAGE, "%s would be left without an expert; drop fewer", layer->scope);
  ESP_TRY(score_singly(s, layer, candidates, count));
  layer->greedy = r->greedy || subset_count(count, drop) > most_subsets;
  ESP_TRY(layer->greedy ? try_greedily(s, candidates, count, drop, best, &layer->loss)
                        : try_all(s, candidates, count, drop, best, &layer->loss));
  for (int n = 0; n < drop; n++) esp_plan_drop(r->plan, i, best[n]);
  for (int n = 0; n < drop; n++) s->layout.index[best[n]] = s->dropped_index; /* for the next member's loss */
  return ESP_OK;
}

static esp_status choose_in_layer(const reconstruction *r, int i, const esp_layer_cache *input) {
  search s = {.moe = esp_model_moe(r->inputs->model, i),
              .tape = r->tape,
              .input = input,
              .target = &r->targets[i],
              .form = r->inputs->loss,
              .dropped_index = esp_dropped_index(r->plan->mode, esp_model_moe(r->inputs->model, i))};
  const int members = s.moe->config.members, own = s.moe->layout.experts / members;
  esp_status status = start_search(&s);
  for (int m = 0; status == ESP_OK && m < members; m++) status = choose_in_member(r, &s, i, m * own, (m + 1) * own);
  free_search(&s);
  return status;
}

/* X from the model with the plan so far. */
static esp_status choose_progressively(const reconstruction *r, int i) {
  esp_layer_cache input = {.block = r->targets[i].block};
  esp_model *pruned;
  ESP_TRY(esp_apply_plan(&pruned, r->inputs->model, r->plan));
  esp_status status = esp_layer_cache_fill(&input, 1, pruned, r->inputs->calibration);
  if (status == ESP_OK) status = choose_in_layer(r, i, &input);
  esp_layer_cache_clear(&input);
  esp_model_free(pruned);
  return status;
}

/* --- the whole ----------------------------------------------------------------------------------------------- */

static esp_status check_memory(const reconstruction *r) {
  const esp_criterion_inputs *in = r->inputs;
  const int64_t images = esp_calibration_images(in->calibration);
  const int64_t tokens = esp_layer_cache_tokens(in->model, in->calibration);
  int64_t bytes = 0, outputs = 0;
  for (int i = 0; i < r->plan->layer_count; i++) {
    const esp_moe *moe = esp_model_moe(in->model, i);
    const int64_t of_layer = esp_layer_cache_bytes(moe, tokens);
    const int64_t of_experts =
        tokens * moe->bank.width * (moe->layout.stored + moe->has_shared) * (int64_t)sizeof(esp_real) +
        (r->progressive ? of_layer : 0);
    bytes += of_layer;
    outputs = of_experts > outputs ? of_experts : outputs;
  }
  bytes += outputs;
  if (tokens <= most_tokens && bytes <= most_bytes) return ESP_OK;
  const double fit = fmin((double)most_tokens / (double)tokens, (double)most_bytes / (double)bytes);
  return esp_fail(ESP_ERR_USAGE,
                  "reconstruction would keep what %lld tokens of %lld images do in %d layers: %lld bytes; "
                  "it keeps at most %lld tokens and %lld bytes, so calibrate on at most %lld images",
                  (long long)tokens, (long long)images, r->plan->layer_count, (long long)bytes, (long long)most_tokens,
                  (long long)most_bytes, (long long)(fit * (double)images));
}

static esp_status choose_all(reconstruction *r) {
  const int layers = r->plan->layer_count;
  for (int i = 0; i < layers; i++) r->targets[i].block = esp_model_moe(r->inputs->model, i)->block;
  ESP_TRY(esp_layer_cache_fill(r->targets, layers, r->inputs->model, r->inputs->calibration));
  esp_status status = ESP_OK;
  for (int i = 0; status == ESP_OK && i < layers; i++) {
    if (r->drops[i] > 0)
      status = r->progressive && i > 0 ? choose_progressively(r, i) : choose_in_layer(r, i, &r->targets[i]);
  }
  for (int i = 0; i < layers; i++) esp_layer_cache_clear(&r->targets[i]);
  return status;
}

static esp_status choose(const esp_criterion *self, const esp_criterion_inputs *inputs, esp_plan *plan,
                         const int *drops, bool progressive, bool greedy) {
  ESP_TRY(esp_check_recombination(inputs->model, self->name));
  reconstruction *r = esp_alloc(1, sizeof *r);
  if (!r) return ESP_ERR_MEMORY;
  r->inputs = inputs;
  r->plan = plan;
  r->drops = drops;
  r->progressive = progressive;
  r->greedy = greedy;
  esp_status status = check_memory(r);
  if (status == ESP_OK && !(r->tape = esp_tape_create())) status = ESP_ERR_MEMORY;
  if (status == ESP_OK) status = choose_all(r);
  esp_tape_free(r->tape);
  esp_free(r);
  return status;
}

esp_status esp_choose_by_layer(const esp_criterion *self, const esp_criterion_inputs *inputs, esp_plan *plan,
                               const int *drops) {
  return choose(self, inputs, plan, drops, false, false);
}

esp_status esp_choose_progressively(const esp_criterion *self, const esp_criterion_inputs *inputs, esp_plan *plan,
                                    const int *drops) {
  return choose(self, inputs, plan, drops, true, false);
}

esp_status esp_choose_greedily(const esp_criterion *self, const esp_criterion_inputs *inputs, esp_plan *plan,
                               const int *drops) {
  return choose(self, inputs, plan, drops, false, true);
}
