/* A whole classifier: stem, blocks of mixing and feed-forward (dense, MoE or MoNE), norm, head. */
#ifndef ESPALIER_MODEL_H
#define ESPALIER_MODEL_H

#include <espalier/moe_layer.h>
#include <espalier/stem.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct esp_block {
  char mixing_scope[32], layer_scope[32];
  esp_norm mixing_norm, layer_norm;
  esp_mixing mixing;
  esp_layer_kind kind;
  esp_expert_bank dense; /* if kind is dense */
  esp_moe moe;           /* otherwise */
} esp_block;

typedef struct esp_model {
  esp_model_config config;
  esp_parameters *parameters;
  esp_stem stem;
  esp_block *blocks; /* [config.blocks] */
  esp_norm norm;
  esp_linear head;
} esp_model;

/* What a forward pass yields; all in the step arena. */
typedef struct esp_model_output {
  esp_tensor *logits; /* [members N, classes], member after member; NULL if the tape failed */
  int members;        /* 1 but with E3 */
  esp_auxiliary_losses auxiliary;
} esp_model_output;

/* A new model with fresh parameters. `layouts`: one per block (those of dense blocks are ignored), for pruned
 * models; NULL: all experts are there. On failure *model is NULL. Freed by esp_model_free(). */
ESP_API esp_status esp_model_create(esp_model **model, const esp_model_config *config, const esp_expert_layout *layouts,
                                    uint64_t seed) ESP_MUST_CHECK;
ESP_API void esp_model_free(esp_model *model);

/* images [N, H, W, C], normalised. */
ESP_API esp_model_output esp_model_forward(const esp_model *model, esp_tape *tape, esp_tensor *images,
                                           const esp_pass *pass);

/* The prediction of an ensemble: log of the mean over members of softmax(logits [members N, classes]) -> [N, classes];
 * its softmax is the mean probability. With one member the logits themselves. */
ESP_API esp_tensor *esp_ensemble_prediction(esp_tape *tape, const esp_model_output *output);

/* Moves the selection biases after a training step, where the layers have some (esp_router_bias_update()). */
ESP_API void esp_model_update_router_biases(const esp_model *model, const esp_auxiliary_losses *auxiliary);

/* task + sum of weight x raw over the auxiliary losses -> [1]. */
ESP_API esp_tensor *esp_total_loss(esp_tape *tape, esp_tensor *task, const esp_auxiliary_losses *auxiliary);

/* Mixture layers: how many, and the index-th (0 <= index < count). */
ESP_API int esp_model_moe_count(const esp_model *model);
ESP_API esp_moe *esp_model_moe(const esp_model *model, int index);

/* Copies the parameters of `source` into those of `target` by name; those that match one of the comma-separated
 * shell patterns `except` are left as they are. ESP_ERR_MISMATCH, naming the tensor and both shapes, if one that is
 * to be copied is missing on either side or has another shape; nothing is copied then. */
ESP_API esp_status esp_model_copy_parameters(esp_model *target, const esp_model *source,
                                             const char *except) ESP_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
