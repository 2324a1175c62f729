/* Expert choice (Zhou et al., arXiv 2202.09368): every expert takes the same number of tokens of a group. A token may
 * be taken by none or by all. */
#include "moe_ops_internal.h"
#include <espalier/ops.h>

#include <string.h>

static esp_status check(const esp_model_config *config) {
  if (config->moe.router.renormalise)
    return esp_fail(ESP_ERR_CONFIG, "model.moe.router.renormalise divides by the sum over a token's top_k gates, but "
                                    "with policy expert_choice a token has any number of them; set it to false");
  return esp_router_refuse_token_choice_settings(config, "expert_choice");
}

/* --- route experts -----------------------------------------------------------------------------------------
 * z' = z + noise.  Scores p = softmax(z') or sigmoid(z') over the experts.  Expert e takes the l tokens of each group
 * with the largest p_te; score_selected_only: with the largest z'_te.  Gates: p_te, or softmax resp. sigmoid over the
 * chosen tokens' z'_te.
 * Backward: raw       dp_te += dg_te;   selected softmax dz_te += g_te (dg_te - sum_s dg_se g_se), s over the expert's
 *           tokens in the group;   selected sigmoid dz_te += dg_te g_te (1 - g_te). */

typedef struct expert_attributes {
  esp_route_request request;
  esp_routing_work *work;
  esp_real *noisy;    /* [T, experts] */
  esp_ranked *ranked; /* [T, experts]: each group's part is [experts of the member, tokens of the group] */
  uint8_t *taken;     /* [T, experts] */
} expert_attributes;

static int64_t tokens_taken(const esp_route_request *r, const esp_token_group *g) {
  const int64_t tokens = g->end - g->begin, experts = r->original_experts / r->members;
  const int64_t l = (tokens * r->k + experts - 1) / experts;
  return l < tokens ? l : tokens;
}

static int64_t count_slots(const esp_route_request *r) {
  int64_t slots = 0;
  for (int64_t i = 0; i < esp_group_count(r) * r->members; i++) {
    const esp_token_group g = esp_group_at(r, i);
    for (int e = g.first_expert; e < g.end_expert; e++)
      if (r->layout->index[e] != ESP_EXPERT_MASKED) slots += tokens_taken(r, &g);
  }
  return slots;
}

static void expert_prepare(esp_node *node) {
  const expert_attributes *at = node->attributes;
  const esp_route_request *r = &at->request;
  const esp_tensor *logits = node->inputs[0];
  esp_require(node, logits->rank == 2 && logits->shape[1] == r->layout->experts && logits->shape[0] == r->tokens,
              "needs logits [tokens, experts]");
  esp_require(node, r->tokens % r->members == 0 && r->layout->experts % r->members == 0,
              "tokens and experts must be shared out evenly among the members");
  esp_set_output(node, 0, 2, (const int64_t[]){at->work->routing.slots, 1});
  esp_set_output_columns(node, 1, logits->shape[1]);
  node->scratch_bytes = (size_t)esp_tensor_count(logits) * sizeof(esp_real);
}

/* The tokens that one expert takes of a group. */
static void take_tokens(const expert_attributes *at, const esp_token_group *g, int expert, const esp_real *values) {
  const esp_route_request *r = &at->request;
  const int64_t tokens = g->end - g->begin, experts = r->layout->experts;
  const int own = g->end_expert - g->first_expert;
  esp_ranked *ranked = at->ranked + g->begin * own + (expert - g->first_expert) * tokens;
  for (int64_t i = 0; i < tokens; i++) {
    const esp_real value = values[(g->begin + i) * experts + expert];
    ranked[i] = (esp_ranked){isnan(value) ? (esp_real)-INFINITY : value, (int32_t)(g->begin + i)};
  }
  esp_rank(ranked, tokens);
  for (int64_t i = 0; i < tokens_taken(r, g); i++) at->taken[ranked[i].index * experts + expert] = 1;
}

