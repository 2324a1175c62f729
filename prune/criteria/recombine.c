#include <espalier/recombine.h>
#include <espalier/parallel.h>

#include <string.h>

/* Experts run on this many tokens at a time, so that the hidden layers of all of them fit into memory. */
enum { CHUNK = 1024, GRAIN = 64 };

esp_status esp_check_recombination(const esp_model *model, const char *criterion) {
  if (model->config.moe.router.policy != ESP_ROUTER_SOFT) return ESP_OK;
  return esp_fail(ESP_ERR_MISMATCH,
                  "%s asks what a token's next expert would yield, but with router policy soft experts see mixtures of "
                  "tokens that change with every expert that goes; use a criterion by scores, such as man",
                  criterion);
}

static esp_tensor *leaf(esp_tape *tape, const esp_real *values, int64_t rows, int64_t columns) {
  esp_tensor *tensor = esp_tape_tensor(tape, 2, (const int64_t[]){rows, columns});
  if (tensor) memcpy(tensor->data, values, (size_t)(rows * columns) * sizeof *values);
  return tensor;
}

/* The same rows for every expert, one copy after another. */
static esp_tensor *repeat(esp_tape *tape, const esp_real *values, int64_t rows, int64_t columns, int copies) {
  esp_tensor *tensor = esp_tape_tensor(tape, 2, (const int64_t[]){copies * rows, columns});
  for (int s = 0; tensor && s < copies; s++)
    memcpy(tensor->data + s * rows * columns, values, (size_t)(rows * columns) * sizeof *values);
  return tensor;
}

static esp_status run_chunk(const esp_moe *moe, esp_tape *tape, const esp_layer_batch *batch, int64_t begin,
                            int64_t count, esp_real *outputs) {
  const int64_t width = moe->bank.width;
  const int stored = moe->layout.stored;
  esp_tape_reset(tape, false);
  int64_t *first_row = esp_tape_take(tape, (size_t)(stored + 1) * sizeof *first_row);
  if (!first_row) return esp_tape_status(tape);
  for (int s = 0; s <= stored; s++) first_row[s] = s * count;
  esp_tensor *rows = repeat(tape, batch->input + begin * width, count, width, stored);
  const esp_tensor *y = esp_expert_bank_forward(&moe->bank, tape, rows, first_row,
                                                &(esp_neuron_options){.kept = moe->neurons_kept}, NULL);
  if (!y) return esp_tape_status(tape);
  for (int s = 0; s < stored; s++)
    memcpy(outputs + (s * batch->tokens + begin) * width, y->data + s * count * width,
           (size_t)(count * width) * sizeof *outputs);
  return ESP_OK;
}

esp_status esp_run_every_expert(const esp_moe *moe, esp_tape *tape, const esp_layer_batch *batch, esp_real *outputs) {
  for (int64_t begin = 0; begin < batch->tokens; begin += CHUNK) {
    const int64_t left = batch->tokens - begin;
    ESP_TRY(run_chunk(moe, tape, batch, begin, left < CHUNK ? left : CHUNK, outputs));
  }
  return ESP_OK;
}

esp_status esp_run_shared_expert(const esp_moe *moe, esp_tape *tape, const esp_layer_batch *batch, esp_real *outputs) {
  const int64_t width = moe->bank.width;
  esp_tape_reset(tape, false);
  const esp_tensor *y = esp_expert_bank_forward_all(&moe->shared, tape, leaf(tape, batch->input, batch->tokens, width));
  if (!y) return esp_tape_status(tape);
  memcpy(outputs, y->data, (size_t)(batch->tokens * width) * sizeof *outputs);
  return ESP_OK;
}

typedef struct combination {
  const esp_routed *routed;
  const esp_expert_layout *layout;
  const esp_real *experts, *shared;
  esp_real *y;
  int64_t width, tokens;
} combination;

