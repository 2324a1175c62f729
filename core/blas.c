#include "blas_internal.h"
#include <espalier/blas.h>
#include <espalier/parallel.h>
#include <espalier/row_products.h>

#include <cblas.h>
#include <stdatomic.h>
#include <string.h>

/* Declared by OpenBLAS's own cblas.h only; a reference cblas.h could be found first. */
char *openblas_get_corename(void);
void openblas_set_num_threads(int threads);

/* OpenBLAS packs both operands of every tile anew, so large tiles are nearer its best (uncut columns most of all: then
 * the rows are packed once). They are cut smaller only until a list of products makes enough tiles for the cores of a
 * small machine. */
enum { TILE_ROWS = 512, TILE_COLUMNS = 1024, SMALLEST_TILE = 64, ENOUGH_TILES = 4 };

typedef struct tiling {
  int64_t rows, columns; /* of a tile */
  int64_t across;        /* tiles side by side */
  int64_t count;
} tiling;

static int64_t pieces(int64_t length, int64_t piece) { return (length + piece - 1) / piece; }

static int64_t halved(int64_t length) { return (length / 2 + 15) / 16 * 16; }

/* Depends on the shape of the product and the number of products in its list only: that is what makes results
 * independent of the threads. */
static tiling choose_tiling(const esp_gemm *p, int64_t products) {
  int64_t rows = p->m < TILE_ROWS ? p->m : TILE_ROWS;
  int64_t columns = p->n < TILE_COLUMNS ? p->n : TILE_COLUMNS;
  const bool worth_cutting = (double)p->m * (double)p->n * (double)p->k > 1e6;
  const int64_t enough = pieces(ENOUGH_TILES, products);
  while (worth_cutting && pieces(p->m, rows) * pieces(p->n, columns) < enough) {
    if (4 * rows >= columns && rows > SMALLEST_TILE)
      rows = halved(rows);
    else if (columns > SMALLEST_TILE)
      columns = halved(columns);
    else
      break;
  }
  const int64_t across = pieces(p->n, columns);
  return (tiling){rows, columns, across, pieces(p->m, rows) * across};
}

/* Before the first product of all: it may come from any thread. */
void esp_use_one_blas_thread(void) {
  static atomic_bool done;
  if (atomic_load_explicit(&done, memory_order_acquire)) return;
  openblas_set_num_threads(1);
  atomic_store_explicit(&done, true, memory_order_release);
}

static void call_blas(const esp_gemm *p) {
  esp_use_one_blas_thread();
  const CBLAS_TRANSPOSE ta = p->transpose_a ? CblasTrans : CblasNoTrans;
  const CBLAS_TRANSPOSE tb = p->transpose_b ? CblasTrans : CblasNoTrans;
#ifdef ESP_DOUBLE
  cblas_dgemm
#else
  cblas_sgemm
#endif
      (CblasRowMajor, ta, tb, (int)p->m, (int)p->n, (int)p->k, p->alpha, p->a, (int)p->lda, p->b, (int)p->ldb, p->beta,
       p->c, (int)p->ldc);
}

static void scale_c(const esp_gemm *p) {
  for (int64_t i = 0; i < p->m; i++)
    for (int64_t j = 0; j < p->n; j++) {
      esp_real *c = p->c + i * p->ldc + j;
      *c = p->beta == 0 ? 0 : p->beta * *c;
    }
}

/* --- products of few rows, as in inference for one token ---------------------------------------------------------
 * OpenBLAS copies B into packed panels first, which costs more than the product itself if A has a row or two. Its
 * AVX-512 kernels have a way around that, for products up to a size. */

enum { THIN_ROWS = 2, THIN_ROWS_AVX512 = 4, THIN_CHUNK = 64 };
static const double small_product = 1e6; /* m n k up to which OpenBLAS's AVX-512 kernels do without packing */

static bool has_small_kernels(void) {
  static const char *const names[] = {"SkylakeX", "Cooperlake", "SapphireRapids"};
  for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
    if (strcmp(openblas_get_corename(), names[i]) == 0) return true;
  return false;
}

/* Measured with `espalier bench mone` and both kinds of kernels. */
static bool is_thin(const esp_gemm *p) {
  if (p->m > THIN_ROWS_AVX512 || p->transpose_a || p->alpha != 1 || (p->beta != 0 && p->beta != 1)) return false;
  if (!has_small_kernels()) return p->m <= THIN_ROWS;
  return (double)p->m * (double)p->n * (double)p->k > small_product;
}

