/* The walk over the grid of a sweep, and what it leaves behind. */
#include "sweep_internal.h"

#include <espalier/memory.h>
#include <espalier/evaluate.h>
#include <espalier/progress.h>

#include <stdio.h>
#include <string.h>

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
  esp_progress_note(bar, "[%lld/%lld] %s, mode %s, ratio %g, seed %llu, calibration %s: %s; %.1f s, %.0f s left",
                    (long long)done, (long long)bar->steps, cell->method.name, esp_sweep_mode(cell->mode), cell->ratio,
                    (unsigned long long)cell->seed, esp_sweep_calibration(sweep, cell->calibration),
                    *cell->failure ? cell->failure : result, cell->seconds, each * (double)(bar->steps - done));
}

static esp_status stopped(const esp_sweep *sweep) {
  return esp_fail(ESP_ERR_INTERRUPTED, "stopped with %lld of %lld cells done; the same sweep goes on from here",
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
  ESP_TRY(esp_sweep_make_grid(sweep));
  ESP_TRY(esp_sweep_record_open(sweep));
  for (int64_t i = 0; i < sweep->cell_count; i++) ESP_TRY(esp_sweep_record_read(sweep, &sweep->cells[i]));
  const esp_status status = walk(sweep);
  if (status != ESP_OK && status != ESP_ERR_INTERRUPTED) return status;
  ESP_TRY(esp_sweep_summarise(sweep));
  ESP_TRY(esp_sweep_record_close(sweep));
  ESP_TRY(esp_sweep_draw(sweep));
  return status == ESP_OK ? ESP_OK : stopped(sweep);
}

esp_status esp_sweep_run(esp_sweep **sweep, const esp_sweep_settings *settings) {
  *sweep = NULL;
  ESP_TRY(esp_sweep_check(settings));
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
  esp_folder_lock_free(sweep->lock);
  esp_free(sweep);
}

int64_t esp_sweep_cell_count(const esp_sweep *sweep) { return sweep->cell_count; }

const esp_sweep_cell *esp_sweep_cell_at(const esp_sweep *sweep, int64_t index) { return &sweep->cells[index]; }

int esp_sweep_row_count(const esp_sweep *sweep) { return sweep->row_count; }

const esp_sweep_row *esp_sweep_row_at(const esp_sweep *sweep, int index) { return &sweep->rows[index]; }
