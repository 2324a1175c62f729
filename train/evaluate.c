#include <espalier/evaluate.h>
#include <espalier/ops.h>

#include <math.h>
#include <string.h>
#include <time.h>

/* Keys the draw of a subset. It is no setting, so that figures of subsets are of the same images whoever asks. */
static const uint64_t subset_key = 0x737562736574u;

int64_t esp_evaluated_images(const esp_dataset_info *data, const esp_evaluation_options *options) {
  const int64_t count = data->count[options->split];
  return options->limit > 0 && options->limit < count ? options->limit : count;
}

double esp_seconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

esp_status esp_check_data_fits(const esp_model_config *config, const esp_dataset *dataset, bool classes) {
  const esp_dataset_info *info = esp_dataset_info_of(dataset);
  if (info->height != config->image_height || info->width != config->image_width ||
      info->channels != config->image_channels)
    return esp_fail(ESP_ERR_MISMATCH, "the model takes images of %d x %d x %d, but those of %s (%s) are %d x %d x %d",
                    config->image_height, config->image_width, config->image_channels, info->name, info->source,
                    info->height, info->width, info->channels);
  /* Where the data name no classes, they have as many as their largest label says, which may be too few. */
  const bool only_fewer = !info->class_names && info->classes < config->classes;
  if (classes && info->classes != config->classes && !only_fewer)
    return esp_fail(
        ESP_ERR_MISMATCH,
        "the model knows %d classes, but %s (%s) has %d; use the data it was trained on, or finetune it first",
        config->classes, info->name, info->source, info->classes);
  return ESP_OK;
}

esp_status esp_check_held_out(const esp_dataset *dataset, double share) {
  const esp_dataset_info *data = esp_dataset_info_of(dataset);
  if (data->own_validation || !(fabs(data->validation - share) > 0)) return ESP_OK;
  return esp_fail(ESP_ERR_CONFIG,
                  "data.validation is %g, but of the training images of %s a share of %g is held out; "
                  "esp_dataset_hold_out() makes them agree",
                  share, data->name, data->validation);
}

esp_tensor *esp_batch_images(esp_tape *tape, const esp_batch *batch, const esp_model_config *config) {
  esp_tensor *images = esp_tape_take(tape, sizeof *images);
  if (!images) return NULL;
  *images = (esp_tensor){.data = batch->images,
                         .rank = 4,
                         .shape = {batch->count, config->image_height, config->image_width, config->image_channels}};
  return images;
}

int64_t esp_count_correct(const esp_tensor *logits, const int32_t *labels) {
  const int64_t classes = esp_tensor_columns(logits);
  int64_t correct = 0;
  for (int64_t i = 0; i < esp_tensor_rows(logits); i++) {
    int32_t best;
    esp_top_k_of(logits->data + i * classes, classes, 1, &best);
    correct += best == labels[i];
  }
  return correct;
}

static double row_loss(const esp_real *logits, int64_t classes, int32_t label) {
  double most = (double)logits[0], mass = 0;
  for (int64_t j = 1; j < classes; j++) most = (double)logits[j] > most ? (double)logits[j] : most;
  for (int64_t j = 0; j < classes; j++) mass += exp((double)logits[j] - most); /* not-a-number comes through */
  return most + log(mass) - (double)logits[label];
}

double esp_sum_losses(const esp_tensor *logits, const int32_t *labels) {
  const int64_t classes = esp_tensor_columns(logits);
  double sum = 0;
  for (int64_t i = 0; i < esp_tensor_rows(logits); i++) sum += row_loss(logits->data + i * classes, classes, labels[i]);
  return sum;
}

/* Every image of the leaf from left to right. */
static esp_tensor *mirrored(esp_tape *tape, const esp_tensor *images) {
  const int64_t rows = images->shape[0] * images->shape[1], width = images->shape[2], channels = images->shape[3];
  esp_tensor *mirror = esp_tape_tensor(tape, images->rank, images->shape);
  for (int64_t r = 0; mirror && r < rows; r++)
    for (int64_t x = 0; x < width; x++)
      memcpy(mirror->data + (r * width + x) * channels, images->data + (r * width + width - 1 - x) * channels,
             (size_t)channels * sizeof *mirror->data);
  return mirror;
}

