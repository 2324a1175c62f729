/* What the readers of data sets share: the storage they fill and the gzip streams they read. */
#ifndef ESPALIER_DATASET_INTERNAL_H
#define ESPALIER_DATASET_INTERNAL_H

#include <espalier/dataset.h>
#include <espalier/memory.h>
#include <zlib.h>

/* A split as its source has it holds its images as bytes, as floats, or (generated) not at all: [count, height, width,
 * channels]. */
typedef struct esp_split {
  int64_t count;
  uint8_t *bytes;
  float *floats;
  int32_t *labels; /* [count] */
} esp_split;

struct esp_dataset {
  esp_dataset_info info;
  esp_split splits[ESP_SPLITS]; /* as stored: [ESP_VALIDATION] and [ESP_TEST] are empty unless the source has them */
  uint32_t *rows[ESP_SPLITS];   /* [count of the split] places in splits[ESP_TRAIN], ascending, of what is dealt as this
                                    split; NULL where a split is dealt as it is stored */
  /* Generated sets: draws image `index` as bytes [height, width, channels]. NULL otherwise. */
  void (*draw)(const esp_dataset *dataset, esp_split_name split, int64_t index, uint8_t *out);
  char *source;
  char *class_text;        /* the names, each ending with '\0'; NULL if they are compiled in */
  const char **class_list; /* [classes]; the names lie in class_text or are compiled in */
  char digest[24];
};

/* The most bytes of an image that is generated: callers of esp_dataset_pixels() keep as many in scratch. */
enum { ESP_DRAWN_BYTES = 32 * 32 * 3 };

/* The pixels of an image: `bytes` (the data set's own, or drawn into scratch) or `floats`; the other is
 * NULL. */
typedef struct esp_pixels {
  const uint8_t *bytes;
  const float *floats;
} esp_pixels;
esp_pixels esp_dataset_pixels(const esp_dataset *dataset, esp_split_name split, int64_t index,
                              uint8_t scratch[ESP_DRAWN_BYTES]);

/* Readers call it. `path` is for messages. */
esp_status esp_dataset_set_shape(esp_dataset *dataset, const char *path, uint64_t channels, uint64_t height,
                                 uint64_t width);
/* Where image `index` of a split is stored: both become those of `splits`. */
void esp_dataset_locate(const esp_dataset *dataset, esp_split_name *split, int64_t *index);
/* Serves a source without a test split: draws `share` of its training images, of each class as esp_dataset_hold_out()
 * does and with a fixed key of its own, and deals them as the test split from then on. ESP_ERR_CONFIG if no class has
 * two images. */
esp_status esp_dataset_draw_test(esp_dataset *dataset, double share);
/* Room for the labels and, unless the set is generated, for the images of a split. The shape must be set. */
typedef enum esp_storage { ESP_STORE_BYTES, ESP_STORE_FLOATS, ESP_STORE_NOTHING } esp_storage;
esp_status esp_dataset_allocate(esp_dataset *dataset, esp_split_name split, int64_t count, esp_storage storage);
int64_t esp_dataset_image_size(const esp_dataset *dataset); /* values in an image */
/* Takes the class names, one a line (empty lines do not count), and sets the number of classes. */
esp_status esp_dataset_name_classes(esp_dataset *dataset, const char *path, const char *text, size_t length);
/* Fails, naming the image, unless 0 <= label < classes. `first` is the number of the file's first image. */
esp_status esp_dataset_set_label(esp_dataset *dataset, esp_split_name split, int64_t index, int64_t label,
                                 const char *path, int64_t first);

/* [planes, pixels] -> [pixels, planes]: the files' channels-first images to channels last. */
void esp_interleave_bytes(const uint8_t *planes, int64_t channels, int64_t pixels, uint8_t *out);
void esp_interleave_floats(const float *planes, int64_t channels, int64_t pixels, float *out);

/* A file that is read from start to end, gzip or plain. */
typedef struct esp_gz {
  gzFile file;
  const char *path; /* the caller's */
  uint64_t file_bytes;
  uint64_t offset; /* in what was unpacked */
} esp_gz;

esp_status esp_gz_open(esp_gz *gz, const char *path);
void esp_gz_close(esp_gz *gz);
/* Exactly `bytes` bytes; `what` names them in the message if the file ends before. */
esp_status esp_gz_read(esp_gz *gz, void *buffer, size_t bytes, const char *what);
/* Fails if so many more bytes cannot be in a file of this size: to be called before memory is taken for
 * them. */
esp_status esp_gz_expect(const esp_gz *gz, uint64_t bytes, const char *what);
/* Fails if anything is left. Also lets zlib compare its checksum. */
esp_status esp_gz_expect_end(esp_gz *gz);
/* Reads to the end, for the checksum alone. */
esp_status esp_gz_drain(esp_gz *gz);

bool esp_is_folder(const char *path);
bool esp_exists(const char *path);
/* "folder/name" from esp_alloc(), NULL if memory is short. */
char *esp_join_path(const char *folder, const char *name);

/* The readers: one a row of the table in dataset.c. */
esp_status esp_read_synthetic(esp_dataset *dataset, const char *path);
esp_status esp_read_fashion_mnist(esp_dataset *dataset, const char *path);
esp_status esp_read_mnist(esp_dataset *dataset, const char *path);
esp_status esp_read_cifar10(esp_dataset *dataset, const char *path);
esp_status esp_read_cifar100(esp_dataset *dataset, const char *path);
esp_status esp_read_hdf5(esp_dataset *dataset, const char *path);

#endif
