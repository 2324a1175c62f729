/* What a sweep keeps: its settings, a JSON file a cell, and tables of them all. */
#include "sweep_internal.h"

#include <espalier/csv.h>
#include <espalier/escape.h>
#include <espalier/json_file.h>
#include <espalier/memory.h>
#include <espalier/parallel.h>
#include <espalier/blas.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* --- settings: what the numbers of a cell depend on besides its own name ----------------------------------- */

static json_t *overrides_json(const esp_sweep_settings *s) {
  json_t *list = json_array();
  for (size_t i = 0; i < s->override_count; i++) json_array_append_new(list, json_string(s->overrides[i]));
  return list;
}

static json_t *settings_json(const esp_sweep_settings *s) {
  const esp_dataset_info *data = esp_dataset_info_of(s->data);
  return json_pack("{s:s, s:s, s:f, s:s, s:f, s:b, s:I, s:I, s:o}", "data", data->name, "data_digest", data->digest,
                   "validation_share", data->validation, "reference", s->reference ? s->reference->info->digest : "",
                   "finetune_epochs", s->finetune, "distilled", s->distil, "calibration_images",
                   (json_int_t)s->calibration_images, "test_images", (json_int_t)s->limit, "overrides",
                   overrides_json(s));
}

static esp_status compare(const json_t *now, const json_t *then, const char *folder) {
  const char *key;
  json_t *value;
  json_object_foreach((json_t *)(uintptr_t)now, key, value) {
    const json_t *other = json_object_get(then, key);
    if (other && json_equal(value, other)) continue;
    char *here = json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT | JSON_REAL_PRECISION(6));
    char *there = other ? json_dumps(other, JSON_ENCODE_ANY | JSON_COMPACT | JSON_REAL_PRECISION(6)) : NULL;
    (void)esp_fail(ESP_ERR_MISMATCH,
                   "%s holds a sweep whose %s is %s, but now it is %s; go on with the settings as they were, or choose "
                   "another folder",
                   folder, key, there ? there : "not there", here ? here : "?");
    free(here);
    free(there);
    return ESP_ERR_MISMATCH;
  }
  return ESP_OK;
}

static esp_status check_settings(const char *folder, const char *path, const json_t *now) {
  json_error_t error;
  if (!esp_file_exists(path)) return ESP_OK;
  json_t *then = json_load_file(path, 0, &error);
  if (!then)
    return esp_fail(ESP_ERR_FORMAT, "%s, line %d: %s; it should hold the settings of a sweep", path, error.line,
                    error.text);
  const esp_status status = compare(now, then, folder);
  json_decref(then);
  return status;
}

static esp_status make_folders(const esp_sweep_settings *s) {
  static const char *const names[] = {"cells", "work", "models"};
  char path[ESP_PATH_SIZE];
  for (int i = 0; i < (s->keep ? 3 : 2); i++) {
    ESP_TRY(esp_folder_path(path, s->folder, names[i]));
    ESP_TRY(esp_folder_make(path));
  }
  return ESP_OK;
}

esp_status esp_sweep_record_open(esp_sweep *sweep) {
  char path[ESP_PATH_SIZE];
  ESP_TRY(esp_folder_path(path, sweep->settings.folder, "settings.json"));
  json_t *now = settings_json(&sweep->settings);
  esp_status status =
      now ? check_settings(sweep->settings.folder, path, now) : esp_fail(ESP_ERR_MEMORY, "out of memory");
  if (status == ESP_OK) status = esp_folder_make(sweep->settings.folder);
  if (status == ESP_OK) status = esp_folder_lock_take(&sweep->lock, sweep->settings.folder, "sweep");
  if (status == ESP_OK) status = make_folders(&sweep->settings);
  if (status == ESP_OK)
    status = esp_json_write(sweep->settings.folder, "settings.json", json_incref(now), ESP_JSON_DIGITS);
  json_decref(now);
  return status;
}

/* --- a cell ----------------------------------------------------------------------------------------------- */

/* The numbers of a cell, one list for JSON, CSV and back. */
typedef struct field {
  const char *name;
  size_t offset;
  bool whole;
} field;

