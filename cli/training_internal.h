/* Starting, resuming and ending one training run in its folder, for all commands that train. */
#ifndef ESPALIER_TRAINING_INTERNAL_H
#define ESPALIER_TRAINING_INTERNAL_H

#include "commands_internal.h"

#include <espalier/train.h>

typedef struct training {
  const char *action, *folder; /* of the run */
  bool quiet, terse;           /* terse: the settings are not printed at the start */
  esp_dataset *dataset; /* the caller's */
  esp_run_config config;
  esp_model *model;
  loaded teacher; /* of a distillation; no model: none */
  esp_checkpoint_info info;
  char resume_from[ESP_PATH_SIZE]; /* the folder's last checkpoint, there or not */
  bool resumes;                    /* it is there, and goes on */
} training;

/* Looks whether the folder holds a run, which goes on if `resume`; nothing is made yet. ESP_ERR_USAGE if there is one
 * that is neither to be resumed nor to be overwritten. */
esp_status training_place(training *t, const char *folder, bool resume, bool overwrite);

/* Sets the model's sizes that the data decide. */
void training_take_sizes(training *t);

/* Has the info tell of the data set. */
void training_note_data(training *t);

/* A new entry of the history, for this training. `parent`: digest of the checkpoint it starts from, or "". */
esp_status training_start_history(training *t, const char *parent);

/* A new model by t->config, whose seed is set. */
esp_status training_create(training *t);

/* Model and info as an interrupted run left them; checks that the data are the same. */
esp_status training_load(training *t);

/* ESP_ERR_CONFIG, naming the setting, if t->config is not what the loaded run was started with. */
esp_status training_check_settings_kept(const training *t);

/* Checks, makes the folder, trains, writes the results. */
esp_status training_run(training *t, esp_training_result *result);

/* What results.json holds; a new reference. */
json_t *training_results_json(const training *t, const esp_training_result *result);

/* Frees the model, the teacher and the info. */
void training_release(training *t);

#endif
