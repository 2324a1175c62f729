/* pretrain and finetune. */
#include "commands_internal.h"

#include <espalier/core.h>
#include <espalier/cost.h>
#include <espalier/train.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* What both commands hold. */
typedef struct training {
  const arguments *a;
  const char *action;
  esp_dataset *dataset;
  esp_run_config config;
  esp_model *model;
  loaded teacher; /* of --teacher */
  esp_checkpoint_info info;
  char resume_from[ESP_PATH_SIZE];
  bool resumes;
} training;

static void release(training *t) {
  esp_model_free(t->model);
  unload(&t->teacher);
  esp_dataset_close(t->dataset);
  esp_checkpoint_info_clear(&t->info);
}

/* --out, with --resume or without. A run that is there is not overwritten by accident; nothing is made yet. */
static esp_status check_folder(training *t) {
  const arguments *a = t->a;
  if (!a->out) return esp_fail(ESP_ERR_USAGE, "--out is missing: the folder for the run, e.g. --out runs/first");
  ESP_TRY(esp_folder_path(t->resume_from, a->out, ESP_LAST_CHECKPOINT));
  const bool exists = esp_file_exists(t->resume_from);
  if (exists && !a->resume && !a->overwrite)
    return esp_fail(
        ESP_ERR_USAGE,
        "%s already holds a run; --resume continues it, --overwrite starts it anew, or choose another --out", a->out);
  t->resumes = a->resume && exists;
  return ESP_OK;
}

static esp_status apply_seed(training *t) {
  long long seed;
  ESP_TRY(whole_number("--seed", t->a->seed, 0, 0x7fffffffffffffff, (long long)t->config.training.seed, &seed));
  t->config.training.seed = (uint64_t)seed;
  return ESP_OK;
}

/* The model's sizes that the data decide. */
static void take_sizes(esp_model_config *config, const esp_dataset_info *data) {
  if (!config->image_height) config->image_height = data->height;
  if (!config->image_width) config->image_width = data->width;
  if (!config->image_channels) config->image_channels = data->channels;
  if (!config->classes) config->classes = data->classes;
}

static void note_data(training *t) {
  const esp_dataset_info *data = esp_dataset_info_of(t->dataset);
  snprintf(t->info.data_name, sizeof t->info.data_name, "%s", data->name);
  snprintf(t->info.data_digest, sizeof t->info.data_digest, "%s", data->digest);
  esp_dataset_normalisation(t->dataset, &t->info.normalisation);
}

static esp_status start_history(training *t, const char *parent) {
  const esp_dataset_info *data = esp_dataset_info_of(t->dataset);
  ESP_TRY(add_history(&t->info, t->action, data->name, parent, ""));
  esp_history_entry *entry = &t->info.history[t->info.history_count - 1];
  snprintf(entry->frozen, sizeof entry->frozen, "%s", t->config.training.freeze);
  return ESP_OK;
}

/* Names the first setting in which two configs differ, as a line of their YAML. */
static esp_status fail_changed(const char *now, const char *then) {
  while (*now && *now == *then) now++, then++;
  while (now[-1] != '\n') now--, then--;
  now += strspn(now, " ");
  then += strspn(then, " ");
  return esp_fail(ESP_ERR_CONFIG,
                  "a resumed run keeps its settings, but now there is `%.*s` where it was started with `%.*s`; leave "
                  "the setting as it was, or start another run",
                  (int)strcspn(now, "\n"), now, (int)strcspn(then, "\n"), then);
}

static esp_status check_settings_kept(const training *t) {
  esp_run_config kept;
  char *now = NULL, *then = NULL;
  ESP_TRY(esp_run_config_parse(&kept, t->resume_from, t->info.run_config, NULL, 0));
  esp_status status = esp_run_config_save(&then, &kept);
  if (status == ESP_OK) status = esp_run_config_save(&now, &t->config);
  if (status == ESP_OK && strcmp(now, then) != 0) status = fail_changed(now, then);
  esp_free(now);
  esp_free(then);
  return status;
}

