#include <espalier/step_products.h>

#include <espalier/memory.h>
#include <espalier/parallel.h>
#include <espalier/random.h>

#include <stdio.h>

const char *const esp_product_way_names[ESP_WAYS] = {"as the program", "slabs of rows",   "whole products",
                                                     "OpenBLAS: list", "OpenBLAS: slabs", "OpenBLAS: whole"};

/* --- which there are ------------------------------------------------------------------------------------------ */

typedef struct product_list {
  esp_step_product *products;
  int count;
  bool training;
} product_list;

static void add(product_list *list, const char *name, const char *pass, esp_step_product product) {
  if (list->count == ESP_MOST_STEP_PRODUCTS) esp_panic("more than %d products", ESP_MOST_STEP_PRODUCTS);
  if (product.uses == 0) return;
  snprintf(product.name, sizeof product.name, "%s, %s", name, pass);
  list->products[list->count++] = product;
}

typedef struct linear_shape {
  int64_t rows, in, out, groups;
  int uses;
  bool weight_by_input; /* the weight is [in, out], as experts.down, not [out, in] */
  bool of_images;       /* nobody asks for the input's gradient */
} linear_shape;

/* y = x W^T or x W. */
static void add_linear(product_list *list, const char *name, const linear_shape *s) {
  const bool by_input = s->weight_by_input;
  add(list, name, "forward",
      (esp_step_product){
          .m = s->rows, .n = s->out, .k = s->in, .groups = s->groups, .transpose_b = !by_input, .uses = s->uses});
  if (!list->training) return;
  if (!s->of_images)
    add(list, name, "dX",
        (esp_step_product){
            .m = s->rows, .n = s->in, .k = s->out, .groups = s->groups, .transpose_b = by_input, .uses = s->uses});
  add(list, name, "dW",
      (esp_step_product){.m = by_input ? s->in : s->out,
                         .n = by_input ? s->out : s->in,
                         .k = s->rows,
                         .groups = s->groups,
                         .transpose_a = true,
                         .uses = s->uses});
}

/* Scores q k^T, then scores v; backward two products of each. */
static void add_attention(product_list *list, int64_t tokens, int64_t head_width, int64_t groups, int uses) {
  const esp_step_product scores = {.m = tokens,
                                   .n = tokens,
                                   .k = head_width,
                                   .groups = groups,
                                   .transpose_b = true,
                                   .uses = uses,
                                   .attention = true};
  esp_step_product sums = {
      .m = tokens, .n = head_width, .k = tokens, .groups = groups, .uses = uses, .attention = true};
  add(list, "attention scores", "forward", scores);
  add(list, "attention sums", "forward", sums);
  if (!list->training) return;
  add(list, "attention scores", "gradient", scores);
  add(list, "queries", "gradient", sums);
  sums.transpose_a = true;
  sums.uses = 2 * uses;
  add(list, "keys, values", "gradient", sums);
}

static void add_feed_forward(product_list *list, const char *up, const char *down, const esp_model_config *c,
                             linear_shape shape, int64_t hidden) {
  const int64_t parts = esp_activation_is_gated(c->feed_forward.activation) ? 2 : 1;
  shape.in = c->width;
  shape.out = parts * hidden;
  add_linear(list, up, &shape);
  shape.in = hidden;
  shape.out = c->width;
  shape.weight_by_input = true;
  add_linear(list, down, &shape);
}

static int count_mixtures(const esp_model_config *c) {
  int count = 0;
  for (int i = 0; i < c->blocks; i++) count += esp_layer_kind_of(c, i) != ESP_LAYER_DENSE;
  return count;
}

