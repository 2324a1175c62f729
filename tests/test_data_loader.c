/* label: short */
/* The loader and augmentation: what is dealt, in which order, with the same bytes however a run is cut in
 * pieces; and contact sheets. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <dirent.h>
#include <espalier/loader.h>
#include <espalier/memory.h>
#include <espalier/preview.h>
#include <math.h>
#include <png.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <zlib.h>

enum { IMAGES = 53, SIDE = 8, SIZE = SIDE * SIDE, TEST_IMAGES = 20, PATH_SIZE = 512 };

static char folder[PATH_SIZE];
static esp_dataset *numbered; /* IDX: pixel p of image i is (i + 1) or, further on, tells p */
static esp_dataset *synthetic;
static esp_normalisation usual; /* of the synthetic set */

static const esp_normalisation plain = {.mean = {0}, .deviation = {1, 1, 1, 1, 1, 1, 1, 1}};

/* ---- a data set whose images tell their number ---- */

static void put_file(const char *name, const uint8_t *bytes, size_t size) {
  char path[2 * PATH_SIZE];
  snprintf(path, sizeof path, "%s/%s", folder, name);
  FILE *const file = fopen(path, "wb");
  assert_non_null(file);
  assert_int_equal(fwrite(bytes, 1, size, file), size);
  fclose(file);
}

static uint8_t numbered_pixel(int64_t image, int64_t position) {
  return position == 0 ? (uint8_t)(image + 1) : (uint8_t)(100 + position);
}

static void put_split(const char *images, const char *labels, uint8_t count) {
  static uint8_t bytes[16 + IMAGES * SIZE];
  const uint8_t image_header[16] = {0, 0, 8, 3, 0, 0, 0, count, 0, 0, 0, SIDE, 0, 0, 0, SIDE};
  memcpy(bytes, image_header, sizeof image_header);
  for (int i = 0; i < count; i++)
    for (int p = 0; p < SIZE; p++) bytes[16 + i * SIZE + p] = numbered_pixel(i, p);
  put_file(images, bytes, 16 + (size_t)count * SIZE);
  const uint8_t label_header[8] = {0, 0, 8, 1, 0, 0, 0, count};
  memcpy(bytes, label_header, sizeof label_header);
  for (int i = 0; i < count; i++) bytes[8 + i] = (uint8_t)(i % 10);
  put_file(labels, bytes, 8 + (size_t)count);
}

static int open_sets(void **state) {
  (void)state;
  char spec[2 * PATH_SIZE];
  const char *const root = getenv("TMPDIR");
  snprintf(folder, sizeof folder, "%s/espalier-loader-XXXXXX", root && *root ? root : "/tmp");
  if (!mkdtemp(folder)) return -1;
  put_split("train-images-idx3-ubyte", "train-labels-idx1-ubyte", IMAGES);
  put_split("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte", TEST_IMAGES);
  snprintf(spec, sizeof spec, "mnist:%s", folder);
  if (esp_dataset_open(&numbered, spec) != ESP_OK || esp_dataset_open(&synthetic, "synthetic") != ESP_OK) return -1;
  if (esp_dataset_hold_out(numbered, 0) != ESP_OK || esp_dataset_hold_out(synthetic, 0) != ESP_OK) return -1;
  esp_dataset_normalisation(synthetic, &usual);
  return 0;
}

static int count_files(bool remove_them) {
  int count = 0;
  DIR *const entries = opendir(folder);
  for (const struct dirent *e = readdir(entries); e; e = readdir(entries)) {
    char path[2 * PATH_SIZE];
    if (e->d_name[0] == '.') continue;
    snprintf(path, sizeof path, "%s/%s", folder, e->d_name);
    if (remove_them) remove(path);
    count++;
  }
  closedir(entries);
  return count;
}

static int close_sets(void **state) {
  (void)state;
  esp_dataset_close(numbered);
  esp_dataset_close(synthetic);
  count_files(true);
  return rmdir(folder);
}

static esp_loader *create(const esp_dataset *dataset, const esp_loader_options *options, int64_t first_batch) {
  esp_loader *loader;
  if (esp_loader_create(&loader, dataset, ESP_TRAIN, options, first_batch) != ESP_OK)
    fail_msg("%s", esp_error_message());
  return loader;
}

