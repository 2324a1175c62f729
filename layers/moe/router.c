/* The table of routers, and what several of them share. */
#include "moe_ops_internal.h"

const esp_router_policy *esp_router_policy_of(esp_router_kind kind) {
  switch (kind) {
  case ESP_ROUTER_TOKEN_CHOICE:
    return &esp_router_token_choice;
  case ESP_ROUTER_EXPERT_CHOICE:
    return &esp_router_expert_choice;
  case ESP_ROUTER_SOFT:
    return &esp_router_soft;
  case ESP_ROUTER_HASH:
    return &esp_router_hash;
  case ESP_ROUTER_EVEN:
    return &esp_router_even;
  }
  esp_panic("there is no router policy %d", (int)kind);
}

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
