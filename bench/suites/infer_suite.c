/* Images per second of inference, one by one and in batches. */
#include "stages_internal.h"
#include "suites_internal.h"

#include <espalier/step_products.h>

#include <stdio.h>

static void report(const esp_bench *bench, const char *name, int64_t images, double seconds) {
  char figure[64];
  snprintf(figure, sizeof figure, "%s_%lld_ms_per_image", name, (long long)images);
  esp_bench_figure(bench, figure, 1e3 * seconds / (double)images, "ms");
  snprintf(figure, sizeof figure, "%s_%lld_images_per_second", name, (long long)images);
  esp_bench_figure(bench, figure, (double)images / seconds, "images/s");
}

static esp_status run_batch(esp_bench *bench, const bench_model *model, const char *name, int64_t images,
                            model_stage *stage) {
  esp_step_product products[ESP_MOST_STEP_PRODUCTS];
  esp_step_limit limit;
  esp_bench_result result;
  char title[96];
  ESP_TRY(model_stage_set(stage, model, images, false));
  const int count = esp_step_products(&stage->config, images, false, products);
  ESP_TRY(esp_measure_limit(bench, products, count, NULL, &limit));
  snprintf(title, sizeof title, "inference of the %s, batch %lld", model->name, (long long)images);
  const esp_bench_case batch = {.name = "forward",
                                .run = model_stage_infer,
                                .context = stage,
                                .flops = limit.flops + limit.attention_flops,
                                .limit = limit.seconds + limit.attention_seconds};
  ESP_TRY(esp_bench_compare(bench, title, &batch, 1, &result));
  report(bench, name, images, result.median);
  return ESP_OK;
}

static esp_status run(esp_bench *bench, const bench_model *model, const char *name, int64_t images) {
  model_stage stage = {.tape = NULL};
  const esp_status status = run_batch(bench, model, name, images, &stage);
  model_stage_clear(&stage);
  return status;
}

esp_status esp_bench_infer(esp_bench *bench) {
  static const int64_t batches[] = {1, 8, 128};
  if (bench->quick) return run(bench, &bench_quick_model, "small", 1);
  for (size_t i = 0; i < sizeof batches / sizeof batches[0]; i++) {
    ESP_TRY(run(bench, &bench_reference_model, "reference", batches[i]));
    ESP_TRY(run(bench, &bench_teaching_model, "teaching", batches[i]));
  }
  return ESP_OK;
}
