/* label: short */
/* How data sets are named, and those from IDX files that the test writes. */
#include "test_data_files.h"

enum { SIDE = 5, TRAIN = 7, TEST = 3 };

/* ---- IDX ---- */

static size_t put_number(uint8_t *out, uint32_t number) {
  for (int i = 0; i < 4; i++) out[i] = (uint8_t)(number >> (24 - 8 * i));
  return 4;
}

static uint8_t pixel(uint32_t image, uint32_t position) { return (uint8_t)(image * 31 + position * 7); }

static size_t make_images(uint8_t *out, uint32_t magic, uint32_t claimed, uint32_t count, uint32_t side) {
  size_t size = put_number(out, magic);
  size += put_number(out + size, claimed);
  size += put_number(out + size, side);
  size += put_number(out + size, side);
  for (uint32_t i = 0; i < count; i++)
    for (uint32_t p = 0; p < side * side; p++) out[size++] = pixel(i, p);
  return size;
}

static size_t make_labels(uint8_t *out, uint32_t magic, uint32_t claimed, uint32_t count) {
  size_t size = put_number(out, magic);
  size += put_number(out + size, claimed);
  for (uint32_t i = 0; i < count; i++) out[size++] = (uint8_t)(i * 3 % 10);
  return size;
}

static void write_idx_set(writer write, const char *suffix) {
  uint8_t bytes[4096];
  char name[64];
  snprintf(name, sizeof name, "train-images-idx3-ubyte%s", suffix);
  write(name, bytes, make_images(bytes, 0x803, TRAIN, TRAIN, SIDE));
  snprintf(name, sizeof name, "train-labels-idx1-ubyte%s", suffix);
  write(name, bytes, make_labels(bytes, 0x801, TRAIN, TRAIN));
  snprintf(name, sizeof name, "t10k-images-idx3-ubyte%s", suffix);
  write(name, bytes, make_images(bytes, 0x803, TEST, TEST, SIDE));
  snprintf(name, sizeof name, "t10k-labels-idx1-ubyte%s", suffix);
  write(name, bytes, make_labels(bytes, 0x801, TEST, TEST));
}

/* Gives the four files other names: train-images.idx3-ubyte. */
static void put_dots(const char *suffix) {
  static const char *const names[] = {"train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte",
                                      "t10k-labels-idx1-ubyte"};
  for (int i = 0; i < 4; i++) {
    char name[64], path[3 * PATH_SIZE];
    snprintf(name, sizeof name, "%s%s", names[i], suffix);
    snprintf(path, sizeof path, "%s", in_folder(name));
    *strstr(name, "-idx") = '.';
    assert_int_equal(rename(path, in_folder(name)), 0);
  }
}

static void check_idx_set(const char *kind) {
  esp_dataset *const dataset = open_kind(kind, folder);
  const esp_dataset_info *const info = esp_dataset_info_of(dataset);
  assert_string_equal(info->name, kind);
  assert_string_equal(info->source, folder);
  assert_int_equal(info->channels, 1);
  assert_int_equal(info->height, SIDE);
  assert_int_equal(info->width, SIDE);
  assert_int_equal(info->classes, 10);
  assert_int_equal(info->count[ESP_TRAIN], TRAIN);
  assert_int_equal(info->count[ESP_TEST], TEST);
  float image[SIDE * SIDE];
  for (uint32_t i = 0; i < TRAIN; i++) {
    esp_dataset_image(dataset, ESP_TRAIN, i, image);
    assert_int_equal(esp_dataset_label(dataset, ESP_TRAIN, i), i * 3 % 10);
    for (uint32_t p = 0; p < SIDE * SIDE; p++) assert_true(image[p] == (float)pixel(i, p) / 255.0f);
  }
  esp_dataset_close(dataset);
}

static void test_idx_plain(void **state) {
  (void)state;
  write_idx_set(write_plain, "");
  check_idx_set("mnist");
}

static void test_idx_other_names(void **state) {
  (void)state;
  write_idx_set(write_plain, "");
  put_dots("");
  check_idx_set("mnist");
}

static void test_idx_other_names_gzip(void **state) {
  (void)state;
  write_idx_set(write_gzip, ".gz");
  put_dots(".gz");
  check_idx_set("mnist");
}

