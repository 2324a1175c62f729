/* Batches per second of the loader, with random flips and crops, against what training takes. */
#include "stages_internal.h"
#include "suites_internal.h"

#include <stdio.h>

/* A case takes so many batches that those which lie ready at its start do not count for much. */
enum { LOADERS = 2, BATCHES = 64 };

/* Loaders that deal in turns, each with its thread. */
typedef struct stage {
  esp_dataset *dataset;
  esp_loader *loaders[LOADERS];
} stage;

typedef struct contestant {
  stage *stage;
  int loaders, next;
} contestant;

static esp_status stage_set(stage *s, int64_t batch) {
  ESP_TRY(esp_dataset_open(&s->dataset, "synthetic"));
  esp_loader_options options = {
      .batch = batch, .shuffle = true, .drop_last = true, .augmentation = {.crop_padding = 4, .flip = true}};
  esp_dataset_normalisation(s->dataset, &options.normalisation);
  for (int i = 0; i < LOADERS; i++) {
    options.seed = (uint64_t)i;
    ESP_TRY(esp_loader_create(&s->loaders[i], s->dataset, ESP_TRAIN, &options, 0));
  }
  return ESP_OK;
}

static void stage_clear(stage *s) {
  for (int i = 0; i < LOADERS; i++) esp_loader_close(s->loaders[i]);
  esp_dataset_close(s->dataset);
}

static esp_status deal(void *context) {
  contestant *c = context;
  const esp_batch *batch;
  for (int i = 0; i < BATCHES; i++) {
    c->next = (c->next + 1) % c->loaders;
    ESP_TRY(esp_loader_next(c->stage->loaders[c->next], &batch));
  }
  return ESP_OK;
}

static void report(const esp_bench *bench, double step, double one, double two) {
  esp_bench_figure(bench, "batches_per_second", 1 / one, "batches/s of one loader");
  esp_bench_figure(bench, "batches_per_second_two_loaders", 1 / two, "batches/s of two");
  esp_bench_figure(bench, "steps_per_second", 1 / step, "batches/s that training takes");
  esp_bench_figure(bench, "loader_step_share", one / step, "of a step's time, on a thread of its own");
}

/* The loader's threads are not this one: only wall time says what they do. */
static esp_status compare(esp_bench *bench, const bench_model *model, stage *s, model_stage *training) {
  esp_bench_result step, dealt[LOADERS];
  contestant one = {s, 1, 0}, two = {s, LOADERS, 0};
  char title[96];
  ESP_TRY(model_stage_set(training, model, model->batch, true));
  const esp_bench_case steps = {.name = "training step", .run = model_stage_train, .context = training};
  ESP_TRY(esp_bench_measure(bench, &steps, 1, &step));
  ESP_TRY(stage_set(s, model->batch));
  const esp_bench_case cases[] = {{.name = "64 batches, one loader", .run = deal, .context = &one},
                                  {.name = "64 batches, two", .run = deal, .context = &two}};
  snprintf(title, sizeof title, "loader: batches of %d images 32 x 32 x 3, flip and crop", model->batch);
  ESP_TRY(esp_bench_compare(bench, title, cases, LOADERS, dealt));
  report(bench, step.median, dealt[0].median / BATCHES, dealt[1].median / BATCHES);
  return ESP_OK;
}

static esp_status run(esp_bench *bench, const bench_model *model) {
  stage s = {.dataset = NULL};
  model_stage training = {.tape = NULL};
  const esp_status status = compare(bench, model, &s, &training);
  model_stage_clear(&training);
  stage_clear(&s);
  return status;
}

esp_status esp_bench_data(esp_bench *bench) {
  bench->processor_time = false;
  return run(bench, bench->quick ? &bench_quick_model : &bench_reference_model);
}
