/* The simulation behind pruning by router-norm change (Chowdhury et al., ICML 2024, arXiv 2405.16646): a two-layer
 * mixture with expert-choice routing learns a task of which only four of sixteen experts know something, and the norms
 * of their routing vectors tell which. Shared by the lesson and its regression test.
 *
 * Reconstruction: the paper's theorems give the setting (binary labels, orthonormal patterns, expert choice, experts
 * with a fixed output layer, logistic loss, plain SGD); sizes, rates and noise are ours.
 *
 * A sample has 16 tokens: one is o_1 (label +1) or o_2 (label -1), the others are random irrelevant patterns.
 *   f(x) = sum_s sum_{j in J_s} G_sj sum_r a_sr ReLU(<w_sr, x_j>),  J_s = the 4 tokens with the largest <w_s, x_j>,
 * G = softmax over J_s, a_sr = +-1/8 fixed. Experts start with a liking for one pattern each: two for o_1, two for
 * o_2. */
#ifndef ESPALIER_EXAMPLE_THEORY_H
#define ESPALIER_EXAMPLE_THEORY_H

#include <espalier/core.h>
#include <espalier/layers.h>
#include <espalier/optim.h>

#include <math.h>
#include <string.h>

enum {
  THEORY_EXPERTS = 16, /* the first four are relevant: two for each label */
  THEORY_RELEVANT = 4,
  THEORY_NEURONS = 8,
  THEORY_TOKENS = 16,
  THEORY_TAKEN = 4, /* tokens an expert takes of a sample */
  THEORY_BATCH = 32,
  THEORY_STEPS = 400,
  THEORY_NOISES = 512 /* noise vectors, of which each token gets one at random */
};

typedef struct theory {
  int d; /* dimension, and the number of patterns: the unit vectors */
  uint64_t seed;
  esp_parameters *parameters;
  esp_tensor *router, *up, *down; /* [16, d], [16, 8, d], [16, 8, 1] fixed */
  esp_optimizer *optimizer;
  esp_tape *tape;
  float *noise;                      /* [512, d] */
  float *tokens;                     /* [32 x 16, d] */
  int32_t labels[THEORY_BATCH];      /* 0: o_1, 1: o_2 */
  double start_norm[THEORY_EXPERTS]; /* of the routing vectors */
  double change[THEORY_EXPERTS];     /* Delta_s, after theory_train() */
  esp_expert_layout layout;          /* of the next forward pass */
} theory;

static inline void theory_free(theory *t) {
  esp_tape_free(t->tape);
  esp_optimizer_free(t->optimizer);
  esp_parameters_free(t->parameters);
  esp_free(t->noise);
  esp_free(t->tokens);
}

static inline int theory_pattern(const theory *t, esp_random *random) {
  return 2 + (int)esp_random_below(random, (uint32_t)t->d - 2);
}

static inline double theory_norm(const theory *t, int expert) {
  double squares = 0;
  for (int i = 0; i < t->d; i++) {
    const double w = (double)t->router->data[expert * t->d + i];
    squares += w * w;
  }
  return sqrt(squares);
}

/* Routing vectors and neurons near a pattern; two experts know o_1 and vote for it, two o_2, the rest something
 * else. */
static inline void theory_start(theory *t) {
  esp_random random = esp_random_stream(t->seed, ESP_PURPOSE_TEST, 0);
  for (int s = 0; s < THEORY_EXPERTS; s++) {
    const int pattern = s < THEORY_RELEVANT ? s / 2 : theory_pattern(t, &random);
    const float vote = s % 4 < 2 ? 1.0F / THEORY_NEURONS : -1.0F / THEORY_NEURONS;
    t->router->data[s * t->d + pattern] += 1;
    for (int r = 0; r < THEORY_NEURONS; r++) {
      t->up->data[(s * THEORY_NEURONS + r) * t->d + pattern] += (float)(0.3 * esp_random_uniform(&random));
      t->down->data[s * THEORY_NEURONS + r] = vote;
    }
    t->start_norm[s] = theory_norm(t, s);
  }
  for (int64_t i = 0; i < (int64_t)THEORY_NOISES * t->d; i++)
    t->noise[i] = (float)(0.05 / sqrt(t->d) * esp_random_normal(&random));
}

