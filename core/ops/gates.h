/* Activation functions over arrays, for the ops and the observers that have to agree on them. */
#ifndef ESPALIER_GATES_H
#define ESPALIER_GATES_H

#include <espalier/tensor.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What a gated unit makes of its gate (Shazeer, arXiv 2002.05202), and two matrices of their middle. */
typedef enum esp_gate_kind {
  ESP_GATE_IDENTITY,
  ESP_GATE_RELU,
  ESP_GATE_GELU, /* by the error function */
  ESP_GATE_SILU, /* x sigmoid(x) */
  ESP_GATE_SIGMOID,
  ESP_GATE_SQUARED_RELU /* max(x, 0)^2 (So et al., arXiv 2109.08668) */
} esp_gate_kind;

/* value[i] = f(x[i]), and slope[i] = f'(x[i]), i < count. `value` may be x itself; not-a-number comes through. */
ESP_API void esp_gate_values(esp_gate_kind kind, const esp_real *x, int64_t count, esp_real *value);
ESP_API void esp_gate_curve(esp_gate_kind kind, const esp_real *x, int64_t count, esp_real *value, esp_real *slope);

/* Arrays of as many elements each. */
typedef struct esp_glu_arrays {
  const esp_real *gate, *up, *dh;
  esp_real *dgate, *dup; /* may be gate and up */
} esp_glu_arrays;

/* The gradient of h[j] = f(gate[j]) up[j], j < count: sets or adds to dgate and dup. */
ESP_API void esp_glu_gradient(esp_gate_kind kind, const esp_glu_arrays *arrays, int64_t count, bool accumulate);

#ifdef __cplusplus
}
#endif
#endif
