/* The training loop: pretraining and finetuning are the same loop from another start. */
#ifndef ESPALIER_TRAINER_H
#define ESPALIER_TRAINER_H

#include <espalier/checkpoint.h>
#include <espalier/evaluate.h>
#include <espalier/distillation.h>
#include <espalier/evaluate.h>
#include <espalier/loader.h>
#include <espalier/run_config.h>

#include <signal.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct esp_training_job {
  esp_model *model; /* trained in place; the caller's */
  const esp_dataset *dataset;
  const esp_run_config *config;
  const char *folder;                      /* of the run; it exists */
  esp_checkpoint_info *info;               /* the last entry of its history is this training; kept up to date */
  const esp_model *teacher;                /* distilled from, as config->distillation says; NULL: none. A resumed run */
  const esp_checkpoint_info *teacher_info; /* needs the one it had: its digest is the history entry's reference */
  const char *resume_from;                 /* checkpoint whose optimiser state and progress go on; NULL: from step 0 */
  const volatile sig_atomic_t *stop;       /* set by a signal handler: end at the next safe point; NULL: never */
  int64_t
      final_examples; /* images of a split that an evaluation at the end looks at, as esp_evaluation_options.limit */
  bool quiet;
} esp_training_job;

typedef struct esp_training_result {
  esp_evaluation final;           /* on the test split, of the model as it is at the end */
  esp_evaluation validation;      /* of the same model on the validation split; no examples: there is no such split */
  esp_evaluation best;            /* on the test split, of best.h5: of the model that is best on the validation split */
  esp_evaluation best_validation; /* of the same model on the validation split */
  int64_t best_step, step, steps;
  double seconds;           /* of this process's part of the run */
  double images_per_second; /* of the training steps alone */
  double distillation;      /* mean KL from the teacher over the last row of the metrics; 0 without one */
  size_t step_memory;       /* bytes of the step arena */
} esp_training_result;

/* Trains for config->training.epochs on the training split. Evaluations on the way look at the validation split and
 * decide what best.h5 is: the model with the highest accuracy, the earlier one of equals. If they look at a part of it
 * (config->training.evaluate_examples), the best of them and the model at the end compete once more at the end, on all
 * of it. Without a validation split nothing is evaluated on the way, and best.h5 is the model at the end; while rows of
 * experts are pruned too, for the best would be the least pruned, and there is no best.h5. The test split is looked at
 * once, at the end. Leaves metrics.csv, last.h5 and best.h5 in the folder. ESP_ERR_CONFIG if the dataset does not hold
 * out the share that config->data says (see esp_dataset_hold_out()). ESP_ERR_INTERRUPTED if
 * stopped (last.h5 then holds the state to resume from), ESP_ERR_NOT_FINITE if the loss or the gradient stops being
 * finite (last.h5 is the last good state).
 * A resumed run keeps its settings, but it may be lengthened: with more config->training.epochs than it was planned for
 * it goes on from its last step, at its end too, and its history says so. What is a function of the share of the run,
 * the learning rate, is from there on as in a run of the new length. A run that prunes rows cannot be lengthened. */
ESP_API esp_status esp_train(const esp_training_job *job, esp_training_result *result) ESP_MUST_CHECK;

/* Steps of a run: epochs x batches per epoch, rounded up. */
ESP_API int64_t esp_training_steps(const esp_training_config *config, int64_t batches_per_epoch);

/* The same for the batches that esp_train() takes of the data: whole ones, unless there are fewer images than that. */
ESP_API int64_t esp_run_steps(const esp_training_config *config, const esp_dataset *dataset);

typedef struct esp_step_options {
  esp_pass pass; /* `training` is true in it */
  double label_smoothing;
  double learning_rate_multiplier; /* what the schedule gives, of the optimiser's rate; 1: all of it */
  esp_distillation *distillation;  /* NULL: no teacher */
} esp_step_options;

typedef struct esp_step_result {
  double loss, task_loss, gradient_norm;
  int64_t correct;
  esp_auxiliary_losses auxiliary;
} esp_step_result;

/* Freezes what training.freeze names, as esp_train() does. ESP_ERR_CONFIG if a pattern matches nothing or nothing is
 * left to train. */
ESP_API esp_status esp_training_freeze(const esp_training_config *config, const esp_model *model) ESP_MUST_CHECK;

/* One training step, for those who write their own loop: forward, backward, clipping, update. On return the tape
 * still holds the step. */
ESP_API esp_status esp_training_step(const esp_model *model, esp_optimizer *optimizer, esp_tape *tape,
                                     const esp_batch *batch, const esp_step_options *options,
                                     esp_step_result *result) ESP_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
