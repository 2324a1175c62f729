/* label: short */
/* CIFAR-10 and CIFAR-100 from folders and archives that the test writes. */
#include "test_data_files.h"

enum { RECORD = 3073 };

/* ---- CIFAR ---- */

typedef struct member {
  const char *name;
  size_t size;
  uint8_t bytes[3 * (RECORD + 1)];
} member;

enum { MEMBERS = 7, PER_BATCH = 2 };

/* Records whose red, green and blue planes are told apart; `labels` of them bytes before the pixels. */
static void make_records(member *m, const char *name, int first, int count, int labels) {
  m->name = name;
  m->size = 0;
  for (int i = first; i < first + count; i++) {
    for (int l = 0; l < labels; l++) m->bytes[m->size++] = (uint8_t)(l == labels - 1 ? i % 10 : 99);
    for (int p = 0; p < RECORD - 1; p++) m->bytes[m->size++] = (uint8_t)(i + p % 1024 + 50 * (p / 1024));
  }
}

static void make_text(member *m, const char *name, const char *text) {
  m->name = name;
  m->size = strlen(text);
  memcpy(m->bytes, text, m->size);
}

static void make_cifar10(member members[MEMBERS]) {
  static const char *const names[] = {"data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin",
                                      "data_batch_4.bin", "data_batch_5.bin", "test_batch.bin"};
  for (int i = 0; i < 6; i++) make_records(&members[i], names[i], i * PER_BATCH, PER_BATCH, 1);
  make_text(&members[6], "batches.meta.txt", "a\nb\nc\nd\ne\nf\ng\nh\ni\nlast one\n\n");
}

static size_t put_member(uint8_t *tar, const char *path, const uint8_t *bytes, size_t size, char type) {
  memset(tar, 0, 512);
  snprintf((char *)tar, 100, "%s", path);
  snprintf((char *)tar + 100, 8, "%07o", 0644u);
  snprintf((char *)tar + 124, 12, "%011zo", size);
  memcpy(tar + 148, "        ", 8);
  tar[156] = (uint8_t)type;
  memcpy(tar + 257, "ustar", 6);
  unsigned sum = 0;
  for (int i = 0; i < 512; i++) sum += tar[i];
  snprintf((char *)tar + 148, 8, "%06o", sum);
  const size_t padded = (size + 511) / 512 * 512;
  memset(tar + 512, 0, padded);
  if (size) memcpy(tar + 512, bytes, size);
  return 512 + padded;
}

/* The members in another order than the data set's, after a folder and a file of no interest. */
static size_t make_tar(uint8_t *tar, const member *members, int count) {
  char path[128];
  size_t size = put_member(tar, "cifar/", NULL, 0, '5');
  size += put_member(tar + size, "cifar/readme.html", (const uint8_t *)"hello", 5, '0');
  for (int i = count - 1; i >= 0; i--) {
    snprintf(path, sizeof path, "cifar/%s", members[i].name);
    size += put_member(tar + size, path, members[i].bytes, members[i].size, '0');
  }
  memset(tar + size, 0, 1024);
  return size + 1024;
}

/* The same under names that no header holds: as GNU writes them (a member of type L with the name) or pax (records). */
static size_t make_long_tar(uint8_t *tar, const member *members, int count, bool pax) {
  char folder_name[160], path[256], record[300];
  size_t size = 0;
  memset(folder_name, 'a', sizeof folder_name - 1);
  folder_name[sizeof folder_name - 1] = '\0';
  for (int i = 0; i < count; i++) {
    snprintf(path, sizeof path, "./%s/%s", folder_name, members[i].name);
    const int length = (int)strlen("000 path=\n") + (int)strlen(path);
    snprintf(record, sizeof record, "%d path=%s\n", length, path);
    const char *const text = pax ? record : path;
    size += put_member(tar + size, "././@LongLink", (const uint8_t *)text, strlen(text), pax ? 'x' : 'L');
    path[90] = '\0'; /* what fits */
    size += put_member(tar + size, path, members[i].bytes, members[i].size, '0');
  }
  memset(tar + size, 0, 1024);
  return size + 1024;
}

