/* MC-SMoE's steps (Li et al., ICLR 2024, arXiv 2310.01334) as methods with one ratio. They are not called after it: the
 * paper finetunes with a teacher after merging and while rows are pruned, and has one setting (a quarter of the
 * experts, rank 32, a tenth of S). */
#include "method_internal.h"

#include <espalier/compress.h>

#include <math.h>

enum { ZERO_SHOT_SAMPLES = 512, ZERO_SHOT_BATCH = 32 };

/* U V + S with `left` of a matrix's numbers [m, n]: half of them U V, r (m + n), half of them rows of S.
 * Reconstruction: the paper fixes rank 32 and 10 % of S for its one size of model. */
static void share_out(const esp_model_config *config, double left, esp_compression_config *to) {
  const double m = config->width, n = config->moe.hidden, size = m * n / (m + n);
  *to = esp_compression_defaults;
  to->rank = (int)fmax(1, floor(0.5 * left * size));
  to->keep = fmax(0.01, left - to->rank / size);
}

static esp_status factor(const esp_model *model, const esp_method_inputs *inputs, double left, esp_model **factored) {
  const esp_zero_shot_options options = {ZERO_SHOT_SAMPLES, ZERO_SHOT_BATCH, inputs->seed};
  esp_compression_config config;
  share_out(&model->config, left, &config);
  return esp_compress_zero_shot(factored, model, inputs->calibration->dataset, inputs->calibration->normalisation,
                                &config, &options);
}

esp_status esp_make_factored(const esp_method *method, const esp_method_inputs *inputs, esp_compressed *made) {
  (void)method;
  return factor(inputs->model, inputs, 1 - inputs->ratio, &made->model);
}

/* --- merging before --------------------------------------------------------------------------------------- */

static double stored_experts(const esp_model *model) {
  double count = 0;
  for (int i = 0; i < esp_model_moe_count(model); i++) count += esp_model_moe(model, i)->layout.stored;
  return count;
}

/* Keeps sqrt(1 - ratio) of the experts: half of the ratio's logarithm, so that merging and factoring each leave the
 * same share of what they find. */
static esp_status merge_half(const esp_method_inputs *inputs, esp_compressed *merged) {
  esp_merge_options options = {.budget = {.ratio = 1 - sqrt(1 - inputs->ratio), .global = true}, .seed = inputs->seed};
  esp_plan *plan;
  ESP_TRY(esp_merge_method_find(&options.method, "m-smoe"));
  ESP_TRY(esp_merge_plan(&plan, inputs->model, inputs->calibration, &options));
  const esp_status status = esp_apply_method_plan(inputs, plan, merged);
  esp_plan_free(plan);
  return status;
}

/* Merging leaves a whole number of experts, so factoring makes up for what it left too many. */
esp_status esp_make_merged_and_factored(const esp_method *method, const esp_method_inputs *inputs,
                                        esp_compressed *made) {
  (void)method;
  esp_compressed merged = {.model = NULL};
  esp_status status = merge_half(inputs, &merged);
  if (status == ESP_OK) {
    const double share = stored_experts(merged.model) / stored_experts(inputs->model);
    status = factor(merged.model, inputs, fmin(1, (1 - inputs->ratio) / share), &made->model);
  }
  if (status == ESP_OK) {
    made->plan = merged.plan;
    merged.plan = NULL;
  }
  esp_compressed_clear(&merged);
  return status;
}
