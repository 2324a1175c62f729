#include "dataset_internal.h"

#include <espalier/utf8.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LARGEST_SIDE = 4096, MOST_CLASSES = 65536, PATH_SIZE = 4096, STATISTICS_IMAGES = 10000 };

#define PLACES "$ESPALIER_DATA, ./data-sets, /usr/share/datasets"

static const char *const fashion_mnist_entries[] = {"fashion-mnist", NULL};
static const char *const mnist_entries[] = {"mnist", NULL};
static const char *const cifar10_entries[] = {"cifar10", "cifar-10-batches-bin", "cifar-10-binary.tar.gz", NULL};
static const char *const cifar100_entries[] = {"cifar100", "cifar-100-binary", "cifar-100-binary.tar.gz", NULL};

static const esp_dataset_kind kinds[] = {
    {.name = "synthetic",
     .summary = "20 classes of figures, textures, dots and letters, 32x32 RGB, compiled in",
     .path_form = "nothing, or `narrow`: 5 classes of textures alone, other images",
     .advice = "use synthetic or synthetic:narrow",
     .read = esp_read_synthetic},
    {.name = "fashion-mnist",
     .summary = "10 classes of clothes, 28x28 grey, 60,000 + 10,000 images",
     .path_form = "folder with the four IDX files, gzip or not",
     .places = PLACES,
     .advice = "install the Debian package dataset-fashion-mnist, or give the folder: fashion-mnist:PATH",
     .entries = fashion_mnist_entries,
     .read = esp_read_fashion_mnist},
    {.name = "mnist",
     .summary = "10 handwritten digits, 28x28 grey, 60,000 + 10,000 images",
     .path_form = "folder with the four IDX files, gzip or not",
     .places = PLACES,
     .advice = "give the folder with the four IDX files: mnist:PATH",
     .entries = mnist_entries,
     .read = esp_read_mnist},
    {.name = "cifar10",
     .summary = "10 classes of photographs, 32x32 RGB, 50,000 + 10,000 images",
     .path_form = "folder of the binary version, or cifar-10-binary.tar.gz",
     .places = PLACES,
     .advice = "give the folder or the published archive: cifar10:PATH/cifar-10-binary.tar.gz",
     .entries = cifar10_entries,
     .read = esp_read_cifar10},
    {.name = "cifar100",
     .summary = "100 classes of photographs, 32x32 RGB, 50,000 + 10,000 images; any set in its format",
     .path_form = "folder with train.bin and test.bin, or cifar-100-binary.tar.gz",
     .places = PLACES,
     .advice = "give the folder or the published archive: cifar100:PATH/cifar-100-binary.tar.gz",
     .entries = cifar100_entries,
     .read = esp_read_cifar100},
    {.name = "hdf5",
     .summary = "your own images from an HDF5 file",
     .path_form = "file with `images` N x C x H x W (uint8 or float32) and `labels` N",
     .advice = "give the file: hdf5:PATH",
     .read = esp_read_hdf5},
};
enum { KIND_COUNT = sizeof kinds / sizeof *kinds };

size_t esp_dataset_list(const esp_dataset_kind **table) {
  *table = kinds;
  return KIND_COUNT;
}

/* ---- what readers call ---- */

int64_t esp_dataset_image_size(const esp_dataset *dataset) {
  return (int64_t)dataset->info.channels * dataset->info.height * dataset->info.width;
}

esp_status esp_dataset_set_shape(esp_dataset *dataset, const char *path, uint64_t channels, uint64_t height,
                                 uint64_t width) {
  if (channels < 1 || channels > ESP_MAX_CHANNELS || height < 1 || height > LARGEST_SIDE || width < 1 ||
      width > LARGEST_SIDE)
    return esp_fail(ESP_ERR_FORMAT,
                    "%s: images of %llu channels, %llu x %llu pixels; expected 1 to %d channels and sides of 1 to %d "
                    "pixels",
                    path, (unsigned long long)channels, (unsigned long long)height, (unsigned long long)width,
                    ESP_MAX_CHANNELS, LARGEST_SIDE);
  dataset->info.channels = (int)channels;
  dataset->info.height = (int)height;
  dataset->info.width = (int)width;
  return ESP_OK;
}

