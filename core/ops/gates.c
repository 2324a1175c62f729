#include <espalier/gates.h>
#include <espalier/parallel.h>
#include <espalier/vector_math.h>

typedef void values_of(const esp_real *x, int64_t count, esp_real *value);
typedef void curve_of(const esp_real *x, int64_t count, esp_real *value, esp_real *slope);

/* Both loops of a function. No `restrict`: x and value may be the same. */
#define GATE(name, value_of_x, slope_of_x)                                                               \
  ESP_HOT static void name##_values(const esp_real *x, int64_t count, esp_real *value) {                 \
    ESP_PRAGMA(omp simd)                                                                                 \
    for (int64_t i = 0; i < count; i++) value[i] = value_of_x(x[i]);                                     \
  }                                                                                                      \
  ESP_HOT static void name##_curve(const esp_real *x, int64_t count, esp_real *value, esp_real *slope) { \
    ESP_PRAGMA(omp simd)                                                                                 \
    for (int64_t i = 0; i < count; i++) {                                                                \
      const esp_real at = x[i];                                                                          \
      value[i] = value_of_x(at);                                                                         \
      slope[i] = slope_of_x(at);                                                                         \
    }                                                                                                    \
  }

static inline esp_real identity_value(esp_real x) { return x; }
static inline esp_real identity_slope(esp_real x) {
  (void)x;
  return 1;
}

GATE(identity, identity_value, identity_slope)
GATE(relu, esp_relu_value, esp_relu_slope)
GATE(gelu, esp_gelu_value, esp_gelu_slope)
GATE(silu, esp_silu_value, esp_silu_slope)
GATE(sigmoid, esp_sigmoid, esp_sigmoid_slope)
GATE(squared_relu, esp_squared_relu_value, esp_squared_relu_slope)

static const struct {
  values_of *values;
  curve_of *curve;
} gates[] = {
    [ESP_GATE_IDENTITY] = {identity_values, identity_curve},
    [ESP_GATE_RELU] = {relu_values, relu_curve},
    [ESP_GATE_GELU] = {gelu_values, gelu_curve},
    [ESP_GATE_SILU] = {silu_values, silu_curve},
    [ESP_GATE_SIGMOID] = {sigmoid_values, sigmoid_curve},
    [ESP_GATE_SQUARED_RELU] = {squared_relu_values, squared_relu_curve},
};

void esp_gate_values(esp_gate_kind kind, const esp_real *x, int64_t count, esp_real *value) {
  gates[kind].values(x, count, value);
}

void esp_gate_curve(esp_gate_kind kind, const esp_real *x, int64_t count, esp_real *value, esp_real *slope) {
  gates[kind].curve(x, count, value, slope);
}

enum { TILE = 128 }; /* values and slopes of so many neurons stay in the first-level cache */

/* No `restrict`: dup may be up. */
ESP_HOT static void glu_tile(const esp_real *value, const esp_real *slope, const esp_real *up, const esp_real *dh,
                             int64_t count, esp_real *dgate, esp_real *dup, bool accumulate) {
  if (accumulate) {
    ESP_PRAGMA(omp simd)
    for (int64_t j = 0; j < count; j++) {
      dgate[j] += dh[j] * up[j] * slope[j];
      dup[j] += dh[j] * value[j];
    }
  } else {
    ESP_PRAGMA(omp simd)
    for (int64_t j = 0; j < count; j++) {
      dgate[j] = dh[j] * up[j] * slope[j];
      dup[j] = dh[j] * value[j];
    }
  }
}

void esp_glu_gradient(esp_gate_kind kind, const esp_glu_arrays *a, int64_t count, bool accumulate) {
  esp_real value[TILE], slope[TILE];
  for (int64_t j = 0; j < count; j += TILE) {
    const int64_t length = count - j < TILE ? count - j : TILE;
    esp_gate_curve(kind, a->gate + j, length, value, slope);
    glu_tile(value, slope, a->up + j, a->dh + j, length, a->dgate + j, a->dup + j, accumulate);
  }
}
