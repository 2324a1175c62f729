/* The seal: 24 bytes after the end of what is HDF5: "espalier", the size of all before the seal, and its
 * FNV-1a. HDF5 passes over it. It is checked before HDF5 sees the file: HDF5 1.10 has checksums of its own,
 * but crashes while it recovers from some that are wrong (a damaged heap of a group's links, seen with
 * 1.10.8). HDF5 cuts it off when it changes a file. The file is read once, so that what was checked is what is used. */
#include "checkpoint_parts_internal.h"
#include <espalier/input_file.h>
#include <espalier/memory.h>
#include <espalier/output_file.h>

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { WORD = 8, BYTES_AT_ONCE = 1 << 24 };
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

/* ---- reading ---- */

static void (*unsealed_accepted)(const char *path);

void esp_checkpoint_accept_unsealed(void (*warn)(const char *path)) { unsealed_accepted = warn; }

static esp_status read_all(int file, char *bytes, size_t size) {
  for (size_t done = 0; done < size;) {
    const ssize_t got = read(file, bytes + done, size - done < BYTES_AT_ONCE ? size - done : BYTES_AT_ONCE);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return esp_fail(ESP_ERR_IO, "cannot be read at byte %zu: %s", done, strerror(errno));
    if (got == 0) return esp_fail(ESP_ERR_IO, "ends at byte %zu while it is read", done);
    done += (size_t)got;
  }
  return ESP_OK;
}

static bool ends_with_seal(const esp_image *image) {
  const char *const bytes = image->bytes;
  return image->size >= ESP_SEAL_SIZE && memcmp(bytes + image->size - ESP_SEAL_SIZE, magic, WORD) == 0;
}

/* Cuts the seal off. */
static esp_status check_seal(esp_image *image, const char *path) {
  if (!ends_with_seal(image) && unsealed_accepted) {
    unsealed_accepted(path);
    return ESP_OK;
  }
  if (!ends_with_seal(image))
    return esp_fail(ESP_ERR_FORMAT,
                    "has no seal, the checksum at the end of what espalier writes: it is cut short, or another program "
                    "(h5py, say) has changed it; if you trust it, --unsealed opens it all the same");
  image->size -= ESP_SEAL_SIZE;
  const unsigned char *const seal = (const unsigned char *)image->bytes + image->size;
  const uint64_t digest = esp_fnv(ESP_FNV_START, image->bytes, image->size);
  if (get_word(seal + WORD) == image->size && get_word(seal + 2 * WORD) == digest) return ESP_OK;
  return esp_fail(ESP_ERR_FORMAT,
                  "is damaged: its %zu bytes have another checksum than when they were written; use another checkpoint",
                  image->size);
}

static esp_status read_sealed(esp_image *image, int file, const char *path, const char *kind) {
  static const char signature[WORD + 1] = "\211HDF\r\n\032\n";
  struct stat found;
  if (fstat(file, &found) != 0) return esp_fail(ESP_ERR_IO, "cannot be read: %s", strerror(errno));
  image->capacity = image->size = (size_t)found.st_size;
  image->bytes = esp_alloc(image->size + 1, 1);
  if (!image->bytes) return ESP_ERR_MEMORY;
  ESP_TRY(read_all(file, image->bytes, image->size));
  if (image->size < WORD || memcmp(image->bytes, signature, WORD) != 0)
    return esp_fail(ESP_ERR_FORMAT, "is not an HDF5 file; expected an Espalier %s", kind);
  return check_seal(image, path);
}

esp_status esp_sealed_file_read(esp_image *image, const char *path, const char *kind) {
  char expected[64];
  int file;
  *image = (esp_image){.bytes = NULL};
  snprintf(expected, sizeof expected, "a %s", kind);
  esp_status status = esp_input_open(&file, path, expected);
  if (status == ESP_OK) {
    status = read_sealed(image, file, path, kind);
    close(file);
  }
  return status == ESP_OK ? ESP_OK : esp_fail_in(status, "%s", path);
}
