#include <espalier/model_schema.h>
#include <espalier/optimizer_schema.h>
#include <espalier/run_config.h>
#include <espalier/yaml.h>

#include "unused_settings_internal.h"
#include <string.h>

static const cyaml_schema_field_t augmentation_fields[] = {
    CYAML_FIELD_INT("crop_padding", CYAML_FLAG_DEFAULT, esp_augmentation, crop_padding),
    CYAML_FIELD_BOOL("reflect", CYAML_FLAG_DEFAULT, esp_augmentation, reflect),
    CYAML_FIELD_BOOL("flip", CYAML_FLAG_DEFAULT, esp_augmentation, flip),
    CYAML_FIELD_BOOL("alternate", CYAML_FLAG_DEFAULT, esp_augmentation, alternate),
    CYAML_FIELD_INT("cutout", CYAML_FLAG_DEFAULT, esp_augmentation, cutout),
    CYAML_FIELD_FLOAT("mixup", CYAML_FLAG_DEFAULT, esp_augmentation, mixup),
    CYAML_FIELD_END};

static const cyaml_strval_t precision_names[] = {{"fp32", ESP_FP32}, {"bf16", ESP_BF16}};

static const cyaml_schema_field_t training_fields[] = {
    CYAML_FIELD_FLOAT("epochs", CYAML_FLAG_DEFAULT, esp_training_config, epochs),
    CYAML_FIELD_INT("batch", CYAML_FLAG_DEFAULT, esp_training_config, batch),
    CYAML_FIELD_UINT("seed", CYAML_FLAG_DEFAULT, esp_training_config, seed),
    CYAML_FIELD_FLOAT("label_smoothing", CYAML_FLAG_DEFAULT, esp_training_config, label_smoothing),
    CYAML_FIELD_STRING("freeze", CYAML_FLAG_DEFAULT, esp_training_config, freeze, 0),
    CYAML_FIELD_INT("log_every", CYAML_FLAG_DEFAULT, esp_training_config, log_every),
    CYAML_FIELD_FLOAT("evaluate_every", CYAML_FLAG_DEFAULT, esp_training_config, evaluate_every),
    CYAML_FIELD_INT("evaluate_examples", CYAML_FLAG_DEFAULT, esp_training_config, evaluate_examples),
    CYAML_FIELD_FLOAT("alarm_share", CYAML_FLAG_DEFAULT, esp_training_config, alarm_share),
    CYAML_FIELD_INT("alarm_evaluations", CYAML_FLAG_DEFAULT, esp_training_config, alarm_evaluations),
    CYAML_FIELD_FLOAT("checkpoint_minutes", CYAML_FLAG_DEFAULT, esp_training_config, checkpoint_minutes),
    CYAML_FIELD_INT("compression", CYAML_FLAG_DEFAULT, esp_training_config, compression),
    CYAML_FIELD_ENUM("precision", CYAML_FLAG_STRICT, esp_training_config, precision, precision_names,
                     CYAML_ARRAY_LEN(precision_names)),
    CYAML_FIELD_END};

static const cyaml_schema_field_t data_fields[] = {
    CYAML_FIELD_FLOAT("validation", CYAML_FLAG_DEFAULT, esp_data_config, validation), CYAML_FIELD_END};

static const cyaml_schema_field_t distillation_fields[] = {
    CYAML_FIELD_FLOAT("weight", CYAML_FLAG_DEFAULT, esp_distillation_config, weight),
    CYAML_FIELD_FLOAT("temperature", CYAML_FLAG_DEFAULT, esp_distillation_config, temperature),
    CYAML_FIELD_BOOL("squared", CYAML_FLAG_DEFAULT, esp_distillation_config, squared), CYAML_FIELD_END};

static const cyaml_schema_field_t compression_fields[] = {
    CYAML_FIELD_INT("rank", CYAML_FLAG_DEFAULT, esp_compression_config, rank),
    CYAML_FIELD_FLOAT("keep", CYAML_FLAG_DEFAULT, esp_compression_config, keep),
    CYAML_FIELD_FLOAT("start", CYAML_FLAG_DEFAULT, esp_compression_config, start),
    CYAML_FIELD_FLOAT("finish", CYAML_FLAG_DEFAULT, esp_compression_config, finish),
    CYAML_FIELD_FLOAT("beta", CYAML_FLAG_DEFAULT, esp_compression_config, beta),
    CYAML_FIELD_STRING("exclude", CYAML_FLAG_DEFAULT, esp_compression_config, exclude, 0),
    CYAML_FIELD_END};

