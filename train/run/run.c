#include <espalier/json_file.h>
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

static void note_data(esp_checkpoint_info *info, const esp_dataset *dataset) {
  const esp_dataset_info *data = esp_dataset_info_of(dataset);
  snprintf(info->data_name, sizeof info->data_name, "%s", data->name);
  snprintf(info->data_digest, sizeof info->data_digest, "%s", data->digest);
  esp_dataset_normalisation(dataset, &info->normalisation);
}

static esp_status start_history(esp_checkpoint_info *info, const char *action, const esp_run_config *config,
                                const esp_dataset *dataset, const char *parent) {
  ESP_TRY(esp_checkpoint_add_history(info, action, esp_dataset_info_of(dataset)->name, parent, ""));
  esp_history_entry *entry = &info->history[info->history_count - 1];
  snprintf(entry->frozen, sizeof entry->frozen, "%s", config->training.freeze);
  return ESP_OK;
}

esp_status esp_run_create(esp_trained *trained, const esp_run_config *config, const esp_dataset *dataset) {
  *trained = (esp_trained){.model = NULL};
  ESP_TRY(esp_model_create(&trained->model, &config->model, NULL, config->training.seed));
  note_data(&trained->info, dataset);
  const esp_status status = start_history(&trained->info, "pretrain", config, dataset, "");
  if (status != ESP_OK) esp_trained_clear(trained);
  return status;
}

static bool wants_new_head(const esp_run *run) {
  if (run->head != ESP_HEAD_AS_CLASSES) return run->head == ESP_HEAD_NEW;
  return run->from->model->config.classes != esp_dataset_info_of(run->dataset)->classes;
}

/* The same experts, with the settings of `config`. */
static esp_status build_like(esp_model **model, const esp_run_config *config, const esp_model *source) {
  const int blocks = source->config.blocks;
  if (config->model.blocks != blocks) return esp_fail(ESP_ERR_MISMATCH, "finetuning cannot change model.blocks");
  esp_expert_layout *layouts = esp_alloc((size_t)blocks, sizeof *layouts);
  if (!layouts) return ESP_ERR_MEMORY;
  for (int i = 0; i < blocks; i++) layouts[i] = source->blocks[i].moe.layout;
  const esp_status status = esp_model_create(model, &config->model, layouts, config->training.seed);
  esp_free(layouts);
  return status;
}

static esp_status create_from(esp_trained *trained, esp_run_config *config, const esp_run *run, const char *action) {
  const esp_trained *from = run->from;
  const bool new_head = wants_new_head(run);
  ESP_TRY(esp_check_data_fits(&from->model->config, run->dataset, false));
  if (new_head) config->model.classes = esp_dataset_info_of(run->dataset)->classes;
  ESP_TRY(build_like(&trained->model, config, from->model));
  ESP_TRY(esp_model_copy_parameters(trained->model, from->model, new_head ? "head.*" : ""));
  trained->info = from->info;
  trained->info.run_config = NULL;
  note_data(&trained->info, run->dataset);
  return start_history(&trained->info, action, config, run->dataset, from->info.digest);
}

esp_status esp_run_create_from(esp_trained *trained, esp_run_config *config, const esp_run *run, const char *action) {
  *trained = (esp_trained){.model = NULL};
  const esp_status status = create_from(trained, config, run, action);
  if (status != ESP_OK) esp_trained_clear(trained);
  return status;
}

static esp_status check_teacher(const esp_trained *trained, const esp_run_config *config, const esp_trained *teacher) {
  if (!teacher) return ESP_OK;
  ESP_TRY(
      esp_distillation_check(teacher->model, &teacher->info, &trained->model->config, &trained->info.normalisation));
  if (config->distillation.weight > 0) return ESP_OK;
  return esp_fail(ESP_ERR_CONFIG, "the teacher would teach nothing: distillation.weight is %g",
                  config->distillation.weight);
}

esp_status esp_run_check(const esp_trained *trained, const esp_run_config *config, const esp_dataset *dataset,
                         const esp_trained *teacher) {
  const esp_dataset_info *data = esp_dataset_info_of(dataset);
  ESP_TRY(check_teacher(trained, config, teacher));
  ESP_TRY(esp_check_data_fits(&trained->model->config, dataset, true));
  ESP_TRY(esp_augmentation_check(&config->augmentation, data->height, data->width));
  ESP_TRY(esp_training_check(&config->training));
  ESP_TRY(esp_check_held_out(dataset, config->data.validation));
  return esp_training_freeze(&config->training, trained->model);
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

/* Works in the folder, which is ours. */
static esp_status train(const esp_run *run, const esp_run_config *config, esp_trained *trained,
                        esp_training_result *result) {
  const esp_training_job job = {.model = trained->model,
                                .dataset = run->dataset,
                                .config = config,
                                .folder = run->folder,
                                .info = &trained->info,
                                .teacher = run->teacher ? run->teacher->model : NULL,
                                .teacher_info = run->teacher ? &run->teacher->info : NULL,
                                .stop = run->stop,
                                .quiet = run->quiet};
  ESP_TRY(esp_folder_path(trained->path, run->folder, ESP_LAST_CHECKPOINT));
  ESP_TRY(esp_run_write_config(run->folder, config, &trained->info));
  ESP_TRY(esp_train(&job, result));
  return esp_json_write(run->folder, "results.json", esp_run_results_json(run, config, trained, result),
                        ESP_JSON_DIGITS);
}

/* The model is there, with the sizes that `config` has by now. */
static esp_status train_in_folder(const esp_run *run, esp_run_config *config, esp_trained *trained,
                                  esp_training_result *result) {
  esp_folder_lock *lock;
  config->model = trained->model->config;
  ESP_TRY(esp_run_check(trained, config, run->dataset, run->teacher));
  ESP_TRY(esp_run_open_folder(&lock, run->folder, run->from ? "finetune" : "pretrain", false));
  const esp_status status = train(run, config, trained, result);
  esp_folder_lock_free(lock);
  return status;
}

static esp_status read_settings(esp_run_config *config, const esp_run *run) {
  if (run->config) *config = *run->config;
  else if (!run->from) esp_panic("esp_run_train: a run needs settings, or a model that has some");
  else ESP_TRY(esp_run_config_parse(config, "the model's settings", run->from->info.run_config, NULL, 0));
  return ESP_OK;
}

esp_status esp_run_train(const esp_run *run, esp_trained *trained, esp_training_result *result) {
  esp_run_config config;
  *trained = (esp_trained){.model = NULL};
  ESP_TRY(read_settings(&config, run));
  esp_run_take_sizes(&config, run->dataset);
  ESP_TRY(run->from ? esp_run_create_from(trained, &config, run, "finetune")
                    : esp_run_create(trained, &config, run->dataset));
  const esp_status status = train_in_folder(run, &config, trained, result);
  if (status != ESP_OK) esp_trained_clear(trained);
  return status;
}
