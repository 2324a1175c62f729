/* The grid of a sweep, and the walk over it. */
#include "sweep_internal.h"

#include <espalier/memory.h>
#include <espalier/evaluate.h>
#include <espalier/progress.h>

#include <stdio.h>
#include <string.h>

const char *esp_sweep_calibration(const esp_sweep *sweep, int calibration) {
  if (calibration < 0) return "none";
  return calibration == 0 ? "matched" : esp_dataset_info_of(sweep->settings.calibration[calibration])->name;
}

void esp_sweep_cell_name(const esp_sweep *sweep, const esp_sweep_cell *cell, char name[SWEEP_NAME_SIZE]) {
  const int length = snprintf(name, SWEEP_NAME_SIZE, "%s-%s-%g-%llu-%s",
                              sweep->settings.models[cell->model].info->digest, cell->method.name, cell->ratio,
                              (unsigned long long)cell->seed, esp_sweep_calibration(sweep, cell->calibration));
  for (int i = 0; i < length && name[i]; i++)
    if (strchr("/:,()", name[i])) name[i] = '.';
}

/* --- the grid -------------------------------------------------------------------------------------------- */

static esp_status check_settings(const esp_sweep_settings *s) {
  if (s->model_count < 1 || s->ratio_count < 1 || s->seed_count < 1)
    return esp_fail(ESP_ERR_USAGE, "a sweep needs at least one model, one ratio and one seed");
  for (int i = 0; i < s->ratio_count; i++)
    if (!(s->ratios[i] > 0 && s->ratios[i] < 1))
      return esp_fail(ESP_ERR_USAGE, "a ratio of the sweep is %g; it must lie between 0 and 1", s->ratios[i]);
  for (int i = 0; i < s->model_count; i++) {
    const esp_status status = esp_check_data_fits(&s->models[i].model->config, s->data, true);
    if (status != ESP_OK) return esp_fail_in(status, "%s", s->models[i].name);
    for (int c = 0; c < s->calibration_count; c++)
      ESP_TRY(esp_check_data_fits(&s->models[i].model->config, s->calibration[c], false));
  }
  return ESP_OK;
}

static void add_method(esp_sweep_settings *s, const char *name, int place) {
  for (int i = 0; i < s->method_count; i++) {
    if (strcmp(s->methods[i], name) != 0) continue;
    memmove(&s->methods[i], &s->methods[i + 1], (size_t)(s->method_count - i - 1) * sizeof *s->methods);
    s->method_count--;
    break;
  }
  memmove(&s->methods[place + 1], &s->methods[place], (size_t)(s->method_count - place) * sizeof *s->methods);
  s->methods[place] = name;
  s->method_count++;
}

/* The cells of one method on one model, seeds together; counts only if cells is NULL. */
static int64_t list_method(const esp_sweep_settings *s, int model, const esp_method *method, esp_sweep_cell *cells) {
  const int ratios = method->has_ratio ? s->ratio_count : 1, sets = method->needs_data ? s->calibration_count : 1;
  int64_t count = 0;
  for (int c = 0; c < sets; c++)
    for (int r = 0; r < ratios; r++)
      for (int i = 0; i < s->seed_count; i++, count++)
        if (cells)
          cells[count] = (esp_sweep_cell){.model = model,
                                          .calibration = method->needs_data ? c : -1,
                                          .method = *method,
                                          .ratio = method->has_ratio ? s->ratios[r] : 0,
                                          .seed = s->seeds[i]};
  return count;
}

static esp_status list_cells(const esp_sweep_settings *s, esp_sweep_cell *cells, int64_t *count) {
  *count = 0;
  for (int m = 0; m < s->model_count; m++)
    for (int i = 0; i < s->method_count; i++) {
      esp_method method;
      ESP_TRY(esp_method_find(&method, s->methods[i]));
      *count += list_method(s, m, &method, cells ? cells + *count : NULL);
    }
  return ESP_OK;
}

static esp_status make_grid(esp_sweep *sweep) {
  ESP_TRY(list_cells(&sweep->settings, NULL, &sweep->cell_count));
  sweep->cells = esp_alloc((size_t)sweep->cell_count, sizeof *sweep->cells);
  if (!sweep->cells) return ESP_ERR_MEMORY;
  return list_cells(&sweep->settings, sweep->cells, &sweep->cell_count);
}

/* --- the walk -------------------------------------------------------------------------------------------- */

static int64_t count_left(const esp_sweep *sweep) {
  int64_t left = 0;
  for (int64_t i = 0; i < sweep->cell_count; i++) left += !sweep->cells[i].done;
  return left;
}

