/* Batches per second of the loader, with random flips and crops, against what training takes. */
#include "stages_internal.h"
#include "suites_internal.h"

#include <stdio.h>

enum { LOADERS = 2 };

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
  c->next = (c->next + 1) % c->loaders;
  return esp_loader_next(c->stage->loaders[c->next], &batch);
}

/* The loader's threads are not this one: only wall time says what they do. */
static esp_status compare(const esp_bench *bench, const bench_model *model, stage *s, model_stage *training) {
  esp_bench wall = *bench;
  esp_bench_result results[3];
  contestant one = {s, 1, 0}, two = {s, LOADERS, 0};
  char title[96];
  wall.processor_time = false;
  ESP_TRY(stage_set(s, model->batch));
  ESP_TRY(model_stage_set(training, model, model->batch, true));
  const esp_bench_case cases[] = {{.name = "training step", .run = model_stage_train, .context = training},
                                  {.name = "batch, one loader", .run = deal, .context = &one},
                                  {.name = "batch, two loaders", .run = deal, .context = &two}};
  snprintf(title, sizeof title, "batches of %d images 32 x 32 x 3, flip and crop; step of the %s", model->batch,
           model->name);
  ESP_TRY(esp_bench_compare(&wall, title, cases, 3, results));
  esp_bench_figure(bench, "batches_per_second", 1 / results[1].median, "batches/s of one loader");
  esp_bench_figure(bench, "batches_per_second_two_loaders", 1 / results[2].median, "batches/s of two");
  esp_bench_figure(bench, "steps_per_second", 1 / results[0].median, "batches/s that training takes");
  esp_bench_figure(bench, "loader_step_share", results[1].median / results[0].median, "of a step's time");
  return ESP_OK;
}

static esp_status run(const esp_bench *bench, const bench_model *model) {
  stage s = {.dataset = NULL};
  model_stage training = {.tape = NULL};
  const esp_status status = compare(bench, model, &s, &training);
  model_stage_clear(&training);
  stage_clear(&s);
  return status;
}

esp_status esp_bench_data(esp_bench *bench) {
  return run(bench, bench->quick ? &bench_quick_model : &bench_reference_model);
}
