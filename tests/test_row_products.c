/* label: short */
/* Products with chosen rows, and matrix products of few rows, against plain loops in double on odd sizes. */
#include "testing.h"

#include <espalier/blas.h>
#include <espalier/row_products.h>

enum { ROWS = 37, STRIDE = 83 };

static esp_real matrix[ROWS * STRIDE], x[STRIDE];

static int32_t row_of(const esp_row_list *rows, int64_t i) { return rows->index ? rows->index[i] : (int32_t)i; }

static void check_rows(const esp_row_list *rows, int64_t n) {
  esp_real products[ROWS], factors[ROWS], y[STRIDE];
  double expected[STRIDE];
  for (int64_t i = 0; i < rows->count; i++) {
    expected[i] = 0;
    for (int64_t k = 0; k < n; k++) expected[i] += (double)x[k] * (double)matrix[row_of(rows, i) * STRIDE + k];
  }
  esp_dot_rows(x, n, rows, products);
  assert_close("dot", products, expected, rows->count, 1e-6, 1e-5);
  fill_normal(factors, ROWS, 3);
  fill_normal(y, STRIDE, 4);
  for (int64_t k = 0; k < n; k++) {
    expected[k] = (double)y[k];
    for (int64_t i = 0; i < rows->count; i++)
      expected[k] += (double)factors[i] * (double)matrix[row_of(rows, i) * STRIDE + k];
  }
  const esp_real beyond = y[n];
  esp_add_rows(y, n, rows, factors);
  assert_close("add", y, expected, n, 1e-6, 1e-5);
  assert_true(y[n] == beyond);
}

static void test_rows(void **state) {
  (void)state;
  static const int32_t chosen[] = {36, 0, 5, 5, 17, 2, 30, 31, 32, 7, 8, 1, 35, 20, 21, 22, 3};
  fill_normal(matrix, ROWS * STRIDE, 1);
  fill_normal(x, STRIDE, 2);
  static const int64_t widths[] = {1, 7, 16, 33, 64, 82};
  for (size_t w = 0; w < sizeof widths / sizeof widths[0]; w++)
    for (int64_t count = 0; count <= 17; count++) {
      check_rows(&(esp_row_list){matrix, STRIDE, count, chosen}, widths[w]);
      check_rows(&(esp_row_list){matrix, STRIDE, count, NULL}, widths[w]);
    }
}

/* C = op(A) B by hand. */
static void multiply(const esp_gemm *p, double *c) {
  for (int64_t i = 0; i < p->m; i++)
    for (int64_t j = 0; j < p->n; j++) {
      double sum = p->beta == 0 ? 0 : (double)p->beta * (double)p->c[i * p->ldc + j];
      for (int64_t k = 0; k < p->k; k++)
        sum += (double)p->alpha * (double)p->a[i * p->lda + k] *
               (double)(p->transpose_b ? p->b[j * p->ldb + k] : p->b[k * p->ldb + j]);
      c[i * p->n + j] = sum;
    }
}

/* Sizes on both sides of what OpenBLAS does without packing; columns beyond n must stay. */
static void test_few_rows(void **state) {
  (void)state;
  enum { LARGE = 1030, LDC = LARGE + 3 };
  static esp_real a[6 * LARGE], b[LARGE * LARGE], c[6 * LDC], got[6 * LARGE];
  static double expected[6 * LARGE];
  fill_normal(a, 6 * LARGE, 1);
  fill_normal(b, LARGE * LARGE, 2);
  static const int64_t sizes[][2] = {{1, 1}, {5, 70}, {131, 67}, {LARGE, LARGE}};
  for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++)
    for (int64_t m = 1; m <= 6; m++)
      for (int variant = 0; variant < 4; variant++) {
        const int64_t n = sizes[s][0], k = sizes[s][1];
        const bool transposed = variant & 1;
        fill_normal(c, 6 * LDC, 5);
        const esp_gemm p = {.transpose_b = transposed,
                            .m = m,
                            .n = n,
                            .k = k,
                            .a = a,
                            .lda = LARGE,
                            .b = b,
                            .ldb = LARGE,
                            .c = c,
                            .ldc = LDC,
                            .alpha = 1,
                            .beta = (esp_real)(variant >> 1)};
        const esp_real beyond = c[n];
        multiply(&p, expected);
        esp_gemm_here(&p);
        for (int64_t i = 0; i < m; i++) memcpy(got + i * n, c + i * LDC, (size_t)n * sizeof *c);
        assert_close("product", got, expected, m * n, 1e-5, 3e-4);
        assert_true(c[n] == beyond);
      }
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_rows), cmocka_unit_test(test_few_rows)};
  return cmocka_run_group_tests_name("row products", tests, NULL, NULL);
}
