/* A run is a folder: resolved config, metrics, checkpoints, results. It is made and test-written before step 0. */
#ifndef ESPALIER_RUN_FOLDER_H
#define ESPALIER_RUN_FOLDER_H

#include <espalier/output_file.h>

#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Makes the folder with its parents, where they are missing, and proves that a file can be written in it. */
ESP_API esp_status esp_folder_make(const char *folder) ESP_MUST_CHECK;

/* path = folder/name. */
ESP_API esp_status esp_folder_path(char path[ESP_PATH_SIZE], const char *folder, const char *name) ESP_MUST_CHECK;

ESP_API bool esp_file_exists(const char *path);

/* Replaces the file by `text` as esp_file_replace() does. */
ESP_API esp_status esp_file_write(const char *path, const char *text) ESP_MUST_CHECK;

typedef void esp_text_writer(const void *context, FILE *file);

/* The same with what write(context) prints: folder/name is replaced as a whole or not at all. */
ESP_API esp_status esp_file_compose(const char *folder, const char *name, esp_text_writer *write,
                                    const void *context) ESP_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