enum { TAR_SIZE = 128 * 1024 };

static void write_members(const member *members, int count) {
  for (int i = 0; i < count; i++) write_plain(members[i].name, members[i].bytes, members[i].size);
}

static void check_cifar10(const char *path) {
  esp_dataset *const dataset = open_kind("cifar10", path);
  const esp_dataset_info *const info = esp_dataset_info_of(dataset);
  assert_int_equal(info->channels, 3);
  assert_int_equal(info->height, 32);
  assert_int_equal(info->classes, 10);
  assert_string_equal(info->class_names[9], "last one");
  assert_int_equal(info->count[ESP_TRAIN], 5 * PER_BATCH);
  assert_int_equal(info->count[ESP_TEST], PER_BATCH);
  static float image[32 * 32 * 3];
  for (int i = 0; i < 6 * PER_BATCH; i++) {
    const esp_split_name split = i < 5 * PER_BATCH ? ESP_TRAIN : ESP_TEST;
    const int64_t index = split == ESP_TRAIN ? i : i - 5 * PER_BATCH;
    assert_int_equal(esp_dataset_label(dataset, split, index), i % 10);
    esp_dataset_image(dataset, split, index, image);
    for (int p = 0; p < 1024; p++)
      for (int c = 0; c < 3; c++) assert_true(image[p * 3 + c] == (float)(uint8_t)(i + p + 50 * c) / 255.0f);
  }
  esp_dataset_close(dataset);
}

static member cifar[MEMBERS];
static uint8_t tar[TAR_SIZE];

static void test_cifar10_folder(void **state) {
  (void)state;
  make_cifar10(cifar);
  write_members(cifar, MEMBERS);
  check_cifar10(folder);
  torture("cifar10", folder);
}

static void test_cifar10_archive(void **state) {
  (void)state;
  make_cifar10(cifar);
  const size_t size = make_tar(tar, cifar, MEMBERS);
  write_gzip("c.tar.gz", tar, size);
  check_cifar10(in_folder("c.tar.gz"));
  torture("cifar10", in_folder("c.tar.gz"));
  write_plain("c.tar", tar, size);
  check_cifar10(in_folder("c.tar"));
}

static void test_cifar10_long_names(void **state) {
  (void)state;
  make_cifar10(cifar);
  for (int pax = 0; pax < 2; pax++) {
    write_gzip("c.tar.gz", tar, make_long_tar(tar, cifar, MEMBERS, pax));
    check_cifar10(in_folder("c.tar.gz"));
  }
  torture("cifar10", in_folder("c.tar.gz"));
}

/* Records whose lengths are not theirs are passed over. */
static void test_tar_wild_records(void **state) {
  (void)state;
  static const char *const records[] = {
      "99 path=a\n", "3 a", "0 path=x\n", "path=", "18446744073709551615 path=a\n", "", "9 path=a\n"};
  make_cifar10(cifar);
  for (size_t i = 0; i < sizeof records / sizeof records[0]; i++) {
    const size_t size = put_member(tar, "pax", (const uint8_t *)records[i], strlen(records[i]), 'x');
    write_gzip("c.tar.gz", tar, size + make_tar(tar + size, cifar, MEMBERS));
    check_cifar10(in_folder("c.tar.gz"));
  }
  put_member(tar, "pax", NULL, 0, 'L');
  snprintf((char *)tar + 124, 12, "%011o", 0x7fffffffu);
  memcpy(tar + 148, "        ", 8);
  unsigned sum = 0;
  for (int i = 0; i < 512; i++) sum += tar[i];
  snprintf((char *)tar + 148, 8, "%06o", sum);
  write_gzip("c.tar.gz", tar, 2048);
  expect_bad("cifar10", in_folder("c.tar.gz"), ESP_ERR_FORMAT, "a name of 2147483647 bytes", "at most");
}