static const esp_batch *next(esp_loader *loader) {
  const esp_batch *batch;
  assert_int_equal(esp_loader_next(loader, &batch), ESP_OK);
  return batch;
}

/* The number of an unaugmented image of the numbered set. */
static int number_of(const float *image) { return (int)(image[0] * 255.0f + 0.5f) - 1; }

/* ---- order ---- */

static void deal_epoch(esp_loader *loader, int64_t epoch, int order[IMAGES]) {
  int dealt = 0;
  for (int64_t b = 0; b < esp_loader_batches_per_epoch(loader); b++) {
    const esp_batch *const batch = next(loader);
    assert_int_equal(batch->epoch, epoch);
    assert_int_equal(batch->index_in_epoch, b);
    for (int64_t i = 0; i < batch->count; i++) {
      const int number = number_of(batch->images + i * SIZE);
      assert_int_equal(batch->labels[i], number % 10);
      assert_int_equal(batch->mixed_labels[i], number % 10);
      assert_true(batch->mix[i] == 1.0f);
      assert_true(dealt < IMAGES);
      order[dealt++] = number;
    }
  }
  for (; dealt < IMAGES; dealt++) order[dealt] = -1;
}

static int times_dealt(const int order[IMAGES], int number) {
  int times = 0;
  for (int i = 0; i < IMAGES; i++) times += order[i] == number;
  return times;
}

static void test_epochs_cover_each_once(void **state) {
  (void)state;
  const esp_loader_options options = {.batch = 10, .shuffle = true, .normalisation = plain, .seed = 3};
  esp_loader *const loader = create(numbered, &options, 0);
  assert_int_equal(esp_loader_batches_per_epoch(loader), 6);
  assert_int_equal(esp_loader_examples(loader), IMAGES);
  int orders[3][IMAGES];
  for (int e = 0; e < 3; e++) {
    deal_epoch(loader, e, orders[e]);
    for (int i = 0; i < IMAGES; i++) assert_int_equal(times_dealt(orders[e], i), 1);
  }
  assert_memory_not_equal(orders[0], orders[1], sizeof orders[0]);
  assert_memory_not_equal(orders[1], orders[2], sizeof orders[0]);
  esp_loader_close(loader);
}

static void test_last_batch(void **state) {
  (void)state;
  esp_loader_options options = {.batch = 10, .normalisation = plain};
  esp_loader *loader = create(numbered, &options, 5);
  assert_int_equal(next(loader)->count, 3);
  assert_int_equal(next(loader)->count, 10);
  esp_loader_close(loader);
  options.drop_last = true;
  loader = create(numbered, &options, 4);
  assert_int_equal(esp_loader_batches_per_epoch(loader), 5);
  assert_int_equal(next(loader)->count, 10);
  const esp_batch *const batch = next(loader);
  assert_int_equal(batch->epoch, 1);
  assert_int_equal(batch->index_in_epoch, 0);
  esp_loader_close(loader);
  options = (esp_loader_options){.batch = 1000, .normalisation = plain};
  loader = create(numbered, &options, 0);
  assert_int_equal(esp_loader_batches_per_epoch(loader), 1);
  assert_int_equal(next(loader)->count, IMAGES);
  assert_int_equal(next(loader)->epoch, 1);
  esp_loader_close(loader);
}

static void test_range_in_order(void **state) {
  (void)state;
  const esp_loader_options options = {.batch = 4, .normalisation = plain, .first_example = 20, .example_limit = 10};
  esp_loader *const loader = create(numbered, &options, 0);
  assert_int_equal(esp_loader_examples(loader), 10);
  for (int epoch = 0; epoch < 2; epoch++) {
    int order[IMAGES];
    deal_epoch(loader, epoch, order);
    for (int i = 0; i < 10; i++) assert_int_equal(order[i], 20 + i);
    assert_int_equal(order[10], -1);
  }
  esp_loader_close(loader);
}