esp_status esp_dataset_allocate(esp_dataset *dataset, esp_split_name split, int64_t count, esp_storage storage) {
  esp_split *s = &dataset->splits[split];
  const size_t image = (size_t)esp_dataset_image_size(dataset);
  s->labels = esp_alloc((size_t)count, sizeof *s->labels);
  if (!s->labels) return ESP_ERR_MEMORY;
  if (storage == ESP_STORE_BYTES && !(s->bytes = esp_alloc((size_t)count, image))) return ESP_ERR_MEMORY;
  if (storage == ESP_STORE_FLOATS && !(s->floats = esp_alloc((size_t)count, image * sizeof *s->floats)))
    return ESP_ERR_MEMORY;
  s->count = dataset->info.count[split] = count;
  return ESP_OK;
}

/* Ends each line of `text` with '\0', entering the non-empty ones without the blanks around them in `list` if it is
 * given; returns how many. */
static int split_lines(char *text, const char **list) {
  int count = 0;
  for (char *line = text; *line;) {
    char *const end = line + strcspn(line, "\r\n");
    const bool more = *end != '\0';
    char *last = end;
    line += strspn(line, " \t");
    while (last > line && (last[-1] == ' ' || last[-1] == '\t')) last--;
    if (list) *last = '\0';
    if (last > line) {
      if (list) list[count] = line;
      count++;
    }
    line = end + more;
  }
  return count;
}

esp_status esp_dataset_name_classes(esp_dataset *dataset, const char *path, const char *text, size_t length) {
  dataset->class_text = esp_alloc(length + 1, 1);
  if (!dataset->class_text) return ESP_ERR_MEMORY;
  memcpy(dataset->class_text, text, length);
  const int count = split_lines(dataset->class_text, NULL);
  if (count < 1 || count > MOST_CLASSES)
    return esp_fail(ESP_ERR_FORMAT, "%s: %d class names; expected 1 to %d, one a line", path, count, MOST_CLASSES);
  dataset->class_list = esp_alloc((size_t)count, sizeof *dataset->class_list);
  if (!dataset->class_list) return ESP_ERR_MEMORY;
  split_lines(dataset->class_text, dataset->class_list);
  dataset->info.class_names = dataset->class_list;
  dataset->info.classes = count;
  return ESP_OK;
}

esp_status esp_dataset_set_label(esp_dataset *dataset, esp_split_name split, int64_t index, int64_t label,
                                 const char *path, int64_t first) {
  if (label < 0 || label >= dataset->info.classes)
    return esp_fail(ESP_ERR_FORMAT,
                    "%s: the label of image %lld is %lld; expected 0 to %d; is this the right data set?", path,
                    (long long)(index - first), (long long)label, dataset->info.classes - 1);
  dataset->splits[split].labels[index] = (int32_t)label;
  return ESP_OK;
}

void esp_interleave_bytes(const uint8_t *planes, int64_t channels, int64_t pixels, uint8_t *out) {
  for (int64_t c = 0; c < channels; c++)
    for (int64_t p = 0; p < pixels; p++) out[p * channels + c] = planes[c * pixels + p];
}

void esp_interleave_floats(const float *planes, int64_t channels, int64_t pixels, float *out) {
  for (int64_t c = 0; c < channels; c++)
    for (int64_t p = 0; p < pixels; p++) out[p * channels + c] = planes[c * pixels + p];
}

/* ---- opening ---- */

static const esp_dataset_kind *find_kind(const char *name, size_t length) {
  for (size_t i = 0; i < KIND_COUNT; i++)
    if (strlen(kinds[i].name) == length && strncmp(kinds[i].name, name, length) == 0) return &kinds[i];
  return NULL;
}

static esp_status fail_unknown(const char *spec, size_t length) {
  char word[64];
  const char *names[KIND_COUNT];
  for (size_t i = 0; i < KIND_COUNT; i++) names[i] = kinds[i].name;
  snprintf(word, sizeof word, "%.*s", (int)(length < sizeof word ? length : sizeof word - 1), spec);
  return esp_fail_unknown(ESP_ERR_NOT_FOUND, "data set", word, names, KIND_COUNT);
}

/* The first of the usual places that has one of the kind's entries, into `path`. */
static bool find_place(const esp_dataset_kind *kind, char path[PATH_SIZE]) {
  const char *const roots[] = {getenv("ESPALIER_DATA"), "data-sets", "/usr/share/datasets"};
  for (size_t r = 0; r < sizeof roots / sizeof *roots; r++) {
    if (!roots[r] || !*roots[r]) continue;
    for (const char *const *entry = kind->entries; *entry; entry++) {
      const int length = snprintf(path, PATH_SIZE, "%s/%s", roots[r], *entry);
      if (length > 0 && length < PATH_SIZE && esp_exists(path)) return true;
    }
  }
  return false;
}

