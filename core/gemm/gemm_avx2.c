/* Kernels of matrix products for processors with AVX2 and FMA: 6 x 16 of the 16 registers hold sums. */
#if defined(__x86_64__) && !defined(ESP_DOUBLE)

#include <immintrin.h>
#include <stdint.h>

#define TARGET __attribute__((target("avx2,fma")))
#define LANES 8
#define ROWS 6
#define VECTORS 2
#define PANEL 24
#define PAIR 1
#define DOT_ROWS 2
#define KERNELS gemm_avx2_kernels
#define KERNELS_NAME "AVX2"

#define VECTOR_FUNCTION TARGET static inline __attribute__((always_inline))

typedef __m256 vec;

VECTOR_FUNCTION vec v_zero(void) { return _mm256_setzero_ps(); }
VECTOR_FUNCTION vec v_set(float x) { return _mm256_set1_ps(x); }
VECTOR_FUNCTION vec v_broadcast(const float *from) { return _mm256_broadcast_ss(from); }
VECTOR_FUNCTION vec v_load(const float *from) { return _mm256_loadu_ps(from); }
VECTOR_FUNCTION void v_store(float *to, vec v) { _mm256_storeu_ps(to, v); }
VECTOR_FUNCTION vec v_add(vec a, vec b) { return _mm256_add_ps(a, b); }
VECTOR_FUNCTION vec v_multiply(vec a, vec b) { return _mm256_mul_ps(a, b); }
VECTOR_FUNCTION vec v_multiply_add(vec a, vec b, vec sum) { return _mm256_fmadd_ps(a, b, sum); }

VECTOR_FUNCTION __m256i first(int64_t count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
VECTOR_FUNCTION vec v_load_part(const float *from, int64_t count) { return _mm256_maskload_ps(from, first(count)); }
/* Masked stores are slow on some processors. */
VECTOR_FUNCTION void v_store_part(float *to, vec v, int64_t count) {
  float values[LANES];
  _mm256_storeu_ps(values, v);
  for (int64_t i = 0; i < count; i++) to[i] = values[i];
}

VECTOR_FUNCTION void v_store_sums(float *to, const vec sums[4]) {
  const vec fours = _mm256_hadd_ps(_mm256_hadd_ps(sums[0], sums[1]), _mm256_hadd_ps(sums[2], sums[3]));
  _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(fours), _mm256_extractf128_ps(fours, 1)));
}

/* Pairs of rows, then of pairs: rows of four columns each, whose halves are sorted last. */
VECTOR_FUNCTION void v_transpose(vec block[LANES]) {
  vec t[LANES];
  for (int i = 0; i < LANES; i += 2) {
    t[i] = _mm256_unpacklo_ps(block[i], block[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(block[i], block[i + 1]);
  }
  for (int i = 0; i < LANES; i += 4)
    for (int j = 0; j < 2; j++) {
      block[i + 2 * j] = _mm256_shuffle_ps(t[i + j], t[i + 2 + j], 0x44);
      block[i + 2 * j + 1] = _mm256_shuffle_ps(t[i + j], t[i + 2 + j], 0xee);
    }
  for (int j = 0; j < 4; j++) {
    t[j] = _mm256_permute2f128_ps(block[j], block[4 + j], 0x20);
    t[4 + j] = _mm256_permute2f128_ps(block[j], block[4 + j], 0x31);
  }
  for (int j = 0; j < LANES; j++) block[j] = t[j];
}

#include "gemm_template_internal.h"

#else
typedef int gemm_avx2_is_not_for_this_build;
#endif
