#include "tar_internal.h"

#include <string.h>

enum {
  BLOCK = 512,
  NAME_AT = 0,
  NAME_SIZE = 100,
  SIZE_AT = 124,
  SIZE_SIZE = 12,
  SUM_AT = 148,
  SUM_SIZE = 8,
  TYPE_AT = 156
};

/* An octal number, with spaces or '\0' around; false if it is anything else. */
static bool octal(const uint8_t *field, size_t size, uint64_t *value) {
  size_t i = 0;
  while (i < size && field[i] == ' ') i++;
  const size_t first = i;
  *value = 0;
  for (; i < size && field[i] >= '0' && field[i] <= '7'; i++) *value = *value * 8 + (uint64_t)(field[i] - '0');
  return i > first && (i == size || field[i] == ' ' || field[i] == '\0');
}

/* The sum of the header's bytes, those of the sum itself counted as spaces. */
static uint64_t header_sum(const uint8_t *header) {
  uint64_t sum = 0;
  for (size_t i = 0; i < BLOCK; i++) sum += i >= SUM_AT && i < SUM_AT + SUM_SIZE ? (uint8_t)' ' : header[i];
  return sum;
}

static void take_name(const uint8_t *header, char *name) {
  char path[NAME_SIZE + 1];
  memcpy(path, header + NAME_AT, NAME_SIZE);
  path[NAME_SIZE] = '\0';
  const char *const slash = strrchr(path, '/');
  const char *const last = slash ? slash + 1 : path;
  memcpy(name, last, strlen(last) + 1);
}

esp_status esp_tar_next(esp_gz *gz, esp_tar_member *member, bool *found) {
  uint8_t header[BLOCK];
  const unsigned long long offset = gz->offset;
  *found = false;
  ESP_TRY(esp_gz_read(gz, header, BLOCK, "a tar header"));
  uint64_t sum;
  const bool has_sum = octal(header + SUM_AT, SUM_SIZE, &sum);
  if (!has_sum && header_sum(header) == SUM_SIZE * (uint64_t)' ') return ESP_OK; /* a block of zeros ends it */
  if (!has_sum || sum != header_sum(header))
    return esp_fail(ESP_ERR_FORMAT,
                    "%s: the tar header at unpacked byte %llu has a wrong checksum; expected the "
                    "published .tar.gz; fetch it again",
                    gz->path, offset);
  if (!octal(header + SIZE_AT, SIZE_SIZE, &member->size))
    return esp_fail(ESP_ERR_FORMAT, "%s: the tar header at unpacked byte %llu has no readable size", gz->path, offset);
  take_name(header, member->name);
  member->is_file = header[TYPE_AT] == '0' || header[TYPE_AT] == '\0';
  ESP_TRY(esp_gz_expect(gz, member->size, member->name));
  *found = true;
  return ESP_OK;
}

esp_status esp_tar_skip(esp_gz *gz, uint64_t bytes) {
  uint8_t chunk[8 * BLOCK];
  while (bytes > 0) {
    const size_t part = bytes < sizeof chunk ? (size_t)bytes : sizeof chunk;
    ESP_TRY(esp_gz_read(gz, chunk, part, "a member of the archive"));
    bytes -= part;
  }
  return ESP_OK;
}

esp_status esp_tar_skip_padding(esp_gz *gz, uint64_t size) { return esp_tar_skip(gz, (BLOCK - size % BLOCK) % BLOCK); }
