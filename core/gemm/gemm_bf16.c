/* Kernels of matrix products whose operands are rounded to bf16 when they are packed, for processors with AVX-512 and
 * its bf16 dot product, which adds products of two pairs to a float. Rounding is to nearest, ties to even; denormal
 * numbers are taken for 0. */
#if defined(__x86_64__) && !defined(ESP_DOUBLE)

#define TARGET __attribute__((target("avx512f,avx512bw,avx512bf16")))
#define PAIR 2
#define KERNELS gemm_bf16_kernels
#define KERNELS_NAME "AVX-512 BF16"

#include "gemm_avx512_internal.h"

VECTOR_FUNCTION vec v_pairs(vec first, vec second) { return (vec)_mm512_cvtne2ps_pbh(second, first); }

VECTOR_FUNCTION vec v_pairs_across(vec first, vec second) {
  static const int16_t order[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                    8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(second, first);
  return _mm512_castsi512_ps(_mm512_permutexvar_epi16(_mm512_loadu_si512(order), both));
}

VECTOR_FUNCTION vec v_multiply_add_pairs(vec a, vec b, vec sum) {
  return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
}

#include "gemm_template_internal.h"

#else
typedef int gemm_bf16_is_not_for_this_build;
#endif
