#include <espalier/norm.h>
#include <espalier/ops.h>

static const double epsilon = 1e-5;

esp_status esp_take_parameter(esp_tensor **place, esp_parameter *parameter) {
  *place = parameter ? &parameter->tensor : NULL;
  return parameter ? ESP_OK : ESP_ERR_MEMORY;
}

esp_parameter *esp_as_matrix(esp_parameter *parameter) {
  if (!parameter) return NULL;
  parameter->matrices = 1;
  parameter->matrix_rows = parameter->tensor.shape[0];
  return parameter;
}

esp_status esp_norm_declare(esp_norm *norm, esp_parameters *parameters, const char *scope, esp_norm_kind kind,
                            int width) {
  const esp_parameter_options gain = {.kind = ESP_KIND_NORM, .rank = 1, .shape = {width}, .constant = 1};
  const esp_parameter_options bias = {.kind = ESP_KIND_BIAS, .rank = 1, .shape = {width}};
  const esp_parameter_options mean = {.kind = ESP_KIND_STATE, .rank = 1, .shape = {width}};
  const esp_parameter_options variance = {.kind = ESP_KIND_STATE, .rank = 1, .shape = {width}, .constant = 1};
  *norm = (esp_norm){.kind = kind};
  ESP_TRY(esp_take_parameter(&norm->gain, esp_parameters_add(parameters, scope, "gain", &gain)));
  if (kind == ESP_NORM_RMS) return ESP_OK;
  ESP_TRY(esp_take_parameter(&norm->bias, esp_parameters_add(parameters, scope, "bias", &bias)));
  if (kind != ESP_NORM_BATCH) return ESP_OK;
  ESP_TRY(esp_take_parameter(&norm->mean, esp_parameters_add(parameters, scope, "mean", &mean)));
  return esp_take_parameter(&norm->variance, esp_parameters_add(parameters, scope, "variance", &variance));
}

esp_tensor *esp_norm_forward(const esp_norm *norm, esp_tape *tape, esp_tensor *x, bool training) {
  switch (norm->kind) {
  case ESP_NORM_RMS:
    return esp_rms_norm(tape, x, norm->gain, epsilon);
  case ESP_NORM_BATCH:
    return esp_batch_norm(tape, x, norm->gain, norm->bias,
                          &(esp_batch_norm_options){.mean = norm->mean,
                                                    .variance = norm->variance,
                                                    .epsilon = epsilon,
                                                    .training = training && norm->gain->requires_grad});
  case ESP_NORM_LAYER:
    break;
  }
  return esp_layer_norm(tape, x, norm->gain, norm->bias, epsilon);
}

esp_status esp_linear_declare(esp_linear *linear, esp_parameters *parameters, const char *scope, int in, int out,
                              double deviation) {
  const esp_parameter_options weight = {.kind = ESP_KIND_WEIGHT, .rank = 2, .shape = {out, in}, .deviation = deviation};
  const esp_parameter_options bias = {.kind = ESP_KIND_BIAS, .rank = 1, .shape = {out}};
  ESP_TRY(esp_take_parameter(&linear->weight, esp_as_matrix(esp_parameters_add(parameters, scope, "weight", &weight))));
  return esp_take_parameter(&linear->bias, esp_parameters_add(parameters, scope, "bias", &bias));
}

esp_tensor *esp_linear_forward(const esp_linear *linear, esp_tape *tape, esp_tensor *x) {
  return esp_linear_map(tape, x, linear->weight, linear->bias);
}
