/* Token choice: each token picks its k experts (Shazeer et al., arXiv 1701.06538; Switch, V-MoE, Mixtral, OLMoE,
 * DeepSeek are settings of it). With a selection bias: balanced without an auxiliary loss (Wang et al., 2408.15664). */
#include "moe_ops_internal.h"
#include <espalier/ops.h>

#include <string.h>

/* --- route ------------------------------------------------------------------------------------------------
 * z' = z + noise.  Scores p = softmax(z') or sigmoid(z').  Selection: the k largest z' (softmax and sigmoid are
 * monotonic, so these are the k largest scores), the k largest p + bias, or choices made elsewhere.  Gates g_i: p_i;
 * p_i / S with S the sum over the selected; or softmax resp. sigmoid over the selected logits only.
 * Backward: raw        dp_i += dg_i
 *           divided    dp_i += (dg_i - sum_j dg_j g_j) / S
 *           selected   dz_i += g_i (dg_i - sum_j dg_j g_j)   (softmax over the selected) */

typedef struct route_attributes {
  esp_route_request request;
  esp_routing_work *work;
  esp_real *noisy; /* [T, experts]; NULL if nobody wants them */
} route_attributes;

static int smallest_member(const esp_route_request *r) {
  const int own = r->layout->experts / r->members;
  int least = own;
  for (int m = 0; m < r->members; m++) {
    int count = 0;
    for (int e = m * own; e < (m + 1) * own; e++) count += r->layout->index[e] != ESP_EXPERT_MASKED;
    if (count < least) least = count;
  }
  return least;
}

static void route_prepare(esp_node *node) {
  const esp_route_request *r = &((const route_attributes *)node->attributes)->request;
  const esp_tensor *logits = node->inputs[0];
  esp_require(node, logits->rank == 2 && logits->shape[1] == r->layout->experts && logits->shape[0] == r->tokens,
              "needs logits [tokens, experts]");
  esp_require(node, r->tokens % r->members == 0 && r->layout->experts % r->members == 0,
              "tokens and experts must be shared out evenly among the members");
  esp_require(node, r->k > 0 && r->k <= smallest_member(r), "fewer experts than k can be routed to");
  esp_set_output_columns(node, 0, r->k);
  esp_set_output_columns(node, 1, logits->shape[1]);
  node->saved_bytes = (size_t)logits->shape[0] * sizeof(esp_real); /* S of each token */
  node->scratch_bytes = (size_t)esp_tensor_count(logits) * sizeof(esp_real);
}

/* The gates of one token, from its scores unless they are set already. Returns S. */
static esp_real set_gates(const esp_route_request *r, const esp_real *scores, const int32_t *choice, esp_real *gates) {
  esp_real sum = 0;
  for (int i = 0; i < r->k; i++) {
    if (!r->config->score_selected_only) gates[i] = scores[choice[i]];
    sum += gates[i];
  }
  if (r->config->renormalise)
    for (int i = 0; i < r->k; i++) gates[i] /= sum;
  return sum;
}

/* Leaves out the last choices as the layout's `skip` says; the rest is renormalised where gates are (otherwise they
 * stay as they are; reconstruction: the paper's model renormalises). Returns what the gates were divided by. */
static esp_real skip_last(const esp_route_request *r, esp_real *gates, int32_t *kept) {
  double head = 0;
  for (*kept = 1; *kept < r->k; ++*kept) {
    head += (double)gates[*kept - 1];
    double tail = 0;
    for (int i = *kept; i < r->k; i++) tail += (double)gates[i];
    if (tail / head < r->layout->skip) break;
  }
  if (*kept == r->k) return 1;
  for (int i = *kept; i < r->k; i++) gates[i] = 0;
  if (!r->config->renormalise) return 1;
  for (int i = 0; i < *kept; i++) gates[i] /= (esp_real)head;
  return (esp_real)head;
}