static inline esp_status theory_declare(theory *t) {
  const double deviation = 0.3 / sqrt(t->d);
  esp_parameter *p[] = {
      esp_parameters_add(
          t->parameters, "theory", "router",
          &(esp_parameter_options){
              .kind = ESP_KIND_ROUTER, .rank = 2, .shape = {THEORY_EXPERTS, t->d}, .deviation = deviation}),
      esp_parameters_add(t->parameters, "theory", "up",
                         &(esp_parameter_options){.kind = ESP_KIND_WEIGHT,
                                                  .rank = 3,
                                                  .shape = {THEORY_EXPERTS, THEORY_NEURONS, t->d},
                                                  .deviation = deviation}),
      esp_parameters_add(
          t->parameters, "theory", "down",
          &(esp_parameter_options){.kind = ESP_KIND_WEIGHT, .rank = 3, .shape = {THEORY_EXPERTS, THEORY_NEURONS, 1}})};
  if (!p[0] || !p[1] || !p[2]) return ESP_ERR_MEMORY;
  ESP_TRY(esp_parameters_allocate(t->parameters, t->seed));
  t->router = &p[0]->tensor;
  t->up = &p[1]->tensor;
  t->down = &p[2]->tensor;
  return esp_parameters_freeze(t->parameters, "theory.down");
}

static inline esp_status theory_create(theory *t, int d, uint64_t seed) {
  *t = (theory){.d = d, .seed = seed};
  t->parameters = esp_parameters_create();
  t->tape = esp_tape_create();
  t->noise = esp_alloc((size_t)THEORY_NOISES * (size_t)d, sizeof *t->noise);
  t->tokens = esp_alloc((size_t)THEORY_BATCH * THEORY_TOKENS * (size_t)d, sizeof *t->tokens);
  if (!t->parameters || !t->tape || !t->noise || !t->tokens) return ESP_ERR_MEMORY;
  ESP_TRY(theory_declare(t));
  theory_start(t);
  esp_expert_layout_full(&t->layout, THEORY_EXPERTS);
  const esp_optimizer_config sgd = {.kind = ESP_OPTIMIZER_SGD, .learning_rate = 4, .router_rate = 0.125}; /* 0.5 */
  return esp_optimizer_create(&t->optimizer, &sgd, t->parameters);
}

/* Batch `index` of the training (purpose 1) or of the test (2). */
static inline void theory_batch(theory *t, uint64_t purpose, uint64_t index) {
  esp_random random = esp_random_stream(t->seed, ESP_PURPOSE_TEST, purpose << 32 | index);
  for (int i = 0; i < THEORY_BATCH; i++) {
    const int place = (int)esp_random_below(&random, THEORY_TOKENS);
    t->labels[i] = (int32_t)esp_random_below(&random, 2);
    for (int j = 0; j < THEORY_TOKENS; j++) {
      float *token = t->tokens + (int64_t)(i * THEORY_TOKENS + j) * t->d;
      const int pattern = j == place ? t->labels[i] : theory_pattern(t, &random);
      memcpy(token, t->noise + (int64_t)esp_random_below(&random, THEORY_NOISES) * t->d, (size_t)t->d * sizeof *token);
      token[pattern] += 1;
    }
  }
}

