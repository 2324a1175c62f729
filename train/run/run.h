/* A whole training run, from settings and data to a trained model in a folder: pretraining or finetuning. esp_train()
 * is the loop within; the parts around it are here for those who put a run together themselves. */
#ifndef ESPALIER_RUN_H
#define ESPALIER_RUN_H

#include <espalier/folder_lock.h>
#include <espalier/trained.h>
#include <espalier/trainer.h>

#ifdef __cplusplus
extern "C" {
#endif

struct json_t; /* jansson's */

/* The head of a model that is finetuned: new if the data have another number of classes, always new, or the old one. */
typedef enum esp_head_choice { ESP_HEAD_AS_CLASSES, ESP_HEAD_NEW, ESP_HEAD_KEPT } esp_head_choice;

typedef struct esp_run {
  const esp_run_config
      *config; /* what it leaves to the data may be 0; NULL: the settings that `from` was trained with */
  const esp_dataset *dataset;
  const char *folder;                /* made where it is missing; an older run in it is replaced */
  const esp_trained *from;           /* the model that is finetuned, left as it is; NULL: a new model is trained */
  esp_head_choice head;              /* with `from` */
  const esp_trained *teacher;        /* distilled from, as the settings `distillation` say; NULL: none */
  const volatile sig_atomic_t *stop; /* as esp_training_job has it; NULL: never */
  bool quiet;                        /* no progress on standard error */
} esp_run;

/* Trains a new model, or finetunes run->from with other settings or data. The folder, which nobody else may write in
 * meanwhile (ESP_ERR_BUSY), gets config.yaml, metrics.csv and the other files of esp_train(), last.h5 among them, from
 * which esp_trained_load() makes the same model, and results.json. Fails as esp_train() does, and with ESP_ERR_CONFIG
 * or ESP_ERR_MISMATCH, before anything is written, if settings, data, `from` and teacher do not fit together. On
 * failure *trained is empty; otherwise it is freed by esp_trained_clear(). */
ESP_API esp_status esp_run_train(const esp_run *run, esp_trained *trained, esp_training_result *result) ESP_MUST_CHECK;

/* --- the parts --------------------------------------------------------------------------------------------- */

/* Sets the model's sizes that the settings leave to the data: image size, channels, classes. */
ESP_API void esp_run_take_sizes(esp_run_config *config, const esp_dataset *dataset);

/* A new model by `config`, whose sizes and seed are set, and an info of which the first entry is "pretrain". On failure
 * *trained is empty. */
ESP_API esp_status esp_run_create(esp_trained *trained, const esp_run_config *config,
                                  const esp_dataset *dataset) ESP_MUST_CHECK;

/* A model with the settings `config` and the parameters of run->from, but for a new head, and an info whose last entry
 * of the history is `action` ("finetune"), begun from it. Sets config->model.classes if the head is new.
 * ESP_ERR_MISMATCH if data or settings do not fit run->from. On failure *trained is empty. */
ESP_API esp_status esp_run_create_from(esp_trained *trained, esp_run_config *config, const esp_run *run,
                                       const char *action) ESP_MUST_CHECK;

/* Finds, before a folder is made, what can be known to be wrong; freezes what config->training.freeze names. The
 * teacher may be NULL. */
ESP_API esp_status esp_run_check(const esp_trained *trained, const esp_run_config *config, const esp_dataset *dataset,
                                 const esp_trained *teacher) ESP_MUST_CHECK;

/* Makes the folder and takes it for this run: ESP_ERR_BUSY if another process writes there. Unless the run `resumes`,
 * checkpoints and results that an older one left there are removed, for they would be taken for this one's. On failure
 * *lock is NULL; otherwise it is the run's for as long as it writes, and freed by esp_folder_lock_free(). */
ESP_API esp_status esp_run_open_folder(esp_folder_lock **lock, const char *folder, const char *action,
                                       bool resumes) ESP_MUST_CHECK;

/* Removes what an older run left in the folder that would be taken for a new one's: checkpoints and results. */
ESP_API esp_status esp_run_remove_older(const char *folder) ESP_MUST_CHECK;

/* Writes the folder's config.yaml, and the same text into the info. */
ESP_API esp_status esp_run_write_config(const char *folder, const esp_run_config *config,
                                        esp_checkpoint_info *info) ESP_MUST_CHECK;

/* What results.json holds, a new reference; NULL if memory is short. "accuracy", "loss" and those that begin with
 * "best_" are of the test split; docs/guide/10-files.md lists all. Looks at run's dataset, folder and teacher. */
ESP_API struct json_t *esp_run_results_json(const esp_run *run, const esp_run_config *config,
                                            const esp_trained *trained, const esp_training_result *result);

#ifdef __cplusplus
}
#endif
#endif