static void test_seed_changes_order(void **state) {
  (void)state;
  int orders[2][IMAGES];
  for (uint64_t seed = 0; seed < 2; seed++) {
    const esp_loader_options options = {.batch = 9, .shuffle = true, .normalisation = plain, .seed = seed};
    esp_loader *const loader = create(numbered, &options, 0);
    deal_epoch(loader, 0, orders[seed]);
    esp_loader_close(loader);
  }
  assert_memory_not_equal(orders[0], orders[1], sizeof orders[0]);
}

/* ---- the same bytes ---- */

enum { RUN = 11, BATCH = 16, IMAGE_VALUES = 32 * 32 * 3 };

static uint32_t digest(const esp_batch *batch) {
  const size_t count = (size_t)batch->count;
  uLong crc = crc32_z(0, (const Bytef *)batch->images, count * IMAGE_VALUES * sizeof *batch->images);
  crc = crc32_z(crc, (const Bytef *)batch->labels, count * sizeof *batch->labels);
  crc = crc32_z(crc, (const Bytef *)batch->mixed_labels, count * sizeof *batch->mixed_labels);
  crc = crc32_z(crc, (const Bytef *)batch->mix, count * sizeof *batch->mix);
  crc = crc32_z(crc, (const Bytef *)&batch->epoch, sizeof batch->epoch);
  return (uint32_t)crc32_z(crc, (const Bytef *)&batch->index_in_epoch, sizeof batch->index_in_epoch);
}

static void test_resumed_equals_uninterrupted(void **state) {
  (void)state;
  esp_loader_options options = {.batch = BATCH,
                                .shuffle = true,
                                .augmentation = {.crop_padding = 4, .flip = true, .cutout = 8, .mixup = 0.4},
                                .seed = 7,
                                .example_limit = 70};
  options.normalisation = usual;
  uint32_t whole[RUN];
  esp_loader *loader = create(synthetic, &options, 0);
  for (int b = 0; b < RUN; b++) whole[b] = digest(next(loader));
  esp_loader_close(loader);
  for (int first = 0; first < RUN; first++) {
    loader = create(synthetic, &options, first);
    for (int b = first; b < RUN; b++) assert_int_equal(digest(next(loader)), whole[b]);
    esp_loader_close(loader);
  }
  for (int a = 0; a < RUN; a++)
    for (int b = 0; b < a; b++) assert_int_not_equal(whole[a], whole[b]);
}

static void test_batch_stays_valid(void **state) {
  (void)state;
  esp_loader_options options = {.batch = BATCH, .shuffle = true, .normalisation = plain, .seed = 1};
  esp_loader *const loader = create(synthetic, &options, 0);
  for (int b = 0; b < 5; b++) {
    const esp_batch *const batch = next(loader);
    const uint32_t before = digest(batch);
    const struct timespec pause = {0, 3000000}; /* the thread fills the other places meanwhile */
    nanosleep(&pause, NULL);
    assert_int_equal(digest(batch), before);
  }
  esp_loader_close(loader);
}

static void test_no_allocation_after_creation(void **state) {
  (void)state;
  const esp_loader_options options = {.batch = BATCH,
                                      .shuffle = true,
                                      .augmentation = {.crop_padding = 4, .flip = true, .cutout = 8, .mixup = 0.4},
                                      .normalisation = plain,
                                      .example_limit = 50};
  esp_loader *const loader = create(synthetic, &options, 0);
  const uint64_t before = esp_allocation_count();
  for (int b = 0; b < 30; b++) next(loader);
  assert_int_equal(esp_allocation_count(), before);
  esp_loader_close(loader);
}

static void test_closing_early(void **state) {
  (void)state;
  const esp_loader_options options = {.batch = BATCH, .shuffle = true, .normalisation = plain};
  for (int taken = 0; taken < 6; taken++)
    for (int again = 0; again < 5; again++) {
      esp_loader *const loader = create(synthetic, &options, 1000000);
      for (int b = 0; b < taken; b++) next(loader);
      esp_loader_close(loader);
    }
  esp_loader_close(NULL);
}

/* ---- augmentation ---- */

/* Image 0 of the numbered set, augmented for `position`; the mean is -1, so no pixel of the image becomes
 * 0. */
static void augment(const esp_augmentation *augmentation, uint64_t position, float out[SIZE]) {
  const esp_normalisation shifted = {.mean = {-1}, .deviation = {1}};
  esp_augment_image(
      numbered, ESP_TRAIN, 0,
      &(esp_augment_options){.normalisation = &shifted, .augmentation = augmentation, .seed = 11, .position = position},
      out);
}