/* (f / 2, -f / 2) of each sample [32, 2], whose cross-entropy is the logistic loss log(1 + e^(-y f)). */
static inline esp_tensor *theory_forward(theory *t) {
  static float halves[] = {0.5F * THEORY_TOKENS, -0.5F * THEORY_TOKENS}; /* the mean over tokens becomes their sum */
  static esp_tensor both = {.data = halves, .shape = {2, 1}, .rank = 2};
  const esp_router_config config = {
      .policy = ESP_ROUTER_EXPERT_CHOICE, .score = ESP_SCORE_SOFTMAX, .score_selected_only = true, .group_images = 1};
  const int64_t count = THEORY_BATCH * THEORY_TOKENS;
  esp_tensor *tokens = esp_tape_take(t->tape, sizeof *tokens);
  if (!tokens) return NULL;
  *tokens = (esp_tensor){.data = t->tokens, .shape = {count, t->d}, .rank = 2};
  /* An expert takes tokens x k / experts = 4 of a sample's. */
  esp_route_request request =
      esp_plain_request(&config, &t->layout, THEORY_TAKEN * THEORY_EXPERTS / THEORY_TOKENS, count);
  request.images = THEORY_BATCH;
  esp_routed routed = {0};
  esp_tensor *gates = esp_route_experts(t->tape, esp_linear_map(t->tape, tokens, t->router, NULL), &request, &routed);
  if (!gates) return NULL;
  const esp_routing *routing = routed.routing;
  esp_tensor *rows = esp_dispatch(t->tape, tokens, routing);
  rows = esp_relu(t->tape,
                  esp_grouped_map(t->tape, rows, t->up, NULL,
                                  &(esp_grouped_map_options){
                                      .first_row = routing->first_row, .groups = THEORY_EXPERTS, .transpose = true}));
  rows = esp_grouped_map(t->tape, rows, t->down, NULL,
                         &(esp_grouped_map_options){.first_row = routing->first_row, .groups = THEORY_EXPERTS});
  esp_tensor *sums = esp_combine(t->tape, rows, gates, routing);
  sums = esp_reshape(t->tape, sums, 3, (const int64_t[]){THEORY_BATCH, THEORY_TOKENS, 1});
  return esp_linear_map(t->tape, esp_mean_tokens(t->tape, sums), &both, NULL);
}

static inline esp_status theory_step(theory *t, uint64_t step) {
  theory_batch(t, 1, step);
  esp_tape_reset(t->tape, true);
  esp_tensor *logits = theory_forward(t);
  esp_tensor *loss = logits ? esp_cross_entropy(t->tape, logits, &(esp_targets){.labels = t->labels}) : NULL;
  if (!loss) return esp_tape_status(t->tape);
  ESP_TRY(esp_tape_backward(t->tape, loss));
  esp_optimizer_step(t->optimizer, 1, esp_gradient_norm(t->parameters));
  return ESP_OK;
}

static inline esp_status theory_train(theory *t) {
  for (uint64_t step = 0; step < THEORY_STEPS; step++) ESP_TRY(theory_step(t, step));
  for (int s = 0; s < THEORY_EXPERTS; s++) t->change[s] = theory_norm(t, s) - t->start_norm[s];
  return ESP_OK;
}

/* The share of samples on the right side without the experts `gone`: their routers stay, they compute nothing. */
static inline esp_status theory_accuracy(theory *t, const bool gone[THEORY_EXPERTS], int batches, double *accuracy) {
  int correct = 0;
  for (int s = 0; s < THEORY_EXPERTS; s++) t->layout.index[s] = gone[s] ? ESP_EXPERT_ZERO : s;
  for (int b = 0; b < batches; b++) {
    theory_batch(t, 2, (uint64_t)b);
    esp_tape_reset(t->tape, false);
    const esp_tensor *logits = theory_forward(t);
    if (!logits) return esp_tape_status(t->tape);
    for (int i = 0; i < THEORY_BATCH; i++)
      correct += t->labels[i] == 0 ? logits->data[2 * i] > 0 : logits->data[2 * i] < 0;
  }
  esp_expert_layout_full(&t->layout, THEORY_EXPERTS);
  *accuracy = (double)correct / (batches * THEORY_BATCH);
  return ESP_OK;
}

/* Marks the `count` experts with the smallest Delta, or the largest; ties go to the lower index. */
static inline void theory_choose(const theory *t, int count, bool largest, bool gone[THEORY_EXPERTS]) {
  for (int s = 0; s < THEORY_EXPERTS; s++) {
    int before = 0;
    for (int o = 0; o < THEORY_EXPERTS; o++) {
      const double difference = largest ? t->change[s] - t->change[o] : t->change[o] - t->change[s];
      before += difference < 0 || (difference == 0 && o < s);
    }
    gone[s] = before < count;
  }
}

#endif
