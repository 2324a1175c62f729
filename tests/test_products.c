/* label: short */
/* Matrix products in every way that this processor has, against plain loops in double: all transposes, odd sizes,
 * strides, factors, biases, rows that overlap; the same bits for any number of threads. */
#include "testing.h"

#include <espalier/blas.h>
#include <espalier/parallel.h>

#include <float.h>

enum { MOST = 1100 * 900, BEYOND = 5 };

static esp_real a[MOST], b[MOST], bias[2048], before[MOST], c[MOST], again[MOST];

static const char *const way_names[] = {"best", "OpenBLAS", "AVX2", "AVX-512", "bf16"};

/* To nearest, ties to even, by the bits of a float. */
static float to_bf16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000;
  memcpy(&value, &bits, sizeof bits);
  return value;
}

static double element(const esp_gemm *p, const esp_real *values, bool transposed, int64_t ld, int64_t row,
                      int64_t column) {
  const esp_real value = transposed ? values[column * ld + row] : values[row * ld + column];
  return (double)(p->precision == ESP_BF16 ? to_bf16(value) : value);
}

/* A sum of k products in any order, and what is added to it, is off by at most (k + 4) roundings of the sum of their
 * sizes. */
static void check_element(const esp_gemm *p, int64_t i, int64_t j, const char *what) {
  const double start = (double)p->beta * (double)before[p->c - c + i * p->ldc + j] + (p->bias ? (double)bias[j] : 0);
  double sum = 0, sizes = 0;
  for (int64_t k = 0; k < p->k; k++) {
    const double product =
        element(p, p->a, p->transpose_a, p->lda, i, k) * element(p, p->b, p->transpose_b, p->ldb, k, j);
    sum += product;
    sizes += fabs(product);
  }
  const double expected = (double)p->alpha * sum + start, got = (double)p->c[i * p->ldc + j];
  const double most =
      (double)(p->k + 4) * (double)FLT_EPSILON / 2 * (fabs((double)p->alpha) * sizes + fabs(start) + fabs(expected));
  if (!(fabs(got - expected) <= most))
    fail_msg("%s, A%s B%s, m %lld n %lld k %lld, alpha %g beta %g%s: [%lld, %lld] is %.9g, should be %.9g within %.2g",
             what, p->transpose_a ? "^T" : "", p->transpose_b ? "^T" : "", (long long)p->m, (long long)p->n,
             (long long)p->k, (double)p->alpha, (double)p->beta, p->bias ? " bias" : "", (long long)i, (long long)j,
             got, expected, most);
}

/* Whatever lies between and after the rows of C stays. */
static void check(const esp_gemm *p, const char *what) {
  for (int64_t i = 0; i < p->m; i++) {
    for (int64_t j = 0; j < p->n; j++) check_element(p, i, j, what);
    for (int64_t j = p->n; j < p->ldc; j++) assert_true(p->c[i * p->ldc + j] == before[i * p->ldc + j]);
  }
}

static esp_gemm product(int64_t m, int64_t n, int64_t k, bool transpose_a, bool transpose_b, int64_t beyond) {
  return (esp_gemm){.transpose_a = transpose_a,
                    .transpose_b = transpose_b,
                    .m = m,
                    .n = n,
                    .k = k,
                    .a = a,
                    .b = b,
                    .c = c,
                    .lda = (transpose_a ? m : k) + beyond,
                    .ldb = (transpose_b ? k : n) + beyond,
                    .ldc = n + beyond,
                    .alpha = 1};
}

static void fill(void) {
  fill_normal(a, MOST, 1);
  fill_normal(b, MOST, 2);
  fill_normal(bias, 2048, 3);
  fill_normal(before, MOST, 4);
}

/* A way, or bf16 as one more. */
enum { BF16 = ESP_GEMM_AVX512 + 1, WAYS };

static bool has(int way) {
  return way == BF16 ? esp_precision_check(ESP_BF16) == ESP_OK : esp_gemm_has((esp_gemm_way)way);
}

static void set_way(esp_gemm *p, int way) {
  p->way = way == BF16 ? ESP_GEMM_BEST : (esp_gemm_way)way;
  p->precision = way == BF16 ? ESP_BF16 : ESP_FP32;
}

static void run(esp_gemm *p, int way, bool list) {
  set_way(p, way);
  memcpy(c, before, sizeof c);
  if (list) esp_gemm_run(p, 1);
  else esp_gemm_here(p);
}

static const int64_t sizes[][3] = {
    {1, 1, 1},     {1, 50, 33},    {3, 7, 5},     {5, 96, 400},  {6, 16, 8},    {8, 48, 16},    {9, 49, 17},
    {16, 192, 64}, {17, 31, 385},  {23, 200, 7},  {33, 65, 129}, {48, 144, 48}, {64, 100, 192}, {95, 97, 390},
    {100, 5, 100}, {131, 770, 19}, {250, 66, 40}, {7, 3, 800},   {4, 6, 128},   {13, 35, 150},
};

