/* CIFAR-10 and CIFAR-100, binary version: records of one label byte (CIFAR-100: coarse, then fine) and 3 x
 * 32 x 32 bytes, channels first. Read from their folder or straight from the published archive. */
#include "dataset_internal.h"
#include "tar_internal.h"

#include <stdio.h>
#include <string.h>

enum {
  SIDE = 32,
  CHANNELS = 3,
  PIXELS = SIDE * SIDE,
  IMAGE = CHANNELS * PIXELS,
  MOST_FILES = 7,
  LARGEST_NAMES = 1 << 20
};

/* Files in the order of the data set: training, test, names. */
typedef struct layout {
  const char *folder;
  const char *archive;
  const char *files[MOST_FILES];
  int train_files, record_files, file_count;
  int label_bytes; /* the last of them is the label */
  int classes;     /* if the names are missing */
} layout;

static const layout cifar10 = {.folder = "cifar-10-batches-bin",
                               .archive = "cifar-10-binary.tar.gz",
                               .files = {"data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin", "data_batch_4.bin",
                                         "data_batch_5.bin", "test_batch.bin", "batches.meta.txt"},
                               .train_files = 5,
                               .record_files = 6,
                               .file_count = 7,
                               .label_bytes = 1,
                               .classes = 10};

static const layout cifar100 = {.folder = "cifar-100-binary",
                                .archive = "cifar-100-binary.tar.gz",
                                .files = {"train.bin", "test.bin", "fine_label_names.txt"},
                                .train_files = 1,
                                .record_files = 2,
                                .file_count = 3,
                                .label_bytes = 2,
                                .classes = 100};

typedef struct blob {
  uint8_t *bytes;
  uint64_t size;
  char *path; /* for messages */
} blob;

static void free_blobs(blob *blobs) {
  for (int i = 0; i < MOST_FILES; i++) {
    esp_free(blobs[i].bytes);
    esp_free(blobs[i].path);
  }
}

static bool is_record_file(const layout *form, int file) { return file < form->record_files; }

/* Reads `size` bytes of the stream as file number `file`. `path` is for messages; its ownership passes. */
static esp_status read_blob(const layout *form, int file, esp_gz *gz, uint64_t size, char *path, blob *into) {
  esp_free(into->path);
  into->path = path;
  if (!path) return ESP_ERR_MEMORY;
  const uint64_t record = (uint64_t)form->label_bytes + IMAGE;
  if (is_record_file(form, file) && (size == 0 || size % record != 0))
    return esp_fail(ESP_ERR_FORMAT,
                    "%s: %llu bytes are not a whole number of %llu-byte records (%d label, %d pixels); the "
                    "file is cut short or of another data set; fetch it again",
                    path, (unsigned long long)size, (unsigned long long)record, form->label_bytes, IMAGE);
  if (!is_record_file(form, file) && size > LARGEST_NAMES)
    return esp_fail(ESP_ERR_FORMAT, "%s: %llu bytes of class names; expected at most %d", path,
                    (unsigned long long)size, LARGEST_NAMES);
  if (into->bytes) return esp_fail(ESP_ERR_FORMAT, "%s is in the archive twice; expected once", path);
  into->size = size;
  into->bytes = esp_alloc((size_t)size, 1);
  if (!into->bytes) return ESP_ERR_MEMORY;
  return esp_gz_read(gz, into->bytes, (size_t)size, form->files[file]);
}

/* A folder may lack the names, not the records. */
static esp_status read_folder_file(const layout *form, int file, const char *folder, blob *into) {
  char *const path = esp_join_path(folder, form->files[file]);
  if (!path) return ESP_ERR_MEMORY;
  if (!is_record_file(form, file) && !esp_exists(path)) {
    esp_free(path);
    return ESP_OK;
  }
  esp_gz gz;
  esp_status status = esp_gz_open(&gz, path);
  if (status == ESP_OK && !gzdirect(gz.file))
    status = esp_fail(ESP_ERR_FORMAT, "%s is compressed; expected the plain file; gunzip it", path);
  if (status == ESP_OK) status = read_blob(form, file, &gz, gz.file_bytes, path, into);
  else esp_free(path);
  esp_gz_close(&gz);
  return status;
}

/* The folder that holds the records: PATH itself or the published folder in it. From esp_alloc(). */
static esp_status locate_folder(const layout *form, const char *path, char **folder) {
  for (size_t i = 0; i < 2; i++) {
    char *const inner = i == 0 ? esp_copy_text(path) : esp_join_path(path, form->folder);
    if (!inner) return ESP_ERR_MEMORY;
    char *const file = esp_join_path(inner, form->files[0]);
    const bool here = file && esp_exists(file);
    const bool failed = !file;
    esp_free(file);
    *folder = inner;
    if (here) return ESP_OK;
    esp_free(inner);
    if (failed) return ESP_ERR_MEMORY;
  }
  return esp_fail(ESP_ERR_NOT_FOUND,
                  "%s: %s is neither in this folder nor in a %s inside it; give the folder of the binary "
                  "version (not the Python or Matlab one) or the published %s",
                  path, form->files[0], form->folder, form->archive);
}

