/* Images from an HDF5 file: `images` [N, C, H, W] (uint8: 0 to 255; float32 or float64: as stored) and
 * `labels` [N] (integers), `validation_images`, `validation_labels`, `test_images` and `test_labels` alike
 * if the file has these splits, `class_names` (text) if it names the classes. HDF5 1.10 crashes on files that are made
 * for it, so it reads in a copy of this process, which sends what it finds; nothing of that is believed here. */
#include "images_hdf5_internal.h"

#include <espalier/confined.h>
#include <espalier/input_file.h>

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

enum { MOST_BYTES_OF_NAMES = 1 << 24 };

static const double test_share = 0.1; /* of the images of a file without `test_images` */

/* What a split is called in the file. */
static const char *const label_names[ESP_SPLITS] = {"labels", "validation_labels", "test_labels"};

typedef struct receiving {
  esp_dataset *dataset;
  char *path;
  esp_confined copy;
  esp_hdf5_header header;
  int64_t *labels[ESP_SPLITS]; /* [count] */
} receiving;

/* esp_confined_end() has a better message. */
static esp_status receive(receiving *r, void *into, size_t bytes) {
  if (esp_confined_receive(&r->copy, into, bytes)) return ESP_OK;
  return esp_fail(ESP_ERR_FORMAT, "%s: the process that reads it has ended", r->path);
}

static esp_status receive_header(receiving *r) {
  esp_hdf5_header *const h = &r->header;
  ESP_TRY(receive(r, h, sizeof *h));
  ESP_TRY(esp_dataset_set_shape(r->dataset, r->path, h->channels, h->height, h->width));
  for (int split = 0; split < ESP_SPLITS; split++)
    if (h->count[split] > UINT32_MAX || (h->count[split] > 0) != h->has[split])
      return esp_fail(ESP_ERR_FORMAT, "%s: %llu images are too many", r->path, (unsigned long long)h->count[split]);
  if (h->count[ESP_TRAIN] > 0 && h->names_bytes <= MOST_BYTES_OF_NAMES) return ESP_OK;
  return esp_fail(ESP_ERR_FORMAT, "%s: `images` is empty, or `class_names` too long", r->path);
}

static esp_status receive_names(receiving *r) {
  const size_t bytes = (size_t)r->header.names_bytes;
  if (bytes == 0) return ESP_OK;
  char *const text = esp_alloc(bytes, 1);
  if (!text) return ESP_ERR_MEMORY;
  esp_status status = receive(r, text, bytes);
  if (status == ESP_OK) status = esp_dataset_name_classes(r->dataset, r->path, text, bytes);
  esp_free(text);
  if (status != ESP_OK || r->dataset->info.classes == (int)r->header.names) return status;
  return esp_fail(ESP_ERR_FORMAT, "%s: `class_names` has empty names or line breaks; expected one line a class",
                  r->path);
}

/* Without class names there are as many classes as the largest label says. */
static esp_status count_classes(receiving *r, int split) {
  for (uint64_t i = 0; r->header.names == 0 && i < r->header.count[split]; i++) {
    const int64_t label = r->labels[split][i];
    if (label < 0 || label >= ESP_HDF5_CLASSES)
      return esp_fail(ESP_ERR_FORMAT, "%s: the label of image %llu in `%s` is %lld; expected 0 to %d", r->path,
                      (unsigned long long)i, label_names[split], (long long)label, ESP_HDF5_CLASSES - 1);
    if (label >= r->dataset->info.classes) r->dataset->info.classes = (int)label + 1;
  }
  return ESP_OK;
}

static esp_status receive_labels(receiving *r, int split) {
  const size_t count = (size_t)r->header.count[split];
  if (count == 0) return ESP_OK;
  r->labels[split] = esp_alloc(count, sizeof *r->labels[split]);
  if (!r->labels[split]) return ESP_ERR_MEMORY;
  ESP_TRY(receive(r, r->labels[split], count * sizeof *r->labels[split]));
  return count_classes(r, split);
}

static esp_status receive_images(receiving *r, esp_split_name split) {
  const int64_t count = (int64_t)r->header.count[split];
  const bool floats = r->header.floats;
  if (count == 0) return ESP_OK;
  ESP_TRY(esp_dataset_allocate(r->dataset, split, count, floats ? ESP_STORE_FLOATS : ESP_STORE_BYTES));
  const esp_split *const s = &r->dataset->splits[split];
  const size_t values = (size_t)count * (size_t)esp_dataset_image_size(r->dataset);
  ESP_TRY(receive(r, floats ? (void *)s->floats : (void *)s->bytes, floats ? values * sizeof(float) : values));
  for (int64_t i = 0; i < count; i++)
    ESP_TRY(esp_dataset_set_label(r->dataset, split, i, r->labels[split][i], r->path, 0));
  return ESP_OK;
}

static esp_status receive_all(receiving *r) {
  ESP_TRY(receive_header(r));
  ESP_TRY(receive_names(r));
  for (int split = 0; split < ESP_SPLITS; split++) ESP_TRY(receive_labels(r, split));
  for (int split = 0; split < ESP_SPLITS; split++) ESP_TRY(receive_images(r, (esp_split_name)split));
  return ESP_OK;
}

/* What the copy says of its end comes first: where it failed, nothing more could be received. A copy that could not
 * send all only says that nobody listened. */
static esp_status end(receiving *r, esp_status received) {
  char message[2048];
  snprintf(message, sizeof message, "%s", esp_error_message());
  const esp_status sent = esp_confined_end(&r->copy);
  const bool names_path = strncmp(esp_error_message(), r->path, strlen(r->path)) == 0;
  if (received != ESP_OK && (sent == ESP_OK || sent == ESP_ERR_IO)) return esp_fail(received, "%s", message);
  return sent == ESP_OK || names_path ? sent : esp_fail_in(sent, "%s", r->path);
}

static esp_status read_confined(receiving *r, const esp_confined_limits *limits) {
  ESP_TRY(esp_confined_start(&r->copy, esp_hdf5_send, r->path, limits));
  const esp_status status = end(r, receive_all(r));
  for (int split = 0; split < ESP_SPLITS; split++) esp_free(r->labels[split]);
  return status;
}

static esp_status draw_test(esp_dataset *dataset, const char *path) {
  dataset->info.note = "the file has no test_images: a tenth of each class, always the same images, is the test split";
  const esp_status status = esp_dataset_draw_test(dataset, test_share);
  return status == ESP_ERR_CONFIG ? esp_fail_in(ESP_ERR_FORMAT, "%s", path) : status;
}

esp_status esp_read_hdf5(esp_dataset *dataset, const char *path) {
  struct stat found = {.st_size = 0};
  const esp_status regular = esp_input_check(path, "an HDF5 file");
  if (regular != ESP_OK) return esp_fail_in(regular, "%s", path);
  if (stat(path, &found) != 0) return esp_fail(ESP_ERR_IO, "%s cannot be read", path);
  const esp_confined_limits limits = esp_confined_limits_of((uint64_t)found.st_size, "HDF5");
  receiving r = {.dataset = dataset, .path = dataset->source};
  ESP_TRY(read_confined(&r, &limits));
  dataset->info.own_validation = r.header.has[ESP_VALIDATION];
  return r.header.has[ESP_TEST] ? ESP_OK : draw_test(dataset, path);
}
