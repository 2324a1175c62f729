#include "gemm_blocks_internal.h"
#include <espalier/compare.h>

#ifndef ESP_DOUBLE

#include <sched.h>
#include <stdatomic.h>

/* Steps of a block: a panel of the vector operand, 48 columns wide, comes from the second-level cache as fast as it is
 * used, and C is read and written again after so many steps only. Rows of a block: what is broadcast stays in the
 * second-level cache, with room left for panels and C. Where it is packed, long parts of few rows are read faster than
 * short parts of many. */
enum {
  MOST_STEPS = 384,
  BLOCK_ROWS = 96,
  PACKED_ROWS = 480,
  PACKED_ELEMENTS = 65536,
  SWAPPED_ROWS = 48, /* of the sums that are transposed together */
  MOST_TILE_COLUMNS = 48,
  IN_PLACE_ROWS = 64,       /* so few do not pay for packing the vector operand ... */
  IN_PLACE_ELEMENTS = 8192, /* ... and so many of what is broadcast stay in the first-level cache, in whatever order */
  DOT_PRODUCT_ROWS = 64,    /* more rows pay for packing or for vectors that are not full, ... */
  DOT_PRODUCT_STEPS = 128,  /* ... shorter sums do not pay for adding up the elements of a vector */
  SCRATCHES = 128           /* more threads than so many wait for each other */
};

/* --- scratch -------------------------------------------------------------------------------------------------------
 * Never allocated and never freed: pages that no thread has written to take no memory. */

typedef struct packed_operand {
  uint64_t list; /* 0: nothing that may be used again */
  const gemm_kernels *kernels;
  const float *data;
  int64_t ld, columns, k;
} packed_operand;

typedef struct gemm_scratch {
  _Alignas(64) float vector[MOST_STEPS * GEMM_MOST_COLUMNS];
  _Alignas(64) float broadcast[PACKED_ELEMENTS];
  _Alignas(64) float sums[SWAPPED_ROWS * MOST_TILE_COLUMNS];
  packed_operand packed;
  atomic_flag taken;
} gemm_scratch;

static gemm_scratch scratches[SCRATCHES];

/* A thread takes the scratch it had before, if it can. */
static gemm_scratch *take_scratch(void) {
  static atomic_uint threads;
  static _Thread_local unsigned own = SCRATCHES;
  if (own == SCRATCHES) own = atomic_fetch_add(&threads, 1) % SCRATCHES;
  for (unsigned i = own;; i = (i + 1) % SCRATCHES) {
    if (!atomic_flag_test_and_set_explicit(&scratches[i].taken, memory_order_acquire)) {
      own = i;
      return &scratches[i];
    }
    if ((i + 1) % SCRATCHES == own) sched_yield();
  }
}

static void give_back(gemm_scratch *scratch) { atomic_flag_clear_explicit(&scratch->taken, memory_order_release); }

/* --- a piece of a product ----------------------------------------------------------------------------------------- */

/* Element (x, i), i being summed over: data[x * ld + i] if it lies along the sum, else data[i * ld + x]. */
typedef struct operand {
  const float *data;
  int64_t ld, count; /* of x */
  bool along;
} operand;

typedef struct gemm_work {
  const esp_gemm *piece;
  const gemm_kernels *kernels;
  gemm_scratch *scratch;
  operand broadcast, vector;
  int64_t wide;         /* columns of a panel of the vector operand */
  int64_t rows, length; /* of a block, at most */
  bool swapped, keeps;
  bool broadcast_in_place, vector_in_place;
} gemm_work;

/* What the next block will read for the first time, asked for line by line while this one is computed: memory is too
 * far away, and the parts of rows are too short, for the processor to see it coming. */
typedef struct gemm_ahead {
  const float *from;
  int64_t ld, width, rows;
  int64_t row, column; /* where it is */
  int64_t lines;       /* a tile */
} gemm_ahead;

/* A part of the sum, and where its operands are. */
typedef struct gemm_block {
  int64_t first, length; /* elements of the sum */
  const float *vector;   /* panels, or in place */
  int64_t row, rows;     /* of what is broadcast */
  gemm_ahead next_broadcast, next_vector;
} gemm_block;

