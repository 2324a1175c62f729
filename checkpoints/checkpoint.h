/* Checkpoints: one HDF5 file that tells everything about a model and the run that made it. See the format in
 * checkpoints/FORMAT.md. Written to a temporary name in the same folder, flushed, synced, renamed; read strictly. */
#ifndef ESPALIER_CHECKPOINT_H
#define ESPALIER_CHECKPOINT_H

#include <espalier/dataset.h>
#include <espalier/model.h>
#include <espalier/optimizer.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { ESP_DIGEST_SIZE = 17, ESP_MAX_HISTORY = 64 };

/* Higher levels take longer and gain nothing: trained numbers are nearly noise (see FORMAT.md). */
enum { ESP_DEFAULT_COMPRESSION = 1 };

/* Where a run keeps its newest checkpoint. */
#define ESP_LAST_CHECKPOINT "last.h5"

/* One thing that was done to arrive at a checkpoint, oldest first. */
typedef struct esp_history_entry {
  char action[16];                 /* "pretrain", "finetune", "prune" ... */
  char detail[256];                /* for people: data set, criterion ... */
  char parent[ESP_DIGEST_SIZE];    /* digest of the checkpoint it started from; "" for none */
  char reference[ESP_DIGEST_SIZE]; /* digest of a second checkpoint it used; "" for none */
  char frozen[256];                /* the freeze patterns of a training; "" for none */
  int64_t steps;                   /* training steps of this action so far */
} esp_history_entry;

/* Where a training run stands, for resuming it. */
typedef struct esp_progress {
  int64_t step, steps; /* done, planned */
  int64_t batches;     /* dealt by the loader since epoch 0 */
  uint64_t seed;
  double best_accuracy; /* so far, on the validation split; -1: not evaluated yet */
  int64_t best_step;
} esp_progress;

/* All that a file holds besides parameters and optimiser moments. */
typedef struct esp_checkpoint_info {
  char data_name[64]; /* data set it was trained on last */
  char data_digest[64];
  esp_normalisation normalisation; /* of the images it expects */
  esp_progress progress;
  int history_count;
  esp_history_entry history[ESP_MAX_HISTORY];
  char digest[ESP_DIGEST_SIZE]; /* of architecture and parameters; set by save and load */
  char *run_config;             /* the resolved config as YAML (esp_alloc), or NULL */
} esp_checkpoint_info;

/* Writes model, info and, if not NULL, the optimiser's state. compression: 0 none, 1 to 9 as FORMAT.md says. Sets
 * info->digest. Takes as much memory as the uncompressed file. On failure a file that was there is as it was:
 * ESP_ERR_IO (folder missing, disk full ...), ESP_ERR_FORMAT (a layout that cannot be), ESP_ERR_MEMORY. Checkpoints
 * must not be written or read by two threads at once: HDF5 is not made for it. */
ESP_API esp_status esp_checkpoint_save(const char *path, const esp_model *model, const esp_optimizer *optimizer,
                                       esp_checkpoint_info *info, int compression) ESP_MUST_CHECK;

/* A checkpoint or trace without a seal (h5py, say, has edited it) is refused, unless this was called: then it is read,
 * and `warn` is told its path. NULL: refused again. Not to be called while another thread reads. */
ESP_API void esp_checkpoint_accept_unsealed(void (*warn)(const char *path));

/* The same as this process does here is done in a copy of it before (<espalier/confined.h>): a file that was made to
 * crash HDF5 is refused. So memory and time are taken twice. Reads the model (a new one; freed by esp_model_free()) and
 * the info (its run_config freed by esp_checkpoint_info_clear()). On failure *model is NULL and nothing needs freeing:
 * ESP_ERR_NOT_FOUND, ESP_ERR_USAGE (a folder), ESP_ERR_IO, ESP_ERR_MEMORY, or ESP_ERR_FORMAT for all that is not a
 * whole checkpoint that this program can read; the message names each missing, extra or misshapen parameter (the first
 * five, and how many more). */
ESP_API esp_status esp_checkpoint_load(const char *path, esp_model **model, esp_checkpoint_info *info) ESP_MUST_CHECK;

/* Reads the optimiser's state from the same file into an optimiser made for the model that esp_checkpoint_load() gave;
 * ESP_ERR_MISMATCH if the file has none, or that of another optimiser. On another failure part of the state may have
 * been read. */
ESP_API esp_status esp_checkpoint_load_optimizer(const char *path, esp_optimizer *optimizer) ESP_MUST_CHECK;

/* RUN (a folder) stands for its last checkpoint, RUN/last.h5; a file for itself. Writes the path, of at most size - 1
 * bytes. ESP_ERR_NOT_FOUND, saying what was looked for, if it is not there. */
ESP_API esp_status esp_checkpoint_resolve(char path[], size_t size, const char *run_or_checkpoint) ESP_MUST_CHECK;

/* A new entry at the end of the history: what was done, for people how, and the digests of the checkpoint it started
 * from and of a second one ("": none). What is longer than its member is cut. ESP_ERR_MISMATCH if there is no room. */
ESP_API esp_status esp_checkpoint_add_history(esp_checkpoint_info *info, const char *action, const char *detail,
                                              const char *parent, const char *reference) ESP_MUST_CHECK;

ESP_API void esp_checkpoint_info_clear(esp_checkpoint_info *info);

/* "0123456789abcdef": FNV-1a, 64 bits, over the architecture text, the layouts and the parameters' names, shapes and
 * bytes. */
ESP_API esp_status esp_model_digest(const esp_model *model, char digest[ESP_DIGEST_SIZE]) ESP_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
