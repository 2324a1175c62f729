/* Accuracy over what is left, before and after finetuning: sweep.gp beside summary.csv, and its pictures. Random is a
 * band, mean and deviation over seeds: what stays within it is no better than chance. The unpruned model is a line. */
#include "sweep_internal.h"

#include <espalier/figure.h>
#include <espalier/memory.h>

#include <math.h>
#include <string.h>

/* The names of all curves, each once; `names` [rows]. */
static int list_curves(const esp_sweep *sweep, char (*names)[SWEEP_NAME_SIZE], esp_figure_series *curves) {
  int count = 0;
  for (int i = 0; i < sweep->row_count; i++) {
    if (sweep->rows[i].method.kind == ESP_METHOD_NONE || sweep->rows[i].cells == sweep->rows[i].failed) continue;
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

static esp_status draw(const esp_sweep *sweep, const esp_figure_series *curves, int count) {
  const esp_sweep_row *unpruned = NULL;
  for (int i = 0; i < sweep->row_count; i++)
    if (sweep->rows[i].method.kind == ESP_METHOD_NONE) unpruned = &sweep->rows[i];
  if (!unpruned || count == 0 || !isfinite(unpruned->accuracy)) return ESP_OK;
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
                             .band_of = sweep->settings.ratio_count > 1 ? "random" : NULL}; /* a point has no band */
  ESP_TRY(esp_figure_write(&figure, sweep->settings.folder, "sweep"));
  (void)esp_figure_draw(sweep->settings.folder, "sweep"); /* without gnuplot the script stays */
  return ESP_OK;
}

esp_status esp_sweep_draw(const esp_sweep *sweep) {
  char(*names)[SWEEP_NAME_SIZE] = esp_alloc((size_t)sweep->row_count + 1, sizeof *names);
  esp_figure_series *curves = esp_alloc((size_t)sweep->row_count + 1, sizeof *curves);
  const esp_status status = names && curves ? draw(sweep, curves, list_curves(sweep, names, curves)) : ESP_ERR_MEMORY;
  esp_free(names);
  esp_free(curves);
  return status;
}
