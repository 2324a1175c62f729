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
  const int64_t shape[] = {width};
  *norm = (esp_norm){.kind = kind};
  ESP_TRY(
      esp_take_parameter(&norm->gain, esp_parameters_add(parameters, scope, "gain", ESP_KIND_NORM, 1, shape, 0, 1)));
  if (kind == ESP_NORM_RMS) return ESP_OK;
  ESP_TRY(
      esp_take_parameter(&norm->bias, esp_parameters_add(parameters, scope, "bias", ESP_KIND_BIAS, 1, shape, 0, 0)));
  if (kind != ESP_NORM_BATCH) return ESP_OK;
  ESP_TRY(
      esp_take_parameter(&norm->mean, esp_parameters_add(parameters, scope, "mean", ESP_KIND_STATE, 1, shape, 0, 0)));
  return esp_take_parameter(&norm->variance,
                            esp_parameters_add(parameters, scope, "variance", ESP_KIND_STATE, 1, shape, 0, 1));
}

esp_tensor *esp_norm_forward(const esp_norm *norm, esp_tape *tape, esp_tensor *x, bool training) {
  switch (norm->kind) {
  case ESP_NORM_RMS:
    return esp_rms_norm(tape, x, norm->gain, epsilon);
  case ESP_NORM_BATCH:
    return esp_batch_norm(tape, x, norm->gain, norm->bias, norm->mean, norm->variance, epsilon,
                          training && norm->gain->requires_grad);
  case ESP_NORM_LAYER:
    break;
  }
  return esp_layer_norm(tape, x, norm->gain, norm->bias, epsilon);
}

esp_status esp_linear_declare(esp_linear *linear, esp_parameters *parameters, const char *scope, int in, int out,
                              double deviation) {
  ESP_TRY(esp_take_parameter(&linear->weight,
                             esp_as_matrix(esp_parameters_add(parameters, scope, "weight", ESP_KIND_WEIGHT, 2,
                                                              (const int64_t[]){out, in}, deviation, 0))));
  return esp_take_parameter(
      &linear->bias, esp_parameters_add(parameters, scope, "bias", ESP_KIND_BIAS, 1, (const int64_t[]){out}, 0, 0));
}

esp_tensor *esp_linear_forward(const esp_linear *linear, esp_tape *tape, esp_tensor *x) {
  return esp_linear_map(tape, x, linear->weight, linear->bias);
}
