#include "blas_internal.h"
#include "gemm_blocks_internal.h"
#include <espalier/blas.h>
#include <espalier/parallel.h>
#include <espalier/row_products.h>

#include <cblas.h>
#include <stdatomic.h>
#include <string.h>

/* Declared by OpenBLAS's own cblas.h only; a reference cblas.h could be found first. */
char *openblas_get_corename(void);
void openblas_set_num_threads(int threads);

/* Tiles are cut smaller only until a list of products makes enough of them for the cores of a small machine.
 *
 * OpenBLAS packs both operands of every tile anew, so large tiles are nearer its best (uncut columns most of all: then
 * the rows are packed once). The own kernels pack the vector operand once a thread if it fits into their scratch. Own
 * tiles are multiples of what the kernels take at once. */
enum { TILE_ROWS = 512, TILE_COLUMNS = 1024, SMALLEST_TILE = 64, ENOUGH_TILES = 4 };
enum { OWN_TILE_ROWS = 480, OWN_TILE_ROWS_PACKED = 240, OWN_TILE = 48 };

typedef struct tiling {
  int64_t rows, columns; /* of a tile */
  int64_t across;        /* tiles side by side */
  int64_t count;
} tiling;

/* How a product is computed. Depends on its shape and the number of products in its list only: that is what makes
 * results independent of the threads. */
typedef struct product_plan {
  const gemm_kernels *kernels; /* NULL: OpenBLAS, or few rows */
  bool swapped;
  tiling tiles;
} product_plan;

static int64_t pieces(int64_t length, int64_t piece) { return (length + piece - 1) / piece; }

static int64_t halved(int64_t length, int64_t multiple) { return round_up(length / 2, multiple); }

static bool worth_cutting(const esp_gemm *p) { return (double)p->m * (double)p->n * (double)p->k > 1e6; }

static int64_t even(int64_t length, int64_t piece, int64_t multiple) {
  return round_up(pieces(length, pieces(length, piece)), multiple);
}

