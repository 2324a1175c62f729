/* Calibration: a pass of a model over a random sample of training images, for those who watch it. Labels are not
 * needed, so any data whose images have the model's shape will do, whatever their classes. */
#ifndef ESPALIER_CALIBRATION_H
#define ESPALIER_CALIBRATION_H

#include <espalier/dataset.h>
#include <espalier/model.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { ESP_CALIBRATION_BATCH = 64, ESP_CALIBRATION_IMAGES = 1024 };

typedef struct esp_calibration {
  const esp_dataset *dataset;
  const esp_normalisation *normalisation; /* of the images the model expects */
  esp_split_name split;                   /* ESP_TRAIN, so that a test split stays unseen */
  int64_t images;                         /* a sample without replacement; 0 or more than there are: all */
  uint64_t seed;                          /* keys the sample */
  int64_t batch;                          /* 0: ESP_CALIBRATION_BATCH; taken as esp_evaluation_batch() says */
} esp_calibration;

/* ESP_ERR_MISMATCH if the images have not the model's shape. */
ESP_API esp_status esp_calibration_check(const esp_calibration *calibration,
                                         const esp_model_config *config) ESP_MUST_CHECK;

/* How many images a pass looks at, in batches of how many. */
ESP_API int64_t esp_calibration_images(const esp_calibration *calibration);
ESP_API int64_t esp_calibration_batch(const esp_calibration *calibration, const esp_model_config *config);

/* Runs the model over the sample in evaluation mode, always in the same order and batches; observers get labels only
 * if the data's number of classes is the model's. ESP_ERR_MISMATCH as above. */
ESP_API esp_status esp_calibration_pass(const esp_model *model, const esp_calibration *calibration,
                                        const esp_observer *observer) ESP_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
