/* Scores by one pass of calibration data. */
#include "criteria_internal.h"

#include <math.h>

typedef double expert_value(const esp_criterion *self, const esp_expert_sums *sums, int64_t tokens);

static void set_scores(const esp_criterion *self, const esp_expert_scores *scores, expert_value *value,
                       esp_plan *plan) {
  for (int i = 0; i < plan->layer_count; i++) {
    esp_layer_plan *layer = &plan->layers[i];
    layer->unrouted = 0;
    for (int e = 0; e < layer->experts; e++) {
      esp_expert_sums sums;
      esp_expert_scores_expert(scores, i, e, &sums);
      layer->score[e] = value(self, &sums, esp_expert_scores_tokens(scores, i));
      layer->unrouted += sums.count == 0 && layer->target[e] >= 0;
    }
  }
}

static esp_status score_by_pass(const esp_criterion *self, const esp_criterion_inputs *inputs, expert_value *value,
                                esp_plan *plan) {
  if (inputs->scores) {
    set_scores(self, inputs->scores, value, plan);
    return ESP_OK;
  }
  esp_expert_scores *scores;
  ESP_TRY(esp_expert_scores_create(&scores, inputs->model, inputs->gates));
  const esp_observer observer = esp_expert_scores_observer(scores);
  const esp_status status = esp_calibration_pass(inputs->model, inputs->calibration, &observer);
  if (status == ESP_OK) set_scores(self, scores, value, plan);
  esp_expert_scores_free(scores);
  return status;
}

static double family_value(const esp_criterion *self, const esp_expert_sums *sums, int64_t tokens) {
  (void)tokens;
  return esp_family_score(sums, self->b, self->alpha, self->beta);
}

/* (mean gate) x norm of the standard deviations of the output's entries (methods of arXiv 2507.00390). */
static double novice_value(const esp_criterion *self, const esp_expert_sums *sums, int64_t tokens) {
  (void)self;
  (void)tokens;
  return esp_family_score(sums, 1, 1, 0) * sums->deviation;
}

static double max_value(const esp_criterion *self, const esp_expert_sums *sums, int64_t tokens) {
  (void)self;
  (void)tokens;
  return sums->largest;
}

/* An expert that is nobody's first choice has no confidence, and a share of 0. */
static double importance_value(const esp_criterion *self, const esp_expert_sums *sums, int64_t tokens) {
  (void)self;
  if (sums->first_choices == 0) return 0;
  const double count = (double)sums->first_choices;
  return count / (double)tokens * exp(sums->first_confidence / count);
}

esp_status esp_score_family(const esp_criterion *self, const esp_criterion_inputs *inputs, esp_plan *plan) {
  return score_by_pass(self, inputs, family_value, plan);
}

esp_status esp_score_novice(const esp_criterion *self, const esp_criterion_inputs *inputs, esp_plan *plan) {
  return score_by_pass(self, inputs, novice_value, plan);
}

esp_status esp_score_max_activation(const esp_criterion *self, const esp_criterion_inputs *inputs, esp_plan *plan) {
  return score_by_pass(self, inputs, max_value, plan);
}

esp_status esp_score_importance(const esp_criterion *self, const esp_criterion_inputs *inputs, esp_plan *plan) {
  if (inputs->model->config.moe.router.policy == ESP_ROUTER_SOFT)
    return esp_fail(ESP_ERR_MISMATCH,
                    "%s counts first choices, but with router policy soft no token chooses; use "
                    "another criterion, squared-gate-energy or man say",
                    self->name);
  return score_by_pass(self, inputs, importance_value, plan);
}
