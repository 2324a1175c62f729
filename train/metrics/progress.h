/* Progress on standard error: a bar with rate and time left on a terminal, plain lines elsewhere. */
#ifndef ESPALIER_PROGRESS_H
#define ESPALIER_PROGRESS_H

#include <espalier/evaluate.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct esp_progress_bar {
  bool quiet, terminal;
  int64_t steps, first_step;
  double started, shown;
  double loss, accuracy, rate; /* of the last window */
  double evaluated_accuracy;   /* of the last evaluation; -1: none */
} esp_progress_bar;

/* Begins the bar of a run that goes from `first_step` to `steps`. quiet: shows nothing. */
ESP_API esp_progress_bar esp_progress_start(bool quiet, int64_t first_step, int64_t steps);

/* After each step; draws at most a few times a second. `rate`: images per second. */
ESP_API void esp_progress_step(esp_progress_bar *bar, int64_t step);

/* A line of its own after an evaluation. */
ESP_API void esp_progress_evaluation(esp_progress_bar *bar, int64_t step, double epoch, esp_split_name split,
                                     const esp_evaluation *evaluation);

/* A line that says something else, above the bar. */
ESP_API void esp_progress_note(esp_progress_bar *bar, const char *format, ...) ESP_PRINTF(2, 3);

/* Clears the bar. */
ESP_API void esp_progress_end(esp_progress_bar *bar);

#ifdef __cplusplus
}
#endif
#endif