/* No shell replaces a tilde behind a colon. */
static void test_home(void **state) {
  (void)state;
  const char *const home = getenv("HOME");
  char kept[3 * PATH_SIZE];
  snprintf(kept, sizeof kept, "%s", home ? home : "");
  write_idx_set(write_plain, "");
  const char *const name = strrchr(folder, '/') + 1;
  char spec[PATH_SIZE + 16], parent[3 * PATH_SIZE];
  snprintf(parent, sizeof parent, "%.*s", (int)(name - folder) - 1, folder);
  setenv("HOME", parent, 1);
  snprintf(spec, sizeof spec, "~/%s", name);
  esp_dataset_close(open_kind("mnist", spec));
  expect_failure("mnist:~/none", ESP_ERR_NOT_FOUND, parent, "/none");
  if (home) setenv("HOME", kept, 1);
}

static void test_idx_gzip(void **state) {
  (void)state;
  write_idx_set(write_gzip, ".gz");
  check_idx_set("fashion-mnist");
  torture("fashion-mnist", folder);
}

static void test_idx_in_usual_place(void **state) {
  (void)state;
  assert_int_equal(mkdir(in_folder("mnist"), 0700), 0);
  setenv("ESPALIER_DATA", folder, 1);
  expect_failure("mnist", ESP_ERR_NOT_FOUND, "/mnist", "train-images-idx3-ubyte");
  expect_failure("cifar100", ESP_ERR_NOT_FOUND, folder, "cifar-100-binary.tar.gz");
  unsetenv("ESPALIER_DATA");
  expect_failure("mnist", ESP_ERR_NOT_FOUND, "not set", "mnist:PATH");
}

/* One file of a good set is replaced by a bad one. */
static void expect_bad_idx(const char *name, const uint8_t *bytes, size_t size, const char *words,
                           const char *more_words) {
  write_idx_set(write_plain, "");
  write_plain(name, bytes, size);
  expect_bad("mnist", folder, ESP_ERR_FORMAT, name, words);
  expect_bad("mnist", folder, ESP_ERR_FORMAT, name, more_words);
}

static void test_idx_bad_files(void **state) {
  (void)state;
  uint8_t bytes[4096];
  const char *const images = "train-images-idx3-ubyte", *const labels = "train-labels-idx1-ubyte";
  expect_bad_idx(images, bytes, make_labels(bytes, 0x801, 50, 50), "0x00000801", "0x00000803");
  expect_bad_idx(labels, bytes, make_images(bytes, 0x803, 1, 1, SIDE), "0x00000803", "0x00000801");
  expect_bad_idx(images, bytes, make_images(bytes, 0x803, TRAIN, TRAIN, SIDE) - 1, "cut short", "175 bytes");
  expect_bad_idx(images, bytes, make_images(bytes, 0x803, TRAIN, TRAIN, SIDE) + 1, "goes on after byte 191", "");
  expect_bad_idx(images, bytes, make_images(bytes, 0x803, 0xffffffff, TRAIN, SIDE), "cut short", "fetch it again");
  expect_bad_idx(images, bytes, make_images(bytes, 0x803, 0, 0, SIDE), "0 images", "at least 1");
  expect_bad_idx(images, bytes, make_images(bytes, 0x803, 1, 0, 0), "0 x 0 pixels", "1 to 4096");
  expect_bad_idx(images, bytes, make_images(bytes, 0x803, 1, 0, 100000), "100000 x 100000 pixels", "1 to 4096");
  expect_bad_idx(images, bytes, 7, "ends at byte 7", "header");
  expect_bad_idx(images, bytes, 0, "ends at byte 0", "header");
  expect_bad_idx("t10k-images-idx3-ubyte", bytes, make_images(bytes, 0x803, TEST, TEST, SIDE + 1), "6 x 6", "5 x 5");
  expect_bad_idx(labels, bytes, make_labels(bytes, 0x801, TRAIN - 1, TRAIN - 1), "6 labels", "7 images");
  expect_bad_idx(labels, bytes, make_labels(bytes, 0x801, TRAIN, TRAIN - 1), "cut short", "7 bytes of labels");
  const size_t size = make_labels(bytes, 0x801, TRAIN, TRAIN);
  bytes[8 + 4] = 10;
  expect_bad_idx(labels, bytes, size, "image 4 is 10", "expected 0 to 9");
}

