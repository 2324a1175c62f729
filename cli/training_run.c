#include "training_internal.h"

#include <espalier/core.h>
#include <espalier/cost.h>
#include <espalier/output_file.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

esp_status training_place(training *t, const char *folder, bool resume, bool overwrite) {
  if (!folder) return esp_fail(ESP_ERR_USAGE, "--out is missing: the folder for the run, e.g. --out runs/first");
  t->folder = folder;
  ESP_TRY(esp_folder_path(t->resume_from, folder, ESP_LAST_CHECKPOINT));
  const bool exists = esp_file_exists(t->resume_from);
  if (exists && !resume && !overwrite)
    return esp_fail(
        ESP_ERR_USAGE,
        "%s already holds a run; --resume continues it, --overwrite starts it anew, or choose another --out", folder);
  t->resumes = resume && exists;
  if (!exists || stat(t->resume_from, &t->found) != 0) t->found = (struct stat){0};
  return ESP_OK;
}

/* Another process may have written there before we took the folder. */
static esp_status check_unchanged(const training *t) {
  struct stat now;
  if (stat(t->resume_from, &now) != 0) now = (struct stat){0};
  if (now.st_ino == t->found.st_ino && now.st_mtim.tv_sec == t->found.st_mtim.tv_sec &&
      now.st_mtim.tv_nsec == t->found.st_mtim.tv_nsec)
    return ESP_OK;
  return esp_fail(ESP_ERR_BUSY, "another process wrote %s just now; look at it, then try again", t->resume_from);
}

void training_take_sizes(training *t) { esp_run_take_sizes(&t->config, t->dataset); }

esp_status training_split_data(training *t) { return esp_dataset_hold_out(t->dataset, t->config.data.validation); }