static void test_cifar_same_digest(void **state) {
  (void)state;
  char digest[2][64];
  make_cifar10(cifar);
  write_gzip("c.tar.gz", tar, make_tar(tar, cifar, MEMBERS));
  write_members(cifar, MEMBERS);
  for (int i = 0; i < 2; i++) {
    esp_dataset *const dataset = open_kind("cifar10", i ? folder : in_folder("c.tar.gz"));
    snprintf(digest[i], sizeof digest[i], "%s", esp_dataset_info_of(dataset)->digest);
    esp_dataset_close(dataset);
  }
  assert_string_equal(digest[0], digest[1]);
}

static void test_cifar100(void **state) {
  (void)state;
  make_records(&cifar[0], "train.bin", 0, 3, 2);
  make_records(&cifar[1], "test.bin", 3, 2, 2);
  write_members(cifar, 2);
  esp_dataset *dataset = open_kind("cifar100", folder);
  assert_int_equal(esp_dataset_info_of(dataset)->classes, 100);
  assert_null(esp_dataset_info_of(dataset)->class_names);
  assert_int_equal(esp_dataset_label(dataset, ESP_TEST, 1), 4); /* the fine label */
  esp_dataset_close(dataset);
  make_text(&cifar[2], "fine_label_names.txt", "one\r\ntwo\r\nthree\r\nfour\r\nfive");
  write_members(cifar, 3);
  dataset = open_kind("cifar100", folder);
  assert_int_equal(esp_dataset_info_of(dataset)->classes, 5);
  assert_string_equal(esp_dataset_info_of(dataset)->class_names[1], "two");
  assert_string_equal(esp_dataset_info_of(dataset)->class_names[4], "five");
  esp_dataset_close(dataset);
  make_text(&cifar[2], "fine_label_names.txt", "one\ntwo\nthree\n");
  write_members(cifar, 3);
  expect_bad("cifar100", folder, ESP_ERR_FORMAT, "test.bin", "image 0 is 3; expected 0 to 2");
}

static void test_cifar_bad_folder(void **state) {
  (void)state;
  expect_bad("cifar10", folder, ESP_ERR_NOT_FOUND, "data_batch_1.bin", "binary version");
  expect_bad("cifar10", in_folder("none.tar.gz"), ESP_ERR_NOT_FOUND, "none.tar.gz", "No such file");
  make_cifar10(cifar);
  write_members(cifar, MEMBERS);
  remove(in_folder("data_batch_4.bin"));
  expect_bad("cifar10", folder, ESP_ERR_NOT_FOUND, "data_batch_4.bin", "No such file");
  write_plain("data_batch_4.bin", cifar[3].bytes, RECORD - 1);
  expect_bad("cifar10", folder, ESP_ERR_FORMAT, "data_batch_4.bin: 3072 bytes", "3073-byte records");
  write_plain("data_batch_4.bin", "", 0);
  expect_bad("cifar10", folder, ESP_ERR_FORMAT, "data_batch_4.bin: 0 bytes", "cut short");
  cifar[3].bytes[RECORD] = 10;
  write_members(cifar, MEMBERS);
  expect_bad("cifar10", folder, ESP_ERR_FORMAT, "data_batch_4.bin", "image 1 is 10; expected 0 to 9");
  write_gzip("data_batch_4.bin", cifar[3].bytes, cifar[3].size);
  expect_bad("cifar10", folder, ESP_ERR_FORMAT, "data_batch_4.bin", "compressed");
  write_plain("batches.meta.txt", "\n\n", 2);
  make_cifar10(cifar);
  write_members(cifar, MEMBERS - 1);
  expect_bad("cifar10", folder, ESP_ERR_FORMAT, "batches.meta.txt", "0 class names");
}

