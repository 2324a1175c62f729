/* Augmentation of training images: random crop with padding, horizontal flip, cutout (DeVries and Taylor,
 * arXiv:1708.04552) and mixup (Zhang et al., arXiv:1710.09412). Applied after normalisation, so the padding
 * and the cut-out square, which are 0, are the mean colour. */
#ifndef ESPALIER_AUGMENT_H
#define ESPALIER_AUGMENT_H

#include <espalier/dataset.h>
#include <espalier/random.h>

#ifdef __cplusplus
extern "C" {
#endif

/* All zero: off. */
typedef struct esp_augmentation {
  int crop_padding; /* pixels of padding on each side before a random crop to the old size */
  bool reflect;     /* the padding mirrors the image; else it is the mean colour */
  bool flip;        /* mirrored left to right with probability 1/2 */
  /* with flip: a coin for each image of the split, then in every second epoch the other way round, so that two
   * epochs show all images both ways (Jordan, arXiv 2404.00498, section 3.6) */
  bool alternate;
  int cutout;   /* side of the square set to the mean, in pixels; its centre is uniform over the image */
  double mixup; /* alpha of Beta(alpha, alpha) */
} esp_augmentation;

/* ESP_ERR_CONFIG if a setting is negative or does not fit images of this size. */
ESP_API esp_status esp_augmentation_check(const esp_augmentation *augmentation, int height, int width) ESP_MUST_CHECK;

typedef struct esp_augment_options {
  const esp_normalisation *normalisation;
  const esp_augmentation *augmentation; /* NULL: only normalised */
  uint64_t seed, epoch;
  uint64_t position; /* the sample's in the run */
} esp_augment_options;

/* Image `index` of a split, normalised and augmented (all but mixup, which takes a batch), into
 * out [height, width, channels]. Same (seed, epoch, position): same bytes. */
ESP_API void esp_augment_image(const esp_dataset *dataset, esp_split_name split, int64_t index,
                               const esp_augment_options *options, float *out);

/* A sample of Beta(alpha, alpha), alpha > 0. */
ESP_API double esp_random_beta(esp_random *stream, double alpha);

#ifdef __cplusplus
}
#endif
#endif
