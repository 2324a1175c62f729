/* Images from an HDF5 file: `images` [N, C, H, W] (uint8: 0 to 255; float32 or float64: as stored) and
 * `labels` [N] (integers), `validation_images`, `validation_labels`, `test_images` and `test_labels` alike
 * if the file has these splits, `class_names` (text) if it names the classes. */
#include "dataset_internal.h"

#include <espalier/input_file.h>

#include <hdf5.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

enum {
  RANK = 4,
  MOST_CLASSES = 65536,
  IMAGES_AT_ONCE = 64,
  LABELS_AT_ONCE = 1024,
  LARGEST_RATIO = 1032 /* of deflate */
};

/* An opened dataset of the file. */
typedef struct table {
  hid_t data, space, type;
  const char *name;
  int rank;
  hsize_t shape[RANK];
} table;

static void close_table(table *t) {
  if (t->type >= 0) H5Tclose(t->type);
  if (t->space >= 0) H5Sclose(t->space);
  if (t->data >= 0) H5Dclose(t->data);
}

static esp_status fail_shape(const char *path, const table *t, int rank) {
  return esp_fail(ESP_ERR_FORMAT, "%s: `%s` has %d dimensions; expected %d (%s)", path, t->name, t->rank, rank,
                  rank == RANK ? "images, channels, height, width" : "one number an image");
}

