/* Lists of products: which piece of which product a thread computes. */
#include "blas_internal.h"
#include <espalier/parallel.h>
#include <espalier/compare.h>

#include <stdatomic.h>

/* Tiles are cut smaller until a list of products makes so many: enough for the cores of a small machine. */
enum { ENOUGH_TILES = 4, PARTS = ESP_GEMM_PARTIALS + 1 };

typedef struct product_list {
  const esp_gemm *products;
  int64_t count;
  int64_t rows;    /* of all products: of C, or what is added up */
  uint64_t number; /* of this list since the program began, from 1 */
  int64_t tiles;   /* of the product that has most */
  esp_real *partial;
  int64_t partial_size;
} product_list;

static product_list list_of(const esp_gemm *products, int64_t count) {
  static atomic_uint_fast64_t lists;
  return (product_list){.products = products, .count = count, .number = atomic_fetch_add(&lists, 1) + 1};
}

/* --- tiles, as threads become free -------------------------------------------------------------------------------- */

static gemm_algorithm algorithm_in_list(const esp_gemm *p, int64_t products) {
  return gemm_algorithm_for(p, (ENOUGH_TILES + products - 1) / products);
}

static void run_tile(esp_gemm p, const gemm_algorithm *algorithm, int64_t index, uint64_t list) {
  const gemm_tiling *t = &algorithm->tiles;
  const int64_t row = index / t->across * t->rows, column = index % t->across * t->columns;
  p.m = esp_smaller(t->rows, p.m - row);
  p.n = esp_smaller(t->columns, p.n - column);
  p.a += p.transpose_a ? row : row * p.lda;
  p.b += p.transpose_b ? column * p.ldb : column;
  p.c += row * p.ldc + column;
  if (p.bias) p.bias += column;
  gemm_run_by(p, algorithm, list);
}

/* The own kernels have columns to a limit: a product that has more is cut. */
void esp_gemm_here(const esp_gemm *product) {
  const gemm_algorithm algorithm = gemm_algorithm_for(product, 1);
  for (int64_t i = 0; i < algorithm.tiles.count; i++) run_tile(*product, &algorithm, i, 0);
}

/* The last product whose first tile is not after `tile`. */
static const esp_gemm *find_product(const product_list *list, int64_t tile) {
  int64_t low = 0, high = list->count;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    if (list->products[middle].first_tile <= tile) low = middle;
    else high = middle;
  }
  return &list->products[low];
}

static void run_tiles(void *context, int64_t begin, int64_t end) {
  const product_list *list = context;
  for (int64_t i = begin; i < end; i++) {
    const esp_gemm *product = find_product(list, i);
    const gemm_algorithm algorithm = algorithm_in_list(product, list->count);
    run_tile(*product, &algorithm, i - product->first_tile, list->number);
  }
}

static void run_by_tiles(esp_gemm *products, int64_t count) {
  product_list list = list_of(products, count);
  int64_t tiles = 0;
  for (int64_t i = 0; i < count; i++) {
    products[i].first_tile = tiles;
    tiles += algorithm_in_list(&products[i], count).tiles.count;
  }
  esp_parallel_for_uneven(tiles, 1, run_tiles, &list);
}

/* --- rows of C, as they are dealt to other loops: what a thread wrote is in its cache, others may be far away --------
 * An element of C is the same whatever rows are computed with it, except by OpenBLAS, and unless A is transposed: its
 * rows say how the sums are cut then. Few rows of few products are dealt by columns, so that a weight is read by one
 * thread only. */

enum {
  LEAST_ROWS = 32, /* a thread */
  ROWS_AT_ONCE = 240,
  LEAST_WORK = 65536 /* multiply-adds that are worth another thread */
};

static bool deals_rows(const esp_gemm *products, int64_t count) {
  int64_t rows = 0;
  for (int64_t i = 0; i < count; rows += products[i++].m)
    if (products[i].transpose_a || !gemm_kernels_for(products[i].way)) return false;
  return rows >= LEAST_ROWS * esp_threads() || (rows > 0 && count >= 2 * esp_threads());
}

static void run_rows_of(esp_gemm p, int64_t begin, int64_t end, uint64_t list) {
  if (begin >= end) return;
  gemm_algorithm algorithm = gemm_algorithm_for(&p, 1);
  p.m = end - begin;
  p.a += begin * p.lda;
  p.c += begin * p.ldc;
  algorithm.tiles = gemm_tiling_of(&p, &algorithm, 1);
  for (int64_t i = 0; i < algorithm.tiles.count; i++) run_tile(p, &algorithm, i, list);
}

