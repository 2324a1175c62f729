/* A mixture layer, forward and backward, against a dense layer of as many activated FLOPs, for loads that are even,
 * given, and the router's own choice; and what routing, moving rows and statistics take of it. */
#include "logging_internal.h"
#include "op_times_internal.h"
#include "stages_internal.h"
#include "suites_internal.h"

#include <espalier/memory.h>
#include <espalier/metrics.h>
#include <espalier/ops.h>
#include <espalier/random.h>
#include <espalier/step_products.h>

#include <stdio.h>
#include <string.h>

enum { SEED = 1, KINDS = 4, TOKENS_PER_IMAGE = 64 };
static const double imbalance = 3; /* most rows of an expert over the mean */

typedef enum layer_case { DENSE, EVEN, UNEVEN, ROUTED } layer_case;
static const char *const case_names[KINDS] = {"dense", "even", "imbalance 3", "as routed"};

/* The layers lie in models of one block. */
typedef struct stage {
  esp_model *models[KINDS];
  esp_tape *tape;
  esp_tensor x;     /* [images, 64, width] */
  int32_t *choices; /* [T, k] of imbalance 3 */
  esp_window window;
  bench_watched statistics;
  esp_auxiliary_losses losses;
} stage;

typedef struct contestant {
  stage *stage;
  layer_case kind;
} contestant;

static esp_model_config layer_config(const bench_model *model, layer_case kind, int k) {
  esp_model_config c = bench_model_config(model);
  c.blocks = 1;
  c.layers_count = 1;
  c.layers[0] = kind == DENSE ? ESP_LAYER_DENSE : ESP_LAYER_MOE;
  c.feed_forward.hidden = k * c.moe.hidden;
  c.moe.top_k = k;
  if (kind == EVEN) {
    c.moe.router.policy = ESP_ROUTER_EVEN;
    c.moe.router.balance_weight = 0;
  }
  return c;
}

/* Expert 0 serves `imbalance` times the mean, the others the rest in turn; a token never has one twice. */
static void choose_unevenly(int32_t *choices, int64_t tokens, int k, int experts) {
  const double share = imbalance * k / experts; /* of tokens that have expert 0 */
  int64_t next = 0;
  for (int64_t t = 0; t < tokens; t++) {
    const bool busiest = (int64_t)((double)(t + 1) * share) > (int64_t)((double)t * share);
    for (int slot = 0; slot < k; slot++)
      choices[t * k + slot] = slot == 0 && busiest ? 0 : (int32_t)(1 + next++ % (experts - 1));
  }
}

static esp_status stage_set(stage *s, const bench_model *model, int k) {
  const int64_t tokens = (int64_t)model->batch * TOKENS_PER_IMAGE;
  for (int kind = 0; kind < KINDS; kind++) {
    const esp_model_config config = layer_config(model, (layer_case)kind, k);
    ESP_TRY(esp_model_create(&s->models[kind], &config, NULL, SEED));
  }
  s->x = (esp_tensor){.rank = 3, .shape = {model->batch, TOKENS_PER_IMAGE, model->width}, .requires_grad = true};
  s->x.data = esp_alloc((size_t)(tokens * model->width), sizeof *s->x.data);
  s->x.grad = esp_alloc((size_t)(tokens * model->width), sizeof *s->x.grad);
  s->choices = esp_alloc((size_t)(tokens * k), sizeof *s->choices);
  s->tape = esp_tape_create();
  if (!s->x.data || !s->x.grad || !s->choices || !s->tape) return ESP_ERR_MEMORY;
  esp_random random = esp_random_stream(SEED, ESP_PURPOSE_TEST, 0);
  for (int64_t i = 0; i < tokens * model->width; i++) s->x.data[i] = (esp_real)esp_random_normal(&random);
  choose_unevenly(s->choices, tokens, k, model->experts);
  return ESP_OK;
}

static void stage_clear(stage *s) {
  for (int kind = 0; kind < KINDS; kind++) esp_model_free(s->models[kind]);
  esp_tape_free(s->tape);
  esp_free(s->x.data);
  esp_free(s->x.grad);
  esp_free(s->choices);
}

static esp_tensor *run_layer(const contestant *c) {
  stage *s = c->stage;
  esp_model *model = s->models[c->kind];
  const int32_t *const choices[1] = {s->choices};
  const esp_observer statistics = bench_watched_observer(&s->statistics);
  s->losses.count = 0;
  if (c->kind == DENSE) return esp_expert_bank_forward_all(&model->blocks[0].dense, s->tape, &s->x);
  const esp_pass pass = {.training = true, .observer = &statistics, .choices = c->kind == UNEVEN ? choices : NULL};
  return esp_moe_forward(esp_model_moe(model, 0), s->tape, &s->x, &pass, &s->losses);
}