static esp_status open_table(table *t, hid_t file, const char *path, const char *name, int rank) {
  *t = (table){.data = -1, .space = -1, .type = -1, .name = name};
  t->data = H5Dopen2(file, name, H5P_DEFAULT);
  if (t->data < 0)
    return esp_fail(ESP_ERR_FORMAT, "%s: there is no dataset `%s`; expected `images` N x C x H x W and `labels` N",
                    path, name);
  t->space = H5Dget_space(t->data);
  t->type = H5Dget_type(t->data);
  t->rank = H5Sget_simple_extent_ndims(t->space);
  if (t->rank != rank) return fail_shape(path, t, rank);
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

/* What of the file becomes a split: images and labels [first, first + count). */
typedef struct portion {
  const table *images, *labels;
  hsize_t count; /* 0: the file has no such split */
} portion;

/* What becomes the test split where the file has none. */
static const double test_share = 0.1;

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
static esp_status check_stored(const table *images, const char *path) {
  const double stored = (double)H5Dget_storage_size(images->data);
  double claimed = (double)H5Tget_size(images->type);
  for (int d = 0; d < RANK; d++) claimed *= (double)images->shape[d];
  if (claimed <= stored * LARGEST_RATIO) return ESP_OK;
  return esp_fail(ESP_ERR_FORMAT,
                  "%s: `%s` claims %.0f bytes of images and stores %.0f; the file was not fully written", path,
                  images->name, claimed, stored);
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

static esp_status check_finite(const float *values, int64_t count, const portion *p, hsize_t done, int64_t image,
                               const char *path) {
  for (int64_t i = 0; i < count; i++)
    if (!isfinite(values[i]))
      return esp_fail(ESP_ERR_NOT_FINITE, "%s: image %llu of `%s` holds a value that is not finite", path,
                      (unsigned long long)done + (unsigned long long)(i / image), p->images->name);
  return ESP_OK;
}

static esp_status read_images(esp_dataset *dataset, esp_split_name split, const portion *p, const char *path,
                              void *buffer) {
  const esp_dataset_info *const info = &dataset->info;
  const int64_t image = esp_dataset_image_size(dataset), pixels = image / info->channels;
  const bool bytes = holds_bytes(p->images);
  for (hsize_t done = 0; done < p->count;) {
    const hsize_t part = p->count - done < IMAGES_AT_ONCE ? p->count - done : IMAGES_AT_ONCE;
    ESP_TRY(read_rows(p->images, path, done, part, bytes ? H5T_NATIVE_UINT8 : H5T_NATIVE_FLOAT, buffer));
    if (!bytes) ESP_TRY(check_finite(buffer, (int64_t)part * image, p, done, image, path));
    for (int64_t i = 0; i < (int64_t)part; i++) {
      const int64_t to = ((int64_t)done + i) * image;
      if (bytes)
        esp_interleave_bytes((const uint8_t *)buffer + i * image, info->channels, pixels,
                             dataset->splits[split].bytes + to);
      else
        esp_interleave_floats((const float *)buffer + i * image, info->channels, pixels,
                              dataset->splits[split].floats + to);
    }
    done += part;
  }
  return ESP_OK;
}

typedef esp_status (*label_taker)(esp_dataset *dataset, esp_split_name split, const portion *p, int64_t number,
                                  int64_t label, const char *path);

static esp_status each_label(esp_dataset *dataset, esp_split_name split, const portion *p, const char *path,
                             label_taker take) {
  int64_t labels[LABELS_AT_ONCE];
  for (hsize_t done = 0; done < p->count;) {
    const hsize_t part = p->count - done < LABELS_AT_ONCE ? p->count - done : LABELS_AT_ONCE;
    ESP_TRY(read_rows(p->labels, path, done, part, H5T_NATIVE_INT64, labels));
    for (hsize_t i = 0; i < part; i++) ESP_TRY(take(dataset, split, p, (int64_t)(done + i), labels[i], path));
    done += part;
  }
  return ESP_OK;
}

/* Without class names there are as many classes as the largest label says. */
static esp_status count_class(esp_dataset *dataset, esp_split_name split, const portion *p, int64_t number,
                              int64_t label, const char *path) {
  (void)split;
  if (label < 0 || label >= MOST_CLASSES)
    return esp_fail(ESP_ERR_FORMAT, "%s: the label of image %lld in `%s` is %lld; expected 0 to %d", path,
                    (long long)number, p->labels->name, (long long)label, MOST_CLASSES - 1);
  if (label >= dataset->info.classes) dataset->info.classes = (int)label + 1;
  return ESP_OK;
}

static esp_status keep_label(esp_dataset *dataset, esp_split_name split, const portion *p, int64_t number,
                             int64_t label, const char *path) {
  (void)p;
  return esp_dataset_set_label(dataset, split, number, label, path, 0);
}

static esp_status read_split(esp_dataset *dataset, esp_split_name split, const portion *p, const char *path) {
  const bool bytes = holds_bytes(p->images);
  ESP_TRY(esp_dataset_allocate(dataset, split, (int64_t)p->count, bytes ? ESP_STORE_BYTES : ESP_STORE_FLOATS));
  void *const buffer = esp_alloc(IMAGES_AT_ONCE * (size_t)esp_dataset_image_size(dataset), bytes ? 1 : sizeof(float));
  if (!buffer) return ESP_ERR_MEMORY;
  const esp_status status = read_images(dataset, split, p, path, buffer);
  esp_free(buffer);
  if (status != ESP_OK) return status;
  return each_label(dataset, split, p, path, keep_label);
}

/* ---- class names ---- */

/* Adds `count` names of fixed width to text, a line each. */
static size_t join_names(const char *names, size_t count, size_t width, char *text) {
  size_t length = 0;
  for (size_t i = 0; i < count; i++) {
    const size_t letters = strnlen(names + i * width, width);
    memcpy(text + length, names + i * width, letters);
    length += letters;
    text[length++] = '\n';
  }
  return length;
}

static esp_status read_fixed_names(esp_dataset *dataset, const table *t, const char *path) {
  const size_t width = H5Tget_size(t->type), count = (size_t)t->shape[0];
  char *const names = esp_alloc(count, width);
  char *const text = names ? esp_alloc(count, width + 1) : NULL;
  esp_status status = text ? read_rows(t, path, 0, t->shape[0], t->type, names) : ESP_ERR_MEMORY;
  if (status == ESP_OK) status = esp_dataset_name_classes(dataset, path, text, join_names(names, count, width, text));
  esp_free(names);
  esp_free(text);
  return status;
}

static esp_status join_pointers(esp_dataset *dataset, char *const *names, size_t count, const char *path) {
  size_t size = 1;
  for (size_t i = 0; i < count; i++) size += (names[i] ? strlen(names[i]) : 0) + 1;
  char *const text = esp_alloc(size, 1);
  if (!text) return ESP_ERR_MEMORY;
  size_t length = 0;
  for (size_t i = 0; i < count; i++) {
    const int added = snprintf(text + length, size - length, "%s\n", names[i] ? names[i] : "");
    length += added > 0 ? (size_t)added : 0;
  }
  const esp_status status = esp_dataset_name_classes(dataset, path, text, length);
  esp_free(text);
  return status;
}

static esp_status read_variable_names(esp_dataset *dataset, const table *t, const char *path) {
  char **const names = esp_alloc((size_t)t->shape[0], sizeof *names);
  if (!names) return ESP_ERR_MEMORY;
  esp_status status = read_rows(t, path, 0, t->shape[0], t->type, names);
  if (status == ESP_OK) {
    status = join_pointers(dataset, names, (size_t)t->shape[0], path);
    H5Dvlen_reclaim(t->type, t->space, H5P_DEFAULT, names);
  }
  esp_free(names);
  return status;
}

static esp_status read_names(esp_dataset *dataset, const table *t, const char *path) {
  if (H5Tget_class(t->type) != H5T_STRING)
    return esp_fail(ESP_ERR_FORMAT, "%s: `class_names` holds no text; expected one string a class", path);
  if (t->shape[0] > MOST_CLASSES)
    return esp_fail(ESP_ERR_FORMAT, "%s: `class_names` has %llu entries; expected at most %d", path,
                    (unsigned long long)t->shape[0], MOST_CLASSES);
  ESP_TRY(H5Tis_variable_str(t->type) > 0 ? read_variable_names(dataset, t, path) : read_fixed_names(dataset, t, path));
  if ((hsize_t)dataset->info.classes != t->shape[0])
    return esp_fail(ESP_ERR_FORMAT, "%s: `class_names` has empty names or line breaks; expected one line a class",
                    path);
  return ESP_OK;
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

static esp_status draw_test(esp_dataset *dataset, const char *path) {
  dataset->info.note = "the file has no test_images: a tenth of each class, always the same images, is the test split";
  const esp_status status = esp_dataset_draw_test(dataset, test_share);
  return status == ESP_ERR_CONFIG ? esp_fail_in(ESP_ERR_FORMAT, "%s", path) : status;
}

static esp_status read_tables(esp_dataset *dataset, const tables *t, const char *path) {
  const hsize_t *const shape = t->images[ESP_TRAIN].shape;
  portion parts[ESP_SPLITS];
  for (int split = 0; split < ESP_SPLITS; split++)
    parts[split] = (portion){&t->images[split], &t->labels[split], t->has[split] ? t->images[split].shape[0] : 0};
  ESP_TRY(esp_dataset_set_shape(dataset, path, shape[1], shape[2], shape[3]));
  if (t->has_names) ESP_TRY(read_names(dataset, &t->names, path));
  for (int split = 0; !t->has_names && split < ESP_SPLITS; split++)
    ESP_TRY(each_label(dataset, (esp_split_name)split, &parts[split], path, count_class));
  for (int split = 0; split < ESP_SPLITS; split++)
    if (parts[split].count > 0) ESP_TRY(read_split(dataset, (esp_split_name)split, &parts[split], path));
  dataset->info.own_validation = t->has[ESP_VALIDATION];
  return t->has[ESP_TEST] ? ESP_OK : draw_test(dataset, path);
}

static esp_status read_file(esp_dataset *dataset, const char *path) {
  const esp_status found = esp_input_check(path, "an HDF5 file");
  if (found != ESP_OK) return esp_fail_in(found, "%s", path);
  const hid_t file = H5Fopen(path, H5F_ACC_RDONLY, H5P_DEFAULT);
  if (file < 0)
    return esp_fail(ESP_ERR_FORMAT,
                    "%s is no HDF5 file, is cut short, or is being written; expected `images` and `labels`", path);
  const table none = {.data = -1, .space = -1, .type = -1};
  tables t = {.images = {none, none, none}, .labels = {none, none, none}, .names = none};
  esp_status status = open_tables(&t, file, path);
  if (status == ESP_OK) status = read_tables(dataset, &t, path);
  for (int split = 0; split < ESP_SPLITS; split++) {
    close_table(&t.images[split]);
    close_table(&t.labels[split]);
  }
  close_table(&t.names);
  H5Fclose(file);
  return status;
}

/* HDF5 prints its errors unless told not to; here they become a status. */
esp_status esp_read_hdf5(esp_dataset *dataset, const char *path) {
  H5E_auto2_t print;
  void *data;
  H5Eget_auto2(H5E_DEFAULT, &print, &data);
  H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
  const esp_status status = read_file(dataset, path);
  H5Eset_auto2(H5E_DEFAULT, print, data);
  return status;
}
