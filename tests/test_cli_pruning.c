/* label: medium */
/* Pruning and its relatives through the program: by calibration, by saved plans, of neurons, merging, skipping, and the
 * studies beside them. None of them may change its input. */
#include "cli_program.h"

#define DATA "--data synthetic:narrow "
#define CALIBRATED DATA "--calibration 64 "

static uint64_t inputs[3];

static uint64_t input_bytes(int i) {
  static const char *const runs[] = {"pretrained", "finetuned", "pair"};
  return all_that_is_in(runs[i]);
}

/* Experts of a top-2 model can be skipped. */
static int begin_pruning(void **state) {
  if (begin(state) != 0) return -1;
  succeed(PRETRAIN "--out pair --set model.moe.top_k=2");
  for (int i = 0; i < 3; i++) inputs[i] = input_bytes(i);
  return 0;
}

static int check_inputs(void **state) {
  (void)state;
  for (int i = 0; i < 3; i++)
    if (input_bytes(i) != inputs[i]) fail_msg("input %d was changed", i);
  return 0;
}

static void evaluate_briefly(const char *checkpoint) {
  char line[512];
  snprintf(line, sizeof line, "evaluate %s " DATA "--limit 64", checkpoint);
  json_decref(succeed_json(line));
}

/* --- calibrated criteria ------------------------------------------------------------------------------------------ */

static void test_calibrated_criteria(void **state) {
  (void)state;
  static const char *const criteria[] = {"man", "S(0,1,1)", "frequency", "damage", "reconstruction"};
  for (int i = 0; i < 5; i++) {
    char line[512], target[32];
    snprintf(target, sizeof target, "calibrated.%d", i);
    snprintf(line, sizeof line, "prune finetuned --criterion %s " CALIBRATED "--drop 2 --out %s --json", criteria[i],
             target);
    succeed(line);
    evaluate_briefly(target);
    snprintf(line, sizeof line, "%s/plan.json", target);
    json_t *plan = json_load_file(line, 0, NULL);
    assert_non_null(plan);
    assert_string_equal(text(get(plan, "calibration"), "name"), "synthetic:narrow");
    assert_true(number(get(plan, "calibration"), "images") == 64);
    json_decref(plan);
  }
  json_t *m = succeed_json("inspect calibrated.0");
  assert_non_null(strstr(text(item(m, "history", 2), "detail"), "calibrated on 64 train images of synthetic:narrow"));
  assert_true(number(item(m, "layers", 0), "experts") == 2); /* the paper's mode: remove */
  json_decref(m);
}

/* A plan that was saved makes the same model again, and fits no other. */
static void test_saved_plans(void **state) {
  (void)state;
  static char bytes[1 << 16], changed[1 << 16];
  char one[32], other[32];
  succeed("prune finetuned --criterion man " CALIBRATED "--ratio 0.5 --out planned");
  succeed("prune finetuned --plan planned/plan.json --out replayed");
  digest_of("planned", one);
  digest_of("replayed", other);
  assert_string_equal(one, other);
  read_file("planned/plan.json", bytes, sizeof bytes);
  const char *layer = strstr(bytes, "blocks.1.moe");
  assert_non_null(layer);
  snprintf(changed, sizeof changed, "%.*sblocks.7.moe%s", (int)(layer - bytes), bytes, layer + strlen("blocks.1.moe"));
  write_file("unknown.json", changed, strlen(changed));
  static const refusal refusals[] = {
      {"prune pretrained --plan planned/plan.json --out new", 1, "plan", "made for"},
      {"prune finetuned --plan unknown.json --out new", 1, "blocks.7.moe", ""},
      {"prune finetuned --plan missing.json --out new", 1, "missing.json", ""},
      {"prune finetuned --plan planned/plan.json --ratio 0.5 --out new", 2, "--plan says already what goes", "--ratio"},
  };
  REFUSE_ALL(refusals);
}

static void test_overlap(void **state) {
  (void)state;
  json_t *o = succeed_json("overlap finetuned --data synthetic --data synthetic:narrow --calibration 64 --ratio 0.5 "
                           "--criterion man --criterion random --out overlaps");
  assert_int_equal(json_array_size(get(o, "criteria")), 2);
  for (size_t i = 0; i < 2; i++) {
    const double overlap = number(item(o, "criteria", i), "overlap");
    assert_true(overlap >= 0 && overlap <= 1);
    assert_int_equal(json_array_size(get(item(o, "criteria", i), "layers")), 2);
  }
  assert_string_equal(text(item(o, "criteria", 0), "criterion"), "man");
  json_decref(o);
  assert_true(is_there("overlaps/overlap.csv") && is_there("overlaps/overlap.json"));
  refuse("overlap finetuned --data synthetic --ratio 0.5", 2, "--data", "");
}

/* --- neurons ------------------------------------------------------------------------------------------------------ */

