/* Token-choice routing and the counting sort that follows it. */
#include "moe_ops_internal.h"
#include <espalier/ops.h>

#include <string.h>

void esp_expert_layout_full(esp_expert_layout *layout, int experts) {
  memset(layout, 0, sizeof *layout);
  layout->experts = layout->stored = experts;
  for (int i = 0; i < experts; i++) layout->index[i] = layout->original_ids[i] = i;
}

int esp_routable_experts(const esp_expert_layout *layout) {
  int count = 0;
  for (int i = 0; i < layout->experts; i++) count += layout->index[i] != ESP_EXPERT_MASKED;
  return count;
}

/* --- route ------------------------------------------------------------------------------------------------
 * z' = z + noise.  Scores p = softmax(z') or sigmoid(z').  Selection: the k largest z' (softmax and sigmoid are
 * monotonic, so these are the k largest scores).  Gates g_i: p_i; p_i / S with S the sum over the selected; or
 * softmax resp. sigmoid over the selected logits only.
 * Backward: raw        dp_i += dg_i
 *           divided    dp_i += (dg_i - sum_j dg_j g_j) / S
 *           selected   dz_i += g_i (dg_i - sum_j dg_j g_j)   (softmax over the selected)
 *           softmax    dz = p (dp - sum_j dp_j p_j);   sigmoid  dz = dp p (1 - p). */

typedef struct route_attributes {
  const esp_expert_layout *layout;
  esp_router_config config;
  int k;
  double noise_deviation;
  uint64_t seed, stream;
  esp_routing *routing;
  int32_t *choice;
} route_attributes;

static void route_plan(esp_node *node) {
  const route_attributes *at = node->attributes;
  const esp_tensor *logits = node->inputs[0];
  esp_require(node, logits->rank == 2 && logits->shape[1] == at->layout->experts, "needs logits [tokens, experts]");
  esp_require(node, at->k > 0 && at->k <= esp_routable_experts(at->layout), "fewer experts than k can be routed to");
  esp_plan_columns(node, 0, at->k);
  esp_plan_columns(node, 1, logits->shape[1]);
  node->saved_bytes = (size_t)logits->shape[0] * sizeof(esp_real); /* S of each token */
  node->scratch_bytes = (size_t)esp_tensor_count(logits) * sizeof(esp_real);
}

enum { TOKENS_PER_RANGE = 256 };

static void copy_logits(const route_attributes *at, const esp_real *logits, esp_real *noisy, esp_random *noise) {
  for (int j = 0; j < at->layout->experts; j++) {
    const double shift = at->noise_deviation > 0 ? at->noise_deviation * esp_random_normal(noise) : 0;
    noisy[j] = at->layout->index[j] == ESP_EXPERT_MASKED ? (esp_real)-INFINITY : logits[j] + (esp_real)shift;
  }
}

/* Softmax, leaving out what is -infinity: its score is an exact 0. */
static void softmax_in_place(esp_real *z, int count) {
  esp_real most = z[0], sum = 0;
  for (int j = 1; j < count; j++) most = z[j] > most ? z[j] : most;
  for (int j = 0; j < count; j++) z[j] = z[j] == (esp_real)-INFINITY ? 0 : esp_exp(z[j] - most);
  for (int j = 0; j < count; j++) sum += z[j];
  for (int j = 0; j < count; j++) z[j] /= sum;
}

static void sigmoid_in_place(esp_real *z, int count) {
  for (int j = 0; j < count; j++) z[j] = z[j] == (esp_real)-INFINITY ? 0 : esp_sigmoid(z[j]);
}

static void score_in_place(const route_attributes *at, esp_real *z, int count) {
  if (at->config.score == ESP_SCORE_SOFTMAX)
    softmax_in_place(z, count);
  else
    sigmoid_in_place(z, count);
}

/* The gates of one token, from its noisy logits (selected only) or its scores. Returns S. */
static esp_real set_gates(const route_attributes *at, const esp_real *scores, const int32_t *choice, esp_real *gates) {
  esp_real sum = 0;
  for (int i = 0; i < at->k; i++) {
    if (!at->config.score_selected_only) gates[i] = scores[choice[i]];
    sum += gates[i];
  }
  if (at->config.renormalise)
    for (int i = 0; i < at->k; i++) gates[i] /= sum;
  return sum;
}

