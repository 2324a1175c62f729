/* The kernels' code. Whoever includes it defines
 *   TARGET                      the attribute that names the processors
 *   LANES, ROWS, VECTORS, PANEL the sizes in gemm_kernels
 *   PAIR                        gemm_kernels.pair
 *   vec                         a vector of LANES floats, and for it v_zero(), v_load(from), v_load_part(from, count),
 *                               v_store(to, v), v_store_part(to, v, count), v_broadcast(from), v_set(x),
 *                               v_multiply_add(a, b, sum), v_multiply(a, b), v_add(a, b), v_transpose(vec[LANES])
 *   if PAIR is 1                DOT_ROWS: 2 or 6; v_store_sums(to, vec[4]): the sums of the elements of four vectors
 *   if PAIR is 2                v_pairs(first, second) of 2 LANES floats in order, v_pairs_across(first, second): lane
 *                               j holds their elements j, v_multiply_add_pairs(a, b, sum)
 *   KERNELS, KERNELS_NAME       what is defined at the end */
#include "gemm_kernels_internal.h"

#define INLINE TARGET static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 32")
#if PAIR == 2
#define MULTIPLY_ADD v_multiply_add_pairs
#else
#define MULTIPLY_ADD v_multiply_add
#endif

INLINE vec load_columns(const float *from, int64_t count) {
  return count >= LANES ? v_load(from) : count > 0 ? v_load_part(from, count) : v_zero();
}

INLINE void store_columns(float *to, vec values, int64_t count) {
  if (count >= LANES) v_store(to, values);
  else if (count > 0) v_store_part(to, values, count);
}

/* LANES steps of one row or column: `count` elements along the sum, then zeros. */
INLINE vec load_steps(const float *from, int64_t count) {
#if PAIR == 2
  return v_pairs(load_columns(from, count), load_columns(from + LANES, count - LANES));
#else
  return load_columns(from, count);
#endif
}

/* One step of LANES columns: `rows` rows of the sum are left. */
INLINE vec load_step(const float *from, int64_t ld, int64_t rows, int64_t count) {
#if PAIR == 2
  return v_pairs_across(load_columns(from, count), rows > 1 ? load_columns(from + ld, count) : v_zero());
#else
  (void)ld, (void)rows;
  return load_columns(from, count);
#endif
}

INLINE vec finished(vec sum, const float *add, int64_t count, vec alpha, float beta) {
  const vec scaled = v_multiply(alpha, sum);
  return beta == 0 ? scaled : v_multiply_add(v_set(beta), load_columns(add, count), scaled);
}

/* Any tile: apart from the loop over sums of most, so that this is there once. */
TARGET static __attribute__((noinline)) void finish_rows(const gemm_tile *t, const float *sums, int rows) {
  const vec alpha = v_set(t->alpha);
  for (int r = 0; r < rows; r++)
    for (int64_t q = 0; q < t->columns; q += LANES) {
      const int64_t count = t->columns - q;
      const vec sum = v_load(sums + r * (VECTORS * LANES) + q);
      store_columns(t->c + r * t->c_row + q, finished(sum, t->add + r * t->add_row + q, count, alpha, t->beta), count);
    }
}

/* C's lines are asked for before they are needed: they come while the sums are made. */
INLINE void ask_for_rows(const float *c, int64_t c_row, int rows, int vectors) {
  for (int r = rows; r > 0; r--, c += c_row)
    UNROLL for (int v = 0; v < vectors; v++) __builtin_prefetch(c + v * LANES, 1);
}