/* Adds what the mean of both logits says. */
static esp_status add_flipped(const esp_model *model, esp_tape *tape, const esp_batch *batch, const esp_tensor *images,
                              esp_tensor *logits, const esp_pass *pass, esp_predictions *predictions,
                              esp_evaluation *sum) {
  esp_tensor *mirror = mirrored(tape, images);
  if (!mirror) return esp_tape_status(tape);
  const esp_pass unwatched = {.neurons = pass->neurons, .filter = pass->filter};
  const esp_model_output output = esp_model_forward(model, tape, mirror, &unwatched);
  esp_tensor *mean = esp_scale(tape, esp_add(tape, logits, esp_ensemble_prediction(tape, &output)), 0.5);
  if (!mean) return esp_tape_status(tape);
  if (predictions) esp_predictions_add(predictions, mean, batch->labels);
  sum->flip_accuracy += (double)esp_count_correct(mean, batch->labels);
  sum->flip_loss += esp_sum_losses(mean, batch->labels);
  return ESP_OK;
}

static void keep_logits(const esp_tensor *logits, int64_t first, float *kept) {
  const int64_t columns = esp_tensor_columns(logits);
  for (int64_t i = 0; i < esp_tensor_rows(logits) * columns; i++) kept[first * columns + i] = (float)logits->data[i];
}

static esp_status evaluate_batch(const esp_model *model, esp_tape *tape, const esp_batch *batch,
                                 const esp_evaluation_options *options, esp_evaluation *sum) {
  esp_tape_reset(tape, false);
  esp_pass pass = {
      .neurons = options->neurons, .observer = options->observer, .labels = batch->labels, .filter = options->filter};
  if (options->replay) {
    pass.choices = esp_routing_trace_choices(options->replay, tape, sum->examples, batch->count);
    if (!pass.choices) return esp_tape_status(tape);
  }
  esp_tensor *images = esp_batch_images(tape, batch, &model->config);
  if (!images) return esp_tape_status(tape);
  const esp_model_output output = esp_model_forward(model, tape, images, &pass);
  esp_tensor *logits = esp_ensemble_prediction(tape, &output);
  if (!logits) return esp_tape_status(tape);
  sum->accuracy += (double)esp_count_correct(logits, batch->labels);
  sum->loss += esp_sum_losses(logits, batch->labels);
  if (options->predictions) esp_predictions_add(options->predictions, logits, batch->labels);
  if (options->logits) keep_logits(logits, sum->examples, options->logits);
  if (options->places)
    memcpy(options->places + sum->examples, batch->places, (size_t)batch->count * sizeof *batch->places);
  if (options->flip) ESP_TRY(add_flipped(model, tape, batch, images, logits, &pass, options->flip_predictions, sum));
  sum->examples += batch->count;
  return ESP_OK;
}

static esp_status evaluate_all(const esp_model *model, esp_tape *tape, esp_loader *loader,
                               const esp_evaluation_options *options, esp_evaluation *sum) {
  const double start = esp_seconds();
  for (int64_t left = esp_loader_batches_per_epoch(loader); left > 0; left--) {
    const esp_batch *batch;
    ESP_TRY(esp_loader_next(loader, &batch));
    ESP_TRY(evaluate_batch(model, tape, batch, options, sum));
  }
  sum->seconds = esp_seconds() - start;
  sum->accuracy /= (double)sum->examples;
  sum->loss /= (double)sum->examples;
  sum->flip_accuracy /= (double)sum->examples;
  sum->flip_loss /= (double)sum->examples;
  if (isfinite(sum->loss)) return ESP_OK;
  return esp_fail(ESP_ERR_NOT_FINITE,
                  "the loss over %lld images is not finite: the training that made the model has diverged",
                  (long long)sum->examples);
}

esp_status esp_evaluate(const esp_model *model, const esp_dataset *dataset, const esp_normalisation *normalisation,
                        const esp_evaluation_options *options, esp_evaluation *evaluation) {
  *evaluation = (esp_evaluation){0};
  ESP_TRY(esp_check_data_fits(&model->config, dataset, true));
  const esp_dataset_info *info = esp_dataset_info_of(dataset);
  const int64_t images = esp_evaluated_images(info, options);
  if (options->replay) ESP_TRY(esp_routing_trace_check(options->replay, model, info, options->split, images));
  const esp_loader_options loading = {.batch = esp_evaluation_batch(&model->config, ESP_EVALUATION_IMAGES),
                                      .normalisation = *normalisation,
                                      .example_limit = images,
                                      .sample = images < info->count[options->split],
                                      .stratified = true,
                                      .seed = subset_key};
  esp_loader *loader;
  ESP_TRY(esp_loader_create(&loader, dataset, options->split, &loading, 0));
  esp_tape *tape = esp_tape_create();
  const esp_status status = tape ? evaluate_all(model, tape, loader, options, evaluation) : ESP_ERR_MEMORY;
  esp_tape_free(tape);
  esp_loader_close(loader);
  return status;
}
