/* Contact sheets: what a data set, and its augmentation, look like. */
#ifndef ESPALIER_PREVIEW_H
#define ESPALIER_PREVIEW_H

#include <espalier/augment.h>
#include <espalier/dataset.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct esp_preview_options {
  int64_t columns, rows;
  const esp_augmentation *augmentation; /* NULL: the images as they are */
  uint64_t seed;                        /* of the augmentation */
} esp_preview_options;

/* Writes a PNG of `rows` x `columns` images, enlarged by a whole factor if they are small. Row r holds the
 * first `columns` images of class r modulo the number of classes (further images of it in its later rows);
 * a class with too few images leaves the rest of its row empty. Sets of 1 channel are grey, of 3 RGB; of
 * others the first channel is shown. With `augmentation` (not NULL) the first image of each class fills
 * its row, each time augmented anew from `seed`; mixup is not shown. The file appears whole or not at all. */
ESP_API esp_status esp_preview_write(const esp_dataset *dataset, esp_split_name split,
                                     const esp_preview_options *options, const char *png_path) ESP_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
