/* The copy's side of an HDF5 file of images: `images` [N, C, H, W] (uint8: 0 to 255; float32 or float64: as stored) and
 * `labels` [N] (integers), `validation_images`, `validation_labels`, `test_images` and `test_labels` alike
 * if the file has these splits, `class_names` (text) if it names the classes. */
#include "images_hdf5_internal.h"

#include <espalier/confined.h>

#include <math.h>
#include <stdio.h>
#include <string.h>

enum {
  RANK = 4,
  IMAGES_AT_ONCE = 64,
  MOST_NAME_BYTES = 1 << 24,
  LARGEST_RATIO = 1032 /* of deflate */
};

/* An opened dataset of the file. */
typedef struct table {
  hid_t data, space, type;
  const char *name;
  int rank;
  hsize_t shape[RANK];
  double stored; /* bytes */
} table;

static esp_status fail_shape(const char *path, const table *t, int rank) {
  return esp_fail(ESP_ERR_FORMAT, "%s: `%s` has %d dimensions; expected %d (%s)", path, t->name, t->rank, rank,
                  rank == RANK ? "images, channels, height, width" : "one number an image");
}

/* Unpacking one chunk or many, a chunk goes through memory whole. */
static esp_status check_chunk(const table *t, const char *path) {
  hsize_t chunk[RANK];
  const hid_t list = H5Dget_create_plist(t->data);
  const int rank = list >= 0 && H5Pget_layout(list) == H5D_CHUNKED ? H5Pget_chunk(list, RANK, chunk) : 0;
  double bytes = (double)H5Tget_size(t->type);
  for (int i = 0; i < rank; i++) bytes *= (double)chunk[i];
  if (list >= 0) H5Pclose(list);
  if (rank == 0 || t->stored <= 0 || bytes <= t->stored * LARGEST_RATIO) return ESP_OK; /* none: nothing is unpacked */
  return esp_fail(ESP_ERR_FORMAT, "%s: `%s` has chunks of %.0f bytes and stores %.0f; the file was not fully written",
                  path, t->name, bytes, t->stored);
}

static esp_status open_table(table *t, hid_t file, const char *path, const char *name, int rank) {
  double outside = 0;
  *t = (table){.data = -1, .space = -1, .type = -1, .name = name};
  ESP_TRY(esp_hdf5_check(file, path, name, &t->stored, &outside));
  esp_confined_extend((uint64_t)outside);
  t->data = esp_hdf5_open(file, path, name);
  if (t->data < 0) return esp_fail(ESP_ERR_FORMAT, "%s: `%s` cannot be opened", path, name);
  t->space = H5Dget_space(t->data);
  t->type = H5Dget_type(t->data);
  t->rank = H5Sget_simple_extent_ndims(t->space);
  if (t->rank != rank) return fail_shape(path, t, rank);
  ESP_TRY(check_chunk(t, path));
  H5Sget_simple_extent_dims(t->space, t->shape, NULL);
  if (t->shape[0] == 0) return esp_fail(ESP_ERR_FORMAT, "%s: `%s` is empty; expected at least 1 image", path, name);
  return ESP_OK;
}

/* Entries [first, first + count) along the first dimension, converted to `type`. */
static esp_status read_rows(const table *t, const char *path, hsize_t first, hsize_t count, hid_t type, void *out) {
  hsize_t start[RANK] = {first}, size[RANK];
  memcpy(size, t->shape, sizeof size);
  size[0] = count;
  const hid_t memory = H5Screate_simple(t->rank, size, NULL);
  const bool chosen = memory >= 0 && H5Sselect_hyperslab(t->space, H5S_SELECT_SET, start, NULL, size, NULL) >= 0;
  const bool done = chosen && H5Dread(t->data, type, memory, t->space, H5P_DEFAULT, out) >= 0;
  if (memory >= 0) H5Sclose(memory);
  if (done) return ESP_OK;
  return esp_fail(ESP_ERR_FORMAT, "%s: entries %llu to %llu of `%s` cannot be read; the file is damaged or cut short",
                  path, (unsigned long long)first, (unsigned long long)(first + count - 1), t->name);
}

static bool holds_bytes(const table *images) { return H5Tget_class(images->type) == H5T_INTEGER; }

