/* Hash routing (Roller et al., arXiv 2106.04426): nothing is learned. Images have no vocabulary, so what is hashed is a
 * token's position; positions are ranked by their hash and the ranks dealt out, the paper's balanced assignment. */
#include "moe_ops_internal.h"

static esp_status check(const esp_model_config *config) {
  if (config->moe.top_k != 1)
    return esp_fail(ESP_ERR_CONFIG,
                    "model.moe.top_k is %d, but a position has one hash: model.moe.router.policy hash needs top_k 1",
                    config->moe.top_k);
  if (config->moe.members != 1)
    return esp_fail(ESP_ERR_CONFIG,
                    "model.moe.members is %d, but model.moe.router.policy hash routes all members alike; use 1",
                    config->moe.members);
  if (config->moe.router.cosine || config->moe.router.noise > 0 || config->moe.router.z_weight > 0 ||
      config->moe.router.importance_weight > 0 || config->moe.router.entropy_weight != 0)
    return esp_fail(ESP_ERR_CONFIG, "model.moe.router.policy hash has no logits: cosine, noise, z_weight, "
                                    "importance_weight and entropy_weight of model.moe.router must be left out");
  return esp_router_refuse_token_choice_settings(config, "hash");
}

/* The logical expert that now stands for an original one: the next one round that can be routed to. */
static int32_t stand_in(const esp_route_request *r, int original) {
  for (int shift = 0; shift < r->original_experts; shift++)
    for (int e = 0; e < r->layout->experts; e++)
      if (r->layout->index[e] != ESP_EXPERT_MASKED &&
          r->layout->original_ids[e] == (original + shift) % r->original_experts)
        return e;
  esp_panic("no expert can be routed to");
}

static void rank_positions(const esp_route_request *r, esp_ranked *ranks, int64_t positions) {
  esp_random hash = esp_random_stream(0, ESP_PURPOSE_ROUTER_HASH, (uint64_t)r->block);
  for (int64_t p = 0; p < positions; p++)
    ranks[p] = (esp_ranked){.value = (esp_real)esp_random_uniform(&hash), .index = (int32_t)p};
  esp_rank(ranks, positions);
}

static void assign(const esp_route_request *r, esp_routing_work *w, const esp_ranked *ranks, int64_t positions) {
  for (int64_t rank = 0; rank < positions; rank++) {
    const int32_t expert = stand_in(r, (int)(rank % r->original_experts));
    for (int64_t t = ranks[rank].index; t < r->tokens; t += positions) w->choice[t] = expert;
  }
  for (int64_t t = 0; t < r->tokens; t++) {
    w->first_slot[t] = t;
    w->token[t] = (int32_t)t;
    if (r->choices) w->choice[t] = r->choices[t];
  }
  w->first_slot[r->tokens] = r->tokens;
}

static void route(esp_tape *tape, const esp_route_request *request, esp_routed *routed) {
  const int64_t positions = request->tokens / request->images;
  esp_routing_work *w = esp_routing_take(tape, request, request->tokens, 1);
  esp_ranked *ranks = esp_tape_take(tape, (size_t)positions * sizeof *ranks);
  esp_tensor *gates = esp_tape_tensor(tape, 2, (const int64_t[]){request->tokens, 1});
  if (!w || !ranks || !gates) return;
  rank_positions(request, ranks, positions);
  assign(request, w, ranks, positions);
  for (int64_t t = 0; t < request->tokens; t++) gates->data[t] = 1;
  esp_routing_sort(request, w, NULL);
  routed->gates = gates;
  routed->routing = &w->routing;
}

const esp_router_policy esp_router_hash = {
    "hash", "Roller et al., arXiv 2106.04426", false, check, route, esp_router_dispatch, esp_router_combine};
