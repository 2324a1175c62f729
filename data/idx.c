/* IDX files as MNIST and Fashion-MNIST come in: two zero bytes, the type (8: unsigned bytes), the number of
 * dimensions, each dimension as a big-endian 32-bit number, the bytes. */
#include "dataset_internal.h"

#include <stdio.h>
#include <string.h>

enum { IMAGES_MAGIC = 0x803, LABELS_MAGIC = 0x801, CLASSES = 10 };

static const char *const fashion_names[CLASSES] = {"T-shirt/top", "trouser", "pullover", "dress", "coat",
                                                   "sandal",      "shirt",   "sneaker",  "bag",   "ankle boot"};
static const char *const digit_names[CLASSES] = {"0", "1", "2", "3", "4", "5", "6", "7", "8", "9"};

static uint32_t big_endian(const uint8_t *b) {
  return (uint32_t)b[0] << 24 | (uint32_t)b[1] << 16 | (uint32_t)b[2] << 8 | b[3];
}

/* Opens folder/name or folder/name.gz and checks the magic; `dimensions` gets as many as the magic says. */
static esp_status open_idx(esp_gz *gz, const char *path, uint32_t magic, uint32_t dimensions[3]) {
  const uint32_t rank = magic & 0xff;
  uint8_t header[16];
  ESP_TRY(esp_gz_open(gz, path));
  ESP_TRY(esp_gz_read(gz, header, 4 + 4 * (size_t)rank, "the IDX header"));
  if (big_endian(header) != magic)
    return esp_fail(ESP_ERR_FORMAT,
                    "%s: the magic number is 0x%08x; expected 0x%08x (IDX, bytes, %u dimensions): this is "
                    "no IDX file of %s",
                    path, (unsigned)big_endian(header), (unsigned)magic, (unsigned)rank,
                    rank == 3 ? "images" : "labels");
  for (uint32_t d = 0; d < rank; d++) dimensions[d] = big_endian(header + 4 + 4 * d);
  return ESP_OK;
}

static esp_status read_images(esp_dataset *dataset, esp_split_name split, esp_gz *gz, const char *path) {
  uint32_t shape[3] = {0};
  ESP_TRY(open_idx(gz, path, IMAGES_MAGIC, shape));
  const esp_dataset_info *const info = &dataset->info;
  if (shape[0] == 0) return esp_fail(ESP_ERR_FORMAT, "%s: the header says 0 images; expected at least 1", path);
  if (split == ESP_TRAIN) ESP_TRY(esp_dataset_set_shape(dataset, path, 1, shape[1], shape[2]));
  if (shape[1] != (uint32_t)info->height || shape[2] != (uint32_t)info->width)
    return esp_fail(ESP_ERR_FORMAT, "%s: images of %u x %u pixels; expected %d x %d as in the training split", path,
                    (unsigned)shape[1], (unsigned)shape[2], info->height, info->width);
  const uint64_t bytes = (uint64_t)shape[0] * shape[1] * shape[2];
  ESP_TRY(esp_gz_expect(gz, bytes, "images"));
  ESP_TRY(esp_dataset_allocate(dataset, split, shape[0], ESP_STORE_BYTES));
  ESP_TRY(esp_gz_read(gz, dataset->splits[split].bytes, (size_t)bytes, "the images"));
  return esp_gz_expect_end(gz);
}

static esp_status read_labels(esp_dataset *dataset, esp_split_name split, esp_gz *gz, const char *path) {
  uint32_t shape[3] = {0};
  ESP_TRY(open_idx(gz, path, LABELS_MAGIC, shape));
  const uint32_t count = shape[0];
  if (count != dataset->info.count[split])
    return esp_fail(ESP_ERR_FORMAT, "%s: %u labels for %lld images; expected as many; are the two files of one set?",
                    path, (unsigned)count, (long long)dataset->info.count[split]);
  ESP_TRY(esp_gz_expect(gz, count, "labels"));
  uint8_t chunk[4096];
  for (uint32_t done = 0; done < count;) {
    const uint32_t part = count - done < sizeof chunk ? count - done : (uint32_t)sizeof chunk;
    ESP_TRY(esp_gz_read(gz, chunk, part, "the labels"));
    for (uint32_t i = 0; i < part; i++) ESP_TRY(esp_dataset_set_label(dataset, split, done + i, chunk[i], path, 0));
    done += part;
  }
  return esp_gz_expect_end(gz);
}

/* The path of folder/name, with .gz or without, from esp_alloc(). Some mirrors and unpackers write
 * train-images.idx3-ubyte for train-images-idx3-ubyte. */
static esp_status locate(const char *folder, const char *name, char **path) {
  char packed[80], dotted[64], both[80];
  const int stem = (int)(strstr(name, "-idx") - name);
  snprintf(packed, sizeof packed, "%s.gz", name);
  snprintf(dotted, sizeof dotted, "%.*s.%s", stem, name, name + stem + 1);
  snprintf(both, sizeof both, "%s.gz", dotted);
  const char *const candidates[] = {name, packed, dotted, both};
  for (size_t i = 0; i < sizeof candidates / sizeof *candidates; i++) {
    *path = esp_join_path(folder, candidates[i]);
    if (!*path) return ESP_ERR_MEMORY;
    if (esp_exists(*path)) return ESP_OK;
    esp_free(*path);
    *path = NULL;
  }
  return esp_fail(
      ESP_ERR_NOT_FOUND,
      "%s: neither %s nor %s (or with .idx for -idx) is in this folder; give the folder that holds the four IDX "
      "files (train- and t10k-, images and labels)",
      folder, name, packed);
}

typedef esp_status (*part_reader)(esp_dataset *dataset, esp_split_name split, esp_gz *gz, const char *path);

static esp_status read_part(esp_dataset *dataset, esp_split_name split, const char *folder, const char *name,
                            part_reader read) {
  char *path;
  ESP_TRY(locate(folder, name, &path));
  esp_gz gz = {0};
  const esp_status status = read(dataset, split, &gz, path);
  esp_gz_close(&gz);
  esp_free(path);
  return status;
}

static esp_status read_idx(esp_dataset *dataset, const char *folder, const char *const *class_names) {
  if (!esp_exists(folder))
    return esp_fail(ESP_ERR_NOT_FOUND, "%s does not exist; give the folder that holds the four IDX files", folder);
  if (!esp_is_folder(folder))
    return esp_fail(ESP_ERR_USAGE, "%s is a file; give the folder that holds the four IDX files", folder);
  dataset->info.classes = CLASSES;
  dataset->info.class_names = class_names;
  ESP_TRY(read_part(dataset, ESP_TRAIN, folder, "train-images-idx3-ubyte", read_images));
  ESP_TRY(read_part(dataset, ESP_TRAIN, folder, "train-labels-idx1-ubyte", read_labels));
  ESP_TRY(read_part(dataset, ESP_TEST, folder, "t10k-images-idx3-ubyte", read_images));
  return read_part(dataset, ESP_TEST, folder, "t10k-labels-idx1-ubyte", read_labels);
}

esp_status esp_read_fashion_mnist(esp_dataset *dataset, const char *path) {
  return read_idx(dataset, path, fashion_names);
}

esp_status esp_read_mnist(esp_dataset *dataset, const char *path) { return read_idx(dataset, path, digit_names); }
