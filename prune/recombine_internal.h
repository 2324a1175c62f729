/* What a mixture layer would yield with other experts, without running them anew: every expert runs once on every
 * token, and a subset's output is put together from these by the layer's own router. */
#ifndef ESPALIER_RECOMBINE_INTERNAL_H
#define ESPALIER_RECOMBINE_INTERNAL_H

#include <espalier/model.h>

/* Tokens [tokens] of one batch as a mixture layer saw them; row-major, owned by whoever filled it in. */
typedef struct esp_layer_batch {
  int64_t tokens, images; /* over all members, as in esp_route_request */
  esp_real *input;        /* [tokens, width] */
  esp_real *logits;       /* [tokens, experts]; NULL if the router has none */
} esp_layer_batch;

/* ESP_ERR_MISMATCH, naming who asks, with a router that has no tokens of its own to recombine: Soft MoE. */
esp_status esp_check_recombination(const esp_model *model, const char *criterion) ESP_MUST_CHECK;

/* outputs [stored, tokens, width]: every expert of the layer's bank on every token. The tape is reset. */
esp_status esp_run_every_expert(const esp_moe *moe, esp_tape *tape, const esp_layer_batch *batch,
                                esp_real *outputs) ESP_MUST_CHECK;

/* outputs [tokens, width] of the layer's shared expert. The tape is reset. */
esp_status esp_run_shared_expert(const esp_moe *moe, esp_tape *tape, const esp_layer_batch *batch,
                                 esp_real *outputs) ESP_MUST_CHECK;

/* y [tokens, width]: the layer with the experts of `layout`, whose indices are those of the layer's own bank, so that
 * only masked and zero experts make it another one. `experts` as esp_run_every_expert() made them; `shared` as
 * above, NULL: left out. The tape is reset. */
esp_status esp_recombine(const esp_moe *moe, esp_tape *tape, const esp_layer_batch *batch,
                         const esp_expert_layout *layout, const esp_real *experts, const esp_real *shared,
                         esp_real *y) ESP_MUST_CHECK;

/* Sum over a range's tokens of the squared norm, or of the norm, of a - b [tokens, width], in double. */
double esp_squared_distance(const esp_real *a, const esp_real *b, int64_t count);

#endif
