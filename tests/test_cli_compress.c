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

/* Interrupted while rows go, resumed: the same model as without. */
static void test_interrupted(void **state) {
  (void)state;
#define LONG \
  COMPRESS "--set training.epochs=1 --set training.evaluate_every=0.1 --set training.log_every=1 --quiet --out "
  char digest[32], whole[32];
  succeed(LONG "whole");
  const pid_t child = spawn(LONG "stopped", in_base("out"));
  wait_for("stopped/metrics.csv", 1000);
  kill(child, SIGINT);
  const int code = finish(child);
  if (code != 1 || !strstr(err, "--resume")) fail_msg("exit code %d: %s", code, err);
  assert_true(is_there("stopped/last.h5") && !is_there("stopped/results.json"));
  succeed(LONG "stopped --resume");
  digest_of("whole", whole);
  digest_of("stopped", digest);
  assert_string_equal(digest, whole);
}

/* A run that is done says so, with the results it had, and changes nothing. */
static void test_finished(void **state) {
  (void)state;
#define DONE COMPRESS "--teacher finetuned --set training.epochs=0.1 --out finished"
  static char line[TEXT_SIZE];
  json_t *first = succeed_json(DONE);
  const uint64_t before = all_that_is_in(".");
  json_t *again = succeed_json(DONE " --resume");
  assert_true(json_equal(first, again));
  json_decref(again);
  succeed(DONE " --resume --quiet");
  snprintf(line, sizeof line, "%s", out);
  assert_non_null(strstr(line, "compress: test accuracy"));
  succeed(DONE " --resume");
  assert_string_equal(out, line);
  assert_non_null(strstr(err, "finished is finished: there is nothing to resume"));
  assert_true(all_that_is_in(".") == before);
  refuse(DONE " --resume --set training.batch=32", 2, "keeps its settings", "`batch: 32`");
  /* Killed before the results were written: they are measured again, of the checkpoint that is there. */
  unlink("finished/results.json");
  again = succeed_json(DONE " --resume");
  assert_true(is_there("finished/results.json"));
  static const char *const kept[] = {"digest",     "accuracy",        "loss", "validation_accuracy",
                                     "parameters", "mean_stable_rank"};
  for (size_t i = 0; i < sizeof kept / sizeof kept[0]; i++)
    assert_true(get(first, kept[i]) && json_equal(get(first, kept[i]), get(again, kept[i])));
  json_decref(first);
  json_decref(again);
}

/* The order of arXiv 2310.01334: merge, finetune what was merged, factor and prune; the unmerged model teaches. */
static void test_merge_then_compress(void **state) {
  (void)state;
#define TAUGHT "--data synthetic:narrow --teacher finetuned --quiet --set training.epochs=0.1 "
  succeed("merge finetuned --data synthetic:narrow --groups 2 --budget layer --calibration 64 --out merged");
  succeed("finetune merged " TAUGHT "--set training.freeze=blocks.*.router --out merged-tuned");
  succeed("compress merged-tuned " TAUGHT "--rank 2 --out both");
  assert_true(parameters_of("both") < parameters_of("merged-tuned"));
  assert_true(parameters_of("merged-tuned") == parameters_of("merged"));
  assert_true(parameters_of("merged") < parameters_of("finetuned"));
  json_t *m = succeed_json("inspect both");
  static const char *const actions[] = {"pretrain", "finetune", "merge", "finetune", "compress"};
  for (size_t i = 0; i < 5; i++) assert_string_equal(text(item(m, "history", i), "action"), actions[i]);
  for (size_t i = 0; i < 2; i++) {
    const json_t *layer = item(m, "layers", i);
    assert_true(number(layer, "experts") == 4 && number(layer, "stored_experts") == 2);
    assert_true(number(layer, "rank") == 2 && number(layer, "skip") == 0);
    assert_int_equal(json_array_size(get(layer, "stored")), 4);
    assert_int_equal(json_array_size(get(get(layer, "sparse_rows"), "gate_up")), 2);
    assert_int_equal(json_array_size(get(get(layer, "sparse_rows"), "down")), 2);
  }
  json_decref(m);
  succeed("inspect both");
  if (!strstr(out, "merged, logical experts by stored one: 0:") ||
      !strstr(out, "factored, rank 2, rows of S: gate and up"))
    fail_msg("%s", out);
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
      cmocka_unit_test(test_without_training), cmocka_unit_test(test_with_training_and_a_teacher),
      cmocka_unit_test(test_settings),         cmocka_unit_test(test_interrupted),
      cmocka_unit_test(test_finished),         cmocka_unit_test(test_merge_then_compress),
      cmocka_unit_test(test_refusals),
  };
  return cmocka_run_group_tests_name("cli compress", tests, begin, end);
}
