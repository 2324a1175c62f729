/* Pruning of the sparse rows of factored experts while they are trained: MC-SMoE's second half (Li et al., ICLR 2024,
 * arXiv
 * 2310.01334, section 3.2, and its code).
 *
 * Weights are U V + S, [out, in]; a row of S belongs to an output neuron. The importance of a row is the mean over its
 * entries of |s dL/ds|, averaged exponentially: average = beta average + (1 - beta) the value of the step before (the
 * code's lag of one step). After each optimiser step the rows of the lowest averages, over all matrices of all layers
 * together, are set to 0. They are counted by their elements, so that long rows weigh more. They still get gradients,
 * and because s is taken after the optimiser moved it, they can come back.
 *
 * Averages over a row of averages over time are the same as the reverse, so that one number a row is kept: state
 * parameters of the model ("..._importance"), which checkpoints hold; a resumed run goes on with the same bits. */
#ifndef ESPALIER_ROW_PRUNING_H
#define ESPALIER_ROW_PRUNING_H

#include <espalier/model.h>

#ifdef __cplusplus
extern "C" {
#endif

/* How experts are compressed. */
typedef struct esp_compression_config {
  int rank;          /* of U V */
  double keep;       /* the share of S's elements that is left at the end */
  double start;      /* the share of all steps before pruning starts (the paper's T_i / T) */
  double finish;     /* the share of all steps after it has ended (T_f / T) */
  double beta;       /* of the averages of importance */
  char exclude[256]; /* comma-separated patterns of layers that stay as they are: "blocks.1.moe" */
} esp_compression_config;

/* rank 32, keep 0.10, start 400 / 10000, finish 1600 / 10000, beta 0.85: the paper's. */
ESP_API extern const esp_compression_config esp_compression_defaults;

/* ESP_ERR_CONFIG, naming the key, if a setting is out of range. */
ESP_API esp_status esp_compression_config_check(const esp_compression_config *config) ESP_MUST_CHECK;

/* The share of S's elements that is left after `step` (from 1) of `steps`: 1 up to T_i = start steps, keep from
 * T - T_f = (1 - finish) steps on, between them keep + (1 - keep) (1 - (t - T_i) / (T - T_i - T_f))^3, as in the code.
 * (The formula that is printed in the paper exceeds 1 at T_i.) */
ESP_API double esp_compression_share(const esp_compression_config *config, int64_t step, int64_t steps);

typedef struct esp_row_pruning esp_row_pruning;

/* Begins the pruning of all matrices of the model whose rows are being pruned (layout.pruning) and not frozen. *pruning
 * stays NULL, without failing, if there are none. The model must outlive it. */
ESP_API esp_status esp_row_pruning_create(esp_row_pruning **pruning, const esp_model *model) ESP_MUST_CHECK;
ESP_API void esp_row_pruning_free(esp_row_pruning *pruning);

/* After the optimiser has used the gradients of a step, which are still there: brings the averages up to date and sets
 * the least important rows to 0, so that at most the `share` of all elements is left, to a row. Of equally important
 * rows those with the higher index go first (the code keeps all of them). Rows whose matrix got no gradient count as
 * unimportant in this step. Allocates nothing. */
ESP_API void esp_row_pruning_step(esp_row_pruning *pruning, double beta, double share);

/* Elements of S in these layers, and those in rows that are not 0. */
ESP_API int64_t esp_row_pruning_elements(const esp_row_pruning *pruning);
ESP_API int64_t esp_row_pruning_left(const esp_row_pruning *pruning);

#ifdef __cplusplus
}
#endif
#endif