static esp_status run_step(void *context) {
  contestant *c = context;
  stage *s = c->stage;
  esp_tape_reset(s->tape, true);
  esp_tensor *loss = esp_total_loss(s->tape, esp_mean(s->tape, run_layer(c)), &s->losses);
  return loss ? esp_tape_backward(s->tape, loss) : esp_tape_status(s->tape);
}

/* Seconds of what a dense layer does not have: routing, losses, dispatch, combine, and the window's statistics. */
static esp_status time_overhead(const esp_bench *bench, contestant *c, double *share, double *seconds) {
  double whole[ESP_BENCH_ROUNDS], part[ESP_BENCH_ROUNDS];
  const int rounds = bench->rounds < ESP_BENCH_ROUNDS ? bench->rounds : ESP_BENCH_ROUNDS;
  for (int r = 0; r < rounds; r++) {
    op_times times;
    c->stage->statistics.seconds = 0;
    op_times_start(&times, c->stage->tape);
    const double begin = esp_seconds();
    const esp_status status = run_step(c);
    whole[r] = esp_seconds() - begin;
    esp_tape_set_timer(c->stage->tape, NULL);
    ESP_TRY(status);
    part[r] = c->stage->statistics.seconds;
    for (int phase = 0; phase < OP_PHASES; phase++)
      part[r] +=
          times.seconds[phase][OPS_DISPATCH] + times.seconds[phase][OPS_COMBINE] + times.seconds[phase][OPS_ROUTING];
    whole[r] = part[r] / whole[r];
  }
  *share = esp_bench_median(whole, rounds);
  *seconds = esp_bench_median(part, rounds);
  return ESP_OK;
}

/* What the products of the layer take at the limit, and their FLOPs. */
static esp_status limit_of(const esp_bench *bench, const esp_model_config *config, int64_t images,
                           esp_step_limit *limit) {
  esp_step_product products[ESP_MOST_STEP_PRODUCTS];
  const int all = esp_step_products(config, images, true, products);
  int count = 0;
  for (int i = 0; i < all; i++)
    if (strstr(products[i].name, "dense") || strstr(products[i].name, "experts") || strstr(products[i].name, "router"))
      products[count++] = products[i];
  return esp_measure_limit(bench, products, count, NULL, limit);
}

static esp_status report_overhead(const esp_bench *bench, contestant *contestants, int k) {
  char name[64];
  for (int kind = EVEN; kind < KINDS; kind++) {
    double share, seconds;
    ESP_TRY(time_overhead(bench, &contestants[kind], &share, &seconds));
    snprintf(name, sizeof name, "top_%d %s: dispatch, combine, routing, statistics", k, case_names[kind]);
    esp_bench_figure(bench, name, share, "of the layer");
  }
  return ESP_OK;
}

static esp_status compare(esp_bench *bench, const bench_model *model, int k, stage *s) {
  contestant contestants[KINDS];
  esp_bench_case cases[KINDS];
  esp_step_limit limits[2];
  ESP_TRY(stage_set(s, model, k));
  s->statistics.observer = esp_window_observer(&s->window);
  for (int kind = 0; kind < KINDS; kind++) {
    const esp_model_config config = layer_config(model, (layer_case)kind, k);
    esp_step_limit *limit = &limits[kind != DENSE];
    if (kind <= EVEN) ESP_TRY(limit_of(bench, &config, model->batch, limit));
    contestants[kind] = (contestant){s, (layer_case)kind};
    cases[kind] = (esp_bench_case){.name = case_names[kind],
                                   .run = run_step,
                                   .context = &contestants[kind],
                                   .flops = limit->flops,
                                   .limit = limit->seconds};
  }
  char name[128];
  snprintf(name, sizeof name, "layer of %d tokens, forward + backward: width %d, %d experts of %d, top-%d",
           model->batch * TOKENS_PER_IMAGE, model->width, model->experts, model->expert_hidden, k);
  ESP_TRY(esp_bench_compare(bench, name, cases, KINDS, NULL));
  return report_overhead(bench, contestants, k);
}

esp_status esp_bench_moe(esp_bench *bench) {
  for (int k = 1; k <= 2; k++) {
    stage *s = esp_alloc(1, sizeof *s);
    if (!s) return ESP_ERR_MEMORY;
    const esp_status status = compare(bench, bench->quick ? &bench_quick_model : &bench_reference_model, k, s);
    stage_clear(s);
    esp_free(s);
    ESP_TRY(status);
  }
  return ESP_OK;
}
