/* The criteria's functions, by topic; prune/criteria/criteria.c makes the table of them. */
#ifndef ESPALIER_CRITERIA_INTERNAL_H
#define ESPALIER_CRITERIA_INTERNAL_H

#include <espalier/criteria.h>

typedef esp_status esp_score_function(const esp_criterion *self, const esp_criterion_inputs *inputs, esp_plan *plan);
typedef esp_status esp_choice_function(const esp_criterion *self, const esp_criterion_inputs *inputs, esp_plan *plan,
                                       const int *drops);

/* Has the plan tell where its scores come from. */
void esp_plan_note_origin(esp_plan *plan, const char *formula, bool needs_data, const esp_criterion_inputs *inputs);

/* criteria_router.c */
esp_score_function esp_score_signed_change, esp_score_absolute_change, esp_score_difference_norm;

/* criteria_calibration.c */
esp_score_function esp_score_family, esp_score_novice, esp_score_max_activation, esp_score_importance;

/* criteria_damage.c */
esp_score_function esp_score_damage;

/* criteria_reconstruction.c */
esp_choice_function esp_choose_by_layer, esp_choose_progressively, esp_choose_greedily;

/* criteria_weights.c */
esp_score_function esp_score_random, esp_score_weight_norm, esp_score_aimer;

#endif
