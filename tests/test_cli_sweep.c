/* label: medium */
/* Sweeps through the program: what is in the grid, whose numbers they are, what is done again and what is refused. */
#include "cli_program.h"

#define SWEEP \
  "sweep finetuned --data synthetic:narrow --reference pretrained --limit 100 --calibration 64 --modes zero "
#define ALL_MODES "sweep finetuned --data synthetic:narrow --reference pretrained --limit 100 --calibration 64 "

static const json_t *row_of(const json_t *sweep, const char *method, double ratio) {
  size_t i;
  json_t *row;
  json_array_foreach(get(sweep, "summary"), i,
                     row) if (strcmp(text(row, "method"), method) == 0 && number(row, "ratio") == ratio) return row;
  fail_msg("no row of %s at ratio %g", method, ratio);
  return NULL;
}

static int lines_of(const char *path) {
  static char bytes[1 << 20];
  read_file(path, bytes, sizeof bytes);
  int lines = 0;
  for (const char *at = bytes; (at = strchr(at, '\n')); at++) lines++;
  return lines;
}

/* Every line has as many columns as the first; none of the texts holds a comma. */
static void check_columns(const char *path) {
  static char bytes[1 << 20];
  read_file(path, bytes, sizeof bytes);
  int first = -1;
  for (char *rest = NULL, *line = strtok_r(bytes, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
    int commas = 0;
    for (const char *at = line; *at; at++) commas += *at == ',';
    if (first < 0) first = commas;
    if (commas != first) fail_msg("%s: %d commas where the first line has %d: %s", path, commas, first, line);
  }
}

/* The names in a folder, the newest call's first `most`. */
static int names_in(const char *path, char names[][256], int most) {
  DIR *folder = opendir(path);
  int count = 0;
  assert_non_null(folder);
  for (struct dirent *entry; (entry = readdir(folder)) && count < most;)
    if (entry->d_name[0] != '.') snprintf(names[count++], 256, "%s", entry->d_name);
  closedir(folder);
  return count;
}

/* The rows' numbers are those of the other commands, for the same model. */
static void test_numbers(void **state) {
  (void)state;
  json_t *sweep = succeed_json(SWEEP "--out numbers --methods router-norm-change --ratios 0.5 --seeds 3,4 --keep");
  assert_int_equal((int)number(sweep, "cells"), 2 + 2 + 2);
  json_t *plain = succeed_json("evaluate finetuned --data synthetic:narrow --limit 100");
  const json_t *unpruned = row_of(sweep, "unpruned", 0);
  assert_true(number(unpruned, "accuracy") == number(plain, "accuracy"));
  assert_true(number(unpruned, "parameters") == parameters_of("finetuned"));
  succeed("prune finetuned --criterion router-norm-change --reference pretrained --ratio 0.5 --out half.h5");
  json_t *pruned = succeed_json("evaluate half.h5 --data synthetic:narrow --limit 100");
  const json_t *half = row_of(sweep, "router-norm-change", 0.5);
  assert_true(number(half, "accuracy") == number(pruned, "accuracy"));
  assert_true(number(half, "loss") == number(pruned, "loss"));
  assert_true(number(half, "parameters") == parameters_of("half.h5"));
  assert_true(number(half, "accuracy_spread") == 0);
  assert_true(number(half, "bytes") < number(unpruned, "bytes"));
  assert_true(number(half, "memory") < number(unpruned, "memory"));
  assert_true(number(half, "flops_per_image") < number(unpruned, "flops_per_image"));
  assert_true(json_is_null(get(half, "tuned_accuracy")));
  check_columns("numbers/cells.csv");
  check_columns("numbers/summary.csv");
  assert_true(is_there("numbers/sweep.gp"));
  assert_int_equal(lines_of("numbers/cells.csv"), 1 + 6);
  assert_int_equal(lines_of("numbers/summary.csv"), 1 + 3);
  char digest[32], kept[32], path[300], names[8][256];
  digest_of("half.h5", digest);
  const int models = names_in("numbers/models", names, 8);
  bool found = false;
  for (int i = 0; i < models; i++) {
    snprintf(path, sizeof path, "numbers/models/%.255s", names[i]);
    digest_of(path, kept);
    found = found || strcmp(kept, digest) == 0;
  }
  assert_true(found);
  json_decref(sweep);
  json_decref(plain);
  json_decref(pruned);
}

/* Random comes out otherwise with another seed, and every rank is one more than the number of better rows. */
static void test_ranks(void **state) {
  (void)state;
  json_t *sweep = succeed_json(SWEEP "--out ranks --methods man,router-norm-change --ratios 0.25,0.5 --seeds 1,2,3");
  size_t i, n;
  json_t *row, *other;
  json_array_foreach(get(sweep, "summary"), i, row) {
    int better = 0;
    json_array_foreach(get(sweep, "summary"), n, other) better +=
        number(other, "ratio") == number(row, "ratio") &&
        number(other, "validation_accuracy") > number(row, "validation_accuracy") + 1e-9;
    assert_int_equal((int)number(row, "rank"), 1 + better);
  }
  assert_true(number(row_of(sweep, "random", 0.5), "accuracy_spread") > 0);
  json_decref(sweep);
}

/* After a finetuning whose seed is the cell's; a cell that is there is not done again, one that is gone is, alike. */
static void test_resumed(void **state) {
  (void)state;
  static const char line[] = SWEEP "--out again --methods router-norm-change --ratios 0.5 --seeds 1,2 --finetune 0.02";
  json_t *first = succeed_json(line);
  const json_t *half = row_of(first, "router-norm-change", 0.5);
  assert_true(number(half, "tuned_accuracy") > 0 && number(half, "tuned_spread") >= 0);
  const uint64_t before = all_that_is_in("again/cells");
  json_t *second = succeed_json(line);
  assert_true(all_that_is_in("again/cells") == before);
  assert_true(json_equal(first, second));
  char names[8][256], path[300];
  assert_int_equal(names_in("again/cells", names, 8), 6);
  for (int i = 0; i < 6; i += 2) {
    snprintf(path, sizeof path, "again/cells/%.255s", names[i]);
    assert_int_equal(unlink(path), 0);
  }
  json_t *third = succeed_json(line);
  assert_int_equal(names_in("again/cells", names, 8), 6);
  static const char *const keys[] = {"accuracy", "tuned_accuracy", "tuned_loss", "tuned_spread", "parameters"};
  for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++)
    assert_true(number(row_of(third, "router-norm-change", 0.5), keys[i]) == number(half, keys[i]));
  assert_false(is_there("again/work"));
  json_decref(first);
  json_decref(second);
  json_decref(third);
}