static esp_status read_folder(const layout *form, const char *path, blob *blobs) {
  char *folder;
  ESP_TRY(locate_folder(form, path, &folder));
  esp_status status = ESP_OK;
  for (int i = 0; i < form->file_count && status == ESP_OK; i++) status = read_folder_file(form, i, folder, &blobs[i]);
  esp_free(folder);
  return status;
}

static int file_number(const layout *form, const char *name) {
  for (int i = 0; i < form->file_count; i++)
    if (strcmp(form->files[i], name) == 0) return i;
  return -1;
}

static esp_status read_members(const layout *form, esp_gz *gz, blob *blobs) {
  for (;;) {
    esp_tar_member member;
    bool found;
    ESP_TRY(esp_tar_next(gz, &member, &found));
    if (!found) return esp_gz_drain(gz);
    const int file = member.is_file ? file_number(form, member.name) : -1;
    if (file >= 0) ESP_TRY(read_blob(form, file, gz, member.size, esp_join_path(gz->path, member.name), &blobs[file]));
    else ESP_TRY(esp_tar_skip(gz, member.size));
    ESP_TRY(esp_tar_skip_padding(gz, member.size));
  }
}

static esp_status read_archive(const layout *form, const char *path, blob *blobs) {
  esp_gz gz;
  esp_status status = esp_gz_open(&gz, path);
  if (status == ESP_OK) status = read_members(form, &gz, blobs);
  esp_gz_close(&gz);
  if (status != ESP_OK) return status;
  for (int i = 0; i < form->record_files; i++)
    if (!blobs[i].bytes)
      return esp_fail(ESP_ERR_FORMAT, "%s: the archive holds no %s; expected the published %s (binary version)", path,
                      form->files[i], form->archive);
  return ESP_OK;
}

static esp_status unpack_records(esp_dataset *dataset, const layout *form, esp_split_name split, int64_t first,
                                 const blob *from) {
  const uint64_t record = (uint64_t)form->label_bytes + IMAGE;
  const int64_t count = (int64_t)(from->size / record);
  for (int64_t i = 0; i < count; i++) {
    const uint8_t *const bytes = from->bytes + (uint64_t)i * record;
    const int label = bytes[form->label_bytes - 1];
    ESP_TRY(esp_dataset_set_label(dataset, split, first + i, label, from->path, first));
    esp_interleave_bytes(bytes + form->label_bytes, CHANNELS, PIXELS,
                         dataset->splits[split].bytes + (first + i) * IMAGE);
  }
  return ESP_OK;
}

/* Files [begin, end) become one split; each blob goes as soon as it is unpacked. */
static esp_status assemble(esp_dataset *dataset, const layout *form, esp_split_name split, int begin, int end,
                           blob *blobs) {
  const uint64_t record = (uint64_t)form->label_bytes + IMAGE;
  uint64_t count = 0;
  for (int i = begin; i < end; i++) count += blobs[i].size / record;
  ESP_TRY(esp_dataset_allocate(dataset, split, (int64_t)count, ESP_STORE_BYTES));
  int64_t first = 0;
  for (int i = begin; i < end; i++) {
    ESP_TRY(unpack_records(dataset, form, split, first, &blobs[i]));
    first += (int64_t)(blobs[i].size / record);
    esp_free(blobs[i].bytes);
    blobs[i].bytes = NULL;
  }
  return ESP_OK;
}

static esp_status build(esp_dataset *dataset, const layout *form, const char *path, blob *blobs) {
  ESP_TRY(esp_is_folder(path) ? read_folder(form, path, blobs) : read_archive(form, path, blobs));
  const blob *const names = &blobs[form->record_files];
  dataset->info.classes = form->classes;
  if (names->bytes)
    ESP_TRY(esp_dataset_name_classes(dataset, names->path, (const char *)names->bytes, (size_t)names->size));
  ESP_TRY(esp_dataset_set_shape(dataset, path, CHANNELS, SIDE, SIDE));
  ESP_TRY(assemble(dataset, form, ESP_TRAIN, 0, form->train_files, blobs));
  return assemble(dataset, form, ESP_TEST, form->train_files, form->record_files, blobs);
}

static esp_status read_cifar(esp_dataset *dataset, const layout *form, const char *path) {
  blob blobs[MOST_FILES] = {{0}};
  const esp_status status = build(dataset, form, path, blobs);
  free_blobs(blobs);
  return status;
}

esp_status esp_read_cifar10(esp_dataset *dataset, const char *path) { return read_cifar(dataset, &cifar10, path); }

esp_status esp_read_cifar100(esp_dataset *dataset, const char *path) { return read_cifar(dataset, &cifar100, path); }
