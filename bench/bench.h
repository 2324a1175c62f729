/* Benchmarks: suites of comparisons, each of a few cases that do the same work in different ways. The cases of a
 * comparison run in turns (A B A B ...), so that what else the machine does hits all of them; figures are medians over
 * the rounds, ratios the medians of each round's ratio. */
#ifndef ESPALIER_BENCH_H
#define ESPALIER_BENCH_H

#include <espalier/status.h>
#include <stdint.h>
#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif

struct json_t; /* jansson's */

enum { ESP_BENCH_CASES = 128, ESP_BENCH_ROUNDS = 21 };

/* What a suite reports to. */
typedef struct esp_bench {
  int rounds;          /* of each comparison */
  bool quick;          /* only the smallest comparison of a suite: to see that it works */
  bool processor_time; /* times are those of the calling thread on its processor, which is fair if it does all the
                                 work: then other programs' turns do not count. Otherwise wall time */
  FILE *table;         /* where tables go; NULL: nowhere */
  struct json_t *comparisons; /* gets an object of each: name, cases[] of name, median_seconds, best_seconds, ratio and,
                                 where known, flops, gflops, limit_share, least_ratio, reached */
  /* an object that gets what a suite has found, by name: numbers, and an object for what is split up; NULL: not
   * wanted */
  struct json_t *figures;
} esp_bench;

/* One way to do the work of a comparison. */
typedef struct esp_bench_case {
  const char *name;
  esp_status (*run)(void *context);
  void *context;
  double flops; /* of one run; 0: not counted */
  double least; /* the share of the first case's work (FLOPs, or weights read) that this one cannot do without; 0: not
                   known. 1 - least is the saving that is possible, (1 - ratio) / (1 - least) the share of it reached */
  double limit; /* seconds that the machine would need at its limit; 0: not known */
} esp_bench_case;

typedef struct esp_bench_result {
  double median, best; /* seconds of one run */
  double ratio;        /* to the first case of the comparison */
} esp_bench_result;

typedef struct esp_bench_suite {
  const char *name, *help;
  esp_status (*run)(esp_bench *bench);
} esp_bench_suite;

/* All suites; ends with a row whose name is NULL. A new one is a file of this folder and a row here. */
extern const esp_bench_suite esp_bench_suites[];

/* Nanoseconds that a cache line takes from one thread to another, which is more where the cores have no cache in
 * common; 0 with one thread. */
double esp_bench_core_distance(void);

/* Measures, prints a table, adds to bench->comparisons. Each case runs often enough in a round that the clock can tell,
 * and once before the first. `results` [count], count <= ESP_BENCH_CASES; NULL: not wanted. ESP_ERR_MEMORY, or what a
 * case fails with. */
esp_status esp_bench_compare(esp_bench *bench, const char *name, const esp_bench_case *cases, int count,
                             esp_bench_result *results) ESP_MUST_CHECK;

/* The same without printing and adding. */
esp_status esp_bench_measure(const esp_bench *bench, const esp_bench_case *cases, int count,
                             esp_bench_result *results) ESP_MUST_CHECK;

/* Prints the table and adds to bench->comparisons what has been measured. */
void esp_bench_report(const esp_bench *bench, const char *name, const esp_bench_case *cases, int count,
                      const esp_bench_result *results);

/* Prints a figure and adds it to bench->figures; the unit is for people. */
void esp_bench_figure(const esp_bench *bench, const char *name, double value, const char *unit);

/* The same for a whole number, a size or a count. */
void esp_bench_count(const esp_bench *bench, const char *name, int64_t value, const char *unit);

/* A part of something that took time. */
typedef struct esp_bench_part {
  const char *name;
  double seconds;
} esp_bench_part;

/* Prints what a time is made of, with shares of `whole` seconds, and adds an object called `name` to bench->figures. */
void esp_bench_split(const esp_bench *bench, const char *name, const esp_bench_part *parts, int count, double whole);

/* Sorts the values. */
double esp_bench_median(double *values, int count);

/* The most memory that the process has had so far, in bytes. */
int64_t esp_bench_peak_memory(void);

#ifdef __cplusplus
}
#endif
#endif
