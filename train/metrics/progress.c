#include <espalier/progress.h>

#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

enum { BAR_WIDTH = 24 };
static const double seconds_between_drawings = 0.25, seconds_between_lines = 30;

esp_progress_bar esp_progress_start(bool quiet, int64_t first_step, int64_t steps) {
  const double now = esp_seconds();
  return (esp_progress_bar){.quiet = quiet,
                            .terminal = isatty(STDERR_FILENO) != 0,
                            .steps = steps,
                            .first_step = first_step,
                            .started = now,
                            .shown = now,
                            .evaluated_accuracy = -1};
}

enum { TIME_SIZE = 32 };

static void format_time(double seconds, char text[TIME_SIZE]) {
  const long total = (long)(seconds + 0.5);
  if (total >= 3600) snprintf(text, TIME_SIZE, "%ld:%02ld:%02ld", total / 3600, total / 60 % 60, total % 60);
  else snprintf(text, TIME_SIZE, "%ld:%02ld", total / 60, total % 60);
}

static void draw(const esp_progress_bar *bar, int64_t step, double now) {
  char done[TIME_SIZE], left[TIME_SIZE], cells[BAR_WIDTH + 1];
  const double elapsed = now - bar->started;
  const int64_t here = step - bar->first_step, rest = bar->steps - step;
  const int filled = bar->steps ? (int)(step * BAR_WIDTH / bar->steps) : BAR_WIDTH;
  for (int i = 0; i < BAR_WIDTH; i++) cells[i] = i < filled ? '#' : '.';
  cells[BAR_WIDTH] = '\0';
  format_time(elapsed, done);
  format_time(here > 0 ? elapsed / (double)here * (double)rest : 0, left);
  fprintf(stderr, "%s%s step %lld/%lld  loss %.4f  accuracy %.1f %%  %.0f images/s  %s, %s left%s",
          bar->terminal ? "\r\033[K" : "", cells, (long long)step, (long long)bar->steps, bar->loss,
          100 * bar->accuracy, bar->rate, done, left, bar->terminal ? "" : "\n");
}

void esp_progress_step(esp_progress_bar *bar, int64_t step) {
  if (bar->quiet) return;
  const double now = esp_seconds();
  if (now - bar->shown < (bar->terminal ? seconds_between_drawings : seconds_between_lines)) return;
  bar->shown = now;
  draw(bar, step, now);
}

void esp_progress_note(esp_progress_bar *bar, const char *format, ...) {
  if (bar->quiet) return;
  va_list arguments;
  va_start(arguments, format);
  if (bar->terminal) fputs("\r\033[K", stderr);
  vfprintf(stderr, format, arguments);
  fputc('\n', stderr);
  va_end(arguments);
}

void esp_progress_evaluation(esp_progress_bar *bar, int64_t step, double epoch, esp_split_name split,
                             const esp_evaluation *e) {
  char elapsed[TIME_SIZE];
  format_time(esp_seconds() - bar->started, elapsed);
  bar->evaluated_accuracy = e->accuracy;
  esp_progress_note(
      bar,
      "epoch %6.2f  step %lld  train loss %.4f accuracy %.2f %%  %s loss %.4f accuracy %.2f %% of %lld images  "
      "%.0f images/s  %s",
      epoch, (long long)step, bar->loss, 100 * bar->accuracy, esp_split_text(split), e->loss, 100 * e->accuracy,
      (long long)e->examples, bar->rate, elapsed);
}

void esp_progress_end(esp_progress_bar *bar) {
  if (!bar->quiet && bar->terminal) fputs("\r\033[K", stderr);
}