static void take_group(const esp_node *node, int64_t index) {
  const expert_attributes *at = node->attributes;
  const esp_route_request *r = &at->request;
  const esp_token_group g = esp_group_at(r, index);
  const esp_real *values = r->config->score_selected_only ? at->noisy : node->outputs[1]->data;
  for (int e = g.first_expert; e < g.end_expert; e++)
    if (r->layout->index[e] != ESP_EXPERT_MASKED) take_tokens(at, &g, e, values);
}

static void take_groups(void *context, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; i++) take_group(context, i);
}

static void score_tokens(void *context, int64_t begin, int64_t end) {
  const esp_node *node = context;
  const expert_attributes *at = node->attributes;
  const int experts = at->request.layout->experts;
  esp_real *scores = node->outputs[1]->data;
  esp_route_copy_logits(&at->request, node->inputs[0]->data, begin, end, at->noisy);
  memcpy(scores + begin * experts, at->noisy + begin * experts, (size_t)((end - begin) * experts) * sizeof *scores);
  for (int64_t t = begin; t < end; t++) esp_route_score(at->request.config->score, scores + t * experts, experts);
}

static void list_slots(const expert_attributes *at, const esp_real *values, esp_real *gates) {
  const int experts = at->request.layout->experts;
  esp_routing_work *w = at->work;
  int64_t slot = 0;
  for (int64_t t = 0; t < at->request.tokens; t++) {
    w->first_slot[t] = slot;
    for (int e = 0; e < experts; e++) {
      if (!at->taken[t * experts + e]) continue;
      w->token[slot] = (int32_t)t;
      w->choice[slot] = e;
      gates[slot++] = values[t * experts + e];
    }
  }
  w->first_slot[at->request.tokens] = slot;
}

/* Replaces the logits in `gates` by their softmax over the slots of each (group, expert). */
static void softmax_chosen(const expert_attributes *at, const esp_token_group *g, esp_real *gates) {
  const esp_routing_work *w = at->work;
  esp_real most[ESP_MAX_EXPERTS], sum[ESP_MAX_EXPERTS] = {0};
  const int64_t begin = w->first_slot[g->begin], end = w->first_slot[g->end];
  for (int e = g->first_expert; e < g->end_expert; e++) most[e] = (esp_real)-INFINITY;
  for (int64_t i = begin; i < end; i++)
    if (gates[i] > most[w->choice[i]]) most[w->choice[i]] = gates[i];
  for (int64_t i = begin; i < end; i++) sum[w->choice[i]] += gates[i] = esp_exp(gates[i] - most[w->choice[i]]);
  for (int64_t i = begin; i < end; i++) gates[i] /= sum[w->choice[i]];
}

/* Not-a-number is never chosen; lest it vanish so, it spoils all gates. */
static void keep_nan(const expert_attributes *at, esp_real *gates) {
  bool spoiled = false;
  const int64_t count = at->request.tokens * at->request.layout->experts;
  for (int64_t i = 0; i < count; i++) spoiled = spoiled || isnan(at->noisy[i]);
  for (int64_t i = 0; spoiled && i < at->work->routing.slots; i++) gates[i] = (esp_real)NAN;
}

static void expert_forward(esp_node *node) {
  const expert_attributes *at = node->attributes;
  const esp_route_request *r = &at->request;
  const int64_t groups = esp_group_count(r) * r->members;
  esp_real *gates = node->outputs[0]->data;
  memset(at->taken, 0, (size_t)(r->tokens * r->layout->experts));
  esp_parallel_for(r->tokens, ESP_ROUTE_TOKENS, score_tokens, node);
  esp_parallel_for(groups, 1, take_groups, node);
  list_slots(at, r->config->score_selected_only ? at->noisy : node->outputs[1]->data, gates);
  if (r->config->score_selected_only && r->config->score == ESP_SCORE_SIGMOID)
    esp_route_score(ESP_SCORE_SIGMOID, gates, (int)at->work->routing.slots);
  for (int64_t i = 0; i < groups && r->config->score_selected_only && r->config->score == ESP_SCORE_SOFTMAX; i++) {
    const esp_token_group g = esp_group_at(r, i);
    softmax_chosen(at, &g, gates);
  }
  keep_nan(at, gates);
  esp_routing_sort(r, at->work, node->outputs[1]->data);
}

