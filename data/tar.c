#include "tar_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
  BLOCK = 512,
  NAME_AT = 0,
  NAME_SIZE = 100,
  SIZE_AT = 124,
  SIZE_SIZE = 12,
  SUM_AT = 148,
  SUM_SIZE = 8,
  TYPE_AT = 156,
  LONGEST_RECORDS = 1 << 20
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

/* The last part of a path. What is longer than a member's name can be is no file that anybody looks for. */
static void take_name(const char *path, esp_tar_member *member) {
  const char *const slash = strrchr(path, '/');
  snprintf(member->name, sizeof member->name, "%.100s", slash ? slash + 1 : path);
}

static void take_short_name(const uint8_t *header, esp_tar_member *member) {
  char path[NAME_SIZE + 1];
  memcpy(path, header + NAME_AT, NAME_SIZE);
  path[NAME_SIZE] = '\0';
  take_name(path, member);
}

/* "30 path=folder/data_batch_1.bin\n": the value of `path`, ended with '\0'; NULL if there is none. A record's number
 * is its length in bytes, all of it. */
static const char *pax_path(char *records, size_t size) {
  const char *path = NULL;
  for (char *record = records; record < records + size;) {
    char *key;
    const size_t left = (size_t)(records + size - record);
    const unsigned long length = strtoul(record, &key, 10);
    if (length > left || length < (size_t)(key - record) + 3 || *key != ' ' || record[length - 1] != '\n') return path;
    record[length - 1] = '\0';
    if (strncmp(key + 1, "path=", 5) == 0) path = key + 6;
    record += length;
  }
  return path;
}

static esp_status read_long_name(esp_gz *gz, uint64_t size, bool is_pax, bool *named, esp_tar_member *member) {
  if (size > LONGEST_RECORDS)
    return esp_fail(ESP_ERR_FORMAT, "%s: a name of %llu bytes; expected at most %d", gz->path, (unsigned long long)size,
                    LONGEST_RECORDS);
  char *const text = esp_alloc((size_t)size + 1, 1);
  if (!text) return ESP_ERR_MEMORY;
  esp_status status = esp_gz_read(gz, text, (size_t)size, "a long name");
  if (status == ESP_OK) status = esp_tar_skip_padding(gz, size);
  const char *const path = is_pax ? pax_path(text, (size_t)size) : text;
  if (status == ESP_OK && path) take_name(path, member);
  *named = *named || path;
  esp_free(text);
  return status;
}

/* Sets *found to whether there is one, and its size and type. */
static esp_status read_header(esp_gz *gz, uint8_t header[BLOCK], esp_tar_member *member, bool *found) {
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
  *found = true;
  return ESP_OK;
}

/* A name that is too long for a header comes as a member before: GNU's of type L, pax's among the records of one of
 * type x. */
esp_status esp_tar_next(esp_gz *gz, esp_tar_member *member, bool *found) {
  uint8_t header[BLOCK];
  bool named = false;
  for (;;) {
    ESP_TRY(read_header(gz, header, member, found));
    if (!*found) return ESP_OK;
    const char type = (char)header[TYPE_AT];
    if (type != 'L' && type != 'x') break;
    ESP_TRY(read_long_name(gz, member->size, type == 'x', &named, member));
  }
  if (!named) take_short_name(header, member);
  member->is_file = header[TYPE_AT] == '0' || header[TYPE_AT] == '\0';
  return esp_gz_expect(gz, member->size, member->name);
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