static const cyaml_schema_field_t run_fields[] = {
    CYAML_FIELD_MAPPING("data", CYAML_FLAG_DEFAULT, esp_run_config, data, data_fields),
    CYAML_FIELD_MAPPING("model", CYAML_FLAG_DEFAULT, esp_run_config, model, esp_model_fields),
    CYAML_FIELD_MAPPING("optimizer", CYAML_FLAG_DEFAULT, esp_run_config, optimizer, esp_optimizer_fields),
    CYAML_FIELD_MAPPING("augmentation", CYAML_FLAG_DEFAULT, esp_run_config, augmentation, augmentation_fields),
    CYAML_FIELD_MAPPING("training", CYAML_FLAG_DEFAULT, esp_run_config, training, training_fields),
    CYAML_FIELD_MAPPING("distillation", CYAML_FLAG_DEFAULT, esp_run_config, distillation, distillation_fields),
    CYAML_FIELD_MAPPING("compression", CYAML_FLAG_DEFAULT, esp_run_config, compression, compression_fields),
    CYAML_FIELD_END};

static const cyaml_schema_value_t run_schema = {CYAML_VALUE_MAPPING(CYAML_FLAG_POINTER, esp_run_config, run_fields)};

static esp_run_config defaults(void) {
  return (esp_run_config){.data = {.validation = ESP_VALIDATION_SHARE},
                          .model = esp_model_defaults,
                          .optimizer = esp_optimizer_defaults,
                          .training = {.epochs = 10,
                                       .batch = 128,
                                       .seed = 1,
                                       .log_every = 50,
                                       .evaluate_every = 1,
                                       .alarm_share = 0.1,
                                       .alarm_evaluations = 3,
                                       .checkpoint_minutes = 5,
                                       .compression = 1},
                          .distillation = {.weight = 0.2, .temperature = 2},
                          .compression = esp_compression_defaults};
}

static esp_status check(const esp_run_config *config) {
  const esp_training_config *t = &config->training;
  const esp_distillation_config *d = &config->distillation;
  ESP_TRY(esp_yaml_check_single(config, &run_schema));
  if (!(config->data.validation >= 0 && config->data.validation < 1))
    return esp_fail(ESP_ERR_CONFIG, "data.validation is %g; it must lie in [0, 1)", config->data.validation);
  ESP_TRY(esp_optimizer_config_check(&config->optimizer));
  ESP_TRY(esp_compression_config_check(&config->compression));
  if (config->model.norm == ESP_NORM_BATCH && t->batch < 2)
    return esp_fail(
        ESP_ERR_CONFIG,
        "training.batch is %d, but model.norm is batch: over one image the last norm has nothing to mean, its "
        "output is its bias whatever the image; use at least 2, or model.norm layer",
        t->batch);
  const struct {
    const char *key;
    double value, least, most;
  } ranges[] = {{"training.epochs", t->epochs, 0, 1e6},
                {"training.batch", t->batch, 1, 65536},
                {"training.label_smoothing", t->label_smoothing, 0, 0.999},
                {"training.log_every", t->log_every, 1, 1e9},
                {"training.evaluate_every", t->evaluate_every, 1e-3, 1e6},
                {"training.evaluate_examples", t->evaluate_examples, 0, 1e9},
                {"training.alarm_share", t->alarm_share, 0, 1},
                {"training.alarm_evaluations", t->alarm_evaluations, 1, 1e6},
                {"training.checkpoint_minutes", t->checkpoint_minutes, 0, 1e6},
                {"training.compression", t->compression, 0, 9},
                {"distillation.weight", d->weight, 0, 1e6},
                {"distillation.temperature", d->temperature, 1e-3, 1e6}};
  for (size_t i = 0; i < sizeof ranges / sizeof ranges[0]; i++)
    if (!(ranges[i].value >= ranges[i].least && ranges[i].value <= ranges[i].most))
      return esp_fail(ESP_ERR_CONFIG, "%s is %g; it must lie in [%g, %g]", ranges[i].key, ranges[i].value,
                      ranges[i].least, ranges[i].most);
  return ESP_OK;
}

/* ---- Gates that say nothing ---- */

static esp_status refuse_constant_gates(const esp_model_config *model) {
  if (!esp_has_mixture(model) || !esp_gates_are_constant(&model->moe)) return ESP_OK;
  return esp_fail(ESP_ERR_CONFIG,
                  "model.moe.top_k is 1 and model.moe.router.%s true: the one gate of a token is then 1 whatever the "
                  "router says, so that the task never trains it; set that to false",
                  model->moe.router.renormalise ? "renormalise" : "score_selected_only");
}

