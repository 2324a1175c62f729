/* The seal: 24 bytes after the end of what is HDF5: "espalier", the size of all before the seal, and its
 * FNV-1a. HDF5 passes over it. It is checked before HDF5 sees the file: HDF5 1.10 has checksums of its own,
 * but crashes while it recovers from some that are wrong (a damaged heap of a group's links, seen with
 * 1.10.8). HDF5 cuts it off when it changes a file, so a file without one was made or changed by other means
 * and passes. */
#include "checkpoint_parts_internal.h"
#include <espalier/input_file.h>
#include <espalier/memory.h>
#include <espalier/output_file.h>

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { WORD = 8, BYTES_AT_ONCE = 1 << 18 };
static const char magic[WORD + 1] = "espalier";

static void put_word(unsigned char *place, uint64_t word) {
  for (int i = 0; i < WORD; i++) place[i] = (unsigned char)(word >> 8 * i & 0xff);
}

static uint64_t get_word(const unsigned char *place) {
  uint64_t word = 0;
  for (int i = WORD - 1; i >= 0; i--) word = word << 8 | place[i];
  return word;
}

static void seal_image(esp_image *image) {
  unsigned char *const seal = (unsigned char *)image->bytes + image->size;
  memcpy(seal, magic, WORD);
  put_word(seal + WORD, image->size);
  put_word(seal + 2 * WORD, esp_fnv(ESP_FNV_START, image->bytes, image->size));
  image->size += ESP_SEAL_SIZE;
}

esp_status esp_sealed_file_write(const char *path, size_t expected, esp_image_writer *write, const void *context) {
  esp_image image;
  esp_status status = esp_image_make(&image, expected, write, context);
  if (status == ESP_OK) {
    seal_image(&image);
    status = esp_file_replace(path, image.bytes, image.size);
  } else {
    status = esp_fail_in(status, "%s", path);
  }
  esp_free(image.bytes);
  return status;
}

static esp_status read_at(int file, void *bytes, size_t size, off_t offset) {
  char *next = bytes;
  while (size > 0) {
    const ssize_t got = pread(file, next, size, offset);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return esp_fail(ESP_ERR_IO, "cannot be read at byte %lld: %s", (long long)offset, strerror(errno));
    if (got == 0) return esp_fail(ESP_ERR_IO, "ends at byte %lld while it is read", (long long)offset);
    next += got;
    offset += got;
    size -= (size_t)got;
  }
  return ESP_OK;
}

static esp_status digest_file(int file, off_t size, uint64_t *digest) {
  void *const bytes = esp_alloc(BYTES_AT_ONCE, 1);
  if (!bytes) return ESP_ERR_MEMORY;
  esp_status status = ESP_OK;
  *digest = ESP_FNV_START;
  for (off_t at = 0; at < size && status == ESP_OK; at += BYTES_AT_ONCE) {
    const size_t count = size - at < BYTES_AT_ONCE ? (size_t)(size - at) : BYTES_AT_ONCE;
    status = read_at(file, bytes, count, at);
    *digest = esp_fnv(*digest, bytes, count);
  }
  esp_free(bytes);
  return status;
}

static esp_status check_seal(int file) {
  unsigned char seal[ESP_SEAL_SIZE];
  struct stat found;
  uint64_t digest;
  if (fstat(file, &found) != 0) return esp_fail(ESP_ERR_IO, "cannot be read: %s", strerror(errno));
  const off_t size = found.st_size - ESP_SEAL_SIZE;
  if (size < 0) return ESP_OK;
  ESP_TRY(read_at(file, seal, sizeof seal, size));
  if (memcmp(seal, magic, WORD) != 0) return ESP_OK;
  ESP_TRY(digest_file(file, size, &digest));
  if (get_word(seal + WORD) == (uint64_t)size && get_word(seal + 2 * WORD) == digest) return ESP_OK;
  return esp_fail(ESP_ERR_FORMAT,
                  "is damaged: its %lld bytes have another checksum than when they were written; use "
                  "another checkpoint",
                  (long long)size);
}

esp_status esp_seal_check(const char *path) {
  int file;
  ESP_TRY(esp_input_open(&file, path, "a file written by Espalier"));
  const esp_status status = check_seal(file);
  close(file);
  return status;
}
