/* Elementary functions as straight-line code, so that loops over them become vector instructions. In float esp_exp() is
 * good to about one unit in the last place and esp_erf() to 6e-7 absolutely; in double (gradient checks) they are
 * libm's. Not-a-number comes through. */
#ifndef ESPALIER_VECTOR_MATH_H
#define ESPALIER_VECTOR_MATH_H

#include <espalier/parallel.h>
#include <espalier/tensor.h>

#include <math.h>
#include <string.h>

#ifdef ESP_DOUBLE

static inline double esp_exp(double x) { return exp(x); }
static inline double esp_erf(double x, double e) {
  (void)e;
  return erf(x);
}
static inline double esp_abs(double x) { return fabs(x); }
static inline double esp_sqrt(double x) { return sqrt(x); }
static inline double esp_log(double x) { return log(x); }
#define ESP_LITERAL(x) (x)

#else

#define ESP_LITERAL(x) (x##f)

/* Between them e^x is a normal number. Not known to the compiler, which would make branches and blends of the two
 * comparisons instead of two instructions. */
ESP_API extern const float esp_exp_low, esp_exp_high;

/* e^x = 2^n e^r, n the nearest integer to x log2(e), |r| <= ln(2) / 2; e^r by its Taylor polynomial of degree
 * 6 with coefficients moved to the interval's minimax ones. Below -87.3 the result stays 1.2e-38, above 88.4 2.4e38. */
static inline float esp_exp(float x) {
  x = x < esp_exp_low ? esp_exp_low : x;
  x = x > esp_exp_high ? esp_exp_high : x;
  const float shifted = x * 1.44269504f + 12582912.0f; /* 1.5 x 2^23 rounds to an integer */
  const float n = shifted - 12582912.0f;
  float r = x - n * 0.693359375f;
  r -= n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  uint32_t bits;
  memcpy(&bits, &shifted, sizeof bits);
  const uint32_t scale_bits = (bits + 127u) << 23; /* of `bits` the lowest nine, n, are left */
  float scale;
  memcpy(&scale, &scale_bits, sizeof scale);
  return p * scale;
}

/* erf(x), given e = e^(-x^2): Abramowitz and Stegun 7.1.26, absolute error below 6e-7, of which the formula itself has
 * 1.5e-7. */
static inline float esp_erf(float x, float e) {
  const float t = 1.0f / (1.0f + 0.3275911f * fabsf(x));
  float p = 1.061405429f;
  p = p * t - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  return copysignf(1.0f - p * t * e, x);
}

static inline float esp_abs(float x) { return fabsf(x); }
static inline float esp_sqrt(float x) { return sqrtf(x); }
static inline float esp_log(float x) { return logf(x); }

#endif

/* The largest of x [count], count > 0. A not-a-number may be passed over. */
static inline esp_real esp_largest(const esp_real *x, int64_t count) {
  esp_real most = x[0];
  ESP_PRAGMA(omp simd reduction(max : most))
  for (int64_t j = 1; j < count; j++) most = x[j] > most ? x[j] : most;
  return most;
}

static inline esp_real esp_sigmoid(esp_real x) { return 1 / (1 + esp_exp(-x)); }

static inline esp_real esp_tanh(esp_real x) { return 1 - 2 / (1 + esp_exp(2 * x)); }

static inline esp_real esp_sigmoid_slope(esp_real x) {
  const esp_real s = esp_sigmoid(x);
  return s * (1 - s);
}

static inline esp_real esp_relu_value(esp_real x) { return x > 0 ? x : x == x ? 0 : x; }
static inline esp_real esp_relu_slope(esp_real x) { return x > 0 ? 1 : 0; }

static inline esp_real esp_squared_relu_value(esp_real x) { return x > 0 ? x * x : x == x ? 0 : x; }
static inline esp_real esp_squared_relu_slope(esp_real x) { return x > 0 ? 2 * x : 0; }

#define ONE_OVER_SQRT_2 ESP_LITERAL(0.70710678118654752440)
#define ONE_OVER_SQRT_2PI ESP_LITERAL(0.39894228040143267794)

/* x Phi(x). Value and slope have the exponential in common: side by side they need it once. */
static inline esp_real esp_gelu_value(esp_real x) {
  const esp_real e = esp_exp(ESP_LITERAL(-0.5) * x * x);
  return ESP_LITERAL(0.5) * x * (1 + esp_erf(x * ONE_OVER_SQRT_2, e));
}
static inline esp_real esp_gelu_slope(esp_real x) {
  const esp_real e = esp_exp(ESP_LITERAL(-0.5) * x * x);
  return ESP_LITERAL(0.5) * (1 + esp_erf(x * ONE_OVER_SQRT_2, e)) + x * ONE_OVER_SQRT_2PI * e;
}

#undef ONE_OVER_SQRT_2
#undef ONE_OVER_SQRT_2PI

static inline esp_real esp_silu_value(esp_real x) { return x * esp_sigmoid(x); }

/* d SiLU / dx = s (1 + x (1 - s)), s the sigmoid. */
static inline esp_real esp_silu_slope(esp_real x) {
  const esp_real s = esp_sigmoid(x);
  return s * (1 + x * (1 - s));
}

#endif