/* A slot without a row goes to a zero expert or beyond the capacity. */
static void combine_tokens(void *context, int64_t begin, int64_t end) {
  const combination *c = context;
  const esp_routing *r = c->routed->routing;
  for (int64_t t = begin; t < end; t++) {
    esp_real *y = c->y + t * c->width;
    memset(y, 0, (size_t)c->width * sizeof *y);
    for (int64_t slot = r->first_slot[t]; slot < r->first_slot[t + 1]; slot++) {
      if (r->row[slot] < 0) continue;
      const esp_real *f = c->experts + (c->layout->index[r->choice[slot]] * c->tokens + t) * c->width;
      const esp_real gate = c->routed->gates->data[slot];
      for (int64_t i = 0; i < c->width; i++) y[i] += gate * f[i];
    }
    for (int64_t i = 0; c->shared && i < c->width; i++) y[i] += c->shared[t * c->width + i];
  }
}

int32_t esp_dropped_index(esp_prune_mode mode, const esp_moe *moe) {
  if (mode == ESP_PRUNE_ZERO) return ESP_EXPERT_ZERO;
  return mode == ESP_PRUNE_REMOVE && moe->config.members == 1 ? ESP_TARGET_REMOVED : ESP_EXPERT_MASKED;
}

/* The layout without removed experts, and whose logits are left, kept[to->experts]. */
static void compact(const esp_expert_layout *from, esp_expert_layout *to, int *kept) {
  *to = *from;
  to->experts = 0;
  for (int e = 0; e < from->experts; e++) {
    if (from->index[e] == ESP_TARGET_REMOVED) continue;
    kept[to->experts] = e;
    to->index[to->experts] = from->index[e];
    to->original_ids[to->experts++] = from->original_ids[e];
  }
}

/* Columns kept[count] of values [rows, columns], in the step arena; NULL if there are no values, or no memory. */
static esp_tensor *take_columns(esp_tape *tape, const esp_real *values, int64_t rows, int64_t columns, const int *kept,
                                int count) {
  esp_tensor *taken = values ? esp_tape_tensor(tape, 2, (const int64_t[]){rows, count}) : NULL;
  for (int64_t i = 0; taken && i < rows; i++)
    for (int j = 0; j < count; j++) taken->data[i * count + j] = values[i * columns + kept[j]];
  return taken;
}

esp_status esp_recombine(const esp_moe *moe, esp_tape *tape, const esp_layer_batch *batch,
                         const esp_recombination *what, esp_real *y) {
  const esp_expert_layout *layout = what->layout;
  int kept[ESP_MAX_EXPERTS];
  esp_expert_layout left;
  compact(layout, &left, kept);
  esp_tape_reset(tape, false);
  esp_route_request request = esp_moe_request(moe, batch->tokens, batch->images, &(esp_pass){.training = false});
  const esp_tensor *bias = take_columns(tape, request.bias, 1, layout->experts, kept, left.experts);
  if (request.bias && !bias) return esp_tape_status(tape);
  request.layout = &left;
  request.bias = bias ? bias->data : NULL;
  esp_routed routed = {.logits = take_columns(tape, batch->logits, batch->tokens, layout->experts, kept, left.experts)};
  if (batch->logits && !routed.logits) return esp_tape_status(tape);
  moe->policy->route(tape, &request, &routed);
  if (!routed.routing || !routed.gates) return esp_tape_status(tape);
  combination c = {&routed, &left, what->experts, what->shared, y, moe->bank.width, batch->tokens};
  esp_parallel_for(batch->tokens, GRAIN, combine_tokens, &c);
  return ESP_OK;
}

typedef struct distance {
  const esp_real *a, *b;
} distance;

static double add_squares(void *context, int64_t begin, int64_t end) {
  const distance *d = context;
  double sum = 0;
  for (int64_t i = begin; i < end; i++) {
    const double difference = (double)d->a[i] - (double)d->b[i];
    sum += difference * difference;
  }
  return sum;
}

double esp_squared_distance(const esp_real *a, const esp_real *b, int64_t count) {
  distance d = {a, b};
  return esp_parallel_sum(count, add_squares, &d);
}
