/* Forced even assignment: the experts in turn, whatever the scores, so that a benchmark measures a known load. Gates
 * are the scores of the experts assigned, and the router is computed and trained as usual. */
#include "moe_ops_internal.h"

static esp_status check(const esp_model_config *config) {
  return esp_router_refuse_token_choice_settings(config, "even");
}

/* Slot i of token t goes to the (t k + i)-th expert of the member, counting round and round. */
static int32_t expert_of(const esp_route_request *r, int64_t slot) {
  const int own = r->layout->experts / r->members;
  const int first = (int)(slot / r->k / (r->tokens / r->members)) * own;
  int routable[ESP_MAX_EXPERTS], count = 0;
  for (int e = first; e < first + own; e++)
    if (r->layout->index[e] != ESP_EXPERT_MASKED) routable[count++] = e;
  return routable[slot % count];
}

static void route(esp_tape *tape, const esp_route_request *request, esp_routed *routed) {
  const int64_t slots = request->tokens * request->k;
  int32_t *choices = esp_tape_take(tape, (size_t)slots * sizeof *choices);
  if (!choices) return;
  for (int64_t i = 0; i < slots; i++) choices[i] = expert_of(request, i);
  esp_route_request assigned = *request;
  if (!assigned.choices) assigned.choices = choices;
  (void)esp_route(tape, routed->logits, &assigned, routed);
}

const esp_router_policy esp_router_even = {
    "even", "for benchmarks", true, check, route, esp_router_dispatch, esp_router_combine};