static void test_idx_missing_files(void **state) {
  (void)state;
  expect_bad("mnist", in_folder("nowhere"), ESP_ERR_NOT_FOUND, "nowhere", "does not exist");
  expect_bad("mnist", folder, ESP_ERR_NOT_FOUND, "train-images-idx3-ubyte.gz", folder);
  write_idx_set(write_plain, "");
  expect_bad("mnist", in_folder("t10k-labels-idx1-ubyte"), ESP_ERR_USAGE, "is a file", "give the folder");
  remove(in_folder("t10k-labels-idx1-ubyte"));
  expect_bad("mnist", folder, ESP_ERR_NOT_FOUND, "t10k-labels-idx1-ubyte", folder);
}

/* A gzip file cut anywhere, or with a bit flipped behind its header, is found out. */
static void test_idx_damaged_gzip(void **state) {
  (void)state;
  uint8_t bytes[4096];
  const char *const name = "train-images-idx3-ubyte.gz";
  write_idx_set(write_gzip, ".gz");
  const size_t size = read_whole(name, bytes, sizeof bytes);
  for (size_t cut = 0; cut < size; cut++) {
    write_plain(name, bytes, cut);
    expect_bad("mnist", folder, ESP_ERR_FORMAT, name, "");
  }
  for (size_t at = 10; at < size; at++) {
    bytes[at] ^= (uint8_t)(1u << at % 8);
    write_plain(name, bytes, size);
    expect_bad("mnist", folder, ESP_ERR_FORMAT, name, "");
    bytes[at] ^= (uint8_t)(1u << at % 8);
  }
  write_plain(name, bytes, size);
  check_idx_set("mnist");
}

/* Images of one colour pack so well that their size must be checked by unpacking. */
static void test_idx_packs_well(void **state) {
  (void)state;
  enum { IMAGES = 200 };
  static uint8_t bytes[16 + IMAGES * SIDE * SIDE];
  write_idx_set(write_gzip, ".gz");
  memset(bytes, 0, sizeof bytes);
  make_images(bytes, 0x803, TEST, 0, SIDE);
  write_gzip("t10k-images-idx3-ubyte.gz", bytes, 16 + TEST * SIDE * SIDE);
  make_images(bytes, 0x803, IMAGES, 0, SIDE);
  write_gzip("train-images-idx3-ubyte.gz", bytes, sizeof bytes);
  expect_bad("mnist", folder, ESP_ERR_FORMAT, "7 labels", "200 images");
  make_images(bytes, 0x803, IMAGES + 1, 0, SIDE);
  write_gzip("train-images-idx3-ubyte.gz", bytes, sizeof bytes);
  expect_bad("mnist", folder, ESP_ERR_FORMAT, "cut short or damaged", "5025 bytes of images");
}

/* ---- specs ---- */

static void test_bad_specs(void **state) {
  (void)state;
  expect_failure("cifr10", ESP_ERR_NOT_FOUND, "data set \"cifr10\"", "did you mean \"cifar10\"?");
  expect_failure("Fashion-MNIST:/x", ESP_ERR_NOT_FOUND, "\"Fashion-MNIST\"", "");
  expect_failure("", ESP_ERR_NOT_FOUND, "\"\"", "");
  expect_failure("qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqq", ESP_ERR_NOT_FOUND,
                 "; there are synthetic", "hdf5");
  expect_failure("mnist:", ESP_ERR_USAGE, "no path", "four IDX files");
  expect_failure("synthetic:broad", ESP_ERR_USAGE, "synthetic:broad", "synthetic:narrow");
}

static void test_list(void **state) {
  (void)state;
  const esp_dataset_kind *kinds;
  const size_t count = esp_dataset_list(&kinds);
  assert_int_equal(count, 6);
  for (size_t i = 0; i < count; i++) {
    assert_non_null(kinds[i].name);
    assert_non_null(kinds[i].summary);
    assert_non_null(kinds[i].path_form);
    assert_true((kinds[i].places != NULL) == (kinds[i].entries != NULL));
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      IN_FOLDER(test_idx_plain),
      IN_FOLDER(test_idx_gzip),
      IN_FOLDER(test_idx_other_names),
      IN_FOLDER(test_idx_other_names_gzip),
      IN_FOLDER(test_home),
      IN_FOLDER(test_idx_in_usual_place),
      IN_FOLDER(test_idx_bad_files),
      IN_FOLDER(test_idx_missing_files),
      IN_FOLDER(test_idx_damaged_gzip),
      IN_FOLDER(test_idx_packs_well),
      cmocka_unit_test(test_bad_specs),
      cmocka_unit_test(test_list),
  };
  return cmocka_run_group_tests_name("IDX data sets", tests, NULL, NULL);
}
