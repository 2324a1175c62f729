/* The surgeon: applies any plan to any model. */
#ifndef ESPALIER_SURGEON_H
#define ESPALIER_SURGEON_H

#include <espalier/plan.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Makes the model that the plan describes; `model` is left as it is. The new one holds only what is still used: it
 * is smaller in memory and on disk. ESP_ERR_MISMATCH if the plan was made for another model. */
ESP_API esp_status esp_apply_plan(esp_model **pruned, const esp_model *model, const esp_plan *plan) ESP_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
