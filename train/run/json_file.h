/* JSON files of a run's folder. */
#ifndef ESPALIER_JSON_FILE_H
#define ESPALIER_JSON_FILE_H

#include <espalier/status.h>

#ifdef __cplusplus
extern "C" {
#endif

struct json_t; /* jansson's */

enum { ESP_JSON_DIGITS = 17 }; /* significant digits that no real number loses anything by */

/* Replaces folder/name by `json`, indented, its real numbers with `digits` significant digits. Takes over
 * the reference, also on failure; `json` NULL: what should have made it was short of memory. ESP_ERR_MEMORY,
 * ESP_ERR_IO. */
ESP_API esp_status esp_json_write(const char *folder, const char *name, struct json_t *json, int digits) ESP_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