static esp_status note_renormalise(void *is_set, const char *key) {
  if (strcmp(key, "model.moe.router.renormalise") == 0) *(bool *)is_set = true;
  return ESP_OK;
}

/* Unless it is set, renormalise is what the number of gates suggests: with one expert a token, or any number of them,
 * there is nothing to divide by. */
static esp_status settle_renormalise(esp_run_config *config, const char *path, const char *const *overrides,
                                     size_t count) {
  esp_moe_config *moe = &config->model.moe;
  bool is_set = false;
  if (path) ESP_TRY(esp_yaml_visit_file(path, note_renormalise, &is_set));
  for (size_t i = 0; i < count; i++) ESP_TRY(esp_yaml_visit_override(overrides[i], note_renormalise, &is_set));
  if (!is_set && (moe->top_k == 1 || moe->router.policy == ESP_ROUTER_EXPERT_CHOICE)) moe->router.renormalise = false;
  return ESP_OK;
}

/* ---- Loading ---- */

static esp_status load_file(esp_run_config *config, const char *path, const char *const *overrides, size_t count) {
  const esp_run_config base = defaults();
  const esp_yaml_options options = {sizeof *config, &run_schema, &base, overrides, count};
  ESP_TRY(esp_yaml_load_file(config, &options, path));
  return check(config);
}

esp_status esp_run_config_load(esp_run_config *config, const char *path, const char *const *overrides,
                               size_t override_count) {
  if (path) {
    ESP_TRY(load_file(config, path, NULL, 0));
    ESP_TRY(esp_refuse_unused_keys(config, path));
    ESP_TRY(load_file(config, path, overrides, override_count));
    ESP_TRY(esp_refuse_unused_overrides(config, overrides, override_count));
  } else ESP_TRY(esp_run_config_parse(config, "the defaults", NULL, overrides, override_count));
  ESP_TRY(settle_renormalise(config, path, overrides, override_count));
  return refuse_constant_gates(&config->model);
}

esp_status esp_run_config_parse(esp_run_config *config, const char *name, const char *text,
                                const char *const *overrides, size_t override_count) {
  const esp_run_config base = defaults();
  const esp_yaml_options options = {sizeof *config, &run_schema, &base, overrides, override_count};
  ESP_TRY(esp_yaml_load(config, &options, name, text));
  ESP_TRY(check(config));
  return esp_refuse_unused_overrides(config, overrides, override_count);
}

static esp_status overlay(esp_run_config *config, const char *path, const char *const *overrides, size_t count) {
  const esp_run_config base = *config;
  const esp_yaml_options options = {sizeof *config, &run_schema, &base, overrides, count};
  if (path) ESP_TRY(esp_yaml_load_file(config, &options, path));
  else ESP_TRY(esp_yaml_load(config, &options, "the settings", NULL));
  return check(config);
}

esp_status esp_run_config_overlay(esp_run_config *config, const char *path, const char *const *overrides,
                                  size_t override_count) {
  esp_run_config made = *config;
  if (path) {
    ESP_TRY(overlay(&made, path, NULL, 0));
    ESP_TRY(esp_refuse_unused_keys(&made, path));
  }
  ESP_TRY(overlay(&made, NULL, overrides, override_count));
  ESP_TRY(esp_refuse_unused_overrides(&made, overrides, override_count));
  *config = made;
  return ESP_OK;
}

static esp_status note_validation(void *is_set, const char *key) {
  if (strcmp(key, "data.validation") == 0) *(bool *)is_set = true;
  return ESP_OK;
}

esp_status esp_run_config_recall(esp_run_config *config, const char *name, const char *text) {
  bool is_set = false;
  ESP_TRY(esp_run_config_parse(config, name, text, NULL, 0));
  if (text) ESP_TRY(esp_yaml_visit_keys("", text, note_validation, &is_set));
  if (!is_set) config->data.validation = 0;
  return ESP_OK;
}

esp_status esp_training_check(const esp_training_config *config) {
  const esp_status status = esp_precision_check(config->precision);
  return status == ESP_OK ? ESP_OK : esp_fail_in(status, "training.precision");
}

esp_status esp_run_config_save(char **text, const esp_run_config *config) {
  return esp_yaml_save(text, config, &run_schema);
}

esp_status esp_run_config_save_used(char **text, esp_run_config *config) {
  return esp_yaml_save_some(text, config, &run_schema, esp_is_used, config);
}
