#ifndef ESPALIER_SIMILARITY_INTERNAL_H
#define ESPALIER_SIMILARITY_INTERNAL_H

#include "expert_passes_internal.h"

#include <espalier/plan.h>
#include <espalier/similarity.h>

/* What the similarity of a layer's experts is taken from. */
typedef struct similarity_source {
  const esp_moe *moe;
  const esp_layer_plan *plan; /* its places order the neurons */
  const expert_inputs *inputs;
  const esp_expert_bank *gradient; /* needed by gradients only */
  uint64_t seed;
} similarity_source;

/* similarity [experts, experts]; 0 with an expert that has no weights. ESP_ERR_MISMATCH if the layer has no logits or
 * no tokens by expert, of which this kind is made. */
esp_status esp_similarities(double *similarity, esp_similarity_kind kind, const similarity_source *source);

#endif
