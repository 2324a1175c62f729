/* Vectors of 16 floats, for the kernels that use AVX-512. TARGET is defined before. */
#include <immintrin.h>
#include <stdint.h>

#define LANES 16
#define ROWS 8
#define VECTORS 3
#define PANEL 16

#define VECTOR_FUNCTION TARGET static inline __attribute__((always_inline))

typedef __m512 vec;

VECTOR_FUNCTION vec v_zero(void) { return _mm512_setzero_ps(); }
VECTOR_FUNCTION vec v_set(float x) { return _mm512_set1_ps(x); }
VECTOR_FUNCTION vec v_broadcast(const float *from) { return _mm512_set1_ps(*from); }
VECTOR_FUNCTION vec v_load(const float *from) { return _mm512_loadu_ps(from); }
VECTOR_FUNCTION void v_store(float *to, vec v) { _mm512_storeu_ps(to, v); }
VECTOR_FUNCTION vec v_add(vec a, vec b) { return _mm512_add_ps(a, b); }
VECTOR_FUNCTION vec v_multiply(vec a, vec b) { return _mm512_mul_ps(a, b); }
VECTOR_FUNCTION vec v_multiply_add(vec a, vec b, vec sum) { return _mm512_fmadd_ps(a, b, sum); }

VECTOR_FUNCTION __mmask16 first(int64_t count) { return (__mmask16)((1u << count) - 1); }
VECTOR_FUNCTION vec v_load_part(const float *from, int64_t count) { return _mm512_maskz_loadu_ps(first(count), from); }
VECTOR_FUNCTION void v_store_part(float *to, vec v, int64_t count) { _mm512_mask_storeu_ps(to, first(count), v); }

/* Pairs of rows, then of pairs: rows of four columns each, whose fourths are sorted last. */
VECTOR_FUNCTION void v_transpose(vec block[LANES]) {
  vec t[LANES];
  for (int i = 0; i < LANES; i += 2) {
    t[i] = _mm512_unpacklo_ps(block[i], block[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(block[i], block[i + 1]);
  }
  for (int i = 0; i < LANES; i += 4)
    for (int j = 0; j < 2; j++) {
      const __m512d a = _mm512_castps_pd(t[i + j]), b = _mm512_castps_pd(t[i + 2 + j]);
      block[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
      block[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
    }
  for (int j = 0; j < 4; j++) {
    t[j] = _mm512_shuffle_f32x4(block[j], block[4 + j], 0x88);
    t[4 + j] = _mm512_shuffle_f32x4(block[j], block[4 + j], 0xdd);
    t[8 + j] = _mm512_shuffle_f32x4(block[8 + j], block[12 + j], 0x88);
    t[12 + j] = _mm512_shuffle_f32x4(block[8 + j], block[12 + j], 0xdd);
  }
  for (int j = 0; j < 4; j++) {
    block[j] = _mm512_shuffle_f32x4(t[j], t[8 + j], 0x88);
    block[4 + j] = _mm512_shuffle_f32x4(t[4 + j], t[12 + j], 0x88);
    block[8 + j] = _mm512_shuffle_f32x4(t[j], t[8 + j], 0xdd);
    block[12 + j] = _mm512_shuffle_f32x4(t[4 + j], t[12 + j], 0xdd);
  }
}