static int64_t steps_of(const gemm_kernels *kernels, int64_t k) { return (k + kernels->pair - 1) / kernels->pair; }

/* Equal parts of k, in elements, of `most` steps at most. */
static int64_t block_length(const gemm_kernels *kernels, int64_t k, int64_t most) {
  const int64_t steps = steps_of(kernels, k), blocks = (steps + most - 1) / most;
  return kernels->pair * round_up((steps + blocks - 1) / blocks, 16);
}

/* Panels of `wide` columns, as gemm_kernels.pack() makes them. */
static void pack_panels(const gemm_kernels *kernels, const operand *from, int64_t first, int64_t length, int64_t wide,
                        int64_t least, float *to) {
  if (!from->along) {
    kernels->pack(to, from->data + first * from->ld, from->ld, length, from->count, wide, least);
    return;
  }
  for (int64_t x = 0; x < from->count; x += wide) {
    const int64_t width = esp_smaller(wide, from->count - x), stride = round_up(width, least);
    kernels->pack_transposed(to + x * steps_of(kernels, length), stride, from->data + x * from->ld + first, from->ld,
                             length, width);
  }
}

/* Panels are equal, so that none is much narrower than a tile may be. */
static int64_t panel_columns(const gemm_kernels *kernels, int64_t columns) {
  const int64_t most = kernels->vectors * kernels->lanes, panels = (columns + most - 1) / most;
  return round_up((columns + panels - 1) / panels, kernels->lanes);
}

/* What remains packed for the next piece is the whole operand. */
static const float *find_vector(const gemm_work *w, const gemm_block *b, bool is_packed) {
  if (w->vector_in_place) return w->vector.data + b->first * w->vector.ld;
  const int64_t before = steps_of(w->kernels, b->first) * round_up(w->vector.count, w->kernels->lanes);
  float *to = w->scratch->vector + (w->keeps ? before : 0);
  if (!is_packed) pack_panels(w->kernels, &w->vector, b->first, b->length, w->wide, w->kernels->lanes, to);
  return to;
}

/* The part of a tile that is the same for all of a block: what is broadcast. */
static gemm_tile set_tile(const gemm_work *w, const gemm_block *b) {
  const operand *o = &w->broadcast;
  const gemm_kernels *kernels = w->kernels;
  gemm_tile tile = {.steps = steps_of(kernels, b->length), .broadcast = w->scratch->broadcast, .row = 1};
  if (w->broadcast_in_place) {
    tile.row = o->along ? o->ld : 1;
    tile.step = o->along ? 1 : o->ld;
    tile.broadcast = o->data + b->row * tile.row + b->first * tile.step;
  } else if (o->along) {
    tile.row = round_up(tile.steps, kernels->lanes);
    tile.step = 1;
    kernels->pack_rows(w->scratch->broadcast, tile.row, o->data + b->row * o->ld + b->first, o->ld, b->length, b->rows);
  } else {
    const operand rows = {o->data + b->row, o->ld, b->rows, false};
    tile.step = kernels->panel;
    pack_panels(kernels, &rows, b->first, b->length, kernels->panel, kernels->panel, w->scratch->broadcast);
  }
  return tile;
}

static const float *broadcast_row(const gemm_work *w, const gemm_tile *tile, int64_t row) {
  if (w->broadcast_in_place || w->broadcast.along) return tile->broadcast + row * tile->row;
  const int64_t panel = w->kernels->panel;
  return tile->broadcast + row / panel * panel * tile->steps + row % panel;
}

/* Where the sums of the first steps are added to what was there, or to a bias, those of the next are added to the
 * first. */
static void set_target(const gemm_work *w, const gemm_block *b, int64_t row, int64_t column, gemm_tile *tile) {
  const esp_gemm *p = w->piece;
  tile->c = p->c + row * p->ldc + column;
  tile->c_row = p->ldc;
  tile->alpha = p->alpha;
  tile->beta = b->first > 0 ? 1 : p->beta;
  tile->add = tile->c;
  tile->add_row = tile->c_row;
  if (b->first > 0 || !p->bias) return;
  tile->beta = 1;
  tile->add = p->bias + column;
  tile->add_row = 0;
}

