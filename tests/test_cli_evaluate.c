/* label: short */
/* espalier evaluate: what it says of a model's predictions, computed once more from the logits that it wrote, and the
 * tables beside the run. */
#include "cli_program.h"

#include <espalier/checkpoint.h>

enum { CLASSES = 20, IMAGES = 2000, BINS = 15 };

static double logits[IMAGES][CLASSES];
static int labels[IMAGES];

static int read_logits(const char *path) {
  static char csv[1 << 20];
  read_file(path, csv, sizeof csv);
  int count = 0;
  for (char *line = strchr(csv, '\n') + 1; *line && count < IMAGES; count++) {
    labels[count] = (int)strtol(strchr(line, ',') + 1, &line, 10);
    for (int c = 0; c < CLASSES; c++) logits[count][c] = strtod(line + 1, &line);
    line++;
  }
  return count;
}

/* How many classes come before class c in the order of image i. */
static int rank_of(int i, int c) {
  int rank = 0;
  for (int o = 0; o < CLASSES; o++) rank += logits[i][o] > logits[i][c] || (o < c && logits[i][o] >= logits[i][c]);
  return rank;
}

static int prediction_of(int i) {
  for (int c = 0; c < CLASSES; c++)
    if (rank_of(i, c) == 0) return c;
  fail_msg("image %d has no largest logit", i);
  return -1;
}

static double probability_of(int i, int c) {
  double sum = 0;
  for (int o = 0; o < CLASSES; o++) sum += exp(logits[i][o]);
  return exp(logits[i][c]) / sum;
}

/* Mean distance between how often the images of a bin are right and how sure they are. */
static double naive_calibration_error(int images) {
  double error = 0;
  for (int b = 0; b < BINS; b++) {
    double sure = 0, right = 0;
    int count = 0;
    for (int i = 0; i < images; i++) {
      const int predicted = prediction_of(i);
      const double p = probability_of(i, predicted);
      if (!(p > (double)b / BINS && p <= (double)(b + 1) / BINS)) continue;
      sure += p;
      right += predicted == labels[i];
      count++;
    }
    if (count) error += (double)count / images * fabs(right / count - sure / count);
  }
  return error;
}

static void assert_near(double got, double expected, double apart) {
  if (!(fabs(got - expected) <= apart)) fail_msg("%.12g instead of %.12g", got, expected);
}

static void check_against_logits(const json_t *e, int images) {
  static int confusion[CLASSES][CLASSES], of_class[CLASSES];
  memset(confusion, 0, sizeof confusion);
  memset(of_class, 0, sizeof of_class);
  int in_top = 0, right = 0;
  for (int i = 0; i < images; i++) {
    confusion[labels[i]][prediction_of(i)]++;
    of_class[labels[i]]++;
    in_top += rank_of(i, labels[i]) < 5;
    right += rank_of(i, labels[i]) == 0;
  }
  assert_near(number(e, "accuracy"), (double)right / images, 1e-9);
  assert_near(number(e, "top5_accuracy"), (double)in_top / images, 1e-9);
  assert_near(number(e, "calibration_error"), naive_calibration_error(images), 1e-6);
  for (int label = 0; label < CLASSES; label++) {
    const json_t *row = item(e, "confusion", (size_t)label), *class = item(e, "per_class", (size_t)label);
    for (int c = 0; c < CLASSES; c++)
      assert_int_equal(json_integer_value(json_array_get(row, (size_t)c)), confusion[label][c]);
    assert_int_equal(number(class, "images"), of_class[label]);
    assert_near(number(class, "recall"), (double)confusion[label][label] / of_class[label], 1e-9);
  }
}

static void what_is_said_follows_from_the_logits(void **state) {
  (void)state;
  json_t *e = succeed_json("evaluate pretrained --data synthetic --limit 600 --logits l.csv");
  assert_int_equal(read_logits("l.csv"), 600);
  check_against_logits(e, 600);
  assert_string_equal(text(item(e, "per_class", 1), "name"), "ring");
  json_decref(e);
}

static void an_ensemble_is_judged_by_its_prediction(void **state) {
  (void)state;
  succeed(PRETRAIN "--out ensemble --set model.layers=[moe,moe] --set model.moe.members=2");
  json_t *e = succeed_json("evaluate ensemble --data synthetic --limit 300 --logits l.csv");
  assert_int_equal(read_logits("l.csv"), 300);
  check_against_logits(e, 300);
  json_decref(e);
}

