/* label: medium */
/* The frame of the benchmarks: what it reports of cases whose cost is known. Times themselves are never asserted. */
#include "testing.h"

#include <espalier/blas.h>
#include <espalier/cost.h>
#include <espalier/parallel.h>
#include <espalier/step_products.h>

#include <jansson.h>

typedef struct counted {
  int runs;
  esp_status status;
} counted;

static esp_status count_run(void *context) {
  counted *c = context;
  c->runs++;
  volatile double sum = 0;
  for (int i = 0; i < 10000; i++) sum = sum + i;
  return c->status;
}

static void test_compare(void **state) {
  (void)state;
  esp_bench bench = {.rounds = 4, .comparisons = json_array(), .figures = json_object()};
  counted first = {0}, second = {0};
  const esp_bench_case cases[] = {{"first", count_run, &first, 1e6, 1, 0},
                                  {"second", count_run, &second, 0, 0.25, 1e-9}};
  esp_bench_result results[2];
  assert_int_equal(ESP_OK, esp_bench_compare(&bench, "both", cases, 2, results));
  assert_true(first.runs >= 6 && second.runs >= 6);
  assert_true(results[0].ratio == 1 && results[1].ratio > 0);
  for (int i = 0; i < 2; i++) assert_true(results[i].best > 0 && results[i].best <= results[i].median);
  const json_t *comparison = json_array_get(bench.comparisons, 0), *list = json_object_get(comparison, "cases");
  assert_string_equal(json_string_value(json_object_get(comparison, "name")), "both");
  assert_int_equal(json_array_size(list), 2);
  const json_t *a = json_array_get(list, 0), *b = json_array_get(list, 1);
  assert_true(json_real_value(json_object_get(a, "gflops")) == 1e-9 * 1e6 / results[0].median);
  assert_null(json_object_get(a, "reached"));
  assert_null(json_object_get(b, "gflops"));
  assert_true(json_real_value(json_object_get(b, "reached")) == (1 - results[1].ratio) / (1 - 0.25));
  assert_null(json_object_get(a, "limit_share"));
  assert_true(json_real_value(json_object_get(b, "limit_share")) == 1e-9 / results[1].median);
  json_decref(bench.comparisons);
  json_decref(bench.figures);
}

static void test_figures(void **state) {
  (void)state;
  const esp_bench bench = {.figures = json_object()};
  esp_bench_figure(&bench, "rate", 2.5, "images/s");
  esp_bench_count(&bench, "bytes", (int64_t)1 << 40, "bytes");
  esp_bench_split(&bench, "step", (const esp_bench_part[]){{"first", 1}, {"second", 3}}, 2, 4);
  assert_true(json_real_value(json_object_get(bench.figures, "rate")) == 2.5);
  assert_int_equal(json_integer_value(json_object_get(bench.figures, "bytes")), (int64_t)1 << 40);
  const json_t *second = json_object_get(json_object_get(bench.figures, "step"), "second");
  assert_true(json_real_value(json_object_get(second, "seconds")) == 3);
  assert_true(json_real_value(json_object_get(second, "share")) == 0.75);
  json_decref(bench.figures);
}

static void test_median(void **state) {
  (void)state;
  assert_true(esp_bench_median((double[]){3, 1, 2}, 3) == 2);
  assert_true(esp_bench_median((double[]){4, 1, 3, 2}, 4) == 2.5);
}

static void test_failures(void **state) {
  (void)state;
  esp_bench bench = {.rounds = 2, .comparisons = json_array(), .figures = json_object()};
  counted c = {.status = ESP_ERR_MEMORY};
  assert_int_equal(esp_bench_compare(&bench, "fails", &(esp_bench_case){"it", count_run, &c, 0, 0, 0}, 1, NULL),
                   ESP_ERR_MEMORY);
  assert_int_equal(json_array_size(bench.comparisons), 0);
  json_decref(bench.comparisons);
  json_decref(bench.figures);
}

