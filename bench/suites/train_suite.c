/* A training step by phase and by kind of op, as images per second and as a share of the limit of its products. */
#include "logging_internal.h"
#include "op_times_internal.h"
#include "stages_internal.h"
#include "suites_internal.h"

#include <espalier/memory.h>
#include <espalier/step_products.h>

#include <stdio.h>

/* Phases, then kinds of op forward, then backward, those that are computed again among them. */
enum {
  FORWARD,
  BACKWARD,
  OPTIMISER,
  DATA,
  PHASES,
  FORWARD_OPS = PHASES,
  BACKWARD_OPS = FORWARD_OPS + OP_KINDS,
  PARTS = BACKWARD_OPS + OP_KINDS
};

static const char *const phase_names[PHASES] = {"forward", "backward", "optimiser", "data"};

/* What one timed step was made of, in seconds. */
typedef struct step_parts {
  double seconds[PARTS];
} step_parts;

static void take_parts(const op_times *t, double begin, double end, double waited, double seconds[PARTS]) {
  seconds[FORWARD] = t->backward_begin - begin;
  seconds[BACKWARD] = t->backward_end - t->backward_begin;
  seconds[OPTIMISER] = end - t->backward_end;
  seconds[DATA] = waited;
  for (int kind = 0; kind < OP_KINDS; kind++) {
    seconds[FORWARD_OPS + kind] = t->seconds[ESP_OP_FORWARD][kind];
    seconds[BACKWARD_OPS + kind] = t->seconds[ESP_OP_AGAIN][kind] + t->seconds[ESP_OP_BACKWARD][kind];
  }
}

/* A step that waits for a batch of the loader first, as in a run, and then takes the one that is always the same. */
static esp_status time_step(model_stage *stage, esp_loader *loader, double seconds[PARTS]) {
  op_times times;
  const esp_batch *batch;
  const double start = esp_seconds();
  ESP_TRY(esp_loader_next(loader, &batch));
  const double begin = esp_seconds();
  op_times_start(&times, stage->tape);
  const esp_status status = model_stage_train(stage);
  take_parts(&times, begin, esp_seconds(), begin - start, seconds);
  esp_tape_set_timer(stage->tape, NULL);
  return status;
}

/* The median of each part over the rounds. samples: rounds of them. */
static void reduce(step_parts *samples, int rounds, double *scratch, double seconds[PARTS]) {
  for (int part = 0; part < PARTS; part++) {
    for (int r = 0; r < rounds; r++) scratch[r] = samples[r].seconds[part];
    seconds[part] = esp_bench_median(scratch, rounds);
  }
}

static esp_status time_rounds(const esp_bench *bench, model_stage *stage, esp_loader *loader, double seconds[PARTS]) {
  step_parts *samples = esp_alloc((size_t)bench->rounds, sizeof *samples + sizeof(double));
  if (!samples) return ESP_ERR_MEMORY;
  esp_status status = ESP_OK;
  for (int r = 0; r < bench->rounds && status == ESP_OK; r++) status = time_step(stage, loader, samples[r].seconds);
  if (status == ESP_OK) reduce(samples, bench->rounds, (double *)(samples + bench->rounds), seconds);
  esp_free(samples);
  return status;
}

static esp_status open_loader(esp_loader **loader, const esp_dataset *dataset, int64_t batch) {
  esp_loader_options options = {
      .batch = batch, .shuffle = true, .drop_last = true, .augmentation = {.crop_padding = 4, .flip = true}, .seed = 1};
  esp_dataset_normalisation(dataset, &options.normalisation);
  return esp_loader_create(loader, dataset, ESP_TRAIN, &options, 0);
}

static esp_status split_step(const esp_bench *bench, model_stage *stage, double seconds[PARTS]) {
  esp_dataset *dataset;
  esp_loader *loader = NULL;
  ESP_TRY(esp_dataset_open(&dataset, "synthetic"));
  esp_status status = open_loader(&loader, dataset, stage->batch.count);
  if (status == ESP_OK) status = time_rounds(bench, stage, loader, seconds);
  esp_loader_close(loader);
  esp_dataset_close(dataset);
  return status;
}

/* Ops' own time is less than that of their phase: the rest is the tape's, and what ops wait for each other. */
static void report_parts(const esp_bench *bench, const char *model, const double seconds[PARTS]) {
  char names[2 * OP_KINDS][64], title[96];
  esp_bench_part phases[PHASES], kinds[2 * OP_KINDS];
  double whole = 0;
  for (int i = 0; i < PHASES; i++) {
    phases[i] = (esp_bench_part){phase_names[i], seconds[i]};
    whole += seconds[i];
  }
  for (int i = 0; i < 2 * OP_KINDS; i++) {
    snprintf(names[i], sizeof names[i], "%s: %s", i < OP_KINDS ? "forward" : "backward", op_kind_names[i % OP_KINDS]);
    kinds[i] = (esp_bench_part){names[i], seconds[PHASES + i]};
  }
  snprintf(title, sizeof title, "%s: phases of a step", model);
  esp_bench_split(bench, title, phases, PHASES, whole);
  snprintf(title, sizeof title, "%s: ops of a step", model);
  esp_bench_split(bench, title, kinds, 2 * OP_KINDS, whole);
}

