#include <espalier/output_file.h>
#include <espalier/run_folder.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

bool esp_file_exists(const char *path) { return access(path, F_OK) == 0; }

esp_status esp_folder_path(char path[ESP_PATH_SIZE], const char *folder, const char *name) {
  const int length = snprintf(path, ESP_PATH_SIZE, "%s/%s", folder, name);
  if (length >= 0 && length < ESP_PATH_SIZE) return ESP_OK;
  return esp_fail(ESP_ERR_IO, "the path \"%.60s...\" is longer than %d letters; use a shorter one", folder,
                  ESP_PATH_SIZE - 1);
}

static esp_status make_one(const char *folder) {
  if (mkdir(folder, 0777) == 0) return ESP_OK;
  struct stat found;
  const int error = errno;
  if (error == EEXIST && stat(folder, &found) == 0 && S_ISDIR(found.st_mode)) return ESP_OK;
  if (error == EEXIST)
    return esp_fail(ESP_ERR_IO, "the output folder %s cannot be made: a file of that name is in the way", folder);
  return esp_fail(ESP_ERR_IO, "the output folder %s cannot be made: %s", folder, strerror(error));
}

esp_status esp_folder_make(const char *folder) {
  char path[ESP_PATH_SIZE];
  const size_t length = strlen(folder);
  if (length == 0) return esp_fail(ESP_ERR_USAGE, "the output folder has an empty name");
  ESP_TRY(esp_folder_path(path, folder, ""));
  for (size_t i = 1; i < length; i++) {
    if (path[i] != '/') continue;
    path[i] = '\0';
    ESP_TRY(make_one(path));
    path[i] = '/';
  }
  ESP_TRY(make_one(folder));
  return esp_folder_try(folder);
}

esp_status esp_file_write(const char *path, const char *text) { return esp_file_replace(path, text, strlen(text)); }

esp_status esp_file_compose(const char *folder, const char *name, esp_text_writer *write, const void *context) {
  char path[ESP_PATH_SIZE], *text = NULL;
  size_t size;
  ESP_TRY(esp_folder_path(path, folder, name));
  FILE *file = open_memstream(&text, &size);
  bool done = file != NULL;
  if (file) {
    write(context, file);
    done = ferror(file) == 0;
    if (fclose(file) != 0) done = false;
  }
  const esp_status status =
      done ? esp_file_write(path, text) : esp_fail(ESP_ERR_MEMORY, "%s cannot be written: out of memory", path);
  free(text);
  return status;
}
