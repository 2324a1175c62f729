#include <espalier/calibration.h>
#include <espalier/evaluate.h>

esp_status esp_calibration_check(const esp_calibration *c, const esp_model_config *config) {
  const esp_status status = esp_check_data_fits(config, c->dataset, false);
  return status == ESP_OK ? ESP_OK : esp_fail_in(status, "calibration data");
}

int64_t esp_calibration_images(const esp_calibration *c) {
  const int64_t available = esp_dataset_info_of(c->dataset)->count[c->split];
  return c->images > 0 && c->images < available ? c->images : available;
}

int64_t esp_calibration_batch(const esp_calibration *c, const esp_model_config *config) {
  return esp_evaluation_batch(config, c->batch > 0 ? c->batch : ESP_CALIBRATION_BATCH);
}

static esp_status pass_over_batch(const esp_model *model, esp_tape *tape, const esp_batch *batch, bool labelled,
                                  const esp_observer *observer) {
  esp_tape_reset(tape, false);
  const esp_pass pass = {.observer = observer, .labels = labelled ? batch->labels : NULL};
  esp_tensor *images = esp_batch_images(tape, batch, &model->config);
  if (!images || !esp_model_forward(model, tape, images, &pass).logits) return esp_tape_status(tape);
  return ESP_OK;
}

static esp_status pass_over_all(const esp_model *model, esp_tape *tape, esp_loader *loader, bool labelled,
                                const esp_observer *observer) {
  for (int64_t left = esp_loader_batches_per_epoch(loader); left > 0; left--) {
    const esp_batch *batch;
    ESP_TRY(esp_loader_next(loader, &batch));
    ESP_TRY(pass_over_batch(model, tape, batch, labelled, observer));
  }
  return ESP_OK;
}

esp_status esp_calibration_pass(const esp_model *model, const esp_calibration *c, const esp_observer *observer) {
  ESP_TRY(esp_calibration_check(c, &model->config));
  const esp_loader_options loading = {.batch = esp_calibration_batch(c, &model->config),
                                      .normalisation = *c->normalisation,
                                      .seed = c->seed,
                                      .example_limit = esp_calibration_images(c),
                                      .sample = true};
  const bool labelled = esp_dataset_info_of(c->dataset)->classes == model->config.classes;
  esp_loader *loader;
  ESP_TRY(esp_loader_create(&loader, c->dataset, c->split, &loading, 0));
  esp_tape *tape = esp_tape_create();
  const esp_status status = tape ? pass_over_all(model, tape, loader, labelled, observer) : ESP_ERR_MEMORY;
  esp_tape_free(tape);
  esp_loader_close(loader);
  return status;
}
