/* Kernels of matrix products for processors with AVX-512: 8 x 48 of the 32 registers hold sums. */
#if defined(__x86_64__) && !defined(ESP_DOUBLE)

#define TARGET __attribute__((target("avx512f")))
#define PAIR 1
#define DOT_ROWS 6
#define KERNELS gemm_avx512_kernels
#define KERNELS_NAME "AVX-512"

#include "gemm_avx512_internal.h"

VECTOR_FUNCTION void v_store_sums(float *to, const vec sums[4]) {
  const vec ab = _mm512_add_ps(_mm512_unpacklo_ps(sums[0], sums[1]), _mm512_unpackhi_ps(sums[0], sums[1]));
  const vec cd = _mm512_add_ps(_mm512_unpacklo_ps(sums[2], sums[3]), _mm512_unpackhi_ps(sums[2], sums[3]));
  const __m512d low = _mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
  const __m512d high = _mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
  const vec fours = _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(fours),
                                    _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(fours), 1)));
  _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
}

#include "gemm_template_internal.h"

#else
typedef int gemm_avx512_is_not_for_this_build;
#endif