/* The k largest score + bias. Scores are at least 0, and those that are excluded come last. */
static void choose_biased(const esp_route_request *r, const esp_real *noisy, esp_real *scores, int32_t *choice) {
  const int experts = r->layout->experts;
  esp_real biased[ESP_MAX_EXPERTS];
  memcpy(scores, noisy, (size_t)experts * sizeof *scores);
  esp_route_score(r->config->score, scores, experts);
  for (int j = 0; j < experts; j++)
    biased[j] = noisy[j] == (esp_real)-INFINITY ? (esp_real)-INFINITY : scores[j] + r->bias[j];
  esp_top_k_of(biased, experts, r->k, choice);
}

/* Not-a-number is never chosen; lest it vanish so, it spoils the token's gates. */
static void keep_nan(const esp_real *logits, int experts, esp_real *gates, int k) {
  bool spoiled = false;
  for (int j = 0; j < experts; j++) spoiled = spoiled || isnan(logits[j]);
  for (int i = 0; spoiled && i < k; i++) gates[i] = (esp_real)NAN;
}

/* `scores` holds the noisy logits of one token, and then its scores. */
static esp_real route_token(const route_attributes *at, int64_t t, esp_real *scores, esp_real *gates) {
  const esp_route_request *r = &at->request;
  const int experts = r->layout->experts;
  int32_t *choice = at->work->choice + t * r->k;
  if (r->choices) {
    memcpy(choice, r->choices + t * r->k, (size_t)r->k * sizeof *choice);
  } else if (r->bias) {
    esp_real noisy[ESP_MAX_EXPERTS];
    memcpy(noisy, scores, (size_t)experts * sizeof *noisy);
    choose_biased(r, noisy, scores, choice);
    memcpy(scores, noisy, (size_t)experts * sizeof *noisy);
  } else {
    esp_top_k_of(scores, experts, r->k, choice);
  }
  if (r->config->score_selected_only) {
    for (int i = 0; i < r->k; i++) gates[i] = scores[choice[i]];
    esp_route_score(r->config->score, gates, r->k);
  }
  esp_route_score(r->config->score, scores, experts);
  const esp_real sum = set_gates(r, scores, choice, gates);
  keep_nan(scores, experts, gates, r->k);
  return at->work->kept ? sum * skip_last(r, gates, &at->work->kept[t]) : sum;
}

static void route_tokens(void *context, int64_t begin, int64_t end) {
  const esp_node *node = context;
  const route_attributes *at = node->attributes;
  const int experts = at->request.layout->experts, k = at->request.k;
  esp_real *scores = node->outputs[1]->data;
  esp_route_copy_logits(&at->request, node->inputs[0]->data, begin, end, scores);
  if (at->noisy)
    memcpy(at->noisy + begin * experts, scores + begin * experts, (size_t)((end - begin) * experts) * sizeof *scores);
  for (int64_t t = begin; t < end; t++) {
    ((esp_real *)node->saved)[t] = route_token(at, t, scores + t * experts, node->outputs[0]->data + t * k);
    at->work->first_slot[t] = t * k;
    for (int i = 0; i < k; i++) at->work->token[t * k + i] = (int32_t)t;
  }
}

static void route_forward(esp_node *node) {
  const route_attributes *at = node->attributes;
  esp_parallel_for(at->request.tokens, ESP_ROUTE_TOKENS, route_tokens, node);
  at->work->first_slot[at->request.tokens] = at->work->routing.slots;
  esp_routing_sort(&at->request, at->work, node->outputs[1]->data);
}

