#include <espalier/trained.h>

#include <stdio.h>

esp_status esp_trained_load(esp_trained *trained, const char *run_or_checkpoint) {
  *trained = (esp_trained){.model = NULL};
  esp_status status = esp_checkpoint_resolve(trained->path, sizeof trained->path, run_or_checkpoint);
  if (status == ESP_OK) status = esp_checkpoint_load(trained->path, &trained->model, &trained->info);
  if (status != ESP_OK) *trained = (esp_trained){.model = NULL};
  return status;
}

esp_status esp_trained_save(esp_trained *trained, const char *path) {
  ESP_TRY(esp_checkpoint_save(path, trained->model, NULL, &trained->info, ESP_DEFAULT_COMPRESSION));
  snprintf(trained->path, sizeof trained->path, "%s", path);
  return ESP_OK;
}

void esp_trained_clear(esp_trained *trained) {
  esp_model_free(trained->model);
  esp_checkpoint_info_clear(&trained->info);
  *trained = (esp_trained){.model = NULL};
}
