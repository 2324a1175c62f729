/* How a command that trains once starts, goes on and ends: pretrain, finetune, compress. */
#include "training_internal.h"

#include <espalier/core.h>

#include <stdio.h>
#include <string.h>

esp_status apply_seed(training *t, const arguments *a) {
  long long seed;
  ESP_TRY(whole_number("--seed", a->seed, 0, 0x7fffffffffffffff, (long long)t->config.training.seed, &seed));
  t->config.training.seed = (uint64_t)seed;
  return ESP_OK;
}

esp_status training_settle(training *t, const arguments *a, const char *name, const char *text) {
  ESP_TRY(esp_run_config_parse(&t->config, name, text, NULL, 0));
  return esp_run_config_overlay(&t->config, a->config, a->overrides, a->override_count);
}

/* The settings of the command line, which for a resumed run may leave out the file. */
static esp_status read_settings_again(training *t, const arguments *a) {
  if (strcmp(t->action, "pretrain") == 0 && a->operand_count)
    ESP_TRY(esp_run_config_load(&t->config, a->operands[0], a->overrides, a->override_count));
  else ESP_TRY(training_settle(t, a, t->resume_from, t->trained.info.run_config));
  training_take_sizes(t);
  return apply_seed(t, a);
}

/* The first operand of a run that began from a model: that model or, where it is gone, the run itself. */
static esp_status check_origin(const training *t, const arguments *a) {
  esp_trained origin;
  if (strcmp(t->action, "pretrain") == 0) return ESP_OK;
  const char *expected = t->trained.info.history[t->trained.info.history_count - 1].parent;
  const esp_status status = esp_trained_load(&origin, a->operands[0]);
  if (status == ESP_ERR_NOT_FOUND) return advise("if the model it came from is gone, name the run itself", status);
  ESP_TRY(status);
  const bool fits = is_same_file(origin.path, t->resume_from) || strcmp(origin.info.digest, expected) == 0;
  if (!fits)
    (void)esp_fail(ESP_ERR_MISMATCH,
                   "the run in %s was started from the model %s, but %s is the model %s; name the one it came from, or "
                   "the run itself",
                   t->folder, expected, origin.path, origin.info.digest);
  esp_trained_clear(&origin);
  return fits ? ESP_OK : ESP_ERR_MISMATCH;
}

/* Model and info as the interrupted run left them. Its settings are those it was started with. */
static esp_status resume(training *t, const arguments *a) {
  ESP_TRY(refuse_options(a, "--new-head", "a resumed run has its head already"));
  ESP_TRY(training_load(t));
  ESP_TRY(check_origin(t, a));
  ESP_TRY(read_settings_again(t, a));
  ESP_TRY(training_split_data(t));
  return training_check_settings_kept(t);
}

static esp_evaluation recall_evaluation(const json_t *results, const char *prefix) {
  char accuracy[64], loss[64], examples[64];
  snprintf(accuracy, sizeof accuracy, "%saccuracy", prefix);
  snprintf(loss, sizeof loss, "%sloss", prefix);
  snprintf(examples, sizeof examples, "%sexamples", prefix);
  return (esp_evaluation){.accuracy = json_number_value(json_object_get(results, accuracy)),
                          .loss = json_number_value(json_object_get(results, loss)),
                          .examples = json_integer_value(json_object_get(results, examples))};
}

/* The process ended between the checkpoint and its results. */
static esp_status complete_again(training *t, esp_training_result *result) {
  json_decref(t->more);
  t->more = NULL;
  result->step = result->steps = t->trained.info.progress.step;
  if (!t->recipe->complete)
    return esp_fail(ESP_ERR_MISMATCH, "%s is finished, but its results.json does not hold its results", t->folder);
  ESP_TRY(t->recipe->complete(t, result));
  return esp_json_write(t->folder, "results.json", training_results_json(t, result), ESP_JSON_DIGITS);
}

/* A run that was completed before: its results are taken from its folder. */
static esp_status recall(training *t, esp_training_result *result) {
  char path[ESP_PATH_SIZE];
  ESP_TRY(esp_folder_path(path, t->folder, "results.json"));
  t->more = json_load_file(path, 0, NULL); /* all of it takes the place of what training_results_json() says */
  const char *digest = json_string_value(json_object_get(t->more, "digest"));
  if (!digest || strcmp(digest, t->trained.info.digest) != 0) return complete_again(t, result);
  *result =
      (esp_training_result){.final = recall_evaluation(t->more, ""),
                            .validation = recall_evaluation(t->more, "validation_"),
                            .best = recall_evaluation(t->more, "best_"),
                            .best_validation = recall_evaluation(t->more, "best_validation_"),
                            .best_step = json_integer_value(json_object_get(t->more, "best_step")),
                            .seconds = json_number_value(json_object_get(t->more, "seconds")),
                            .images_per_second = json_number_value(json_object_get(t->more, "images_per_second"))};
  if (!t->quiet) fprintf(stderr, "%s is finished: there is nothing to resume\n", esp_shown(t->folder));
  return ESP_OK;
}

/* What is reported is of the test split; what chose best.h5 is beside it. */
static void print_end(const training *t, const esp_training_result *r) {
  printf("%s: test accuracy %.2f %%, loss %.4f (%lld images)", t->action, 100 * r->final.accuracy, r->final.loss,
         (long long)r->final.examples);
  if (r->validation.examples)
    printf("; validation accuracy %.2f %% (%lld images)", 100 * r->validation.accuracy,
           (long long)r->validation.examples);
  if (r->best_step != r->step)
    printf("; best.h5, of step %lld: validation %.2f %%, test %.2f %%", (long long)r->best_step,
           100 * r->best_validation.accuracy, 100 * r->best.accuracy);
  printf("; %.0f s, %.0f images/s; checkpoint %s/last.h5\n", r->seconds, r->images_per_second, esp_shown(t->folder));
}

