/* Starting, resuming and ending one training run in its folder, for all commands that train. */
#ifndef ESPALIER_TRAINING_INTERNAL_H
#define ESPALIER_TRAINING_INTERNAL_H

#include "commands_internal.h"

#include <espalier/train.h>

#include <sys/stat.h>

typedef struct training training;

/* How commands that train differ. */
typedef struct recipe {
  const char *action;
  esp_status (*start)(training *t, const arguments *a); /* makes the model of a run that is not resumed */
  /* In the place of esp_train(); NULL: that. */
  esp_status (*work)(training *t, esp_training_result *result);
  /* Whether a run that is to be resumed is done, complete() included; NULL: esp_train() finds out. */
  bool (*finished)(const training *t);
  bool lengthens; /* resumed with more epochs it goes on beyond the end it had */
  /* What is done with the model at the end, before the results are written; NULL: nothing. */
  esp_status (*complete)(training *t, esp_training_result *result);
} recipe;

struct training {
  const arguments *arguments;  /* of a command that trains once, else NULL */
  const recipe *recipe;        /* likewise */
  json_t *more;                /* for the results; NULL: nothing */
  const char *action, *folder; /* of the run */
  bool quiet, terse;           /* terse: the settings are not printed at the start */
  esp_dataset *dataset;        /* the caller's */
  esp_run_config config;
  esp_trained trained;
  esp_trained teacher;             /* of a distillation; no model: none */
  char resume_from[ESP_PATH_SIZE]; /* the folder's last checkpoint, there or not */
  struct stat found;               /* of it, zeros if it was not there */
  bool resumes;                    /* it is there, and goes on */
  int replaced_head;               /* classes of the model's head before, if it begins anew; else 0 */
  esp_folder_lock *lock;           /* of the folder, while the run goes on */
  double epochs_before;            /* of a resumed run that is lengthened; else 0 */
};

/* A whole command that trains once. */
int run_training(const arguments *a, const recipe *r);

/* --seed goes before the settings. */
esp_status apply_seed(training *t, const arguments *a);

/* Serves as finished(): whether the last step is done and results.json is of the last checkpoint. */
bool training_has_ended(const training *t);

/* The settings of a run that begins with a model: those in the text `text`, which `name` calls, overlaid by --config
 * and --set. */
esp_status training_settle(training *t, const arguments *a, const char *name, const char *text);

/* Serves as start(): makes model and info from those of the first operand, with the settings that `settle` makes of
 * them. */
esp_status start_from_model(training *t, const arguments *a,
                            esp_status (*settle)(training *t, const arguments *a, const esp_trained *source));

/* Looks whether the folder holds a run, which goes on if `resume`; nothing is made yet. ESP_ERR_USAGE if there is one
 * that is neither to be resumed nor to be overwritten. */
esp_status training_place(training *t, const char *folder, bool resume, bool overwrite);

/* Sets the model's sizes that the data decide. */
void training_take_sizes(training *t);

/* Holds out of the data what the settings say. */
esp_status training_split_data(training *t);

/* A new model by t->config, whose seed is set. */
esp_status training_create(training *t);

/* Model and info as an interrupted run left them; checks that the data are the same. */
esp_status training_load(training *t);

/* ESP_ERR_CONFIG, naming the setting, if t->config is not what the loaded run was started with; more epochs are let
 * pass where the recipe lengthens runs. */
esp_status training_check_settings_kept(training *t);

/* Checks, makes the folder, trains, writes the results. */
esp_status training_run(training *t, esp_training_result *result);

/* What results.json holds; a new reference. */
json_t *training_results_json(const training *t, const esp_training_result *result);

/* Frees the model, the teacher and the info. */
void training_release(training *t);

#endif
