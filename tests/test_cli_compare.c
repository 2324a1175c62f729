/* label: medium */
/* espalier compare: runs that are done are not done again, one that was stopped goes on, and what cannot be matched is
 * refused before anything is trained. */
#include "cli_program.h"

#define COMPARE "compare small.yaml --data synthetic --out compared --seeds 1,2 --variants moe,mone-half-selected"

static struct timespec time_of(const char *path) {
  struct stat status;
  assert_int_equal(stat(path, &status), 0);
  return status.st_mtim;
}

static bool same_time(struct timespec a, struct timespec b) { return a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec; }

static void test_compare(void **state) {
  (void)state;
  json_t *c = succeed_json(COMPARE);
  assert_int_equal(json_array_size(get(c, "runs")), 4);
  assert_int_equal(json_array_size(get(c, "variants")), 2);
  const json_t *mone = item(c, "variants", 1);
  assert_string_equal(text(mone, "variant"), "mone-half-selected");
  assert_true(number(mone, "neurons") == 8 && number(mone, "neurons_kept") == 4 && number(mone, "pairs") == 2);
  assert_true(json_is_real(get(get(mone, "accuracy"), "difference_deviation")));
  for (size_t i = 0; i < 4; i++) {
    const json_t *run = item(c, "runs", i);
    assert_true(number(run, "accuracy") >= 0 && number(run, "validation_accuracy") >= 0 &&
                number(run, "near_zero_0.1") > 0);
    assert_true(json_is_real(get(run, "milliseconds_per_image")) == (i < 2));
  }
  static const char *const files[] = {"compare.csv", "compare_summary.csv", "compare.json", "compare.gp"};
  char path[64];
  for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
    snprintf(path, sizeof path, "compared/%s", files[i]);
    if (!is_there(path)) fail_msg("%s is missing", path);
  }
  json_decref(c);
  /* A run is one like any other, the baseline's as if pretrained alone. */
  succeed("pretrain small.yaml --data synthetic --out alone --quiet --seed 2 --set model.layers=[moe,moe]");
  char one[32], other[32];
  digest_of("compared/moe-2", one);
  digest_of("alone", other);
  assert_string_equal(one, other);
}

/* As if it had been stopped before the last run's results were there. */
static void test_goes_on(void **state) {
  (void)state;
  json_t *first = json_load_file("compared/compare.json", 0, NULL);
  const struct timespec done = time_of("compared/moe-1/last.h5"), open = time_of("compared/moe-2/last.h5");
  assert_int_equal(unlink("compared/moe-2/results.json"), 0);
  json_t *second = succeed_json(COMPARE);
  assert_true(same_time(done, time_of("compared/moe-1/last.h5")));
  assert_false(same_time(open, time_of("compared/moe-2/last.h5")));
  for (size_t i = 0; i < 4; i++)
    assert_true(number(item(first, "runs", i), "accuracy") == number(item(second, "runs", i), "accuracy"));
  json_decref(first);
  json_decref(second);
}

static void test_refusals(void **state) {
  (void)state;
  static const refusal refusals[] = {
      {"compare small.yaml --data synthetic --out new --set model.feed_forward.activation=gelu", 2,
       "mone-half-full cannot be matched", "two matrices"},
      {"compare small.yaml --data synthetic --out new --variants moe,mone-equal-selected --set model.moe.top_k=4", 2,
       "cannot be matched", "model.moe.experts = 4"},
      {"compare small.yaml --data synthetic --out new --variants moe,mone-half", 2, "no variant \"mone-half\"",
       "did you mean"},
      {"compare small.yaml --data synthetic --out new --variants moe,moe", 2, "--variants names moe twice", ""},
      {"compare small.yaml --data synthetic --out new --seeds 1,x --variants moe", 2, "--seeds is \"x\"", "whole"},
      {"compare small.yaml --data synthetic --out new --seeds 1,1 --variants moe", 2, "--seeds names 1 twice", ""},
      {"compare small.yaml --data synthetic --out new --seed 1", 2, "no option \"--seed\"",
       "did you mean \"--seeds\"?"},
      {"compare small.yaml --data synthetic --variants moe", 2, "--out is missing", "folder"},
      {COMPARE " --set training.batch=32 --quiet", 2, "compared/moe-1", "batch: 32"},
  };
  REFUSE_ALL(refusals);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_compare), cmocka_unit_test(test_goes_on),
                                     cmocka_unit_test(test_refusals)};
  return cmocka_run_group_tests(tests, begin, end);
}
