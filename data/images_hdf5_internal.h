/* An HDF5 file of images on its way into a data set: read_hdf5.c reads and sends it in a copy of the process
 * (<espalier/confined.h>), images_hdf5.c receives it. */
#ifndef ESPALIER_IMAGES_HDF5_INTERNAL_H
#define ESPALIER_IMAGES_HDF5_INTERNAL_H

#include "dataset_internal.h"

#include <hdf5.h>

enum { ESP_HDF5_CLASSES = 65536, ESP_HDF5_NAME_BYTES = 1024 };

/* What is sent first. The class names follow, a line each; then of each split that has images the labels, int64
 * [count]; then of each its images, [count, height, width, channels]. */
typedef struct esp_hdf5_header {
  uint64_t channels, height, width;
  uint64_t count[ESP_SPLITS];
  uint64_t names_bytes; /* 0: the file names no classes */
  uint32_t names;
  uint8_t floats, has[ESP_SPLITS];
} esp_hdf5_header;

/* An esp_confined_work; context: the path. */
esp_status esp_hdf5_send(void *path, int to);

/* Fails unless the dataset `name` of a file is a hard link to what is stored in the file itself, or in files of the
 * same folder (virtual datasets), unfiltered or with shuffle, deflate and Fletcher-32, in no more bytes than they have.
 * Sets *stored to these bytes and *outside to the bytes of the other files. */
esp_status esp_hdf5_check(hid_t file, const char *path, const char *name, double *stored, double *outside);

/* Opens a dataset without following external links; -1 if it cannot. */
hid_t esp_hdf5_open(hid_t file, const char *path, const char *name);

#endif
