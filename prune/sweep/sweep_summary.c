/* Cells over models and seeds: means, spreads, ranks, and the table that people read. */
#include "sweep_internal.h"

#include <espalier/memory.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

static bool belongs(const esp_sweep_cell *cell, const esp_sweep_row *row) {
  return cell->calibration == row->calibration && cell->ratio == row->ratio && cell->mode == row->mode &&
         cell->gates == row->gates && strcmp(cell->method.name, row->method.name) == 0;
}

/* --- means ------------------------------------------------------------------------------------------------ */

static double accuracy_of(const esp_sweep_cell *c) { return c->accuracy; }
static double validation_of(const esp_sweep_cell *c) { return c->validation_accuracy; }
static double tuned_validation_of(const esp_sweep_cell *c) { return c->tuned_validation_accuracy; }
static double tuned_accuracy_of(const esp_sweep_cell *c) { return c->tuned_accuracy; }
static double loss_of(const esp_sweep_cell *c) { return c->loss; }
static double tuned_loss_of(const esp_sweep_cell *c) { return c->tuned_loss; }
static double parameters_of(const esp_sweep_cell *c) { return (double)c->parameters; }
static double activated_of(const esp_sweep_cell *c) { return (double)c->activated_parameters; }
static double flops_of(const esp_sweep_cell *c) { return c->flops; }
static double measured_of(const esp_sweep_cell *c) { return c->measured_flops; }
static double rows_of(const esp_sweep_cell *c) { return c->rows_per_token; }
static double bytes_of(const esp_sweep_cell *c) { return (double)c->bytes; }
static double memory_of(const esp_sweep_cell *c) { return (double)c->memory; }
static double milliseconds_of(const esp_sweep_cell *c) { return c->milliseconds; }
static double speed_of(const esp_sweep_cell *c) { return c->speed; }
static double greedy_of(const esp_sweep_cell *c) { return (double)c->greedy_layers; }
static double seconds_of(const esp_sweep_cell *c) { return c->seconds; }

/* Mean over the row's cells that could be done; its standard deviation if `spread` is not NULL. */
static double mean(const esp_sweep *sweep, const esp_sweep_row *row, double (*value)(const esp_sweep_cell *),
                   double *spread) {
  double sum = 0, squares = 0;
  int count = 0;
  for (int64_t i = 0; i < sweep->cell_count; i++) {
    const esp_sweep_cell *c = &sweep->cells[i];
    if (!c->done || *c->failure || !belongs(c, row)) continue;
    sum += value(c);
    count++;
  }
  const double middle = sum / count; /* not-a-number if there is none */
  for (int64_t i = 0; spread && i < sweep->cell_count; i++) {
    const esp_sweep_cell *c = &sweep->cells[i];
    if (!c->done || *c->failure || !belongs(c, row)) continue;
    squares += (value(c) - middle) * (value(c) - middle);
  }
  if (spread) *spread = count > 1 ? sqrt(squares / (count - 1)) : 0;
  return middle;
}

static void fill(const esp_sweep *sweep, esp_sweep_row *r) {
  for (int64_t i = 0; i < sweep->cell_count; i++) {
    if (!sweep->cells[i].done || !belongs(&sweep->cells[i], r)) continue;
    r->failed += *sweep->cells[i].failure != '\0';
    r->cells++;
  }
  double spread;
  r->validation_accuracy = mean(sweep, r, validation_of, &spread);
  r->tuned_validation_accuracy = mean(sweep, r, tuned_validation_of, &spread);
  r->accuracy = mean(sweep, r, accuracy_of, &r->accuracy_spread);
  r->tuned_accuracy = mean(sweep, r, tuned_accuracy_of, &r->tuned_spread);
  r->loss = mean(sweep, r, loss_of, NULL);
  r->tuned_loss = mean(sweep, r, tuned_loss_of, NULL);
  r->parameters = mean(sweep, r, parameters_of, NULL);
  r->activated_parameters = mean(sweep, r, activated_of, NULL);
  r->flops = mean(sweep, r, flops_of, NULL);
  r->measured_flops = mean(sweep, r, measured_of, NULL);
  r->rows_per_token = mean(sweep, r, rows_of, NULL);
  r->bytes = mean(sweep, r, bytes_of, NULL);
  r->memory = mean(sweep, r, memory_of, NULL);
  r->milliseconds = mean(sweep, r, milliseconds_of, NULL);
  r->speed = mean(sweep, r, speed_of, NULL);
  r->seconds = mean(sweep, r, seconds_of, NULL);
  r->greedy_layers = mean(sweep, r, greedy_of, NULL);
}

/* --- ranks ------------------------------------------------------------------------------------------------ */

/* Means that differ only by rounding are equal. */
static const double rounding = 1e-9;

/* What ranks: methods are chosen by validation images, where there are any. */
static double merit(const esp_sweep_row *row, bool tuned) {
  const double validation = tuned ? row->tuned_validation_accuracy : row->validation_accuracy;
  if (isfinite(validation)) return validation;
  return tuned ? row->tuned_accuracy : row->accuracy;
}

static int rank_of(const esp_sweep *sweep, const esp_sweep_row *row, bool tuned) {
  const double own = merit(row, tuned);
  int better = 0;
  if (!isfinite(own)) return 0;
  for (int i = 0; i < sweep->row_count; i++) {
    const esp_sweep_row *other = &sweep->rows[i];
    better += other->ratio == row->ratio && merit(other, tuned) > own + rounding;
  }
  return 1 + better;
}

