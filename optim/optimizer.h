/* Optimisers over the flat parameter store, learning-rate schedules, clipping, parameter groups. */
#ifndef ESPALIER_OPTIMIZER_H
#define ESPALIER_OPTIMIZER_H

#include <espalier/parameters.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum esp_optimizer_kind {
  ESP_OPTIMIZER_SGD,   /* momentum: m = mu m + g;  w -= rate (m + decay w) */
  ESP_OPTIMIZER_ADAMW, /* Loshchilov and Hutter, arXiv 1711.05101: decay apart from the gradient */
  /* matrices of hidden layers and kernels: Nesterov momentum made orthogonal (Jordan et al., "Muon", 2024), times
   * 0.2 sqrt(longer side), so that it is as large as AdamW's step (Liu et al., arXiv 2502.16982); the rest, routers,
   * head and experts of different widths: AdamW */
  ESP_OPTIMIZER_MUON
} esp_optimizer_kind;

typedef enum esp_schedule_kind { ESP_SCHEDULE_CONSTANT, ESP_SCHEDULE_LINEAR, ESP_SCHEDULE_COSINE } esp_schedule_kind;

typedef struct esp_schedule_config {
  esp_schedule_kind kind;
  double warmup;      /* the share of all steps over which the rate rises linearly from 0 */
  double final_share; /* what is left of the rate at the end */
} esp_schedule_config;

typedef struct esp_optimizer_config {
  esp_optimizer_kind kind;
  double learning_rate;         /* the peak */
  double router_rate;           /* times learning_rate, for routers */
  double weight_decay;          /* not on biases, norms and positions */
  double router_decay;          /* times weight_decay, for routers: decay moves what router-norm-change looks at */
  double momentum;              /* SGD, Muon */
  double beta1, beta2, epsilon; /* AdamW, also within Muon */
  double clip_norm;             /* the gradient's global norm is scaled down to this; 0: no clipping */
  esp_schedule_config schedule;
} esp_optimizer_config;

ESP_API extern const esp_optimizer_config esp_optimizer_defaults;

/* ESP_ERR_CONFIG, naming the key, if a setting is out of range. */
ESP_API esp_status esp_optimizer_config_check(const esp_optimizer_config *config) ESP_MUST_CHECK;

/* The learning-rate multiplier, a share of the peak rate, at step `step` (from 0) of `steps`: the warm-up reaches 1
 * with its last step. */
ESP_API double esp_schedule_multiplier(const esp_schedule_config *schedule, int64_t step, int64_t steps);

typedef struct esp_optimizer esp_optimizer;

/* Makes an optimiser of all parameters of the store, which must outlive it. On failure *optimizer is NULL. */
ESP_API esp_status esp_optimizer_create(esp_optimizer **optimizer, const esp_optimizer_config *config,
                                        esp_parameters *parameters) ESP_MUST_CHECK;
ESP_API void esp_optimizer_free(esp_optimizer *optimizer);

/* The L2 norm of all gradients that will be used: those of parameters that are not frozen. Parameters that no
 * gradient reached count as zero. */
ESP_API double esp_gradient_norm(const esp_parameters *parameters);

/* One update with the gradients as they are, scaled down if their norm, `gradient_norm`, exceeds clip_norm, at
 * the peak rate times `learning_rate_multiplier`. Frozen parameters stay as they are. */
ESP_API void esp_optimizer_step(esp_optimizer *optimizer, double learning_rate_multiplier, double gradient_norm);

/* Steps done; part of AdamW's state. */
ESP_API int64_t esp_optimizer_steps(const esp_optimizer *optimizer);
ESP_API void esp_optimizer_set_steps(esp_optimizer *optimizer, int64_t steps);

/* The store it was made for. */
ESP_API const esp_parameters *esp_optimizer_parameters(const esp_optimizer *optimizer);

/* The state arrays, each as long as the flat parameter array: SGD has "momentum"; AdamW and Muon "first_moment" and
 * "second_moment". NULL when index is past the last. */
ESP_API esp_real *esp_optimizer_state(const esp_optimizer *optimizer, int index, const char **name);

#ifdef __cplusplus
}
#endif
#endif