/* The figures of the model that comparisons are about; of others the name goes before. */
static void report_figures(const esp_bench *bench, const model_stage *stage, const esp_step_limit *limit, double step) {
  const double all = limit->seconds + limit->attention_seconds, flops = limit->flops + limit->attention_flops;
  esp_bench_figure(bench, "images_per_second", (double)stage->batch.count / step, "images/s");
  esp_bench_figure(bench, "step_seconds", step, "s");
  esp_bench_figure(bench, "step_flops", flops, "FLOPs of products");
  esp_bench_figure(bench, "step_gflops", 1e-9 * flops / step, "GFLOP/s");
  esp_bench_figure(bench, "gemm_limit_seconds", limit->seconds, "s at the limit, without attention's products");
  esp_bench_figure(bench, "gemm_limit_fraction", limit->seconds / step, "of the step");
  esp_bench_figure(bench, "gemm_limit_fraction_with_attention", all / step, "of the step");
  esp_bench_count(bench, "step_memory_bytes", (int64_t)esp_arena_capacity(esp_tape_arena(stage->tape)), "bytes");
}

static void report_bf16(const esp_bench *bench, const model_stage *stage, const esp_bench_result *result) {
  esp_bench_figure(bench, "bf16_images_per_second", (double)stage->batch.count / result->median, "images/s");
  esp_bench_figure(bench, "bf16_step_ratio", result->ratio, "of the step in fp32");
}

static void report_rate(const esp_bench *bench, const char *name, const model_stage *stage, const esp_step_limit *limit,
                        double step) {
  char figure[64];
  snprintf(figure, sizeof figure, "%s_images_per_second", name);
  esp_bench_figure(bench, figure, (double)stage->batch.count / step, "images/s");
  snprintf(figure, sizeof figure, "%s_gemm_limit_fraction", name);
  esp_bench_figure(bench, figure, limit->seconds / step, "of the step");
}

/* Before anything else takes memory. */
static esp_status first_steps(const esp_bench *bench, model_stage *stage, bool is_reference) {
  ESP_TRY(model_stage_train(stage));
  const uint64_t before = esp_allocation_count();
  for (int i = 0; i < 3; i++) ESP_TRY(model_stage_train(stage));
  if (!is_reference) return ESP_OK;
  esp_bench_count(bench, "allocations_after_first_step", (int64_t)(esp_allocation_count() - before), "");
  esp_bench_count(bench, "peak_memory_bytes", esp_bench_peak_memory(), "bytes, before the products are measured");
  return ESP_OK;
}

static esp_status run_model(esp_bench *bench, const bench_model *model, const char *name, bool is_reference,
                            model_stage *stage) {
  esp_step_product products[ESP_MOST_STEP_PRODUCTS];
  esp_step_limit limit;
  double seconds[PARTS];
  char title[96];
  ESP_TRY(model_stage_set(stage, model, model->batch, true));
  ESP_TRY(first_steps(bench, stage, is_reference));
  const int count = esp_step_products(&stage->config, model->batch, true, products);
  ESP_TRY(esp_measure_limit(bench, products, count, NULL, &limit));
  snprintf(title, sizeof title, "training of the %s, batch %d, AdamW", model->name, model->batch);
  const esp_bench_case step = {.name = "step",
                               .run = model_stage_train,
                               .context = stage,
                               .flops = limit.flops + limit.attention_flops,
                               .limit = limit.seconds};
  esp_bench_case ways[2] = {step, step};
  ways[1].name = "step in bf16";
  ways[1].run = model_stage_train_bf16;
  ways[1].limit = 0; /* that of fp32 is none of it */
  const bool has_bf16 = esp_precision_check(ESP_BF16) == ESP_OK;
  esp_bench_result results[2];
  ESP_TRY(esp_bench_compare(bench, title, ways, has_bf16 ? 2 : 1, results));
  ESP_TRY(split_step(bench, stage, seconds));
  report_parts(bench, name, seconds);
  if (!is_reference) {
    report_rate(bench, name, stage, &limit, results[0].median);
    return ESP_OK;
  }
  report_figures(bench, stage, &limit, results[0].median);
  if (has_bf16) report_bf16(bench, stage, &results[1]);
  return bench_logging(bench, stage, results[0].median);
}

static esp_status run(esp_bench *bench, const bench_model *model, const char *name, bool is_reference) {
  model_stage stage = {.tape = NULL};
  const esp_status status = run_model(bench, model, name, is_reference, &stage);
  model_stage_clear(&stage);
  return status;
}

esp_status esp_bench_train(esp_bench *bench) {
  if (bench->quick) return run(bench, &bench_quick_model, "reference", true);
  ESP_TRY(run(bench, &bench_reference_model, "reference", true));
  return run(bench, &bench_teaching_model, "teaching", false);
}
