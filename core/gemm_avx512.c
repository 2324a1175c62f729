/* Kernels of matrix products for processors with AVX-512: 8 x 48 of the 32 registers hold sums. */
#if defined(__x86_64__) && !defined(ESP_DOUBLE)

#define TARGET __attribute__((target("avx512f")))
#define PAIR 1
#define KERNELS gemm_avx512_kernels
#define KERNELS_NAME "AVX-512"

#include "gemm_avx512_internal.h"

#include "gemm_template_internal.h"

#else
typedef int gemm_avx512_is_not_for_this_build;
#endif
