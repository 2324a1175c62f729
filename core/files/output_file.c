#include "files_internal.h"

#include <espalier/output_file.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

/* --- names for the while: FOLDER/.NAME.0123456789abcdef.tmp ---------------------------------------------- */

/* Of NAME so many bytes stand in it: a name that is as long as the file system lets it be has one, too. */
enum { NAME_BYTES = 200, RANDOM_DIGITS = 16, TRIES = 16 };
static const char ending[] = ".tmp";

typedef struct place {
  char folder[LONGEST_PATH];
  char prefix[NAME_BYTES + 3]; /* ".NAME." */
} place;

static esp_status split_path(place *p, const char *path) {
  const char *const slash = strrchr(path, '/'), *const name = slash ? slash + 1 : path;
  const size_t length = !slash ? 1 : slash == path ? 1 : (size_t)(slash - path);
  if (strlen(path) + NAME_BYTES + RANDOM_DIGITS + 16 > LONGEST_PATH)
    return esp_fail(ESP_ERR_USAGE, "the path \"%.60s...\" is longer than %d bytes; use a shorter one", path,
                    LONGEST_PATH - NAME_BYTES - RANDOM_DIGITS - 16);
  memcpy(p->folder, slash ? path : ".", length);
  p->folder[length] = '\0';
  snprintf(p->prefix, sizeof p->prefix, ".%.*s.", NAME_BYTES, name);
  return ESP_OK;
}

/* Whether the name is one for the while, of any file (prefix "") or of one. */
static bool is_temporary(const char *name, const char *prefix) {
  const size_t length = strlen(name), tail = RANDOM_DIGITS + sizeof ending - 1;
  if (name[0] != '.' || length < tail + 2 || strncmp(name, prefix, strlen(prefix)) != 0) return false;
  if (*prefix && length != strlen(prefix) + tail) return false;
  const char *const digits = name + length - tail;
  return digits[-1] == '.' && strspn(digits, "0123456789abcdef") == RANDOM_DIGITS &&
         strcmp(digits + RANDOM_DIGITS, ending) == 0;
}

/* Who made it holds a lock on it until it has its final name; so one that can be locked belongs to nobody that lives,
 * be it in another PID namespace or on another machine. Where there are no locks it stays. */
static void remove_if_dead(int folder, const char *name) {
  const int file = openat(folder, name, O_RDWR | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
  struct stat found;
  if (file < 0) return;
  if (fstat(file, &found) == 0 && S_ISREG(found.st_mode) && esp_lock_file(file) == FILE_LOCKED)
    unlinkat(folder, name, 0);
  close(file);
}

static void clean(const char *path, const char *prefix) {
  DIR *const folder = opendir(path);
  if (!folder) return;
  for (const struct dirent *entry; (entry = readdir(folder));)
    if (is_temporary(entry->d_name, prefix)) remove_if_dead(dirfd(folder), entry->d_name);
  closedir(folder);
}

void esp_folder_clean(const char *folder) { clean(folder, ""); }

static bool choose_name(char temporary[LONGEST_PATH], const place *p) {
  uint64_t number;
  ssize_t got;
  do got = getrandom(&number, sizeof number, 0);
  while (got < 0 && errno == EINTR);
  if (got != (ssize_t)sizeof number) return false;
  const int length = snprintf(temporary, LONGEST_PATH, "%s/%s%0*llx%s", p->folder, p->prefix, RANDOM_DIGITS,
                              (unsigned long long)number, ending);
  return length > 0 && length < LONGEST_PATH;
}

/* -1: with errno; -2: another name, for somebody who cleans up took this file for a dead one's before it was locked. */
static int open_locked(const char *temporary) {
  struct stat found;
  int file;
  do file = open(temporary, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666);
  while (file < 0 && errno == EINTR);
  if (file < 0) return errno == EEXIST ? -2 : -1;
  const bool lost = esp_lock_file(file) == FILE_BUSY || (fstat(file, &found) == 0 && found.st_nlink == 0);
  if (!lost) return file;
  close(file);
  return -2;
}

static int open_temporary(char temporary[LONGEST_PATH], const place *p) {
  int file = -2;
  for (int i = 0; i < TRIES && file == -2; i++) file = choose_name(temporary, p) ? open_locked(temporary) : -1;
  if (file == -2) errno = EEXIST;
  return file < 0 ? -1 : file;
}

/* --- replacing ------------------------------------------------------------------------------------------- */

esp_status esp_output_check(const char *path) {
  struct stat found;
  if (stat(path, &found) != 0 || S_ISREG(found.st_mode)) return ESP_OK;
  return esp_fail(ESP_ERR_USAGE, "%s is %s, and would be replaced by a file; choose another name", path,
                  esp_file_kind(found.st_mode));
}

/* Some file systems cannot sync folders; they say so with EINVAL. */
static bool sync_folder(const char *path) {
  int folder;
  do folder = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  while (folder < 0 && errno == EINTR);
  if (folder < 0) return false;
  const bool done = esp_sync(folder) || errno == EINVAL;
  const int reason = errno;
  close(folder);
  errno = reason;
  return done;
}

static bool rename_file(const char *from, const char *to) {
  int done;
  do done = rename(from, to);
  while (done != 0 && errno == EINTR);
  return done == 0;
}

/* The lock must last until the file has its name, so it is closed then: what close() could tell, fsync() told
 * before. */
esp_status esp_file_replace(const char *path, const void *bytes, size_t size) {
  char temporary[LONGEST_PATH];
  place p;
  ESP_TRY(esp_output_check(path));
  ESP_TRY(split_path(&p, path));
  clean(p.folder, p.prefix);
  const int file = open_temporary(temporary, &p);
  if (file < 0) return esp_fail(ESP_ERR_IO, "%s cannot be written: %s", path, strerror(errno));
  const bool written = esp_write_all(file, bytes, size) && esp_sync(file);
  const bool renamed = written && rename_file(temporary, path);
  const int reason = errno;
  if (!renamed) unlink(temporary);
  close(file);
  if (renamed && sync_folder(p.folder)) return ESP_OK;
  if (renamed)
    return esp_fail(ESP_ERR_IO, "%s is written, but its folder cannot be synced to disk: %s", path, strerror(errno));
  return esp_fail(
      ESP_ERR_IO,
      "%s: %zu bytes cannot be %s: %s; an older file of that name is as it was; make room or choose another "
      "folder",
      path, size, written ? "put in place" : "written", strerror(reason));
}

esp_status esp_folder_try(const char *folder) {
  char path[LONGEST_PATH], temporary[LONGEST_PATH];
  place p;
  snprintf(path, sizeof path, "%s/write-test", folder);
  ESP_TRY(split_path(&p, path));
  clean(p.folder, p.prefix);
  const int file = open_temporary(temporary, &p);
  bool done = file >= 0 && esp_write_all(file, "\n", 1);
  const int reason = errno;
  if (file >= 0) {
    unlink(temporary);
    close(file);
  }
  if (done) return ESP_OK;
  return esp_fail(ESP_ERR_IO, "no file can be written in the folder %s: %s", folder, strerror(reason));
}

esp_status esp_file_delete(const char *path) {
  if (unlink(path) == 0 || errno == ENOENT) return ESP_OK;
  return esp_fail(ESP_ERR_IO, "%s cannot be deleted: %s", path, strerror(errno));
}
