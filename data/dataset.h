/* Data sets of labelled images: opened by name, read into memory whole (bytes stay bytes), dealt by index.
 *
 * A dataset owns all it holds; what its functions return is valid until esp_dataset_close(). An open dataset
 * changes by esp_dataset_hold_out() alone, so any number of threads may read it at once. */
#ifndef ESPALIER_DATASET_H
#define ESPALIER_DATASET_H

#include <espalier/status.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { ESP_MAX_CHANNELS = 8 };

/* What is learnt from, what choices look at, and what is reported on at the end. */
typedef enum esp_split_name { ESP_TRAIN, ESP_VALIDATION, ESP_TEST, ESP_SPLITS } esp_split_name;

/* "train", "validation" or "test". */
ESP_API const char *esp_split_text(esp_split_name split);

/* The share of the training images that is the validation split unless something else is asked for. */
#define ESP_VALIDATION_SHARE 0.05

typedef struct esp_dataset esp_dataset;

/* What `spec` may be:
 *   "synthetic"         20 classes of procedural images, compiled in
 *   "synthetic:narrow"  5 classes of one of its families, other images
 *   "NAME"              found in the usual places (see esp_dataset_list())
 *   "NAME:PATH"         NAME among fashion-mnist, mnist, cifar10, cifar100, hdf5
 * On failure *dataset is NULL: ESP_ERR_NOT_FOUND (name or file), ESP_ERR_USAGE (a spec that cannot be),
 * ESP_ERR_FORMAT (a file that is not what it should be), ESP_ERR_IO, ESP_ERR_MEMORY. */
ESP_API esp_status esp_dataset_open(esp_dataset **dataset, const char *spec) ESP_MUST_CHECK;
ESP_API void esp_dataset_close(esp_dataset *dataset); /* NULL is allowed */

/* Makes `share` of the training images the validation split, in the place of what was held out before; 0: none. Of a
 * class of n training images round(share n) are held out, but at least one if n > 1 and none if n = 1. Which ones is
 * drawn with a fixed key: the same data and share give the same split in every run, whatever its seed, and a smaller
 * share is part of a larger one. Where the source has a validation split of its own that one stays.
 * esp_dataset_open() does this with ESP_VALIDATION_SHARE, or holds out nothing where that cannot be. ESP_ERR_CONFIG,
 * with the split as it was, unless 0 <= share < 1, or if a class would keep no training image or no class has an image
 * to spare. Nobody may read the dataset at the same time, nor may a loader of it be open. */
ESP_API esp_status esp_dataset_hold_out(esp_dataset *dataset, double share) ESP_MUST_CHECK;

/* ESP_ERR_FORMAT if nothing can be learnt from the training images (one class alone) or a split holds none of their
 * classes. What else a reader of results should know becomes a line each in remarks [size], "" if there is nothing:
 * classes that training lacks, labels that never occur or begin at 1, a test split that is the training split. */
ESP_API esp_status esp_dataset_check(const esp_dataset *dataset, char *remarks, size_t size) ESP_MUST_CHECK;

typedef struct esp_dataset_info {
  const char *name;   /* "cifar10", "synthetic:narrow" */
  const char *source; /* the path read, or "compiled in" */
  int channels, height, width, classes;
  int64_t count[ESP_SPLITS];      /* images in [ESP_TRAIN], [ESP_VALIDATION] and [ESP_TEST] */
  bool own_validation;            /* the source has a validation split, which no setting changes */
  double validation;              /* share of the source's training images that is held out instead; 0: none */
  const char *const *class_names; /* [classes]; NULL if the source names none */
  const char *digest;             /* "crc32:xxxxxxxx" of images and labels; of a generated set its version */
  const char *note;               /* what a reader of figures should know (how the split was made); "" if nothing */
} esp_dataset_info;

ESP_API const esp_dataset_info *esp_dataset_info_of(const esp_dataset *dataset);

/* The raw image `index` < count[split], scaled to [0, 1] (float data sets: as stored), channels last:
 * out is [height, width, channels]. */
ESP_API void esp_dataset_image(const esp_dataset *dataset, esp_split_name split, int64_t index, float *out);

/* 0 <= label < classes. */
ESP_API int32_t esp_dataset_label(const esp_dataset *dataset, esp_split_name split, int64_t index);

/* Means and deviations are per channel, of images scaled as esp_dataset_image() gives them. */
typedef struct esp_normalisation {
  float mean[ESP_MAX_CHANNELS], deviation[ESP_MAX_CHANNELS];
} esp_normalisation;

/* Statistics of the first 10000 training images (all, if there are fewer). A channel that never varies gets
 * deviation 1. */
ESP_API void esp_dataset_normalisation(const esp_dataset *dataset, esp_normalisation *normalisation);

/* A row of the table of data sets. A new data set is one reading function and one row. */
typedef struct esp_dataset_kind {
  const char *name;
  const char *summary;        /* one line */
  const char *path_form;      /* what PATH is in NAME:PATH */
  const char *places;         /* where NAME alone is looked for; NULL if it is compiled in or needs a PATH */
  const char *advice;         /* how to get it */
  const char *const *entries; /* what is looked for in each of the places; ends with NULL */
  /* Fills an empty dataset from `path` (NULL: none was given). */
  esp_status (*read)(esp_dataset *dataset, const char *path);
} esp_dataset_kind;

/* The table; returns its number of rows. */
ESP_API size_t esp_dataset_list(const esp_dataset_kind **kinds);

#ifdef __cplusplus
}
#endif
#endif
