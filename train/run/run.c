#include <espalier/memory.h>
#include <espalier/output_file.h>
#include <espalier/run.h>
#include <espalier/run_folder.h>

#include <stdio.h>

void esp_run_take_sizes(esp_run_config *config, const esp_dataset *dataset) {
  const esp_dataset_info *data = esp_dataset_info_of(dataset);
  esp_model_config *model = &config->model;
  if (!model->image_height) model->image_height = data->height;
  if (!model->image_width) model->image_width = data->width;
  if (!model->image_channels) model->image_channels = data->channels;
  if (!model->classes) model->classes = data->classes;
}

void esp_run_note_data(esp_checkpoint_info *info, const esp_dataset *dataset) {
  const esp_dataset_info *data = esp_dataset_info_of(dataset);
  snprintf(info->data_name, sizeof info->data_name, "%s", data->name);
  snprintf(info->data_digest, sizeof info->data_digest, "%s", data->digest);
  esp_dataset_normalisation(dataset, &info->normalisation);
}

esp_status esp_run_start_history(esp_checkpoint_info *info, const char *action, const esp_run_config *config,
                                 const esp_dataset *dataset, const char *parent) {
  ESP_TRY(esp_checkpoint_add_history(info, action, esp_dataset_info_of(dataset)->name, parent, ""));
  esp_history_entry *entry = &info->history[info->history_count - 1];
  snprintf(entry->frozen, sizeof entry->frozen, "%s", config->training.freeze);
  return ESP_OK;
}

esp_status esp_run_create(esp_trained *trained, const esp_run_config *config, const esp_dataset *dataset) {
  *trained = (esp_trained){.model = NULL};
  ESP_TRY(esp_model_create(&trained->model, &config->model, NULL, config->training.seed));
  esp_run_note_data(&trained->info, dataset);
  const esp_status status = esp_run_start_history(&trained->info, "pretrain", config, dataset, "");
  if (status != ESP_OK) esp_trained_clear(trained);
  return status;
}

esp_status esp_run_check(const esp_model *model, const esp_run_config *config, const esp_dataset *dataset) {
  const esp_dataset_info *data = esp_dataset_info_of(dataset);
  ESP_TRY(esp_check_data_fits(&model->config, dataset, true));
  ESP_TRY(esp_augmentation_check(&config->augmentation, data->height, data->width));
  ESP_TRY(esp_training_check(&config->training));
  ESP_TRY(esp_check_held_out(dataset, config->data.validation));
  return esp_training_freeze(&config->training, model);
}

esp_status esp_run_remove_older(const char *folder) {
  static const char *const leftovers[] = {ESP_LAST_CHECKPOINT, "best.h5", "results.json"};
  char path[ESP_PATH_SIZE];
  for (size_t i = 0; i < sizeof leftovers / sizeof leftovers[0]; i++) {
    ESP_TRY(esp_folder_path(path, folder, leftovers[i]));
    ESP_TRY(esp_file_delete(path));
  }
  return ESP_OK;
}

esp_status esp_run_open_folder(esp_folder_lock **lock, const char *folder, const char *action, bool resumes) {
  *lock = NULL;
  ESP_TRY(esp_folder_make(folder));
  ESP_TRY(esp_folder_lock_take(lock, folder, action));
  const esp_status status = resumes ? ESP_OK : esp_run_remove_older(folder);
  if (status == ESP_OK) return ESP_OK;
  esp_folder_lock_free(*lock);
  *lock = NULL;
  return status;
}

esp_status esp_run_write_config(const char *folder, const esp_run_config *config, esp_checkpoint_info *info) {
  esp_run_config own = *config;
  char path[ESP_PATH_SIZE], *used;
  esp_free(info->run_config);
  info->run_config = NULL;
  ESP_TRY(esp_run_config_save(&info->run_config, config));
  ESP_TRY(esp_folder_path(path, folder, "config.yaml"));
  ESP_TRY(esp_run_config_save_used(&used, &own));
  const esp_status status = esp_file_write(path, used);
  esp_free(used);
  return status;
}

/* The model is there, with the sizes that `config` has by now. */
static esp_status train(const esp_run *run, const esp_run_config *config, esp_trained *trained,
                        esp_training_result *result) {
  const esp_training_job job = {.model = trained->model,
                                .dataset = run->dataset,
                                .config = config,
                                .folder = run->folder,
                                .info = &trained->info,
                                .stop = run->stop,
                                .quiet = run->quiet};
  ESP_TRY(esp_run_check(trained->model, config, run->dataset));
  esp_folder_lock *lock;
  ESP_TRY(esp_run_open_folder(&lock, run->folder, "pretrain", false));
  esp_status status = esp_run_write_config(run->folder, config, &trained->info);
  if (status == ESP_OK) status = esp_train(&job, result);
  esp_folder_lock_free(lock);
  return status;
}

esp_status esp_run_train(const esp_run *run, esp_trained *trained, esp_training_result *result) {
  esp_run_config config = *run->config;
  esp_run_take_sizes(&config, run->dataset);
  ESP_TRY(esp_run_create(trained, &config, run->dataset));
  const esp_status status = train(run, &config, trained, result);
  if (status != ESP_OK) esp_trained_clear(trained);
  return status;
}
