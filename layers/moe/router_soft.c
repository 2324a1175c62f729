/* Soft MoE (Puigcerver et al., arXiv 2308.00951): each of an expert's slots takes a weighted mean of an image's tokens,
 * and each token a weighted mean of all slots' results. Nothing is chosen, so nothing can be unbalanced. */
#include "moe_ops_internal.h"
#include <espalier/ops.h>

#include <string.h>

static esp_status check(const esp_model_config *config) {
  const esp_moe_config *moe = &config->moe;
  if (moe->router.slots < 0)
    return esp_fail(ESP_ERR_CONFIG, "model.moe.router.slots is %d; it must be positive, or 0 for tokens / experts",
                    moe->router.slots);
  if (moe->members != 1)
    return esp_fail(ESP_ERR_CONFIG,
                    "model.moe.members is %d, but model.moe.router.policy soft chooses no experts that "
                    "could be shared out among members; use 1",
                    moe->members);
  if (moe->router.noise > 0 || moe->router.score != ESP_SCORE_SOFTMAX || moe->router.importance_weight > 0 ||
      moe->router.z_weight > 0 || moe->router.entropy_weight != 0)
    return esp_fail(ESP_ERR_CONFIG,
                    "model.moe.router.policy soft mixes by softmax and balances by construction: score must be "
                    "softmax, and noise, importance_weight, z_weight and entropy_weight of model.moe.router left out");
  return esp_router_refuse_token_choice_settings(config, "soft");
}

int64_t esp_soft_slots(const esp_moe_config *config, int64_t tokens_per_image) {
  if (config->router.slots > 0) return config->router.slots;
  return (tokens_per_image + config->experts - 1) / config->experts;
}

/* --- softmax over tokens: y_nts = e^(x_nts) / sum_t e^(x_nts);  dx = y (dy - sum_t dy y) ------------------------ */

static void tokens_prepare(esp_node *node) {
  esp_require(node, node->inputs[0]->rank == 3, "needs [images, tokens, slots]");
  esp_set_output_same(node);
}

ESP_HOT static void tokens_softmax(const esp_real *restrict x, int64_t tokens, int64_t slots, esp_real *restrict y) {
  for (int64_t s = 0; s < slots; s++) {
    esp_real most = x[s], sum = 0;
    for (int64_t t = 1; t < tokens; t++) most = x[t * slots + s] > most ? x[t * slots + s] : most;
    for (int64_t t = 0; t < tokens; t++) sum += y[t * slots + s] = esp_exp(x[t * slots + s] - most);
    for (int64_t t = 0; t < tokens; t++) y[t * slots + s] /= sum;
  }
}

static void tokens_images(void *context, int64_t begin, int64_t end) {
  const esp_node *node = context;
  const int64_t tokens = node->inputs[0]->shape[1], slots = node->inputs[0]->shape[2];
  for (int64_t n = begin; n < end; n++)
    tokens_softmax(node->inputs[0]->data + n * tokens * slots, tokens, slots,
                   node->outputs[0]->data + n * tokens * slots);
}

static void tokens_forward(esp_node *node) { esp_parallel_for(node->inputs[0]->shape[0], 1, tokens_images, node); }

typedef struct tokens_gradient {
  const esp_node *node;
  esp_real *dx;
  bool accumulate;
} tokens_gradient;

static void tokens_gradient_images(void *context, int64_t begin, int64_t end) {
  const tokens_gradient *g = context;
  const esp_tensor *y = g->node->outputs[0];
  const int64_t tokens = y->shape[1], slots = y->shape[2];
  for (int64_t i = begin * slots; i < end * slots; i++) {
    const int64_t first = i / slots * tokens * slots + i % slots;
    esp_real dot = 0;
    for (int64_t t = 0; t < tokens; t++) dot += y->data[first + t * slots] * y->grad[first + t * slots];
    for (int64_t t = 0; t < tokens; t++) {
      const int64_t place = first + t * slots;
      g->dx[place] = (g->accumulate ? g->dx[place] : 0) + y->data[place] * (y->grad[place] - dot);
    }
  }
}

