/* Data sets of labelled images: opened by name, read into memory whole (bytes stay bytes), dealt by index.
 *
 * A dataset owns all it holds; what its functions return is valid until esp_dataset_close(). An open dataset
 * never changes, so any number of threads may read it at once. */
#ifndef ESPALIER_DATASET_H
#define ESPALIER_DATASET_H

#include <espalier/status.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { ESP_MAX_CHANNELS = 8 };

typedef enum esp_split_name { ESP_TRAIN, ESP_TEST } esp_split_name;

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

typedef struct esp_dataset_info {
  const char *name;   /* "cifar10", "synthetic:narrow" */
  const char *source; /* the path read, or "compiled in" */
  int channels, height, width, classes;
  int64_t count[2];               /* images in [ESP_TRAIN], [ESP_TEST] */
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

/* Per channel, of images scaled as esp_dataset_image() gives them. */
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