INLINE void multiply_tile(const gemm_tile *t, int rows, int vectors) {
  vec sums[ROWS][VECTORS];
  ask_for_rows(t->c, t->c_row, rows, vectors);
  UNROLL for (int r = 0; r < rows; r++) { UNROLL for (int v = 0; v < vectors; v++) sums[r][v] = v_zero(); }
  const float *broadcast = t->broadcast, *vector = t->vector;
  const int64_t row = t->row, step = t->step, vector_step = t->vector_step, ahead = t->ahead;
  for (int64_t i = t->steps; i > 0; i--) {
    vec columns[VECTORS];
    UNROLL for (int v = 0; v < vectors; v++) columns[v] = v_load(vector + v * LANES);
    if (ahead) {
      UNROLL for (int v = 0; v < vectors; v++) __builtin_prefetch(vector + ahead + v * LANES, 0, 2);
    }
    UNROLL for (int r = 0; r < rows; r++) {
      const vec x = v_broadcast(broadcast + r * row);
      UNROLL for (int v = 0; v < vectors; v++) sums[r][v] = MULTIPLY_ADD(x, columns[v], sums[r][v]);
    }
    broadcast += step;
    vector += vector_step;
  }
  const bool usual = t->columns == vectors * LANES && t->alpha == 1 && (t->beta == 0 || t->beta == 1);
  float others[ROWS * VECTORS * LANES];
  float *to = usual ? t->c : others;
  const int64_t to_row = usual ? t->c_row : VECTORS * LANES;
  if (usual && t->beta == 1) {
    const float *add = t->add;
    UNROLL for (int r = 0; r < rows; r++) {
      UNROLL for (int v = 0; v < vectors; v++) sums[r][v] = v_add(sums[r][v], v_load(add + v * LANES));
      add += t->add_row;
    }
  }
  UNROLL for (int r = 0; r < rows; r++) {
    UNROLL for (int v = 0; v < vectors; v++) v_store(to + v * LANES, sums[r][v]);
    to += to_row;
  }
  if (!usual) finish_rows(t, others, rows);
}

#define TILE(rows, vectors) \
  TARGET static void multiply_##rows##_##vectors(const gemm_tile *t) { multiply_tile(t, rows, vectors); }
#define TILES(vectors) \
  TILE(1, vectors)     \
  TILE(2, vectors) TILE(3, vectors) TILE(4, vectors) TILE(5, vectors) TILE(6, vectors) MORE_TILES(vectors)
#define NAMES(vectors)                                                                                            \
  {                                                                                                               \
    multiply_1_##vectors, multiply_2_##vectors, multiply_3_##vectors, multiply_4_##vectors, multiply_5_##vectors, \
        multiply_6_##vectors, MORE_NAMES(vectors)                                                                 \
  }
#if ROWS == 8
#define MORE_TILES(vectors) TILE(7, vectors) TILE(8, vectors)
#define MORE_NAMES(vectors) multiply_7_##vectors, multiply_8_##vectors
#else
#define MORE_TILES(vectors)
#define MORE_NAMES(vectors)
#endif

TILES(1)
TILES(2)
#if VECTORS == 3
TILES(3)
#endif

static void multiply(const gemm_tile *t, int rows, int vectors) {
  static void (*const tiles[VECTORS][ROWS])(const gemm_tile *) = {
    NAMES(1),
    NAMES(2),
#if VECTORS == 3
    NAMES(3),
#endif
  };
  tiles[vectors - 1][rows - 1](t);
}

#if PAIR == 1
/* `count` elements of the sums of four columns, from element i on. */
INLINE void dot_step(const gemm_tile *t, int rows, const float *const b[4], int64_t i, int64_t count,
                     vec sums[DOT_ROWS][4]) {
  vec columns[4];
  UNROLL for (int q = 0; q < 4; q++) columns[q] = load_columns(b[q] + i, count);
  UNROLL for (int r = 0; r < rows; r++) {
    const vec x = load_columns(t->broadcast + r * t->row + i, count);
    UNROLL for (int q = 0; q < 4; q++) sums[r][q] = v_multiply_add(x, columns[q], sums[r][q]);
  }
}

/* Four columns of a tile: what lies along the sum is what the vectors hold. Columns that are not there repeat the
 * last. */
INLINE void dot_four(const gemm_tile *t, int rows, int64_t column, float *to) {
  vec sums[DOT_ROWS][4];
  const float *b[4];
  int64_t i = 0;
  UNROLL for (int q = 0; q < 4; q++) {
    const int64_t there = column + q < t->columns ? column + q : t->columns - 1;
    b[q] = t->vector + there * t->vector_step;
  }
  UNROLL for (int r = 0; r < rows; r++) { UNROLL for (int q = 0; q < 4; q++) sums[r][q] = v_zero(); }
  for (; i + LANES <= t->steps; i += LANES) dot_step(t, rows, b, i, LANES, sums);
  if (i < t->steps) dot_step(t, rows, b, i, t->steps - i, sums);
  UNROLL for (int r = 0; r < rows; r++) v_store_sums(to + r * LANES + column, sums[r]);
}

