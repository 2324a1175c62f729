/* MC-SMoE's compression (Li et al., ICLR 2024, arXiv 2310.01334) as a method with one ratio. */
#include "method_internal.h"

#include <espalier/compress.h>

#include <math.h>

enum { ZERO_SHOT_SAMPLES = 512, ZERO_SHOT_BATCH = 32 };

/* U V + S with `left` of a matrix's numbers [m, n]: half of them U V, r (m + n), half of them rows of S. Reconstruction:
 * the paper fixes rank 32 and 10 % of S for its one size of model. */
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
