/* What is wrong with a data set as such: classes that one split lacks, labels that are not from 0 on, a test split that
 * is no other one. */
#include "dataset_internal.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

typedef struct look {
  const esp_dataset *dataset;
  int64_t *counts[ESP_SPLITS]; /* [classes] images of a class */
  char *remarks;
  size_t size, used;
} look;

static void remark(look *l, const char *format, ...) ESP_PRINTF(2, 3);
static void remark(look *l, const char *format, ...) {
  va_list arguments;
  if (l->used >= l->size) return;
  va_start(arguments, format);
  const int length = vsnprintf(l->remarks + l->used, l->size - l->used, format, arguments);
  va_end(arguments);
  l->used += length > 0 ? (size_t)length : 0;
}

static esp_status count(look *l) {
  const esp_dataset_info *const info = &l->dataset->info;
  for (int split = 0; split < ESP_SPLITS; split++) {
    l->counts[split] = esp_alloc((size_t)info->classes, sizeof *l->counts[split]);
    if (!l->counts[split]) return ESP_ERR_MEMORY;
    for (int64_t i = 0; i < info->count[split]; i++)
      l->counts[split][esp_dataset_label(l->dataset, (esp_split_name)split, i)]++;
  }
  return ESP_OK;
}

static int classes_in(const look *l, int split) {
  int classes = 0;
  for (int c = 0; c < l->dataset->info.classes; c++) classes += l->counts[split][c] > 0;
  return classes;
}

/* Classes that `split` has and training has not, and the images of them. */
static int unknown_in(const look *l, int split, int *first, int64_t *images) {
  int classes = 0;
  *images = 0;
  for (int c = l->dataset->info.classes - 1; c >= 0; c--) {
    if (l->counts[split][c] == 0 || l->counts[ESP_TRAIN][c] > 0) continue;
    classes++;
    *first = c;
    *images += l->counts[split][c];
  }
  return classes;
}

static esp_status check_learnable(look *l) {
  const esp_dataset_info *const info = &l->dataset->info;
  const int known = classes_in(l, ESP_TRAIN);
  if (info->classes > 1 && known < 2)
    return esp_fail(ESP_ERR_FORMAT,
                    "%s: all training images have one label, so that there is nothing to tell apart; expected "
                    "images of at least two classes",
                    info->source);
  for (int split = ESP_VALIDATION; split < ESP_SPLITS; split++) {
    int first = 0;
    int64_t images;
    const int unknown = unknown_in(l, split, &first, &images);
    if (unknown > 0 && images == info->count[split])
      return esp_fail(ESP_ERR_FORMAT,
                      "%s: no class of the %s split is among the training images, so that none of it can be "
                      "told; draw both from all classes",
                      info->source, esp_split_text((esp_split_name)split));
    if (unknown > 0)
      remark(l, "%d classes of the %s split (%lld images) lack training images, the first is class %d\n", unknown,
             esp_split_text((esp_split_name)split), (long long)images, first);
  }
  return ESP_OK;
}

/* Labels that nobody has cost little, but say that the labels are not what they ought to be. */
static void look_at_labels(look *l) {
  const int classes = l->dataset->info.classes;
  int unused = 0;
  for (int c = 0; c < classes; c++)
    unused += l->counts[ESP_TRAIN][c] + l->counts[ESP_VALIDATION][c] + l->counts[ESP_TEST][c] == 0;
  const int64_t zeros = l->counts[ESP_TRAIN][0] + l->counts[ESP_VALIDATION][0] + l->counts[ESP_TEST][0];
  if (unused == 1 && zeros == 0 && classes > 2)
    remark(l, "no image has the label 0: labels begin at 0, and these seem to begin at 1\n");
  else if (unused > 0)
    remark(l, "%d of %d classes never occur; the largest label is %d: is it a label?\n", unused, classes, classes - 1);
}

static void look_at_test(look *l) {
  const esp_split *const train = &l->dataset->splits[ESP_TRAIN], *const test = &l->dataset->splits[ESP_TEST];
  const size_t values = (size_t)train->count * (size_t)esp_dataset_image_size(l->dataset);
  if (test->count == 0 || test->count != train->count) return;
  const bool same_bytes = train->bytes && test->bytes && memcmp(train->bytes, test->bytes, values) == 0;
  const bool same_floats =
      train->floats && test->floats && memcmp(train->floats, test->floats, values * sizeof *train->floats) == 0;
  if (same_bytes || same_floats)
    remark(l, "the test split is the training split, image by image: its accuracy tells nothing about other images\n");
}

esp_status esp_dataset_check(const esp_dataset *dataset, char *remarks, size_t size) {
  look l = {.dataset = dataset, .remarks = remarks, .size = size};
  if (size) *remarks = '\0';
  esp_status status = count(&l);
  if (status == ESP_OK) status = check_learnable(&l);
  if (status == ESP_OK) {
    look_at_labels(&l);
    look_at_test(&l);
  }
  for (int split = 0; split < ESP_SPLITS; split++) esp_free(l.counts[split]);
  return status;
}