enum { LINE = 16 };

static gemm_ahead look_ahead(const operand *o, int64_t first, int64_t length, int64_t x, int64_t count, int64_t tiles) {
  gemm_ahead a = {.from = o->data + (o->along ? x * o->ld + first : first * o->ld + x), .ld = o->ld};
  a.width = o->along ? length : count;
  a.rows = o->along ? count : length;
  a.lines = (a.rows * ((a.width + LINE - 1) / LINE) + tiles - 1) / tiles;
  return a;
}

/* `is_packed`: all steps of the vector operand are, or will be. */
static void set_ahead(const gemm_work *w, gemm_block *b, bool is_packed) {
  const int64_t panels = (w->vector.count + w->wide - 1) / w->wide;
  const int64_t tiles = panels * ((b->rows + w->kernels->rows - 1) / w->kernels->rows);
  const int64_t row = b->row + b->rows, first = b->first + b->length,
                next = esp_smaller(w->length, w->piece->k - first);
  b->next_broadcast = b->next_vector = (gemm_ahead){.lines = 0};
  if (row < w->broadcast.count) {
    b->next_broadcast =
        look_ahead(&w->broadcast, b->first, b->length, row, esp_smaller(w->rows, w->broadcast.count - row), tiles);
  } else if (next > 0) {
    b->next_broadcast = look_ahead(&w->broadcast, first, next, 0, esp_smaller(w->rows, w->broadcast.count), tiles);
    if (!is_packed) b->next_vector = look_ahead(&w->vector, first, next, 0, w->vector.count, tiles);
  }
}

static void ask_ahead(gemm_ahead *a) {
  for (int64_t i = a->lines; i > 0 && a->row < a->rows; i--) {
    __builtin_prefetch(a->from + a->row * a->ld + a->column, 0, 2);
    a->column += LINE;
    if (a->column >= a->width) a->column = 0, a->row++;
  }
}

/* `rows` rows of the block from `row` on, through one panel of the vector operand. */
static void run_tiles(const gemm_work *w, gemm_block *b, gemm_tile tile, int64_t row, int64_t rows) {
  const gemm_tile all = tile;
  const int vectors = (int)(round_up(tile.columns, w->kernels->lanes) / w->kernels->lanes);
  const int64_t most = w->kernels->rows, tiles = (rows + most - 1) / most;
  const int64_t height = w->broadcast.along ? (rows + tiles - 1) / tiles : most; /* panels have whole tiles */
  for (int64_t r = 0; r < rows; r += height) {
    ask_ahead(&b->next_broadcast);
    ask_ahead(&b->next_vector);
    tile.broadcast = broadcast_row(w, &all, row + r);
    tile.c = all.c + r * all.c_row;
    tile.add = all.add + r * all.add_row;
    w->kernels->multiply(&tile, (int)esp_smaller(height, rows - r), vectors);
    tile.ahead = 0; /* the first of the tiles has asked */
  }
}

static void run_panel(const gemm_work *w, gemm_block *b, gemm_tile tile, int64_t column) {
  set_target(w, b, b->row, column, &tile);
  run_tiles(w, b, tile, 0, b->rows);
}

/* The same for C^T: sums of some rows of it, then transposed into C. */
static void run_swapped_panel(const gemm_work *w, gemm_block *b, gemm_tile tile, int64_t column) {
  float *sums = w->scratch->sums;
  for (int64_t row = 0; row < b->rows; row += SWAPPED_ROWS) {
    gemm_tile part = tile, result = {.broadcast = sums, .row = MOST_TILE_COLUMNS, .columns = tile.columns};
    result.steps = esp_smaller(SWAPPED_ROWS, b->rows - row);
    part.c = sums;
    part.add = sums;
    part.c_row = MOST_TILE_COLUMNS;
    part.alpha = 1;
    part.columns = round_up(tile.columns, w->kernels->lanes);
    run_tiles(w, b, part, row, result.steps);
    set_target(w, b, column, b->row + row, &result);
    w->kernels->finish_transposed(&result);
  }
}

