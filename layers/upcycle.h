/* Sparse upcycling (Komatsuzaki et al., arXiv 2212.05055): a mixture whose experts start as copies of a trained dense
 * layer, behind a new router. */
#ifndef ESPALIER_UPCYCLE_H
#define ESPALIER_UPCYCLE_H

#include <espalier/model.h>

#ifdef __cplusplus
extern "C" {
#endif

/* A model of `config`, which differs from that of `dense` in model.layers and model.moe only: blocks that were dense
 * and are mixtures now have the dense layer's weights in every expert (model.moe.hidden must be its number of neurons),
 * plus normal noise of standard deviation noise x the root mean square of each matrix; routers are fresh; all else is
 * copied. On failure *upcycled is NULL: ESP_ERR_CONFIG, naming the setting that does not fit and why. Freed by
 * esp_model_free(). */
ESP_API esp_status esp_upcycle(esp_model **upcycled, const esp_model *dense, const esp_model_config *config,
                               double noise, uint64_t seed) ESP_MUST_CHECK;

/* Whether the upcycled model, without noise, computes what the dense one does: every token's gates sum to 1, none of
 * its slots is left unserved, and no neuron is left out. */
ESP_API bool esp_upcycling_keeps_function(const esp_model_config *config);

#ifdef __cplusplus
}
#endif
#endif
