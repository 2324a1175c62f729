#ifndef ESPALIER_MOE_OPS_INTERNAL_H
#define ESPALIER_MOE_OPS_INTERNAL_H

#include <espalier/blas.h>
#include <espalier/router.h>
#include <espalier/gates.h>
#include <espalier/op_helpers.h>
#include <espalier/parallel.h>
#include <espalier/random.h>
#include <espalier/vector_math.h>

/* The tokens that share a capacity, and the experts they can choose. */
typedef struct esp_token_group {
  int64_t begin, end;
  int first_expert, end_expert;
} esp_token_group;

/* Group `index` of esp_group_count() x members. */
esp_token_group esp_group_at(const esp_route_request *request, int64_t index);

/* Copies the request with its config into the step arena; false if memory is short. */
bool esp_request_copy(esp_tape *tape, const esp_route_request *request, esp_route_request *copy);

typedef struct esp_ranked {
  esp_real value;
  int32_t index;
} esp_ranked;

/* Largest value first, equal ones by index. */
void esp_rank(esp_ranked *items, int64_t count);

/* A routing while it is made: the same arrays, writable. */
typedef struct esp_routing_work {
  esp_routing routing;
  int32_t *token, *choice, *row, *slot;
  int64_t *first_slot, *first_row, *wanted, *served;
  esp_ranked *order; /* [tokens of a group] */
  int32_t *kept;     /* [tokens] slots that are not skipped, the best ones; NULL: all */
} esp_routing_work;

/* Takes it from the step arena; NULL if memory is short. k: slots of each token, 0 if they differ. */
esp_routing_work *esp_routing_take(esp_tape *tape, const esp_route_request *request, int64_t slots, int k);

/* Makes, from `choice`, all the rest but `token` and `first_slot`. scores [tokens, experts] give batch priority. */
void esp_routing_sort(const esp_route_request *request, esp_routing_work *work, const esp_real *scores);

/* Copies the logits of a range of tokens with noise, if this is a training pass, and -infinity where a masked expert
 * or another member's is. Ranges must begin at multiples of ESP_ROUTE_TOKENS. */
enum { ESP_ROUTE_TOKENS = 256 };
void esp_route_copy_logits(const esp_route_request *request, const esp_real *logits, int64_t begin, int64_t end,
                           esp_real *noisy);

/* Scores in place, over `count` entries; -infinity becomes an exact 0. */
void esp_route_score(esp_score_kind kind, esp_real *z, int count);

/* dlogits (+)= the gradient of scores in place. */
void esp_route_score_gradient(esp_score_kind kind, const esp_real *scores, const esp_real *dscores, int count,
                              esp_real *dlogits);

/* From one row to the next: where to begin the search of the threshold, magnitudes per unit there; 0: not known. The
 * mask does not depend on it. */
typedef struct esp_threshold_search {
  esp_real guess, density;
} esp_threshold_search;

/* mask [width] = 1 for the `kept` <= width entries of x [width] of largest magnitude, else 0; ties to the lower
 * index. */
void esp_neuron_mask(esp_threshold_search *search, const esp_real *x, int64_t width, int64_t kept, uint8_t *mask);

/* The usual ways to the experts and back: dispatch and combine by the routing. */
esp_tensor *esp_router_dispatch(esp_tape *tape, esp_tensor *tokens, const esp_routed *routed);
esp_tensor *esp_router_combine(esp_tape *tape, esp_tensor *rows, const esp_routed *routed);

/* Refuses what only token choice has: capacities, batch priority, a selection bias, the load loss, renormalised
 * gates. */
esp_status esp_router_refuse_token_choice_settings(const esp_model_config *config, const char *policy) ESP_MUST_CHECK;

extern const esp_router_policy esp_router_token_choice, esp_router_expert_choice, esp_router_soft, esp_router_hash,
    esp_router_even;

extern const esp_op esp_op_route, esp_op_route_experts, esp_op_softmax_tokens, esp_op_dispatch, esp_op_grouped_map,
    esp_op_factored_map, esp_op_neuron_top_k, esp_op_gathered_experts, esp_op_combine, esp_op_balance_loss,
    esp_op_neuron_balance_loss, esp_op_z_loss, esp_op_importance_loss, esp_op_load_loss, esp_op_entropy_loss;

#endif
