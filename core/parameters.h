/* The parameters of a model: values and gradients each in one flat array, with a name for every part. The
 * optimiser is one loop over the arrays, a checkpoint a walk over the names. Two phases: declare all, then
 * esp_parameters_allocate() once. */
#ifndef ESPALIER_PARAMETERS_H
#define ESPALIER_PARAMETERS_H

#include <espalier/tensor.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum esp_parameter_kind {
  ESP_KIND_WEIGHT,   /* a matrix or kernel; weight decay applies */
  ESP_KIND_BIAS,     /* no weight decay */
  ESP_KIND_NORM,     /* gains of norms; no weight decay */
  ESP_KIND_POSITION, /* position embeddings; no weight decay */
  ESP_KIND_ROUTER,   /* router matrices; weight decay applies, own learning rate */
  ESP_KIND_STATE     /* kept and loaded like the others, but moved by rules of its own: no gradient, no optimiser */
} esp_parameter_kind;

typedef struct esp_parameter {
  esp_tensor tensor; /* data and grad are views of the flat arrays; tensor.name is the parameter's name */
  esp_parameter_kind kind;
  int64_t offset; /* of its first element in the flat arrays */
  int64_t count;
  double deviation; /* it starts with normal numbers of this standard deviation ... */
  double constant;  /* ... around this value */
  int64_t matrices,
      matrix_rows;     /* a stack of so many matrices with so many rows each, which Muon moves as such; 0: none */
  int64_t shared_init; /* > 0: the first dimension's slices all start like the first one */
} esp_parameter;

typedef struct esp_parameters esp_parameters;

ESP_API esp_parameters *esp_parameters_create(void); /* NULL if memory is short */
ESP_API void esp_parameters_free(esp_parameters *parameters);

typedef struct esp_parameter_options {
  esp_parameter_kind kind;
  int rank;
  int64_t shape[ESP_MAX_RANK];
  double deviation, constant; /* it starts at constant + deviation x normal noise */
} esp_parameter_options;

/* Declares a parameter called "scope.name". Returns it (valid for the life of the store), or NULL if memory
 * is short. */
ESP_API esp_parameter *esp_parameters_add(esp_parameters *parameters, const char *scope, const char *name,
                                          const esp_parameter_options *options);

/* Makes the flat arrays and fills them. A parameter's numbers depend on the seed and its name only, so models
 * that differ elsewhere start alike where they agree. */
ESP_API esp_status esp_parameters_allocate(esp_parameters *parameters, uint64_t seed) ESP_MUST_CHECK;

ESP_API int64_t esp_parameters_count(const esp_parameters *parameters); /* of named parameters */
ESP_API int64_t esp_parameters_size(const esp_parameters *parameters);  /* of the flat arrays; each parameter starts
                                                                         at a multiple of 16 elements */
ESP_API esp_parameter *esp_parameters_at(const esp_parameters *parameters, int64_t index);
ESP_API esp_parameter *esp_parameters_find(const esp_parameters *parameters, const char *name); /* NULL: none */
ESP_API esp_real *esp_parameters_values(const esp_parameters *parameters);
ESP_API esp_real *esp_parameters_gradients(const esp_parameters *parameters);

/* Freezes what matches one of the comma-separated shell patterns ("blocks.*.router", "stem.*"), thaws the rest.
 * ESP_ERR_CONFIG if a pattern matches nothing. "" freezes nothing.
 *
 * A frozen parameter keeps its bits through training, whatever moves its kind: gradients and weight decay (the
 * optimiser), the aux-free balance (esp_router_bias_update()), running averages (esp_batch_norm_update()), row pruning
 * with its averages of importance (esp_row_pruning_create()). A whitening that has not been computed yet is computed
 * before step 0 all the same: that is how it is initialised. */
ESP_API esp_status esp_parameters_freeze(esp_parameters *parameters, const char *patterns) ESP_MUST_CHECK;

/* Whether anything is left that an optimiser could train. */
ESP_API bool esp_parameters_can_train(const esp_parameters *parameters);

/* Whether one of the comma-separated shell patterns matches the name. */
ESP_API bool esp_name_matches(const char *patterns, const char *name);

#ifdef __cplusplus
}
#endif
#endif