/* The settings of the command line, which for a resumed run may leave out the file. */
static esp_status read_settings_again(training *t) {
  const arguments *a = t->a;
  if (strcmp(t->action, "pretrain") == 0 && a->operand_count)
    ESP_TRY(esp_run_config_load(&t->config, a->operands[0], a->overrides, a->override_count));
  else
    ESP_TRY(esp_run_config_parse(&t->config, t->resume_from, t->info.run_config, a->overrides, a->override_count));
  take_sizes(&t->config.model, esp_dataset_info_of(t->dataset));
  return apply_seed(t);
}

/* Model and info as the interrupted run left them. Its settings are those it was started with. */
static esp_status resume(training *t) {
  ESP_TRY(esp_checkpoint_load(t->resume_from, &t->model, &t->info));
  if (!t->info.run_config)
    return esp_fail(ESP_ERR_MISMATCH, "%s does not say how its run was set up, so it cannot be resumed",
                    t->resume_from);
  const esp_dataset_info *data = esp_dataset_info_of(t->dataset);
  if (strcmp(t->info.data_digest, data->digest) != 0 || strcmp(t->info.data_name, data->name) != 0)
    return esp_fail(ESP_ERR_MISMATCH, "the run was started on %s (%s), but --data is %s (%s)", t->info.data_name,
                    t->info.data_digest, data->name, data->digest);
  ESP_TRY(read_settings_again(t));
  return check_settings_kept(t);
}

/* Makes the folder. What an older run left there would be taken for this one's. */
static esp_status open_folder(const training *t) {
  static const char *const leftovers[] = {ESP_LAST_CHECKPOINT, "best.h5", "results.json"};
  char path[ESP_PATH_SIZE];
  ESP_TRY(esp_folder_make(t->a->out));
  for (size_t i = 0; !t->resumes && i < sizeof leftovers / sizeof leftovers[0]; i++) {
    ESP_TRY(esp_folder_path(path, t->a->out, leftovers[i]));
    unlink(path);
  }
  return ESP_OK;
}

static esp_status write_config(training *t) {
  char path[ESP_PATH_SIZE];
  t->config.model = t->model->config;
  note_cost(&t->info, t->model);
  esp_free(t->info.run_config);
  ESP_TRY(esp_run_config_save(&t->info.run_config, &t->config));
  ESP_TRY(esp_folder_path(path, t->a->out, "config.yaml"));
  return esp_file_write(path, t->info.run_config);
}

/* Slots come in fours, so the factor that is asked for is not quite the one there is. */
static void print_capacity(const esp_run_config *config) {
  const esp_model_config *model = &config->model;
  const esp_router_config *router = &model->moe.router;
  int rows, columns;
  if (router->policy != ESP_ROUTER_TOKEN_CHOICE || !(router->capacity > 0)) return;
  esp_token_grid(model, &rows, &columns);
  const int batch = config->training.batch, own = model->moe.experts / model->moe.members;
  const int images = router->group_images > 0 && router->group_images < batch ? router->group_images : batch;
  const int64_t tokens = (int64_t)images * rows * columns;
  const int64_t slots = esp_expert_capacity(tokens, model->moe.top_k, router->capacity, own);
  fprintf(stderr, "capacity: an expert serves %lld of each %lld tokens, %.4g times an even share (%g asked for)\n",
          (long long)slots, (long long)tokens, (double)(slots * own) / (double)(tokens * model->moe.top_k),
          router->capacity);
}

static void print_start(const training *t) {
  if (t->a->quiet) return;
  esp_model_cost cost;
  esp_model_cost_of(t->model, &cost);
  const esp_dataset_info *data = esp_dataset_info_of(t->dataset);
  fprintf(stderr, "%s on %s: %lld training images, %lld test images, %d classes%s%s\n", t->action, data->name,
          (long long)data->count[ESP_TRAIN], (long long)data->count[ESP_TEST], data->classes, *data->note ? "; " : "",
          data->note);
  fprintf(stderr, "model: %.3f M parameters, %.3f M activated, %.1f MFLOP an image; %d thread%s, OpenBLAS kernel %s\n",
          1e-6 * (double)cost.parameters, 1e-6 * (double)cost.activated, 1e-6 * cost.flops, esp_threads(),
          esp_threads() == 1 ? "" : "s", esp_blas_kernel());
  print_capacity(&t->config);
  fprintf(stderr, "%s%s\n", t->resumes ? "resumed; settings: " : "settings: ", "config.yaml in the run");
  if (!t->resumes) fprintf(stderr, "---\n%s---\n", t->info.run_config);
}

