/* How images become tokens, and how tokens mix. */
#ifndef ESPALIER_STEM_H
#define ESPALIER_STEM_H

#include <espalier/norm.h>

#ifdef __cplusplus
extern "C" {
#endif

/* A 3 x 3 convolution, norm, GELU. */
typedef struct esp_stem_convolution {
  esp_tensor *weight, *bias; /* [out, 3, 3, in], [out]; no bias before a batch norm, which would take it away */
  esp_norm norm;
} esp_stem_convolution;

/* A stage of a convolution stem: the pooling comes after the first convolution. */
typedef struct esp_stage {
  esp_stem_convolution convolutions[1 + ESP_MAX_EXTRA];
  int count, pool;
} esp_stage;

typedef struct esp_stem {
  esp_stem_kind kind;
  int grid[2], width; /* of what comes out */
  int patch;
  esp_tensor *weight, *bias; /* patch: [width, patch, patch, C]; flatten: [width, H W C] */
  esp_tensor *whitening,
      *whitening_bias; /* [2 components, 3, 3, C], all zero until esp_whiten(), and [2 components]; or NULL */
  esp_stage stages[ESP_MAX_STAGES + 1];
  unsigned stage_count;
  esp_tensor *positions; /* [T, width] or NULL */
} esp_stem;

ESP_API esp_status esp_stem_declare(esp_stem *stem, esp_parameters *parameters,
                                    const esp_model_config *config) ESP_MUST_CHECK;

/* images [N, H, W, C] -> tokens [N, T, width]; `training` is for batch norms. */
ESP_API esp_tensor *esp_stem_forward(const esp_stem *stem, esp_tape *tape, esp_tensor *images, bool training);

typedef struct esp_mixing {
  esp_mixing_kind kind;
  int grid[2], heads;
  esp_linear qkv, projection;              /* attention */
  esp_tensor *kernel_weight, *kernel_bias; /* convolution: [kernel, kernel, width], [width] */
} esp_mixing;

ESP_API esp_status esp_mixing_declare(esp_mixing *mixing, esp_parameters *parameters, const char *scope,
                                      const esp_model_config *config, double residual_scale) ESP_MUST_CHECK;

/* x [N, T, width] -> [N, T, width]. */
ESP_API esp_tensor *esp_mixing_forward(const esp_mixing *mixing, esp_tape *tape, esp_tensor *x);

#ifdef __cplusplus
}
#endif
#endif