static void test_neurons(void **state) {
  (void)state;
  json_t *p = succeed_json("prune finetuned --criterion neuron-activation " CALIBRATED "--ratio 0.25 --out narrow");
  for (size_t i = 0; i < 2; i++)
    for (size_t e = 0; e < 4; e++)
      assert_int_equal((int)json_integer_value(json_array_get(get(item(p, "layers", i), "neurons"), e)), 6);
  json_decref(p);
  succeed("prune finetuned --criterion neuron-frequency " CALIBRATED "--ratio 0.5 --budget layer --out ragged");
  evaluate_briefly("ragged");
  json_t *m = succeed_json("inspect ragged");
  int left = 0;
  for (size_t e = 0; e < 4; e++)
    left += (int)json_integer_value(json_array_get(get(item(m, "layers", 1), "widths"), e));
  assert_int_equal(left, 16);
  json_decref(m);
  /* One image has four tokens, which choose at most four of eight experts. */
  succeed(PRETRAIN "--out eight --set model.moe.experts=8");
  succeed("prune eight --criterion neuron-activation --data synthetic --calibration 1 --ratio 0.25 --out once");
  assert_non_null(strstr(err, "experts saw no calibration token, so that their neurons all score 0 and go first"));
}

/* --- merging, skipping, the study of sparsity --------------------------------------------------------------------- */

static void test_merged_and_skipping(void **state) {
  (void)state;
  succeed("merge pair --data synthetic --calibration 64 --groups 3 --budget layer --out merged");
  json_t *m = succeed_json("inspect merged");
  const json_t *stored = get(item(m, "layers", 0), "stored");
  int places[3] = {0, 0, 0};
  for (size_t e = 0; e < 4; e++) places[json_integer_value(json_array_get(stored, e))]++;
  assert_int_equal(places[0] * places[1] * places[2], 2);
  json_decref(m);
  json_t *s = succeed_json("skip merged --data synthetic --calibration 64 --out skipping");
  m = succeed_json("inspect skipping");
  for (size_t i = 0; i < 2; i++) {
    assert_true(number(item(s, "layers", i), "beta") > 0);
    assert_true(number(item(m, "layers", i), "skip") == number(item(s, "layers", i), "beta"));
  }
  json_decref(m);
  json_decref(s);
  succeed("inspect skipping");
  assert_true(strstr(out, "merged, logical experts by stored one:") && strstr(out, "skips what has less than"));
  succeed("skip pair --beta 0.5 --out half.h5");
  static const refusal refusals[] = {
      {"skip pretrained --data synthetic --out new", 1, "top_k", ""},
      {"skip pair --out new", 2, "--data is missing", ""},
      {"skip pair --beta x --out new", 2, "--beta is \"x\"", ""},
  };
  REFUSE_ALL(refusals);
}

static void test_sparsified(void **state) {
  (void)state;
  json_t *s = succeed_json("measure finetuned " DATA "--sparsify --layers together --limit 64 --out study");
  json_t *kept = json_load_file("study/sparsify.json", 0, NULL);
  assert_int_equal(json_array_size(get(s, "points")), 4 * 12);
  for (size_t i = 0; i < 4 * 12; i++) { /* what is printed has 10 digits */
    const json_t *shown = item(s, "points", i), *same = item(kept, "points", i);
    assert_string_equal(text(shown, "order"), text(same, "order"));
    assert_true(fabs(number(shown, "loss") - number(same, "loss")) < 1e-8 && number(shown, "q") == number(same, "q"));
  }
  json_decref(s);
  json_decref(kept);
  assert_true(is_there("study/sparsify.csv") && is_there("study/sparsify.gp"));
}

static void test_data_of_another_shape(void **state) {
  (void)state;
#define OTHER "--data fashion-mnist "
  static const refusal refusals[] = {
      {"prune finetuned --criterion man " OTHER "--drop 1 --out new", 1, "calibration data", "28 x 28"},
      {"prune finetuned --criterion neuron-activation " OTHER "--ratio 0.5 --out new", 1, "calibration data",
       "28 x 28"},
      {"overlap finetuned " OTHER "--data synthetic --drop 1", 1, "calibration data", "28 x 28"},
      {"skip pair " OTHER "--out new", 1, "calibration data", "28 x 28"},
      {"merge finetuned " OTHER "--groups 2 --out new", 1, "calibration data", "28 x 28"},
      {"measure finetuned " OTHER "--sparsify --out new", 1, "32 x 32 x 3", "28 x 28"},
  };
  REFUSE_ALL(refusals);
}

#define TEST(name) cmocka_unit_test_teardown(name, check_inputs)

int main(void) {
  const struct CMUnitTest tests[] = {
      TEST(test_calibrated_criteria),
      TEST(test_saved_plans),
      TEST(test_overlap),
      TEST(test_neurons),
      TEST(test_merged_and_skipping),
      TEST(test_sparsified),
      TEST(test_data_of_another_shape),
  };
  return cmocka_run_group_tests_name("cli pruning", tests, begin_pruning, end);
}