int esp_step_products(const esp_model_config *config, int64_t images, bool training, esp_step_product *products) {
  product_list list = {products, 0, training};
  int rows, columns;
  esp_token_grid(config, &rows, &columns);
  const int64_t tokens = (int64_t)rows * columns, all = images * tokens, width = config->width;
  const int64_t pixels = (int64_t)config->stem.patch * config->stem.patch * config->image_channels;
  const int mixtures = count_mixtures(config), blocks = config->blocks, experts = config->moe.experts;
  add_linear(&list, "patches", &(linear_shape){all, pixels, width, 1, 1, false, true});
  add_linear(&list, "queries, keys, values", &(linear_shape){all, width, 3 * width, 1, blocks, false, false});
  add_attention(&list, tokens, width / config->heads, images * config->heads, blocks);
  add_linear(&list, "projection", &(linear_shape){all, width, width, 1, blocks, false, false});
  add_feed_forward(&list, "dense up", "dense down", config,
                   (linear_shape){.rows = all, .groups = 1, .uses = blocks - mixtures}, config->feed_forward.hidden);
  add_linear(&list, "router", &(linear_shape){all, width, experts, 1, mixtures, false, false});
  const int64_t slots = all * config->moe.top_k;
  add_feed_forward(&list, "experts up", "experts down", config,
                   (linear_shape){.rows = (slots + experts - 1) / experts, .groups = experts, .uses = mixtures},
                   config->moe.hidden);
  add_linear(&list, "head", &(linear_shape){images, width, config->classes, 1, 1, false, false});
  return list.count;
}

double esp_step_product_flops(const esp_step_product *p) {
  return 2.0 * (double)p->m * (double)p->n * (double)p->k * (double)p->groups * p->uses;
}

/* --- running them --------------------------------------------------------------------------------------------- */

static esp_real *operand(int64_t count) {
  esp_real *values = esp_alloc((size_t)count, sizeof *values);
  esp_random random = esp_random_stream(1, ESP_PURPOSE_TEST, (uint64_t)count);
  for (int64_t i = 0; values && i < count; i++) values[i] = (esp_real)(esp_random_uniform(&random) - 0.5);
  return values;
}

static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

esp_status esp_product_stage_set(esp_product_stage *stage, const esp_step_product *products, int count) {
  int64_t a = 0, b = 0, c = 0, partial = 0;
  for (int i = 0; i < count; i++) {
    const esp_step_product *p = &products[i];
    a = larger(a, p->groups * p->m * p->k);
    b = larger(b, p->groups * p->k * p->n);
    c = larger(c, p->groups * p->m * p->n);
    if (p->transpose_a) partial = larger(partial, ESP_GEMM_PARTIALS * p->m * p->n);
  }
  *stage = (esp_product_stage){operand(a), operand(b), operand(c), operand(partial)};
  return stage->a && stage->b && stage->c && stage->partial ? ESP_OK : ESP_ERR_MEMORY;
}

void esp_product_stage_clear(esp_product_stage *stage) {
  esp_free(stage->a);
  esp_free(stage->b);
  esp_free(stage->c);
  esp_free(stage->partial);
}

static esp_gemm product_of(const esp_product_run *run, int64_t group) {
  const esp_step_product *p = run->product;
  return (esp_gemm){.transpose_a = p->transpose_a,
                    .transpose_b = p->transpose_b,
                    .m = p->m,
                    .n = p->n,
                    .k = p->k,
                    .a = run->stage->a + group * p->m * p->k,
                    .b = run->stage->b + group * p->k * p->n,
                    .c = run->stage->c + group * p->m * p->n,
                    .lda = p->transpose_a ? p->m : p->k,
                    .ldb = p->transpose_b ? p->k : p->n,
                    .ldc = p->n,
                    .alpha = 1,
                    .way = run->way >= ESP_WAY_BLAS_LIST ? ESP_GEMM_OPENBLAS : ESP_GEMM_BEST};
}

static void run_whole(void *context, int64_t begin, int64_t end) {
  for (int64_t group = begin; group < end; group++) {
    const esp_gemm product = product_of(context, group);
    esp_gemm_here(&product);
  }
}