static void original(float out[SIZE]) {
  augment(NULL, 0, out);
  for (int p = 0; p < SIZE; p++) assert_true(fabsf(out[p] - 1.0f - (float)numbered_pixel(0, p) / 255.0f) < 1e-6f);
}

static void test_flip(void **state) {
  (void)state;
  const esp_augmentation flip = {.flip = true};
  float image[SIZE], got[SIZE], mirror[SIZE];
  int mirrored = 0;
  original(image);
  for (int p = 0; p < SIZE; p++) mirror[p] = image[p / SIDE * SIDE + SIDE - 1 - p % SIDE];
  for (uint64_t i = 0; i < 400; i++) {
    augment(&flip, i, got);
    const bool is_mirror = memcmp(got, mirror, sizeof got) == 0;
    assert_true(is_mirror || memcmp(got, image, sizeof got) == 0);
    mirrored += is_mirror;
  }
  assert_in_range(mirrored, 160, 240); /* 4 standard deviations */
}

/* In every second epoch the other way round, and over the images as often the one as the other. */
static void test_alternating_flip(void **state) {
  (void)state;
  const esp_augmentation flip = {.flip = true, .alternate = true};
  const esp_normalisation plain_pixels = {.deviation = {1}};
  float got[3][SIZE], plain_image[SIZE];
  int mirrored = 0;
  for (int64_t i = 0; i < IMAGES; i++) {
    for (uint64_t epoch = 0; epoch < 3; epoch++)
      esp_augment_image(numbered, ESP_TRAIN, i,
                        &(esp_augment_options){.normalisation = &plain_pixels,
                                               .augmentation = &flip,
                                               .seed = 11,
                                               .epoch = epoch,
                                               .position = 1000 * epoch + (uint64_t)i},
                        got[epoch]);
    esp_augment_image(numbered, ESP_TRAIN, i, &(esp_augment_options){.normalisation = &plain_pixels, .seed = 11},
                      plain_image);
    for (int p = 0; p < SIZE; p++) {
      const int mirror = p / SIDE * SIDE + SIDE - 1 - p % SIDE;
      assert_true(got[1][mirror] == got[0][p] && got[2][p] == got[0][p]);
    }
    mirrored += memcmp(got[0], plain_image, sizeof plain_image) != 0;
  }
  assert_in_range(mirrored, IMAGES / 5, IMAGES - IMAGES / 5);
}

/* Shifted images whose missing pixels are those mirrored at the edge, which is not repeated. */
static void test_reflecting_crop(void **state) {
  (void)state;
  enum { PADDING = 2, DRAWS = 200 };
  const esp_augmentation crop = {.crop_padding = PADDING, .reflect = true};
  float image[SIZE], got[SIZE];
  original(image);
  for (uint64_t i = 0; i < DRAWS; i++) {
    augment(&crop, i, got);
    int found = 0;
    for (int offset = 0; offset < 25; offset++) {
      bool same = true;
      for (int p = 0; p < SIZE; p++) {
        const int y = abs(p / SIDE + offset / 5 - PADDING), x = abs(p % SIDE + offset % 5 - PADDING);
        const int from_y = y < SIDE ? y : 2 * SIDE - 2 - y, from_x = x < SIDE ? x : 2 * SIDE - 2 - x;
        same = same && got[p] == image[from_y * SIDE + from_x];
      }
      found += same;
    }
    assert_int_equal(found, 1);
  }
}

static bool is_shifted(const float *got, const float *image, int down, int across) {
  for (int y = 0; y < SIDE; y++)
    for (int x = 0; x < SIDE; x++) {
      const int from_y = y + down, from_x = x + across;
      const bool inside = from_y >= 0 && from_y < SIDE && from_x >= 0 && from_x < SIDE;
      if (got[y * SIDE + x] != (inside ? image[from_y * SIDE + from_x] : 0.0f)) return false;
    }
  return true;
}