static void route_tokens(void *context, int64_t begin, int64_t end) {
  const esp_node *node = context;
  const route_attributes *at = node->attributes;
  const int experts = at->layout->experts;
  esp_random noise = esp_random_stream(at->seed, ESP_PURPOSE_ROUTER_NOISE,
                                       at->stream * 0x100000u + (uint64_t)(begin / TOKENS_PER_RANGE));
  for (int64_t t = begin; t < end; t++) {
    esp_real *scores = node->outputs[1]->data + t * experts, *gates = node->outputs[0]->data + t * at->k;
    int32_t *choice = at->choice + t * at->k;
    copy_logits(at, node->inputs[0]->data + t * experts, scores, &noise);
    esp_top_k_of(scores, experts, at->k, choice);
    if (at->config.score_selected_only) {
      for (int i = 0; i < at->k; i++) gates[i] = scores[choice[i]];
      score_in_place(at, gates, at->k);
    }
    score_in_place(at, scores, experts);
    ((esp_real *)node->saved)[t] = set_gates(at, scores, choice, gates);
  }
}

/* Stable counting sort of the slots by stored expert. */
static void sort_slots(const esp_node *node) {
  const route_attributes *at = node->attributes;
  esp_routing *r = at->routing;
  const int64_t slots = r->tokens * r->k;
  int64_t *wanted = (int64_t *)(uintptr_t)r->wanted, *first = (int64_t *)(uintptr_t)r->first_row;
  int32_t *row = (int32_t *)(uintptr_t)r->row, *slot = (int32_t *)(uintptr_t)r->slot;
  int64_t next[ESP_MAX_EXPERTS];
  memset(wanted, 0, (size_t)r->experts * sizeof *wanted);
  memset(first, 0, (size_t)(r->stored + 1) * sizeof *first);
  for (int64_t i = 0; i < slots; i++) wanted[at->choice[i]]++;
  for (int e = 0; e < r->experts; e++)
    if (at->layout->index[e] >= 0) first[at->layout->index[e] + 1] += wanted[e];
  for (int s = 0; s < r->stored; s++) {
    next[s] = first[s];
    first[s + 1] += first[s];
  }
  for (int64_t i = 0; i < slots; i++) {
    const int32_t stored = at->layout->index[at->choice[i]];
    row[i] = stored < 0 ? -1 : (int32_t)next[stored]++;
    if (stored >= 0) slot[row[i]] = (int32_t)i;
  }
  r->rows = first[r->stored];
}

static void route_forward(esp_node *node) {
  esp_parallel_for(node->inputs[0]->shape[0], TOKENS_PER_RANGE, route_tokens, node);
  sort_slots(node);
}

/* dp and the direct part of dz of one token, from dgates. */
static void gate_gradient(const esp_node *node, int64_t t, esp_real *dscores, esp_real *dlogits) {
  const route_attributes *at = node->attributes;
  const esp_real *gates = node->outputs[0]->data + t * at->k, *dgates = node->outputs[0]->grad + t * at->k;
  const esp_real sum = ((const esp_real *)node->saved)[t];
  const bool selected = at->config.score_selected_only, softmax = at->config.score == ESP_SCORE_SOFTMAX;
  esp_real dot = 0;
  for (int i = 0; i < at->k; i++) dot += dgates[i] * gates[i];
  for (int i = 0; i < at->k; i++) {
    const int32_t expert = at->choice[t * at->k + i];
    const esp_real draw = at->config.renormalise ? (dgates[i] - dot) / sum : dgates[i]; /* d raw score */
    const esp_real raw = at->config.renormalise ? gates[i] * sum : gates[i];
    if (!selected)
      dscores[expert] += draw;
    else if (softmax)
      dlogits[expert] += gates[i] * (dgates[i] - dot); /* the scores sum to 1, renormalised or not */
    else
      dlogits[expert] += draw * raw * (1 - raw);
  }
}

