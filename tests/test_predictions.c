/* label: short */
/* What predictions say by class, rank and confidence, against sums by hand over logits made for it. */
#include "testing.h"

#include <espalier/train.h>

static esp_tensor leaf(esp_real *values, int64_t rows, int64_t columns) {
  return (esp_tensor){.data = values, .rank = 2, .shape = {rows, columns}};
}

static void add(esp_predictions *p, esp_real *logits, int64_t rows, const int32_t *labels) {
  const esp_tensor tensor = leaf(logits, rows, p->classes);
  esp_predictions_add(p, &tensor, labels);
}

/* Probabilities (1/2, 1/4, 1/4), (1/4, 1/4, 1/2), (1/10, 8/10, 1/10) and, tied, (2/5, 2/5, 1/5): the lower class. */
static void counts_by_hand(void **state) {
  (void)state;
  esp_real two = (esp_real)log(2.0), eight = (esp_real)log(8.0);
  esp_real logits[] = {two, 0, 0, 5, 5, 5 + two, 0, eight, 0, two - 3, two - 3, -3};
  const int32_t labels[] = {0, 0, 1, 1};
  esp_predictions p;
  assert_int_equal(esp_predictions_start(&p, 3, NULL), ESP_OK);
  add(&p, logits, 1, labels);
  add(&p, logits + 3, 3, labels + 1);
  const int64_t confusion[] = {1, 0, 1, 1, 1, 0, 0, 0, 0};
  for (int i = 0; i < 9; i++) assert_int_equal(p.confusion[i], confusion[i]);
  assert_true(esp_class_accuracy(&p, 0) == 0.5 && esp_class_accuracy(&p, 1) == 0.5);
  assert_true(isnan(esp_class_accuracy(&p, 2)));
  assert_true(isnan(esp_top_accuracy(&p))); /* five of three classes are all */
  assert_int_equal(p.predicted_as[0], 2);
  /* 0.5 lies in (7/15, 8/15]: two images, one right; 0.8 in (11/15, 12/15] or, rounded up, the next; 0.4 in the
   * sixth. */
  assert_int_equal(p.bins[7].images, 2);
  assert_int_equal(p.bins[7].correct, 1);
  assert_int_equal(p.bins[5].images + p.bins[6].images, 1);
  assert_int_equal(p.bins[11].images + p.bins[12].images, 1);
  const double error = (fabs(1 - 1.0) + fabs(1 - 0.8) + fabs(0 - 0.4)) / 4;
  assert_float_equal(esp_calibration_error(&p), error, 1e-7); /* logits are single */
  assert_float_equal(esp_mean_confidence(&p), 2.2 / 4, 1e-7);
  esp_predictions_clear(&p);
}

/* Six classes: the sixth largest is out; of equal logits the lower classes are in. */
static void five_are_in_the_top(void **state) {
  (void)state;
  esp_real logits[] = {6, 5, 4, 3, 2, 1, 6, 5, 4, 3, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
  const int32_t labels[] = {4, 5, 4, 5};
  esp_predictions p;
  assert_int_equal(esp_predictions_start(&p, 6, NULL), ESP_OK);
  add(&p, logits, 4, labels);
  assert_int_equal(p.in_top, 2);
  assert_true(esp_top_accuracy(&p) == 0.5);
  esp_predictions_clear(&p);
}

/* Certain and always right is perfectly calibrated; certain and always wrong could not be worse. */
static void calibration_ranges_from_0_to_1(void **state) {
  (void)state;
  esp_real logits[] = {200, 0, 200, 0};
  const int32_t right[] = {0, 0}, wrong[] = {1, 1};
  esp_predictions p;
  assert_int_equal(esp_predictions_start(&p, 2, NULL), ESP_OK);
  assert_true(isnan(esp_calibration_error(&p)));
  add(&p, logits, 2, right);
  assert_true(esp_calibration_error(&p) == 0.0);
  assert_int_equal(p.bins[ESP_CALIBRATION_BINS - 1].images, 2);
  esp_predictions_clear(&p);
  assert_int_equal(esp_predictions_start(&p, 2, NULL), ESP_OK);
  add(&p, logits, 2, wrong);
  assert_true(esp_calibration_error(&p) == 1.0);
  esp_predictions_clear(&p);
}

/* A matrix of 65536 x 65536 would not fit. */
static void many_classes_have_no_matrix(void **state) {
  (void)state;
  enum { MANY = 2000 };
  static esp_real logits[MANY];
  const int32_t label = 7;
  logits[1999] = 1;
  esp_predictions p;
  assert_int_equal(esp_predictions_start(&p, MANY, NULL), ESP_OK);
  assert_null(p.confusion);
  add(&p, logits, 1, &label);
  assert_int_equal(p.predicted_as[1999], 1);
  assert_true(esp_class_accuracy(&p, 7) == 0.0);
  esp_predictions_clear(&p);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(counts_by_hand), cmocka_unit_test(five_are_in_the_top),
                                     cmocka_unit_test(calibration_ranges_from_0_to_1),
                                     cmocka_unit_test(many_classes_have_no_matrix)};
  return cmocka_run_group_tests_name("predictions", tests, NULL, NULL);
}
