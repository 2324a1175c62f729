/* The matrix products of a model's training step, taken from its settings, and what this machine makes of them: with
 * the kernels that the program chooses, and with OpenBLAS. */
#ifndef ESPALIER_STEP_PRODUCTS_H
#define ESPALIER_STEP_PRODUCTS_H

#include <espalier/bench.h>
#include <espalier/blas.h>
#include <espalier/model_config.h>

enum { ESP_MOST_STEP_PRODUCTS = 48, ESP_STEP_PRODUCT_NAME = 40 };

/* `groups` products of one shape that the program hands over as one list (an expert's each, or an image's and head's),
 * and how often a step has such a list. C [m, n] = op(A) [m, k] op(B) [k, n]. */
typedef struct esp_step_product {
  char name[ESP_STEP_PRODUCT_NAME]; /* "experts up, dW" */
  int64_t m, n, k, groups;
  bool transpose_a, transpose_b;
  int uses;
  bool attention; /* of queries, keys and values: within an op that does more than products */
} esp_step_product;

/* Lists the products of a step of `images` images: forward, and with `training` the gradients of inputs (dX) and of
 * weights (dW), the latter alone for the stem, whose input is an image. Experts have even loads. The models are those
 * of patches, attention and mixtures of one member whose tokens choose; blocks of a kind are alike. Returns how many
 * products there are, at most ESP_MOST_STEP_PRODUCTS. */
int esp_step_products(const esp_model_config *config, int64_t images, bool training, esp_step_product *products);

/* Multiply-adds times two of all uses in a step. */
double esp_step_product_flops(const esp_step_product *product);

/* Operands for any of the products, and the ways to compute them. */
typedef struct esp_product_stage {
  esp_real *a, *b, *c;
  esp_real *partial; /* for esp_gemm_sums() */
} esp_product_stage;

esp_status esp_product_stage_set(esp_product_stage *stage, const esp_step_product *products, int count) ESP_MUST_CHECK;
void esp_product_stage_clear(esp_product_stage *stage);

typedef enum esp_product_way {
  ESP_WAY_PROGRAM,   /* esp_gemm_run(), or esp_gemm_sums() where sums are over rows, with the whole list */
  ESP_WAY_SLABS,     /* every thread a slab of rows of its own, of one product after another, uncut but for that */
  ESP_WAY_WHOLE,     /* whole products in parallel; with one thread, or one product, one product after another */
  ESP_WAY_BLAS_LIST, /* the same three by OpenBLAS; the first as the program would without own kernels */
  ESP_WAY_BLAS_SLABS,
  ESP_WAY_BLAS_WHOLE,
  ESP_WAYS
} esp_product_way;

extern const char *const esp_product_way_names[ESP_WAYS];

typedef struct esp_product_run {
  const esp_product_stage *stage;
  const esp_step_product *product;
  esp_product_way way;
} esp_product_run;

/* Computes the list once, for an esp_bench_case. context: a esp_product_run. */
esp_status esp_run_product(void *context);

/* Seconds that the products of a step take at the limit: each the best of its ways. */
typedef struct esp_step_limit {
  double seconds, flops;                     /* without those of attention */
  double attention_seconds, attention_flops; /* those */
  double program_seconds;                    /* all of them as the program runs them, alone */
} esp_step_limit;

/* What was measured of one product. */
typedef struct esp_product_times {
  esp_product_run runs[ESP_WAYS];
  esp_bench_case cases[ESP_WAYS];
  esp_bench_result results[ESP_WAYS];
  double least; /* seconds of the best way */
} esp_product_times;

/* One product after another, its ways in turns. `times` [count]; NULL: not wanted. */
esp_status esp_measure_limit(const esp_bench *bench, const esp_step_product *products, int count,
                             esp_product_times *times, esp_step_limit *limit) ESP_MUST_CHECK;

#endif
