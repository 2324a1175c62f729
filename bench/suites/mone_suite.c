/* MoE against MoNE at inference: one token through one mixture layer, one image through a small model. All models of a
 * comparison have the same weights and so the same routing; they differ in the share of neurons they keep. */
#include "suites_internal.h"

#include <espalier/cost.h>
#include <espalier/memory.h>
#include <espalier/model.h>
#include <espalier/random.h>

#include <stdio.h>
#include <string.h>

enum { TOKENS = 64, SEED = 1, NAME_SIZE = 48 };

static const double shares[] = {0.5, 0.25, 0.125, 0.0625};
enum { SHARES = sizeof shares / sizeof shares[0], CASES = 1 + 2 * SHARES };

/* What the suite compares: a layer for one token, or a model for one image. */
typedef struct contest {
  const char *what;
  int width, hidden, blocks;
  bool whole_model;
} contest;

/* The model of a contest; it runs again and again, a layer always on the next of TOKENS tokens. */
typedef struct stage {
  esp_model *model;
  esp_tape *tape;
  esp_real *inputs; /* [TOKENS, width] tokens, or one image */
  int64_t next;
  esp_auxiliary_losses losses;
} stage;

/* One case: the same model keeping a share of its neurons, in one of the two ways. */
typedef struct contestant {
  stage *stage;
  double share;
  esp_neuron_path path;
  int kept;
  char name[NAME_SIZE];
} contestant;

/* 32 x 32 images in squares of 4 x 4 are 64 tokens. */
static esp_model_config make_config(int width, int hidden, int blocks, double share) {
  esp_model_config c = esp_model_defaults;
  c.image_height = c.image_width = 32;
  c.image_channels = 3;
  c.classes = 10;
  c.stem = (esp_stem_config){.kind = ESP_STEM_PATCH, .patch = 4};
  c.width = width;
  c.heads = 4;
  c.blocks = blocks;
  c.layers[0] = share < 1 ? ESP_LAYER_MONE : ESP_LAYER_MOE;
  c.layers_count = 1;
  c.feed_forward.activation = ESP_ACTIVATION_SWIGLU;
  c.moe.experts = 8;
  c.moe.top_k = 2;
  c.moe.hidden = hidden;
  c.moe.neurons_kept = share;
  return c;
}

static esp_status stage_set(stage *s, const contest *t) {
  const esp_model_config config = make_config(t->width, t->hidden, t->blocks, 1);
  const int64_t numbers = t->whole_model ? 32 * 32 * 3 : TOKENS * t->width;
  ESP_TRY(esp_model_create(&s->model, &config, NULL, SEED));
  s->tape = esp_tape_create();
  s->inputs = esp_alloc((size_t)numbers, sizeof *s->inputs);
  if (!s->tape || !s->inputs) return ESP_ERR_MEMORY;
  esp_random random = esp_random_stream(SEED, ESP_PURPOSE_TEST, 0);
  for (int64_t i = 0; i < numbers; i++) s->inputs[i] = (esp_real)esp_random_normal(&random);
  return ESP_OK;
}

static void stage_clear(stage *s) {
  esp_model_free(s->model);
  esp_tape_free(s->tape);
  esp_free(s->inputs);
}

/* Makes the model that of the contestant and forgets the last pass. */
static void enter(const contestant *c) {
  for (int i = 0; i < esp_model_moe_count(c->stage->model); i++)
    esp_model_moe(c->stage->model, i)->neurons_kept = c->kept;
  c->stage->losses.count = 0;
  esp_tape_reset(c->stage->tape, false);
}

static esp_status run_layer(void *context) {
  const contestant *c = context;
  stage *s = c->stage;
  const int64_t width = s->model->config.width;
  enter(c);
  s->next = (s->next + 1) % TOKENS;
  esp_tensor token = {.data = s->inputs + s->next * width, .rank = 3, .shape = {1, 1, width}};
  const esp_tensor *y =
      esp_moe_forward(esp_model_moe(s->model, 0), s->tape, &token, &(esp_pass){.neurons = c->path}, &s->losses);
  return y ? ESP_OK : esp_tape_status(s->tape);
}

static esp_status run_model(void *context) {
  const contestant *c = context;
  enter(c);
  esp_tensor image = {.data = c->stage->inputs, .rank = 4, .shape = {1, 32, 32, 3}};
  const esp_model_output output =
      esp_model_forward(c->stage->model, c->stage->tape, &image, &(esp_pass){.neurons = c->path});
  return output.logits ? ESP_OK : esp_tape_status(c->stage->tape);
}

static esp_bench_case make_case(const contest *t, contestant *c) {
  const esp_model_config config = make_config(t->width, t->hidden, t->blocks, c->share);
  esp_model_cost cost;
  esp_config_cost(&config, NULL, &cost);
  c->kept = esp_neurons_kept(&config, 0);
  const esp_layer_cost *layer = &cost.layers[0];
  if (t->whole_model)
    return (esp_bench_case){c->name, run_model, c, cost.flops_selected, cost.flops_selected / cost.flops, 0};
  return (esp_bench_case){c->name, run_layer, c, layer->flops_selected / TOKENS, layer->flops_selected / layer->flops,
                          0};
}

static void name_contestant(contestant *c) {
  if (c->share < 1)
    snprintf(c->name, NAME_SIZE, "MoNE 1/%.0f %s", 1 / c->share, c->path == ESP_NEURONS_MASKED ? "masked" : "gathered");
  else snprintf(c->name, NAME_SIZE, "MoE");
}

static esp_status compare(esp_bench *bench, const contest *t, stage *s) {
  contestant contestants[CASES];
  esp_bench_case cases[CASES];
  ESP_TRY(stage_set(s, t));
  for (int i = 0; i < CASES; i++) {
    contestants[i] = (contestant){
        .stage = s, .share = i ? shares[(i - 1) / 2] : 1, .path = i % 2 ? ESP_NEURONS_GATHERED : ESP_NEURONS_MASKED};
    name_contestant(&contestants[i]);
    cases[i] = make_case(t, &contestants[i]);
  }
  char name[96];
  snprintf(name, sizeof name, "%s: 8 experts, top-2, width %d, %d neurons", t->what, t->width, t->hidden);
  return esp_bench_compare(bench, name, cases, CASES, NULL);
}

static esp_status run_contest(esp_bench *bench, const contest *t) {
  stage *s = esp_alloc(1, sizeof *s);
  if (!s) return ESP_ERR_MEMORY;
  const esp_status status = compare(bench, t, s);
  stage_clear(s);
  esp_free(s);
  return status;
}

esp_status esp_bench_mone(esp_bench *bench) {
  static const contest contests[] = {
      {"one token, one layer", 64, 256, 1, false},        {"one token, one layer", 128, 512, 1, false},
      {"one token, one layer", 256, 1024, 1, false},      {"one token, one layer", 512, 2048, 1, false},
      {"one image, model of 4 blocks", 64, 256, 4, true}, {"one image, model of 4 blocks", 192, 768, 4, true},
  };
  for (size_t i = 0; i < (bench->quick ? 1 : sizeof contests / sizeof contests[0]); i++)
    ESP_TRY(run_contest(bench, &contests[i]));
  return ESP_OK;
}
