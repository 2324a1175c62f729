/* Shows from how many rows an expert, and from which share of neurons, gathering them beats masking:
 * esp_gathering_pays() rests on these figures. It runs the expert bank alone, all experts with as many rows. */
#include "suites_internal.h"

#include <espalier/expert_bank.h>
#include <espalier/memory.h>
#include <espalier/random.h>

#include <stdio.h>

enum { EXPERTS = 8, SHARES = 4, CASES = 1 + SHARES, NAME_SIZE = 48 };
static const int divisors[SHARES] = {2, 4, 8, 16}; /* of the neurons, one in so many is kept */

typedef struct shape {
  int width, hidden;
} shape;

typedef struct stage {
  esp_parameters *parameters;
  esp_expert_bank bank;
  esp_tape *tape;
  esp_tensor x; /* [rows, width] */
  int64_t first_row[EXPERTS + 1];
} stage;

typedef struct contestant {
  stage *stage;
  int64_t kept;
  bool gather;
  char name[NAME_SIZE];
} contestant;

static esp_status stage_set(stage *s, const shape *size, int rows) {
  const esp_feed_forward_config config = {.activation = ESP_ACTIVATION_SWIGLU};
  s->parameters = esp_parameters_create();
  s->tape = esp_tape_create();
  if (!s->parameters || !s->tape) return ESP_ERR_MEMORY;
  ESP_TRY(esp_expert_bank_declare(
      &s->bank, s->parameters, "experts",
      &(esp_expert_bank_options){
          .experts = EXPERTS, .width = size->width, .hidden = size->hidden, .config = &config, .residual_scale = 1}));
  ESP_TRY(esp_parameters_allocate(s->parameters, 1));
  for (int e = 0; e <= EXPERTS; e++) s->first_row[e] = (int64_t)e * rows;
  s->x = (esp_tensor){.rank = 2, .shape = {EXPERTS * rows, size->width}};
  s->x.data = esp_alloc((size_t)esp_tensor_count(&s->x), sizeof *s->x.data);
  if (!s->x.data) return ESP_ERR_MEMORY;
  esp_random random = esp_random_stream(1, ESP_PURPOSE_TEST, 0);
  for (int64_t i = 0; i < esp_tensor_count(&s->x); i++) s->x.data[i] = (esp_real)esp_random_normal(&random);
  return ESP_OK;
}

static void stage_clear(stage *s) {
  esp_parameters_free(s->parameters);
  esp_tape_free(s->tape);
  esp_free(s->x.data);
}

static esp_status run(void *context) {
  const contestant *c = context;
  stage *s = c->stage;
  esp_tape_reset(s->tape, false);
  const esp_tensor *y = c->gather ? esp_expert_bank_gather(&s->bank, s->tape, &s->x, s->first_row, c->kept)
                                  : esp_expert_bank_forward(&s->bank, s->tape, &s->x, s->first_row,
                                                            &(esp_neuron_options){.kept = c->kept}, NULL);
  return y ? ESP_OK : esp_tape_status(s->tape);
}

static esp_status compare(esp_bench *bench, const shape *size, int rows, stage *s) {
  contestant contestants[CASES];
  esp_bench_case cases[CASES];
  ESP_TRY(stage_set(s, size, rows));
  for (int i = 0; i < CASES; i++) {
    contestant *c = &contestants[i];
    *c = (contestant){.stage = s, .kept = size->hidden / divisors[i ? i - 1 : 0], .gather = i > 0};
    snprintf(c->name, NAME_SIZE, i ? "gathered 1/%d" : "masked 1/%d", divisors[i ? i - 1 : 0]);
    const double computed = (double)size->hidden + 2 * (double)(i ? c->kept : size->hidden);
    cases[i] = (esp_bench_case){
        c->name, run, c, 2 * EXPERTS * rows * size->width * computed, computed / (3 * (double)size->hidden), 0};
  }
  char name[96];
  snprintf(name, sizeof name, "%d rows an expert, %d experts, width %d, %d neurons", rows, EXPERTS, size->width,
           size->hidden);
  return esp_bench_compare(bench, name, cases, CASES, NULL);
}

esp_status esp_bench_gather(esp_bench *bench) {
  static const shape shapes[] = {{64, 96}, {64, 256}, {128, 512}, {256, 512}, {256, 1024}, {512, 1024}, {1024, 2048}};
  static const int rows[] = {1, 2, 4, 8, 16, 32, 64, 128};
  for (size_t i = 0; i < (bench->quick ? 1 : sizeof shapes / sizeof shapes[0]); i++)
    for (size_t j = 0; j < (bench->quick ? 1 : sizeof rows / sizeof rows[0]); j++) {
      stage s = {.tape = NULL};
      const esp_status status = compare(bench, &shapes[i], rows[j], &s);
      stage_clear(&s);
      ESP_TRY(status);
    }
  return ESP_OK;
}
