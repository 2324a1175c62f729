/* A sweep: methods x ratios x seeds x calibration data on one model or several, before and after a short finetuning.
 * Every cell that is done is kept as a file, so that an interrupted sweep goes on where it was. */
#ifndef ESPALIER_SWEEP_H
#define ESPALIER_SWEEP_H

#include <espalier/method.h>

#include <signal.h>
#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { ESP_SWEEP_MODELS = 8, ESP_SWEEP_METHODS = 128, ESP_SWEEP_LIST = 16 };

/* A model of the sweep; all are the caller's. */
typedef struct esp_sweep_model {
  const esp_model *model;
  const esp_checkpoint_info *info;
  const char *name; /* for people: its path */
} esp_sweep_model;

typedef struct esp_sweep_settings {
  int model_count;
  esp_sweep_model models[ESP_SWEEP_MODELS];
  const esp_sweep_model *reference; /* NULL: none. With several models it serves those that descend from it */
  const esp_dataset *data;          /* what is evaluated on (test split) and finetuned on (training split) */
  int calibration_count;
  const esp_dataset *calibration[ESP_SWEEP_LIST]; /* the first is `data`: matched; others are mismatched */
  int method_count;
  const char *methods[ESP_SWEEP_METHODS]; /* "unpruned" and "random" are added where they are missing */
  int ratio_count, seed_count;
  double ratios[ESP_SWEEP_LIST];
  uint64_t seeds[ESP_SWEEP_LIST];
  int mode_count;             /* 0: zero and remove, and only remove where experts or slots choose */
  esp_prune_mode modes[3];    /* in which criteria prune */
  int gate_count;             /* 0: normalised, and the model's where those are 1 or there is no fixed number of them */
  esp_gate_form gates[2];     /* what criteria that weigh gates take for them */
  double finetune;            /* epochs; 0: none */
  bool distil;                /* the unpruned model is the teacher of the finetuning */
  int64_t calibration_images; /* a cell's sample */
  int64_t limit;              /* test images looked at; 0: all */
  const char *const *overrides; /* "section.key=value" of the finetuning's settings */
  size_t override_count;
  const char *folder;                /* of what is made */
  bool keep;                         /* the compressed checkpoints, too, in folder/models */
  bool quiet;                        /* no progress on standard error */
  const volatile sig_atomic_t *stop; /* set by a signal handler: end after this cell; NULL: never */
} esp_sweep_settings;

/* What one cell says. Numbers that were not measured are not-a-number. A cell whose model came out the same as
 * another's (same digest; same seed of the finetuning) takes that one's numbers, and says so. */
typedef struct esp_sweep_cell {
  int model, calibration; /* calibration -1: the method looks at no data */
  esp_method method;
  int mode, gates; /* an esp_prune_mode and an esp_gate_form; -1 where the method has no such thing */
  double ratio;    /* 0 if the method has none */
  uint64_t seed;
  bool done;
  char failure[512];            /* why the method cannot do this; "" if it can */
  char digest[ESP_DIGEST_SIZE]; /* of the compressed model */
  int64_t greedy_layers;        /* esp_compressed.greedy */
  char same_as[128];            /* the cell that the numbers were taken from; "" if they are its own */
  double accuracy, loss;        /* on the test images, before finetuning */
  double tuned_accuracy, tuned_loss;
  double validation_accuracy, tuned_validation_accuracy; /* by which methods are ranked; not-a-number without images */
  int64_t parameters, activated_parameters;              /* as esp_model_cost_of() counts */
  double flops;                                          /* of an image, as esp_model_cost_of() expects */
  double measured_flops;                                 /* ... with the expert calls that the test images took */
  double rows_per_token;                                 /* expert calls of a token, measured over all mixture layers */
  int64_t bytes;                                         /* the checkpoint's on disk, without optimiser */
  /* bytes of an evaluation: the parameters, and what the forward pass of a batch of 128 images takes from the step
   * arena. Results that nobody needs any more give their room to the next ones, so the latter is about the most
   * that the stem or one block needs at a time. In models as small as these it is nearly all, and pruning, which
   * leaves top_k, hardly changes it; factored experts need room for V x besides */
  int64_t memory;
  double milliseconds; /* an image, median of batches */
  double speed;        /* unpruned model's time over this one's, batches in turns, median */
  double seconds;      /* that the cell took */
} esp_sweep_cell;

/* A row is over models and seeds, of the cells that could be done. */
typedef struct esp_sweep_row {
  esp_method method;
  int mode, gates, calibration;
  double ratio;
  int cells, failed;
  double accuracy, accuracy_spread; /* mean and standard deviation (n - 1) */
  double tuned_accuracy, tuned_spread;
  double loss, tuned_loss;
  double validation_accuracy, tuned_validation_accuracy; /* means */
  int rank, tuned_rank; /* by validation accuracy, or test accuracy without that split, among the rows of this ratio, 1
                           the best; equal means share a rank; 0: none */
  double parameters, activated_parameters, flops, measured_flops, rows_per_token, bytes, memory, milliseconds, speed,
      seconds, greedy_layers;
} esp_sweep_row;

typedef struct esp_sweep esp_sweep;

/* Runs what is not done yet. Leaves in the folder: cells/NAME.json, cells.csv (a line a cell), summary.csv (a line for
 * each method, calibration and ratio), sweep.json (settings and summary), sweep.gp with sweep.svg and .png (with
 * several modes sweep-MODE.gp ...). ESP_ERR_MISMATCH, saying what differs, if the folder holds a sweep with other
 * settings; other methods, ratios, seeds or calibration data are no such difference. ESP_ERR_INTERRUPTED if stopped. On
 * failure *sweep is NULL; freed by esp_sweep_free(). */
ESP_API esp_status esp_sweep_run(esp_sweep **sweep, const esp_sweep_settings *settings) ESP_MUST_CHECK;
ESP_API void esp_sweep_free(esp_sweep *sweep);

ESP_API int64_t esp_sweep_cell_count(const esp_sweep *sweep);
ESP_API const esp_sweep_cell *esp_sweep_cell_at(const esp_sweep *sweep, int64_t index);
ESP_API int esp_sweep_row_count(const esp_sweep *sweep);
ESP_API const esp_sweep_row *esp_sweep_row_at(const esp_sweep *sweep, int index);

/* A table by ratio, best first. */
ESP_API void esp_sweep_print(const esp_sweep *sweep, FILE *file);

/* sweep.json's object: a new reference; NULL if memory is short. */
struct json_t;
ESP_API struct json_t *esp_sweep_json(const esp_sweep *sweep);

#ifdef __cplusplus
}
#endif
#endif
