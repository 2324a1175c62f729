/* label: short */
/* The procedural data set: the same bytes everywhere, balanced classes, nothing shared between its parts. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <espalier/dataset.h>
#include <espalier/memory.h>
#include <string.h>

enum { VALUES = 32 * 32 * 3 };

static esp_dataset *open_set(const char *spec) {
  esp_dataset *dataset;
  if (esp_dataset_open(&dataset, spec) != ESP_OK) fail_msg("%s: %s", spec, esp_error_message());
  return dataset;
}

static void draw(const esp_dataset *dataset, esp_split_name split, int64_t index, uint8_t bytes[VALUES]) {
  float image[VALUES];
  esp_dataset_image(dataset, split, index, image);
  for (int i = 0; i < VALUES; i++) bytes[i] = (uint8_t)(image[i] * 255.0f + 0.5f);
}

/* FNV-1a of the first 100 images of a split: five of each class. */
static uint64_t digest(const esp_dataset *dataset, esp_split_name split) {
  uint64_t hash = 0xcbf29ce484222325u;
  uint8_t bytes[VALUES];
  for (int64_t i = 0; i < 100; i++) {
    draw(dataset, split, i, bytes);
    for (int b = 0; b < VALUES; b++) hash = (hash ^ bytes[b]) * 0x100000001b3u;
  }
  return hash;
}

/* These figures are part of the data set: if they change, results made with it before no longer hold, and
 * its version has to change too. */
static void test_same_bytes_everywhere(void **state) {
  (void)state;
  esp_dataset *const broad = open_set("synthetic"), *const narrow = open_set("synthetic:narrow");
  assert_int_equal(esp_dataset_hold_out(broad, 0), ESP_OK);
  assert_int_equal(esp_dataset_hold_out(narrow, 0), ESP_OK);
  assert_string_equal(esp_dataset_info_of(broad)->digest, "synthetic-1");
  assert_string_equal(esp_dataset_info_of(narrow)->digest, "synthetic-narrow-1");
  assert_true(digest(broad, ESP_TRAIN) == 0xba67922a363ff80bu);
  assert_true(digest(broad, ESP_TEST) == 0xb4e7a158fd963424u);
  assert_true(digest(narrow, ESP_TRAIN) == 0x9474ccdf8c58cd17u);
  assert_true(digest(narrow, ESP_TEST) == 0x74303052539700e6u);
  esp_dataset_close(broad);
  esp_dataset_close(narrow);
}

static void test_any_order(void **state) {
  (void)state;
  esp_dataset *const dataset = open_set("synthetic");
  uint8_t before[VALUES], after[VALUES];
  draw(dataset, ESP_TRAIN, 12345, before);
  for (int64_t i = 0; i < 50; i++) draw(dataset, ESP_TEST, i, after);
  draw(dataset, ESP_TRAIN, 12345, after);
  assert_memory_equal(before, after, VALUES);
  draw(dataset, ESP_TRAIN, 12365, after); /* the next of its class */
  assert_memory_not_equal(before, after, VALUES);
  esp_dataset_close(dataset);
}

static void check_balance(const char *spec, int classes, int64_t train, int64_t validation, int64_t test) {
  esp_dataset *const dataset = open_set(spec);
  const esp_dataset_info *const info = esp_dataset_info_of(dataset);
  assert_string_equal(info->name, spec);
  assert_string_equal(info->source, "compiled in");
  assert_int_equal(info->classes, classes);
  assert_int_equal(info->count[ESP_TRAIN], train);
  assert_int_equal(info->count[ESP_VALIDATION], validation);
  assert_int_equal(info->count[ESP_TEST], test);
  for (int split = 0; split < ESP_SPLITS; split++) {
    int64_t counts[32] = {0};
    for (int64_t i = 0; i < info->count[split]; i++) counts[esp_dataset_label(dataset, (esp_split_name)split, i)]++;
    for (int c = 0; c < classes; c++) assert_int_equal(counts[c], info->count[split] / classes);
  }
  esp_dataset_close(dataset);
}

static void test_balance(void **state) {
  (void)state;
  check_balance("synthetic", 20, 19000, 1000, 2000);
  check_balance("synthetic:narrow", 5, 4750, 250, 1000);
}

static void test_narrow_is_part_of_broad(void **state) {
  (void)state;
  esp_dataset *const broad = open_set("synthetic"), *const narrow = open_set("synthetic:narrow");
  const esp_dataset_info *const all = esp_dataset_info_of(broad), *const some = esp_dataset_info_of(narrow);
  for (int i = 0; i < some->classes; i++) {
    int found = 0;
    for (int j = 0; j < all->classes; j++) found += strcmp(all->class_names[j], some->class_names[i]) == 0;
    assert_int_equal(found, 1);
  }
  esp_dataset_close(broad);
  esp_dataset_close(narrow);
}

/* Splits and sets come from streams of their own: the first images of a class differ between all four. */
static void test_parts_differ(void **state) {
  (void)state;
  enum { STRIPES = 5 }; /* class 0 of the narrow set in the broad one */
  esp_dataset *const broad = open_set("synthetic"), *const narrow = open_set("synthetic:narrow");
  uint8_t images[4][VALUES];
  assert_string_equal(esp_dataset_info_of(broad)->class_names[STRIPES], esp_dataset_info_of(narrow)->class_names[0]);
  draw(broad, ESP_TRAIN, STRIPES, images[0]);
  draw(broad, ESP_TEST, STRIPES, images[1]);
  draw(narrow, ESP_TRAIN, 0, images[2]);
  draw(narrow, ESP_TEST, 0, images[3]);
  for (int i = 0; i < 4; i++)
    for (int j = 0; j < i; j++) assert_memory_not_equal(images[i], images[j], VALUES);
  esp_dataset_close(broad);
  esp_dataset_close(narrow);
}

static void test_memory_failures(void **state) {
  (void)state;
  esp_dataset *dataset = NULL;
  int calls = 0;
  for (;; calls++) {
    esp_alloc_fail_after(calls);
    const esp_status status = esp_dataset_open(&dataset, "synthetic");
    esp_alloc_fail_after(-1);
    if (status == ESP_OK) break;
    assert_int_equal(status, ESP_ERR_MEMORY);
  }
  assert_true(calls > 2);
  esp_dataset_close(dataset);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_same_bytes_everywhere),
      cmocka_unit_test(test_any_order),
      cmocka_unit_test(test_balance),
      cmocka_unit_test(test_narrow_is_part_of_broad),
      cmocka_unit_test(test_parts_differ),
      cmocka_unit_test(test_memory_failures),
  };
  return cmocka_run_group_tests_name("synthetic data", tests, NULL, NULL);
}