/* Slab i of as many as there are threads, of every product. */
static void run_slabs(void *context, int64_t begin, int64_t end) {
  const esp_product_run *run = context;
  const esp_step_product *p = run->product;
  const int64_t slabs = esp_threads();
  for (int64_t i = begin; i < end; i++) {
    const int64_t row = p->m * i / slabs;
    for (int64_t group = 0; group < p->groups; group++) {
      esp_gemm slab = product_of(run, group);
      slab.m = p->m * (i + 1) / slabs - row;
      slab.a += p->transpose_a ? row : row * p->k;
      slab.c += row * p->n;
      esp_gemm_here(&slab);
    }
  }
}

static esp_status run_as_program(const esp_product_run *run) {
  esp_gemm *list = esp_alloc((size_t)run->product->groups, sizeof *list);
  if (!list) return ESP_ERR_MEMORY;
  for (int64_t group = 0; group < run->product->groups; group++) list[group] = product_of(run, group);
  const esp_step_product *p = run->product;
  if (p->transpose_a && !p->transpose_b && !p->attention && run->way == ESP_WAY_PROGRAM)
    esp_gemm_sums(list, p->groups, run->stage->partial);
  else esp_gemm_run(list, p->groups);
  esp_free(list);
  return ESP_OK;
}

esp_status esp_run_product(void *context) {
  esp_product_run *run = context;
  if (run->way == ESP_WAY_PROGRAM || run->way == ESP_WAY_BLAS_LIST) return run_as_program(run);
  if (run->way == ESP_WAY_SLABS || run->way == ESP_WAY_BLAS_SLABS) esp_parallel_for(esp_threads(), 1, run_slabs, run);
  else esp_parallel_for_uneven(run->product->groups, 1, run_whole, run);
  return ESP_OK;
}

/* --- the limit ------------------------------------------------------------------------------------------------- */

static esp_status measure_product(const esp_bench *bench, const esp_product_stage *stage,
                                  const esp_step_product *product, esp_product_times *times) {
  for (int way = 0; way < ESP_WAYS; way++) {
    times->runs[way] = (esp_product_run){stage, product, (esp_product_way)way};
    times->cases[way] = (esp_bench_case){.name = esp_product_way_names[way],
                                         .run = esp_run_product,
                                         .context = &times->runs[way],
                                         .flops = esp_step_product_flops(product) / product->uses};
  }
  ESP_TRY(esp_bench_measure(bench, times->cases, ESP_WAYS, times->results));
  times->least = times->results[0].median;
  for (int way = 1; way < ESP_WAYS; way++)
    if (times->results[way].median < times->least) times->least = times->results[way].median;
  for (int way = 0; way < ESP_WAYS; way++) times->cases[way].limit = times->least;
  return ESP_OK;
}

static void add_to_limit(esp_step_limit *limit, const esp_step_product *p, const esp_product_times *times) {
  const double seconds = p->uses * times->least, flops = esp_step_product_flops(p);
  *(p->attention ? &limit->attention_seconds : &limit->seconds) += seconds;
  *(p->attention ? &limit->attention_flops : &limit->flops) += flops;
  limit->program_seconds += p->uses * times->results[ESP_WAY_PROGRAM].median;
}

static esp_status measure_products(const esp_bench *bench, const esp_product_stage *stage,
                                   const esp_step_product *products, int count, esp_product_times *times,
                                   esp_step_limit *limit) {
  for (int i = 0; i < count; i++) {
    esp_product_times own, *t = times ? &times[i] : &own;
    ESP_TRY(measure_product(bench, stage, &products[i], t));
    add_to_limit(limit, &products[i], t);
  }
  return ESP_OK;
}

esp_status esp_measure_limit(const esp_bench *bench, const esp_step_product *products, int count,
                             esp_product_times *times, esp_step_limit *limit) {
  esp_product_stage stage;
  *limit = (esp_step_limit){0};
  esp_status status = esp_product_stage_set(&stage, products, count);
  if (status == ESP_OK) status = measure_products(bench, &stage, products, count, times, limit);
  esp_product_stage_clear(&stage);
  return status;
}