/* dp and the direct part of dz of one token, from dgates. */
static void gate_gradient(const esp_node *node, int64_t t, esp_real *dscores, esp_real *dlogits) {
  const route_attributes *at = node->attributes;
  const esp_router_config *config = at->request.config;
  const int k = at->request.k, kept = at->work->kept ? at->work->kept[t] : k; /* what is skipped is a constant */
  const esp_real *gates = node->outputs[0]->data + t * k, *dgates = node->outputs[0]->grad + t * k;
  const esp_real sum = ((const esp_real *)node->saved)[t];
  esp_real dot = 0;
  for (int i = 0; i < kept; i++) dot += dgates[i] * gates[i];
  for (int i = 0; i < kept; i++) {
    const int32_t expert = at->work->choice[t * k + i];
    const esp_real draw = config->renormalise ? (dgates[i] - dot) / sum : dgates[i]; /* d raw score */
    const esp_real raw = config->renormalise ? gates[i] * sum : gates[i];
    if (!config->score_selected_only) dscores[expert] += draw;
    else if (config->score == ESP_SCORE_SOFTMAX)
      dlogits[expert] += gates[i] * (dgates[i] - dot); /* the scores sum to 1, renormalised or not */
    else dlogits[expert] += draw * raw * (1 - raw);
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
  const int experts = at->request.layout->experts;
  for (int64_t t = begin; t < end; t++) {
    esp_real *dscores = (esp_real *)g->node->scratch + t * experts, *dlogits = g->dlogits + t * experts;
    if (!g->accumulate) memset(dlogits, 0, (size_t)experts * sizeof *dlogits);
    memcpy(dscores, g->node->outputs[1]->grad + t * experts, (size_t)experts * sizeof *dscores);
    gate_gradient(g->node, t, dscores, dlogits);
    esp_route_score_gradient(at->request.config->score, g->node->outputs[1]->data + t * experts, dscores, experts,
                             dlogits);
  }
}

static void route_backward(esp_node *node) {
  route_gradient g = {.node = node};
  g.dlogits = esp_grad(node->inputs[0], &g.accumulate);
  esp_parallel_for(node->inputs[0]->shape[0], ESP_ROUTE_TOKENS, route_gradient_tokens, &g);
}

static esp_cost route_cost(const esp_node *node) {
  return esp_cost_elementwise(node, 8.0 * (double)esp_tensor_columns(node->inputs[0]));
}

const esp_op esp_op_route = {"route",       route_prepare,
                             route_forward, route_backward,
                             route_cost,    {1e-5, 1e-7, "two logits at the edge of the selection are equal"}};

esp_tensor *esp_route(esp_tape *tape, esp_tensor *logits, const esp_route_request *request, esp_routed *routed) {
  routed->gates = NULL;
  if (!logits) return NULL;
  route_attributes at = {.noisy = NULL};
  if (!esp_request_copy(tape, request, &at.request)) return NULL;
  at.work = esp_routing_take(tape, request, request->tokens * request->k, request->k);
  if (!at.work) return NULL;
  if (request->layout->skip > 0 && !request->training) {
    at.work->kept = esp_tape_take(tape, (size_t)request->tokens * sizeof *at.work->kept);
    if (!at.work->kept) return NULL;
  }
  if (request->config->load_weight > 0) {
    routed->noisy = esp_tape_tensor(tape, 2, logits->shape);
    if (!routed->noisy) return NULL;
    at.noisy = routed->noisy->data;
  }
  esp_node *node = esp_tape_run(tape, &esp_op_route, &logits, 1, &at, sizeof at);
  if (!node) return NULL;
  routed->logits = logits;
  routed->scores = node->outputs[1];
  routed->routing = &at.work->routing;
  return routed->gates = node->outputs[0];
}

/* --- the policy ---------------------------------------------------------------------------------------------- */

static esp_status check(const esp_model_config *config) {
  const esp_router_config *r = &config->moe.router;
  if (r->batch_priority && !(r->capacity > 0) && !(r->evaluation_capacity > 0))
    return esp_fail(ESP_ERR_CONFIG, "model.moe.router.batch_priority orders tokens for a limited capacity, but there "
                                    "is none; set model.moe.router.capacity too");
  if (r->load_weight > 0 && !(r->noise > 0))
    return esp_fail(ESP_ERR_CONFIG,
                    "model.moe.router.load_weight is %g, but the load loss is made of the chances that "
                    "router noise gives; set model.moe.router.noise, to 1 as in V-MoE",
                    r->load_weight);
  return ESP_OK;
}

static void route(esp_tape *tape, const esp_route_request *request, esp_routed *routed) {
  (void)esp_route(tape, routed->logits, request, routed);
}

const esp_router_policy esp_router_token_choice = {
    "token_choice", "Shazeer et al., arXiv 1701.06538", true, check, route, esp_router_dispatch, esp_router_combine};