static void run_block(const gemm_work *w, gemm_block *b) {
  gemm_tile tile = set_tile(w, b);
  for (int64_t column = 0; column < w->vector.count; column += w->wide) {
    tile.columns = esp_smaller(w->wide, w->vector.count - column);
    tile.vector_step = w->vector_in_place ? w->vector.ld : round_up(tile.columns, w->kernels->lanes);
    tile.vector = b->vector + (w->vector_in_place ? column : column * tile.steps);
    const bool is_last = column + w->wide >= w->vector.count;
    tile.ahead = w->vector_in_place && !is_last ? w->wide : 0;
    if (w->swapped) run_swapped_panel(w, b, tile, column);
    else run_panel(w, b, tile, column);
  }
}

static void run_blocks(const gemm_work *w, bool is_packed) {
  const int64_t k = w->piece->k;
  gemm_block b;
  for (b.first = 0; b.first < k; b.first += w->length) {
    b.length = esp_smaller(w->length, k - b.first);
    b.vector = find_vector(w, &b, is_packed);
    for (b.row = 0; b.row < w->broadcast.count; b.row += w->rows) {
      b.rows = esp_smaller(w->rows, w->broadcast.count - b.row);
      set_ahead(w, &b, is_packed || w->keeps);
      run_block(w, &b);
    }
  }
}

/* All rows of A by a vector's width of rows of B, while the next ones are asked for. */
static void run_dots(const esp_gemm *p, const gemm_kernels *kernels) {
  const operand b = {p->b, p->ldb, p->n, true};
  const int64_t parts = (p->m + kernels->dot_rows - 1) / kernels->dot_rows;
  const gemm_tile whole = {.steps = p->k,
                           .row = p->lda,
                           .vector_step = p->ldb,
                           .c_row = p->ldc,
                           .add_row = p->bias ? 0 : p->ldc,
                           .alpha = p->alpha,
                           .beta = p->bias ? 1 : p->beta};
  for (int64_t column = 0; column < p->n; column += kernels->lanes) {
    gemm_tile tile = whole;
    gemm_ahead next = {.lines = 0};
    tile.columns = esp_smaller(kernels->lanes, p->n - column);
    tile.vector = p->b + column * p->ldb;
    if (column + kernels->lanes < p->n)
      next = look_ahead(&b, 0, p->k, column + kernels->lanes,
                        esp_smaller(kernels->lanes, p->n - column - kernels->lanes), parts);
    for (int64_t part = 0; part < parts; part++) {
      const int64_t row = p->m * part / parts;
      ask_ahead(&next);
      tile.broadcast = p->a + row * p->lda;
      tile.c = p->c + row * p->ldc + column;
      tile.add = p->bias ? p->bias + column : tile.c;
      kernels->dot(&tile, (int)(p->m * (part + 1) / parts - row));
    }
  }
}

/* --- choices ------------------------------------------------------------------------------------------------------ */

/* Of a row of B, in multiply-adds of a vector unit an element: what it costs to pack it transposed; swapped, the rows
 * of A that fill up a vector, packing those, and transposing C. */
static bool rows_are_cheaper(const esp_gemm *p, const gemm_kernels *kernels) {
  const double pack = 0.5, lanes = kernels->lanes, rows = (double)p->m;
  const double filled = (double)round_up(p->m, kernels->lanes);
  return (filled - rows) / lanes + pack * rows * (1 / (double)p->n + 1 / (double)p->k) < pack;
}

gemm_order gemm_order_for(const esp_gemm *p, const gemm_kernels *kernels) {
  if (!p->transpose_b || p->transpose_a) return GEMM_COLUMNS;
  if (kernels->dot_rows && p->m <= DOT_PRODUCT_ROWS && p->k >= DOT_PRODUCT_STEPS) return GEMM_SUMS;
  return p->m <= GEMM_MOST_COLUMNS && rows_are_cheaper(p, kernels) ? GEMM_ROWS : GEMM_COLUMNS;
}

