/* How far each expert's routing vector moved between two models of one origin. */
#ifndef ESPALIER_ROUTER_CHANGE_H
#define ESPALIER_ROUTER_CHANGE_H

#include <espalier/model.h>

#ifdef __cplusplus
extern "C" {
#endif

/* How one expert's row of the router moved: w is the row now, w0 that of the reference, || || the Euclidean norm. */
typedef struct esp_router_change {
  double norm, reference_norm; /* ||w||, ||w0|| */
  double signed_change;        /* ||w|| - ||w0||: negative if the vector shrank */
  double absolute_change;      /* | ||w|| - ||w0|| | */
  double difference_norm;      /* ||w - w0|| */
} esp_router_change;

typedef struct esp_layer_router_change {
  char scope[32]; /* "blocks.1.moe" */
  int block, expert_count;
  esp_router_change *experts; /* [expert_count] one per logical expert of the model */
} esp_layer_router_change;

/* Owns its arrays, and nothing of the models. */
typedef struct esp_router_changes {
  int layer_count; /* mixture layers of the model */
  esp_layer_router_change *layers;
} esp_router_changes;

/* Compares the model's routers with the reference's. Rows of pruned models are matched by their experts'
 * original ids, so either may lack experts as long as the reference has all that the model has.
 * ESP_ERR_MISMATCH, saying what differs, if the reference has another architecture. On failure *changes is
 * NULL. */
ESP_API esp_status esp_router_changes_create(esp_router_changes **changes, const esp_model *model,
                                             const esp_model *reference) ESP_MUST_CHECK;
ESP_API void esp_router_changes_free(esp_router_changes *changes);

#ifdef __cplusplus
}
#endif
#endif
