/* The table of routers, and what several of them share. */
#include "moe_ops_internal.h"

/* clang-format off */
static const esp_router_policy *const policies[] = {
    [ESP_ROUTER_TOKEN_CHOICE]  = &esp_router_token_choice,
    [ESP_ROUTER_EXPERT_CHOICE] = &esp_router_expert_choice,
    [ESP_ROUTER_SOFT]          = &esp_router_soft,
    [ESP_ROUTER_HASH]          = &esp_router_hash,
    [ESP_ROUTER_EVEN]          = &esp_router_even,
};
/* clang-format on */
_Static_assert(sizeof policies / sizeof *policies == ESP_ROUTERS, "a router kind has no row");

const esp_router_policy *esp_router_policy_of(esp_router_kind kind) {
  if ((unsigned)kind >= ESP_ROUTERS) esp_panic("there is no router policy %d", (int)kind);
  return policies[kind];
}

/* --- logits and scores --- */

void esp_route_copy_logits(const esp_route_request *r, const esp_real *logits, int64_t begin, int64_t end,
                           esp_real *noisy) {
  const int experts = r->layout->experts, own = experts / r->members;
  const bool noisily = r->training && r->config->noise > 0;
  esp_random noise = esp_random_stream(r->seed, ESP_PURPOSE_ROUTER_NOISE,
                                       r->stream * 0x100000u + (uint64_t)(begin / ESP_ROUTE_TOKENS));
  for (int64_t t = begin; t < end; t++) {
    const int first = (int)(t / (r->tokens / r->members)) * own;
    const double deviation = noisily ? r->config->noise / esp_routable_between(r->layout, first, first + own) : 0;
    for (int j = 0; j < experts; j++) {
      const bool open = r->layout->index[j] != ESP_EXPERT_MASKED, allowed = open && j >= first && j < first + own;
      /* none is drawn for a masked expert, so that the others have theirs as if its row were gone */
      const double shift = noisily && open ? deviation * esp_random_normal(&noise) : 0;
      const esp_real z = logits[t * experts + j]; /* not-a-number comes through, wherever it is */
      noisy[t * experts + j] = allowed || isnan(z) ? z + (esp_real)shift : (esp_real)-INFINITY;
    }
  }
}

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

void esp_route_score(esp_score_kind kind, esp_real *z, int count) {
  if (kind == ESP_SCORE_SOFTMAX) softmax_in_place(z, count);
  else sigmoid_in_place(z, count);
}

/* softmax: dz = p (dp - sum_j dp_j p_j);  sigmoid: dz = dp p (1 - p) */
void esp_route_score_gradient(esp_score_kind kind, const esp_real *scores, const esp_real *dscores, int count,
                              esp_real *dlogits) {
  esp_real dot = 0;
  for (int j = 0; j < count; j++) dot += dscores[j] * scores[j];
  for (int j = 0; j < count; j++)
    dlogits[j] += kind == ESP_SCORE_SOFTMAX ? scores[j] * (dscores[j] - dot) : scores[j] * dscores[j] * (1 - scores[j]);
}

/* --- to the experts and back --- */

esp_tensor *esp_router_dispatch(esp_tape *tape, esp_tensor *tokens, const esp_routed *routed) {
  return esp_dispatch(tape, tokens, routed->routing);
}

esp_tensor *esp_router_combine(esp_tape *tape, esp_tensor *rows, const esp_routed *routed) {
  return esp_combine(tape, rows, routed->gates, routed->routing);
}

static esp_status refuse(const char *policy, const char *key, const char *why) {
  return esp_fail(ESP_ERR_CONFIG, "model.moe.router.%s is set, but with model.moe.router.policy %s %s; leave it out",
                  key, policy, why);
}

esp_status esp_router_refuse_token_choice_settings(const esp_model_config *config, const char *policy) {
  const esp_router_config *r = &config->moe.router;
  if (r->capacity > 0) return refuse(policy, "capacity", "no expert can overflow");
  if (r->evaluation_capacity > 0) return refuse(policy, "evaluation_capacity", "no expert can overflow");
  if (r->batch_priority) return refuse(policy, "batch_priority", "no expert can overflow");
  if (r->bias_rate > 0) return refuse(policy, "bias_rate", "loads are even already");
  if (r->load_weight > 0) return refuse(policy, "load_weight", "loads are even already");
  return ESP_OK;
}

void esp_router_bias_update(esp_real *bias, const esp_routing *routing, const esp_expert_layout *layout, double rate) {
  const double mean = (double)routing->slots / esp_routable_experts(layout);
  for (int e = 0; e < layout->experts; e++) {
    if (layout->index[e] == ESP_EXPERT_MASKED) continue;
    const double excess = (double)routing->wanted[e] - mean;
    bias[e] -= (esp_real)(excess > 0 ? rate : excess < 0 ? -rate : 0);
  }
}