static json_t *results_json(const training *t, const esp_training_result *r) {
  json_t *json = json_pack("{s:s, s:s, s:f, s:f, s:f, s:I, s:I, s:I, s:f, s:f, s:I, s:i, s:s, s:s, s:s}", "run", t->a->out,
                   "action", t->action, "accuracy", r->final.accuracy, "loss", r->final.loss, "best_accuracy",
                   r->best_accuracy, "best_step", (json_int_t)r->best_step, "step", (json_int_t)r->step, "steps",
                   (json_int_t)r->steps, "seconds", r->seconds, "images_per_second", r->images_per_second,
                   "step_memory_bytes", (json_int_t)r->step_memory, "threads", esp_threads(), "blas_kernel",
                   esp_blas_kernel(), "data", t->info.data_name, "digest", t->info.digest);
  if (t->teacher.model)
    json_object_set_new(json, "distillation",
                        json_pack("{s:s, s:f, s:f, s:b, s:f}", "teacher", t->teacher.info.digest, "weight",
                                  t->config.distillation.weight, "temperature", t->config.distillation.temperature,
                                  "squared", t->config.distillation.squared, "last_loss", r->distillation));
  return json;
}

static esp_status write_results(const training *t, const esp_training_result *result) {
  char path[ESP_PATH_SIZE];
  ESP_TRY(esp_folder_path(path, t->a->out, "results.json"));
  json_t *json = results_json(t, result);
  char *text = json ? json_dumps(json, JSON_INDENT(2)) : NULL;
  const esp_status status = text ? esp_file_write(path, text) : ESP_ERR_MEMORY;
  free(text);
  json_decref(json);
  return status;
}

/* Settings of distillation without a teacher are a mistake; a file may hold them from a run that had one. */
static esp_status load_teacher(training *t) {
  if (t->a->teacher) {
    ESP_TRY(load(&t->teacher, t->a->teacher));
    if (!is_same_file(t->teacher.path, t->resume_from)) return ESP_OK;
    return esp_fail(ESP_ERR_USAGE, "%s is the teacher; choose another --out", t->teacher.path);
  }
  for (size_t i = 0; i < t->a->override_count; i++)
    if (strncmp(t->a->overrides[i], "distillation.", 13) == 0)
      return esp_fail(ESP_ERR_USAGE, "--set %s does nothing without a teacher; give one as --teacher",
                      t->a->overrides[i]);
  return ESP_OK;
}

/* What can be known to be wrong before a folder is made. */
static esp_status check_run(const training *t) {
  const esp_dataset_info *data = esp_dataset_info_of(t->dataset);
  ESP_TRY(esp_check_data_fits(&t->model->config, t->dataset, true));
  ESP_TRY(esp_augmentation_check(&t->config.augmentation, data->height, data->width));
  if (t->teacher.model)
    ESP_TRY(esp_distillation_check(t->teacher.model, &t->teacher.info, &t->model->config, &t->info.normalisation));
  if (t->teacher.model && !(t->config.distillation.weight > 0))
    return esp_fail(ESP_ERR_USAGE, "--teacher would teach nothing: distillation.weight is %g",
                    t->config.distillation.weight);
  return esp_parameters_freeze(t->model->parameters, t->config.training.freeze);
}

static esp_status train(training *t, esp_training_result *result) {
  ESP_TRY(check_run(t));
  ESP_TRY(open_folder(t));
  ESP_TRY(write_config(t));
  print_start(t);
  const esp_training_job job = {.model = t->model,
                                .dataset = t->dataset,
                                .config = &t->config,
                                .folder = t->a->out,
                                .info = &t->info,
                                .teacher = t->teacher.model,
                                .teacher_info = t->teacher.model ? &t->teacher.info : NULL,
                                .resume_from = t->resumes ? t->resume_from : NULL,
                                .stop = watch_interrupts(),
                                .quiet = t->a->quiet};
  ESP_TRY(esp_train(&job, result));
  return write_results(t, result);
}

