/* The grid of a sweep: its cells, and what cells, rows and their data are called. */
#include "sweep_internal.h"

#include <espalier/evaluate.h>
#include <espalier/memory.h>

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

void esp_sweep_curve_name(const esp_sweep *sweep, const esp_sweep_row *row, char name[SWEEP_NAME_SIZE]) {
  if (row->calibration > 0)
    snprintf(name, SWEEP_NAME_SIZE, "%s on %s", row->method.name, esp_sweep_calibration(sweep, row->calibration));
  else snprintf(name, SWEEP_NAME_SIZE, "%s", row->method.name);
}

esp_status esp_sweep_check(const esp_sweep_settings *s) {
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

esp_status esp_sweep_make_grid(esp_sweep *sweep) {
  add_method(&sweep->settings, "unpruned", 0);
  add_method(&sweep->settings, "random", 1);
  ESP_TRY(list_cells(&sweep->settings, NULL, &sweep->cell_count));
  sweep->cells = esp_alloc((size_t)sweep->cell_count, sizeof *sweep->cells);
  if (!sweep->cells) return ESP_ERR_MEMORY;
  return list_cells(&sweep->settings, sweep->cells, &sweep->cell_count);
}