static void tell(const esp_sweep *sweep, const esp_sweep_cell *cell, esp_progress_bar *bar, int64_t done) {
  char result[160], tuned[40] = "";
  const double each = (esp_seconds() - bar->started) / (double)(done - bar->first_step);
  if (sweep->settings.finetune > 0) snprintf(tuned, sizeof tuned, " -> %.2f %%", 100 * cell->tuned_accuracy);
  snprintf(result, sizeof result, "%.2f %%%s, %.3f M parameters%s", 100 * cell->accuracy, tuned,
           1e-6 * (double)cell->parameters, *cell->same_as ? ", as another cell" : "");
  esp_progress_note(bar, "[%lld/%lld] %s, ratio %g, seed %llu, calibration %s: %s; %.1f s, %.0f s left",
                    (long long)done, (long long)bar->steps, cell->method.name, cell->ratio,
                    (unsigned long long)cell->seed, esp_sweep_calibration(sweep, cell->calibration),
                    *cell->failure ? cell->failure : result, cell->seconds, each * (double)(bar->steps - done));
}

static esp_status stopped(const esp_sweep *sweep) {
  return esp_fail(ESP_ERR_INTERRUPTED, "stopped with %lld of %lld cells done; the same command goes on from here",
                  (long long)(sweep->cell_count - count_left(sweep)), (long long)sweep->cell_count);
}

static esp_status walk(esp_sweep *sweep) {
  int64_t done = sweep->cell_count - count_left(sweep);
  const esp_sweep_settings *s = &sweep->settings;
  esp_progress_bar bar = esp_progress_start(s->quiet, done, sweep->cell_count);
  if (done > 0) esp_progress_note(&bar, "%lld of %lld cells are there already", (long long)done, (long long)bar.steps);
  for (int64_t i = 0; i < sweep->cell_count; i++) {
    esp_sweep_cell *cell = &sweep->cells[i];
    if (cell->done) continue;
    if (s->stop && *s->stop) return stopped(sweep);
    const esp_status status = esp_sweep_compute(sweep, cell);
    if (status == ESP_ERR_INTERRUPTED) return stopped(sweep);
    if (status != ESP_OK) return status;
    ESP_TRY(esp_sweep_record_write(sweep, cell));
    tell(sweep, cell, &bar, ++done);
  }
  esp_progress_end(&bar);
  return ESP_OK;
}

static esp_status run(esp_sweep *sweep) {
  add_method(&sweep->settings, "unpruned", 0);
  add_method(&sweep->settings, "random", 1);
  ESP_TRY(make_grid(sweep));
  ESP_TRY(esp_sweep_record_open(sweep));
  for (int64_t i = 0; i < sweep->cell_count; i++) ESP_TRY(esp_sweep_record_read(sweep, &sweep->cells[i]));
  const esp_status status = walk(sweep);
  if (status != ESP_OK && status != ESP_ERR_INTERRUPTED) return status;
  ESP_TRY(esp_sweep_summarise(sweep));
  ESP_TRY(esp_sweep_record_close(sweep));
  return status == ESP_OK ? ESP_OK : stopped(sweep);
}

esp_status esp_sweep_run(esp_sweep **sweep, const esp_sweep_settings *settings) {
  *sweep = NULL;
  ESP_TRY(check_settings(settings));
  if (settings->method_count > ESP_SWEEP_METHODS - 2)
    return esp_fail(ESP_ERR_USAGE, "a sweep takes at most %d methods", ESP_SWEEP_METHODS - 2);
  esp_sweep *made = esp_alloc(1, sizeof *made);
  if (!made) return ESP_ERR_MEMORY;
  made->settings = *settings;
  const esp_status status = run(made);
  if (status == ESP_OK) *sweep = made;
  else esp_sweep_free(made);
  return status;
}

void esp_sweep_free(esp_sweep *sweep) {
  if (!sweep) return;
  esp_sweep_forget_scores(sweep);
  esp_free(sweep->cells);
  esp_free(sweep->rows);
  esp_free(sweep);
}

int64_t esp_sweep_cell_count(const esp_sweep *sweep) { return sweep->cell_count; }

const esp_sweep_cell *esp_sweep_cell_at(const esp_sweep *sweep, int64_t index) { return &sweep->cells[index]; }

int esp_sweep_row_count(const esp_sweep *sweep) { return sweep->row_count; }

const esp_sweep_row *esp_sweep_row_at(const esp_sweep *sweep, int index) { return &sweep->rows[index]; }
