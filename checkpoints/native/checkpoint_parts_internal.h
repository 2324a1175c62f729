/* The parts of a checkpoint file, each with its writer and its strict reader. Names in messages are paths
 * inside the file; callers put the file's own name before them. */
#ifndef ESPALIER_CHECKPOINT_PARTS_INTERNAL_H
#define ESPALIER_CHECKPOINT_PARTS_INTERNAL_H

#include "checkpoint_hdf5_internal.h"
#include <espalier/checkpoint.h>

enum { ESP_FORMAT_VERSION = 1, ESP_SEAL_SIZE = 24 };

/* /architecture: what a model is made of. The layouts are one per block, those of dense blocks zero. */
typedef struct esp_architecture {
  char *text; /* the config as YAML, as it stands in the file */
  esp_model_config config;
  esp_expert_layout *layouts; /* [config.blocks] */
} esp_architecture;

/* Describes a model; `text` and `layouts` come from esp_alloc() and are freed by esp_architecture_clear(), also after a
 * failure. */
esp_status esp_architecture_of(esp_architecture *architecture, const esp_model *model);
void esp_architecture_clear(esp_architecture *architecture);
/* ESP_ERR_FORMAT if config and layouts cannot be a model. */
esp_status esp_architecture_check(const esp_architecture *architecture);
/* Elements of all parameters of such a model, or slightly more; known before any memory is taken. */
double esp_architecture_elements(const esp_architecture *architecture);
esp_status esp_architecture_write(hid_t file, const esp_architecture *architecture);
esp_status esp_architecture_read(hid_t file, esp_architecture *architecture);

/* FNV-1a, 64 bits, continued. */
#define ESP_FNV_START UINT64_C(0xcbf29ce484222325)
uint64_t esp_fnv(uint64_t digest, const void *bytes, size_t size);

uint64_t esp_architecture_digest(const esp_architecture *architecture, const esp_parameters *parameters);
void esp_digest_text(char text[ESP_DIGEST_SIZE], uint64_t digest);

/* /data, /progress, /history and /run. */
esp_status esp_info_write(hid_t file, const esp_checkpoint_info *info);
esp_status esp_info_read(hid_t file, esp_checkpoint_info *info);

/* A flat array like that of the parameters' values: the group `name` in `place` has a dataset for each
 * parameter. */
esp_status esp_arrays_write(hid_t place, const char *name, const esp_parameters *parameters, const esp_real *flat,
                            int level);
/* Returns at least as many bytes as esp_arrays_write() adds to a file. */
size_t esp_arrays_most_bytes(const esp_parameters *parameters);
/* Names what is missing, extra or misshapen. */
esp_status esp_arrays_check(hid_t place, const char *name, const esp_parameters *parameters);
esp_status esp_arrays_read(hid_t place, const char *name, const esp_parameters *parameters, esp_real *flat);

esp_status esp_optimizer_write(hid_t file, const esp_parameters *parameters, const esp_optimizer *optimizer, int level);

/* Reads from an open file whose format and version are known to be right. It is run twice, see esp_checkpoint_read():
 * what it does to `context` is done once. */
typedef esp_status esp_checkpoint_work(hid_t file, void *context);

/* Opens the file, which must be sealed, and has it read. kind: "checkpoint" or "routing trace". The same is done in a
 * copy of this process before, because HDF5 1.10 crashes on files that were made for it; both are given the same bytes,
 * and the copy's memory is this one's, so that what went well there goes well here. Messages begin with the path. */
esp_status esp_checkpoint_read(const char *path, const char *kind, esp_checkpoint_work *work, void *context);

/* The model that the file describes, its parameters of the right shapes but not read yet. Also after a failure
 * both are to be cleared and freed. */
esp_status esp_checkpoint_make_model(hid_t file, esp_architecture *architecture, esp_model **model);

/* An HDF5 file in memory. `bytes` has room for `capacity` bytes and a seal. */
typedef struct esp_image {
  void *bytes; /* from esp_alloc(); to be freed also after a failure */
  size_t capacity, size;
} esp_image;

typedef esp_status esp_image_writer(hid_t file, const void *context);
/* `expected`: at least as many bytes as the file will have. */
esp_status esp_image_make(esp_image *image, size_t expected, esp_image_writer *write, const void *context);

/* Makes the file in memory, adds a checksum over all bytes behind them, and replaces `path` by it; the message has the
 * path. */
esp_status esp_sealed_file_write(const char *path, size_t expected, esp_image_writer *write, const void *context);

/* Reads a whole file, checks its seal and cuts that off. image->bytes is to be freed also after a failure. Messages
 * begin with the path. */
esp_status esp_sealed_file_read(esp_image *image, const char *path, const char *kind);

/* Opens an HDF5 file in memory for reading, without copying its bytes; kept in `handles`. */
hid_t esp_image_open(esp_h5_handles *handles, esp_image *image);

#endif
