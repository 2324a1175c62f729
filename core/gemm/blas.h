/* Matrix products, by own kernels where the processor has AVX-512, or AVX2 and FMA (gemm_blocks.c), by OpenBLAS
 * otherwise. How a product adds up depends on its shape only; OpenMP deals out its rows or tiles (gemm_lists.c), each
 * of which one thread computes. So its bits are the same for any number of threads, with the pthread and with the
 * OpenMP build of OpenBLAS. */
#ifndef ESPALIER_BLAS_H
#define ESPALIER_BLAS_H

#include <espalier/tensor.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What computes a product. */
typedef enum esp_gemm_way {
  ESP_GEMM_BEST, /* what is fastest on this processor, by shape */
  ESP_GEMM_OPENBLAS,
  ESP_GEMM_AVX2, /* the own kernels for such processors */
  ESP_GEMM_AVX512
} esp_gemm_way;

/* What the operands of a product are rounded to before they are multiplied; sums and results are esp_real always. */
typedef enum esp_precision {
  ESP_FP32, /* not at all */
  ESP_BF16  /* 8 significant bits with the range of a float; to nearest, ties to even; denormal numbers become 0 */
} esp_precision;

/* ESP_ERR_CONFIG if this processor, or this build, cannot multiply in that precision. */
ESP_API esp_status esp_precision_check(esp_precision precision) ESP_MUST_CHECK;

/* C [m, n] = alpha op(A) [m, k] op(B) [k, n] + beta C + bias, the latter [n] added to each row; row-major with leading
 * dimensions lda, ldb, ldc. A and B are only read: their rows may overlap (lda less than a row's length, as where the
 * rows are windows of an image). */
typedef struct esp_gemm {
  bool transpose_a, transpose_b;
  int64_t m, n, k;
  const esp_real *a, *b;
  esp_real *c;
  int64_t lda, ldb, ldc;
  esp_real alpha, beta;
  const esp_real *bias; /* NULL: none */
  esp_precision precision;
  esp_gemm_way way;   /* for tests and comparisons: one that esp_gemm_has(); bf16 has one way */
  int64_t first_tile; /* set by esp_gemm_run() */
} esp_gemm;

/* Whether this processor and this build can compute products in that way. */
ESP_API bool esp_gemm_has(esp_gemm_way way);

/* All `count` products, in parallel. Their C must not overlap. */
ESP_API void esp_gemm_run(esp_gemm *products, int64_t count);

/* Products A^T B, without a bias, whose sums are over many rows of A and B: in parts, a thread its own rows of the
 * list. `partial`: room for ESP_GEMM_PARTIALS times m n elements of the largest. */
enum { ESP_GEMM_PARTIALS = 3 };
ESP_API void esp_gemm_sums(esp_gemm *products, int64_t count, esp_real *partial);

/* One product on the calling thread: for use inside parallel loops. */
ESP_API void esp_gemm_here(const esp_gemm *product);

/* sums [columns] (+)= the column sums of matrix [rows, columns]. `scratch`: ESP_PARTS x columns. */
ESP_API void esp_column_sums(const esp_real *matrix, int64_t rows, int64_t columns, esp_real *sums, bool accumulate,
                             esp_real *scratch);

/* target [columns] (+)= the sum of the ESP_PARTS rows of `parts`, in order. */
ESP_API void esp_add_parts(const esp_real *parts, int64_t columns, esp_real *target, bool accumulate);

/* The kernel OpenBLAS picked for this processor, "Zen" say. */
ESP_API const char *esp_blas_kernel(void);

/* The own kernels used for products: "AVX-512", "AVX2", or "none". */
ESP_API const char *esp_gemm_kernel(void);

#ifdef __cplusplus
}
#endif
#endif
