/* The loader deals a split in batches, epoch after epoch, and prepares the next ones on a thread of its own.
 *
 * The same (seed, epoch, index in the epoch) gives the same bytes, wherever a run was resumed and whatever
 * the number of threads: the order is keyed by the epoch, augmentation by the sample's position in the run
 * (epoch * examples + position in the epoch), mixup by the batch's. After esp_loader_create() nothing is
 * allocated. One thread at a time may use a loader. */
#ifndef ESPALIER_LOADER_H
#define ESPALIER_LOADER_H

#include <espalier/augment.h>
#include <espalier/dataset.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct esp_loader esp_loader;

typedef struct esp_loader_options {
  int64_t batch;  /* images in a batch */
  bool shuffle;   /* another order each epoch; else the order of the data set */
  bool drop_last; /* no shorter batch at the end of an epoch */
  esp_augmentation augmentation;
  esp_normalisation normalisation; /* (value - mean) / deviation */
  uint64_t seed;
  int64_t first_example, example_limit; /* deals only this range of the split; a limit of 0: up to its end */
  bool sample;     /* the example_limit images are drawn at random from first_example on, keyed by the seed, without
                  replacement; a smaller sample is the beginning of a larger one */
  bool stratified; /* the sample has the classes in the shares that the range has them in, to within an image */
} esp_loader_options;

/* Owned by the loader. */
typedef struct esp_batch {
  int64_t count;         /* images in this batch: options.batch, or fewer in the last one of an epoch */
  float *images;         /* [count, height, width, channels], normalised and augmented */
  int32_t *labels;       /* [count] */
  int64_t *places;       /* [count] which image of the split each is */
  int32_t *mixed_labels; /* [count] labels of what was mixed in; equal to labels without mixup */
  float *mix;            /* [count] share of labels[i] in the target; 1 without mixup */
  int64_t epoch, index_in_epoch;
} esp_batch;

/* The loader deals next the batch at position `first_batch` of the run: batches since epoch 0, so to
 * resume is to give this number. The dataset must outlive the loader. On failure *loader is NULL:
 * ESP_ERR_CONFIG (the message names the option), ESP_ERR_MEMORY, ESP_ERR_IO (no thread). */
ESP_API esp_status esp_loader_create(esp_loader **loader, const esp_dataset *dataset, esp_split_name split,
                                     const esp_loader_options *options, int64_t first_batch) ESP_MUST_CHECK;

/* The next batch, waiting for it if need be; endless. The batch is valid until the next call. */
ESP_API esp_status esp_loader_next(esp_loader *loader, const esp_batch **batch) ESP_MUST_CHECK;

ESP_API int64_t esp_loader_batches_per_epoch(const esp_loader *loader);
ESP_API int64_t esp_loader_examples(const esp_loader *loader); /* dealt from: the size of the range */

/* Stops the thread and frees all; NULL is allowed. */
ESP_API void esp_loader_close(esp_loader *loader);

#ifdef __cplusplus
}
#endif
#endif
