#include "files_internal.h"

#include <espalier/folder_lock.h>
#include <espalier/memory.h>
#include <espalier/output_file.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { HOLDER_SIZE = 256, NOTE_SIZE = 512 };

struct esp_folder_lock {
  int file;
  char note[NOTE_SIZE];
};

static esp_status open_lock(int *file, const char *path) {
  struct stat found;
  do *file = open(path, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK, 0666);
  while (*file < 0 && errno == EINTR);
  if (*file < 0)
    return esp_fail(ESP_ERR_IO, "%s cannot be made, so the folder cannot be locked: %s", path, strerror(errno));
  if (fstat(*file, &found) == 0 && S_ISREG(found.st_mode)) return ESP_OK;
  close(*file);
  return esp_fail(ESP_ERR_IO, "%s is no file, so the folder cannot be locked; delete it", path);
}

/* Whoever deletes the folder and makes it anew has another file under the name. */
static bool is_still_there(int file, const char *path) {
  struct stat open_one, named;
  return fstat(file, &open_one) == 0 && stat(path, &named) == 0 && open_one.st_ino == named.st_ino &&
         open_one.st_dev == named.st_dev;
}

/* What the holder wrote, up to the end of the line. A stranger's file is not let loose on a terminal. */
static void read_holder(int file, char holder[HOLDER_SIZE]) {
  const ssize_t got = pread(file, holder, HOLDER_SIZE - 1, 0);
  holder[got > 0 ? got : 0] = '\0';
  holder[strcspn(holder, "\n")] = '\0';
  for (char *c = holder; *c; c++)
    if (*c < ' ' || *c > '~') *c = '?';
  if (!*holder) snprintf(holder, HOLDER_SIZE, "another process");
}

static esp_status busy(int file, const char *folder) {
  char holder[HOLDER_SIZE];
  read_holder(file, holder);
  return esp_fail(ESP_ERR_BUSY, "%s is being written by %s; wait until it has ended, or choose another folder", folder,
                  holder);
}

/* Says who holds it, for others to read. If it cannot be written, the lock holds all the same. */
static void write_holder(int file, const char *purpose) {
  char host[128] = "", since[32], text[HOLDER_SIZE];
  const time_t now = time(NULL);
  struct tm parts;
  gethostname(host, sizeof host - 1);
  strftime(since, sizeof since, "%Y-%m-%d %H:%M:%S UTC", gmtime_r(&now, &parts));
  const int length =
      snprintf(text, sizeof text, "process %ld (%s) on %s since %s\n", (long)getpid(), purpose, host, since);
  if (ftruncate(file, 0) == 0 && length > 0 && length < HOLDER_SIZE) (void)esp_write_all(file, text, (size_t)length);
}

static esp_status take(esp_folder_lock *lock, const char *folder, const char *path, const char *purpose) {
  for (;;) {
    ESP_TRY(open_lock(&lock->file, path));
    const file_locked locked = esp_lock_file(lock->file);
    if (locked == FILE_HAS_NO_LOCKS) {
      snprintf(lock->note, sizeof lock->note,
               "%s cannot be locked (%s): take care that nobody else writes there meanwhile", folder, strerror(errno));
      return ESP_OK;
    }
    if (locked == FILE_LOCKED && is_still_there(lock->file, path)) break;
    const esp_status status = locked == FILE_BUSY ? busy(lock->file, folder) : ESP_OK;
    close(lock->file);
    lock->file = -1;
    ESP_TRY(status);
  }
  write_holder(lock->file, purpose);
  return ESP_OK;
}

esp_status esp_folder_lock_take(esp_folder_lock **lock, const char *folder, const char *purpose) {
  char path[LONGEST_PATH];
  *lock = NULL;
  if ((size_t)snprintf(path, sizeof path, "%s/" ESP_LOCK_NAME, folder) >= sizeof path)
    return esp_fail(ESP_ERR_USAGE, "the path \"%.60s...\" is longer than %d bytes; use a shorter one", folder,
                    LONGEST_PATH - 32);
  esp_folder_lock *const made = esp_alloc(1, sizeof *made);
  if (!made) return ESP_ERR_MEMORY;
  made->file = -1;
  const esp_status status = take(made, folder, path, purpose);
  if (status != ESP_OK) {
    esp_folder_lock_free(made);
    return status;
  }
  esp_folder_clean(folder);
  *lock = made;
  return ESP_OK;
}

const char *esp_folder_lock_note(const esp_folder_lock *lock) { return lock->note; }

/* The file stays: another process may have opened it and be about to lock it. It names nobody any more. */
void esp_folder_lock_free(esp_folder_lock *lock) {
  if (!lock) return;
  if (lock->file >= 0 && !*lock->note && ftruncate(lock->file, 0) != 0) errno = 0; /* an old name harms nobody */
  if (lock->file >= 0) close(lock->file);
  esp_free(lock);
}
