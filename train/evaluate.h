/* Accuracy and loss of a model on a split. */
#ifndef ESPALIER_EVALUATE_H
#define ESPALIER_EVALUATE_H

#include <espalier/dataset.h>
#include <espalier/loader.h>
#include <espalier/model.h>
#include <espalier/predictions.h>
#include <espalier/routing_trace.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct esp_evaluation {
  double accuracy, loss; /* share of images whose largest logit is their label's; mean cross-entropy */
  double flip_accuracy,
      flip_loss; /* of the mean of the logits of an image and of its mirror image, if options.flip says so */
  int64_t examples;
  double seconds;
} esp_evaluation;

/* What an evaluation looks at, and who watches it. */
typedef struct esp_evaluation_options {
  esp_split_name split;
  int64_t limit; /* looks at so many images, always the same ones, with the classes in their shares; 0, or as many as
                    there are: at all, in the order of the split */
  const esp_observer *observer;    /* NULL: none */
  const esp_routing_trace *replay; /* routes instead of the routers; NULL: none */
  const esp_neuron_filter *filter; /* intervenes in the experts; NULL: none */
  esp_neuron_path neurons;         /* how MoNE layers compute, if nobody watches */
  float *logits;   /* [examples, classes] gets what was predicted of each image: of an E3 the logarithm of its members'
                    mean probability; NULL: not wanted */
  int64_t *places; /* [examples] gets which image of the split each one is; NULL: not wanted */
  bool flip;       /* mirror images, which nobody watches and nothing replays, are looked at, too */
  esp_predictions *predictions;      /* started; gets what was predicted, of an E3 by its members' mean probability */
  esp_predictions *flip_predictions; /* the same of the mean of both logits; used if `flip`. NULL: not wanted, both */
} esp_evaluation_options;

/* Runs the model over the split without augmentation. What it finds depends on the model and the images alone: passes
 * take as many images as esp_evaluation_batch() says, and routing groups begin where they begin in the split.
 * ESP_ERR_MISMATCH if images or classes are not the model's or the trace is of other data or another kind of model,
 * ESP_ERR_NOT_FINITE if the loss is not finite. */
ESP_API esp_status esp_evaluate(const esp_model *model, const esp_dataset *dataset,
                                const esp_normalisation *normalisation, const esp_evaluation_options *options,
                                esp_evaluation *evaluation) ESP_MUST_CHECK;

/* How many images that looks at. */
ESP_API int64_t esp_evaluated_images(const esp_dataset_info *data, const esp_evaluation_options *options);

/* ESP_ERR_MISMATCH if the data's images (and, if `classes`, its number of classes) are not the model's. */
ESP_API esp_status esp_check_data_fits(const esp_model_config *config, const esp_dataset *dataset,
                                       bool classes) ESP_MUST_CHECK;

/* ESP_ERR_CONFIG unless `share` of the training images is held out for validation: the settings of a run, which its
 * checkpoints keep, must tell what was. A split that is the source's own fits any. */
ESP_API esp_status esp_check_held_out(const esp_dataset *dataset, double share) ESP_MUST_CHECK;

/* Images [count, H, W, C] of a batch as a leaf of the step; NULL if memory is short. */
ESP_API esp_tensor *esp_batch_images(esp_tape *tape, const esp_batch *batch, const esp_model_config *config);

/* How many rows of logits [N, classes] have their largest entry at the label; the first of equal ones counts. */
ESP_API int64_t esp_count_correct(const esp_tensor *logits, const int32_t *labels);

/* The sum of the rows' cross-entropies, in nats, from logits to sum in double: not finite if one is. */
ESP_API double esp_sum_losses(const esp_tensor *logits, const int32_t *labels);

/* Seconds of a clock that never goes back. */
ESP_API double esp_seconds(void);

#ifdef __cplusplus
}
#endif
#endif
