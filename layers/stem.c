#include <espalier/ops.h>
#include <espalier/stem.h>

#include <math.h>
#include <stdio.h>

enum { STAGE_KERNEL = 3 };
static const double position_deviation = 0.02;

static esp_status declare_kernel(esp_tensor **weight, esp_tensor **bias, esp_parameters *parameters, const char *scope,
                                 int out, int kernel, int in, double gain) {
  const int64_t shape[] = {out, kernel, kernel, in};
  const double deviation = gain / sqrt((double)kernel * kernel * in);
  ESP_TRY(esp_take_parameter(weight,
                             esp_parameters_add(parameters, scope, "weight", ESP_KIND_WEIGHT, 4, shape, deviation, 0)));
  return esp_take_parameter(bias, esp_parameters_add(parameters, scope, "bias", ESP_KIND_BIAS, 1, shape, 0, 0));
}

static esp_status declare_stages(esp_stem *stem, esp_parameters *parameters, const esp_model_config *config) {
  int in = config->image_channels;
  stem->stage_count = config->stem.pools_count;
  for (unsigned i = 0; i < stem->stage_count; i++) {
    esp_stage *stage = &stem->stages[i];
    const int out = i + 1 < stem->stage_count ? config->stem.channels[i] : config->width;
    char scope[32], norm_scope[40];
    snprintf(scope, sizeof scope, "stem.%u", i);
    snprintf(norm_scope, sizeof norm_scope, "%s.norm", scope);
    stage->pool = config->stem.pools[i];
    ESP_TRY(declare_kernel(&stage->weight, &stage->bias, parameters, scope, out, STAGE_KERNEL, in, 1));
    ESP_TRY(esp_norm_declare(&stage->norm, parameters, norm_scope, config->norm, out));
    in = out;
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
  const int64_t shape[] = {(int64_t)stem->grid[0] * stem->grid[1], config->width};
  return esp_take_parameter(&stem->positions, esp_parameters_add(parameters, "stem", "positions", ESP_KIND_POSITION, 2,
                                                                 shape, position_deviation, 0));
}

static esp_tensor *run_stages(const esp_stem *stem, esp_tape *tape, esp_tensor *x) {
  for (unsigned i = 0; i < stem->stage_count; i++) {
    const esp_stage *stage = &stem->stages[i];
    x = esp_convolution(tape, x, stage->weight, stage->bias, 1, STAGE_KERNEL / 2);
    /* The norm works on single pixels, so pooling first keeps most of its effect at a fraction of its cost. */
    if (stage->pool > 1) x = esp_max_pool(tape, x, stage->pool);
    x = esp_gelu(tape, esp_norm_forward(&stage->norm, tape, x));
  }
  return x;
}

esp_tensor *esp_stem_forward(const esp_stem *stem, esp_tape *tape, esp_tensor *images) {
  const int64_t count = images->shape[0], tokens = (int64_t)stem->grid[0] * stem->grid[1];
  esp_tape_scope(tape, "stem");
  esp_tensor *x = images;
  switch (stem->kind) {
  case ESP_STEM_PATCH:
    x = esp_convolution(tape, x, stem->weight, stem->bias, stem->patch, 0);
    break;
  case ESP_STEM_CONVOLUTION:
    x = run_stages(stem, tape, x);
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
  const int64_t kernel_shape[] = {kernel, kernel, width};
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
    ESP_TRY(esp_take_parameter(&mixing->kernel_weight, esp_parameters_add(parameters, scope, "weight", ESP_KIND_WEIGHT,
                                                                          3, kernel_shape, 1.0 / kernel, 0)));
    return esp_take_parameter(&mixing->kernel_bias,
                              esp_parameters_add(parameters, scope, "bias", ESP_KIND_BIAS, 1, kernel_shape + 2, 0, 0));
  }
  return ESP_OK;
}

esp_tensor *esp_mixing_forward(const esp_mixing *mixing, esp_tape *tape, esp_tensor *x) {
  if (!x) return NULL;
  if (mixing->kind == ESP_MIXING_ATTENTION) {
    esp_tensor *qkv = esp_linear_forward(&mixing->qkv, tape, x);
    esp_tensor *attended = esp_attention(tape, qkv, mixing->heads);
    esp_tape_drop(tape, qkv);
    esp_tensor *projected = esp_linear_forward(&mixing->projection, tape, attended);
    esp_tape_drop(tape, attended);
    return projected;
  }
  const int64_t count = x->shape[0], tokens = x->shape[1], width = x->shape[2];
  esp_tensor *grid = esp_reshape(tape, x, 4, (const int64_t[]){count, mixing->grid[0], mixing->grid[1], width});
  grid = esp_depthwise_convolution(tape, grid, mixing->kernel_weight, mixing->kernel_bias);
  return esp_reshape(tape, grid, 3, (const int64_t[]){count, tokens, width});
}
