/* Writing a file so that at any moment there is the whole old one or the whole new one. */
#include "checkpoint_parts_internal.h"
#include <espalier/memory.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { LONGEST_PATH = 4096, BYTES_AT_ONCE = 1 << 24 };

static bool write_all(int file, const void *bytes, size_t size) {
  const char *next = bytes;
  while (size > 0) {
    const ssize_t done = write(file, next, size < BYTES_AT_ONCE ? size : BYTES_AT_ONCE);
    if (done < 0 && errno == EINTR) continue;
    if (done < 0) return false;
    next += done;
    size -= (size_t)done;
  }
  return true;
}

static bool sync_folder(const char *path) {
  char folder[LONGEST_PATH];
  const char *const slash = strrchr(path, '/');
  const size_t length = slash == path ? 1 : slash ? (size_t)(slash - path) : 1;
  memcpy(folder, slash ? path : ".", length);
  folder[length] = '\0';
  const int descriptor = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) return false;
  /* Some file systems cannot sync folders; they say so with EINVAL. */
  const bool done = fsync(descriptor) == 0 || errno == EINVAL;
  const int reason = errno;
  close(descriptor);
  errno = reason;
  return done;
}

/* The name for the while is that of this process, so that two of them do not write the same file. */
static bool write_new(const char *temporary, const void *bytes, size_t size) {
  const int file = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (file < 0) return false;
  const bool done = write_all(file, bytes, size) && fsync(file) == 0;
  const int reason = errno;
  const bool closed = close(file) == 0;
  if (!done) errno = reason;
  return done && closed;
}

esp_status esp_replace_file(const char *path, const void *bytes, size_t size) {
  char temporary[LONGEST_PATH];
  if ((size_t)snprintf(temporary, sizeof temporary, "%s.tmp-%ld", path, (long)getpid()) >= sizeof temporary)
    return esp_fail(ESP_ERR_USAGE, "the path is longer than %d bytes", LONGEST_PATH - 32);
  const bool written = write_new(temporary, bytes, size);
  if (written && rename(temporary, path) == 0) {
    if (sync_folder(path)) return ESP_OK;
    return esp_fail(ESP_ERR_IO, "written, but its folder cannot be synced to disk: %s", strerror(errno));
  }
  const int reason = errno;
  unlink(temporary);
  return esp_fail(ESP_ERR_IO,
                  "a checkpoint of %zu bytes cannot be %s: %s; an older file of that name is as it was; "
                  "make room or choose another folder",
                  size, written ? "put in its place" : "written", strerror(reason));
}
