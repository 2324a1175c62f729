#include <espalier/bench.h>
#include <espalier/evaluate.h>
#include <espalier/memory.h>
#include <espalier/compare.h>

#include <jansson.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <time.h>

/* A round of a case lasts at least this long, or the clock would show; longer ones would be interrupted more often. */
static const double least_seconds = 2e-4;

static double read_clock(const esp_bench *bench) {
  if (!bench->processor_time) return esp_seconds();
  struct timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

int64_t esp_bench_peak_memory(void) {
  struct rusage usage;
  return getrusage(RUSAGE_SELF, &usage) == 0 ? (int64_t)usage.ru_maxrss * 1024 : 0;
}

static esp_status time_runs(const esp_bench *bench, const esp_bench_case *c, int64_t runs, double *seconds) {
  const double start = read_clock(bench);
  for (int64_t i = 0; i < runs; i++) ESP_TRY(c->run(c->context));
  *seconds = (read_clock(bench) - start) / (double)runs;
  return ESP_OK;
}

/* Runs the case once to warm up, then finds how many runs make a round. */
static esp_status choose_runs(const esp_bench *bench, const esp_bench_case *c, int64_t *runs) {
  ESP_TRY(c->run(c->context));
  for (*runs = 1;; *runs *= 2) {
    double seconds;
    ESP_TRY(time_runs(bench, c, *runs, &seconds));
    if (seconds * (double)*runs >= least_seconds) return ESP_OK;
  }
}

double esp_bench_median(double *values, int count) {
  qsort(values, (size_t)count, sizeof *values, esp_ascending);
  return count % 2 ? values[count / 2] : (values[count / 2 - 1] + values[count / 2]) / 2;
}

/* samples [cases, rounds], case after case, which are sorted in the end. */
static void summarise(double *samples, int count, int rounds, double *scratch, esp_bench_result *results) {
  for (int i = 0; i < count; i++) {
    for (int r = 0; r < rounds; r++) scratch[r] = samples[i * rounds + r] / samples[r];
    results[i].ratio = esp_bench_median(scratch, rounds);
  }
  for (int i = 0; i < count; i++) {
    results[i].median = esp_bench_median(samples + i * rounds, rounds);
    results[i].best = samples[i * rounds];
  }
}

static esp_status take_samples(const esp_bench *bench, const esp_bench_case *cases, int count, double *samples) {
  int64_t runs[ESP_BENCH_CASES];
  for (int i = 0; i < count; i++) ESP_TRY(choose_runs(bench, &cases[i], &runs[i]));
  for (int r = 0; r < bench->rounds; r++)
    for (int i = 0; i < count; i++) ESP_TRY(time_runs(bench, &cases[i], runs[i], &samples[i * bench->rounds + r]));
  return ESP_OK;
}

static double reached_share(const esp_bench_case *c, const esp_bench_result *r) {
  return (1 - r->ratio) / (1 - c->least);
}

static void print_case(FILE *table, const esp_bench_case *c, const esp_bench_result *r) {
  fprintf(table, "  %-22s %11.3f %11.3f %7.3f", c->name, 1e6 * r->median, 1e6 * r->best, r->ratio);
  if (c->flops > 0) fprintf(table, " %9.1f", 1e-9 * c->flops / r->median);
  else fprintf(table, " %9s", "");
  if (c->limit > 0) fprintf(table, " %5.0f %% of the limit", 100 * c->limit / r->median);
  if (c->least > 0 && c->least < 1) fprintf(table, " %7.3f %7.0f %%", c->least, 100 * reached_share(c, r));
  fputc('\n', table);
}

static void print_table(FILE *table, const char *name, const esp_bench_case *cases, int count,
                        const esp_bench_result *results) {
  bool any_least = false;
  for (int i = 0; i < count; i++) any_least |= cases[i].least > 0;
  fprintf(table, "%s\n  %-22s %11s %11s %7s %9s%s\n", name, "", "median us", "best us", "ratio", "GFLOP/s",
          any_least ? "   least  reached" : "");
  for (int i = 0; i < count; i++) print_case(table, &cases[i], &results[i]);
  fputc('\n', table);
}

static json_t *case_json(const esp_bench_case *c, const esp_bench_result *r) {
  json_t *json = json_pack("{s:s, s:f, s:f, s:f}", "name", c->name, "median_seconds", r->median, "best_seconds",
                           r->best, "ratio", r->ratio);
  if (json && c->flops > 0) {
    json_object_set_new(json, "flops", json_real(c->flops));
    json_object_set_new(json, "gflops", json_real(1e-9 * c->flops / r->median));
  }
  if (json && c->limit > 0) json_object_set_new(json, "limit_share", json_real(c->limit / r->median));
  if (json && c->least > 0 && c->least < 1) {
    json_object_set_new(json, "least_ratio", json_real(c->least));
    json_object_set_new(json, "reached", json_real(reached_share(c, r)));
  }
  return json;
}

static void add_json(json_t *comparisons, const char *name, const esp_bench_case *cases, int count,
                     const esp_bench_result *results) {
  json_t *list = json_array();
  for (int i = 0; i < count; i++) json_array_append_new(list, case_json(&cases[i], &results[i]));
  json_array_append_new(comparisons, json_pack("{s:s, s:o}", "name", name, "cases", list));
}

esp_status esp_bench_measure(const esp_bench *bench, const esp_bench_case *cases, int count,
                             esp_bench_result *results) {
  if (count < 1 || count > ESP_BENCH_CASES) esp_panic("esp_bench_measure: %d cases", count);
  double *samples = esp_alloc((size_t)(count + 1) * (size_t)bench->rounds, sizeof *samples);
  if (!samples) return ESP_ERR_MEMORY;
  const esp_status status = take_samples(bench, cases, count, samples);
  if (status == ESP_OK) summarise(samples, count, bench->rounds, samples + count * bench->rounds, results);
  esp_free(samples);
  return status;
}

void esp_bench_report(const esp_bench *bench, const char *name, const esp_bench_case *cases, int count,
                      const esp_bench_result *results) {
  if (bench->table) print_table(bench->table, name, cases, count, results);
  add_json(bench->comparisons, name, cases, count, results);
}

esp_status esp_bench_compare(esp_bench *bench, const char *name, const esp_bench_case *cases, int count,
                             esp_bench_result *results) {
  esp_bench_result found[ESP_BENCH_CASES];
  ESP_TRY(esp_bench_measure(bench, cases, count, found));
  esp_bench_report(bench, name, cases, count, found);
  for (int i = 0; results && i < count; i++) results[i] = found[i];
  return ESP_OK;
}

void esp_bench_figure(const esp_bench *bench, const char *name, double value, const char *unit) {
  if (bench->table) fprintf(bench->table, "  %-34s %14.6g %s\n", name, value, unit);
  if (bench->figures) json_object_set_new(bench->figures, name, json_real(value));
}

void esp_bench_count(const esp_bench *bench, const char *name, int64_t value, const char *unit) {
  if (bench->table) fprintf(bench->table, "  %-34s %14lld %s\n", name, (long long)value, unit);
  if (bench->figures) json_object_set_new(bench->figures, name, json_integer(value));
}

static void print_split(FILE *table, const char *name, const esp_bench_part *parts, int count, double whole) {
  fprintf(table, "%s\n  %-34s %11s %7s\n", name, "", "median us", "share");
  for (int i = 0; i < count; i++)
    fprintf(table, "  %-34s %11.1f %5.1f %%\n", parts[i].name, 1e6 * parts[i].seconds, 100 * parts[i].seconds / whole);
  fputc('\n', table);
}

void esp_bench_split(const esp_bench *bench, const char *name, const esp_bench_part *parts, int count, double whole) {
  if (bench->table) print_split(bench->table, name, parts, count, whole);
  if (!bench->figures) return;
  json_t *object = json_object();
  for (int i = 0; i < count; i++)
    json_object_set_new(object, parts[i].name,
                        json_pack("{s:f, s:f}", "seconds", parts[i].seconds, "share", parts[i].seconds / whole));
  json_object_set_new(bench->figures, name, object);
}
