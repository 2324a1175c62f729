/* The parts of a sweep: sweep.c calls all others, each of them calls sweep_grid.c, and that none. */
#ifndef ESPALIER_SWEEP_INTERNAL_H
#define ESPALIER_SWEEP_INTERNAL_H

#include <espalier/folder_lock.h>
#include <espalier/run_folder.h>
#include <espalier/sweep.h>

#include <jansson.h>

struct esp_sweep {
  esp_sweep_settings settings; /* "unpruned" and "random" among the methods */
  int64_t cell_count;
  esp_sweep_cell *cells;
  esp_folder_lock *lock; /* of the folder */
  int row_count;
  esp_sweep_row *rows;
  /* What the calibration passes said of one model, so that each is made once: [gates][calibration data][seed]. */
  int scored_model;
  esp_expert_scores *scores[2][ESP_SWEEP_LIST][ESP_SWEEP_LIST];
};

enum { SWEEP_NAME_SIZE = sizeof((esp_sweep_cell *)0)->same_as };

/* --- sweep_grid.c: which cells there are, and names ------------------------------------------------------- */

/* ESP_ERR_USAGE, ESP_ERR_MISMATCH. */
esp_status esp_sweep_check(const esp_sweep_settings *settings) ESP_MUST_CHECK;

/* Adds the methods "unpruned" and "random" to the settings, and makes the cells. */
esp_status esp_sweep_make_grid(esp_sweep *sweep) ESP_MUST_CHECK;

/* "matched", or the name of the data set; "none" for -1. */
const char *esp_sweep_calibration(const esp_sweep *sweep, int calibration);

/* "zero", "remove", "mask"; "none" for -1. */
const char *esp_sweep_mode(int mode);

/* "normalised", "model"; "none" for -1. */
const char *esp_sweep_gates(int gates);

/* Whether criteria prune in several modes, and whether with several forms of gates. */
bool esp_sweep_has_modes(const esp_sweep *sweep);
bool esp_sweep_has_gate_forms(const esp_sweep *sweep);

/* The model's digest, method, mode, gates, ratio, seed and calibration data: the same in every sweep over the
 * folder. */
void esp_sweep_cell_name(const esp_sweep *sweep, const esp_sweep_cell *cell, char name[SWEEP_NAME_SIZE]);

/* What a row's curve is called: its method, and what else tells it from others of that method: the mode and the gates
 * if the sweep has several, the data if they are mismatched. */
void esp_sweep_curve_name(const esp_sweep *sweep, const esp_sweep_row *row, char name[SWEEP_NAME_SIZE]);

/* --- sweep_record.c: what is kept ------------------------------------------------------------------------ */

/* Compares the folder's settings with these, or writes them there. */
esp_status esp_sweep_record_open(esp_sweep *sweep) ESP_MUST_CHECK;

/* Takes over what a file of an earlier sweep says of the cell, if there is one. */
esp_status esp_sweep_record_read(const esp_sweep *sweep, esp_sweep_cell *cell) ESP_MUST_CHECK;
esp_status esp_sweep_record_write(const esp_sweep *sweep, const esp_sweep_cell *cell) ESP_MUST_CHECK;

/* cells.csv, summary.csv and sweep.json. */
esp_status esp_sweep_record_close(const esp_sweep *sweep) ESP_MUST_CHECK;

/* --- sweep_cell.c: how a cell comes to its numbers ------------------------------------------------------- */

/* Fills a cell. ESP_OK if it is done, be it with a failure that belongs to the method. */
esp_status esp_sweep_compute(esp_sweep *sweep, esp_sweep_cell *cell) ESP_MUST_CHECK;

/* Forgets the calibration passes. */
void esp_sweep_forget_scores(esp_sweep *sweep);

/* --- sweep_figure.c --------------------------------------------------------------------------------------- */

/* sweep.gp, and sweep.svg and .png where gnuplot is installed. */
esp_status esp_sweep_draw(const esp_sweep *sweep) ESP_MUST_CHECK;

/* --- sweep_summary.c ------------------------------------------------------------------------------------- */

/* Makes the rows from the cells that are done. */
esp_status esp_sweep_summarise(esp_sweep *sweep) ESP_MUST_CHECK;

#endif
