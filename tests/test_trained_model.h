/* What tests on trained models share: a training that takes a few seconds. */
#ifndef ESPALIER_TEST_TRAINED_MODEL_H
#define ESPALIER_TEST_TRAINED_MODEL_H

#include "test_measure_models.h"

#include <espalier/train.h>

/* A model that learns the compiled-in images in two epochs: `layers` and `moe` are what stands in the list of kinds and
 * in the mixtures' settings. */
#define TRAINED_SETTINGS(layers, moe)                           \
  "model:\n"                                                    \
  "  stem: {kind: convolution, channels: [8], pools: [4, 2]}\n" \
  "  width: 16\n"                                               \
  "  blocks: 2\n"                                               \
  "  mixing: convolution\n"                                     \
  "  kernel: 3\n"                                               \
  "  layers: [" layers "]\n"                                    \
  "  moe: {" moe "}\n"                                          \
  "optimizer: {learning_rate: 0.01}\n"                          \
  "training: {epochs: 2, batch: 64}\n"

typedef struct trained {
  esp_dataset *dataset;
  esp_model *model;
  esp_normalisation normalisation;
} trained;

/* `settings`: YAML; `spec`: of the data. The caller frees model and dataset. */
static inline trained train_quickly(const char *settings, const char *spec) {
  trained t = {.model = NULL};
  esp_run_config config;
  esp_checkpoint_info info = {.history_count = 1};
  esp_training_result result;
  char folder[TESTING_PATH_SIZE];
  make_folder(folder);
  assert_int_equal(esp_run_config_parse(&config, "test", settings, NULL, 0), ESP_OK);
  assert_int_equal(esp_dataset_open(&t.dataset, spec), ESP_OK);
  const esp_dataset_info *data = esp_dataset_info_of(t.dataset);
  config.model.image_height = data->height;
  config.model.image_width = data->width;
  config.model.image_channels = data->channels;
  config.model.classes = data->classes;
  esp_dataset_normalisation(t.dataset, &t.normalisation);
  info.normalisation = t.normalisation;
  t.model = make(&config.model, NULL, 1);
  const esp_training_job job = {
      .model = t.model, .dataset = t.dataset, .config = &config, .folder = folder, .info = &info, .quiet = true};
  if (esp_train(&job, &result) != ESP_OK) fail_msg("%s", esp_error_message());
  remove_folder(folder);
  return t;
}

#endif
