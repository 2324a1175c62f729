/* What MoNE's neuron selection costs in training: forward and backward of a bank of experts with and without it. Both
 * do the same products, so the ratio less 1 is the selection's share. */
#include "suites_internal.h"

#include <espalier/expert_bank.h>
#include <espalier/memory.h>
#include <espalier/ops.h>
#include <espalier/random.h>

#include <stdio.h>

enum { EXPERTS = 4, ROWS = 1024, SEED = 1 };

typedef struct stage {
  esp_parameters *parameters;
  esp_expert_bank bank;
  esp_tape *tape;
  esp_tensor x, upstream; /* [ROWS, width] */
  int64_t first_row[EXPERTS + 1];
} stage;

typedef struct contestant {
  stage *stage;
  int64_t kept;
} contestant;

static esp_status fill(esp_tensor *tensor, int64_t width, uint64_t stream) {
  *tensor = (esp_tensor){.data = esp_alloc((size_t)(ROWS * width), sizeof *tensor->data),
                         .grad = esp_alloc((size_t)(ROWS * width), sizeof *tensor->grad),
                         .rank = 2,
                         .shape = {ROWS, width}};
  if (!tensor->data || !tensor->grad) return ESP_ERR_MEMORY;
  esp_random random = esp_random_stream(SEED, ESP_PURPOSE_TEST, stream);
  for (int64_t i = 0; i < ROWS * width; i++) tensor->data[i] = (esp_real)esp_random_normal(&random);
  return ESP_OK;
}

static esp_status stage_set(stage *s, int width, int hidden, esp_activation_kind activation) {
  const esp_feed_forward_config config = {.activation = activation, .hidden = hidden};
  s->parameters = esp_parameters_create();
  s->tape = esp_tape_create();
  if (!s->parameters || !s->tape) return ESP_ERR_MEMORY;
  ESP_TRY(esp_expert_bank_declare(
      &s->bank, s->parameters, "bank",
      &(esp_expert_bank_options){
          .experts = EXPERTS, .width = width, .hidden = hidden, .config = &config, .residual_scale = 1}));
  ESP_TRY(esp_parameters_allocate(s->parameters, SEED));
  for (int e = 0; e <= EXPERTS; e++) s->first_row[e] = ROWS * e / EXPERTS;
  ESP_TRY(fill(&s->x, width, 0));
  s->x.requires_grad = true;
  return fill(&s->upstream, width, 1);
}

static void stage_clear(stage *s) {
  esp_tape_free(s->tape);
  esp_parameters_free(s->parameters);
  esp_free(s->x.data);
  esp_free(s->x.grad);
  esp_free(s->upstream.data);
  esp_free(s->upstream.grad);
}

static esp_status run_step(void *context) {
  const contestant *c = context;
  stage *s = c->stage;
  esp_tape_reset(s->tape, true);
  esp_tensor *y =
      esp_expert_bank_forward(&s->bank, s->tape, &s->x, s->first_row, &(esp_neuron_options){.kept = c->kept}, NULL);
  esp_tensor *loss = esp_mean(s->tape, esp_multiply(s->tape, y, &s->upstream));
  return loss ? esp_tape_backward(s->tape, loss) : esp_tape_status(s->tape);
}

static esp_status compare(esp_bench *bench, stage *s, const char *kind, esp_activation_kind activation, int width,
                          int hidden) {
  ESP_TRY(stage_set(s, width, hidden, activation));
  contestant contestants[] = {{s, hidden}, {s, hidden / 2}, {s, hidden / 8}};
  const esp_bench_case cases[] = {{"all neurons", run_step, &contestants[0], 0, 0, 0},
                                  {"half selected", run_step, &contestants[1], 0, 0, 0},
                                  {"an eighth selected", run_step, &contestants[2], 0, 0, 0}};
  char name[96];
  snprintf(name, sizeof name, "training step of a bank: %s, %d rows, width %d, %d neurons", kind, ROWS, width, hidden);
  return esp_bench_compare(bench, name, cases, 3, NULL);
}

esp_status esp_bench_selection(esp_bench *bench) {
  static const struct {
    const char *name;
    esp_activation_kind activation;
    int width, hidden;
  } contests[] = {{"SwiGLU", ESP_ACTIVATION_SWIGLU, 64, 256},
                  {"SwiGLU", ESP_ACTIVATION_SWIGLU, 192, 384},
                  {"SwiGLU", ESP_ACTIVATION_SWIGLU, 256, 1024},
                  {"ReGLU", ESP_ACTIVATION_REGLU, 192, 384}};
  for (size_t i = 0; i < sizeof contests / sizeof contests[0]; i++) {
    stage s = {.parameters = NULL};
    const esp_status status =
        compare(bench, &s, contests[i].name, contests[i].activation, contests[i].width, contests[i].hidden);
    stage_clear(&s);
    ESP_TRY(status);
  }
  return ESP_OK;
}