INLINE void dot_tile(const gemm_tile *t, int rows) {
  float sums[DOT_ROWS * LANES] = {0}; /* columns that are not there stay so */
  const vec alpha = v_set(t->alpha);
  for (int64_t q = 0; q < t->columns; q += 4) dot_four(t, rows, q, sums);
  UNROLL for (int r = 0; r < rows; r++) {
    const vec c = finished(v_load(sums + r * LANES), t->add + r * t->add_row, t->columns, alpha, t->beta);
    store_columns(t->c + r * t->c_row, c, t->columns);
  }
}

#define DOT_TILE(rows) \
  TARGET static void dot_##rows(const gemm_tile *t) { dot_tile(t, rows); }
#if DOT_ROWS == 6
#define MORE_DOT_TILES DOT_TILE(3) DOT_TILE(4) DOT_TILE(5) DOT_TILE(6)
#define MORE_DOT_NAMES , dot_3, dot_4, dot_5, dot_6
#else
#define MORE_DOT_TILES
#define MORE_DOT_NAMES
#endif
DOT_TILE(1)
DOT_TILE(2)
MORE_DOT_TILES

static void dot(const gemm_tile *t, int rows) {
  static void (*const tiles[DOT_ROWS])(const gemm_tile *) = {dot_1, dot_2 MORE_DOT_NAMES};
  tiles[rows - 1](t);
}
#endif

/* All of a row before the next: what is read is read once, in order. */
TARGET static void pack(float *to, const float *from, int64_t ld, int64_t k, int64_t width, int64_t wide,
                        int64_t least) {
  const int64_t steps = (k + PAIR - 1) / PAIR;
  for (int64_t i = 0; i < steps; i++, from += PAIR * ld) {
    for (int64_t x = 0; x < width; x += wide) {
      const int64_t there = width - x < wide ? width - x : wide, columns = (there + least - 1) / least * least;
      float *panel = to + x * steps + i * columns;
      for (int64_t j = 0; j < columns; j += LANES)
        v_store(panel + j, load_step(from + x + j, ld, k - i * PAIR, there - j));
    }
  }
}

TARGET static void pack_transposed(float *to, int64_t stride, const float *from, int64_t ld, int64_t k, int64_t width) {
  const int64_t steps = (k + PAIR - 1) / PAIR;
  for (int64_t j = 0; j < stride; j += LANES)
    for (int64_t i = 0; i < steps; i += LANES) {
      vec block[LANES];
      const int64_t there = width - j, count = steps - i < LANES ? steps - i : LANES;
      UNROLL for (int r = 0; r < LANES; r++) block[r] =
          r < there ? load_steps(from + (j + r) * ld + PAIR * i, k - PAIR * i) : v_zero();
      v_transpose(block);
      UNROLL for (int r = 0; r < LANES; r++) if (r < count) v_store(to + (i + r) * stride + j, block[r]);
    }
}

#if PAIR == 2
TARGET static void pack_rows(float *to, int64_t stride, const float *from, int64_t ld, int64_t k, int64_t rows) {
  for (int64_t r = 0; r < rows; r++, to += stride, from += ld)
    for (int64_t i = 0; PAIR * i < k; i += LANES) v_store(to + i, load_steps(from + PAIR * i, k - PAIR * i));
}
#endif

TARGET static void finish_transposed(const gemm_tile *t) {
  const vec alpha = v_set(t->alpha);
  for (int64_t r = 0; r < t->steps; r += LANES)
    for (int64_t q = 0; q < t->columns; q += LANES) {
      vec block[LANES];
      const int64_t count = t->steps - r;
      UNROLL for (int i = 0; i < LANES; i++) block[i] =
          i < count ? v_load(t->broadcast + (r + i) * t->row + q) : v_zero();
      v_transpose(block);
      for (int i = 0; i < LANES && q + i < t->columns; i++)
        store_columns(t->c + (q + i) * t->c_row + r,
                      finished(block[i], t->add + (q + i) * t->add_row + r, count, alpha, t->beta), count);
    }
}

const gemm_kernels KERNELS = {.name = KERNELS_NAME,
                              .pair = PAIR,
                              .rows = ROWS,
                              .lanes = LANES,
                              .vectors = VECTORS,
                              .panel = PANEL,
                              .multiply = multiply,
                              .pack = pack,
                              .pack_transposed = pack_transposed,
#if PAIR == 2
                              .pack_rows = pack_rows,
#else
                              .dot_rows = DOT_ROWS,
                              .dot = dot,
#endif
                              .finish_transposed = finish_transposed};
