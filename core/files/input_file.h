/* Files that are read. Only regular ones are: opening a FIFO would wait for a writer for ever, and a device never
 * ends. */
#ifndef ESPALIER_INPUT_FILE_H
#define ESPALIER_INPUT_FILE_H

#include <espalier/status.h>

#ifdef __cplusplus
extern "C" {
#endif

/* `expected` says what it ought to be, e.g. "a file of settings". ESP_ERR_NOT_FOUND if there is nothing, ESP_ERR_USAGE
 * if it is no regular file, otherwise ESP_ERR_IO. The messages of the first two do not name the path: their callers say
 * where. */

ESP_API esp_status esp_input_check(const char *path, const char *expected) ESP_MUST_CHECK;

/* Opens for reading; the caller closes *descriptor. */
ESP_API esp_status esp_input_open(int *descriptor, const char *path, const char *expected) ESP_MUST_CHECK;

/* Reads the whole file into *text, with a 0 after its *length bytes; freed by esp_free(). ESP_ERR_CONFIG if it has more
 * than `limit` bytes. */
ESP_API esp_status esp_input_read(char **text, size_t *length, const char *path, const char *expected,
                                  size_t limit) ESP_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