static void run_rows(void *context, int64_t begin, int64_t end) {
  const product_list *list = context;
  int64_t before = 0;
  for (int64_t i = 0; i < list->count && before < end; before += list->products[i++].m)
    run_rows_of(list->products[i], begin > before ? begin - before : 0, esp_smaller(list->products[i].m, end - before),
                list->number);
}

static void run_by_rows(const esp_gemm *products, int64_t count) {
  product_list list = list_of(products, count);
  double work = 0;
  for (int64_t i = 0; i < count; i++) {
    list.rows += products[i].m;
    work += (double)products[i].m * (double)products[i].n * (double)products[i].k;
  }
  const int64_t share = work < LEAST_WORK ? list.rows : (list.rows + esp_threads() - 1) / esp_threads();
  esp_parallel_for_uneven(list.rows, esp_smaller(share, ROWS_AT_ONCE), run_rows, &list);
}

void esp_gemm_run(esp_gemm *products, int64_t count) {
  if (deals_rows(products, count)) run_by_rows(products, count);
  else run_by_tiles(products, count);
}

/* --- sums over rows of A and B: in parts, each a thread's own rows ------------------------------------------------ */

/* Part p is rows [rows p / PARTS, rows (p + 1) / PARTS) of all products, one after the other. Sums that begin in a part
 * before go into that part's partial C, and to their own after that. */
static void run_part(const product_list *list, int64_t part, int64_t tile) {
  const int64_t begin = list->rows * part / PARTS, end = list->rows * (part + 1) / PARTS;
  int64_t before = 0;
  for (int64_t i = 0; i < list->count; before += list->products[i++].k) {
    esp_gemm p = list->products[i];
    const int64_t first = begin > before ? begin - before : 0, last = esp_smaller(p.k, end - before);
    const gemm_algorithm algorithm = gemm_algorithm_for(&p, 1);
    if ((first >= last && (p.k > 0 || part > 0)) || tile >= algorithm.tiles.count) continue;
    p.k = last > first ? last - first : 0;
    p.a += first * p.lda;
    p.b += first * p.ldb;
    if (first > 0) {
      p.c = list->partial + (part - 1) * list->partial_size;
      p.ldc = p.n;
      p.beta = 0;
    }
    run_tile(p, &algorithm, tile, list->number);
  }
}

static void run_parts(void *context, int64_t begin, int64_t end) {
  const product_list *list = context;
  for (int64_t i = begin; i < end; i++) run_part(list, i / list->tiles, i % list->tiles);
}

typedef struct partial_sums {
  const esp_gemm *product;
  const esp_real *partial;
} partial_sums;

ESP_HOT static void add_partial(void *context, int64_t begin, int64_t end) {
  const partial_sums *s = context;
  const int64_t columns = s->product->n;
  for (int64_t r = begin; r < end; r++) {
    const esp_real *restrict from = s->partial + r * columns;
    esp_real *restrict c = s->product->c + r * s->product->ldc;
    for (int64_t j = 0; j < columns; j++) c[j] += from[j];
  }
}

static void add_partials(const product_list *list) {
  for (int64_t part = 1; part < PARTS; part++) {
    const int64_t begin = list->rows * part / PARTS, end = list->rows * (part + 1) / PARTS;
    int64_t before = 0, i = 0;
    while (i < list->count && before + list->products[i].k <= begin) before += list->products[i++].k;
    if (begin >= end || i == list->count || before == begin) continue;
    partial_sums sums = {&list->products[i], list->partial + (part - 1) * list->partial_size};
    esp_parallel_rows(sums.product->m, sums.product->n, add_partial, &sums);
  }
}

enum { LEAST_SUMMED_ROWS = 512 }; /* of all products: fewer do not pay for the partial sums */

void esp_gemm_sums(esp_gemm *products, int64_t count, esp_real *partial) {
  product_list list = list_of(products, count);
  list.partial = partial;
  for (int64_t i = 0; i < count; i++) {
    const esp_gemm *p = &products[i];
    if (!p->transpose_a || p->transpose_b || p->bias)
      esp_panic("esp_gemm_sums: product %lld is not A^T B", (long long)i);
    const int64_t tiles = gemm_algorithm_for(p, 1).tiles.count;
    list.rows += p->k;
    if (tiles > list.tiles) list.tiles = tiles;
    if (p->m * p->n > list.partial_size) list.partial_size = p->m * p->n;
  }
  if (list.rows < LEAST_SUMMED_ROWS) {
    run_by_tiles(products, count);
    return;
  }
  esp_parallel_for_uneven(PARTS * list.tiles, 1, run_parts, &list);
  add_partials(&list);
}
