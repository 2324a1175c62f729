/* What a mixture layer would yield with other experts, without running them anew: every expert runs once on every
 * token, and a subset's output is put together from these by the layer's own router. */
#ifndef ESPALIER_RECOMBINE_H
#define ESPALIER_RECOMBINE_H

#include <espalier/plan.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Tokens [tokens] of one batch as a mixture layer saw them; row-major, owned by whoever filled it in. */
typedef struct esp_layer_batch {
  int64_t tokens, images; /* over all members, as in esp_route_request */
  esp_real *input;        /* [tokens, width] */
  esp_real *logits;       /* [tokens, experts]; NULL if the router has none */
} esp_layer_batch;

/* ESP_ERR_MISMATCH, naming who asks, with a router that has no tokens of its own to recombine: Soft MoE. */
ESP_API esp_status esp_check_recombination(const esp_model *model, const char *criterion) ESP_MUST_CHECK;

/* outputs [stored, tokens, width]: every expert of the layer's bank on every token. The tape is reset. */
ESP_API esp_status esp_run_every_expert(const esp_moe *moe, esp_tape *tape, const esp_layer_batch *batch,
                                        esp_real *outputs) ESP_MUST_CHECK;

/* outputs [tokens, width] of the layer's shared expert. The tape is reset. */
ESP_API esp_status esp_run_shared_expert(const esp_moe *moe, esp_tape *tape, const esp_layer_batch *batch,
                                         esp_real *outputs) ESP_MUST_CHECK;

/* How a dropped expert stands in the layout below: as the surgeon would have it. The same function for the modes mask
 * and remove but for capacities, which depend on how many experts there are. An E3's members must stay equal, so that
 * one expert alone is masked there. */
ESP_API int32_t esp_dropped_index(esp_prune_mode mode, const esp_moe *moe);

typedef struct esp_recombination {
  const esp_expert_layout *layout; /* which experts there are; its indices are those of the layer's own bank, so that
                                      only ESP_EXPERT_ZERO, _MASKED and ESP_TARGET_REMOVED make it another one */
  const esp_real *experts;         /* [stored, tokens, width] as esp_run_every_expert() made them */
  const esp_real *shared;          /* [tokens, width] as esp_run_shared_expert() made it; NULL: left out */
} esp_recombination;

/* y [tokens, width]: what the layer would yield with the experts of the recombination. The tape is reset. */
ESP_API esp_status esp_recombine(const esp_moe *moe, esp_tape *tape, const esp_layer_batch *batch,
                                 const esp_recombination *what, esp_real *y) ESP_MUST_CHECK;

/* The squared Euclidean distance of a [count] and b [count], differences and sum in double. */
ESP_API double esp_squared_distance(const esp_real *a, const esp_real *b, int64_t count);

#ifdef __cplusplus
}
#endif
#endif
