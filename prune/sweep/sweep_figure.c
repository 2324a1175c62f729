/* Accuracy over what is left, before and after finetuning: sweep.gp beside summary.csv, and its pictures. Random is a
 * band, mean and deviation over seeds: what stays within it is no better than chance. The unpruned model is a line. */
#include "sweep_internal.h"

#include <espalier/figure.h>
#include <espalier/memory.h>

#include <math.h>
#include <stdio.h>
#include <string.h>

/* The names of all curves of a mode (-1: of all), each once; `names` [rows]. What has no mode is set beside each. */
static int list_curves(const esp_sweep *sweep, int mode, char (*names)[SWEEP_NAME_SIZE], esp_figure_series *curves) {
  int count = 0;
  for (int i = 0; i < sweep->row_count; i++) {
    if (sweep->rows[i].method.kind == ESP_METHOD_NONE || sweep->rows[i].cells == sweep->rows[i].failed) continue;
    if (mode >= 0 && sweep->rows[i].mode >= 0 && sweep->rows[i].mode != mode) continue;
    esp_sweep_curve_name(sweep, &sweep->rows[i], names[count]);
    bool known = false;
    for (int n = 0; n < count; n++) known = known || strcmp(names[n], names[count]) == 0;
    if (known) continue;
    curves[count] = (esp_figure_series){.value = names[count]};
    count++;
  }
  return count;
}

static esp_figure_panel panel(const char *title, const char *column, const char *spread,
                              const esp_figure_level *level) {
  return (esp_figure_panel){.title = title,
                            .x_label = "parameters left",
                            .x_format = "%.0s%c",
                            .y_label = "accuracy",
                            .x = "parameters",
                            .y = column,
                            .low = spread,
                            .levels = level,
                            .level_count = 1};
}

/* The figure of one mode; -1: of the only one. */
static esp_status draw(const esp_sweep *sweep, int mode, const esp_figure_series *curves, int count) {
  const esp_sweep_row *unpruned = NULL;
  char name[32] = "sweep", random[32] = "random";
  for (int i = 0; i < sweep->row_count; i++)
    if (sweep->rows[i].method.kind == ESP_METHOD_NONE) unpruned = &sweep->rows[i];
  if (!unpruned || count == 0 || !isfinite(unpruned->accuracy)) return ESP_OK;
  if (mode >= 0) {
    snprintf(name, sizeof name, "sweep-%s", esp_sweep_mode(mode));
    snprintf(random, sizeof random, "random %s", esp_sweep_mode(mode));
  }
  const bool tuned = isfinite(unpruned->tuned_accuracy);
  const esp_figure_level before = {.label = "unpruned", .y = unpruned->accuracy};
  const esp_figure_level after = {.label = "unpruned, finetuned alike", .y = unpruned->tuned_accuracy};
  const esp_figure_panel panels[] = {panel("before finetuning", "accuracy", "accuracy_spread", &before),
                                     panel("after a short finetuning", "tuned_accuracy", "tuned_spread", &after)};
  const esp_figure figure = {.csv = "summary.csv",
                             .title = "Accuracy over what is left",
                             .series = "curve",
                             .curves = curves,
                             .curve_count = count,
                             .panels = panels,
                             .panel_count = tuned ? 2 : 1,
                             .spread = ESP_SPREAD_DEVIATION,
                             .band_of = sweep->settings.ratio_count > 1 ? random : NULL}; /* a point has no band */
  ESP_TRY(esp_figure_write(&figure, sweep->settings.folder, name));
  (void)esp_figure_draw(sweep->settings.folder, name); /* without gnuplot the script stays */
  return ESP_OK;
}

static esp_status draw_modes(const esp_sweep *sweep, char (*names)[SWEEP_NAME_SIZE], esp_figure_series *curves) {
  static const esp_prune_mode modes[] = {ESP_PRUNE_ZERO, ESP_PRUNE_REMOVE, ESP_PRUNE_MASK};
  if (!esp_sweep_has_modes(sweep)) return draw(sweep, -1, curves, list_curves(sweep, -1, names, curves));
  for (size_t i = 0; i < sizeof modes / sizeof *modes; i++) {
    bool used = false;
    for (int r = 0; r < sweep->row_count; r++) used = used || sweep->rows[r].mode == (int)modes[i];
    if (used) ESP_TRY(draw(sweep, (int)modes[i], curves, list_curves(sweep, (int)modes[i], names, curves)));
  }
  return ESP_OK;
}

esp_status esp_sweep_draw(const esp_sweep *sweep) {
  char(*names)[SWEEP_NAME_SIZE] = esp_alloc((size_t)sweep->row_count + 1, sizeof *names);
  esp_figure_series *curves = esp_alloc((size_t)sweep->row_count + 1, sizeof *curves);
  const esp_status status = names && curves ? draw_modes(sweep, names, curves) : ESP_ERR_MEMORY;
  esp_free(names);
  esp_free(curves);
  return status;
}
