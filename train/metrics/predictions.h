/* How a model's predictions fit the labels, beyond accuracy and loss: by class, by rank, by confidence. */
#ifndef ESPALIER_PREDICTIONS_H
#define ESPALIER_PREDICTIONS_H

#include <espalier/status.h>
#include <espalier/tensor.h>

#include <stdint.h>
#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif

struct json_t; /* jansson's */

enum {
  ESP_CALIBRATION_BINS = 15,
  ESP_TOP = 5,
  ESP_CONFUSION_CLASSES = 1024 /* with more classes there is no confusion matrix: it would fill the memory */
};

/* The images whose top probability p lies in (b / B, (b + 1) / B], B = ESP_CALIBRATION_BINS. */
typedef struct esp_calibration_bin {
  int64_t images, correct;
  double confidence; /* sum of p */
} esp_calibration_bin;

/* Counts over images. The prediction of an image is its largest logit, the top probability p that one's of
 * softmax(logits); of equal logits the lower class comes first, here and among the five largest. */
typedef struct esp_predictions {
  int classes;
  const char *const *names;         /* [classes], the caller's; NULL: the classes have none */
  int64_t images, in_top;           /* in_top: those whose label is among the ESP_TOP largest logits */
  int64_t *of_class, *predicted_as; /* [classes] images with this label, and with this prediction */
  int64_t *correct;                 /* [classes] images with this label whose prediction it is */
  int64_t *confusion; /* [classes, classes] images by label and prediction; NULL beyond ESP_CONFUSION_CLASSES */
  esp_calibration_bin bins[ESP_CALIBRATION_BINS];
} esp_predictions;

/* Begins with no images. ESP_ERR_MEMORY leaves nothing to be freed. */
ESP_API esp_status esp_predictions_start(esp_predictions *predictions, int classes,
                                         const char *const *names) ESP_MUST_CHECK;
ESP_API void esp_predictions_clear(esp_predictions *predictions);

/* Counts the rows of logits [N, classes] with labels [N]. */
ESP_API void esp_predictions_add(esp_predictions *predictions, const esp_tensor *logits, const int32_t *labels);

/* Share of images whose label is among the five largest logits; not-a-number with ESP_TOP classes or fewer, where it
 * says nothing. */
ESP_API double esp_top_accuracy(const esp_predictions *predictions);

/* Share of a class's images that are predicted as it; not-a-number without images. */
ESP_API double esp_class_accuracy(const esp_predictions *predictions, int class_number);

/* Expected calibration error (Guo et al., ICML 2017, arXiv 1706.04599, eq. 3), over B bins of equal width of p:
 *   ECE = sum_b n_b / n |correct_b / n_b - (sum of p in b) / n_b|
 * 0: of the images predicted with probability p a share of p is right. Not-a-number without images. */
ESP_API double esp_calibration_error(const esp_predictions *predictions);

/* Mean p; not-a-number without images. */
ESP_API double esp_mean_confidence(const esp_predictions *predictions);

/* Writes into a folder that exists:
 *   PREFIXclasses.csv      a row a class: class, name (empty without names), images, correct, predicted,
 *                          accuracy (empty without images)
 *   PREFIXconfusion.csv    a row a label: true, then predicted.0, predicted.1 ...; none beyond ESP_CONFUSION_CLASSES
 *   PREFIXcalibration.csv  a row a bin: above, to, images, confidence, accuracy (means; empty without images) */
ESP_API esp_status esp_predictions_write(const esp_predictions *predictions, const char *folder,
                                         const char *prefix) ESP_MUST_CHECK;

/* Adds to a JSON object PREFIXtop5_accuracy and PREFIXcalibration_error, PREFIXper_class [{class, name, images,
 * accuracy}] and PREFIXconfusion [true][predicted]; what is not known is null. false if memory is short. */
ESP_API bool esp_predictions_put(const esp_predictions *predictions, const char *prefix, struct json_t *json);

/* Prints a line on top-5 accuracy and calibration, and one for each of the worst classes, at most `worst`, that are
 * not all right: lowest accuracy first, equal ones by lower number; with what they were taken for most often. */
ESP_API void esp_predictions_print(const esp_predictions *predictions, int worst, FILE *file);

#ifdef __cplusplus
}
#endif
#endif
