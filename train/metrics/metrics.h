/* What is measured while training: sums over a window of steps, and the CSV file they go to. */
#ifndef ESPALIER_METRICS_H
#define ESPALIER_METRICS_H

#include <espalier/evaluate.h>
#include <espalier/model.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Sums over the steps since the last row. */
typedef struct esp_window {
  int64_t steps, images;
  double loss, task_loss, correct;                      /* sums: of losses over steps, of correct images */
  double raw[ESP_LOSS_KINDS], weighted[ESP_LOSS_KINDS]; /* auxiliary losses, summed over layers and steps */
  bool computed[ESP_LOSS_KINDS];                        /* a loss of weight 0 is not */
  double gradient_norm;
  double imbalance[ESP_MAX_BLOCKS]; /* per mixture layer: sum over steps of (most slots of an expert) / (mean) */
  double started;                   /* esp_seconds() */
} esp_window;

/* An observer that adds the load imbalance of each layer to the window. */
ESP_API esp_observer esp_window_observer(esp_window *window);

/* Adds the auxiliary losses of one step. */
ESP_API void esp_window_add_losses(esp_window *window, const esp_auxiliary_losses *losses);

/* The mean over the window's steps. */
ESP_API double esp_window_mean(const esp_window *window, double sum);

typedef struct esp_metrics esp_metrics;

/* Opens folder/metrics.csv for a model; rows after `step` (of a run that is being resumed) are cut off, with
 * step 0 all of them. Columns that do not apply to a row stay empty; the column seconds counts from here. */
ESP_API esp_status esp_metrics_open(esp_metrics **metrics, const char *folder, const esp_model *model,
                                    int64_t step) ESP_MUST_CHECK;
ESP_API esp_status esp_metrics_write_training(esp_metrics *metrics, int64_t step, double epoch, double learning_rate,
                                              const esp_window *window) ESP_MUST_CHECK;
ESP_API esp_status esp_metrics_write_evaluation(esp_metrics *metrics, int64_t step, double epoch, esp_split_name split,
                                                const esp_evaluation *evaluation) ESP_MUST_CHECK;
/* Writes the rows to the disk, before a checkpoint that relies on them. */
ESP_API esp_status esp_metrics_sync(const esp_metrics *metrics) ESP_MUST_CHECK;

ESP_API esp_status esp_metrics_close(esp_metrics *metrics) ESP_MUST_CHECK; /* NULL is allowed */

#ifdef __cplusplus
}
#endif
#endif
