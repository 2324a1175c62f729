#include "logging_internal.h"

#include "folder_internal.h"

#include <espalier/metrics.h>
#include <espalier/progress.h>
#include <espalier/routing_log.h>

enum { TRAIN_IMAGES = 50000, TEST_IMAGES = 10000 };

static void observe(void *context, const esp_moe_record *record) {
  bench_watched *w = context;
  const double begin = esp_seconds();
  w->observer.moe(w->observer.context, record);
  w->seconds += esp_seconds() - begin;
}

esp_observer bench_watched_observer(bench_watched *watched) { return (esp_observer){observe, watched}; }

/* Seconds of the observer in a step. */
static esp_status time_observer(const esp_bench *bench, model_stage *stage, esp_observer observer, double *seconds) {
  bench_watched w = {.observer = observer};
  const esp_observer outer = bench_watched_observer(&w);
  esp_status status = ESP_OK;
  stage->observer = &outer;
  for (int i = 0; i < bench->rounds && status == ESP_OK; i++) status = model_stage_train(stage);
  stage->observer = NULL;
  *seconds = w.seconds / bench->rounds;
  return status;
}

static esp_status time_metrics(const esp_bench *bench, model_stage *stage, const char *folder, double *observer,
                               double *row) {
  esp_metrics *metrics;
  esp_window window = {.started = esp_seconds(), .steps = 1, .images = 1};
  ESP_TRY(time_observer(bench, stage, esp_window_observer(&window), observer));
  ESP_TRY(esp_metrics_open(&metrics, folder, stage->model, 0));
  const double begin = esp_seconds();
  esp_status status = ESP_OK;
  for (int i = 0; i < bench->rounds && status == ESP_OK; i++)
    status = esp_metrics_write_training(metrics, i + 1, 1, 1e-3, &window);
  *row = (esp_seconds() - begin) / bench->rounds;
  const esp_status closed = esp_metrics_close(metrics);
  return status == ESP_OK ? closed : status;
}

static esp_status time_routing_log(const esp_bench *bench, model_stage *stage, const char *folder,
                                   const esp_routing_alarm *alarm, double *observer, double *rows) {
  esp_routing_log *log;
  esp_progress_bar bar = esp_progress_start(true, 0, 1);
  ESP_TRY(esp_routing_log_open(&log, folder, stage->model, alarm, 0));
  esp_status status = time_observer(bench, stage, esp_routing_log_observer(log), observer);
  const double begin = esp_seconds();
  if (status == ESP_OK) status = esp_routing_log_write(log, 1, 1, &bar);
  *rows = esp_seconds() - begin;
  const esp_status closed = esp_routing_log_close(log);
  return status == ESP_OK ? closed : status;
}

static esp_status measure(const esp_bench *bench, model_stage *stage, const char *folder, double step) {
  esp_run_config config;
  ESP_TRY(esp_run_config_load(&config, NULL, NULL, 0));
  const esp_routing_alarm alarm = {config.training.alarm_share, config.training.alarm_evaluations};
  double window, row, log, rows;
  ESP_TRY(time_metrics(bench, stage, folder, &window, &row));
  ESP_TRY(time_routing_log(bench, stage, folder, &alarm, &log, &rows));
  const double batch = (double)stage->batch.count, steps = TRAIN_IMAGES / batch;
  const double epoch = steps * (window + row / config.training.log_every) +
                       (log * TEST_IMAGES / batch + rows) / config.training.evaluate_every;
  esp_bench_figure(bench, "window_observer_seconds", window, "s a step");
  esp_bench_figure(bench, "routing_log_seconds", log, "s a batch of an evaluation");
  esp_bench_figure(bench, "logging_share", epoch / (steps * step), "of the time of an epoch's steps");
  return ESP_OK;
}

esp_status bench_logging(const esp_bench *bench, model_stage *stage, double step) {
  char folder[ESP_PATH_SIZE];
  ESP_TRY(bench_folder_make(folder));
  const esp_status status = measure(bench, stage, folder, step);
  bench_folder_remove(folder);
  return status;
}
