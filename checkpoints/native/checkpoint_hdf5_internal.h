/* What checkpoints/ needs of HDF5: handles that are closed on every path, checksummed datasets, strict
 * reading, and HDF5's own words for what went wrong. */
#ifndef ESPALIER_CHECKPOINT_HDF5_INTERNAL_H
#define ESPALIER_CHECKPOINT_HDF5_INTERNAL_H

#include <espalier/tensor.h>

#include <hdf5.h>

/* HDF5 prints its errors unless told not to; between these two calls it keeps them for esp_h5_reason(). */
typedef struct esp_h5_silence {
  H5E_auto2_t print;
  void *data;
} esp_h5_silence;

esp_h5_silence esp_h5_begin_silence(void);
void esp_h5_end_silence(const esp_h5_silence *silence);

/* The innermost entry of HDF5's error stack: "data error detected by Fletcher32 checksum". Valid until the
 * next call. */
const char *esp_h5_reason(void);

/* The handles that a function opened; closed together, the newest first. */
typedef struct esp_h5_handles {
  int count;
  hid_t ids[8];
} esp_h5_handles;

hid_t esp_h5_keep(esp_h5_handles *handles, hid_t id); /* returns id; failed ones (negative) are not kept */
void esp_h5_close(esp_h5_handles *handles);

/* An array in the file, and the type of its elements in memory. */
typedef struct esp_h5_array {
  hid_t stored, type;
  int rank;
  hsize_t shape[ESP_MAX_RANK];
} esp_h5_array;

/* Writes a chunked dataset with Fletcher-32 and, at level 1 to 9, shuffle and deflate. */
esp_status esp_h5_write(hid_t place, const char *name, const esp_h5_array *array, const void *values, int level);

/* Fills a new dataset that has these filters, chunk by chunk, compressing at level 1 to 9; the elements in memory are
 * as in the file. */
esp_status esp_h5_write_chunks(hid_t data, const esp_h5_array *array, const hsize_t *chunk, const void *values,
                               int level);

/* Returns at least as many bytes as that takes in a file, elements having `size` bytes. */
size_t esp_h5_most_bytes(const esp_h5_array *array, size_t size);

/* A dataset [1] of a fixed-length UTF-8 string, and back (from esp_alloc(); at most 1 MiB). */
esp_status esp_h5_write_text(hid_t place, const char *name, const char *text);
esp_status esp_h5_read_text(hid_t place, const char *name, char **text);

/* Attributes. */
esp_status esp_h5_set_text(hid_t place, const char *name, const char *text);
esp_status esp_h5_set_number(hid_t place, const char *name, int64_t value);
esp_status esp_h5_get_text(hid_t place, const char *name, char *text, size_t size);
esp_status esp_h5_get_number(hid_t place, const char *name, int64_t *value);

/* A group inside `place`, kept in `handles`; the first makes it, the second opens it. */
esp_status esp_h5_make_group(esp_h5_handles *handles, hid_t place, const char *name, hid_t *group);
esp_status esp_h5_open_group(esp_h5_handles *handles, hid_t place, const char *name, hid_t *group);
bool esp_h5_has(hid_t place, const char *name);
bool esp_h5_has_attribute(hid_t place, const char *name);

/* Fails unless each part of the path `name` is a hard link, one into the file itself. */
esp_status esp_h5_check_links(hid_t place, const char *name);

/* Fails unless a dataset is stored as FORMAT.md says: in chunks of this file, with shuffle, deflate and Fletcher-32 at
 * most, and in no more bytes than the file has. `type`: of its elements. */
esp_status esp_h5_check_storage(hid_t data, const char *name, hid_t type);

/* Opens the dataset `name`, kept in `handles`, and sets array->rank and shape. Fails if its elements are not
 * of `kind` with `size` bytes each (0: any), if it has too many dimensions, if it is stored otherwise than FORMAT.md
 * says, or if so many elements cannot be in the bytes that the file keeps for it. */
esp_status esp_h5_open(esp_h5_handles *handles, hid_t place, const char *name, H5T_class_t kind, size_t size,
                       esp_h5_array *array, hid_t *dataset);
esp_status esp_h5_read(hid_t dataset, const char *name, hid_t type, void *values);

/* The dataset `name`, whose shape must be that of `array`. */
esp_status esp_h5_read_array(hid_t place, const char *name, const esp_h5_array *array, void *values);

/* Calls visit() for the name of each thing in a group, in the order of the names, until one fails. */
typedef esp_status esp_h5_visit(void *context, hid_t group, const char *name);
esp_status esp_h5_each(hid_t group, esp_h5_visit *visit, void *context);

/* float32, int32 and int64, stored as little-endian. Arrays [count]. */
esp_h5_array esp_h5_floats(const esp_tensor *shaped);
esp_h5_array esp_h5_numbers(hid_t stored, hid_t type, int64_t count);
bool esp_h5_same_shape(const esp_h5_array *a, const esp_h5_array *b);
char *esp_h5_shape_text(const esp_h5_array *array, char *text, size_t size);

#endif
