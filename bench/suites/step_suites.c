/* One kind of step alone in a process, so that its peak memory is the step's: what bench/peer.sh compares with
 * PyTorch. */
#include "stages_internal.h"
#include "suites_internal.h"

#include <stdio.h>

typedef enum step_kind { STEP_TRAIN, STEP_TRAIN_BF16, STEP_INFER } step_kind;

static const struct {
  const char *title;
  esp_status (*run)(void *context);
} kinds[] = {
    {"training", model_stage_train}, {"training in bf16", model_stage_train_bf16}, {"inference", model_stage_infer}};

/* Wall time, as the peer takes it. */
static esp_status measure(esp_bench *bench, const bench_model *model, int64_t images, step_kind kind,
                          model_stage *stage) {
  esp_bench_result result;
  char title[96];
  bench->processor_time = false;
  if (kind == STEP_TRAIN_BF16) ESP_TRY(esp_precision_check(ESP_BF16));
  ESP_TRY(model_stage_set(stage, model, images, kind != STEP_INFER));
  const esp_bench_case step = {.name = "step", .run = kinds[kind].run, .context = stage};
  snprintf(title, sizeof title, "%s of the %s, batch %lld", kinds[kind].title, model->name, (long long)images);
  ESP_TRY(esp_bench_compare(bench, title, &step, 1, &result));
  esp_bench_figure(bench, "images_per_second", (double)images / result.median, "images/s");
  return ESP_OK;
}

static esp_status run(esp_bench *bench, const bench_model *model, int64_t images, step_kind kind) {
  model_stage stage = {.tape = NULL};
  const esp_status status =
      bench->quick ? measure(bench, &bench_quick_model, 2, kind, &stage) : measure(bench, model, images, kind, &stage);
  model_stage_clear(&stage);
  return status;
}

esp_status esp_bench_step_reference(esp_bench *bench) {
  return run(bench, &bench_reference_model, bench_reference_model.batch, STEP_TRAIN);
}

esp_status esp_bench_step_reference_bf16(esp_bench *bench) {
  return run(bench, &bench_reference_model, bench_reference_model.batch, STEP_TRAIN_BF16);
}

esp_status esp_bench_step_teaching(esp_bench *bench) {
  return run(bench, &bench_teaching_model, bench_teaching_model.batch, STEP_TRAIN);
}

esp_status esp_bench_images_reference(esp_bench *bench) { return run(bench, &bench_reference_model, 128, STEP_INFER); }

esp_status esp_bench_image_reference(esp_bench *bench) { return run(bench, &bench_reference_model, 1, STEP_INFER); }