/* Orders by ratio, then best first; what could not be done last. */
static int in_order(const void *a, const void *b) {
  const esp_sweep_row *x = a, *y = b;
  if (x->ratio != y->ratio) return x->ratio < y->ratio ? -1 : 1;
  const double first = merit(x, false), second = merit(y, false);
  const double one = isfinite(first) ? first : -1, other = isfinite(second) ? second : -1;
  if (one != other) return one > other ? -1 : 1;
  const int names = strcmp(x->method.name, y->method.name);
  if (names) return names;
  if (x->mode != y->mode) return x->mode - y->mode;
  return x->gates != y->gates ? x->gates - y->gates : x->calibration - y->calibration;
}

esp_status esp_sweep_summarise(esp_sweep *sweep) {
  sweep->rows = esp_alloc((size_t)sweep->cell_count, sizeof *sweep->rows); /* at most so many */
  if (!sweep->rows) return ESP_ERR_MEMORY;
  for (int64_t i = 0; i < sweep->cell_count; i++) {
    const esp_sweep_cell *c = &sweep->cells[i];
    int found = 0;
    while (found < sweep->row_count && !belongs(c, &sweep->rows[found])) found++;
    if (found == sweep->row_count)
      sweep->rows[sweep->row_count++] = (esp_sweep_row){
          .method = c->method, .mode = c->mode, .gates = c->gates, .calibration = c->calibration, .ratio = c->ratio};
  }
  for (int i = 0; i < sweep->row_count; i++) fill(sweep, &sweep->rows[i]);
  for (int i = 0; i < sweep->row_count; i++) {
    sweep->rows[i].rank = rank_of(sweep, &sweep->rows[i], false);
    sweep->rows[i].tuned_rank = rank_of(sweep, &sweep->rows[i], true);
  }
  qsort(sweep->rows, (size_t)sweep->row_count, sizeof *sweep->rows, in_order);
  return ESP_OK;
}

/* --- the table -------------------------------------------------------------------------------------------- */

static void print_percent(FILE *file, double validation, double test, double spread, int rank) {
  if (!isfinite(test)) {
    fprintf(file, "  %27s", "-");
    return;
  }
  fprintf(file, "  %4d ", rank);
  if (isfinite(validation)) fprintf(file, "%6.2f", 100 * validation);
  else fprintf(file, "%6s", "-");
  fprintf(file, " %6.2f +- %5.2f", 100 * test, 100 * spread);
}

static void print_row(const esp_sweep *sweep, const esp_sweep_row *r, FILE *file) {
  fprintf(file, "  %-28s %-6s %-10s %-12s", r->method.name, esp_sweep_mode(r->mode), esp_sweep_gates(r->gates),
          esp_sweep_calibration(sweep, r->calibration));
  print_percent(file, r->validation_accuracy, r->accuracy, r->accuracy_spread, r->rank);
  if (sweep->settings.finetune > 0)
    print_percent(file, r->tuned_validation_accuracy, r->tuned_accuracy, r->tuned_spread, r->tuned_rank);
  if (r->cells > r->failed)
    fprintf(file, "  %8.3f %8.3f %8.2f %7.2f %7.2f %8.3f %6.2f", 1e-6 * r->parameters, 1e-6 * r->activated_parameters,
            1e-6 * r->measured_flops, 1e-6 * r->bytes, 1e-6 * r->memory, r->milliseconds, r->speed);
  if (r->greedy_layers > 0) fprintf(file, "  %g layers expert by expert", r->greedy_layers);
  if (r->failed) fprintf(file, "  %d of %d impossible", r->failed, r->cells);
  fputc('\n', file);
}

static void print_failures(const esp_sweep *sweep, FILE *file) {
  for (int64_t i = 0; i < sweep->cell_count; i++) {
    const esp_sweep_cell *c = &sweep->cells[i];
    bool said = false;
    for (int64_t n = 0; n < i; n++) said = said || strcmp(sweep->cells[n].failure, c->failure) == 0;
    if (*c->failure && !said)
      fprintf(file, "impossible, %s in mode %s at ratio %g: %s\n", c->method.name, esp_sweep_mode(c->mode), c->ratio,
              c->failure);
  }
}

void esp_sweep_print(const esp_sweep *sweep, FILE *file) {
  static const char heading[] = "rank val. %  test %";
  const bool tuned = sweep->settings.finetune > 0;
  for (int i = 0; i < sweep->row_count; i++) {
    const esp_sweep_row *r = &sweep->rows[i];
    if (i == 0 || r->ratio != sweep->rows[i - 1].ratio) {
      fprintf(file, r->ratio > 0 ? "%s%g %% of the experts or their weights gone\n" : "%sWithout a ratio\n",
              i ? "\n" : "", 100 * r->ratio);
      if (tuned) fprintf(file, "%61s  %-27s  %-27s\n", "", "as compressed", "finetuned");
      fprintf(file, "  %-28s %-6s %-10s %-12s  %-27s%s", "method", "mode", "gates", "calibration", heading,
              tuned ? "  " : "");
      if (tuned) fprintf(file, "%-27s", heading);
      fprintf(file, "  %8s %8s %8s %7s %7s %8s %6s\n", "M param.", "M activ.", "MFLOP", "MB disk", "MB mem.",
              "ms/image", "speed");
    }
    print_row(sweep, r, file);
  }
  fputs("Methods are ranked by val., the accuracy on the validation split (without one: on the test split); test, the "
        "accuracy on the test split,\nis what is reported of them. ",
        file);
  fputs("+- is the standard deviation over seeds and models; speed: unpruned time / own time, batches in turns.\n",
        file);
  print_failures(sweep, file);
}
