#include "files_internal.h"

#include <espalier/input_file.h>
#include <espalier/memory.h>

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static esp_status cannot_open(const char *path, const char *expected) {
  return esp_fail(errno == ENOENT || errno == ENOTDIR ? ESP_ERR_NOT_FOUND : ESP_ERR_IO,
                  "%s: cannot be opened: %s; expected %s", path, strerror(errno), expected);
}

static esp_status check_kind(const struct stat *found, const char *path, const char *expected) {
  if (S_ISREG(found->st_mode)) return ESP_OK;
  return esp_fail(ESP_ERR_USAGE, "%s: is %s; expected %s", path, esp_file_kind(found->st_mode), expected);
}

esp_status esp_input_check(const char *path, const char *expected) {
  struct stat found;
  return stat(path, &found) == 0 ? check_kind(&found, path, expected) : cannot_open(path, expected);
}

/* O_NONBLOCK: a FIFO that takes the path's place after the check does not hold us up either. */
esp_status esp_input_open(int *descriptor, const char *path, const char *expected) {
  struct stat found;
  ESP_TRY(esp_input_check(path, expected));
  do *descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  while (*descriptor < 0 && errno == EINTR);
  if (*descriptor < 0) return cannot_open(path, expected);
  const esp_status status =
      fstat(*descriptor, &found) == 0 ? check_kind(&found, path, expected) : cannot_open(path, expected);
  if (status != ESP_OK) close(*descriptor);
  return status;
}

/* The bytes up to the end, or one more than `limit`; -1 with errno. */
static ssize_t read_up_to(int descriptor, char *text, size_t limit) {
  size_t length = 0;
  while (length <= limit) {
    const ssize_t got = read(descriptor, text + length, limit + 1 - length);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return -1;
    if (got == 0) break;
    length += (size_t)got;
  }
  return (ssize_t)length;
}

esp_status esp_input_read(char **text, size_t *length, const char *path, const char *expected, size_t limit) {
  int descriptor;
  *text = NULL;
  ESP_TRY(esp_input_open(&descriptor, path, expected));
  char *const bytes = esp_alloc(limit + 2, 1);
  const ssize_t got = bytes ? read_up_to(descriptor, bytes, limit) : 0;
  esp_status status = bytes ? ESP_OK : ESP_ERR_MEMORY;
  if (got < 0) status = esp_fail(ESP_ERR_IO, "%s: cannot be read: %s", path, strerror(errno));
  close(descriptor);
  if (status == ESP_OK && (size_t)got > limit)
    status = esp_fail(ESP_ERR_CONFIG, "%s: is larger than %zu bytes; expected %s", path, limit, expected);
  if (status == ESP_OK) {
    *text = bytes;
    *length = (size_t)got;
  } else {
    esp_free(bytes);
  }
  return status;
}