static void finetuning_after_pruning_helps(void **state) {
  (void)state;
  json_t *sweep = succeed_json(
      "sweep finetuned --data synthetic:narrow --limit 500 --methods random --modes zero --ratios 0.5 --seeds 1,2 "
      "--finetune 0.3 --out tuned");
  const json_t *row = row_of(sweep, "random", 0.5);
  if (number(row, "tuned_accuracy") < number(row, "accuracy"))
    fail_msg("accuracy %g before, %g after", number(row, "accuracy"), number(row, "tuned_accuracy"));
  assert_true(number(row, "tuned_loss") < number(row, "loss"));
  json_decref(sweep);
}

/* Ratios that make the same model are computed once. */
static void test_shared(void **state) {
  (void)state;
  static char bytes[1 << 16];
  succeed(SWEEP "--out shared --methods router-norm-change --ratios 0.5,0.51 --seeds 1 --quiet");
  read_file("shared/cells.csv", bytes, sizeof bytes);
  char *own = strstr(bytes, "\"router-norm-change\",zero,none,none,0.5,1,"),
       *other = strstr(bytes, "\"router-norm-change\",zero,none,none,0.51,1,");
  assert_true(own && other);
  assert_null(memchr(strstr(own, ",1,"), '-', strcspn(strstr(own, ",1,"), "\n")));
  assert_non_null(strstr(other, "-router-norm-change-zero-0.5-1-none,"));
}

/* Methods that look at images are calibrated on each set; the same pass as `prune`'s serves all of them. */
static void test_calibrated(void **state) {
  (void)state;
  json_t *sweep =
      succeed_json(SWEEP "--out sets --methods frequency,S(1,0,1) --ratios 0.5 --seeds 5,6 --calibrate-on synthetic");
  assert_int_equal((int)number(sweep, "cells"), 2 + 2 + 2 * 2 * 2);
  int matched = 0, mismatched = 0;
  size_t i;
  json_t *row;
  json_array_foreach(get(sweep, "summary"), i, row) {
    matched += strcmp(text(row, "calibration"), "matched") == 0;
    mismatched += strcmp(text(row, "calibration"), "synthetic") == 0;
  }
  assert_int_equal(matched, 2);
  assert_int_equal(mismatched, 2);
  json_decref(sweep);
}

static const json_t *row_in_form(const json_t *sweep, const char *method, const char *mode, const char *gates) {
  size_t i;
  json_t *row, *found = NULL;
  json_array_foreach(get(sweep, "summary"), i, row) {
    const bool is_it = strcmp(text(row, "method"), method) == 0 && strcmp(text(row, "mode"), mode) == 0 &&
                       strcmp(text(row, "gates"), gates) == 0;
    if (is_it && found) fail_msg("two rows of %s in mode %s with gates %s", method, mode, gates);
    if (is_it) found = row;
  }
  if (!found) fail_msg("no row of %s in mode %s with gates %s", method, mode, gates);
  return found;
}

