/* What the sources of products share: how one is computed, in which pieces. */
#ifndef ESPALIER_BLAS_INTERNAL_H
#define ESPALIER_BLAS_INTERNAL_H

#include "gemm_blocks_internal.h"
#include <espalier/blas.h>

/* Before the first call of all, from any thread: OpenBLAS computes single-threaded. */
void esp_use_one_blas_thread(void);

typedef struct gemm_tiling {
  int64_t rows, columns; /* of a tile */
  int64_t across;        /* tiles side by side */
  int64_t count;
} gemm_tiling;

/* How a product is computed. Depends on its shape and the number of tiles that are wanted only: that is what makes
 * results independent of the threads. */
typedef struct gemm_algorithm {
  const gemm_kernels *kernels; /* NULL: OpenBLAS, or few rows */
  gemm_order order;
  gemm_tiling tiles;
} gemm_algorithm;

/* `tiles`: so many at least, if the product is large enough to be cut. */
gemm_algorithm gemm_algorithm_for(const esp_gemm *product, int64_t tiles);

/* The tiles of a product, or of a piece of one, that is computed by an algorithm: none if it has no elements. */
gemm_tiling gemm_tiling_of(const esp_gemm *piece, const gemm_algorithm *algorithm, int64_t tiles);

/* A product, or a piece of one of which this is the algorithm. `list`: as for gemm_run_piece(). */
void gemm_run_by(esp_gemm piece, const gemm_algorithm *algorithm, uint64_t list);

#endif