static void test_crop(void **state) {
  (void)state;
  enum { PADDING = 2, OFFSETS = (2 * PADDING + 1) * (2 * PADDING + 1), DRAWS = 1000 };
  const esp_augmentation crop = {.crop_padding = PADDING};
  float image[SIZE], got[SIZE];
  int counts[OFFSETS] = {0};
  original(image);
  for (uint64_t i = 0; i < DRAWS; i++) {
    augment(&crop, i, got);
    int found = 0;
    for (int offset = 0; offset < OFFSETS; offset++)
      if (is_shifted(got, image, offset / (2 * PADDING + 1) - PADDING, offset % (2 * PADDING + 1) - PADDING)) {
        counts[offset]++;
        found++;
      }
    assert_int_equal(found, 1);
  }
  for (int offset = 0; offset < OFFSETS; offset++) assert_in_range(counts[offset], 15, 70); /* 40 expected */
}

static void test_cutout(void **state) {
  (void)state;
  enum { CUT = 4 };
  const esp_augmentation cutout = {.cutout = CUT};
  float image[SIZE], got[SIZE];
  int whole_squares = 0;
  original(image);
  for (uint64_t i = 0; i < 300; i++) {
    augment(&cutout, i, got);
    int top = SIDE, bottom = -1, left = SIDE, right = -1, cleared = 0;
    for (int p = 0; p < SIZE; p++) {
      if (got[p] != 0.0f) {
        assert_true(got[p] == image[p]);
        continue;
      }
      cleared++;
      top = p / SIDE < top ? p / SIDE : top;
      bottom = p / SIDE > bottom ? p / SIDE : bottom;
      left = p % SIDE < left ? p % SIDE : left;
      right = p % SIDE > right ? p % SIDE : right;
    }
    assert_int_equal(cleared, (bottom - top + 1) * (right - left + 1));
    assert_in_range(cleared, CUT * CUT / 4, CUT * CUT);
    whole_squares += cleared == CUT * CUT;
  }
  assert_in_range(whole_squares, 60, 180); /* (5/8)^2 of them expected */
}

static void test_mixup(void **state) {
  (void)state;
  const esp_loader_options options = {
      .batch = 9, .shuffle = true, .augmentation = {.mixup = 1.0}, .normalisation = plain, .seed = 5};
  esp_loader_options unmixed = options;
  unmixed.augmentation.mixup = 0.0;
  esp_loader *const mixing = create(numbered, &options, 0), *const plainly = create(numbered, &unmixed, 0);
  for (int b = 0; b < 12; b++) {
    const esp_batch *const got = next(mixing), *const from = next(plainly);
    assert_int_equal(got->count, from->count);
    for (int64_t i = 0; i < got->count; i++) {
      const int64_t other = got->count - 1 - i;
      assert_int_equal(got->labels[i], from->labels[i]);
      assert_int_equal(got->mixed_labels[i], from->labels[other]);
      assert_true(got->mix[i] > 0.0f && got->mix[i] < 1.0f);
      for (int p = 0; p < SIZE; p++) {
        const float a = from->images[i * SIZE + p], z = from->images[other * SIZE + p];
        const float expected = got->mix[i] * a + (1.0f - got->mix[i]) * z;
        assert_true(fabsf(got->images[i * SIZE + p] - expected) < 1e-6f);
      }
    }
  }
  esp_loader_close(mixing);
  esp_loader_close(plainly);
}

/* Mean 1/2, variance 1 / (4 (2 alpha + 1)). */
static void test_beta(void **state) {
  (void)state;
  enum { DRAWS = 20000 };
  const double alphas[] = {0.05, 0.2, 1.0, 4.0};
  for (size_t a = 0; a < sizeof alphas / sizeof *alphas; a++) {
    esp_random stream = esp_random_stream(1, ESP_PURPOSE_TEST, a);
    double sum = 0, squares = 0;
    for (int i = 0; i < DRAWS; i++) {
      const double x = esp_random_beta(&stream, alphas[a]);
      assert_true(x >= 0.0 && x <= 1.0);
      sum += x;
      squares += x * x;
    }
    const double mean = sum / DRAWS, variance = squares / DRAWS - mean * mean;
    assert_true(fabs(mean - 0.5) < 0.015);
    assert_true(fabs(variance * 4.0 * (2.0 * alphas[a] + 1.0) - 1.0) < 0.05);
  }
}

