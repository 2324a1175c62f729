/* label: short */
/* What is held out for validation: how many images of each class, always the same ones, none of them dealt in training;
 * and the part of a split that a limited evaluation looks at. */
#include "testing.h"

#include <espalier/core.h>
#include <espalier/data.h>

#include <math.h>
#include <string.h>

enum { NARROW_IMAGES = 5000, CLASSES = 5, VALUES = 32 * 32 * 3 };

static esp_dataset *open_narrow(double share) {
  esp_dataset *dataset;
  if (esp_dataset_open(&dataset, "synthetic:narrow") != ESP_OK || esp_dataset_hold_out(dataset, share) != ESP_OK)
    fail_msg("%s", esp_error_message());
  return dataset;
}

static uint64_t hash_of(const esp_dataset *dataset, esp_split_name split, int64_t index) {
  static float image[VALUES];
  esp_dataset_image(dataset, split, index, image);
  uint64_t hash = 0xcbf29ce484222325u;
  for (size_t i = 0; i < sizeof image; i++) hash = (hash ^ ((const uint8_t *)image)[i]) * 0x100000001b3u;
  return hash;
}

static int ascending(const void *a, const void *b) {
  const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
  return (x > y) - (x < y);
}

/* Training and validation images together are the source's, each once, with their labels. */
static void every_image_is_in_one_split(void **state) {
  (void)state;
  static uint64_t whole[NARROW_IMAGES], parts[NARROW_IMAGES];
  esp_dataset *all = open_narrow(0), *split = open_narrow(0.05);
  const int64_t *count = esp_dataset_info_of(split)->count;
  assert_int_equal(esp_dataset_info_of(all)->count[ESP_TRAIN], NARROW_IMAGES);
  assert_int_equal(esp_dataset_info_of(all)->count[ESP_VALIDATION], 0);
  assert_int_equal(count[ESP_TRAIN], 4750);
  assert_int_equal(count[ESP_VALIDATION], 250);
  for (int64_t i = 0; i < NARROW_IMAGES; i++) {
    const bool trained = i < count[ESP_TRAIN];
    whole[i] = hash_of(all, ESP_TRAIN, i) + (uint64_t)esp_dataset_label(all, ESP_TRAIN, i);
    const esp_split_name name = trained ? ESP_TRAIN : ESP_VALIDATION;
    const int64_t index = trained ? i : i - count[ESP_TRAIN];
    parts[i] = hash_of(split, name, index) + (uint64_t)esp_dataset_label(split, name, index);
  }
  qsort(whole, NARROW_IMAGES, sizeof *whole, ascending);
  qsort(parts, NARROW_IMAGES, sizeof *parts, ascending);
  assert_memory_equal(whole, parts, sizeof whole);
  esp_dataset_close(all);
  esp_dataset_close(split);
}

/* Of 1000 images a class: the share to within rounding, whatever was held out before; the smaller within the larger. */
static void shares_are_of_each_class_and_nested(void **state) {
  (void)state;
  esp_dataset *dataset = open_narrow(0.2), *small = open_narrow(0.05);
  assert_int_equal(esp_dataset_hold_out(dataset, 0.0517), ESP_OK);
  int64_t counts[CLASSES] = {0}, found = 0;
  const int64_t larger = esp_dataset_info_of(dataset)->count[ESP_VALIDATION];
  for (int64_t i = 0; i < larger; i++) {
    counts[esp_dataset_label(dataset, ESP_VALIDATION, i)]++;
    const uint64_t hash = hash_of(dataset, ESP_VALIDATION, i);
    if (found < 250 && hash == hash_of(small, ESP_VALIDATION, found)) found++; /* both are in ascending order */
  }
  for (int c = 0; c < CLASSES; c++) assert_int_equal(counts[c], 52);
  assert_int_equal(found, 250);
  esp_dataset_close(dataset);
  esp_dataset_close(small);
}

static void impossible_shares_are_refused(void **state) {
  (void)state;
  esp_dataset *dataset = open_narrow(0.1);
  const double shares[] = {1, 1.5, -0.1, NAN, INFINITY};
  for (size_t i = 0; i < sizeof shares / sizeof *shares; i++) {
    assert_int_equal(esp_dataset_hold_out(dataset, shares[i]), ESP_ERR_CONFIG);
    assert_non_null(strstr(esp_error_message(), "it must lie in [0, 1)"));
  }
  assert_int_equal(esp_dataset_hold_out(dataset, 0.9999), ESP_ERR_CONFIG);
  assert_non_null(strstr(esp_error_message(), "without any of its 1000 training images"));
  assert_int_equal(esp_dataset_info_of(dataset)->count[ESP_VALIDATION], 500); /* as it was */
  esp_dataset_close(dataset);
}

/* Statistics of what is trained on only. */
static void validation_images_are_not_normalised_by(void **state) {
  (void)state;
  esp_dataset *all = open_narrow(0), *most_held = open_narrow(0.9);
  esp_normalisation a, b;
  double sum = 0;
  static float image[VALUES];
  esp_dataset_normalisation(all, &a);
  esp_dataset_normalisation(most_held, &b);
  assert_true(a.mean[0] != b.mean[0]);
  for (int64_t i = 0; i < 500; i++) {
    esp_dataset_image(most_held, ESP_TRAIN, i, image);
    for (int p = 0; p < VALUES; p += 3) sum += (double)image[p];
  }
  assert_float_equal(b.mean[0], (float)(sum / (500.0 * 1024)), 1e-5);
  esp_dataset_close(all);
  esp_dataset_close(most_held);
}

static void deal(const esp_dataset *dataset, int64_t limit, int64_t *places, int64_t counts[CLASSES]) {
  esp_normalisation n;
  esp_loader *loader;
  const esp_batch *batch;
  esp_dataset_normalisation(dataset, &n);
  const esp_loader_options options = {
      .batch = limit, .normalisation = n, .seed = 9, .example_limit = limit, .sample = true, .stratified = true};
  assert_int_equal(esp_loader_create(&loader, dataset, ESP_TEST, &options, 0), ESP_OK);
  assert_int_equal(esp_loader_next(loader, &batch), ESP_OK);
  for (int64_t i = 0; i < limit; i++) {
    places[i] = batch->places[i];
    counts[batch->labels[i]]++;
    assert_int_equal(batch->labels[i], esp_dataset_label(dataset, ESP_TEST, places[i]));
  }
  esp_loader_close(loader);
}

static void a_stratified_sample_is_balanced_and_a_beginning(void **state) {
  (void)state;
  esp_dataset *dataset = open_narrow(0.05);
  int64_t few[20], many[57], counts[CLASSES] = {0}, more[CLASSES] = {0};
  deal(dataset, 20, few, counts);
  deal(dataset, 57, many, more);
  for (int c = 0; c < CLASSES; c++) {
    assert_int_equal(counts[c], 4);
    assert_in_range(more[c], 11, 12);
  }
  assert_memory_equal(few, many, sizeof few);
  assert_true(few[0] != 0 || few[1] != 1 || few[2] != 2); /* not the first ones */
  esp_dataset_close(dataset);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(every_image_is_in_one_split),
      cmocka_unit_test(shares_are_of_each_class_and_nested),
      cmocka_unit_test(impossible_shares_are_refused),
      cmocka_unit_test(validation_images_are_not_normalised_by),
      cmocka_unit_test(a_stratified_sample_is_balanced_and_a_beginning),
  };
  return cmocka_run_group_tests_name("splits", tests, NULL, NULL);
}