static void mirror_images_have_their_own_counts(void **state) {
  (void)state;
  json_t *e = succeed_json("evaluate pretrained --data synthetic --limit 600 --flip");
  double right = 0;
  for (size_t c = 0; c < CLASSES; c++)
    right += (double)json_integer_value(json_array_get(item(e, "flip_confusion", c), c));
  assert_near(number(e, "flip_accuracy"), right / 600, 1e-9);
  assert_false(json_equal(get(e, "confusion"), get(e, "flip_confusion")));
  assert_true(number(e, "flip_top5_accuracy") >= number(e, "flip_accuracy"));
  json_decref(e);
}

static int lines_of(const char *path) {
  static char csv[1 << 16];
  read_file(path, csv, sizeof csv);
  int lines = 0;
  for (const char *at = csv; (at = strchr(at, '\n')); at++) lines++;
  return lines;
}

/* Of the whole split beside the run, of a part only where it is asked for. */
static void tables_are_beside_the_run(void **state) {
  (void)state;
  succeed("evaluate finetuned --data synthetic:narrow --limit 20");
  assert_false(is_there("finetuned/evaluated"));
  json_t *e = succeed_json("evaluate finetuned --data synthetic:narrow --split validation --flip");
  assert_true(json_is_null(get(e, "top5_accuracy"))); /* of 5 classes */
  assert_int_equal(lines_of("finetuned/evaluated/validation/classes.csv"), 6);
  assert_int_equal(lines_of("finetuned/evaluated/validation/confusion.csv"), 6);
  assert_int_equal(lines_of("finetuned/evaluated/validation/calibration.csv"), BINS + 1);
  json_t *kept = json_load_file("finetuned/evaluated/validation/evaluation.json", 0, NULL);
  assert_true(json_equal(get(kept, "confusion"), get(e, "confusion")));
  json_decref(kept);
  json_decref(e);
  assert_true(is_there("finetuned/evaluated/validation/flip_confusion.csv"));
  succeed("evaluate finetuned --data synthetic:narrow --split validation");
  assert_non_null(strstr(out, "calibration error"));
  assert_null(strstr(out, "top-5"));
  assert_false(is_there("finetuned/evaluated/validation/flip_confusion.csv")); /* it would be of another evaluation */
  succeed("evaluate finetuned/last.h5 --data synthetic:narrow --limit 20 --out some/where");
  assert_int_equal(lines_of("some/where/classes.csv"), 6);
}

/* finetuned/last.h5 as programs wrote it that held nothing out: its settings have no section on data. */
static void write_old_checkpoint(const char *path) {
  esp_model *model;
  esp_checkpoint_info info;
  assert_int_equal(esp_checkpoint_load("finetuned/last.h5", &model, &info), ESP_OK);
  char *section = strstr(info.run_config, "data:\n");
  assert_non_null(section);
  const char *rest = strstr(section, "\nmodel:");
  assert_non_null(rest);
  memmove(section, rest + 1, strlen(rest + 1) + 1);
  assert_int_equal(esp_checkpoint_save(path, model, NULL, &info, 0), ESP_OK);
  esp_model_free(model);
  esp_checkpoint_info_clear(&info);
}

static double images_of(const char *line) {
  json_t *e = succeed_json(line);
  const double images = number(e, "examples");
  json_decref(e);
  return images;
}

/* It may have learnt from every training image, so that none of them can validate it. */
static void nothing_is_held_out_of_what_was_trained_on(void **state) {
  (void)state;
  write_old_checkpoint("old.h5");
  assert_int_equal(images_of("evaluate old.h5 --data synthetic:narrow --split train"), 5000);
  assert_int_equal(images_of("evaluate finetuned/last.h5 --data synthetic:narrow --split train"), 4750);
  assert_int_equal(images_of("evaluate old.h5 --data synthetic:narrow --split validation --validation 0.1"), 500);
  json_t *c = succeed_json("compress old.h5 --data synthetic:narrow --out compressed --zero-shot --rank 2 "
                           "--calibration 64");
  assert_true(number(c, "validation_share") == 0 && number(c, "validation_examples") == 0);
  json_decref(c);
  static const refusal refusals[] = {
      {"evaluate old.h5 --data synthetic:narrow --split validation", 2, "old.h5 says, nothing was held out",
       "--validation SHARE"},
      {"sweep finetuned/last.h5 old.h5 --data synthetic:narrow --out new", 2, "finetuned/last.h5 held out 0.05",
       "and old.h5 0, so that one of them was trained on"},
  };
  REFUSE_ALL(refusals);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(what_is_said_follows_from_the_logits), cmocka_unit_test(an_ensemble_is_judged_by_its_prediction),
      cmocka_unit_test(mirror_images_have_their_own_counts), cmocka_unit_test(tables_are_beside_the_run),
      cmocka_unit_test(nothing_is_held_out_of_what_was_trained_on)};
  return cmocka_run_group_tests(tests, begin, end);
}
