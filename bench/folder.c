#include "folder_internal.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

esp_status bench_folder_make(char path[ESP_PATH_SIZE]) {
  const char *place = getenv("TMPDIR");
  ESP_TRY(esp_folder_path(path, place && *place ? place : "/tmp", "espalier-bench-XXXXXX"));
  if (mkdtemp(path)) return ESP_OK;
  return esp_fail(ESP_ERR_IO, "no folder can be made as %s: %s; set TMPDIR to a folder with room", path,
                  strerror(errno));
}

void bench_folder_remove(const char *path) {
  DIR *folder = opendir(path);
  if (!folder) return;
  char file[ESP_PATH_SIZE];
  for (const struct dirent *entry; (entry = readdir(folder));)
    if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0 &&
        esp_folder_path(file, path, entry->d_name) == ESP_OK)
      unlink(file);
  closedir(folder);
  rmdir(path);
}