static esp_status check_images(const table *images, const char *path) {
  const H5T_class_t kind = H5Tget_class(images->type);
  const bool bytes = kind == H5T_INTEGER && H5Tget_size(images->type) == 1 && H5Tget_sign(images->type) == H5T_SGN_NONE;
  if (bytes || kind == H5T_FLOAT) return ESP_OK;
  return esp_fail(ESP_ERR_FORMAT,
                  "%s: `%s` holds neither uint8 nor floating-point values; expected uint8 (0 to 255) or "
                  "float32",
                  path, images->name);
}

/* Before memory is taken: a few stored bytes must not claim to be a mountain of images. */
static esp_status check_stored(const table *t, const char *path) {
  double claimed = (double)H5Tget_size(t->type);
  for (int d = 0; d < t->rank; d++) claimed *= (double)t->shape[d];
  if (claimed <= t->stored * LARGEST_RATIO) return ESP_OK;
  return esp_fail(ESP_ERR_FORMAT, "%s: `%s` claims %.0f bytes and stores %.0f; the file was not fully written", path,
                  t->name, claimed, t->stored);
}

/* Keras, PIL and scikit-learn have the channels last; 1, 3 or 4 channels are usual, and a height of 1, 3 or 4 is
 * not. */
static esp_status check_order(const table *images, const char *path) {
  const hsize_t *const shape = images->shape;
  const bool last = (shape[3] == 1 || shape[3] == 3 || shape[3] == 4) && shape[1] > 4 && shape[2] > 1;
  if (!last) return ESP_OK;
  return esp_fail(ESP_ERR_FORMAT,
                  "%s: `%s` is %llu x %llu x %llu x %llu, which looks like N x H x W x C, with the channels last; "
                  "expected N x C x H x W: in NumPy images.transpose(0, 3, 1, 2)",
                  path, images->name, (unsigned long long)shape[0], (unsigned long long)shape[1],
                  (unsigned long long)shape[2], (unsigned long long)shape[3]);
}

static esp_status check_labels(const table *labels, const table *images, const char *path) {
  if (H5Tget_class(labels->type) != H5T_INTEGER)
    return esp_fail(ESP_ERR_FORMAT, "%s: `%s` holds no integers; expected one class number an image, from 0", path,
                    labels->name);
  if (labels->shape[0] != images->shape[0])
    return esp_fail(ESP_ERR_FORMAT, "%s: `%s` has %llu entries and `%s` %llu; expected as many labels as images", path,
                    labels->name, (unsigned long long)labels->shape[0], images->name,
                    (unsigned long long)images->shape[0]);
  return ESP_OK;
}

static esp_status check_finite(const table *images, const float *values, hsize_t first, int64_t count, int64_t image,
                               const char *path) {
  for (int64_t i = 0; i < count * image; i++)
    if (!isfinite(values[i]))
      return esp_fail(ESP_ERR_NOT_FINITE, "%s: image %llu of `%s` holds a value that is not finite", path,
                      (unsigned long long)first + (unsigned long long)(i / image), images->name);
  return ESP_OK;
}

/* Whole chunks at a time: one that was read in part would be unpacked again for the rest. */
static hsize_t images_at_once(const table *images) {
  hsize_t chunk[RANK] = {1};
  const hid_t list = H5Dget_create_plist(images->data);
  if (list >= 0 && H5Pget_layout(list) == H5D_CHUNKED) H5Pget_chunk(list, RANK, chunk);
  if (list >= 0) H5Pclose(list);
  const hsize_t rows = (IMAGES_AT_ONCE + chunk[0] - 1) / chunk[0] * chunk[0];
  return rows < images->shape[0] ? rows : images->shape[0];
}

/* Room for `at_once` images as they are in the file, and as they are sent. */
static esp_status send_blocks(const table *images, const char *path, hsize_t at_once, char *planes, char *pixels,
                              int to) {
  const hsize_t *const shape = images->shape;
  const bool bytes = holds_bytes(images);
  const int64_t channels = (int64_t)shape[1], image = channels * (int64_t)(shape[2] * shape[3]);
  const size_t size = bytes ? 1 : sizeof(float);
  for (hsize_t done = 0; done < shape[0]; done += at_once) {
    const hsize_t part = shape[0] - done < at_once ? shape[0] - done : at_once;
    ESP_TRY(read_rows(images, path, done, part, bytes ? H5T_NATIVE_UINT8 : H5T_NATIVE_FLOAT, planes));
    if (!bytes) ESP_TRY(check_finite(images, (const float *)(const void *)planes, done, (int64_t)part, image, path));
    for (int64_t i = 0; i < (int64_t)part; i++) {
      char *const from = planes + (size_t)(i * image) * size, *const into = pixels + (size_t)(i * image) * size;
      if (bytes) esp_interleave_bytes((const uint8_t *)from, channels, image / channels, (uint8_t *)into);
      else esp_interleave_floats((const float *)(void *)from, channels, image / channels, (float *)(void *)into);
    }
    ESP_TRY(esp_confined_send(to, pixels, (size_t)part * (size_t)image * size));
  }
  return ESP_OK;
}

