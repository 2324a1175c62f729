/* A whole training run, from settings and data to a trained model in a folder. esp_train() is the loop within; its parts
 * are here for those who put a run together themselves. */
#ifndef ESPALIER_RUN_H
#define ESPALIER_RUN_H

#include <espalier/folder_lock.h>
#include <espalier/trained.h>
#include <espalier/trainer.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct esp_run {
  const esp_run_config *config; /* what it leaves to the data may be 0 */
  const esp_dataset *dataset;
  const char *folder;                /* made where it is missing; an older run in it is replaced */
  const volatile sig_atomic_t *stop; /* as esp_training_job has it; NULL: never */
  bool quiet;                        /* no progress on standard error */
} esp_run;

/* Trains a new model. The folder gets config.yaml, metrics.csv and the other files of esp_train(), last.h5 among them,
 * from which esp_trained_load() makes the same model. Fails as esp_train() does, and with ESP_ERR_CONFIG or
 * ESP_ERR_MISMATCH, before anything is written, if settings and data do not fit together. On failure *trained is empty;
 * otherwise it is freed by esp_trained_clear(). */
ESP_API esp_status esp_run_train(const esp_run *run, esp_trained *trained, esp_training_result *result) ESP_MUST_CHECK;

/* --- the parts --------------------------------------------------------------------------------------------- */

/* Sets the model's sizes that the settings leave to the data: image size, channels, classes. */
ESP_API void esp_run_take_sizes(esp_run_config *config, const esp_dataset *dataset);

/* Has the info tell of the data set: name, digest, normalisation. */
ESP_API void esp_run_note_data(esp_checkpoint_info *info, const esp_dataset *dataset);

/* A new entry of the history for a training with these settings: `action` is "pretrain" or the like, `parent` the digest
 * of the checkpoint it starts from, or "". ESP_ERR_MISMATCH if there is no room. */
ESP_API esp_status esp_run_start_history(esp_checkpoint_info *info, const char *action, const esp_run_config *config,
                                         const esp_dataset *dataset, const char *parent) ESP_MUST_CHECK;

/* A new model by `config`, whose sizes and seed are set, and an info of which the first entry is "pretrain". On failure
 * *trained is empty. */
ESP_API esp_status esp_run_create(esp_trained *trained, const esp_run_config *config,
                                  const esp_dataset *dataset) ESP_MUST_CHECK;

/* What can be known to be wrong before a folder is made; freezes what config->training.freeze names. */
ESP_API esp_status esp_run_check(const esp_model *model, const esp_run_config *config,
                                 const esp_dataset *dataset) ESP_MUST_CHECK;

/* Makes the folder and takes it for this run: ESP_ERR_BUSY if another process writes there. Unless the run `resumes`, checkpoints
 * and results that an older one left there are removed, for they would be taken for this one's. On failure *lock is NULL;
 * otherwise it is the run's for as long as it writes, and freed by esp_folder_lock_free(). */
ESP_API esp_status esp_run_open_folder(esp_folder_lock **lock, const char *folder, const char *action,
                                       bool resumes) ESP_MUST_CHECK;

/* Removes what an older run left in the folder that would be taken for a new one's: checkpoints and results. */
ESP_API esp_status esp_run_remove_older(const char *folder) ESP_MUST_CHECK;

/* Writes the folder's config.yaml, and the same text into the info. */
ESP_API esp_status esp_run_write_config(const char *folder, const esp_run_config *config,
                                        esp_checkpoint_info *info) ESP_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
