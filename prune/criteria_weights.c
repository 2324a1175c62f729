/* Scores without data: by the experts' weights alone, and by nothing at all.
 * reconstruction: that AIMER's lowest ratio goes first (it calls its score an importance), and that one ratio is taken
 * over all matrices of an expert together, without biases. */
#include "criteria_internal.h"
#include <espalier/random.h>

#include <math.h>

esp_status esp_score_random(const esp_criterion *self, const esp_criterion_inputs *inputs, esp_plan *plan) {
  (void)self;
  for (int i = 0; i < plan->layer_count; i++) {
    esp_random stream =
        esp_random_stream(inputs->seed, ESP_PURPOSE_PRUNE, (uint64_t)esp_model_moe(inputs->model, i)->block);
    for (int e = 0; e < plan->layers[i].experts; e++) plan->layers[i].score[e] = esp_random_uniform(&stream);
  }
  return ESP_OK;
}

typedef struct weight_sums {
  double count, magnitudes, squares;
} weight_sums;

static void add_matrix(weight_sums *sums, const esp_real *w, int64_t size) {
  if (!w) return;
  for (int64_t i = 0; i < size; i++) {
    sums->magnitudes += fabs((double)w[i]);
    sums->squares += (double)w[i] * (double)w[i];
  }
  sums->count += (double)size;
}

static weight_sums sums_of(const esp_moe *moe, int expert) {
  weight_sums sums = {0};
  const esp_expert_weights w = esp_expert_weights_of(&moe->bank, (int)moe->layout.index[expert]);
  const int64_t size = w.neurons * moe->bank.width;
  add_matrix(&sums, w.gate, size);
  add_matrix(&sums, w.up, size);
  add_matrix(&sums, w.down, size);
  return sums;
}

static double norm_of(const weight_sums *sums) { return sqrt(sums->squares); }

static double ratio_of(const weight_sums *sums) {
  const double rms = sums->count > 0 ? sqrt(sums->squares / sums->count) : 0;
  return rms > 0 ? sums->magnitudes / sums->count / rms : 0;
}

static esp_status score_weights(const esp_criterion_inputs *inputs, esp_plan *plan,
                                double (*value)(const weight_sums *sums)) {
  for (int i = 0; i < plan->layer_count; i++) {
    const esp_moe *moe = esp_model_moe(inputs->model, i);
    for (int e = 0; e < plan->layers[i].experts; e++) {
      if (moe->layout.index[e] < 0) continue;
      const weight_sums sums = sums_of(moe, e);
      plan->layers[i].score[e] = value(&sums);
    }
  }
  return ESP_OK;
}

esp_status esp_score_weight_norm(const esp_criterion *self, const esp_criterion_inputs *inputs, esp_plan *plan) {
  (void)self;
  return score_weights(inputs, plan, norm_of);
}

esp_status esp_score_aimer(const esp_criterion *self, const esp_criterion_inputs *inputs, esp_plan *plan) {
  (void)self;
  return score_weights(inputs, plan, ratio_of);
}