/* Each row of B is a column of C: C = A B^T. */
static void run_thin_transposed(const esp_gemm *p) {
  esp_real products[THIN_CHUNK];
  for (int64_t first = 0; first < p->n; first += THIN_CHUNK) {
    const int64_t count = p->n - first < THIN_CHUNK ? p->n - first : THIN_CHUNK;
    const esp_row_list rows = {.data = p->b + first * p->ldb, .stride = p->ldb, .count = count};
    for (int64_t i = 0; i < p->m; i++) {
      esp_real *c = p->c + i * p->ldc + first;
      esp_dot_rows(p->a + i * p->lda, p->k, &rows, products);
      for (int64_t j = 0; j < count; j++) c[j] = p->beta == 0 ? products[j] : c[j] + products[j];
    }
  }
}

static void run_thin(const esp_gemm *p) {
  if (p->beta == 0) scale_c(p);
  for (int64_t first = 0; first < p->k; first += THIN_CHUNK) {
    const int64_t count = p->k - first < THIN_CHUNK ? p->k - first : THIN_CHUNK;
    const esp_row_list rows = {.data = p->b + first * p->ldb, .stride = p->ldb, .count = count};
    for (int64_t i = 0; i < p->m; i++) esp_add_rows(p->c + i * p->ldc, p->n, &rows, p->a + i * p->lda + first);
  }
}

void esp_gemm_here(const esp_gemm *product) {
  if (product->m <= 0 || product->n <= 0) return;
  if (product->k <= 0)
    scale_c(product);
  else if (is_thin(product) && product->transpose_b)
    run_thin_transposed(product);
  else if (is_thin(product))
    run_thin(product);
  else
    call_blas(product);
}

static void run_tile(const esp_gemm *p, int64_t products, int64_t index) {
  const tiling t = choose_tiling(p, products);
  const int64_t row = index / t.across * t.rows, column = index % t.across * t.columns;
  esp_gemm tile = *p;
  tile.m = p->m - row < t.rows ? p->m - row : t.rows;
  tile.n = p->n - column < t.columns ? p->n - column : t.columns;
  tile.a = p->a + (p->transpose_a ? row : row * p->lda);
  tile.b = p->b + (p->transpose_b ? column * p->ldb : column);
  tile.c = p->c + row * p->ldc + column;
  esp_gemm_here(&tile);
}

typedef struct product_list {
  const esp_gemm *products;
  int64_t count;
} product_list;

/* The last product whose first tile is not after `tile`. */
static const esp_gemm *find_product(const product_list *list, int64_t tile) {
  int64_t low = 0, high = list->count;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    if (list->products[middle].first_tile <= tile)
      low = middle;
    else
      high = middle;
  }
  return &list->products[low];
}

static void run_tiles(void *context, int64_t begin, int64_t end) {
  const product_list *list = context;
  for (int64_t i = begin; i < end; i++) {
    const esp_gemm *product = find_product(list, i);
    run_tile(product, list->count, i - product->first_tile);
  }
}

void esp_gemm_run(esp_gemm *products, int64_t count) {
  int64_t tiles = 0;
  for (int64_t i = 0; i < count; i++) {
    products[i].first_tile = tiles;
    if (products[i].m > 0 && products[i].n > 0) tiles += choose_tiling(&products[i], count).count;
  }
  product_list list = {products, count};
  esp_parallel_for_uneven(tiles, 1, run_tiles, &list);
}

typedef struct column_sums {
  const esp_real *matrix;
  int64_t rows, columns;
  esp_real *parts;
} column_sums;

ESP_HOT static void sum_part(void *context, int64_t begin, int64_t end) {
  const column_sums *c = context;
  for (int64_t part = begin; part < end; part++) {
    esp_real *restrict sums = c->parts + part * c->columns;
    memset(sums, 0, (size_t)c->columns * sizeof *sums);
    for (int64_t r = esp_part_begin(c->rows, part); r < esp_part_begin(c->rows, part + 1); r++) {
      const esp_real *restrict row = c->matrix + r * c->columns;
      for (int64_t j = 0; j < c->columns; j++) sums[j] += row[j];
    }
  }
}

void esp_add_parts(const esp_real *parts, int64_t columns, esp_real *target, bool accumulate) {
  if (!accumulate) memset(target, 0, (size_t)columns * sizeof *target);
  for (int part = 0; part < ESP_PARTS; part++)
    for (int64_t j = 0; j < columns; j++) target[j] += parts[part * columns + j];
}

void esp_column_sums(const esp_real *matrix, int64_t rows, int64_t columns, esp_real *sums, bool accumulate,
                     esp_real *scratch) {
  column_sums context = {matrix, rows, columns, scratch};
  esp_parallel_for(ESP_PARTS, 1, sum_part, &context);
  esp_add_parts(scratch, columns, sums, accumulate);
}

const char *esp_blas_kernel(void) { return openblas_get_corename(); }
