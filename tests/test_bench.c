/* label: medium */
/* The frame of the benchmarks: what it reports of cases whose cost is known. Times themselves are never asserted. */
#include "testing.h"

#include <espalier/bench.h>

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
  esp_bench bench = {.rounds = 4, .comparisons = json_array()};
  counted first = {0}, second = {0};
  const esp_bench_case cases[] = {{"first", count_run, &first, 1e6, 1}, {"second", count_run, &second, 0, 0.25}};
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
  json_decref(bench.comparisons);
}

static void test_failures(void **state) {
  (void)state;
  esp_bench bench = {.rounds = 2, .comparisons = json_array()};
  counted c = {.status = ESP_ERR_MEMORY};
  assert_int_equal(esp_bench_compare(&bench, "fails", &(esp_bench_case){"it", count_run, &c, 0, 0}, 1, NULL),
                   ESP_ERR_MEMORY);
  assert_int_equal(json_array_size(bench.comparisons), 0);
  json_decref(bench.comparisons);
}

static void test_suites(void **state) {
  (void)state;
  for (const esp_bench_suite *s = esp_bench_suites; s->name; s++) {
    esp_bench bench = {.rounds = 1, .quick = true, .comparisons = json_array()};
    assert_true(*s->help && s->run);
    assert_int_equal(ESP_OK, s->run(&bench));
    assert_true(json_array_size(bench.comparisons) > 0);
    json_decref(bench.comparisons);
  }
  assert_true(esp_bench_peak_memory() > 1000000);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_compare), cmocka_unit_test(test_failures),
                                     cmocka_unit_test(test_suites)};
  return cmocka_run_group_tests_name("bench", tests, NULL, NULL);
}
