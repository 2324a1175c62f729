/* What the own kernels and OpenBLAS give at the shapes of a training step of the reference model: the limit of the
 * step. */
#include "stages_internal.h"
#include "suites_internal.h"

#include <espalier/step_products.h>

#include <stdio.h>

static void print_head(FILE *table) {
  fprintf(table, "%-32s %6s %5s %6s %6s %5s", "GFLOP/s of C [m, n] = A [m, k] B", "m", "n", "k", "groups", "uses");
  for (int way = 0; way < ESP_WAYS; way++) fprintf(table, " %15s", esp_product_way_names[way]);
  fprintf(table, "   of the limit\n");
}

static void print_product(FILE *table, const esp_step_product *p, const esp_product_times *t) {
  fprintf(table, "%-32s %6lld %5lld %6lld %6lld %5d", p->name, (long long)p->m, (long long)p->n, (long long)p->k,
          (long long)p->groups, p->uses);
  for (int way = 0; way < ESP_WAYS; way++)
    fprintf(table, " %15.1f", 1e-9 * t->cases[way].flops / t->results[way].median);
  fprintf(table, " %12.0f %%\n", 100 * t->least / t->results[ESP_WAY_PROGRAM].median);
}

static void report(const esp_bench *bench, const esp_step_product *products, int count,
                   const esp_product_times *times) {
  esp_bench quiet = *bench;
  quiet.table = NULL;
  if (bench->table) print_head(bench->table);
  for (int i = 0; i < count; i++) {
    if (bench->table) print_product(bench->table, &products[i], &times[i]);
    esp_bench_report(&quiet, products[i].name, times[i].cases, ESP_WAYS, times[i].results);
  }
  if (bench->table) fputc('\n', bench->table);
}

esp_status esp_bench_gemm(esp_bench *bench) {
  esp_step_product products[ESP_MOST_STEP_PRODUCTS];
  esp_product_times times[ESP_MOST_STEP_PRODUCTS];
  esp_step_limit limit;
  const bench_model *model = bench->quick ? &bench_quick_model : &bench_reference_model;
  const esp_model_config config = bench_model_config(model);
  const int count = esp_step_products(&config, model->batch, true, products);
  ESP_TRY(esp_measure_limit(bench, products, count, times, &limit));
  report(bench, products, count, times);
  const double seconds = limit.seconds + limit.attention_seconds, flops = limit.flops + limit.attention_flops;
  esp_bench_figure(bench, "step_flops", flops, "FLOPs of a step's products");
  esp_bench_figure(bench, "step_limit_seconds", limit.seconds, "s, without attention's");
  esp_bench_figure(bench, "step_limit_seconds_attention", limit.attention_seconds, "s, attention's own");
  esp_bench_figure(bench, "limit_gflops", 1e-9 * flops / seconds, "GFLOP/s at the limit");
  esp_bench_figure(bench, "program_gflops", 1e-9 * flops / limit.program_seconds, "GFLOP/s as the program runs them");
  esp_bench_figure(bench, "program_limit_share", seconds / limit.program_seconds, "of the limit");
  return ESP_OK;
}