bool gemm_keeps_packed(const esp_gemm *p, const gemm_kernels *kernels, gemm_order order) {
  if (order == GEMM_SUMS) return false;
  const int64_t columns = round_up(order == GEMM_ROWS ? p->m : p->n, kernels->lanes);
  return esp_smaller(columns, GEMM_MOST_COLUMNS) * steps_of(kernels, p->k) <= MOST_STEPS * GEMM_MOST_COLUMNS;
}

static gemm_work set_work(const esp_gemm *p, const gemm_kernels *kernels, gemm_order order) {
  const bool swapped = order == GEMM_ROWS;
  const operand a = {p->a, p->lda, p->m, !p->transpose_a}, b = {p->b, p->ldb, p->n, p->transpose_b};
  gemm_work w = {
      .piece = p, .kernels = kernels, .broadcast = swapped ? b : a, .vector = swapped ? a : b, .swapped = swapped};
  w.wide = panel_columns(kernels, w.vector.count);
  const bool may_stay = !kernels->pack_rows, few = w.broadcast.count * p->k <= IN_PLACE_ELEMENTS;
  w.broadcast_in_place = may_stay && (w.broadcast.along || few);
  w.vector_in_place =
      may_stay && !w.vector.along && w.broadcast.count <= IN_PLACE_ROWS && w.vector.count % kernels->lanes == 0;
  const bool in_panels = !w.broadcast_in_place && !w.broadcast.along;
  w.rows = in_panels ? esp_smaller(PACKED_ROWS, round_up(w.broadcast.count, kernels->panel)) : BLOCK_ROWS;
  w.length =
      block_length(kernels, p->k, in_panels ? esp_smaller(MOST_STEPS, PACKED_ELEMENTS / w.rows / 16 * 16) : MOST_STEPS);
  w.keeps = gemm_keeps_packed(p, kernels, order);
  return w;
}

/* The same operand, packed by the piece before. */
static bool is_packed(const gemm_work *w, uint64_t list) {
  const packed_operand *last = &w->scratch->packed;
  return list && last->list == list && last->kernels == w->kernels && last->data == w->vector.data &&
         last->ld == w->vector.ld && last->columns == w->vector.count && last->k == w->piece->k;
}

void gemm_run_piece(const esp_gemm *piece, const gemm_kernels *kernels, gemm_order order, uint64_t list) {
  if (order == GEMM_SUMS) {
    run_dots(piece, kernels);
    return;
  }
  gemm_work w = set_work(piece, kernels, order);
  w.scratch = take_scratch();
  run_blocks(&w, w.keeps && is_packed(&w, list));
  if (!w.vector_in_place)
    w.scratch->packed =
        (packed_operand){w.keeps ? list : 0, kernels, w.vector.data, w.vector.ld, w.vector.count, piece->k};
  give_back(w.scratch);
}

const gemm_kernels *gemm_kernels_for(esp_gemm_way way) {
#ifdef __x86_64__
  __builtin_cpu_init();
  if ((way == ESP_GEMM_BEST || way == ESP_GEMM_AVX512) && __builtin_cpu_supports("avx512f"))
    return &gemm_avx512_kernels;
  if ((way == ESP_GEMM_BEST || way == ESP_GEMM_AVX2) && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    return &gemm_avx2_kernels;
#endif
  (void)way;
  return NULL;
}

const gemm_kernels *gemm_bf16(void) {
#ifdef __x86_64__
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512bf16")) return &gemm_bf16_kernels;
#endif
  return NULL;
}

#else /* the own kernels are for float */

const gemm_kernels *gemm_kernels_for(esp_gemm_way way) {
  (void)way;
  return NULL;
}

const gemm_kernels *gemm_bf16(void) { return NULL; }

gemm_order gemm_order_for(const esp_gemm *product, const gemm_kernels *kernels) {
  return product && kernels ? GEMM_COLUMNS : GEMM_ROWS;
}

bool gemm_keeps_packed(const esp_gemm *product, const gemm_kernels *kernels, gemm_order order) {
  return product && kernels && order && false;
}

void gemm_run_piece(const esp_gemm *piece, const gemm_kernels *kernels, gemm_order order, uint64_t list) {
  esp_panic("product of %lld rows by kernels for float: %p %d %llu", (long long)piece->m, (const void *)kernels, order,
            (unsigned long long)list);
}

#endif