static esp_status fail_nowhere(const esp_dataset_kind *kind) {
  char looked_for[256] = "";
  for (const char *const *entry = kind->entries; *entry; entry++) {
    const size_t used = strlen(looked_for);
    const char *const glue = !used ? "" : entry[1] ? ", " : " or ";
    snprintf(looked_for + used, sizeof looked_for - used, "%s%s", glue, *entry);
  }
  const char *const root = getenv("ESPALIER_DATA");
  return esp_fail(ESP_ERR_NOT_FOUND,
                  "%s is not here: looked for %s in $ESPALIER_DATA (%s), ./data-sets and "
                  "/usr/share/datasets; %s",
                  kind->name, looked_for, root && *root ? root : "not set", kind->advice);
}

/* Where to read from: the spec's own path, the usual places, or (compiled in) nowhere: NULL. */
static esp_status choose_path(const esp_dataset_kind *kind, const char *given, char buffer[PATH_SIZE],
                              const char **path) {
  const char *const home = given && strncmp(given, "~/", 2) == 0 ? getenv("HOME") : NULL;
  *path = given;
  if (home && *home) { /* no shell has seen to it behind a colon */
    if (snprintf(buffer, PATH_SIZE, "%s%s", home, given + 1) >= PATH_SIZE)
      return esp_fail(ESP_ERR_USAGE, "'%s:%.60s...' is too long a path", kind->name, given);
    *path = buffer;
  }
  if (given && !*given)
    return esp_fail(ESP_ERR_USAGE, "'%s:' has no path after the colon; expected %s", kind->name, kind->path_form);
  if (given || kind->read == esp_read_synthetic) return ESP_OK;
  if (!kind->entries)
    return esp_fail(ESP_ERR_USAGE, "'%s' needs a path; %s (%s)", kind->name, kind->advice, kind->path_form);
  if (!find_place(kind, buffer)) return fail_nowhere(kind);
  *path = buffer;
  return ESP_OK;
}

static void set_digest(esp_dataset *dataset) {
  uLong crc = crc32_z(0, NULL, 0);
  const size_t image = (size_t)esp_dataset_image_size(dataset);
  for (int split = 0; split < ESP_SPLITS; split++) {
    const esp_split *const s = &dataset->splits[split];
    if (s->count == 0) continue; /* zlib starts anew where there are no bytes */
    const size_t values = (size_t)s->count * image;
    if (s->bytes) crc = crc32_z(crc, s->bytes, values);
    if (s->floats) crc = crc32_z(crc, (const Bytef *)s->floats, values * sizeof *s->floats);
    crc = crc32_z(crc, (const Bytef *)s->labels, (size_t)s->count * sizeof *s->labels);
  }
  snprintf(dataset->digest, sizeof dataset->digest, "crc32:%08lx", crc);
  dataset->info.digest = dataset->digest;
}

static esp_status read_dataset(esp_dataset *dataset, const esp_dataset_kind *kind, const char *given) {
  char buffer[PATH_SIZE];
  const char *path;
  ESP_TRY(choose_path(kind, given, buffer, &path));
  dataset->info.name = kind->name;
  dataset->info.note = "";
  dataset->source = esp_copy_text(path && kind->read != esp_read_synthetic ? path : "compiled in");
  if (!dataset->source) return ESP_ERR_MEMORY;
  dataset->info.source = dataset->source;
  ESP_TRY(kind->read(dataset, path));
  if (!dataset->info.digest) set_digest(dataset);
  const esp_status status = esp_dataset_hold_out(dataset, ESP_VALIDATION_SHARE);
  return status == ESP_ERR_CONFIG ? ESP_OK : status; /* too few images for a validation split can still be looked at */
}

/* Results and checkpoints hold them. */
static esp_status check_names(const esp_dataset *dataset, const char *spec) {
  const esp_dataset_info *const info = &dataset->info;
  esp_status status = ESP_OK;
  for (int i = 0; info->class_names && i < info->classes && status == ESP_OK; i++)
    status = esp_utf8_check(info->class_names[i], "the class name");
  return status == ESP_OK ? ESP_OK : esp_fail_in(ESP_ERR_FORMAT, "%s", spec);
}