/* What flows to the chosen logits of a group, or to the scores in `dscores`. */
static void gate_gradient(const esp_node *node, const esp_token_group *g, esp_real *dscores, esp_real *dlogits) {
  const expert_attributes *at = node->attributes;
  const esp_router_config *config = at->request.config;
  const esp_routing_work *w = at->work;
  const esp_real *gates = node->outputs[0]->data, *dgates = node->outputs[0]->grad;
  const int64_t begin = w->first_slot[g->begin], end = w->first_slot[g->end], experts = at->request.layout->experts;
  const bool softmax = config->score == ESP_SCORE_SOFTMAX;
  esp_real dot[ESP_MAX_EXPERTS] = {0};
  for (int64_t i = begin; i < end; i++) dot[w->choice[i]] += dgates[i] * gates[i];
  for (int64_t i = begin; i < end; i++) {
    const int64_t place = w->token[i] * experts + w->choice[i];
    if (!config->score_selected_only) dscores[place] += dgates[i];
    else dlogits[place] += softmax ? gates[i] * (dgates[i] - dot[w->choice[i]]) : dgates[i] * gates[i] * (1 - gates[i]);
  }
}

static void expert_backward(esp_node *node) {
  const expert_attributes *at = node->attributes;
  const esp_route_request *r = &at->request;
  const int experts = r->layout->experts;
  const int64_t count = r->tokens * experts;
  bool accumulate;
  esp_real *dlogits = esp_grad(node->inputs[0], &accumulate), *dscores = node->scratch;
  if (!accumulate) memset(dlogits, 0, (size_t)count * sizeof *dlogits);
  memcpy(dscores, node->outputs[1]->grad, (size_t)count * sizeof *dscores);
  for (int64_t i = 0; i < esp_group_count(r) * r->members; i++) {
    const esp_token_group g = esp_group_at(r, i);
    gate_gradient(node, &g, dscores, dlogits);
  }
  for (int64_t t = 0; t < r->tokens; t++)
    esp_route_score_gradient(r->config->score, node->outputs[1]->data + t * experts, dscores + t * experts, experts,
                             dlogits + t * experts);
}

static esp_cost expert_cost(const esp_node *node) {
  return esp_cost_elementwise(node, 16.0 * (double)esp_tensor_columns(node->inputs[0]));
}

const esp_op esp_op_route_experts = {"route experts", expert_prepare,
                                     expert_forward,  expert_backward,
                                     expert_cost,     {1e-5, 1e-7, "two scores at the edge of a selection are equal"}};

esp_tensor *esp_route_experts(esp_tape *tape, esp_tensor *logits, const esp_route_request *request,
                              esp_routed *routed) {
  routed->gates = NULL;
  if (!logits) return NULL;
  const size_t count = (size_t)(request->tokens * request->layout->experts);
  expert_attributes at = {.work = NULL};
  if (!esp_request_copy(tape, request, &at.request)) return NULL;
  at.work = esp_routing_take(tape, request, count_slots(request), 0);
  at.noisy = esp_tape_take(tape, count * sizeof *at.noisy);
  at.ranked = esp_tape_take(tape, count * sizeof *at.ranked);
  at.taken = esp_tape_take(tape, count);
  if (!at.work || !at.noisy || !at.ranked || !at.taken) return NULL;
  esp_node *node = esp_tape_run(tape, &esp_op_route_experts, &logits, 1, &at, sizeof at);
  if (!node) return NULL;
  routed->logits = logits;
  routed->scores = node->outputs[1];
  routed->routing = &at.work->routing;
  return routed->gates = node->outputs[0];
}

static void route(esp_tape *tape, const esp_route_request *request, esp_routed *routed) {
  (void)esp_route_experts(tape, routed->logits, request, routed);
}

const esp_router_policy esp_router_expert_choice = {
    "expert_choice", "Zhou et al., arXiv 2202.09368", true, check, route, esp_router_dispatch, esp_router_combine};
