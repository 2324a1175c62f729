/* Files read from start to end through zlib, which also passes plain files through. */
#include "dataset_internal.h"

#include <espalier/input_file.h>

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Deflate cannot pack more than this many bytes into one. */
enum { LARGEST_RATIO = 1032, USUAL_RATIO = 16, BUFFER_BYTES = 1 << 17, MOST_AT_ONCE = 1 << 30 };

bool esp_exists(const char *path) {
  struct stat about;
  return stat(path, &about) == 0;
}

bool esp_is_folder(const char *path) {
  struct stat about;
  return stat(path, &about) == 0 && S_ISDIR(about.st_mode);
}

char *esp_join_path(const char *folder, const char *name) {
  const size_t size = strlen(folder) + strlen(name) + 2;
  char *const path = esp_alloc(size, 1);
  if (path) snprintf(path, size, "%s/%s", folder, name);
  return path;
}

esp_status esp_gz_open(esp_gz *gz, const char *path) {
  struct stat about;
  int file;
  *gz = (esp_gz){.path = path};
  const esp_status opened = esp_input_open(&file, path, "a data file");
  if (opened != ESP_OK) return esp_fail_in(opened, "%s", path);
  gz->file_bytes = fstat(file, &about) == 0 ? (uint64_t)about.st_size : 0;
  gz->file = gzdopen(file, "rb");
  if (!gz->file) {
    close(file);
    return esp_fail(ESP_ERR_MEMORY, "%s cannot be read: out of memory", path);
  }
  gzbuffer(gz->file, BUFFER_BYTES);
  return ESP_OK;
}

void esp_gz_close(esp_gz *gz) {
  if (gz->file) gzclose_r(gz->file);
  gz->file = NULL;
}

/* What zlib says went wrong, or that the file simply ended. */
static esp_status fail_read(esp_gz *gz, const char *what) {
  int code;
  const char *const text = gzerror(gz->file, &code);
  const unsigned long long offset = gz->offset;
  if (code == Z_ERRNO)
    return esp_fail(ESP_ERR_IO, "%s: reading at byte %llu failed: %s", gz->path, offset, strerror(errno));
  if (code == Z_OK)
    return esp_fail(ESP_ERR_FORMAT, "%s is cut short: it ends at byte %llu, within %s; fetch it again", gz->path,
                    offset, what);
  return esp_fail(ESP_ERR_FORMAT,
                  "%s: the gzip stream is damaged or cut short at unpacked byte %llu, within %s (%s); "
                  "fetch it again",
                  gz->path, offset, what, text);
}

esp_status esp_gz_read(esp_gz *gz, void *buffer, size_t bytes, const char *what) {
  char *out = buffer;
  while (bytes > 0) {
    const unsigned wanted = bytes < MOST_AT_ONCE ? (unsigned)bytes : MOST_AT_ONCE;
    const int got = gzread(gz->file, out, wanted);
    if (got > 0) gz->offset += (unsigned)got;
    if (got < 0 || (unsigned)got < wanted) return fail_read(gz, what);
    out += got;
    bytes -= wanted;
  }
  return ESP_OK;
}

/* Whether `bytes` more bytes can really be unpacked: unpacks them once and goes back. */
static bool can_unpack(const esp_gz *gz, uint64_t bytes) {
  char chunk[1 << 14];
  const z_off_t start = gztell(gz->file);
  while (bytes > 0) {
    const int got = gzread(gz->file, chunk, sizeof chunk);
    if (got <= 0) break;
    bytes -= (unsigned)got < bytes ? (unsigned)got : bytes;
  }
  return gzseek(gz->file, start, SEEK_SET) == start && bytes == 0;
}

/* Images seldom pack to less than a sixteenth: a size beyond that is only believed once it was seen. */
static bool could_hold(const esp_gz *gz, uint64_t bytes) {
  if (gzdirect(gz->file)) return gz->offset <= gz->file_bytes && bytes <= gz->file_bytes - gz->offset;
  if (bytes / LARGEST_RATIO > gz->file_bytes) return false;
  return bytes / USUAL_RATIO <= gz->file_bytes || can_unpack(gz, bytes);
}

esp_status esp_gz_expect(const esp_gz *gz, uint64_t bytes, const char *what) {
  if (could_hold(gz, bytes)) return ESP_OK;
  return esp_fail(ESP_ERR_FORMAT,
                  "%s is cut short or damaged: from unpacked byte %llu on it should hold %llu bytes of %s, "
                  "and the file has %llu bytes in all; fetch it again",
                  gz->path, (unsigned long long)gz->offset, (unsigned long long)bytes, what,
                  (unsigned long long)gz->file_bytes);
}

/* After the last read returned `got` bytes, fewer than were wanted: the end, or a failure? */
static esp_status check_ended(esp_gz *gz, int got) {
  int code;
  gzerror(gz->file, &code);
  return got < 0 || code == Z_BUF_ERROR ? fail_read(gz, "the end of the stream") : ESP_OK;
}

esp_status esp_gz_expect_end(esp_gz *gz) {
  char extra;
  const int got = gzread(gz->file, &extra, 1);
  if (got > 0)
    return esp_fail(ESP_ERR_FORMAT, "%s goes on after byte %llu, where its header says it ends; is it the right file?",
                    gz->path, (unsigned long long)gz->offset);
  return check_ended(gz, got);
}

esp_status esp_gz_drain(esp_gz *gz) {
  char chunk[1 << 12];
  for (;;) {
    const int got = gzread(gz->file, chunk, sizeof chunk);
    if (got <= 0) return check_ended(gz, got);
    gz->offset += (unsigned)got;
  }
}
