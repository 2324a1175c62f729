/* label: short */
/* Data sets from HDF5 files that the test writes. */
#include "test_data_files.h"

#include <hdf5.h>
#include <math.h>

/* ---- HDF5 ---- */

enum { H5_COUNT = 30, H5_CHANNELS = 2, H5_HEIGHT = 3, H5_WIDTH = 4, H5_IMAGE = H5_CHANNELS * H5_HEIGHT * H5_WIDTH };

static const hsize_t image_shape[4] = {H5_COUNT, H5_CHANNELS, H5_HEIGHT, H5_WIDTH};
static const hsize_t label_shape[1] = {H5_COUNT};

static hid_t new_file(void) {
  const hid_t file = H5Fcreate(in_folder("x.h5"), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
  assert_true(file >= 0);
  return file;
}

static void put(hid_t file, const char *name, int rank, const hsize_t *shape, hid_t stored, hid_t type,
                const void *values) {
  const hid_t space = H5Screate_simple(rank, shape, NULL);
  const hid_t data = H5Dcreate2(file, name, stored, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
  assert_true(data >= 0 && H5Dwrite(data, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, values) >= 0);
  H5Dclose(data);
  H5Sclose(space);
}

static uint8_t h5_bytes[H5_COUNT * H5_IMAGE];
static float h5_floats[H5_COUNT * H5_IMAGE];
static int h5_labels[H5_COUNT];

static void fill_h5(void) {
  for (int i = 0; i < H5_COUNT * H5_IMAGE; i++) {
    h5_bytes[i] = (uint8_t)(i * 5);
    h5_floats[i] = (float)i * 0.25f - 7.0f;
  }
  for (int i = 0; i < H5_COUNT; i++) h5_labels[i] = i % 4;
}

static void put_bytes(hid_t file, const char *name) {
  put(file, name, 4, image_shape, H5T_STD_U8LE, H5T_NATIVE_UINT8, h5_bytes);
}

static void put_labels(hid_t file, const char *name) {
  put(file, name, 1, label_shape, H5T_STD_I32BE, H5T_NATIVE_INT, h5_labels);
}

/* Channels-first in the file, channels-last from the data set. */
static void check_h5_image(const esp_dataset *dataset, esp_split_name split, int64_t index, int64_t number,
                           bool floats) {
  float image[H5_IMAGE];
  esp_dataset_image(dataset, split, index, image);
  for (int c = 0; c < H5_CHANNELS; c++)
    for (int p = 0; p < H5_HEIGHT * H5_WIDTH; p++) {
      const int64_t at = number * H5_IMAGE + c * H5_HEIGHT * H5_WIDTH + p;
      const float expected = floats ? h5_floats[at] : (float)h5_bytes[at] / 255.0f;
      assert_true(image[p * H5_CHANNELS + c] == expected);
    }
  assert_int_equal(esp_dataset_label(dataset, split, index), h5_labels[number]);
}

/* Which of the file's images (bytes) this is. */
static int number_of(const esp_dataset *dataset, esp_split_name split, int64_t index) {
  float image[H5_IMAGE];
  esp_dataset_image(dataset, split, index, image);
  for (int number = 0; number < H5_COUNT; number++) {
    int same = 0;
    for (int i = 0; i < H5_IMAGE; i++)
      same += image[i % 12 * H5_CHANNELS + i / 12] == (float)h5_bytes[number * H5_IMAGE + i] / 255.0f;
    if (same == H5_IMAGE) return number;
  }
  fail_msg("no image of the file");
  return -1;
}

/* Counts the classes of a split, and each of its images in `seen`. */
static void take_split(const esp_dataset *dataset, esp_split_name split, int classes[4], int seen[H5_COUNT]) {
  int before = -1;
  for (int64_t i = 0; i < esp_dataset_info_of(dataset)->count[split]; i++) {
    const int number = number_of(dataset, split, i);
    check_h5_image(dataset, split, i, number, false);
    assert_true(number > before); /* in the file's order */
    before = number;
    seen[number]++;
    classes[h5_labels[number]]++;
  }
}

static void test_hdf5_bytes(void **state) {
  (void)state;
  fill_h5();
  hid_t file = new_file();
  put_bytes(file, "images");
  put_labels(file, "labels");
  H5Fclose(file);
  esp_dataset *const dataset = open_kind("hdf5", in_folder("x.h5"));
  const esp_dataset_info *const info = esp_dataset_info_of(dataset);
  assert_int_equal(info->channels, H5_CHANNELS);
  assert_int_equal(info->height, H5_HEIGHT);
  assert_int_equal(info->width, H5_WIDTH);
  assert_int_equal(info->classes, 4);
  assert_null(info->class_names);
  assert_int_equal(info->count[ESP_TRAIN], 26);
  assert_int_equal(info->count[ESP_TEST], 4);
  assert_non_null(strstr(info->note, "a tenth of each class"));
  int seen[H5_COUNT] = {0}, trained[4] = {0}, tested[4] = {0};
  take_split(dataset, ESP_TRAIN, trained, seen);
  take_split(dataset, ESP_TEST, tested, seen);
  for (int i = 0; i < H5_COUNT; i++) assert_int_equal(seen[i], 1);
  for (int c = 0; c < 4; c++) assert_int_equal(tested[c], 1);
  esp_dataset_close(dataset);
  torture("hdf5", in_folder("x.h5"));
}

static void test_hdf5_floats_with_test_split(void **state) {
  (void)state;
  fill_h5();
  hid_t file = new_file();
  put(file, "images", 4, image_shape, H5T_IEEE_F32LE, H5T_NATIVE_FLOAT, h5_floats);
  put_labels(file, "labels");
  put(file, "test_images", 4, image_shape, H5T_IEEE_F64LE, H5T_NATIVE_FLOAT, h5_floats);
  put_labels(file, "test_labels");
  char names[4][8] = {"red", "green", "blue", "longest"}, bad_names[4][8] = {"red", "gr\xfcn", "blue", "longest"};
  const hid_t text = H5Tcopy(H5T_C_S1);
  H5Tset_size(text, 8);
  const hsize_t four = 4;
  put(file, "class_names", 1, &four, text, text, bad_names);
  H5Fclose(file);
  expect_bad("hdf5", in_folder("x.h5"), ESP_ERR_FORMAT, "the class name \"gr?n\" is not UTF-8", "x.h5");
  file = H5Fopen(in_folder("x.h5"), H5F_ACC_RDWR, H5P_DEFAULT);
  H5Ldelete(file, "class_names", H5P_DEFAULT);
  put(file, "class_names", 1, &four, text, text, names);
  H5Tclose(text);
  H5Fclose(file);
  esp_dataset *const dataset = open_kind("hdf5", in_folder("x.h5"));
  const esp_dataset_info *const info = esp_dataset_info_of(dataset);
  assert_int_equal(info->count[ESP_TRAIN], H5_COUNT);
  assert_int_equal(info->count[ESP_TEST], H5_COUNT);
  assert_string_equal(info->class_names[1], "green");
  assert_string_equal(info->class_names[3], "longest");
  assert_string_equal(info->note, "");
  for (int64_t i = 0; i < H5_COUNT; i++) check_h5_image(dataset, ESP_TEST, i, i, true);
  esp_dataset_close(dataset);
  torture("hdf5", in_folder("x.h5"));
}

/* Images in order of their classes, as files often have them: every split has its share of each, and the test split is
 * the same whatever is held out for validation. */
static void test_hdf5_sorted(void **state) {
  (void)state;
  fill_h5();
  for (int i = 0; i < H5_COUNT; i++) h5_labels[i] = i / 10;
  hid_t file = new_file();
  put_bytes(file, "images");
  put_labels(file, "labels");
  H5Fclose(file);
  esp_dataset *const dataset = open_kind("hdf5", in_folder("x.h5"));
  int first_tested[H5_COUNT] = {0}, ignored[4] = {0};
  take_split(dataset, ESP_TEST, ignored, first_tested);
  const double shares[] = {0.25, 0, 0.05};
  const int held[] = {2, 0, 1}; /* of the nine that the test split leaves of each class */
  for (int s = 0; s < 3; s++) {
    int counts[ESP_SPLITS][4] = {{0}}, seen[H5_COUNT] = {0}, tested[H5_COUNT] = {0};
    assert_int_equal(esp_dataset_hold_out(dataset, shares[s]), ESP_OK);
    take_split(dataset, ESP_TEST, counts[ESP_TEST], tested);
    assert_memory_equal(tested, first_tested, sizeof tested);
    memcpy(seen, tested, sizeof seen);
    take_split(dataset, ESP_TRAIN, counts[ESP_TRAIN], seen);
    take_split(dataset, ESP_VALIDATION, counts[ESP_VALIDATION], seen);
    for (int i = 0; i < H5_COUNT; i++) assert_int_equal(seen[i], 1);
    for (int c = 0; c < 3; c++) {
      assert_int_equal(counts[ESP_TEST][c], 1);
      assert_int_equal(counts[ESP_VALIDATION][c], held[s]);
      assert_int_equal(counts[ESP_TRAIN][c], 9 - held[s]);
    }
  }
  esp_dataset_close(dataset);
}

/* Nothing can be a test split if no class has two images. */
static void test_hdf5_too_few(void **state) {
  (void)state;
  fill_h5();
  for (int i = 0; i < H5_COUNT; i++) h5_labels[i] = i;
  hid_t file = new_file();
  put_bytes(file, "images");
  put_labels(file, "labels");
  H5Fclose(file);
  expect_bad("hdf5", in_folder("x.h5"), ESP_ERR_FORMAT, "x.h5: no class of hdf5 has two training images",
             "add `test_images`");
}

/* A validation split of the file's own stays whatever is asked for, and nothing is held out besides. */
static void test_hdf5_with_validation_split(void **state) {
  (void)state;
  fill_h5();
  hid_t file = new_file();
  put_bytes(file, "images");
  put_labels(file, "labels");
  put_bytes(file, "validation_images");
  put_labels(file, "validation_labels");
  H5Fclose(file);
  esp_dataset *const dataset = open_kind("hdf5", in_folder("x.h5"));
  const esp_dataset_info *const info = esp_dataset_info_of(dataset);
  assert_int_equal(esp_dataset_hold_out(dataset, 0.5), ESP_OK);
  assert_true(info->own_validation && info->validation == 0);
  assert_int_equal(info->count[ESP_TRAIN], 26);
  assert_int_equal(info->count[ESP_VALIDATION], H5_COUNT);
  assert_int_equal(info->count[ESP_TEST], 4);
  for (int64_t i = 0; i < H5_COUNT; i++) check_h5_image(dataset, ESP_VALIDATION, i, i, false);
  esp_dataset_close(dataset);
}

static void test_hdf5_variable_names(void **state) {
  (void)state;
  fill_h5();
  hid_t file = new_file();
  put_bytes(file, "images");
  put_labels(file, "labels");
  const char *const names[] = {"a", "bb", "ccc", "dddd", "eeeee"};
  const hid_t text = H5Tcopy(H5T_C_S1);
  H5Tset_size(text, H5T_VARIABLE);
  const hsize_t five = 5;
  put(file, "class_names", 1, &five, text, text, names);
  H5Tclose(text);
  H5Fclose(file);
  esp_dataset *const dataset = open_kind("hdf5", in_folder("x.h5"));
  assert_int_equal(esp_dataset_info_of(dataset)->classes, 5);
  assert_string_equal(esp_dataset_info_of(dataset)->class_names[4], "eeeee");
  esp_dataset_close(dataset);
  torture("hdf5", in_folder("x.h5"));
}

static void expect_bad_h5(hid_t file, const char *words, const char *more_words) {
  H5Fclose(file);
  expect_bad("hdf5", in_folder("x.h5"), ESP_ERR_FORMAT, words, more_words);
}

static void test_hdf5_bad_contents(void **state) {
  (void)state;
  fill_h5();
  expect_bad_h5(new_file(), "no dataset `images`", "x.h5");
  hid_t file = new_file();
  put_bytes(file, "images");
  expect_bad_h5(file, "no dataset `labels`", "x.h5");
  file = new_file();
  put(file, "images", 1, label_shape, H5T_STD_U8LE, H5T_NATIVE_INT, h5_labels);
  put_labels(file, "labels");
  expect_bad_h5(file, "`images` has 1 dimensions", "expected 4");
  file = new_file();
  put(file, "images", 4, image_shape, H5T_STD_I16LE, H5T_NATIVE_UINT8, h5_bytes);
  put_labels(file, "labels");
  expect_bad_h5(file, "neither uint8 nor floating-point", "`images`");
  file = new_file();
  put_bytes(file, "images");
  const hsize_t fewer = H5_COUNT - 1;
  put(file, "labels", 1, &fewer, H5T_STD_I32LE, H5T_NATIVE_INT, h5_labels);
  expect_bad_h5(file, "`labels` has 29 entries", "`images` 30");
  file = new_file();
  put_bytes(file, "images");
  put(file, "labels", 1, label_shape, H5T_IEEE_F32LE, H5T_NATIVE_INT, h5_labels);
  expect_bad_h5(file, "`labels` holds no integers", "class number");
  file = new_file();
  put_bytes(file, "images");
  put_labels(file, "labels");
  put_bytes(file, "test_images");
  expect_bad_h5(file, "no dataset `test_labels`", "x.h5");
}

static void test_hdf5_bad_labels(void **state) {
  (void)state;
  const int bad[] = {-1, 70000};
  for (int i = 0; i < 2; i++) {
    fill_h5();
    h5_labels[28] = bad[i]; /* in the part that becomes the test split */
    hid_t file = new_file();
    put_bytes(file, "images");
    put_labels(file, "labels");
    expect_bad_h5(file, "image 28", i ? "is 70000" : "is -1");
  }
  fill_h5();
  hid_t file = new_file();
  put_bytes(file, "images");
  put_labels(file, "labels");
  char names[3][2] = {"a", "b", "c"};
  const hid_t text = H5Tcopy(H5T_C_S1);
  H5Tset_size(text, 2);
  const hsize_t three = 3;
  put(file, "class_names", 1, &three, text, text, names);
  H5Tclose(text);
  expect_bad_h5(file, "image 3 is 3", "expected 0 to 2");
}

static void test_hdf5_not_finite(void **state) {
  (void)state;
  fill_h5();
  h5_floats[5 * H5_IMAGE + 2] = NAN;
  hid_t file = new_file();
  put(file, "images", 4, image_shape, H5T_IEEE_F32LE, H5T_NATIVE_FLOAT, h5_floats);
  put_labels(file, "labels");
  H5Fclose(file);
  expect_bad("hdf5", in_folder("x.h5"), ESP_ERR_NOT_FINITE, "image 5", "not finite");
}

/* ---- what lies elsewhere ---- */

static void put_labels_and_close(hid_t file) {
  put_labels(file, "labels");
  H5Fclose(file);
}

/* Images made of those of `source`. */
static void put_virtual(const char *source, const char *name) {
  const hid_t file = new_file(), list = H5Pcreate(H5P_DATASET_CREATE), space = H5Screate_simple(4, image_shape, NULL);
  assert_true(H5Pset_virtual(list, space, source, name, space) >= 0);
  H5Dclose(H5Dcreate2(file, "images", H5T_STD_U8LE, space, H5P_DEFAULT, list, H5P_DEFAULT));
  H5Pclose(list), H5Sclose(space);
  put_labels_and_close(file);
}

static void test_hdf5_virtual(void **state) {
  (void)state;
  fill_h5();
  hid_t file = H5Fcreate(in_folder("part.h5"), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
  put_bytes(file, "pictures");
  H5Fclose(file);
  put_virtual("part.h5", "pictures");
  esp_dataset *const dataset = open_kind("hdf5", in_folder("x.h5"));
  int classes[4] = {0}, seen[H5_COUNT] = {0};
  take_split(dataset, ESP_TRAIN, classes, seen);
  take_split(dataset, ESP_TEST, classes, seen);
  for (int i = 0; i < H5_COUNT; i++) assert_int_equal(seen[i], 1);
  esp_dataset_close(dataset);
  put_virtual("gone.h5", "pictures"); /* HDF5 would make that zeros */
  expect_bad("hdf5", in_folder("x.h5"), ESP_ERR_NOT_FOUND, "gone.h5", "a source of the virtual dataset");
  put_virtual("../part.h5", "pictures");
  expect_bad("hdf5", in_folder("x.h5"), ESP_ERR_FORMAT, "\"../part.h5\"", "in the folder of this one");
  put_virtual(in_folder("part.h5"), "pictures");
  expect_bad("hdf5", in_folder("x.h5"), ESP_ERR_FORMAT, "takes its values from", "in the folder of this one");
  put_virtual("part.h5", "other");
  expect_bad("hdf5", in_folder("x.h5"), ESP_ERR_FORMAT, "no dataset `other`", "a virtual one takes its values");
  put_virtual("x.h5", "images"); /* itself */
  expect_bad("hdf5", in_folder("x.h5"), ESP_ERR_FORMAT, "x.h5", "virtual");
}

static void test_hdf5_elsewhere(void **state) {
  (void)state;
  fill_h5();
  hid_t file = H5Fcreate(in_folder("other.h5"), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
  put_bytes(file, "images");
  H5Fclose(file);
  file = new_file();
  H5Lcreate_external("other.h5", "images", file, "images", H5P_DEFAULT, H5P_DEFAULT);
  put_labels_and_close(file);
  expect_bad("hdf5", in_folder("x.h5"), ESP_ERR_FORMAT, "`images` is a link to another file", "not followed");
  file = new_file();
  put_bytes(file, "pictures");
  H5Lcreate_soft("pictures", file, "images", H5P_DEFAULT, H5P_DEFAULT);
  put_labels_and_close(file);
  expect_bad("hdf5", in_folder("x.h5"), ESP_ERR_FORMAT, "`images` is a link to another name", "not followed");
  file = new_file();
  const hid_t list = H5Pcreate(H5P_DATASET_CREATE), space = H5Screate_simple(4, image_shape, NULL);
  H5Pset_external(list, "/etc/passwd", 0, sizeof h5_bytes);
  H5Dclose(H5Dcreate2(file, "images", H5T_STD_U8LE, space, H5P_DEFAULT, list, H5P_DEFAULT));
  H5Pclose(list), H5Sclose(space);
  put_labels_and_close(file);
  expect_bad("hdf5", in_folder("x.h5"), ESP_ERR_FORMAT, "`images` lie in other files", "external storage");
}

static void put_chunked(hid_t file, const hsize_t chunk[4], int filter) {
  const hid_t list = H5Pcreate(H5P_DATASET_CREATE), space = H5Screate_simple(4, image_shape, NULL);
  H5Pset_chunk(list, 4, chunk);
  if (filter == H5Z_FILTER_NBIT) H5Pset_nbit(list);
  else H5Pset_deflate(list, 1);
  const hid_t data = H5Dcreate2(file, "images", H5T_STD_U8LE, space, H5P_DEFAULT, list, H5P_DEFAULT);
  assert_true(data >= 0 && H5Dwrite(data, H5T_NATIVE_UINT8, H5S_ALL, H5S_ALL, H5P_DEFAULT, h5_bytes) >= 0);
  H5Dclose(data), H5Pclose(list), H5Sclose(space);
}

static void test_hdf5_filters(void **state) {
  (void)state;
  fill_h5();
  const hid_t file = new_file();
  put_chunked(file, (const hsize_t[]){4, 2, 3, 4}, H5Z_FILTER_NBIT);
  put_labels_and_close(file);
  expect_bad("hdf5", in_folder("x.h5"), ESP_ERR_FORMAT, "filter 5 (nbit)", "h5repack");
}

/* The images are those of the file, however it cuts them. */
static void test_hdf5_chunks(void **state) {
  (void)state;
  static const hsize_t chunks[][4] = {{1, 1, 1, 1}, {7, 2, 3, 4}, {30, 1, 2, 3}, {11, 2, 1, 4}};
  fill_h5();
  for (size_t i = 0; i < sizeof chunks / sizeof chunks[0]; i++) {
    const hid_t file = new_file();
    put_chunked(file, chunks[i], H5Z_FILTER_DEFLATE);
    put_bytes(file, "test_images");
    put_labels(file, "test_labels");
    put_labels_and_close(file);
    esp_dataset *const dataset = open_kind("hdf5", in_folder("x.h5"));
    for (int64_t n = 0; n < H5_COUNT; n++) check_h5_image(dataset, ESP_TRAIN, n, n, false);
    esp_dataset_close(dataset);
  }
}

static void test_hdf5_channels_last(void **state) {
  (void)state;
  static uint8_t zeros[20 * 8 * 8 * 3];
  static const hsize_t shapes[][4] = {{20, 8, 8, 3}, {20, 8, 8, 1}, {20, 3, 8, 8}, {20, 8, 1, 8}, {20, 2, 8, 3}};
  for (int i = 0; i < 5; i++) {
    const hid_t file = new_file();
    const hsize_t count = 20;
    put(file, "images", 4, shapes[i], H5T_STD_U8LE, H5T_NATIVE_UINT8, zeros);
    put(file, "labels", 1, &count, H5T_STD_I32LE, H5T_NATIVE_INT, (const int[20]){0, 1, 0, 1});
    H5Fclose(file);
    if (i < 2) expect_bad("hdf5", in_folder("x.h5"), ESP_ERR_FORMAT, "channels last", "transpose(0, 3, 1, 2)");
    else esp_dataset_close(open_kind("hdf5", in_folder("x.h5")));
  }
}

static void put_names(hid_t file, hsize_t count, const char *const *names) {
  const hid_t text = H5Tcopy(H5T_C_S1);
  H5Tset_size(text, H5T_VARIABLE);
  put(file, "class_names", 1, &count, text, text, names);
  H5Tclose(text);
}

static void test_hdf5_wild_names(void **state) {
  (void)state;
  static char longer[3000];
  memset(longer, 'a', sizeof longer - 1);
  fill_h5();
  const char *const cases[][4] = {{"a", "b", longer, "d"}, {"a", "b", "c\nc", "d"}, {"a", "b", "", "d"}};
  for (int i = 0; i < 3; i++) {
    const hid_t file = new_file();
    put_bytes(file, "images");
    put_names(file, 4, cases[i]);
    put_labels_and_close(file);
    expect_bad("hdf5", in_folder("x.h5"), ESP_ERR_FORMAT, "`class_names` has", "as number 2");
  }
  const hid_t file = new_file();
  put_bytes(file, "images");
  put_names(file, 4, (const char *const[]){" a", "b ", "\tc", "d e"});
  put_labels_and_close(file);
  esp_dataset *const dataset = open_kind("hdf5", in_folder("x.h5"));
  assert_string_equal(esp_dataset_info_of(dataset)->class_names[0], "a");
  assert_string_equal(esp_dataset_info_of(dataset)->class_names[1], "b");
  assert_string_equal(esp_dataset_info_of(dataset)->class_names[2], "c");
  assert_string_equal(esp_dataset_info_of(dataset)->class_names[3], "d e");
  esp_dataset_close(dataset);
}

/* A file with a test split of its own, whose labels are `labels` and `test_labels`. */
static esp_dataset *with_labels(const int *labels, const int *test_labels, bool same_images) {
  const hid_t file = new_file();
  fill_h5();
  put_bytes(file, "images");
  put(file, "labels", 1, label_shape, H5T_STD_I32LE, H5T_NATIVE_INT, labels);
  if (!same_images) h5_bytes[7]++;
  put_bytes(file, "test_images");
  put(file, "test_labels", 1, label_shape, H5T_STD_I32LE, H5T_NATIVE_INT, test_labels);
  H5Fclose(file);
  return open_kind("hdf5", in_folder("x.h5"));
}

static void expect_remarks(esp_dataset *dataset, esp_status status, const char *words) {
  char remarks[512];
  assert_int_equal(esp_dataset_check(dataset, remarks, sizeof remarks), status);
  const char *const said = status == ESP_OK ? remarks : esp_error_message();
  if (*words ? !strstr(said, words) : *said) fail_msg("\"%s\" is not said: \"%s\"", words, said);
  esp_dataset_close(dataset);
}

static void test_faults(void **state) {
  (void)state;
  int good[H5_COUNT], one[H5_COUNT], from_one[H5_COUNT], wild[H5_COUNT], low[H5_COUNT], high[H5_COUNT];
  for (int i = 0; i < H5_COUNT; i++) {
    good[i] = i % 4;
    one[i] = 3;
    from_one[i] = 1 + i % 4;
    wild[i] = i == 9 ? 255 : i % 4;
    low[i] = i % 3;
    high[i] = 3 + i % 2;
  }
  expect_remarks(with_labels(good, good, false), ESP_OK, "");
  expect_remarks(with_labels(good, good, true), ESP_OK, "the test split is the training split");
  expect_remarks(with_labels(one, one, false), ESP_ERR_FORMAT, "all training images have one label");
  expect_remarks(with_labels(low, high, false), ESP_ERR_FORMAT,
                 "no class of the test split is among the training images");
  expect_remarks(with_labels(low, good, false), ESP_OK,
                 "1 classes of the test split (7 images) lack training images, the first is class 3");
  expect_remarks(with_labels(from_one, from_one, false), ESP_OK, "seem to begin at 1");
  expect_remarks(with_labels(wild, good, false), ESP_OK, "251 of 256 classes never occur; the largest label is 255");
}

/* An image set that is only promised: chunks that were never written. */
static void test_hdf5_hollow(void **state) {
  (void)state;
  fill_h5();
  hid_t file = new_file();
  const hsize_t shape[4] = {1000000000, 3, 1024, 1024}, chunk[4] = {1, 1, 1024, 1024};
  const hid_t space = H5Screate_simple(4, shape, NULL), how = H5Pcreate(H5P_DATASET_CREATE);
  H5Pset_chunk(how, 4, chunk);
  const hid_t data = H5Dcreate2(file, "images", H5T_STD_U8LE, space, H5P_DEFAULT, how, H5P_DEFAULT);
  assert_true(data >= 0);
  H5Dclose(data);
  H5Pclose(how);
  H5Sclose(space);
  put_labels(file, "labels");
  expect_bad_h5(file, "claims 3145728000000000 bytes", "stores 0");
}

static void test_hdf5_bad_file(void **state) {
  (void)state;
  static uint8_t bytes[1 << 16];
  expect_failure("hdf5", ESP_ERR_USAGE, "needs a path", "hdf5:PATH");
  expect_bad("hdf5", in_folder("none.h5"), ESP_ERR_NOT_FOUND, "none.h5", "No such file");
  assert_int_equal(mkfifo(in_folder("fifo.h5"), 0600), 0);
  expect_bad("hdf5", in_folder("fifo.h5"), ESP_ERR_USAGE, "fifo.h5", "is a FIFO; expected an HDF5 file");
  write_plain("x.h5", "this is no HDF5 file", 20);
  expect_bad("hdf5", in_folder("x.h5"), ESP_ERR_FORMAT, "no HDF5 file", "x.h5");
  fill_h5();
  hid_t file = new_file();
  put_bytes(file, "images");
  put_labels(file, "labels");
  H5Fclose(file);
  const size_t size = read_whole("x.h5", bytes, sizeof bytes);
  for (size_t cut = 0; cut < size; cut += size / 20) {
    write_plain("x.h5", bytes, cut);
    expect_bad("hdf5", in_folder("x.h5"), ESP_ERR_FORMAT, "x.h5", "");
  }
}

static void test_normalisation(void **state) {
  (void)state;
  fill_h5();
  for (int i = 0; i < H5_COUNT; i++) /* the second channel never varies */
    for (int p = 0; p < H5_HEIGHT * H5_WIDTH; p++) h5_bytes[i * H5_IMAGE + H5_HEIGHT * H5_WIDTH + p] = 51;
  hid_t file = new_file();
  put_bytes(file, "images");
  put_labels(file, "labels");
  H5Fclose(file);
  esp_dataset *const dataset = open_kind("hdf5", in_folder("x.h5"));
  esp_normalisation got;
  esp_dataset_normalisation(dataset, &got);
  double sum = 0, squares = 0;
  const int values = 26 * H5_HEIGHT * H5_WIDTH;
  for (int i = 0; i < 26; i++)
    for (int p = 0; p < H5_HEIGHT * H5_WIDTH; p++) {
      const double value = h5_bytes[number_of(dataset, ESP_TRAIN, i) * H5_IMAGE + p] / 255.0;
      sum += value;
      squares += value * value;
    }
  assert_true(fabs((double)got.mean[0] - sum / values) < 1e-6);
  assert_true(fabs((double)got.deviation[0] - sqrt(squares / values - sum / values * sum / values)) < 1e-6);
  assert_true(fabs((double)got.mean[1] - 0.2) < 1e-6);
  assert_true(got.deviation[1] == 1.0f);
  esp_dataset_close(dataset);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      IN_FOLDER(test_hdf5_bytes),
      IN_FOLDER(test_hdf5_floats_with_test_split),
      IN_FOLDER(test_hdf5_sorted),
      IN_FOLDER(test_hdf5_too_few),
      IN_FOLDER(test_hdf5_with_validation_split),
      IN_FOLDER(test_hdf5_variable_names),
      IN_FOLDER(test_hdf5_bad_contents),
      IN_FOLDER(test_hdf5_bad_labels),
      IN_FOLDER(test_hdf5_not_finite),
      IN_FOLDER(test_hdf5_virtual),
      IN_FOLDER(test_hdf5_elsewhere),
      IN_FOLDER(test_hdf5_filters),
      IN_FOLDER(test_hdf5_chunks),
      IN_FOLDER(test_hdf5_channels_last),
      IN_FOLDER(test_hdf5_wild_names),
      IN_FOLDER(test_faults),
      IN_FOLDER(test_hdf5_hollow),
      IN_FOLDER(test_hdf5_bad_file),
      IN_FOLDER(test_normalisation),
  };
  return cmocka_run_group_tests_name("HDF5 data sets", tests, NULL, NULL);
}
