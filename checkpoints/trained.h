/* A trained model and what its checkpoint tells of it, as one thing: loaded, handed on and saved together. */
#ifndef ESPALIER_TRAINED_H
#define ESPALIER_TRAINED_H

#include <espalier/checkpoint.h>
#include <espalier/output_file.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Owns both. All zero: empty. */
typedef struct esp_trained {
  esp_model *model;
  esp_checkpoint_info info;
  char path[ESP_PATH_SIZE]; /* of the checkpoint that it was loaded from or saved to last; "": none */
} esp_trained;

/* Loads RUN (a folder's last checkpoint) or one checkpoint. Fails as esp_checkpoint_resolve() and esp_checkpoint_load()
 * do; *trained is empty then. */
ESP_API esp_status esp_trained_load(esp_trained *trained, const char *run_or_checkpoint) ESP_MUST_CHECK;

/* Writes a checkpoint without an optimiser's state, as esp_checkpoint_save() does; sets its digest and path. */
ESP_API esp_status esp_trained_save(esp_trained *trained, const char *path) ESP_MUST_CHECK;

/* Frees both and leaves *trained empty; an empty one is allowed. */
ESP_API void esp_trained_clear(esp_trained *trained);

#ifdef __cplusplus
}
#endif
#endif
