#include "commands_internal.h"

#include <espalier/core.h>
#include <espalier/figure.h>
#include <espalier/run_config.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

int report_failure(esp_status status) {
  fprintf(stderr, "espalier: %s\n", esp_shown(esp_error_message()));
  return status == ESP_ERR_USAGE || status == ESP_ERR_CONFIG ? EXIT_USAGE : EXIT_FAILED;
}

int print_json(json_t *object) {
  if (!object) {
    (void)esp_fail(ESP_ERR_MEMORY, "out of memory: the results cannot be printed");
    return report_failure(ESP_ERR_MEMORY);
  }
  const int failed = json_dumpf(object, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(10));
  json_decref(object);
  putchar('\n');
  return failed ? EXIT_FAILED : EXIT_DONE;
}

esp_status open_data(esp_dataset **dataset, const arguments *a) {
  *dataset = NULL;
  ESP_TRY(need_data(a));
  return esp_dataset_open(dataset, a->data);
}

esp_status validation_share(const esp_trained *l, const arguments *a, double *share) {
  esp_run_config config;
  if (a->validation) return real_number("--validation", a->validation, 0, 1, share);
  ESP_TRY(esp_run_config_recall(&config, l->path, l->info.run_config));
  *share = config.data.validation;
  return ESP_OK;
}

esp_status open_data_of(esp_dataset **dataset, const char *data, const esp_trained *l, const arguments *a) {
  double share;
  *dataset = NULL;
  ESP_TRY(validation_share(l, a, &share));
  ESP_TRY(esp_dataset_open(dataset, data));
  const esp_status status = esp_dataset_hold_out(*dataset, share);
  if (status != ESP_ERR_CONFIG || a->validation) return status;
  return esp_dataset_hold_out(*dataset, 0); /* other data than the training's, with no image to spare */
}

esp_status need_data(const arguments *a) {
  if (a->data) return ESP_OK;
  return esp_fail(ESP_ERR_USAGE,
                  "--data is missing: which data? For example --data synthetic; `espalier data list` shows all");
}

esp_status refuse_same_data(const char *option, const esp_dataset *const *before, int count,
                            const esp_dataset *dataset) {
  const esp_dataset_info *info = esp_dataset_info_of(dataset);
  for (int i = 0; i < count; i++) {
    const esp_dataset_info *other = esp_dataset_info_of(before[i]);
    if (strcmp(info->digest, other->digest) == 0)
      return esp_fail(ESP_ERR_USAGE, "%s: %s has the same images as %s; leave one out", option, info->name,
                      other->name);
  }
  return ESP_OK;
}

esp_status open_calibration(esp_calibration *c, esp_dataset **dataset, const char *data, const esp_trained *l,
                            const arguments *a) {
  long long images, seed;
  ESP_TRY(whole_number("--calibration", a->calibration, 1, INT64_MAX, ESP_CALIBRATION_IMAGES, &images));
  ESP_TRY(whole_number("--seed", a->seed, 0, INT64_MAX, 1, &seed));
  ESP_TRY(open_data_of(dataset, data, l, a));
  *c = (esp_calibration){.dataset = *dataset,
                         .normalisation = &l->info.normalisation,
                         .split = ESP_TRAIN,
                         .images = images,
                         .seed = (uint64_t)seed};
  return esp_calibration_check(c, &l->model->config);
}

esp_status parse_gates(const arguments *a, esp_gate_form *gates) {
  *gates = ESP_GATES_NORMALISED;
  if (!a->gates || strcmp(a->gates, "normalised") == 0) return ESP_OK;
  *gates = ESP_GATES_MODEL;
  if (strcmp(a->gates, "model") == 0) return ESP_OK;
  return esp_fail(ESP_ERR_USAGE,
                  "--gates is \"%s\"; it must be normalised (over a token's chosen experts) or model (as "
                  "the model uses them)",
                  a->gates);
}

esp_status parse_split(const arguments *a, esp_split_name *split) {
  *split = ESP_TEST;
  if (!a->split) return ESP_OK;
  for (*split = ESP_TRAIN; *split < ESP_SPLITS; (*split)++)
    if (strcmp(a->split, esp_split_text(*split)) == 0) return ESP_OK;
  return esp_fail(ESP_ERR_USAGE, "--split is \"%s\"; it must be test, validation or train", a->split);
}

static esp_status check_there_are_images(const esp_trained *l, const arguments *a, const esp_dataset *dataset,
                                         esp_split_name split) {
  const esp_dataset_info *data = esp_dataset_info_of(dataset);
  if (data->count[split] > 0) return ESP_OK;
  if (a->validation)
    return esp_fail(ESP_ERR_USAGE, "the %s split of %s is empty: --validation is %s", esp_split_text(split), data->name,
                    a->validation);
  return esp_fail(
      ESP_ERR_USAGE,
      "the %s split of %s is empty: as far as %s says, nothing was held out when it was trained, so that it "
      "may have learnt from any training image; --validation SHARE holds some out all the same",
      esp_split_text(split), data->name, l->path);
}