esp_status esp_dataset_open(esp_dataset **dataset, const char *spec) {
  *dataset = NULL;
  const size_t length = strcspn(spec, ":");
  const esp_dataset_kind *const kind = find_kind(spec, length);
  if (!kind) return fail_unknown(spec, length);
  esp_dataset *const opened = esp_alloc(1, sizeof *opened);
  if (!opened) return ESP_ERR_MEMORY;
  esp_status status = read_dataset(opened, kind, spec[length] ? spec + length + 1 : NULL);
  if (status == ESP_OK) status = check_names(opened, spec);
  if (status != ESP_OK) {
    esp_dataset_close(opened);
    return status;
  }
  *dataset = opened;
  return ESP_OK;
}

void esp_dataset_close(esp_dataset *dataset) {
  if (!dataset) return;
  for (int split = 0; split < ESP_SPLITS; split++) {
    esp_free(dataset->rows[split]);
    esp_free(dataset->splits[split].bytes);
    esp_free(dataset->splits[split].floats);
    esp_free(dataset->splits[split].labels);
  }
  esp_free(dataset->source);
  esp_free(dataset->class_text);
  esp_free(dataset->class_list);
  esp_free(dataset);
}

/* ---- reading images ---- */

const esp_dataset_info *esp_dataset_info_of(const esp_dataset *dataset) { return &dataset->info; }

esp_pixels esp_dataset_pixels(const esp_dataset *dataset, esp_split_name split, int64_t index,
                              uint8_t scratch[ESP_DRAWN_BYTES]) {
  esp_dataset_locate(dataset, &split, &index);
  const esp_split *const s = &dataset->splits[split];
  const int64_t start = index * esp_dataset_image_size(dataset);
  if (s->floats) return (esp_pixels){.floats = s->floats + start};
  if (s->bytes) return (esp_pixels){.bytes = s->bytes + start};
  dataset->draw(dataset, split, index, scratch);
  return (esp_pixels){.bytes = scratch};
}

void esp_dataset_image(const esp_dataset *dataset, esp_split_name split, int64_t index, float *out) {
  uint8_t scratch[ESP_DRAWN_BYTES];
  const esp_pixels pixels = esp_dataset_pixels(dataset, split, index, scratch);
  const int64_t size = esp_dataset_image_size(dataset);
  if (pixels.floats) memcpy(out, pixels.floats, (size_t)size * sizeof *out);
  else
    for (int64_t i = 0; i < size; i++) out[i] = (float)pixels.bytes[i] / 255.0f;
}

int32_t esp_dataset_label(const esp_dataset *dataset, esp_split_name split, int64_t index) {
  esp_dataset_locate(dataset, &split, &index);
  return dataset->splits[split].labels[index];
}

/* Sum and sum of squares of one channel of one image. Bytes are summed as bytes: exactly. */
static void add_moments(const esp_pixels pixels, int64_t size, int channel, int channels, double sums[2]) {
  for (int64_t i = channel; i < size; i += channels) {
    const double value = pixels.floats ? (double)pixels.floats[i] : pixels.bytes[i];
    sums[0] += value;
    sums[1] += value * value;
  }
}

void esp_dataset_normalisation(const esp_dataset *dataset, esp_normalisation *normalisation) {
  const esp_dataset_info *const info = &dataset->info;
  const int64_t images = info->count[ESP_TRAIN] < STATISTICS_IMAGES ? info->count[ESP_TRAIN] : STATISTICS_IMAGES;
  const int64_t size = esp_dataset_image_size(dataset);
  const double unit = dataset->splits[ESP_TRAIN].floats ? 1.0 : 255.0;
  double sums[ESP_MAX_CHANNELS][2] = {{0}};
  uint8_t scratch[ESP_DRAWN_BYTES];
  for (int64_t i = 0; i < images; i++) {
    const esp_pixels pixels = esp_dataset_pixels(dataset, ESP_TRAIN, i, scratch);
    for (int c = 0; c < info->channels; c++) add_moments(pixels, size, c, info->channels, sums[c]);
  }
  *normalisation = (esp_normalisation){{0}, {0}};
  const double values = (double)images * (double)(size / info->channels);
  for (int c = 0; c < info->channels; c++) {
    const double mean = sums[c][0] / values;
    const double variance = sums[c][1] / values - mean * mean;
    normalisation->mean[c] = (float)(mean / unit);
    normalisation->deviation[c] = variance > 1e-12 * unit * unit ? (float)(sqrt(variance) / unit) : 1.0f;
  }
}
