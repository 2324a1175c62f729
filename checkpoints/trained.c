#include <espalier/trained.h>

enum { MOST_LETTERS = 4096 };

esp_status esp_trained_load(esp_trained *trained, const char *run_or_checkpoint) {
  char path[MOST_LETTERS];
  *trained = (esp_trained){.model = NULL};
  ESP_TRY(esp_checkpoint_resolve(path, sizeof path, run_or_checkpoint));
  return esp_checkpoint_load(path, &trained->model, &trained->info);
}

esp_status esp_trained_save(esp_trained *trained, const char *path) {
  return esp_checkpoint_save(path, trained->model, NULL, &trained->info, ESP_DEFAULT_COMPRESSION);
}

void esp_trained_clear(esp_trained *trained) {
  esp_model_free(trained->model);
  esp_checkpoint_info_clear(&trained->info);
  *trained = (esp_trained){.model = NULL};
}