#define REAL(member) \
  { #member, offsetof(esp_sweep_cell, member), false }
#define WHOLE(member) \
  { #member, offsetof(esp_sweep_cell, member), true }

static const field fields[] = {
    REAL(validation_accuracy),
    REAL(tuned_validation_accuracy),
    REAL(accuracy),
    REAL(loss),
    REAL(tuned_accuracy),
    REAL(tuned_loss),
    WHOLE(parameters),
    WHOLE(activated_parameters),
    REAL(flops),
    REAL(measured_flops),
    REAL(rows_per_token),
    WHOLE(bytes),
    WHOLE(memory),
    REAL(milliseconds),
    REAL(speed),
    REAL(seconds),
    WHOLE(greedy_layers),
};
enum { FIELD_COUNT = sizeof fields / sizeof fields[0] };

static double real_of(const esp_sweep_cell *cell, const field *f) {
  double value;
  memcpy(&value, (const char *)cell + f->offset, sizeof value);
  return value;
}

static int64_t whole_of(const esp_sweep_cell *cell, const field *f) {
  int64_t value;
  memcpy(&value, (const char *)cell + f->offset, sizeof value);
  return value;
}

static json_t *number_json(const esp_sweep_cell *cell, const field *f) {
  if (f->whole) return json_integer(whole_of(cell, f));
  const double value = real_of(cell, f);
  return isfinite(value) ? json_real(value) : json_null();
}

static json_t *cell_json(const esp_sweep *sweep, const esp_sweep_cell *cell) {
  json_t *json = json_pack(
      "{s:s, s:s, s:s, s:s, s:s, s:f, s:I, s:s, s:s, s:s}", "model", sweep->settings.models[cell->model].info->digest,
      "method", cell->method.name, "mode", esp_sweep_mode(cell->mode), "gates", esp_sweep_gates(cell->gates),
      "calibration", esp_sweep_calibration(sweep, cell->calibration), "ratio", cell->ratio, "seed",
      (json_int_t)cell->seed, "digest", cell->digest, "same_as", cell->same_as, "failure", cell->failure);
  for (int i = 0; json && i < FIELD_COUNT; i++)
    json_object_set_new(json, fields[i].name, number_json(cell, &fields[i]));
  return json;
}

static void take_number(esp_sweep_cell *cell, const field *f, const json_t *value) {
  const int64_t whole = json_integer_value(value);
  double real = NAN; /* null */
  if (json_is_number(value)) real = json_number_value(value);
  memcpy((char *)cell + f->offset, f->whole ? (const void *)&whole : &real, sizeof whole);
}

static esp_status take_cell(esp_sweep_cell *cell, const json_t *json, const char *path) {
  const char *digest = json_string_value(json_object_get(json, "digest"));
  const char *same_as = json_string_value(json_object_get(json, "same_as"));
  const char *failure = json_string_value(json_object_get(json, "failure"));
  bool whole = digest && same_as && failure;
  for (int i = 0; i < FIELD_COUNT; i++) {
    const json_t *value = json_object_get(json, fields[i].name);
    whole = whole && (json_is_number(value) || (json_is_null(value) && !fields[i].whole));
    take_number(cell, &fields[i], value);
  }
  if (!whole)
    return esp_fail(ESP_ERR_FORMAT, "%s is not a whole cell of a sweep; delete it, and the cell is done anew", path);
  snprintf(cell->digest, sizeof cell->digest, "%s", digest);
  snprintf(cell->same_as, sizeof cell->same_as, "%s", same_as);
  snprintf(cell->failure, sizeof cell->failure, "%s", failure);
  cell->done = true;
  return ESP_OK;
}

static esp_status cell_path(const esp_sweep *sweep, const esp_sweep_cell *cell, char path[ESP_PATH_SIZE]) {
  char name[SWEEP_NAME_SIZE], file[SWEEP_NAME_SIZE + 16];
  esp_sweep_cell_name(sweep, cell, name);
  snprintf(file, sizeof file, "cells/%s.json", name);
  return esp_folder_path(path, sweep->settings.folder, file);
}

esp_status esp_sweep_record_read(const esp_sweep *sweep, esp_sweep_cell *cell) {
  char path[ESP_PATH_SIZE];
  json_error_t error;
  ESP_TRY(cell_path(sweep, cell, path));
  if (!esp_file_exists(path)) return ESP_OK;
  json_t *json = json_load_file(path, 0, &error);
  if (!json)
    return esp_fail(ESP_ERR_FORMAT, "%s, line %d: %s; delete it, and the cell is done anew", path, error.line,
                    error.text);
  const esp_status status = take_cell(cell, json, path);
  json_decref(json);
  return status;
}

esp_status esp_sweep_record_write(const esp_sweep *sweep, const esp_sweep_cell *cell) {
  char path[ESP_PATH_SIZE];
  ESP_TRY(cell_path(sweep, cell, path));
  return esp_json_write(sweep->settings.folder, path + strlen(sweep->settings.folder) + 1, cell_json(sweep, cell),
                        ESP_JSON_DIGITS);
}

/* --- tables ----------------------------------------------------------------------------------------------- */

static void write_cells(const esp_sweep *sweep, FILE *file) {
  fputs("model,method,mode,gates,calibration,ratio,seed,digest,same_as", file);
  for (int i = 0; i < FIELD_COUNT; i++) fprintf(file, ",%s", fields[i].name);
  fputs(",failure\n", file);
  for (int64_t n = 0; n < sweep->cell_count; n++) {
    const esp_sweep_cell *c = &sweep->cells[n];
    if (!c->done) continue;
    fprintf(file, "%s,\"%s\",%s,%s,", sweep->settings.models[c->model].info->digest, c->method.name,
            esp_sweep_mode(c->mode), esp_sweep_gates(c->gates));
    esp_csv_text(file, esp_sweep_calibration(sweep, c->calibration));
    fprintf(file, ",%g,%llu,%s,%s", c->ratio, (unsigned long long)c->seed, c->digest, c->same_as);
    for (int i = 0; i < FIELD_COUNT; i++)
      esp_csv_put_number(file, fields[i].whole ? (double)whole_of(c, &fields[i]) : real_of(c, &fields[i]));
    fputc(',', file);
    esp_csv_text(file, c->failure);
    fputc('\n', file);
  }
}

static void write_summary(const esp_sweep *sweep, FILE *file) {
  fputs("curve,ratio,method,mode,gates,calibration,cells,failed,rank,accuracy,accuracy_spread,loss,tuned_rank,"
        "tuned_accuracy,tuned_spread,tuned_loss,parameters,activated_parameters,flops,measured_flops,rows_per_token,"
        "bytes,memory,milliseconds,speed,seconds,validation_accuracy,tuned_validation_accuracy,greedy_layers\n",
        file);
  for (int i = 0; i < sweep->row_count; i++) {
    const esp_sweep_row *r = &sweep->rows[i];
    const double numbers[] = {r->accuracy, r->accuracy_spread, r->loss};
    const double others[] = {r->tuned_accuracy, r->tuned_spread,         r->tuned_loss,
                             r->parameters,     r->activated_parameters, r->flops,
                             r->measured_flops, r->rows_per_token,       r->bytes,
                             r->memory,         r->milliseconds,         r->speed,
                             r->seconds,        r->validation_accuracy,  r->tuned_validation_accuracy,
                             r->greedy_layers};
    char curve[SWEEP_NAME_SIZE];
    esp_sweep_curve_name(sweep, r, curve);
    esp_csv_text(file, curve);
    fprintf(file, ",%g,\"%s\",%s,%s,", r->ratio, r->method.name, esp_sweep_mode(r->mode), esp_sweep_gates(r->gates));
    esp_csv_text(file, esp_sweep_calibration(sweep, r->calibration));
    fprintf(file, ",%d,%d,%d", r->cells, r->failed, r->rank);
    for (size_t n = 0; n < sizeof numbers / sizeof numbers[0]; n++) esp_csv_put_number(file, numbers[n]);
    fprintf(file, ",%d", r->tuned_rank);
    for (size_t n = 0; n < sizeof others / sizeof others[0]; n++) esp_csv_put_number(file, others[n]);
    fputc('\n', file);
  }
}

static esp_status write_table(const esp_sweep *sweep, const char *name,
                              void (*write)(const esp_sweep *sweep, FILE *file)) {
  char path[ESP_PATH_SIZE], *text = NULL;
  size_t size;
  ESP_TRY(esp_folder_path(path, sweep->settings.folder, name));
  FILE *file = open_memstream(&text, &size);
  if (file) write(sweep, file);
  const bool whole = file && fclose(file) == 0;
  const esp_status status = whole ? esp_file_write(path, text) : esp_fail(ESP_ERR_MEMORY, "out of memory");
  free(text);
  return status;
}

static json_t *real_json(double value) { return isfinite(value) ? json_real(value) : json_null(); }

static json_t *row_json(const esp_sweep *sweep, const esp_sweep_row *r) {
  return json_pack("{s:f, s:s, s:s, s:s, s:s, s:i, s:i, s:o, s:o, s:i, s:o, s:o, s:o, s:i, s:o, s:o, s:o}", "ratio",
                   r->ratio, "method", r->method.name, "mode", esp_sweep_mode(r->mode), "gates",
                   esp_sweep_gates(r->gates), "calibration", esp_sweep_calibration(sweep, r->calibration), "cells",
                   r->cells, "failed", r->failed, "validation_accuracy", real_json(r->validation_accuracy),
                   "tuned_validation_accuracy", real_json(r->tuned_validation_accuracy), "rank", r->rank, "accuracy",
                   real_json(r->accuracy), "accuracy_spread", real_json(r->accuracy_spread), "loss", real_json(r->loss),
                   "tuned_rank", r->tuned_rank, "tuned_accuracy", real_json(r->tuned_accuracy), "tuned_spread",
                   real_json(r->tuned_spread), "tuned_loss", real_json(r->tuned_loss));
}

static void add_costs(json_t *json, const esp_sweep_row *r) {
  const struct {
    const char *name;
    double value;
  } costs[] = {{"parameters", r->parameters},
               {"activated_parameters", r->activated_parameters},
               {"flops_per_image", r->flops},
               {"measured_flops_per_image", r->measured_flops},
               {"rows_per_token", r->rows_per_token},
               {"bytes", r->bytes},
               {"memory", r->memory},
               {"milliseconds", r->milliseconds},
               {"speed", r->speed},
               {"seconds", r->seconds},
               {"greedy_layers", r->greedy_layers}};
  for (size_t i = 0; i < sizeof costs / sizeof costs[0]; i++)
    json_object_set_new(json, costs[i].name, real_json(costs[i].value));
}

static json_t *models_json(const esp_sweep_settings *s) {
  json_t *models = json_array();
  for (int i = 0; i < s->model_count; i++)
    json_array_append_new(
        models, json_pack("{s:s, s:s}", "checkpoint", s->models[i].name, "digest", s->models[i].info->digest));
  return models;
}

json_t *esp_sweep_json(const esp_sweep *sweep) {
  json_t *rows = json_array();
  for (int i = 0; i < sweep->row_count; i++) {
    json_t *row = row_json(sweep, &sweep->rows[i]);
    if (row) add_costs(row, &sweep->rows[i]);
    json_array_append_new(rows, row);
  }
  return json_pack("{s:o, s:o, s:I, s:i, s:s, s:s, s:o}", "settings", settings_json(&sweep->settings), "models",
                   models_json(&sweep->settings), "cells", (json_int_t)sweep->cell_count, "threads", esp_threads(),
                   "blas_kernel", esp_blas_kernel(), "product_kernel", esp_gemm_kernel(), "summary", rows);
}

esp_status esp_sweep_record_close(const esp_sweep *sweep) {
  char work[ESP_PATH_SIZE];
  if (esp_folder_path(work, sweep->settings.folder, "work") == ESP_OK) rmdir(work);
  ESP_TRY(write_table(sweep, "cells.csv", write_cells));
  ESP_TRY(write_table(sweep, "summary.csv", write_summary));
  return esp_json_write(sweep->settings.folder, "sweep.json", esp_sweep_json(sweep), ESP_JSON_DIGITS);
}
