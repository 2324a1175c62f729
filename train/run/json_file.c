#include <espalier/json_file.h>

#include <espalier/run_folder.h>
#include <jansson.h>

#include <stdlib.h>

esp_status esp_json_write(const char *folder, const char *name, json_t *json, int digits) {
  char path[ESP_PATH_SIZE];
  char *text = json ? json_dumps(json, JSON_INDENT(2) | JSON_REAL_PRECISION((size_t)digits)) : NULL;
  json_decref(json);
  esp_status status = esp_folder_path(path, folder, name);
  if (status == ESP_OK && !text) status = esp_fail(ESP_ERR_MEMORY, "%s cannot be written: out of memory", path);
  if (status == ESP_OK) status = esp_file_write(path, text);
  free(text);
  return status;
}
