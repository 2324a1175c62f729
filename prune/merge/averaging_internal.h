/* How the surgeon makes the experts of a layer whose plan averages them. */
#ifndef ESPALIER_AVERAGING_INTERNAL_H
#define ESPALIER_AVERAGING_INTERNAL_H

#include <espalier/plan.h>

/* ESP_ERR_MISMATCH if the plan's groups, weights or places cannot be, or experts of different widths would be
 * averaged. */
esp_status esp_check_averages(const esp_layer_plan *plan, const esp_moe *moe);

/* The weights of stored expert s of `target` become the average of those that have groups[s] as their target. With
 * weights w_e and p_en the place of neuron n of expert e:
 *   gate, up, their biases   row r = sum over p_en = r of w_e row_en / sum over p_en = r of w_e
 *   down                     row r = sum over p_en = r of w_e row_en
 *   bias of down             sum of w_e bias_e
 * With permutations as places both are plain weighted averages. */
esp_status esp_average_layer(const esp_moe *target, const esp_moe *source, const esp_layer_plan *plan,
                             const int32_t *groups);

#endif
