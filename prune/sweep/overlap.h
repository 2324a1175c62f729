/* How much the experts that a criterion drops depend on the calibration data (arXiv 2606.15716, section on overlap). */
#ifndef ESPALIER_OVERLAP_H
#define ESPALIER_OVERLAP_H

#include <espalier/plan.h>

#ifdef __cplusplus
extern "C" {
#endif

/* How two plans for the same model agree on one layer. */
typedef struct esp_layer_overlap {
  int dropped; /* by the plan that drops more; experts that the model lacked before do not count */
  int common;  /* dropped by both */
} esp_layer_overlap;

/* ESP_ERR_MISMATCH unless both plans were made for the model. */
ESP_API esp_status esp_plan_overlap(const esp_plan *a, const esp_plan *b, const esp_model *model, int layer,
                                    esp_layer_overlap *overlap) ESP_MUST_CHECK;

/* The share of common experts, common / dropped, the mean over all pairs of the plans and all layers that lose an
 * expert; 1 if none does. (That pairs are averaged is a reconstruction: the paper only speaks of three sets.) */
ESP_API esp_status esp_mean_overlap(const esp_plan *const *plans, int count, const esp_model *model,
                                    double *overlap) ESP_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
