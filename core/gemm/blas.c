#include "blas_internal.h"
#include "gemm_blocks_internal.h"
#include <espalier/blas.h>
#include <espalier/parallel.h>
#include <espalier/row_products.h>
#include <espalier/compare.h>

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
enum { TILE_ROWS = 512, TILE_COLUMNS = 1024, SMALLEST_TILE = 64 };
enum { OWN_TILE_ROWS = 480, OWN_TILE_ROWS_PACKED = 240, OWN_TILE = 48 };

static int64_t pieces(int64_t length, int64_t piece) { return (length + piece - 1) / piece; }

static int64_t halved(int64_t length, int64_t multiple) { return round_up(length / 2, multiple); }

static bool worth_cutting(const esp_gemm *p) { return (double)p->m * (double)p->n * (double)p->k > 1e6; }

static int64_t even(int64_t length, int64_t piece, int64_t multiple) {
  return round_up(pieces(length, pieces(length, piece)), multiple);
}

static gemm_tiling choose_tiling(const esp_gemm *p, int64_t rows, int64_t columns, int64_t multiple, int64_t enough) {
  while (worth_cutting(p) && pieces(p->m, rows) * pieces(p->n, columns) < enough) {
    if (4 * rows >= columns && rows > SMALLEST_TILE) rows = halved(rows, multiple);
    else if (columns > SMALLEST_TILE) columns = halved(columns, multiple);
    else break;
  }
  const int64_t across = pieces(p->n, columns);
  return (gemm_tiling){rows, columns, across, pieces(p->m, rows) * across};
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
  if (p->lda < (p->transpose_a ? p->m : p->k)) multiply_row_by_row(p);
  else multiply_matrices(p);
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

gemm_tiling gemm_tiling_of(const esp_gemm *p, const gemm_algorithm *algorithm, int64_t tiles) {
  if (p->m <= 0 || p->n <= 0) return (gemm_tiling){.rows = 1, .columns = 1};
  if (!algorithm->kernels)
    return choose_tiling(p, esp_smaller(p->m, TILE_ROWS), esp_smaller(p->n, TILE_COLUMNS), 16, tiles);
  const int64_t most =
      gemm_keeps_packed(p, algorithm->kernels, algorithm->order) ? OWN_TILE_ROWS_PACKED : OWN_TILE_ROWS;
  const int64_t rows = algorithm->order == GEMM_COLUMNS ? even(p->m, most, OWN_TILE) : p->m;
  const int64_t columns = even(p->n, algorithm->order == GEMM_COLUMNS ? GEMM_MOST_COLUMNS : most, OWN_TILE);
  return choose_tiling(p, rows, columns, OWN_TILE, tiles);
}

gemm_algorithm gemm_algorithm_for(const esp_gemm *p, int64_t tiles) {
  gemm_algorithm algorithm = {.kernels = kernels_for(p)};
  if (algorithm.kernels) algorithm.order = gemm_order_for(p, algorithm.kernels);
  algorithm.tiles = gemm_tiling_of(p, &algorithm, tiles);
  return algorithm;
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

void gemm_run_by(esp_gemm product, const gemm_algorithm *algorithm, uint64_t list) {
  if (product.m <= 0 || product.n <= 0) return;
  if (product.bias && (!algorithm->kernels || product.beta != 0 || product.k <= 0)) start_with_bias(&product);
  if (product.k <= 0) scale_c(&product);
  else if (algorithm->kernels) gemm_run_piece(&product, algorithm->kernels, algorithm->order, list);
  else if (is_thin(&product) && product.transpose_b) run_thin_transposed(&product);
  else if (is_thin(&product)) run_thin(&product);
  else call_blas(&product);
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
  return esp_fail(ESP_ERR_CONFIG,
                  "bf16 needs a processor with AVX-512 BF16 (avx512_bf16 in /proc/cpuinfo) and products of floats; "
                  "here there is %s. Use fp32",
                  sizeof(esp_real) == sizeof(float) ? "no such processor" : "double");
}

const char *esp_gemm_kernel(void) {
  const gemm_kernels *kernels = gemm_kernels_for(ESP_GEMM_BEST);
  return kernels ? kernels->name : "none";
}

const char *esp_blas_kernel(void) { return openblas_get_corename(); }