static int finish(training *t, esp_status status, const esp_training_result *result) {
  int code = EXIT_DONE;
  if (status != ESP_OK)
    code = report_failure(status);
  else if (t->a->json)
    code = print_json(results_json(t, result));
  else
    printf(
        "%s: test accuracy %.2f %% (best %.2f %% at step %lld), loss %.4f, %.0f s, %.0f images/s; checkpoint %s/last.h5\n",
        t->action, 100 * result->final.accuracy, 100 * result->best_accuracy, (long long)result->best_step,
        result->final.loss, result->seconds, result->images_per_second, t->a->out);
  release(t);
  return code;
}

static esp_status start_pretraining(training *t) {
  const char *path = t->a->operand_count ? t->a->operands[0] : NULL;
  ESP_TRY(esp_run_config_load(&t->config, path, t->a->overrides, t->a->override_count));
  ESP_TRY(apply_seed(t));
  take_sizes(&t->config.model, esp_dataset_info_of(t->dataset));
  ESP_TRY(esp_model_create(&t->model, &t->config.model, NULL, t->config.training.seed));
  note_data(t);
  return start_history(t, "");
}

static esp_status wants_new_head(const training *t, const esp_model *source, bool *anew) {
  const char *when = t->a->new_head ? t->a->new_head : "auto";
  const bool differs = source->config.classes != esp_dataset_info_of(t->dataset)->classes;
  if (strcmp(when, "auto") == 0)
    *anew = differs;
  else if (strcmp(when, "always") == 0)
    *anew = true;
  else if (strcmp(when, "never") == 0)
    *anew = false;
  else
    return esp_fail(ESP_ERR_USAGE, "--new-head is \"%s\"; it must be auto, always or never", when);
  return ESP_OK;
}

/* A model of the new settings with the old one's parameters, but for a head of other classes. */
static esp_status build_from(training *t, const loaded *source) {
  bool new_head = false;
  ESP_TRY(wants_new_head(t, source->model, &new_head));
  ESP_TRY(esp_check_data_fits(&source->model->config, t->dataset, false));
  if (new_head) t->config.model.classes = esp_dataset_info_of(t->dataset)->classes;
  esp_expert_layout *layouts = esp_alloc((size_t)source->model->config.blocks, sizeof *layouts);
  if (!layouts) return ESP_ERR_MEMORY;
  for (int i = 0; i < source->model->config.blocks; i++) layouts[i] = source->model->blocks[i].moe.layout;
  const bool same_blocks = t->config.model.blocks == source->model->config.blocks;
  esp_status status = same_blocks ? esp_model_create(&t->model, &t->config.model, layouts, t->config.training.seed)
                                  : esp_fail(ESP_ERR_MISMATCH, "finetuning cannot change model.blocks");
  esp_free(layouts);
  if (status == ESP_OK) status = esp_model_copy_parameters(t->model, source->model, new_head ? "head.*" : "");
  return status;
}

static esp_status start_finetuning(training *t) {
  loaded source;
  ESP_TRY(load(&source, t->a->operands[0]));
  esp_status status = ESP_OK;
  if (is_same_file(source.path, t->resume_from))
    status = esp_fail(ESP_ERR_USAGE, "%s is the model to be finetuned; choose another --out", source.path);
  if (status == ESP_OK)
    status =
        esp_run_config_parse(&t->config, source.path, source.info.run_config, t->a->overrides, t->a->override_count);
  if (status == ESP_OK) status = apply_seed(t);
  if (status == ESP_OK) status = build_from(t, &source);
  if (status == ESP_OK) {
    t->info = source.info;
    t->info.run_config = NULL;
    note_data(t);
    status = start_history(t, source.info.digest);
  }
  unload(&source);
  return status;
}

/* Both commands; `start` makes the model of a run that is not resumed. */
static int run_training(const arguments *a, const char *action, esp_status (*start)(training *)) {
  training t = {.a = a, .action = action};
  esp_training_result result = {.step = 0};
  esp_status status = open_data(&t.dataset, a);
  if (status == ESP_OK) status = check_folder(&t);
  if (status == ESP_OK) status = load_teacher(&t);
  if (status == ESP_OK) status = t.resumes ? resume(&t) : start(&t);
  if (status == ESP_OK) status = train(&t, &result);
  return finish(&t, status, &result);
}

int run_pretrain(const arguments *a) { return run_training(a, "pretrain", start_pretraining); }

int run_finetune(const arguments *a) { return run_training(a, "finetune", start_finetuning); }
