/* label: medium */
/* The command compress: with and without training, interrupted, finetuned further, and what it refuses. */
#include "cli_program.h"

#define COMPRESS "compress finetuned --data synthetic:narrow --rank 3 "

static void assert_smaller(const json_t *result, const char *checkpoint) {
  assert_true(number(result, "parameters") < number(result, "parameters_before"));
  assert_true(number(result, "flops_per_image") < number(result, "flops_per_image_before"));
  assert_true(number(result, "mean_stable_rank_before") > 1);
  assert_true(number(result, "parameters") == parameters_of(checkpoint));
}

static void test_without_training(void **state) {
  (void)state;
  json_t *result = succeed_json(COMPRESS "--share 0.2 --zero-shot --calibration 64 --out small");
  assert_smaller(result, "small");
  assert_true(number(result, "rank") == 3 && number(result, "keep") == 0.2);
  assert_true(is_there("small/compression.csv"));
  json_decref(result);
  result = succeed_json("evaluate small --data synthetic:narrow");
  assert_true(number(result, "accuracy") >= 0);
  json_decref(result);
  json_decref(succeed_json("measure small --data synthetic:narrow --limit 64 --out measured"));
  succeed("finetune small --data synthetic:narrow --set training.epochs=0.1 --out further --quiet");
  assert_true(parameters_of("further") == parameters_of("small"));
  succeed("prune small --criterion random --drop 1 --out pruned");
  assert_true(parameters_of("pruned") < parameters_of("small"));
  refuse("prune small --criterion neuron-weight-norm --ratio 0.5 --out cut", 1, "are factored", "blocks.0.moe");
  refuse("compress small --data synthetic:narrow --rank 2 --out again", 1, "factored already", "blocks.0.moe");
}

static void test_with_training_and_a_teacher(void **state) {
  (void)state;
  json_t *result = succeed_json(COMPRESS "--teacher finetuned --set training.epochs=0.2 --out taught");
  assert_smaller(result, "taught");
  assert_non_null(json_object_get(result, "distillation"));
  assert_true(!is_there("taught/best.h5"));
  json_decref(result);
  json_t *inspected = succeed_json("inspect taught");
  const json_t *history = json_object_get(inspected, "history");
  const json_t *last = json_array_get(history, json_array_size(history) - 1);
  assert_string_equal(text(last, "action"), "compress");
  assert_string_equal(text(last, "frozen"), "*.router");
  assert_non_null(strstr(text(last, "detail"), "rank 3, keep 0.1"));
  json_decref(inspected);
}

/* The option wins over the model's settings, --set over the option. */
static void test_settings(void **state) {
  (void)state;
  json_t *result = succeed_json(COMPRESS "--set compression.rank=2 --exclude blocks.1.moe --zero-shot --out other");
  assert_true(number(result, "rank") == 2);
  assert_smaller(result, "other");
  json_decref(result);
}

static void test_refusals(void **state) {
  (void)state;
  static const refusal refusals[] = {
      {"compress finetuned --out new", 2, "--data is missing", ""},
      {COMPRESS "--share 2 --out new", 2, "compression.keep is 2", "[0, 1]"},
      {"compress finetuned --data synthetic:narrow --rank 999 --out new", 2, "compression.rank is 999", "at most"},
      {COMPRESS "--exclude ffn --out new", 2, "no mixture layer matches \"ffn\"", "blocks.0.moe"},
      {COMPRESS "--zero-shot --resume --out new", 2, "--zero-shot trains nothing", "--resume"},
      {COMPRESS "--calibration 10 --out new", 2, "--calibration is for --zero-shot", ""},
      {COMPRESS "--zero-shot --calibration 0 --out new", 2, "--calibration is \"0\"", "whole number"},
      {COMPRESS "--out finetuned", 2, "already holds a run", "--overwrite"},
      {COMPRESS "--overwrite --out finetuned", 2, "the model to be finetuned", "choose another --out"},
  };
  refuse_all(refusals, sizeof refusals / sizeof refusals[0]);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_without_training),
      cmocka_unit_test(test_with_training_and_a_teacher),
      cmocka_unit_test(test_settings),
      cmocka_unit_test(test_refusals),
  };
  return cmocka_run_group_tests_name("cli compress", tests, begin, end);
}