esp_status training_create(training *t) {
  ESP_TRY(training_split_data(t));
  return esp_run_create(&t->trained, &t->config, t->dataset);
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

/* A run that is lengthened differs in its epochs, and `kept` then takes these. */
static esp_status take_length(training *t, esp_run_config *kept) {
  const double now = t->config.training.epochs, then = kept->training.epochs;
  const esp_progress *p = &t->trained.info.progress;
  if (now < then)
    return esp_fail(ESP_ERR_CONFIG,
                    "training.epochs is %g, but the run was started for %g and has done %.4g; a run can be lengthened, "
                    "but not shortened",
                    now, then, then * (double)p->step / (double)p->steps);
  if (now > then) t->epochs_before = then;
  kept->training.epochs = now;
  return ESP_OK;
}

esp_status training_check_settings_kept(training *t) {
  esp_run_config kept;
  char *now = NULL, *then = NULL;
  ESP_TRY(esp_run_config_recall(&kept, t->resume_from, t->trained.info.run_config));
  if (t->recipe && t->recipe->lengthens) ESP_TRY(take_length(t, &kept));
  esp_status status = esp_run_config_save(&then, &kept);
  if (status == ESP_OK) status = esp_run_config_save(&now, &t->config);
  if (status == ESP_OK && strcmp(now, then) != 0) status = fail_changed(now, then);
  esp_free(now);
  esp_free(then);
  return status;
}

esp_status training_load(training *t) {
  ESP_TRY(esp_trained_load(&t->trained, t->resume_from));
  if (!t->trained.info.run_config)
    return esp_fail(ESP_ERR_MISMATCH, "%s does not say how its run was set up, so it cannot be resumed",
                    t->resume_from);
  const esp_dataset_info *data = esp_dataset_info_of(t->dataset);
  if (strcmp(t->trained.info.data_digest, data->digest) == 0 && strcmp(t->trained.info.data_name, data->name) == 0)
    return ESP_OK;
  return esp_fail(ESP_ERR_MISMATCH, "the run was started on %s (%s), but --data is %s (%s)", t->trained.info.data_name,
                  t->trained.info.data_digest, data->name, data->digest);
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

/* A line each. What is wrong is told when the training starts. */
static void print_remarks(const esp_dataset *dataset) {
  char remarks[1024], *rest;
  if (esp_dataset_check(dataset, remarks, sizeof remarks) != ESP_OK) return;
  for (char *line = strtok_r(remarks, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest))
    fprintf(stderr, "warning: %s\n", line);
}

/* The learning rate is a function of the share of the run that is done, of which more is left now. */
static void print_length(const training *t) {
  const esp_optimizer_config *o = &t->config.optimizer;
  const int64_t done = t->trained.info.progress.step, before = t->trained.info.progress.steps;
  const int64_t steps = esp_run_steps(&t->config.training, t->dataset);
  if (!(t->epochs_before > 0)) return;
  fprintf(
      stderr,
      "lengthened from %g to %g epochs, %lld to %lld steps, of which %lld are done; the learning rate is that of a run "
      "of %g epochs from here on: %.3g for the next step, where it was %.3g for the last\n",
      t->epochs_before, t->config.training.epochs, (long long)before, (long long)steps, (long long)done,
      t->config.training.epochs, o->learning_rate * esp_schedule_multiplier(&o->schedule, done, steps),
      o->learning_rate * esp_schedule_multiplier(&o->schedule, done - 1, before));
}

static void print_start(const training *t) {
  if (t->quiet) return;
  esp_model_cost cost;
  esp_model_cost_of(t->trained.model, &cost);
  const esp_dataset_info *data = esp_dataset_info_of(t->dataset);
  fprintf(stderr, "%s on %s: %lld training, %lld validation and %lld test images, %d classes%s%s\n", t->action,
          data->name, (long long)data->count[ESP_TRAIN], (long long)data->count[ESP_VALIDATION],
          (long long)data->count[ESP_TEST], data->classes, *data->note ? "; " : "", data->note);
  print_remarks(t->dataset);
  if (t->replaced_head)
    fprintf(stderr, "new head: for %d classes, where the model had one for %d; its weights begin anew\n",
            t->trained.model->config.classes, t->replaced_head);
  fprintf(stderr, "model: %.3f M parameters, %.3f M activated", 1e-6 * (double)cost.parameters,
          1e-6 * (double)cost.activated);
  if (cost.activated_selected < cost.activated)
    fprintf(stderr, " (%.3f M counting W_gate by selected neurons only)", 1e-6 * (double)cost.activated_selected);
  fprintf(stderr, ", %.1f MFLOP an image", 1e-6 * cost.flops);
  if (cost.flops_selected < cost.flops) fprintf(stderr, " (%.1f if sparse)", 1e-6 * cost.flops_selected);
  fprintf(stderr, "; %d thread%s, own kernels %s, OpenBLAS kernel %s\n", esp_threads(), esp_threads() == 1 ? "" : "s",
          esp_gemm_kernel(), esp_blas_kernel());
  print_capacity(&t->config);
  print_length(t);
  if (t->terse) return;
  fprintf(stderr, "%s%s\n", t->resumes ? "resumed; settings: " : "settings: ", "config.yaml in the run");
  if (!t->resumes) fprintf(stderr, "---\n%s---\n", t->trained.info.run_config);
}

static esp_run run_of(const training *t) {
  return (esp_run){
      .dataset = t->dataset, .folder = t->folder, .teacher = t->teacher.model ? &t->teacher : NULL, .quiet = t->quiet};
}

json_t *training_results_json(const training *t, const esp_training_result *result) {
  const esp_run run = run_of(t);
  json_t *json = esp_run_results_json(&run, &t->config, &t->trained, result);
  if (json && t->more) json_object_update(json, t->more);
  return json;
}

/* Those of the shorter run. */
static esp_status delete_results(const char *folder) {
  char path[ESP_PATH_SIZE];
  ESP_TRY(esp_folder_path(path, folder, "results.json"));
  return esp_file_delete(path);
}

esp_status training_run(training *t, esp_training_result *result) {
  ESP_TRY(esp_run_check(&t->trained, &t->config, t->dataset, t->teacher.model ? &t->teacher : NULL));
  ESP_TRY(esp_run_open_folder(&t->lock, t->folder, t->action, true));
  ESP_TRY(check_unchanged(t));
  if (!t->resumes) ESP_TRY(esp_run_remove_older(t->folder));
  tell_lock(t->lock);
  if (t->epochs_before > 0) ESP_TRY(delete_results(t->folder));
  t->config.model = t->trained.model->config;
  ESP_TRY(esp_run_write_config(t->folder, &t->config, &t->trained.info));
  print_start(t);
  const esp_training_job job = {.model = t->trained.model,
                                .dataset = t->dataset,
                                .config = &t->config,
                                .folder = t->folder,
                                .info = &t->trained.info,
                                .teacher = t->teacher.model,
                                .teacher_info = t->teacher.model ? &t->teacher.info : NULL,
                                .resume_from = t->resumes ? t->resume_from : NULL,
                                .stop = watch_interrupts(),
                                .quiet = t->quiet};
  const recipe *r = t->recipe;
  ESP_TRY(r && r->work ? r->work(t, result) : esp_train(&job, result));
  if (r && r->complete) ESP_TRY(r->complete(t, result));
  return esp_json_write(t->folder, "results.json", training_results_json(t, result), ESP_JSON_DIGITS);
}

void training_release(training *t) {
  esp_folder_lock_free(t->lock);
  t->lock = NULL;
  esp_trained_clear(&t->trained);
  esp_trained_clear(&t->teacher);
  json_decref(t->more);
}
