/* The own kernels of matrix products: small tiles of C in registers. One operand's elements are broadcast one by one
 * (read in place, or from where they were packed), the other's are vectors. Which of A and B plays which part is
 * the caller's choice (gemm_blocks.c). Each set of kernels is gemm_template_internal.h, compiled for its processors. */
#ifndef ESPALIER_GEMM_KERNELS_INTERNAL_H
#define ESPALIER_GEMM_KERNELS_INTERNAL_H

#include <stdbool.h>
#include <stdint.h>

/* Strides count floats. A tile of C: c[r, q] = alpha sum over i < steps of broadcast[r, i] vector[i, q] + beta add[r,
 * q]. Kernels for bf16 take a pair of elements of the sum for one, which fills the place of a float. */
typedef struct gemm_tile {
  int64_t steps;
  const float *broadcast; /* [r, i] is at r * row + i * step */
  int64_t row, step;
  const float *vector; /* [i, q] is at i * vector_step + q */
  int64_t vector_step;
  int64_t ahead; /* [0, 0] + ahead is where those begin that will be needed after this panel; 0: nothing is asked for */
  float *c;
  int64_t c_row;
  const float *add; /* read unless beta is 0: C itself, or a bias with add_row = 0 */
  int64_t add_row;
  float alpha, beta;
  int64_t columns; /* of C that are written; the vector operand's are whole vectors */
} gemm_tile;

typedef struct gemm_kernels {
  const char *name;
  int pair; /* elements of the sum in a step: 1, or 2 of bf16. Steps below are counted so, `k` in elements */
  int rows, lanes, vectors; /* of a tile: at most so many rows, and columns = vectors of `lanes` elements */
  int panel;                /* columns of a packed panel of the broadcast operand: a multiple of rows and of lanes */
  /* A tile of `rows` rows and `vectors` vectors. */
  void (*multiply)(const gemm_tile *tile, int rows, int vectors);
  /* A tile of `rows` <= dot_rows rows and at most `lanes` columns whose operands both lie along the sum: [r, i] is at
   * broadcast + r * row + i, [i, q] at vector + q * vector_step + i. dot_rows is 0 for kernels that have no such
   * tile. */
  int dot_rows;
  void (*dot)(const gemm_tile *tile, int rows);
  /* Panels of `wide` columns one after another, each [steps, columns], from a matrix [k, width] whose rows are `ld`
   * apart. The last has width % wide columns, rounded up to a multiple of `least` (of lanes) by zeros. */
  void (*pack)(float *to, const float *from, int64_t ld, int64_t k, int64_t width, int64_t wide, int64_t least);
  /* to [steps, stride] = the transpose of from [width, k]. Columns from width to stride, a multiple of lanes, become
   * 0. */
  void (*pack_transposed)(float *to, int64_t stride, const float *from, int64_t ld, int64_t k, int64_t width);
  /* to [rows, stride] = from [rows, k]; stride is at least the steps and a multiple of lanes. NULL: from is as good. */
  void (*pack_rows)(float *to, int64_t stride, const float *from, int64_t ld, int64_t k, int64_t rows);
  /* C [q, r] = alpha from [r, q]^T + beta add [q, r]: r < tile->steps rows `row` apart at tile->broadcast, q <
   * tile->columns; whole vectors of both are there to be read. */
  void (*finish_transposed)(const gemm_tile *tile);
} gemm_kernels;

extern const gemm_kernels gemm_avx2_kernels, gemm_avx512_kernels, gemm_bf16_kernels;

#endif