static void test_normalised(void **state) {
  (void)state;
  esp_loader_options options = {.batch = 1000};
  options.normalisation = usual;
  esp_loader *const loader = create(synthetic, &options, 0);
  const esp_batch *const batch = next(loader);
  for (int c = 0; c < 3; c++) {
    double sum = 0, squares = 0;
    for (int64_t i = c; i < batch->count * IMAGE_VALUES; i += 3) {
      const double value = (double)batch->images[i];
      sum += value;
      squares += value * value;
    }
    const double count = 1000.0 * 1024.0;
    assert_true(fabs(sum / count) < 0.1);
    assert_true(fabs(squares / count - 1.0) < 0.1);
  }
  esp_loader_close(loader);
}

/* ---- what cannot be ---- */

static void expect_refused(esp_loader_options options, int64_t first_batch, const char *words) {
  esp_loader *loader = NULL;
  assert_int_equal(esp_loader_create(&loader, numbered, ESP_TRAIN, &options, first_batch), ESP_ERR_CONFIG);
  assert_null(loader);
  if (!strstr(esp_error_message(), words)) fail_msg("the message lacks '%s': %s", words, esp_error_message());
}

static void test_bad_options(void **state) {
  (void)state;
  const esp_loader_options good = {.batch = 8, .normalisation = plain};
  esp_loader_options o = good;
  expect_refused((o.batch = 0, o), 0, "batch is 0");
  o = good;
  expect_refused((o.batch = 54, o.drop_last = true, o), 0, "54 images cannot be filled from 53");
  o = good;
  expect_refused((o.first_example = 53, o), 0, "first_example is 53; expected 0 to 52");
  o = good;
  expect_refused((o.first_example = -1, o), 0, "first_example is -1");
  o = good;
  expect_refused((o.first_example = 50, o.example_limit = 4, o), 0, "example_limit is 4; expected 0 (all) to 3");
  o = good;
  expect_refused((o.normalisation.deviation[0] = 0.0f, o), 0, "channel 0");
  o = good;
  expect_refused((o.normalisation.mean[0] = NAN, o), 0, "channel 0");
  o = good;
  expect_refused((o.augmentation.crop_padding = 8, o), 0, "crop_padding is 8; expected 0 to 7");
  o = good;
  expect_refused((o.augmentation.cutout = 9, o), 0, "cutout is 9");
  o = good;
  expect_refused((o.augmentation.mixup = -0.5, o), 0, "mixup is -0.5");
  o = good;
  expect_refused((o.augmentation.mixup = (double)NAN, o), 0, "mixup is");
  expect_refused(good, -1, "first batch is -1");
}

static void test_memory_failures(void **state) {
  (void)state;
  const esp_loader_options options = {.batch = 8, .normalisation = plain};
  esp_loader *loader = NULL;
  int calls = 0;
  for (;; calls++) {
    esp_alloc_fail_after(calls);
    const esp_status status = esp_loader_create(&loader, numbered, ESP_TRAIN, &options, 0);
    esp_alloc_fail_after(-1);
    if (status == ESP_OK) break;
    assert_int_equal(status, ESP_ERR_MEMORY);
  }
  assert_true(calls > 10);
  esp_loader_close(loader);
}

/* ---- contact sheets ---- */

static void check_sheet(const char *path, unsigned width, unsigned height, bool grey) {
  png_image png = {.version = PNG_IMAGE_VERSION};
  assert_true(png_image_begin_read_from_file(&png, path));
  assert_int_equal(png.width, width);
  assert_int_equal(png.height, height);
  assert_int_equal(png.format, grey ? PNG_FORMAT_GRAY : PNG_FORMAT_RGB);
  png_image_free(&png);
}