static void every_way_is_within_the_rounding_of_its_sums(void **state) {
  (void)state;
  for (int way = ESP_GEMM_BEST; way < WAYS; way++) {
    if (!has(way)) {
      print_message("this processor has no %s\n", way_names[way]);
      continue;
    }
    for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++)
      for (int variant = 0; variant < 16; variant++) {
        esp_gemm p = product(sizes[s][0], sizes[s][1], sizes[s][2], variant & 1, variant & 2, variant & 4 ? BEYOND : 0);
        if (variant & 8) p.alpha = 0.5f, p.beta = variant & 4 ? 1 : -2;
        if (variant & 4) p.bias = bias;
        run(&p, way, variant & 2);
        check(&p, way_names[way]);
      }
  }
}

/* Large enough for several tiles of rows and of columns and several blocks of steps; a sample of C. */
static void large_products(void **state) {
  (void)state;
  static const int64_t large[][3] = {
      {1000, 500, 200}, {520, 1024, 90}, {300, 200, 900}, {60, 1030, 800}, {2000, 40, 48}};
  for (int way = ESP_GEMM_BEST; way < WAYS; way++)
    for (size_t s = 0; has(way) && s < sizeof large / sizeof large[0]; s++)
      for (int variant = 0; variant < 4; variant++) {
        esp_gemm p = product(large[s][0], large[s][1], large[s][2], variant & 1, variant & 2, 0);
        p.bias = bias;
        run(&p, way, true);
        for (int64_t i = 0; i < p.m; i += 1 + i % 13)
          for (int64_t j = i % 7; j < p.n; j += 7) check_element(&p, i, j, way_names[way]);
      }
}

/* Windows of a signal: row i begins `lda` after row i - 1 and is longer than that. */
static void rows_of_a_may_overlap(void **state) {
  (void)state;
  for (int way = ESP_GEMM_BEST; way < WAYS; way++)
    for (int transpose_a = 0; has(way) && transpose_a < 2; transpose_a++) {
      esp_gemm p = transpose_a ? product(147, 70, 200, true, false, 0) : product(200, 70, 147, false, true, 0);
      p.lda = 49;
      run(&p, way, true);
      check(&p, way_names[way]);
    }
}

static void what_is_not_a_number_stays_visible(void **state) {
  (void)state;
  for (int way = ESP_GEMM_BEST; way < WAYS; way++) {
    if (!has(way)) continue;
    esp_gemm p = product(20, 30, 40, false, true, 0);
    const esp_real kept = a[5 * p.lda + 7];
    a[5 * p.lda + 7] = (esp_real)NAN;
    run(&p, way, false);
    a[5 * p.lda + 7] = kept;
    for (int64_t i = 0; i < p.m; i++)
      for (int64_t j = 0; j < p.n; j++) assert_true(isnan(p.c[i * p.ldc + j]) == (i == 5));
    for (int64_t i = 0; i < MOST; i++) before[i] = (esp_real)NAN; /* with beta 0 it is not read */
    run(&p, way, false);
    fill_normal(before, MOST, 4);
    check(&p, way_names[way]);
  }
}

/* As the experts of a layer to which no token came. */
static void lists_without_rows(void **state) {
  (void)state;
  esp_gemm list[8];
  for (int way = ESP_GEMM_BEST; way < WAYS; way++)
    for (int threads = 1; has(way) && threads <= 3; threads++) {
      esp_threads_set(threads);
      for (int i = 0; i < 8; i++) {
        list[i] = product(0, 40, 30, false, true, 0);
        set_way(&list[i], way);
      }
      memcpy(c, before, sizeof c);
      esp_gemm_run(list, 8);
      for (int i = 0; i < 8; i++) {
        list[i] = product(0, 40, 0, true, false, 0);
        set_way(&list[i], way);
      }
      esp_gemm_sums(list, 8, c);
      assert_memory_equal(c, before, sizeof c);
    }
  esp_threads_set(0);
}

static void nothing_to_add_up(void **state) {
  (void)state;
  for (int way = ESP_GEMM_BEST; way < WAYS; way++) {
    if (!has(way)) continue;
    esp_gemm p = product(3, 4, 0, false, false, 2);
    p.lda = 1;
    p.beta = 2;
    p.bias = bias;
    run(&p, way, true);
    check(&p, way_names[way]);
  }
}

