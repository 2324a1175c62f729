/* Normalisation layers. */
#ifndef ESPALIER_NORM_H
#define ESPALIER_NORM_H

#include <espalier/model_config.h>
#include <espalier/parameters.h>
#include <espalier/tape.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct esp_norm {
  esp_norm_kind kind;
  esp_tensor *gain, *bias;     /* [width]; no bias in an RMS norm */
  esp_tensor *mean, *variance; /* [width] batch norm: averages over the batches of training; otherwise NULL */
} esp_norm;

/* Declares "scope.gain" (and "scope.bias"; a batch norm "scope.mean" and "scope.variance", too). */
ESP_API esp_status esp_norm_declare(esp_norm *norm, esp_parameters *parameters, const char *scope, esp_norm_kind kind,
                                    int width) ESP_MUST_CHECK;

/* x [.., width] -> [.., width]. In `training` a batch norm takes the batch's statistics, unless its gain is frozen:
 * then it is what it was trained to be, as in evaluation. */
ESP_API esp_tensor *esp_norm_forward(const esp_norm *norm, esp_tape *tape, esp_tensor *x, bool training);

/* A matrix with its bias: y = x weight^T + bias. */
typedef struct esp_linear {
  esp_tensor *weight, *bias; /* [out, in], [out] */
} esp_linear;

/* Declares "scope.weight", normal with `deviation`, and "scope.bias", zero. */
ESP_API esp_status esp_linear_declare(esp_linear *linear, esp_parameters *parameters, const char *scope, int in,
                                      int out, double deviation) ESP_MUST_CHECK;

ESP_API esp_tensor *esp_linear_forward(const esp_linear *linear, esp_tape *tape, esp_tensor *x);

/* Says that a declared parameter (NULL is passed on) is one matrix with its first dimension as rows. */
ESP_API esp_parameter *esp_as_matrix(esp_parameter *parameter);

/* The tensor of a declared parameter in `*place`, or ESP_ERR_MEMORY if it is NULL. */
ESP_API esp_status esp_take_parameter(esp_tensor **place, esp_parameter *parameter) ESP_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