static esp_status send_images(const table *images, const char *path, int to) {
  const hsize_t at_once = images_at_once(images);
  const size_t image = (size_t)(images->shape[1] * images->shape[2] * images->shape[3]) * (holds_bytes(images) ? 1 : 4);
  char *const planes = esp_alloc((size_t)at_once, image), *const pixels = esp_alloc((size_t)at_once, image);
  esp_status status = planes && pixels ? ESP_OK : ESP_ERR_MEMORY;
  if (status == ESP_OK) status = send_blocks(images, path, at_once, planes, pixels, to);
  esp_free(planes);
  esp_free(pixels);
  return status;
}

/* All at once, whatever the chunks. */
static esp_status send_labels(const table *labels, const char *path, int to) {
  int64_t *const values = esp_alloc((size_t)labels->shape[0], sizeof *values);
  if (!values) return ESP_ERR_MEMORY;
  esp_status status = read_rows(labels, path, 0, labels->shape[0], H5T_NATIVE_INT64, values);
  if (status == ESP_OK) status = esp_confined_send(to, values, (size_t)labels->shape[0] * sizeof *values);
  esp_free(values);
  return status;
}

/* ---- class names ---- */

/* The names as lines. */
typedef struct name_list {
  char *text;
  size_t length, capacity;
} name_list;

static esp_status add_name(name_list *names, const char *name, size_t length, size_t number, const char *path) {
  if (length == 0 || length > ESP_HDF5_NAME_BYTES || memchr(name, '\n', length) || memchr(name, '\r', length))
    return esp_fail(ESP_ERR_FORMAT,
                    "%s: `class_names` has empty names or line breaks, or longer ones than %d bytes, as number %zu; "
                    "expected one line a class",
                    path, ESP_HDF5_NAME_BYTES, number);
  if (names->length + length + 1 > names->capacity)
    return esp_fail(ESP_ERR_FORMAT, "%s: `class_names` is too long", path);
  memcpy(names->text + names->length, name, length);
  names->length += length;
  names->text[names->length++] = '\n';
  return ESP_OK;
}

/* One at a time: each may claim as much as HDF5 can find. */
static esp_status read_variable_names(name_list *names, const table *t, const char *path) {
  for (hsize_t i = 0; i < t->shape[0]; i++) {
    char *name = NULL;
    ESP_TRY(read_rows(t, path, i, 1, t->type, &name));
    ESP_TRY(add_name(names, name ? name : "", name ? strlen(name) : 0, (size_t)i, path));
    H5free_memory(name);
  }
  return ESP_OK;
}

static esp_status read_fixed_names(name_list *names, const table *t, const char *path) {
  const size_t width = H5Tget_size(t->type);
  ESP_TRY(check_stored(t, path));
  char *const name = esp_alloc(width, 1);
  if (!name) return ESP_ERR_MEMORY;
  esp_status status = ESP_OK;
  for (hsize_t i = 0; i < t->shape[0] && status == ESP_OK; i++) {
    status = read_rows(t, path, i, 1, t->type, name);
    if (status == ESP_OK) status = add_name(names, name, strnlen(name, width), (size_t)i, path);
  }
  esp_free(name);
  return status;
}

static esp_status read_names(name_list *names, const table *t, const char *path) {
  if (H5Tget_class(t->type) != H5T_STRING)
    return esp_fail(ESP_ERR_FORMAT, "%s: `class_names` holds no text; expected one string a class", path);
  if (t->shape[0] > ESP_HDF5_CLASSES)
    return esp_fail(ESP_ERR_FORMAT, "%s: `class_names` has %llu entries; expected at most %d", path,
                    (unsigned long long)t->shape[0], ESP_HDF5_CLASSES);
  names->capacity = MOST_NAME_BYTES;
  names->text = esp_alloc(names->capacity, 1);
  if (!names->text) return ESP_ERR_MEMORY;
  return H5Tis_variable_str(t->type) > 0 ? read_variable_names(names, t, path) : read_fixed_names(names, t, path);
}

/* ---- the file ---- */