static tiling choose_tiling(const esp_gemm *p, int64_t rows, int64_t columns, int64_t multiple, int64_t enough) {
  while (worth_cutting(p) && pieces(p->m, rows) * pieces(p->n, columns) < enough) {
    if (4 * rows >= columns && rows > SMALLEST_TILE)
      rows = halved(rows, multiple);
    else if (columns > SMALLEST_TILE)
      columns = halved(columns, multiple);
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

/* OpenBLAS refuses matrices whose rows overlap, but not vectors. */
static void multiply_row_by_row(const esp_gemm *p) {
  const CBLAS_TRANSPOSE tb = p->transpose_b ? CblasNoTrans : CblasTrans;
  const int rows = (int)(p->transpose_b ? p->n : p->k), columns = (int)(p->transpose_b ? p->k : p->n);
  for (int64_t i = 0; i < p->m; i++)
#ifdef ESP_DOUBLE
    cblas_dgemv
#else
    cblas_sgemv
#endif
        (CblasRowMajor, tb, rows, columns, p->alpha, p->b, (int)p->ldb, p->a + (p->transpose_a ? i : i * p->lda),
         p->transpose_a ? (int)p->lda : 1, p->beta, p->c + i * p->ldc, 1);
}

static void multiply_matrices(const esp_gemm *p) {
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

static void call_blas(const esp_gemm *p) {
  esp_use_one_blas_thread();
  if (p->lda < (p->transpose_a ? p->m : p->k))
    multiply_row_by_row(p);
  else
    multiply_matrices(p);
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
 * AVX-512 kernels have a way around that, for products up to a size. The own kernels read B in place, but with B^T they
 * multiply whole vectors of rows of A. */

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
  if (p->way == ESP_GEMM_BEST && gemm_kernels_for(ESP_GEMM_BEST)) return p->m <= (p->transpose_b ? THIN_ROWS : 1);
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

static const gemm_kernels *kernels_for(const esp_gemm *p) {
  if (p->precision == ESP_BF16) {
    if (!gemm_bf16()) esp_panic("a product in bf16 on a processor that has none: see esp_precision_check()");
    return gemm_bf16();
  }
  if (p->way == ESP_GEMM_OPENBLAS || (p->way == ESP_GEMM_BEST && is_thin(p))) return NULL;
  return gemm_kernels_for(p->way);
}

static product_plan choose_plan(const esp_gemm *p, int64_t products) {
  const int64_t enough = pieces(ENOUGH_TILES, products);
  product_plan plan = {.kernels = kernels_for(p)};
  if (!plan.kernels) {
    plan.tiles = choose_tiling(p, smaller(p->m, TILE_ROWS), smaller(p->n, TILE_COLUMNS), 16, enough);
    return plan;
  }
  plan.swapped = gemm_swaps(p, plan.kernels);
  const int64_t most = gemm_keeps_packed(p, plan.kernels, plan.swapped) ? OWN_TILE_ROWS_PACKED : OWN_TILE_ROWS;
  const int64_t rows = plan.swapped ? p->m : even(p->m, most, OWN_TILE);
  const int64_t columns = even(p->n, plan.swapped ? most : GEMM_MOST_COLUMNS, OWN_TILE);
  plan.tiles = choose_tiling(p, rows, columns, OWN_TILE, enough);
  return plan;
}

/* C = beta C + bias: the bias need not be known to what adds the product. */
static void start_with_bias(esp_gemm *p) {
  for (int64_t i = 0; i < p->m; i++) {
    esp_real *row = p->c + i * p->ldc;
    for (int64_t j = 0; j < p->n; j++) row[j] = (p->beta == 0 ? 0 : p->beta * row[j]) + p->bias[j];
  }
  p->bias = NULL;
  p->beta = 1;
}

static void run_piece(esp_gemm product, const product_plan *plan, uint64_t list) {
  if (product.m <= 0 || product.n <= 0) return;
  if (product.bias && (!plan->kernels || product.beta != 0 || product.k <= 0)) start_with_bias(&product);
  if (product.k <= 0)
    scale_c(&product);
  else if (plan->kernels)
    gemm_run_piece(&product, plan->kernels, plan->swapped, list);
  else if (is_thin(&product) && product.transpose_b)
    run_thin_transposed(&product);
  else if (is_thin(&product))
    run_thin(&product);
  else
    call_blas(&product);
}

static void run_tile(const esp_gemm *p, int64_t products, int64_t index, uint64_t list) {
  const product_plan plan = choose_plan(p, products);
  const tiling *t = &plan.tiles;
  const int64_t row = index / t->across * t->rows, column = index % t->across * t->columns;
  esp_gemm tile = *p;
  tile.m = smaller(t->rows, p->m - row);
  tile.n = smaller(t->columns, p->n - column);
  tile.a = p->a + (p->transpose_a ? row : row * p->lda);
  tile.b = p->b + (p->transpose_b ? column * p->ldb : column);
  tile.c = p->c + row * p->ldc + column;
  if (p->bias) tile.bias = p->bias + column;
  run_piece(tile, &plan, list);
}

/* The own kernels have columns to a limit: a product that has more is cut, as in a list. */
void esp_gemm_here(const esp_gemm *product) {
  if (product->m <= 0 || product->n <= 0) return;
  const int64_t tiles = choose_plan(product, ENOUGH_TILES).tiles.count;
  for (int64_t i = 0; i < tiles; i++) run_tile(product, ENOUGH_TILES, i, 0);
}

typedef struct product_list {
  const esp_gemm *products;
  int64_t count;
  uint64_t number; /* of this list since the program began, from 1 */
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
    run_tile(product, list->count, i - product->first_tile, list->number);
  }
}

void esp_gemm_run(esp_gemm *products, int64_t count) {
  int64_t tiles = 0;
  for (int64_t i = 0; i < count; i++) {
    products[i].first_tile = tiles;
    if (products[i].m > 0 && products[i].n > 0) tiles += choose_plan(&products[i], count).tiles.count;
  }
  static atomic_uint_fast64_t lists;
  product_list list = {products, count, atomic_fetch_add(&lists, 1) + 1};
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

bool esp_gemm_has(esp_gemm_way way) {
  return way == ESP_GEMM_BEST || way == ESP_GEMM_OPENBLAS || gemm_kernels_for(way) != NULL;
}

esp_status esp_precision_check(esp_precision precision) {
  if (precision == ESP_FP32 || gemm_bf16()) return ESP_OK;
  return esp_fail(ESP_ERR_CONFIG, "bf16 needs a processor with AVX-512 BF16 (avx512_bf16 in /proc/cpuinfo) and products of floats; "
                                  "here there is %s. Use fp32", sizeof(esp_real) == sizeof(float) ? "no such processor" : "double");
}

const char *esp_gemm_kernel(void) {
  const gemm_kernels *kernels = gemm_kernels_for(ESP_GEMM_BEST);
  return kernels ? kernels->name : "none";
}

const char *esp_blas_kernel(void) { return openblas_get_corename(); }