esp_status open_part(const esp_trained *l, const arguments *a, esp_dataset **dataset, esp_evaluation_options *options) {
  long long limit;
  *options = (esp_evaluation_options){0};
  ESP_TRY(parse_split(a, &options->split));
  ESP_TRY(whole_number("--limit", a->limit, 1, INT64_MAX, 0, &limit));
  ESP_TRY(need_data(a));
  ESP_TRY(open_data_of(dataset, a->data, l, a));
  options->limit = limit;
  ESP_TRY(check_there_are_images(l, a, *dataset, options->split));
  return esp_check_data_fits(&l->model->config, *dataset, true);
}

bool is_same_file(const char *path, const char *other) {
  struct stat one, two;
  return stat(path, &one) == 0 && stat(other, &two) == 0 && one.st_dev == two.st_dev && one.st_ino == two.st_ino;
}

esp_status check_not_input(const char *target, const char *input) {
  if (!is_same_file(target, input)) return ESP_OK;
  return esp_fail(ESP_ERR_USAGE, "%s is one of the inputs, and these are never changed; choose another --out", target);
}

void tell_lock(const esp_folder_lock *lock) {
  if (*esp_folder_lock_note(lock)) fprintf(stderr, "espalier: %s\n", esp_folder_lock_note(lock));
}

/* A command takes one folder, and holds it until the process ends. */
static esp_folder_lock *taken;

static void leave_folder(void) { esp_folder_lock_free(taken); }

esp_status take_folder(const char *folder, const char *purpose) {
  ESP_TRY(esp_folder_make(folder));
  ESP_TRY(esp_folder_lock_take(&taken, folder, purpose));
  if (atexit(leave_folder) != 0) return esp_fail(ESP_ERR_MEMORY, "out of memory while %s is taken", folder);
  tell_lock(taken);
  return ESP_OK;
}

esp_status choose_checkpoint(char target[ESP_PATH_SIZE], const arguments *a) {
  if (!a->out) return esp_fail(ESP_ERR_USAGE, "--out is missing: a folder, or a file ending in .h5, for the new model");
  const size_t length = strlen(a->out);
  const bool is_file = length > 3 && strcmp(a->out + length - 3, ".h5") == 0;
  if (is_file && length >= ESP_PATH_SIZE)
    return esp_fail(ESP_ERR_USAGE, "--out is longer than %d letters", ESP_PATH_SIZE - 1);
  if (is_file) memcpy(target, a->out, length + 1);
  else ESP_TRY(esp_folder_path(target, a->out, ESP_LAST_CHECKPOINT));
  ESP_TRY(esp_output_check(target));
  if (esp_file_exists(target) && !a->overwrite)
    return esp_fail(ESP_ERR_USAGE, "%s exists already; --overwrite replaces it, or choose another --out", target);
  return ESP_OK;
}

esp_status write_plan(const esp_plan *plan, const char *target, const arguments *a) {
  char path[ESP_PATH_SIZE], *text;
  if (strcmp(target, a->out) == 0) return ESP_OK; /* a single file was asked for */
  ESP_TRY(esp_folder_path(path, a->out, "plan.json"));
  ESP_TRY(esp_plan_json(&text, plan));
  const esp_status status = esp_file_write(path, text);
  esp_free(text);
  return status;
}

void draw_figure(const arguments *a, const char *folder, const char *name) {
  const esp_drawing drawn = esp_figure_draw(folder, name);
  if (a->quiet || drawn == ESP_DRAWN) return;
  if (drawn == ESP_NO_GNUPLOT)
    fprintf(stderr, "the figure is not drawn, for gnuplot is not installed (Debian: gnuplot-nox); later: ");
  else fprintf(stderr, "gnuplot could not draw the figure; to see why: ");
  fprintf(stderr, "cd '%s' && gnuplot %s.gp\n", esp_shown(folder), name);
}

json_t *history_json(const esp_checkpoint_info *info) {
  json_t *list = json_array();
  for (int i = 0; i < info->history_count; i++) {
    const esp_history_entry *h = &info->history[i];
    json_array_append_new(list, json_pack("{s:s, s:s, s:s, s:s, s:s, s:I}", "action", h->action, "detail", h->detail,
                                          "parent", h->parent, "reference", h->reference, "frozen", h->frozen, "steps",
                                          (json_int_t)h->steps));
  }
  return list;
}

void print_history(const esp_checkpoint_info *info) {
  for (int i = 0; i < info->history_count; i++) {
    const esp_history_entry *h = &info->history[i];
    printf("  %d. %s: %s", i + 1, esp_shown(h->action), esp_shown(h->detail));
    if (h->steps) printf(", %lld steps", (long long)h->steps);
    if (*h->frozen) printf(", frozen: %s", esp_shown(h->frozen));
    if (*h->parent) printf(", from %s", esp_shown(h->parent));
    if (*h->reference) printf(", reference %s", esp_shown(h->reference));
    putchar('\n');
  }
}

bool is_folder(const char *path) {
  struct stat found;
  return stat(path, &found) == 0 && S_ISDIR(found.st_mode);
}

long long file_size(const char *path) {
  struct stat found;
  return stat(path, &found) == 0 ? (long long)found.st_size : 0;
}