static int finish(training *t, const arguments *a, esp_status status, const esp_training_result *result) {
  int code = EXIT_DONE;
  if (status != ESP_OK) code = report_failure(status);
  else if (a->json) code = print_json(training_results_json(t, result));
  else print_end(t, result);
  training_release(t);
  esp_dataset_close(t->dataset);
  return code;
}

static esp_status read_head(const arguments *a, esp_head_choice *head) {
  const char *when = a->new_head ? a->new_head : "auto";
  *head = ESP_HEAD_AS_CLASSES;
  if (strcmp(when, "auto") == 0) return ESP_OK;
  *head = strcmp(when, "always") == 0 ? ESP_HEAD_NEW : ESP_HEAD_KEPT;
  if (*head == ESP_HEAD_NEW || strcmp(when, "never") == 0) return ESP_OK;
  return esp_fail(ESP_ERR_USAGE, "--new-head is \"%s\"; it must be auto, always or never", when);
}

esp_status start_from_model(training *t, const arguments *a,
                            esp_status (*settle)(training *t, const arguments *a, const esp_trained *source)) {
  esp_trained source;
  ESP_TRY(esp_trained_load(&source, a->operands[0]));
  esp_run run = {.dataset = t->dataset, .from = &source};
  esp_status status = ESP_OK;
  if (is_same_file(source.path, t->resume_from))
    status = esp_fail(ESP_ERR_USAGE, "%s is the model to be finetuned; choose another --out", source.path);
  if (status == ESP_OK) status = settle(t, a, &source);
  if (status == ESP_OK) status = apply_seed(t, a);
  if (status == ESP_OK) status = read_head(a, &run.head);
  if (status == ESP_OK) status = esp_check_data_fits(&source.model->config, t->dataset, false);
  if (status == ESP_OK) status = training_split_data(t); /* before images are normalised by what is left for training */
  if (status == ESP_OK) status = esp_run_create_from(&t->trained, &t->config, &run, t->action);
  const int classes = source.model ? source.model->config.classes : 0;
  if (status == ESP_OK && (run.head == ESP_HEAD_NEW || t->trained.model->config.classes != classes))
    t->replaced_head = classes;
  esp_trained_clear(&source);
  return status;
}

/* Settings of distillation without a teacher are a mistake; a file may hold them from a run that had one. */
static esp_status load_teacher(training *t, const arguments *a) {
  if (a->teacher) {
    ESP_TRY(esp_trained_load(&t->teacher, a->teacher));
    if (!is_same_file(t->teacher.path, t->resume_from)) return ESP_OK;
    return esp_fail(ESP_ERR_USAGE, "%s is the teacher; choose another --out", t->teacher.path);
  }
  for (size_t i = 0; i < a->override_count; i++)
    if (strncmp(a->overrides[i], "distillation.", 13) == 0)
      return esp_fail(ESP_ERR_USAGE, "--set %s does nothing without a teacher; give one as --teacher", a->overrides[i]);
  return ESP_OK;
}

/* A folder that is not there, or holds no run, is a mistyped name; one whose run wrote no checkpoint yet begins
 * again. */
static esp_status check_resumable(const training *t, const arguments *a) {
  char settings[ESP_PATH_SIZE];
  if (!a->resume || t->resumes) return ESP_OK;
  ESP_TRY(esp_folder_path(settings, t->folder, "config.yaml"));
  if (!esp_file_exists(settings))
    return esp_fail(
        ESP_ERR_USAGE,
        "--resume: %s holds no run to go on with; check the name, or leave out --resume to start a run there",
        t->folder);
  if (!t->quiet)
    fprintf(stderr, "the run in %s was stopped before its first checkpoint: it starts from step 0\n", t->folder);
  return ESP_OK;
}

/* Whether its last step is done and its results are those of its last checkpoint. */
bool training_has_ended(const training *t) {
  char path[ESP_PATH_SIZE];
  if (t->trained.info.progress.step < t->trained.info.progress.steps || t->epochs_before > 0) return false;
  if (esp_folder_path(path, t->folder, "results.json") != ESP_OK) return false;
  json_t *results = json_load_file(path, 0, NULL);
  const char *digest = json_string_value(json_object_get(results, "digest"));
  const bool same = digest && strcmp(digest, t->trained.info.digest) == 0;
  json_decref(results);
  return same;
}

int run_training(const arguments *a, const recipe *r) {
  training t = {.arguments = a, .recipe = r, .action = r->action, .quiet = a->quiet};
  esp_training_result result = {.step = 0};
  (void)watch_interrupts(); /* also while data are read: then the run ends after its first step */
  esp_status status = open_data(&t.dataset, a);
  if (status == ESP_OK) status = training_place(&t, a->out, a->resume, a->overwrite);
  if (status == ESP_OK) status = check_resumable(&t, a);
  if (status == ESP_OK) status = load_teacher(&t, a);
  if (status == ESP_OK) status = t.resumes ? resume(&t, a) : r->start(&t, a);
  const bool done = status == ESP_OK && t.resumes && r->finished && r->finished(&t);
  if (status == ESP_OK) status = done ? recall(&t, &result) : training_run(&t, &result);
  if (status == ESP_ERR_INTERRUPTED) status = advise("continue with the same command and --resume", status);
  return finish(&t, a, status, &result);
}