static double flops_of(const esp_model_config *config, int64_t images, bool training) {
  esp_step_product products[ESP_MOST_STEP_PRODUCTS];
  double flops = 0;
  const int count = esp_step_products(config, images, training, products);
  for (int i = 0; i < count; i++) flops += esp_step_product_flops(&products[i]);
  return flops;
}

/* The products of a forward pass are the FLOPs that a model is said to cost; backward there are two of each, but for
 * the stem's, whose input is an image. */
static void a_step_has_all_products_of_the_model(void **state) {
  (void)state;
  esp_model_config configs[3] = {esp_model_defaults, esp_model_defaults, esp_model_defaults};
  configs[1].feed_forward.activation = ESP_ACTIVATION_GELU;
  configs[1].moe.top_k = 1;
  configs[2].layers_count = 1;
  for (int i = 0; i < 3; i++) {
    esp_model_config *c = &configs[i];
    c->image_height = c->image_width = 32, c->image_channels = 3, c->classes = 10;
    esp_model_cost cost;
    esp_config_cost(c, NULL, &cost);
    assert_true(flops_of(c, 8, false) == 8 * cost.flops);
    assert_true(flops_of(c, 8, true) == 8 * (3 * cost.flops - cost.stem_flops));
  }
}

/* Each way computes the same list. */
static void the_ways_agree(void **state) {
  (void)state;
  const esp_step_product products[] = {{"plain", 37, 21, 19, 1, false, false, 1, false},
                                       {"transposed", 33, 18, 40, 3, true, true, 1, false}};
  esp_product_stage stage;
  assert_int_equal(ESP_OK, esp_product_stage_set(&stage, products, 2));
  for (int i = 0; i < 2; i++) {
    const int64_t count = products[i].groups * products[i].m * products[i].n;
    double expected[3 * 33 * 18];
    for (int way = 0; way < ESP_WAYS; way++) {
      assert_int_equal(ESP_OK, esp_run_product(&(esp_product_run){&stage, &products[i], (esp_product_way)way}));
      for (int64_t j = 0; j < count && way == 0; j++) expected[j] = (double)stage.c[j];
      assert_close(esp_product_way_names[way], stage.c, expected, count, 1e-5, 1e-5);
      memset(stage.c, 0, (size_t)count * sizeof *stage.c);
    }
  }
  esp_product_stage_clear(&stage);
}

static void test_suites(void **state) {
  (void)state;
  for (const esp_bench_suite *s = esp_bench_suites; s->name; s++) {
    esp_bench bench = {.rounds = 1, .quick = true, .comparisons = json_array(), .figures = json_object()};
    assert_true(*s->help && s->run);
    const bool refused = strstr(s->name, "bf16") && esp_precision_check(ESP_BF16) != ESP_OK;
    assert_int_equal(refused ? ESP_ERR_CONFIG : ESP_OK, s->run(&bench));
    assert_true(refused || json_array_size(bench.comparisons) > 0);
    json_decref(bench.comparisons);
    json_decref(bench.figures);
  }
  assert_true(esp_bench_peak_memory() > 1000000);
}

static void threads_are_some_way_apart(void **state) {
  (void)state;
  esp_threads_set(1);
  assert_true(esp_bench_core_distance() == 0);
  esp_threads_set(2);
  const double distance = esp_bench_core_distance();
  assert_true(distance > 0.1 && distance < 1e9);
  esp_threads_set(0);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_compare),
                                     cmocka_unit_test(test_figures),
                                     cmocka_unit_test(test_median),
                                     cmocka_unit_test(test_failures),
                                     cmocka_unit_test(a_step_has_all_products_of_the_model),
                                     cmocka_unit_test(the_ways_agree),
                                     cmocka_unit_test(test_suites),
                                     cmocka_unit_test(threads_are_some_way_apart)};
  return cmocka_run_group_tests_name("bench", tests, NULL, NULL);
}
