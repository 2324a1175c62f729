#include "files_internal.h"

#include <espalier/input_file.h>
#include <espalier/memory.h>

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static esp_status cannot_open(const char *expected) {
  return esp_fail(errno == ENOENT || errno == ENOTDIR ? ESP_ERR_NOT_FOUND : ESP_ERR_IO,
                  "cannot be opened: %s; expected %s", strerror(errno), expected);
}

static esp_status check_kind(const struct stat *found, const char *expected) {
  if (S_ISREG(found->st_mode)) return ESP_OK;
  return esp_fail(ESP_ERR_USAGE, "is %s; expected %s", esp_file_kind(found->st_mode), expected);
}

esp_status esp_input_check(const char *path, const char *expected) {
  struct stat found;
  return stat(path, &found) == 0 ? check_kind(&found, expected) : cannot_open(expected);
}

/* O_NONBLOCK: a FIFO that takes the path's place after the check does not hold us up either. */
esp_status esp_input_open(int *descriptor, const char *path, const char *expected) {
  struct stat found;
  ESP_TRY(esp_input_check(path, expected));
  do *descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  while (*descriptor < 0 && errno == EINTR);
  if (*descriptor < 0) return cannot_open(expected);
  const esp_status status = fstat(*descriptor, &found) == 0 ? check_kind(&found, expected) : cannot_open(expected);
  if (status != ESP_OK) close(*descriptor);
  return status;
}

/* The bytes up to the end, or one more than `limit`, whose room there must be; -1 with errno. */
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

/* What is there; never more than the file has or may have, so that a limit may be generous. */
static esp_status read_open(int descriptor, char **text, size_t *length, const char *expected, size_t limit) {
  struct stat found;
  if (fstat(descriptor, &found) != 0) return esp_fail(ESP_ERR_IO, "cannot be read: %s", strerror(errno));
  if ((uintmax_t)found.st_size > limit)
    return esp_fail(ESP_ERR_CONFIG, "is larger than %zu bytes; expected %s", limit, expected);
  *text = esp_alloc((size_t)found.st_size + 2, 1);
  if (!*text) return ESP_ERR_MEMORY;
  const ssize_t got = read_up_to(descriptor, *text, (size_t)found.st_size);
  if (got < 0) return esp_fail(ESP_ERR_IO, "cannot be read: %s", strerror(errno));
  if (got > (ssize_t)found.st_size) return esp_fail(ESP_ERR_IO, "grows while it is read; try again");
  (*text)[got] = '\0';
  *length = (size_t)got;
  return ESP_OK;
}

esp_status esp_input_read(char **text, size_t *length, const char *path, const char *expected, size_t limit) {
  int descriptor;
  *text = NULL;
  esp_status status = esp_input_open(&descriptor, path, expected);
  if (status == ESP_OK) {
    status = read_open(descriptor, text, length, expected, limit);
    close(descriptor);
  }
  if (status == ESP_OK) return ESP_OK;
  esp_free(*text);
  *text = NULL;
  return esp_fail_in(status, "%s", path);
}
