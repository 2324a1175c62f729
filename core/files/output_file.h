/* Files that are written whole: at any moment there is the whole old one or the whole new one under the name. */
#ifndef ESPALIER_OUTPUT_FILE_H
#define ESPALIER_OUTPUT_FILE_H

#include <espalier/status.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { ESP_PATH_SIZE = 1024 }; /* room for the path of a file that the library makes or finds in a folder, and its 0 */

/* Before any work: refuses a path under which there is something that is no regular file (a folder, device, FIFO,
 * socket), ESP_ERR_USAGE, because it would be replaced. */
ESP_API esp_status esp_output_check(const char *path) ESP_MUST_CHECK;

/* Replaces the file at `path`, or makes it, with `size` bytes: written under a random name beside it, which is locked
 * while this process lives, synced, renamed, and the folder synced. Such names that dead processes left for the same
 * path go first. ESP_ERR_IO: what was there before is as it was. */
ESP_API esp_status esp_file_replace(const char *path, const void *bytes, size_t size) ESP_MUST_CHECK;

/* Removes all that processes which died left under such names in the folder. */
ESP_API void esp_folder_clean(const char *folder);

/* Whether files can be made and written in the folder: makes one, which goes again. ESP_ERR_IO if not. */
ESP_API esp_status esp_folder_try(const char *folder) ESP_MUST_CHECK;

/* Deletes the file at `path`, if it is there; ESP_ERR_IO if it stays. */
ESP_API esp_status esp_file_delete(const char *path) ESP_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
