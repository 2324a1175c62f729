/* The members of a tar archive (ustar, GNU, pax or the old form), one after the other, through a gzip stream. */
#ifndef ESPALIER_TAR_INTERNAL_H
#define ESPALIER_TAR_INTERNAL_H

#include "dataset_internal.h"

typedef struct esp_tar_member {
  char name[101]; /* the last part of the path */
  uint64_t size;
  bool is_file;
} esp_tar_member;

/* The next member's header; the stream then stands at its contents. *found is false at the archive's end. */
esp_status esp_tar_next(esp_gz *gz, esp_tar_member *member, bool *found);

/* Past `bytes` of contents not wanted, and past the padding after a member of `size` bytes. */
esp_status esp_tar_skip(esp_gz *gz, uint64_t bytes);
esp_status esp_tar_skip_padding(esp_gz *gz, uint64_t size);

#endif
