/* What the files of this wing share. */
#ifndef ESPALIER_FILES_INTERNAL_H
#define ESPALIER_FILES_INTERNAL_H

#include <espalier/status.h>
#include <sys/types.h>

enum { LONGEST_PATH = 4096 };

typedef enum file_locked { FILE_LOCKED, FILE_BUSY, FILE_HAS_NO_LOCKS } file_locked;

/* Locks the whole open file against every other open file description, without waiting. errno says why it has no
 * locks. */
file_locked esp_lock_file(int descriptor);

/* "a folder", "a FIFO" ... */
const char *esp_file_kind(mode_t mode);

/* All bytes, or false with errno. */
bool esp_write_all(int descriptor, const void *bytes, size_t size);

/* fsync() that an interruption does not end. */
bool esp_sync(int descriptor);

#endif
