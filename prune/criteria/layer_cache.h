/* What mixture layers saw and yielded on calibration data: inputs, router logits, outputs, batch by batch. */
#ifndef ESPALIER_LAYER_CACHE_H
#define ESPALIER_LAYER_CACHE_H

#include <espalier/calibration.h>
#include <espalier/recombine.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What is kept of one layer. */
typedef struct esp_layer_cache {
  int block;
  int count, capacity;      /* batches seen, and in all */
  esp_layer_batch *batches; /* [capacity] */
  esp_real **outputs;       /* [capacity] of [tokens, width]: the layer's output, before the residual is added */
} esp_layer_cache;

/* Runs the model over the data and fills caches[count], whose `block` says which layer each is for. On failure they
 * are empty. Freed by esp_layer_cache_clear(). */
ESP_API esp_status esp_layer_cache_fill(esp_layer_cache *caches, int count, const esp_model *model,
                                        const esp_calibration *calibration) ESP_MUST_CHECK;
ESP_API void esp_layer_cache_clear(esp_layer_cache *cache);

/* Tokens that a mixture layer of the model sees in a pass, and the bytes of one layer's cache. */
ESP_API int64_t esp_layer_cache_tokens(const esp_model *model, const esp_calibration *calibration);
ESP_API int64_t esp_layer_cache_bytes(const esp_moe *moe, int64_t tokens);

#ifdef __cplusplus
}
#endif
#endif
