/* A folder for a suite's files while it runs. */
#ifndef ESPALIER_FOLDER_INTERNAL_H
#define ESPALIER_FOLDER_INTERNAL_H

#include <espalier/run_folder.h>

/* Made anew in $TMPDIR, or /tmp. ESP_ERR_IO. */
esp_status bench_folder_make(char path[ESP_PATH_SIZE]) ESP_MUST_CHECK;

/* Removes the files in it, and it. */
void bench_folder_remove(const char *path);

#endif
