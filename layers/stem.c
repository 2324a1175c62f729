#include <espalier/ops.h>
#include <espalier/stem.h>

#include <math.h>
#include <stdio.h>

static const double position_deviation = 0.02;

static esp_status declare_kernel(esp_tensor **weight, esp_tensor **bias, esp_parameters *parameters, const char *scope,
                                 int out, int kernel, int in, double gain) {
  const double deviation = gain / sqrt((double)kernel * kernel * in);
  ESP_TRY(esp_take_parameter(
      weight,
      esp_as_matrix(esp_parameters_add(
          parameters, scope, "weight",
          &(esp_parameter_options){
              .kind = ESP_KIND_WEIGHT, .rank = 4, .shape = {out, kernel, kernel, in}, .deviation = deviation}))));
  if (!bias) return ESP_OK;
  return esp_take_parameter(
      bias, esp_parameters_add(parameters, scope, "bias",
                               &(esp_parameter_options){.kind = ESP_KIND_BIAS, .rank = 1, .shape = {out}}));
}

/* The first convolution of a stage carries the stage's name, later ones a number more. */
static esp_status declare_convolution(esp_stem_convolution *c, esp_parameters *parameters, const char *scope, int in,
                                      int out, esp_norm_kind norm) {
  char norm_scope[48];
  snprintf(norm_scope, sizeof norm_scope, "%s.norm", scope);
  ESP_TRY(declare_kernel(&c->weight, norm == ESP_NORM_BATCH ? NULL : &c->bias, parameters, scope, out, ESP_STAGE_KERNEL,
                         in, 1));
  return esp_norm_declare(&c->norm, parameters, norm_scope, norm, out);
}

/* Frozen: no gradient flows to the weights, and no optimiser touches them. */
static esp_status declare_whitening(esp_stem *stem, esp_parameters *parameters, const esp_model_config *config) {
  const int64_t filters = 2 * config->stem.whitening;
  if (!config->stem.whitening) return ESP_OK;
  ESP_TRY(esp_take_parameter(
      &stem->whitening,
      esp_parameters_add(
          parameters, "stem.whitening", "weight",
          &(esp_parameter_options){.kind = ESP_KIND_STATE,
                                   .rank = 4,
                                   .shape = {filters, ESP_STAGE_KERNEL, ESP_STAGE_KERNEL, config->image_channels}})));
  return esp_take_parameter(
      &stem->whitening_bias,
      esp_parameters_add(parameters, "stem.whitening", "bias",
                         &(esp_parameter_options){.kind = ESP_KIND_BIAS, .rank = 1, .shape = {filters}}));
}

static esp_status declare_stages(esp_stem *stem, esp_parameters *parameters, const esp_model_config *config) {
  const esp_norm_kind norm = config->norm;
  int in = config->stem.whitening ? 2 * config->stem.whitening : config->image_channels;
  ESP_TRY(declare_whitening(stem, parameters, config));
  stem->stage_count = config->stem.pools_count;
  for (unsigned i = 0; i < stem->stage_count; i++) {
    esp_stage *stage = &stem->stages[i];
    const int out = i + 1 < stem->stage_count ? config->stem.channels[i] : config->width;
    stage->pool = config->stem.pools[i];
    stage->count = 1 + config->stem.extra_convolutions;
    for (int d = 0; d < stage->count; d++) {
      char scope[32];
      snprintf(scope, sizeof scope, d ? "stem.%u.%d" : "stem.%u", i, d);
      ESP_TRY(declare_convolution(&stage->convolutions[d], parameters, scope, in, out, norm));
      in = out;
    }
  }
  return ESP_OK;
}

static esp_status declare_flat(esp_stem *stem, esp_parameters *parameters, const esp_model_config *config) {
  const int pixels = config->image_height * config->image_width * config->image_channels;
  esp_linear linear;
  ESP_TRY(esp_linear_declare(&linear, parameters, "stem", pixels, config->width, 1 / sqrt(pixels)));
  stem->weight = linear.weight;
  stem->bias = linear.bias;
  return ESP_OK;
}

esp_status esp_stem_declare(esp_stem *stem, esp_parameters *parameters, const esp_model_config *config) {
  *stem = (esp_stem){.kind = config->stem.kind, .width = config->width, .patch = config->stem.patch};
  esp_token_grid(config, &stem->grid[0], &stem->grid[1]);
  switch (stem->kind) {
  case ESP_STEM_PATCH:
    ESP_TRY(declare_kernel(&stem->weight, &stem->bias, parameters, "stem", config->width, stem->patch,
                           config->image_channels, 1));
    break;
  case ESP_STEM_CONVOLUTION:
    ESP_TRY(declare_stages(stem, parameters, config));
    break;
  case ESP_STEM_FLATTEN:
    ESP_TRY(declare_flat(stem, parameters, config));
    break;
  }
  if (!config->positions) return ESP_OK;
  const int64_t tokens = (int64_t)stem->grid[0] * stem->grid[1];
  return esp_take_parameter(&stem->positions,
                            esp_parameters_add(parameters, "stem", "positions",
                                               &(esp_parameter_options){.kind = ESP_KIND_POSITION,
                                                                        .rank = 2,
                                                                        .shape = {tokens, config->width},
                                                                        .deviation = position_deviation}));
}

