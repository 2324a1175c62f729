/* Scores without data: by the experts' weights alone, and by nothing at all.
 * reconstruction: that AIMER's lowest ratio goes first (it calls its score an importance), and that one ratio is taken
 * over all matrices of an expert together, without biases. */
#include "criteria_internal.h"
#include <espalier/factors.h>
#include <espalier/memory.h>
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

/* What counts of factored experts is the product. */
static esp_status add_matrix(weight_sums *sums, const esp_expert_bank *bank, int stored, int index) {
  const esp_expert_matrix m = esp_expert_matrix_at(bank, stored, index);
  const int64_t size = m.out * m.in;
  double *w = esp_alloc((size_t)size, sizeof *w);
  if (!w) return ESP_ERR_MEMORY;
  esp_expert_matrix_read(bank, stored, &m, w);
  for (int64_t i = 0; i < size; i++) {
    sums->magnitudes += fabs(w[i]);
    sums->squares += w[i] * w[i];
  }
  sums->count += (double)size;
  esp_free(w);
  return ESP_OK;
}

static esp_status sums_of(weight_sums *sums, const esp_moe *moe, int expert) {
  *sums = (weight_sums){0};
  for (int i = 0; i < esp_expert_matrix_count(&moe->bank); i++)
    ESP_TRY(add_matrix(sums, &moe->bank, (int)moe->layout.index[expert], i));
  return ESP_OK;
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
      weight_sums sums;
      ESP_TRY(sums_of(&sums, moe, e));
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