static void test_cifar_bad_archive(void **state) {
  (void)state;
  const char *const path = in_folder("c.tar.gz");
  make_cifar10(cifar);
  const size_t size = make_tar(tar, cifar, MEMBERS);
  tar[512 + 124] ^= 1; /* the size of readme.html */
  write_gzip("c.tar.gz", tar, size);
  expect_bad("cifar10", path, ESP_ERR_FORMAT, "byte 512", "checksum");
  write_gzip("c.tar.gz", tar, make_tar(tar, cifar + 1, MEMBERS - 1));
  expect_bad("cifar10", path, ESP_ERR_FORMAT, "holds no data_batch_1.bin", "cifar-10-binary.tar.gz");
  write_gzip("c.tar.gz", tar, make_tar(tar, cifar, MEMBERS) - 1024 - 9000);
  expect_bad("cifar10", path, ESP_ERR_FORMAT, "c.tar.gz", "cut short");
  cifar[2].size--;
  write_gzip("c.tar.gz", tar, make_tar(tar, cifar, MEMBERS));
  expect_bad("cifar10", path, ESP_ERR_FORMAT, "data_batch_3.bin: 6145 bytes", "3073-byte records");
  make_cifar10(cifar);
  cifar[1].name = "data_batch_1.bin";
  write_gzip("c.tar.gz", tar, make_tar(tar, cifar, MEMBERS));
  expect_bad("cifar10", path, ESP_ERR_FORMAT, "data_batch_1.bin", "twice");
  write_plain("c.tar.gz", "not an archive", 14);
  expect_bad("cifar10", path, ESP_ERR_FORMAT, "tar header", "cut short");
}

/* Damage is found out, unless the same bytes are unpacked all the same. */
static void expect_bad_or_same(const char *digest) {
  char spec[3 * PATH_SIZE];
  esp_dataset *dataset;
  snprintf(spec, sizeof spec, "cifar10:%s", in_folder("c.tar.gz"));
  const esp_status status = esp_dataset_open(&dataset, spec);
  if (status == ESP_OK) assert_string_equal(esp_dataset_info_of(dataset)->digest, digest);
  else assert_int_equal(status, ESP_ERR_FORMAT);
  esp_dataset_close(dataset);
}

static void test_cifar_damaged_archive(void **state) {
  (void)state;
  static uint8_t bytes[TAR_SIZE];
  char digest[64];
  make_cifar10(cifar);
  write_gzip("c.tar.gz", tar, make_tar(tar, cifar, MEMBERS));
  esp_dataset *const dataset = open_kind("cifar10", in_folder("c.tar.gz"));
  snprintf(digest, sizeof digest, "%s", esp_dataset_info_of(dataset)->digest);
  esp_dataset_close(dataset);
  const size_t size = read_whole("c.tar.gz", bytes, sizeof bytes);
  for (size_t at = 10; at < size; at += 1 + size / 200) {
    write_plain("c.tar.gz", bytes, at);
    expect_bad("cifar10", in_folder("c.tar.gz"), ESP_ERR_FORMAT, "c.tar.gz", "");
    bytes[at] ^= (uint8_t)(1u << at % 8);
    write_plain("c.tar.gz", bytes, size);
    expect_bad_or_same(digest);
    bytes[at] ^= (uint8_t)(1u << at % 8);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      IN_FOLDER(test_cifar10_folder),   IN_FOLDER(test_cifar10_archive),   IN_FOLDER(test_cifar10_long_names),
      IN_FOLDER(test_tar_wild_records), IN_FOLDER(test_cifar_same_digest), IN_FOLDER(test_cifar100),
      IN_FOLDER(test_cifar_bad_folder), IN_FOLDER(test_cifar_bad_archive), IN_FOLDER(test_cifar_damaged_archive),
  };
  return cmocka_run_group_tests_name("CIFAR data sets", tests, NULL, NULL);
}