/* The row's numbers are those of `prune` in that form. */
static void expect_as_pruned(const json_t *row, const char *options) {
  char line[256];
  snprintf(line, sizeof line, "prune finetuned --ratio 0.5 --seed 1 --out form.h5 --overwrite %s", options);
  succeed(line);
  json_t *pruned = succeed_json("evaluate form.h5 --data synthetic:narrow --limit 100");
  if (number(row, "loss") != number(pruned, "loss") || number(row, "parameters") != parameters_of("form.h5"))
    fail_msg("%s: loss %.9g in the sweep, %.9g by itself", options, number(row, "loss"), number(pruned, "loss"));
  json_decref(pruned);
}

/* Every criterion prunes in both modes unless told otherwise, random too, and says in which. */
static void test_modes_and_gates(void **state) {
  (void)state;
  json_t *sweep = succeed_json(ALL_MODES "--out forms --methods reap,m-smoe,reconstruction,reconstruction-greedy "
                                         "--gates normalised,model --ratios 0.5 --seeds 1");
  assert_int_equal((int)number(sweep, "cells"), 1 + 2 + 4 + 1 + 2 + 2);
  expect_as_pruned(row_in_form(sweep, "random", "zero", "none"), "--criterion random --mode zero");
  expect_as_pruned(row_in_form(sweep, "random", "remove", "none"), "--criterion random --mode remove");
  static const char *const gates[] = {"normalised", "model"};
  for (int i = 0; i < 2; i++) {
    char options[160];
    snprintf(options, sizeof options,
             "--criterion reap --data synthetic:narrow --calibration 64 --mode zero --gates %s", gates[i]);
    expect_as_pruned(row_in_form(sweep, "reap", "zero", gates[i]), options);
  }
  (void)row_in_form(sweep, "m-smoe", "none", "none");
  assert_true(number(row_in_form(sweep, "reconstruction", "remove", "none"), "greedy_layers") == 0);
  assert_true(number(row_in_form(sweep, "reconstruction-greedy", "remove", "none"), "greedy_layers") > 0);
  check_columns("forms/cells.csv");
  check_columns("forms/summary.csv");
  assert_true(is_there("forms/sweep-zero.gp") && is_there("forms/sweep-remove.gp"));
  json_decref(sweep);
}

static void test_refused(void **state) {
  (void)state;
  succeed(SWEEP "--out kept --methods random --ratios 0.5 --seeds 1 --quiet");
  static const refusal refusals[] = {
      {"sweep finetuned --data synthetic:narrow --reference pretrained --limit 90 --calibration 64 --out kept", 1,
       "test_images is 100", "now it is 90"},
      {SWEEP "--out kept --finetune 0.1", 1, "finetune_epochs is 0", "now it is 0.1"},
      {"sweep finetuned --data synthetic:narrow --limit 100 --calibration 64 --out kept --methods random", 1,
       "reference is", "another folder"},
      {SWEEP "--out new --methods rondom", 2, "no method \"rondom\"", "did you mean \"random\"?"},
      {SWEEP "--out new --ratios 0", 2, "a ratio of the sweep is 0", "between 0 and 1"},
      {SWEEP "--out new --ratios 0.5,x", 2, "--ratios is \"x\"", "number from 0 to 1"},
      {SWEEP "--out new --seeds ,", 2, "--seeds is \",\"", "1 to 16 items"},
      {ALL_MODES "--out new --modes zero,zero", 2, "--modes names zero twice", ""},
      {ALL_MODES "--out new --modes none", 2, "--modes: there is no mode \"none\"", "remove"},
      {SWEEP "--out new --gates raw", 2, "--gates is \"raw\"", "normalised"},
      {SWEEP "--out new --methods mc-smoe", 2, "no method \"mc-smoe\"", "m-smoe"},
      {SWEEP "--methods random", 2, "--out is missing", "runs/sweep"},
      {"sweep finetuned --data synthetic --out new", 1, "finetuned/last.h5", "the model knows 5 classes"},
      {"sweep finetuned --data synthetic:narrow --out new --methods router-norm-change", 2, "router-norm-change",
       "--reference"},
      {SWEEP "--out new --calibrate-on fashion-mnist:/nowhere", 1, "/nowhere", ""},
  };
  REFUSE_ALL(refusals);
  succeed(SWEEP "--out kept --methods router-norm-change --ratios 0.5,0.75 --seeds 1 --quiet");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_numbers),         cmocka_unit_test(test_ranks),
      cmocka_unit_test(test_resumed),         cmocka_unit_test(finetuning_after_pruning_helps),
      cmocka_unit_test(test_shared),          cmocka_unit_test(test_calibrated),
      cmocka_unit_test(test_modes_and_gates), cmocka_unit_test(test_refused),
  };
  return cmocka_run_group_tests_name("sweep", tests, begin, end);
}
