/* System calls as the rest of this wing wants them. */
#define _GNU_SOURCE /* F_OFD_SETLK */
#include "files_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

enum { BYTES_AT_ONCE = 1 << 24 };

/* Not flock(): on NFS that becomes such a lock anyway, but then does not meet the flock() of the server's own
 * processes. Not F_SETLK: that one ends as soon as the process closes any descriptor of the file. */
file_locked esp_lock_file(int descriptor) {
  struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
  int done;
  do done = fcntl(descriptor, F_OFD_SETLK, &whole);
  while (done != 0 && errno == EINTR);
  if (done == 0) return FILE_LOCKED;
  return errno == EAGAIN || errno == EACCES ? FILE_BUSY : FILE_HAS_NO_LOCKS;
}

const char *esp_file_kind(mode_t mode) {
  if (S_ISREG(mode)) return "a file";
  if (S_ISDIR(mode)) return "a folder";
  if (S_ISFIFO(mode)) return "a FIFO";
  if (S_ISSOCK(mode)) return "a socket";
  return "a device";
}

bool esp_write_all(int descriptor, const void *bytes, size_t size) {
  const char *next = bytes;
  while (size > 0) {
    const ssize_t done = write(descriptor, next, size < BYTES_AT_ONCE ? size : BYTES_AT_ONCE);
    if (done < 0 && errno == EINTR) continue;
    if (done == 0) errno = EIO; /* no file does that */
    if (done <= 0) return false;
    next += done;
    size -= (size_t)done;
  }
  return true;
}

bool esp_sync(int descriptor) {
  int done;
  do done = fsync(descriptor);
  while (done != 0 && errno == EINTR);
  return done == 0;
}