typedef struct route_gradient {
  const esp_node *node;
  esp_real *dlogits;
  bool accumulate;
} route_gradient;

static void route_gradient_tokens(void *context, int64_t begin, int64_t end) {
  const route_gradient *g = context;
  const route_attributes *at = g->node->attributes;
  const int experts = at->layout->experts;
  for (int64_t t = begin; t < end; t++) {
    const esp_real *scores = g->node->outputs[1]->data + t * experts;
    esp_real *dscores = (esp_real *)g->node->scratch + t * experts, *dlogits = g->dlogits + t * experts, dot = 0;
    if (!g->accumulate) memset(dlogits, 0, (size_t)experts * sizeof *dlogits);
    memcpy(dscores, g->node->outputs[1]->grad + t * experts, (size_t)experts * sizeof *dscores);
    gate_gradient(g->node, t, dscores, dlogits);
    for (int j = 0; j < experts; j++) dot += dscores[j] * scores[j];
    for (int j = 0; j < experts; j++)
      dlogits[j] += at->config.score == ESP_SCORE_SOFTMAX ? scores[j] * (dscores[j] - dot)
                                                          : scores[j] * dscores[j] * (1 - scores[j]);
  }
}

static void route_backward(esp_node *node) {
  route_gradient g = {.node = node};
  g.dlogits = esp_grad(node->inputs[0], &g.accumulate);
  esp_parallel_for(node->inputs[0]->shape[0], TOKENS_PER_RANGE, route_gradient_tokens, &g);
}

static esp_cost route_cost(const esp_node *node) {
  return esp_cost_elementwise(node, 8.0 * (double)esp_tensor_columns(node->inputs[0]));
}

const esp_op esp_op_route = {"route",       route_plan,
                             route_forward, route_backward,
                             route_cost,    {1e-5, 1e-7, "two logits at the edge of the selection are equal"}};

static esp_routing *take_routing(esp_tape *tape, int64_t tokens, int k, const esp_expert_layout *layout,
                                 int32_t *choice) {
  const size_t slots = (size_t)tokens * (size_t)k;
  esp_routing *routing = esp_tape_take(tape, sizeof *routing);
  int32_t *row = esp_tape_take(tape, slots * sizeof *row), *slot = esp_tape_take(tape, slots * sizeof *slot);
  int64_t *first = esp_tape_take(tape, (size_t)(layout->stored + 1) * sizeof *first);
  int64_t *wanted = esp_tape_take(tape, (size_t)layout->experts * sizeof *wanted);
  if (!routing || !row || !slot || !first || !wanted) return NULL;
  *routing = (esp_routing){.tokens = tokens,
                           .k = k,
                           .experts = layout->experts,
                           .stored = layout->stored,
                           .choice = choice,
                           .row = row,
                           .slot = slot,
                           .first_row = first,
                           .wanted = wanted};
  return routing;
}

esp_tensor *esp_route(esp_tape *tape, esp_tensor *logits, int k, const esp_router_config *config,
                      const esp_expert_layout *layout, bool training, uint64_t seed, uint64_t stream,
                      esp_tensor **scores, const esp_routing **routing) {
  *scores = NULL;
  *routing = NULL;
  if (!logits) return NULL;
  const int64_t tokens = logits->shape[0];
  int32_t *choice = esp_tape_take(tape, (size_t)tokens * (size_t)k * sizeof *choice);
  esp_routing *made = choice ? take_routing(tape, tokens, k, layout, choice) : NULL;
  if (!made) return NULL;
  const route_attributes at = {.layout = layout,
                               .config = *config,
                               .k = k,
                               .seed = seed,
                               .stream = stream,
                               .noise_deviation = training ? config->noise / layout->experts : 0,
                               .routing = made,
                               .choice = choice};
  esp_node *node = esp_tape_run(tape, &esp_op_route, &logits, 1, &at, sizeof at);
  if (!node) return NULL;
  *scores = node->outputs[1];
  *routing = made;
  return node->outputs[0];
}
