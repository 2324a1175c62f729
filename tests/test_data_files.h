/* For the tests of data sets: files in a temporary folder, and what opening them should say. */
#ifndef ESPALIER_TEST_DATA_FILES_H
#define ESPALIER_TEST_DATA_FILES_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <dirent.h>
#include <espalier/dataset.h>
#include <espalier/memory.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

enum { PATH_SIZE = 512 };

static char folder[PATH_SIZE];

/* ---- files ---- */

static inline const char *in_folder(const char *name) {
  static char paths[4][2 * PATH_SIZE];
  static int next;
  char *const path = paths[next = (next + 1) % 4];
  snprintf(path, sizeof paths[0], "%s/%s", folder, name);
  return path;
}

static inline void remove_tree(const char *path) {
  DIR *const entries = opendir(path);
  if (entries) {
    for (const struct dirent *e = readdir(entries); e; e = readdir(entries)) {
      char inner[2 * PATH_SIZE];
      if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0) continue;
      const int length = snprintf(inner, sizeof inner, "%s/%s", path, e->d_name);
      if (length > 0 && length < (int)sizeof inner) remove_tree(inner);
    }
    closedir(entries);
  }
  remove(path);
}

static inline int make_folder(void **state) {
  (void)state;
  const char *const root = getenv("TMPDIR");
  snprintf(folder, sizeof folder, "%s/espalier-data-XXXXXX", root && *root ? root : "/tmp");
  return mkdtemp(folder) ? 0 : -1;
}

static inline int remove_folder(void **state) {
  (void)state;
  esp_alloc_fail_after(-1);
  remove_tree(folder);
  return 0;
}

static inline void write_plain(const char *name, const void *bytes, size_t size) {
  FILE *const file = fopen(in_folder(name), "wb");
  assert_non_null(file);
  assert_int_equal(fwrite(bytes, 1, size, file), size);
  assert_int_equal(fclose(file), 0);
}

static inline void write_gzip(const char *name, const void *bytes, size_t size) {
  const gzFile file = gzopen(in_folder(name), "wb");
  assert_non_null(file);
  assert_int_equal(gzwrite(file, bytes, (unsigned)size), (int)size);
  assert_int_equal(gzclose(file), Z_OK);
}

static inline size_t read_whole(const char *name, uint8_t *bytes, size_t room) {
  FILE *const file = fopen(in_folder(name), "rb");
  assert_non_null(file);
  const size_t size = fread(bytes, 1, room, file);
  fclose(file);
  assert_true(size < room);
  return size;
}

typedef void (*writer)(const char *name, const void *bytes, size_t size);

/* ---- expectations ---- */

static inline esp_dataset *open_kind(const char *kind, const char *path) {
  char spec[3 * PATH_SIZE];
  esp_dataset *dataset;
  snprintf(spec, sizeof spec, "%s:%s", kind, path);
  if (esp_dataset_open(&dataset, spec) != ESP_OK) fail_msg("%s: %s", spec, esp_error_message());
  assert_int_equal(esp_dataset_hold_out(dataset, 0), ESP_OK); /* what a reader reads is all dealt */
  return dataset;
}

/* The spec fails with this status and a message with these words in it. */
static inline void expect_failure(const char *spec, esp_status status, const char *words, const char *more_words) {
  esp_dataset *dataset = NULL;
  const esp_status got = esp_dataset_open(&dataset, spec);
  const char *const message = esp_error_message();
  if (got == ESP_OK) esp_dataset_close(dataset);
  if (got != status) fail_msg("%s: status %d, expected %d: %s", spec, got, status, message);
  assert_null(dataset);
  if (!strstr(message, words) || !strstr(message, more_words))
    fail_msg("%s: the message lacks '%s' or '%s': %s", spec, words, more_words, message);
}

static inline void expect_bad(const char *kind, const char *path, esp_status status, const char *words,
                              const char *more_words) {
  char spec[3 * PATH_SIZE];
  snprintf(spec, sizeof spec, "%s:%s", kind, path);
  expect_failure(spec, status, words, more_words);
}

/* Every allocation of opening this set fails once: always a status, never a leak (the sanitizer looks). */
static inline void torture(const char *kind, const char *path) {
  char spec[3 * PATH_SIZE];
  snprintf(spec, sizeof spec, "%s:%s", kind, path);
  esp_dataset *dataset = NULL;
  int calls = 0;
  for (;; calls++) {
    esp_alloc_fail_after(calls);
    const esp_status status = esp_dataset_open(&dataset, spec);
    esp_alloc_fail_after(-1);
    if (status == ESP_OK) break;
    assert_int_equal(status, ESP_ERR_MEMORY);
    assert_null(dataset);
    assert_true(calls < 1000);
  }
  assert_true(calls > 3);
  esp_dataset_close(dataset);
}

#define IN_FOLDER(test) cmocka_unit_test_setup_teardown(test, make_folder, remove_folder)

#endif