/* Lists of products that share operands, with few and with many rows. */
static void threads_do_not_change_the_bits(void **state) {
  (void)state;
  static const int64_t shapes[][3] = {{1000, 192, 200}, {16, 768, 192}, {64, 576, 192}, {200, 192, 1000},
                                      {17, 90, 500},    {65, 800, 130}, {5, 50, 129},   {3, 600, 600}};
  for (int way = ESP_GEMM_BEST; way < WAYS; way++)
    for (size_t s = 0; has(way) && s < sizeof shapes / sizeof shapes[0]; s++)
      for (int variant = 0; variant < 4; variant++) {
        esp_gemm list[3];
        for (int threads = 1; threads <= 3; threads++) {
          esp_threads_set(threads);
          for (int i = 0; i < 3; i++) {
            list[i] = product(shapes[s][0], shapes[s][1], shapes[s][2], variant & 1, variant & 2, 0);
            set_way(&list[i], way);
            list[i].a += 8 * i;
            list[i].c += i * list[i].m * list[i].n;
          }
          const int64_t count = 3 * list[0].m * list[0].n;
          memcpy(c, before, (size_t)count * sizeof *c);
          esp_gemm_run(list, 3);
          if (threads == 1) memcpy(again, c, (size_t)count * sizeof *c);
          assert_memory_equal(again, c, (size_t)count * sizeof *c);
        }
      }
  esp_threads_set(0);
}

/* Sums over the rows of a list, whose parts begin within products, at the beginning of one, and several times within
 * one; a product without rows; few rows in all. */
static void sums_over_the_rows_of_a_list(void **state) {
  (void)state;
  static const int64_t rows[][3] = {{700, 0, 801}, {0, 513, 1540}, {2000, 3, 0}, {300, 300, 600}, {5, 40, 0}};
  static esp_real partial[ESP_GEMM_PARTIALS * 90 * 70];
  for (int way = ESP_GEMM_BEST; way < WAYS; way++)
    for (size_t s = 0; has(way) && s < sizeof rows / sizeof rows[0]; s++)
      for (int threads = 1; threads <= 3; threads++) {
        esp_gemm list[3];
        int64_t row = 0;
        esp_threads_set(threads);
        for (int i = 0; i < 3; i++) {
          list[i] = product(90 - 9 * i, 70, rows[s][i], true, false, 0);
          list[i].a += row * 90;
          list[i].b += row * 70;
          list[i].c += i * 90 * 70;
          list[i].beta = (esp_real)(i % 2);
          set_way(&list[i], way);
          row += rows[s][i];
        }
        memcpy(c, before, sizeof c);
        esp_gemm_sums(list, 3, partial);
        for (int i = 0; threads == 1 && i < 3; i++)
          for (int64_t r = 0; r < list[i].m; r++)
            for (int64_t q = 0; q < list[i].n; q++) check_element(&list[i], r, q, way_names[way]);
        if (threads == 1) memcpy(again, c, sizeof c);
        assert_memory_equal(again, c, sizeof c);
      }
  esp_threads_set(0);
}

static void processors_have_what_they_use(void **state) {
  (void)state;
  assert_true(esp_gemm_has(ESP_GEMM_BEST) && esp_gemm_has(ESP_GEMM_OPENBLAS));
  const char *used = esp_gemm_kernel();
  const esp_gemm_way best = esp_gemm_has(ESP_GEMM_AVX512) ? ESP_GEMM_AVX512 : ESP_GEMM_AVX2;
  assert_string_equal(used, esp_gemm_has(best) ? way_names[best] : "none");
}

/* Halfway between two bf16 numbers: to the even one, and what is beyond halfway up. */
static void operands_are_rounded_to_nearest_even(void **state) {
  (void)state;
  if (!has(BF16)) {
    print_message("this processor has no bf16: %s\n", esp_error_message());
    skip();
  }
  static const float values[][2] = {{1.00390625f, 1},
                                    {1.01171875f, 1.015625f},
                                    {1.00390637f, 1.0078125f},
                                    {-1.01171875f, -1.015625f},
                                    {3.14159f, 3.140625f}};
  for (size_t i = 0; i < sizeof values / sizeof values[0]; i++) {
    const esp_real one = 1;
    esp_real result = 0;
    const esp_gemm p = {.m = 1,
                        .n = 1,
                        .k = 1,
                        .a = &values[i][0],
                        .b = &one,
                        .c = &result,
                        .lda = 1,
                        .ldb = 1,
                        .ldc = 1,
                        .alpha = 1,
                        .precision = ESP_BF16};
    esp_gemm_here(&p);
    assert_true(result == to_bf16(values[i][0]));
    assert_true(result == values[i][1]);
  }
}

int main(void) {
  fill();
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(every_way_is_within_the_rounding_of_its_sums),
      cmocka_unit_test(large_products),
      cmocka_unit_test(rows_of_a_may_overlap),
      cmocka_unit_test(what_is_not_a_number_stays_visible),
      cmocka_unit_test(lists_without_rows),
      cmocka_unit_test(nothing_to_add_up),
      cmocka_unit_test(threads_do_not_change_the_bits),
      cmocka_unit_test(sums_over_the_rows_of_a_list),
      cmocka_unit_test(processors_have_what_they_use),
      cmocka_unit_test(operands_are_rounded_to_nearest_even),
  };
  return cmocka_run_group_tests_name("products", tests, NULL, NULL);
}
