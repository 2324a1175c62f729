/* What the tests of criteria by calibration share: a small model for the synthetic images, and a sample of these. */
#ifndef ESPALIER_TEST_CALIBRATION_MODELS_H
#define ESPALIER_TEST_CALIBRATION_MODELS_H

#define SHARED_DATA "synthetic"
#include "shared_data.h"
#include "test_measure_models.h"

#include <espalier/calibration.h>

/* small_config() for images of 32 x 32 x 3: 16 tokens an image. */
static inline esp_model_config calibration_config(void) {
  esp_model_config config = small_config();
  config.image_height = config.image_width = 32;
  config.classes = 20;
  config.stem.patch = 8;
  return config;
}

/* Every parameter random, so that experts differ. */
static inline esp_model *random_model(const esp_model_config *config) {
  esp_model *model = make(config, NULL, 1);
  fill_parameters(model->parameters, 0.4);
  return model;
}

/* Eight images in two batches. */
static inline esp_calibration calibration_on(const esp_dataset *of) {
  static const esp_normalisation normalisation = {.mean = {0.5f, 0.5f, 0.5f}, .deviation = {0.25f, 0.25f, 0.25f}};
  return (esp_calibration){
      .dataset = of, .normalisation = &normalisation, .split = ESP_TRAIN, .images = 8, .batch = 4, .seed = 3};
}

#endif