static esp_tensor *run_stage(const esp_stage *stage, esp_tape *tape, esp_tensor *x, bool training) {
  for (int d = 0; d < stage->count; d++) {
    const esp_stem_convolution *c = &stage->convolutions[d];
    x = esp_convolution(tape, x, c->weight, c->bias, 1, ESP_STAGE_KERNEL / 2);
    /* The norm works on single pixels, so pooling first keeps most of its effect at a fraction of its cost. */
    if (d == 0 && stage->pool > 1) x = esp_max_pool(tape, x, stage->pool);
    x = esp_gelu(tape, esp_norm_forward(&c->norm, tape, x, training));
  }
  return x;
}

static esp_tensor *run_stages(const esp_stem *stem, esp_tape *tape, esp_tensor *x, bool training) {
  if (stem->whitening)
    x = esp_gelu(tape, esp_convolution(tape, x, stem->whitening, stem->whitening_bias, 1, ESP_STAGE_KERNEL / 2));
  for (unsigned i = 0; i < stem->stage_count; i++) x = run_stage(&stem->stages[i], tape, x, training);
  return x;
}

esp_tensor *esp_stem_forward(const esp_stem *stem, esp_tape *tape, esp_tensor *images, bool training) {
  const int64_t count = images->shape[0], tokens = (int64_t)stem->grid[0] * stem->grid[1];
  esp_tape_scope(tape, "stem");
  esp_tensor *x = images;
  switch (stem->kind) {
  case ESP_STEM_PATCH:
    x = esp_convolution(tape, x, stem->weight, stem->bias, stem->patch, 0);
    break;
  case ESP_STEM_CONVOLUTION:
    x = run_stages(stem, tape, x, training);
    break;
  case ESP_STEM_FLATTEN:
    x = esp_reshape(tape, x, 2, (const int64_t[]){count, esp_tensor_count(images) / count});
    x = esp_linear_map(tape, x, stem->weight, stem->bias);
    break;
  }
  x = esp_reshape(tape, x, 3, (const int64_t[]){count, tokens, stem->width});
  return stem->positions ? esp_add(tape, x, stem->positions) : x;
}

esp_status esp_mixing_declare(esp_mixing *mixing, esp_parameters *parameters, const char *scope,
                              const esp_model_config *config, double residual_scale) {
  *mixing = (esp_mixing){.kind = config->mixing, .heads = config->heads};
  esp_token_grid(config, &mixing->grid[0], &mixing->grid[1]);
  const int width = config->width, kernel = config->kernel;
  char inner[64];
  switch (config->mixing) {
  case ESP_MIXING_NONE:
    break;
  case ESP_MIXING_ATTENTION:
    snprintf(inner, sizeof inner, "%s.qkv", scope);
    ESP_TRY(esp_linear_declare(&mixing->qkv, parameters, inner, width, 3 * width, 1 / sqrt(width)));
    snprintf(inner, sizeof inner, "%s.projection", scope);
    return esp_linear_declare(&mixing->projection, parameters, inner, width, width, residual_scale / sqrt(width));
  case ESP_MIXING_CONVOLUTION:
    ESP_TRY(esp_take_parameter(&mixing->kernel_weight,
                               esp_parameters_add(parameters, scope, "weight",
                                                  &(esp_parameter_options){.kind = ESP_KIND_WEIGHT,
                                                                           .rank = 3,
                                                                           .shape = {kernel, kernel, width},
                                                                           .deviation = 1.0 / kernel})));
    return esp_take_parameter(
        &mixing->kernel_bias,
        esp_parameters_add(parameters, scope, "bias",
                           &(esp_parameter_options){.kind = ESP_KIND_BIAS, .rank = 1, .shape = {width}}));
  }
  return ESP_OK;
}

esp_tensor *esp_mixing_forward(const esp_mixing *mixing, esp_tape *tape, esp_tensor *x) {
  if (!x) return NULL;
  if (mixing->kind == ESP_MIXING_ATTENTION) {
    esp_tensor *qkv = esp_linear_forward(&mixing->qkv, tape, x);
    esp_tensor *attended = esp_attention(tape, qkv, mixing->heads);
    esp_tape_release(tape, qkv);
    esp_tensor *projected = esp_linear_forward(&mixing->projection, tape, attended);
    esp_tape_release(tape, attended);
    return projected;
  }
  const int64_t count = x->shape[0], tokens = x->shape[1], width = x->shape[2];
  esp_tensor *grid = esp_reshape(tape, x, 4, (const int64_t[]){count, mixing->grid[0], mixing->grid[1], width});
  grid = esp_depthwise_convolution(tape, grid, mixing->kernel_weight, mixing->kernel_bias);
  return esp_reshape(tape, grid, 3, (const int64_t[]){count, tokens, width});
}
