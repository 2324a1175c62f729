/* bench: runs one of the suites of bench/. */
#include "commands_internal.h"

#include <espalier/bench.h>
#include <espalier/core.h>

#include <stdio.h>
#include <string.h>

enum { MOST_ROUNDS = 100000 };

static esp_status find_suite(const char *name, const esp_bench_suite **suite) {
  const char *names[64];
  size_t count = 0;
  for (*suite = esp_bench_suites; (*suite)->name; (*suite)++) {
    if (strcmp((*suite)->name, name) == 0) return ESP_OK;
    if (count < sizeof names / sizeof names[0]) names[count++] = (*suite)->name;
  }
  return esp_fail_unknown(ESP_ERR_USAGE, "suite", name, names, count);
}

static int list_suites(bool as_json) {
  json_t *list = json_array();
  for (const esp_bench_suite *s = esp_bench_suites; s->name; s++) {
    if (!as_json) printf("  %-20s %s\n", s->name, s->help);
    json_array_append_new(list, json_pack("{s:s, s:s}", "name", s->name, "help", s->help));
  }
  if (as_json) return print_json(json_pack("{s:o}", "suites", list));
  json_decref(list);
  return EXIT_DONE;
}

static const char *clock_name(const esp_bench *bench) { return bench->processor_time ? "processor" : "wall"; }

static json_t *bench_json(const esp_bench_suite *suite, const esp_bench *bench, double distance) {
  json_t *json =
      json_pack("{s:s, s:s, s:i, s:f, s:s, s:s, s:i, s:s, s:I, s:O}", "suite", suite->name, "version", esp_version(),
                "threads", esp_threads(), "core_distance_nanoseconds", distance, "blas_kernel", esp_blas_kernel(),
                "product_kernel", esp_gemm_kernel(), "rounds", bench->rounds, "clock", clock_name(bench),
                "peak_memory_bytes", (json_int_t)esp_bench_peak_memory(), "comparisons", bench->comparisons);
  json_object_update(json, bench->figures);
  return json;
}

static int run_suite(const esp_bench_suite *suite, const arguments *a, int rounds) {
  esp_bench bench = {.rounds = rounds,
                     .processor_time = esp_threads() == 1,
                     .table = a->json ? NULL : stdout,
                     .comparisons = json_array(),
                     .figures = json_object()};
  const double distance = esp_bench_core_distance();
  if (!a->json)
    printf("suite %s, espalier %s: %d threads, own kernels %s, BLAS kernel %s, %d rounds\n", suite->name, esp_version(),
           esp_threads(), esp_gemm_kernel(), esp_blas_kernel(), rounds);
  if (!a->json && distance > 0) printf("a cache line takes %.0f ns from one thread to another\n", distance);
  if (!a->json) putchar('\n');
  const esp_status status = suite->run(&bench);
  int code = status == ESP_OK ? EXIT_DONE : report_failure(status);
  if (status == ESP_OK && a->json) code = print_json(bench_json(suite, &bench, distance));
  else if (status == ESP_OK) printf("peak memory %.1f MB\n", 1e-6 * (double)esp_bench_peak_memory());
  json_decref(bench.comparisons);
  json_decref(bench.figures);
  return code;
}

static int run_bench(const arguments *a) {
  if (a->operand_count == 0 && refuse_options(a, "--rounds", "no suite is named") != ESP_OK)
    return report_failure(ESP_ERR_USAGE);
  if (a->operand_count == 0) return list_suites(a->json);
  const esp_bench_suite *suite;
  long long rounds;
  esp_status status = find_suite(a->operands[0], &suite);
  if (status == ESP_OK) status = whole_number("--rounds", a->rounds, 1, MOST_ROUNDS, ESP_BENCH_ROUNDS, &rounds);
  return status == ESP_OK ? run_suite(suite, a, (int)rounds) : report_failure(status);
}

/* --- help ------------------------------------------------------------------------------------------------------ */

static const command_option options[] = {
    {"--rounds", NULL},
    {NULL, NULL},
};

const command bench_command = {
    .name = "bench",
    .usage = "bench [SUITE] [--rounds N]",
    .summary = "Compares speeds on this machine",
    .details =
        "Without SUITE it lists them. Cases that are compared run in turns in one process; figures are medians, "
        "ratios are those of each round. With --threads 1 times are the processor's, so that other programs' "
        "turns do not count.\n"
        "\"least\" is the share of the first case's work that a case cannot do without, \"reached\" how much of the "
        "possible saving its time shows. \"of the limit\" is the share of the time that the products of a case "
        "take at the speed that this machine's BLAS gives for their shapes, measured in the same run (suite "
        "gemm). `train` shows a training step by phase and kind of op. Other work on the machine disturbs: "
        "ratios stand it better than times.",
    .example = "bench train\n"
               "bench mone --threads 1",
    .options = options,
    .most_operands = 1,
    .run = run_bench,
};
