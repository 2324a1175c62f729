/* Compression of experts to low rank and sparse rows, W = U V + S: MC-SMoE (Li et al., ICLR 2024, arXiv 2310.01334,
 * section
 * 3.2). Three steps, each of which can be done alone:
 *   esp_factor_experts()   U V by singular value decomposition, S what is left: the function is unchanged
 *   training               esp_train() prunes rows of S as its settings `compression` say (row_pruning.h), or
 *                          esp_prune_rows_zero_shot(), which trains nothing
 *   esp_remove_zero_rows()   the model without the rows that are 0
 * esp_compress() and esp_compress_zero_shot() do all three. Merged experts are stored once and are factored once. */
#ifndef ESPALIER_COMPRESS_H
#define ESPALIER_COMPRESS_H

#include <espalier/trainer.h>

#ifdef __cplusplus
extern "C" {
#endif

/* A model in which all experts of all mixture layers but config->exclude are factored: U = left sqrt(sigma), V =
 * sqrt(sigma) right, S = W - U V with all its rows, ready for pruning. `model` is left as it is. ESP_ERR_CONFIG if the
 * rank is above that of the matrices, or if a pattern of config->exclude matches no layer or all of them;
 * ESP_ERR_MISMATCH if there are no mixtures, or a layer is factored already or has experts of different widths. */
ESP_API esp_status esp_factor_experts(esp_model **factored, const esp_model *model,
                                      const esp_compression_config *config) ESP_MUST_CHECK;

/* The same function without the rows of S that are 0, smaller in memory and on disk; nothing of the pruning is left.
 * ESP_ERR_MISMATCH if no layer is being pruned. */
ESP_API esp_status esp_remove_zero_rows(esp_model **compact, const esp_model *model) ESP_MUST_CHECK;

/* How the calibration without training goes. */
typedef struct esp_zero_shot_options {
  int64_t samples; /* training images, in random order; the paper has 512 */
  int64_t batch;   /* of them in a step */
  uint64_t seed;
} esp_zero_shot_options;

/* Prunes rows of S in place: samples / batch steps (rounded up) of forward and backward passes of the cross-entropy, in
 * evaluation mode, give the importances while the share falls as in training; nothing else moves. A row that is pruned
 * in one step can come back in the next as it was (reconstruction: in the authors' code, where no optimiser moves it,
 * it stays 0, so that less than the share is left). */
ESP_API esp_status esp_prune_rows_zero_shot(esp_model *model, const esp_dataset *dataset,
                                            const esp_normalisation *normalisation,
                                            const esp_compression_config *config,
                                            const esp_zero_shot_options *options) ESP_MUST_CHECK;

/* All of it. On failure *compressed is NULL. */
ESP_API esp_status esp_compress_zero_shot(esp_model **compressed, const esp_model *model, const esp_dataset *dataset,
                                          const esp_normalisation *normalisation, const esp_compression_config *config,
                                          const esp_zero_shot_options *options) ESP_MUST_CHECK;

/* Compresses with finetuning: job->model is what is compressed, and is left as it is; the rest of the job is that of
 * esp_train(), with config->compression for the pruning. The evaluation in *result is that of the compressed model. */
ESP_API esp_status esp_compress(esp_model **compressed, const esp_training_job *job,
                                esp_training_result *result) ESP_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
