/* The settings of a training run: one YAML file. */
#ifndef ESPALIER_RUN_CONFIG_H
#define ESPALIER_RUN_CONFIG_H

#include <espalier/augment.h>
#include <espalier/blas.h>
#include <espalier/dataset.h>
#include <espalier/model_config.h>
#include <espalier/optimizer.h>
#include <espalier/row_pruning.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct esp_training_config {
  double epochs; /* may be a fraction */
  int batch;
  uint64_t seed;
  double label_smoothing;
  char freeze[256];          /* comma-separated patterns of parameter names that stay as they are */
  int log_every;             /* steps between two rows of the metrics */
  double evaluate_every;     /* epochs between two evaluations on the validation split */
  int evaluate_examples;     /* how many of its images those look at, always the same ones; 0: all */
  double alarm_share;        /* of an even one: below it an expert counts as unused; 0: no alarm */
  int alarm_evaluations;     /* unused in so many evaluations in a row: alarm */
  double checkpoint_minutes; /* at most so long between two checkpoints; 0: only after evaluations */
  int compression;           /* deflate level of checkpoints, 0..9 */
  esp_precision precision;   /* of the heavy products of a training step; evaluations are in fp32 */
} esp_training_config;

/* What becomes of the data. */
typedef struct esp_data_config {
  double validation; /* share of the training images that esp_dataset_hold_out() keeps for validation; 0: none */
} esp_data_config;

/* Knowledge distillation in a run that has a teacher; without one nothing here is used. */
typedef struct esp_distillation_config {
  double weight;      /* of KL(teacher || student) in the loss; MC-SMoE (arXiv 2310.01334): 0.2 */
  double temperature; /* both sides' logits are divided by it; the same paper: 2 */
  bool squared;       /* the KL is multiplied by temperature^2, as in arXiv 1503.02531; MC-SMoE's code does not */
} esp_distillation_config;

typedef struct esp_run_config {
  esp_data_config data;
  esp_model_config model;
  esp_optimizer_config optimizer;
  esp_augmentation augmentation;
  esp_training_config training;
  esp_distillation_config distillation;
  esp_compression_config compression; /* of a model whose experts are factored and being pruned; else not used */
} esp_run_config;

/* The defaults, overlaid by the YAML file `path` (NULL: none) and by overrides "section.key=value". Values are
 * checked; the model's sizes that come from the data may still be 0. ESP_ERR_CONFIG, too, if a key is set that does
 * nothing: among the file's own settings, or an override among all; and if a token's one gate is divided by itself.
 * model.moe.router.renormalise is false unless set where top_k is 1 or experts choose. */
ESP_API esp_status esp_run_config_load(esp_run_config *config, const char *path, const char *const *overrides,
                                       size_t override_count) ESP_MUST_CHECK;

/* The same from YAML text that was checked when it was written: a checkpoint's, or none (NULL). `name` is how messages
 * call it. Only overrides that do nothing are refused. */
ESP_API esp_status esp_run_config_parse(esp_run_config *config, const char *name, const char *text,
                                        const char *const *overrides, size_t override_count) ESP_MUST_CHECK;

/* The same from a checkpoint's text, as what its training did: of a training whose settings name no data.validation (an
 * older program wrote them, or there are none: NULL) it is not known that anything was held out, so that it is 0. */
ESP_API esp_status esp_run_config_recall(esp_run_config *config, const char *name, const char *text) ESP_MUST_CHECK;

/* *config, which stands for a trained model's settings, overlaid by the YAML file `path` (NULL: none) and by overrides.
 * ESP_ERR_CONFIG, too, if a key of either does nothing among all settings there are then. Left alone on failure. */
ESP_API esp_status esp_run_config_overlay(esp_run_config *config, const char *path, const char *const *overrides,
                                          size_t override_count) ESP_MUST_CHECK;

/* ESP_ERR_CONFIG if this machine cannot train so: its processor lacks the precision. */
ESP_API esp_status esp_training_check(const esp_training_config *config) ESP_MUST_CHECK;

/* Writes the settings as YAML text from esp_alloc(). */
ESP_API esp_status esp_run_config_save(char **text, const esp_run_config *config) ESP_MUST_CHECK;

/* The same without the keys that do nothing, so that esp_run_config_load() takes it: a run's config.yaml. */
ESP_API esp_status esp_run_config_save_used(char **text, esp_run_config *config) ESP_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
