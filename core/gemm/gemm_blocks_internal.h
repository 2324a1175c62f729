/* Matrix products by the own kernels: which operand is broadcast, what is packed, in which order the tiles come. */
#ifndef ESPALIER_GEMM_BLOCKS_INTERNAL_H
#define ESPALIER_GEMM_BLOCKS_INTERNAL_H

#include "gemm_kernels_internal.h"
#include <espalier/blas.h>
#include <espalier/compare.h>

static inline int64_t round_up(int64_t count, int64_t multiple) { return (count + multiple - 1) / multiple * multiple; }

/* The columns of C that a piece of a product may have. */
enum { GEMM_MOST_COLUMNS = 768 };

/* The kernels for a way and this processor; NULL if it has none. */
const gemm_kernels *gemm_kernels_for(esp_gemm_way way);

/* Those whose operands are bf16; NULL if the processor has none. */
const gemm_kernels *gemm_bf16(void);

/* What the vectors hold. */
typedef enum gemm_order {
  GEMM_COLUMNS, /* columns of C */
  GEMM_ROWS,    /* rows of C: C^T = op(B)^T op(A)^T is computed, and B read in place */
  GEMM_SUMS     /* parts of its sums: both operands are read in place */
} gemm_order;

/* The cheapest, which depends on the shape only. */
gemm_order gemm_order_for(const esp_gemm *product, const gemm_kernels *kernels);

/* Whether a thread that computes one piece of a product after another packs the vector operand once. */
bool gemm_keeps_packed(const esp_gemm *product, const gemm_kernels *kernels, gemm_order order);

/* `piece`: a product, or some rows and columns of one, whose m (GEMM_ROWS: n) is what is not packed. `list`: pieces
 * with the same number other than 0 and the same b are parts of the same products, with the same operands. */
void gemm_run_piece(const esp_gemm *piece, const gemm_kernels *kernels, gemm_order order, uint64_t list);

#endif
