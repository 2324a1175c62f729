/* Token choice: each token picks its k experts (Shazeer et al., arXiv 1701.06538; Switch, V-MoE, Mixtral, OLMoE,
 * DeepSeek are settings of it). With a selection bias: balanced without an auxiliary loss (Wang et al., 2408.15664). */
#include "moe_ops_internal.h"

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
