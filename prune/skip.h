/* Dynamic skipping: at inference a token does without its last experts where the router hardly wants them (Lu et al.,
 * arXiv 2402.14800, sections 3.3 and A). After pruning it is calibrated on the pruned model. Training ignores it. */
#ifndef ESPALIER_SKIP_H
#define ESPALIER_SKIP_H

#include <espalier/calibration.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ESP_ERR_MISMATCH, with the reason, if the model has nothing to skip: no mixture layers, another policy than token
 * choice, or top_k 1, where the only expert would have to go. */
ESP_API esp_status esp_skip_check(const esp_model *model) ESP_MUST_CHECK;

/* beta of each mixture layer: the median over the calibration tokens of g_k / (g_1 + .. + g_k-1), with top-2 the
 * paper's g_2 / g_1 (for larger k a reconstruction, so that half of the tokens do without their last choice); the mean
 * of the two middle values if their number is even. The model's own skipping is off in the pass. ESP_ERR_MISMATCH as
 * above. */
ESP_API esp_status esp_skip_calibrate(const esp_model *model, const esp_calibration *calibration,
                                      double beta[ESP_MAX_BLOCKS]) ESP_MUST_CHECK;

/* A copy of the model with these beta (esp_expert_layout.skip), one a mixture layer; 0: skips nothing there. */
ESP_API esp_status esp_skip_apply(esp_model **skipping, const esp_model *model, const double *beta) ESP_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
