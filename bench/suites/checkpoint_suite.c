/* Saving and loading a checkpoint of the reference model with AdamW's state, at several levels of compression. */
#include "folder_internal.h"
#include "stages_internal.h"
#include "suites_internal.h"

#include <espalier/cost.h>

#include <stdio.h>
#include <sys/stat.h>

static const int levels[] = {0, 1, 4};
enum { LEVELS = sizeof levels / sizeof levels[0], NAME_SIZE = 32 };

typedef struct contestant {
  model_stage *stage;
  esp_checkpoint_info *info;
  int level;
  char path[ESP_PATH_SIZE], save_name[NAME_SIZE], load_name[NAME_SIZE];
} contestant;

static esp_status save(void *context) {
  contestant *c = context;
  return esp_checkpoint_save(c->path, c->stage->model, c->stage->optimizer, c->info, c->level);
}

static esp_status load(void *context) {
  contestant *c = context;
  esp_model *model;
  esp_checkpoint_info info;
  ESP_TRY(esp_checkpoint_load(c->path, &model, &info));
  const esp_status status = esp_checkpoint_load_optimizer(c->path, c->stage->optimizer);
  esp_checkpoint_info_clear(&info);
  esp_model_free(model);
  return status;
}

static void report(const esp_bench *bench, const contestant *c, double save_seconds, double load_seconds) {
  struct stat file;
  char name[64];
  snprintf(name, sizeof name, "level_%d_save_seconds", c->level);
  esp_bench_figure(bench, name, save_seconds, "s");
  snprintf(name, sizeof name, "level_%d_load_seconds", c->level);
  esp_bench_figure(bench, name, load_seconds, "s");
  snprintf(name, sizeof name, "level_%d_bytes", c->level);
  if (stat(c->path, &file) == 0) esp_bench_count(bench, name, (int64_t)file.st_size, "bytes");
}

/* Wall time: of what the disk does, too. */
static esp_status compare(esp_bench *bench, model_stage *stage, const char *folder) {
  contestant contestants[LEVELS];
  esp_bench_case cases[2 * LEVELS];
  esp_bench_result results[2 * LEVELS];
  esp_checkpoint_info info = {.data_name = "none", .progress = {.best_accuracy = -1}};
  for (int i = 0; i < LEVELS; i++) {
    contestant *c = &contestants[i];
    *c = (contestant){.stage = stage, .info = &info, .level = levels[i]};
    snprintf(c->save_name, NAME_SIZE, "save, level %d", c->level);
    snprintf(c->load_name, NAME_SIZE, "load, level %d", c->level);
    ESP_TRY(esp_folder_path(c->path, folder, c->save_name));
    cases[i] = (esp_bench_case){.name = c->save_name, .run = save, .context = c};
    cases[LEVELS + i] = (esp_bench_case){.name = c->load_name, .run = load, .context = c};
  }
  char title[96];
  snprintf(title, sizeof title, "checkpoint of %.2f M parameters with AdamW's state",
           1e-6 * (double)esp_parameters_size(stage->model->parameters));
  ESP_TRY(esp_bench_compare(bench, title, cases, 2 * LEVELS, results));
  for (int i = 0; i < LEVELS; i++) report(bench, &contestants[i], results[i].median, results[LEVELS + i].median);
  return ESP_OK;
}

/* After a step or two: moments that are zero would vanish in compression. */
static esp_status run(esp_bench *bench, const bench_model *model, model_stage *stage, const char *folder) {
  ESP_TRY(model_stage_set(stage, model, 2, true));
  for (int i = 0; i < 3; i++) ESP_TRY(model_stage_train(stage));
  return compare(bench, stage, folder);
}

esp_status esp_bench_checkpoint(esp_bench *bench) {
  bench->processor_time = false;
  char folder[ESP_PATH_SIZE];
  model_stage stage = {.tape = NULL};
  ESP_TRY(bench_folder_make(folder));
  const esp_status status = run(bench, bench->quick ? &bench_quick_model : &bench_reference_model, &stage, folder);
  model_stage_clear(&stage);
  bench_folder_remove(folder);
  return status;
}