static void tokens_backward(esp_node *node) {
  tokens_gradient g = {.node = node};
  g.dx = esp_grad(node->inputs[0], &g.accumulate);
  esp_parallel_for(node->inputs[0]->shape[0], 1, tokens_gradient_images, &g);
}

static esp_cost tokens_cost(const esp_node *node) { return esp_cost_elementwise(node, 8); }

const esp_op esp_op_softmax_tokens = {"softmax over tokens", tokens_prepare, tokens_forward,
                                      tokens_backward,       tokens_cost,    {1e-5, 1e-8, NULL}};

esp_tensor *esp_softmax_tokens(esp_tape *tape, esp_tensor *x) {
  return esp_tape_apply(tape, &esp_op_softmax_tokens, &x, 1, NULL, 0);
}

/* --- the router ----------------------------------------------------------------------------------------------
 * Slot ((n E) + e) p + j of the routing is slot j of expert e and image n: the order of the mixed tokens. */

static void set_choices(const esp_route_request *r, esp_routing_work *w, int64_t slots_per_expert) {
  for (int64_t i = 0; i < w->routing.slots; i++) w->choice[i] = (int32_t)(i / slots_per_expert % r->layout->experts);
}

/* The weight with which each slot's result is used, summed over the image's tokens. */
static void sum_weights(const esp_tensor *weights, esp_real *sums) {
  const int64_t tokens = weights->shape[1], slots = weights->shape[2];
  memset(sums, 0, (size_t)(weights->shape[0] * slots) * sizeof *sums);
  for (int64_t row = 0; row < weights->shape[0] * tokens; row++)
    for (int64_t s = 0; s < slots; s++) sums[row / tokens * slots + s] += weights->data[row * slots + s];
}

static void route(esp_tape *tape, const esp_route_request *request, esp_routed *routed) {
  if (!routed->logits) return;
  const int64_t tokens = request->tokens / request->images, slots = esp_tensor_columns(routed->logits);
  esp_tensor *logits = esp_reshape(tape, routed->logits, 3, (const int64_t[]){request->images, tokens, slots});
  routed->dispatch_weights = esp_softmax_tokens(tape, logits);
  routed->combine_weights = esp_softmax(tape, logits);
  routed->gates = esp_tape_tensor(tape, 2, (const int64_t[]){request->images * slots, 1});
  esp_routing_work *w = esp_routing_take(tape, request, request->images * slots, 0);
  if (!routed->dispatch_weights || !routed->combine_weights || !routed->gates || !w) return;
  set_choices(request, w, slots / request->layout->experts);
  sum_weights(routed->combine_weights, routed->gates->data);
  esp_routing_sort(request, w, NULL);
  w->routing.first_slot = NULL;
  w->routing.token = NULL;
  routed->routing = &w->routing;
}

static esp_tensor *dispatch(esp_tape *tape, esp_tensor *tokens, const esp_routed *routed) {
  const esp_tensor *weights = routed->dispatch_weights;
  const int64_t width = esp_tensor_columns(tokens), images = weights->shape[0];
  esp_tensor *x = esp_reshape(tape, tokens, 3, (const int64_t[]){images, weights->shape[1], width});
  esp_tensor *mixed = esp_matmul(tape, routed->dispatch_weights, true, x, false);
  mixed = esp_reshape(tape, mixed, 2, (const int64_t[]){images * weights->shape[2], width});
  return esp_gather_rows(tape, mixed, routed->routing->slot, routed->routing->rows);
}

static esp_tensor *combine(esp_tape *tape, esp_tensor *rows, const esp_routed *routed) {
  if (!rows) return NULL;
  const esp_tensor *weights = routed->combine_weights;
  const int64_t width = esp_tensor_columns(rows), images = weights->shape[0], slots = weights->shape[2];
  esp_tensor *results = esp_scatter_rows(tape, rows, routed->routing->slot, images * slots);
  results = esp_reshape(tape, results, 3, (const int64_t[]){images, slots, width});
  esp_tensor *y = esp_matmul(tape, routed->combine_weights, false, results, false);
  return esp_reshape(tape, y, 2, (const int64_t[]){images * weights->shape[1], width});
}

const esp_router_policy esp_router_soft = {"soft", "Puigcerver et al., arXiv 2308.00951", true, check, route, dispatch,
                                           combine};