typedef struct tables {
  table images[ESP_SPLITS], labels[ESP_SPLITS], names;
  bool has[ESP_SPLITS], has_names;
} tables;

/* What a split is called in the file. */
static const char *const image_names[ESP_SPLITS] = {"images", "validation_images", "test_images"};
static const char *const label_names[ESP_SPLITS] = {"labels", "validation_labels", "test_labels"};

static bool holds(hid_t file, const char *name) { return H5Lexists(file, name, H5P_DEFAULT) > 0; }

static esp_status open_pair(tables *t, int split, hid_t file, const char *path) {
  ESP_TRY(open_table(&t->images[split], file, path, image_names[split], RANK));
  ESP_TRY(open_table(&t->labels[split], file, path, label_names[split], 1));
  ESP_TRY(check_images(&t->images[split], path));
  ESP_TRY(check_stored(&t->images[split], path));
  ESP_TRY(check_stored(&t->labels[split], path));
  ESP_TRY(check_order(&t->images[split], path));
  t->has[split] = true;
  return check_labels(&t->labels[split], &t->images[split], path);
}

static esp_status check_same(const table *train, const table *other, const char *path) {
  const bool same_shape = memcmp(train->shape + 1, other->shape + 1, (RANK - 1) * sizeof *train->shape) == 0;
  if (same_shape && holds_bytes(train) == holds_bytes(other)) return ESP_OK;
  return esp_fail(ESP_ERR_FORMAT,
                  "%s: `%s` (%llu x %llu x %llu) differs from `images` (%llu x %llu x %llu) in shape "
                  "or type; expected the same",
                  path, other->name, (unsigned long long)other->shape[1], (unsigned long long)other->shape[2],
                  (unsigned long long)other->shape[3], (unsigned long long)train->shape[1],
                  (unsigned long long)train->shape[2], (unsigned long long)train->shape[3]);
}

static esp_status open_tables(tables *t, hid_t file, const char *path) {
  ESP_TRY(open_pair(t, ESP_TRAIN, file, path));
  for (int split = ESP_VALIDATION; split < ESP_SPLITS; split++) {
    if (!holds(file, image_names[split]) && !holds(file, label_names[split])) continue;
    ESP_TRY(open_pair(t, split, file, path));
    ESP_TRY(check_same(&t->images[ESP_TRAIN], &t->images[split], path));
  }
  t->has_names = holds(file, "class_names");
  return t->has_names ? open_table(&t->names, file, path, "class_names", 1) : ESP_OK;
}

static esp_status send_header(const tables *t, const name_list *names, int to) {
  const table *const train = &t->images[ESP_TRAIN];
  esp_hdf5_header header = {.channels = train->shape[1],
                            .height = train->shape[2],
                            .width = train->shape[3],
                            .names_bytes = names->length,
                            .names = t->has_names ? (uint32_t)t->names.shape[0] : 0,
                            .floats = !holds_bytes(train)};
  for (int split = 0; split < ESP_SPLITS; split++) {
    header.has[split] = t->has[split];
    header.count[split] = t->has[split] ? t->images[split].shape[0] : 0;
  }
  ESP_TRY(esp_confined_send(to, &header, sizeof header));
  return esp_confined_send(to, names->text, names->length);
}

static esp_status send_tables(const tables *t, const char *path, int to) {
  name_list names = {.text = NULL};
  if (t->has_names) ESP_TRY(read_names(&names, &t->names, path));
  ESP_TRY(send_header(t, &names, to));
  for (int split = 0; split < ESP_SPLITS; split++)
    if (t->has[split]) ESP_TRY(send_labels(&t->labels[split], path, to));
  for (int split = 0; split < ESP_SPLITS; split++)
    if (t->has[split]) ESP_TRY(send_images(&t->images[split], path, to));
  return ESP_OK;
}

/* The copy ends with this, so that nothing is closed. No plugin is looked for, whatever HDF5_PLUGIN_PATH says. */
esp_status esp_hdf5_send(void *context, int to) {
  const char *const path = context;
  H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
  H5PLset_loading_state(0);
  const hid_t file = H5Fopen(path, H5F_ACC_RDONLY, H5P_DEFAULT);
  if (file < 0)
    return esp_fail(ESP_ERR_FORMAT,
                    "%s is no HDF5 file, is cut short, or is being written; expected `images` and `labels`", path);
  tables t = {.has_names = false};
  ESP_TRY(open_tables(&t, file, path));
  return send_tables(&t, path, to);
}