static void test_preview(void **state) {
  (void)state;
  char path[2 * PATH_SIZE];
  snprintf(path, sizeof path, "%s/sheet.png", folder);
  const int before = count_files(false);
  const esp_augmentation augmentation = {.crop_padding = 4, .flip = true, .cutout = 8};
  assert_int_equal(esp_preview_write(synthetic, ESP_TRAIN, &(esp_preview_options){.columns = 3, .rows = 22}, path),
                   ESP_OK);
  check_sheet(path, 2 + 3 * 66, 2 + 22 * 66, false);
  assert_int_equal(esp_preview_write(
                       synthetic, ESP_TEST,
                       &(esp_preview_options){.columns = 3, .rows = 2, .augmentation = &augmentation, .seed = 1}, path),
                   ESP_OK);
  check_sheet(path, 2 + 3 * 66, 2 + 2 * 66, false);
  assert_int_equal(esp_preview_write(numbered, ESP_TRAIN, &(esp_preview_options){.columns = 8, .rows = 10}, path),
                   ESP_OK);
  check_sheet(path, 2 + 8 * 66, 2 + 10 * 66, true);
  assert_int_equal(count_files(false), before + 1);
}

/* Row r of a sheet shows class r in the order of the split. */
static void test_preview_arrangement(void **state) {
  (void)state;
  static uint8_t pixels[(2 + 12 * 66) * (2 + 2 * 66)];
  char path[2 * PATH_SIZE];
  snprintf(path, sizeof path, "%s/sheet.png", folder);
  assert_int_equal(esp_preview_write(numbered, ESP_TRAIN, &(esp_preview_options){.columns = 2, .rows = 12}, path),
                   ESP_OK);
  png_image png = {.version = PNG_IMAGE_VERSION};
  assert_true(png_image_begin_read_from_file(&png, path));
  png.format = PNG_FORMAT_GRAY;
  assert_int_equal(PNG_IMAGE_SIZE(png), sizeof pixels);
  assert_true(png_image_finish_read(&png, NULL, pixels, 0, NULL));
  for (int row = 0; row < 12; row++)
    for (int column = 0; column < 2; column++) {
      const int number = row % 10 + 10 * (column + row / 10 * 2);
      assert_int_equal(pixels[(2 + row * 66) * (2 + 2 * 66) + 2 + column * 66], number + 1);
    }
}

static void test_preview_refused(void **state) {
  (void)state;
  char path[2 * PATH_SIZE];
  const int before = count_files(false);
  snprintf(path, sizeof path, "%s/no/such/sheet.png", folder);
  assert_int_equal(esp_preview_write(numbered, ESP_TRAIN, &(esp_preview_options){.columns = 2, .rows = 2}, path),
                   ESP_ERR_IO);
  assert_non_null(strstr(esp_error_message(), path));
  assert_int_equal(esp_preview_write(numbered, ESP_TRAIN, &(esp_preview_options){.columns = 2, .rows = 2}, folder),
                   ESP_ERR_USAGE);
  assert_non_null(strstr(esp_error_message(), folder));
  assert_int_equal(esp_preview_write(numbered, ESP_TRAIN, &(esp_preview_options){.rows = 2}, path), ESP_ERR_USAGE);
  const esp_augmentation impossible = {.cutout = 99};
  assert_int_equal(esp_preview_write(numbered, ESP_TRAIN,
                                     &(esp_preview_options){.columns = 2, .rows = 2, .augmentation = &impossible},
                                     path),
                   ESP_ERR_CONFIG);
  assert_int_equal(count_files(false), before);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_epochs_cover_each_once),
      cmocka_unit_test(test_last_batch),
      cmocka_unit_test(test_range_in_order),
      cmocka_unit_test(test_seed_changes_order),
      cmocka_unit_test(test_resumed_equals_uninterrupted),
      cmocka_unit_test(test_batch_stays_valid),
      cmocka_unit_test(test_no_allocation_after_creation),
      cmocka_unit_test(test_closing_early),
      cmocka_unit_test(test_flip),
      cmocka_unit_test(test_alternating_flip),
      cmocka_unit_test(test_crop),
      cmocka_unit_test(test_reflecting_crop),
      cmocka_unit_test(test_cutout),
      cmocka_unit_test(test_mixup),
      cmocka_unit_test(test_beta),
      cmocka_unit_test(test_normalised),
      cmocka_unit_test(test_bad_options),
      cmocka_unit_test(test_memory_failures),
      cmocka_unit_test(test_preview),
      cmocka_unit_test(test_preview_arrangement),
      cmocka_unit_test(test_preview_refused),
  };
  return cmocka_run_group_tests_name("loader", tests, open_sets, close_sets);
}
