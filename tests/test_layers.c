/* label: short */
/* What must hold of layers whatever their numbers are; models are in test_models.c. */
#include "testing.h"

#include <espalier/layers.h>
#include <espalier/memory.h>
#include <espalier/ops.h>

enum { WIDTH = 16, HIDDEN = 12, TOKENS = 40, EXPERTS = 8 };

/* --- one mixture layer ---------------------------------------------------------------------------------------- */

static esp_model_config layer_config(esp_layer_kind kind, esp_activation_kind activation) {
  esp_model_config c = esp_model_defaults;
  c.width = WIDTH;
  c.layers[0] = kind;
  c.layers_count = 1;
  c.feed_forward = (esp_feed_forward_config){.activation = activation, .bias = true, .hidden = HIDDEN};
  c.moe = (esp_moe_config){.experts = EXPERTS,
                           .top_k = 2,
                           .members = 1,
                           .hidden = HIDDEN,
                           .neurons_kept = 1,
                           .router = {.renormalise = true,
                                      .capacity = ESP_UNLIMITED_CAPACITY,
                                      .evaluation_capacity = ESP_UNLIMITED_CAPACITY,
                                      .balance_weight = 0.1}};
  return c;
}

/* A mixture layer, or a dense one, that ran forward and backward. */
typedef struct layer {
  esp_parameters *parameters;
  esp_moe moe;
  esp_expert_bank dense;
  esp_tape *tape;
  esp_tensor *x, *y;
  esp_auxiliary_losses losses;
  esp_moe_record record;
} layer;

/* Every parameter, biases too, by its name. */
static void fill_thirds(esp_parameters *parameters) {
  for (int64_t i = 0; i < esp_parameters_count(parameters); i++) {
    esp_parameter *p = esp_parameters_at(parameters, i);
    fill_normal(p->tensor.data, p->count, esp_hash_text(p->tensor.name));
    for (int64_t j = 0; j < p->count; j++) p->tensor.data[j] /= 3;
  }
}

static layer make_layer(const esp_model_config *c, const esp_expert_layout *layout) {
  layer l = {.parameters = esp_parameters_create(), .tape = esp_tape_create()};
  const esp_status status =
      c->layers[0] == ESP_LAYER_DENSE
          ? esp_expert_bank_declare(
                &l.dense, l.parameters, "ffn",
                &(esp_expert_bank_options){
                    .width = c->width, .hidden = HIDDEN, .config = &c->feed_forward, .residual_scale = 1})
          : esp_moe_declare(&l.moe, l.parameters, "moe",
                            &(esp_moe_options){.config = c, .layout = layout, .residual_scale = 1});
  assert_int_equal(status, ESP_OK);
  assert_int_equal(esp_parameters_allocate(l.parameters, 1), ESP_OK);
  fill_thirds(l.parameters);
  return l;
}

static void free_layer(layer *l) {
  esp_tape_free(l->tape);
  esp_parameters_free(l->parameters);
}

static void keep_record(void *context, const esp_moe_record *record) { ((layer *)context)->record = *record; }

/* Forward and backward of `tokens` random tokens with a random upstream gradient. */
static void run_layer(layer *l, int64_t tokens) {
  const int64_t shape[] = {tokens, WIDTH};
  int64_t first_row[] = {0, tokens};
  const esp_observer observer = {keep_record, l};
  esp_tape_reset(l->tape, true);
  l->x = esp_tape_tensor(l->tape, 2, shape);
  esp_tensor *upstream = esp_tape_tensor(l->tape, 2, shape);
  fill_normal(l->x->data, tokens * WIDTH, 1);
  fill_normal(upstream->data, tokens * WIDTH, 2);
  l->x->requires_grad = true;
  l->losses.count = 0;
  l->y = l->dense.up ? esp_expert_bank_forward(&l->dense, l->tape, l->x, first_row, NULL, NULL)
                     : esp_moe_forward(&l->moe, l->tape, l->x, &(esp_pass){.observer = &observer}, &l->losses);
  esp_tensor *loss = esp_mean(l->tape, esp_multiply(l->tape, l->y, upstream));
  assert_int_equal(esp_tape_backward(l->tape, esp_total_loss(l->tape, loss, &l->losses)), ESP_OK);
}

static const esp_parameter *parameter_of(const layer *l, const char *name) {
  const esp_parameter *p = esp_parameters_find(l->parameters, name);
  assert_non_null(p);
  return p;
}

/* Output and gradients of two layers; the parameters of `b` are called like those of `a` with another prefix. */
static void assert_same_layers(const layer *a, const char *prefix, const layer *b, const char *prefix_of_b) {
  int same = 0;
  assert_same_bits("output", a->y->data, b->y->data, TOKENS * WIDTH);
  assert_same_bits("input gradient", a->x->grad, b->x->grad, TOKENS * WIDTH);
  for (int64_t i = 0; i < esp_parameters_count(a->parameters); i++) {
    const esp_parameter *p = esp_parameters_at(a->parameters, i);
    if (strncmp(p->tensor.name, prefix, strlen(prefix)) != 0) continue;
    char name[128];
    snprintf(name, sizeof name, "%s%s", prefix_of_b, p->tensor.name + strlen(prefix));
    const esp_parameter *q = parameter_of(b, name);
    assert_int_equal(p->count, q->count);
    assert_same_bits(name, p->tensor.grad, q->tensor.grad, p->count);
    same++;
  }
  assert_true(same >= 4);
}

static const esp_activation_kind activations[] = {
    ESP_ACTIVATION_RELU, ESP_ACTIVATION_GELU,  ESP_ACTIVATION_SQUARED_RELU, ESP_ACTIVATION_SWIGLU,
    ESP_ACTIVATION_GLU,  ESP_ACTIVATION_GEGLU, ESP_ACTIVATION_REGLU,        ESP_ACTIVATION_SQUARED_REGLU};
enum { ACTIVATIONS = sizeof activations / sizeof activations[0] };

static void one_expert_is_the_dense_layer(void **state) {
  (void)state;
  for (int i = 0; i < ACTIVATIONS; i++) {
    esp_model_config c = layer_config(ESP_LAYER_MOE, activations[i]);
    c.moe.experts = c.moe.top_k = 1;
    layer moe = make_layer(&c, NULL);
    c.layers[0] = ESP_LAYER_DENSE;
    layer dense = make_layer(&c, NULL);
    for (int64_t j = 0; j < esp_parameters_count(dense.parameters); j++) {
      esp_parameter *p = esp_parameters_at(dense.parameters, j);
      char name[128];
      snprintf(name, sizeof name, "moe.experts.%s", p->tensor.name + strlen("ffn."));
      memcpy(p->tensor.data, parameter_of(&moe, name)->tensor.data, (size_t)p->count * sizeof(esp_real));
    }
    run_layer(&moe, TOKENS);
    run_layer(&dense, TOKENS);
    assert_same_layers(&moe, "moe.experts.", &dense, "ffn.");
    free_layer(&moe);
    free_layer(&dense);
  }
}

static void mone_with_all_neurons_is_the_moe(void **state) {
  (void)state;
  for (int i = 0; i < ACTIVATIONS; i++) {
    esp_model_config c = layer_config(ESP_LAYER_MOE, activations[i]);
    layer moe = make_layer(&c, NULL);
    c.layers[0] = ESP_LAYER_MONE;
    layer mone = make_layer(&c, NULL);
    run_layer(&moe, TOKENS);
    run_layer(&mone, TOKENS);
    assert_same_layers(&moe, "moe", &mone, "moe");
    free_layer(&moe);
    free_layer(&mone);
  }
}

/* --- against a double loop over tokens and experts -------------------------------------------------------------- */

static double entry(const layer *l, const char *name, int64_t index) {
  return (double)parameter_of(l, name)->tensor.data[index];
}

/* Adds gate x the output of stored expert `s` (SwiGLU, biases) for the token x to y. */
static void add_expert(const layer *l, int64_t s, const esp_real *x, double gate, double *y) {
  double h[HIDDEN];
  for (int64_t j = 0; j < HIDDEN; j++) {
    const int64_t g = s * 2 * HIDDEN + j, u = g + HIDDEN;
    double gate_sum = entry(l, "moe.experts.gate_up_bias", g), up_sum = entry(l, "moe.experts.gate_up_bias", u);
    for (int64_t i = 0; i < WIDTH; i++) {
      gate_sum += entry(l, "moe.experts.gate_up", g * WIDTH + i) * (double)x[i];
      up_sum += entry(l, "moe.experts.gate_up", u * WIDTH + i) * (double)x[i];
    }
    h[j] = gate_sum / (1 + exp(-gate_sum)) * up_sum;
  }
  for (int64_t i = 0; i < WIDTH; i++) {
    double sum = entry(l, "moe.experts.down_bias", s * WIDTH + i);
    for (int64_t j = 0; j < HIDDEN; j++) sum += h[j] * entry(l, "moe.experts.down", (s * HIDDEN + j) * WIDTH + i);
    y[i] += gate * sum;
  }
}

/* The scores e^logit of the k best of the experts that are not masked; the others' become 0. Returns the sum over
 * all. */
static double naive_scores(const layer *l, const esp_real *x, int k, double *score) {
  double sum = 0;
  bool chosen[EXPERTS] = {false};
  for (int64_t e = 0; e < EXPERTS; e++) {
    double logit = 0;
    for (int64_t i = 0; i < WIDTH; i++) logit += entry(l, "moe.router", e * WIDTH + i) * (double)x[i];
    score[e] = l->moe.layout.index[e] == ESP_EXPERT_MASKED ? 0 : exp(logit);
    sum += score[e];
  }
  for (int n = 0; n < k; n++) {
    int best = -1;
    for (int e = 0; e < EXPERTS; e++)
      if (!chosen[e] && (best < 0 || score[e] > score[best])) best = e;
    chosen[best] = true;
  }
  for (int e = 0; e < EXPERTS; e++)
    if (!chosen[e]) score[e] = 0;
  return sum;
}

static void check_against_loops(const esp_expert_layout *layout, int k, bool renormalise) {
  esp_model_config c = layer_config(ESP_LAYER_MOE, ESP_ACTIVATION_SWIGLU);
  c.moe.top_k = k;
  c.moe.router.renormalise = renormalise;
  layer l = make_layer(&c, layout);
  run_layer(&l, TOKENS);
  for (int64_t t = 0; t < TOKENS; t++) {
    double y[WIDTH] = {0}, score[EXPERTS], selected = 0;
    const esp_real *x = l.x->data + t * WIDTH;
    const double sum = naive_scores(&l, x, k, score);
    for (int e = 0; e < EXPERTS; e++) selected += score[e];
    for (int e = 0; e < EXPERTS; e++)
      if (score[e] > 0 && layout->index[e] >= 0)
        add_expert(&l, layout->index[e], x, score[e] / (renormalise ? selected : sum), y);
    assert_close("mixture", l.y->data + t * WIDTH, y, WIDTH, 1e-5, 1e-5);
  }
  free_layer(&l);
}

/* A layout from the entries of its index. */
static esp_expert_layout make_layout(const int32_t *index) {
  esp_expert_layout layout;
  esp_expert_layout_full(&layout, EXPERTS);
  layout.stored = 0;
  for (int e = 0; e < EXPERTS; e++) {
    layout.index[e] = index[e];
    if (index[e] >= layout.stored) layout.stored = index[e] + 1;
  }
  return layout;
}

enum { Z = ESP_EXPERT_ZERO, M = ESP_EXPERT_MASKED };

static void the_mixture_is_the_double_loop(void **state) {
  (void)state;
  const int32_t layouts[][EXPERTS] = {{0, 1, 2, 3, 4, 5, 6, 7}, {0, Z, 1, 2, 3, Z, 4, 5}, {0, M, 1, 2, 3, M, 4, 5},
                                      {0, 0, 1, 1, 2, 2, 3, 3}, {1, M, 0, 1, Z, M, 1, 2}, {Z, Z, Z, Z, Z, Z, Z, 0}};
  for (size_t i = 0; i < sizeof layouts / sizeof layouts[0]; i++) {
    const esp_expert_layout layout = make_layout(layouts[i]);
    for (int k = 1; k <= 3; k++) {
      check_against_loops(&layout, k, true);
      check_against_loops(&layout, k, false);
    }
  }
}

/* --- pruned layers ---------------------------------------------------------------------------------------------- */

/* Copies to `to` [to's first dimension, ..] the slices of `from` that index[] maps to it. */
static void copy_slices(const layer *from, layer *to, const char *name, const int32_t *index) {
  const esp_tensor *a = &parameter_of(from, name)->tensor, *b = &parameter_of(to, name)->tensor;
  const int64_t size = esp_tensor_count(a) / a->shape[0];
  for (int64_t e = 0; e < a->shape[0]; e++)
    if (index[e] >= 0) memcpy(b->data + index[e] * size, a->data + e * size, (size_t)size * sizeof *a->data);
}

static const char *const bank_names[] = {"moe.experts.gate_up", "moe.experts.gate_up_bias", "moe.experts.down",
                                         "moe.experts.down_bias"};
enum { BANK_NAMES = sizeof bank_names / sizeof bank_names[0] };

/* Widens float values for assert_close(). */
static void widen(const esp_real *from, double *to, int64_t count) {
  for (int64_t i = 0; i < count; i++) to[i] = (double)from[i];
}

static void assert_near(const char *what, const esp_real *a, const esp_real *b, int64_t count) {
  double *expected = esp_alloc((size_t)count, sizeof *expected);
  assert_non_null(expected);
  widen(b, expected, count);
  assert_close(what, a, expected, count, 1e-6, 1e-6);
  esp_free(expected);
}

static bool all_zero(const esp_real *values, int64_t count) {
  for (int64_t i = 0; i < count; i++)
    if (values[i] != 0) return false;
  return true;
}

static void masking_is_removing_the_router_row(void **state) {
  (void)state;
  const int32_t index[] = {0, M, 1, 2, 3, M, 4, 5};
  const esp_expert_layout layout = make_layout(index);
  esp_model_config c = layer_config(ESP_LAYER_MOE, ESP_ACTIVATION_SWIGLU);
  c.moe.router.renormalise = false;
  c.moe.router.z_weight = 0.2;
  layer masked = make_layer(&c, &layout);
  c.moe.experts = layout.stored;
  layer removed = make_layer(&c, NULL);
  copy_slices(&masked, &removed, "moe.router", index);
  run_layer(&masked, TOKENS);
  run_layer(&removed, TOKENS);
  assert_near("output", masked.y->data, removed.y->data, TOKENS * WIDTH);
  assert_near("input gradient", masked.x->grad, removed.x->grad, TOKENS * WIDTH);
  assert_int_equal(masked.losses.count, 2);
  for (int i = 0; i < 2; i++)
    assert_near(esp_loss_kind_name(masked.losses.loss[i].kind), masked.losses.loss[i].raw->data,
                removed.losses.loss[i].raw->data, 1);
  for (int i = 0; i < BANK_NAMES; i++) {
    const esp_parameter *a = parameter_of(&masked, bank_names[i]), *b = parameter_of(&removed, bank_names[i]);
    assert_near(bank_names[i], a->tensor.grad, b->tensor.grad, a->count);
  }
  const esp_real *of_masked = parameter_of(&masked, "moe.router")->tensor.grad;
  const esp_real *of_removed = parameter_of(&removed, "moe.router")->tensor.grad;
  for (int64_t e = 0; e < EXPERTS; e++) {
    const esp_real *row = of_masked + e * WIDTH;
    if (index[e] < 0) assert_true(all_zero(row, WIDTH));
    else assert_near("router gradient", row, of_removed + index[e] * WIDTH, WIDTH);
  }
  free_layer(&masked);
  free_layer(&removed);
}

/* Zero experts: what they gave is missing, and nothing else changes. */
static void zero_experts_only_lack_their_output(void **state) {
  (void)state;
  const int32_t index[] = {0, Z, 1, 2, Z, Z, 3, 4};
  const esp_expert_layout layout = make_layout(index);
  const esp_model_config c = layer_config(ESP_LAYER_MOE, ESP_ACTIVATION_SWIGLU);
  layer whole = make_layer(&c, NULL), pruned = make_layer(&c, &layout);
  for (int i = 0; i < BANK_NAMES; i++) copy_slices(&whole, &pruned, bank_names[i], index);
  run_layer(&whole, TOKENS);
  run_layer(&pruned, TOKENS);
  const esp_moe_record *r = &whole.record;
  assert_same_bits("logits", r->logits->data, pruned.record.logits->data, TOKENS * EXPERTS);
  assert_same_bits("gates", r->gates->data, pruned.record.gates->data, TOKENS * 2);
  int64_t lost = 0;
  for (int64_t t = 0; t < TOKENS; t++) {
    double y[WIDTH];
    widen(whole.y->data + t * WIDTH, y, WIDTH);
    for (int64_t slot = 2 * t; slot < 2 * t + 2; slot++) {
      if (index[r->routing->choice[slot]] >= 0) continue;
      const esp_real *row = r->experts.output->data + r->routing->row[slot] * WIDTH;
      for (int64_t i = 0; i < WIDTH; i++) y[i] -= (double)r->gates->data[slot] * (double)row[i];
      lost++;
    }
    assert_close("pruned output", pruned.y->data + t * WIDTH, y, WIDTH, 1e-6, 1e-6);
  }
  assert_true(lost > 0);
  assert_int_equal(pruned.record.routing->rows, 2 * TOKENS - lost);
  free_layer(&whole);
  free_layer(&pruned);
}

/* Gradients too: a zero expert is one whose output matrix and bias are zero and stay so. */
static void zero_experts_are_experts_that_give_zero(void **state) {
  (void)state;
  const int32_t index[] = {0, Z, 1, 2, Z, Z, 3, 4};
  const esp_expert_layout layout = make_layout(index);
  const esp_model_config c = layer_config(ESP_LAYER_MOE, ESP_ACTIVATION_SWIGLU);
  layer whole = make_layer(&c, NULL), pruned = make_layer(&c, &layout);
  for (int i = 0; i < BANK_NAMES; i++) copy_slices(&whole, &pruned, bank_names[i], index);
  for (int e = 0; e < EXPERTS; e++)
    for (int i = 2; i < BANK_NAMES && index[e] < 0; i++) {
      const esp_parameter *p = parameter_of(&whole, bank_names[i]);
      const int64_t size = p->count / EXPERTS;
      memset(p->tensor.data + e * size, 0, (size_t)size * sizeof(esp_real));
    }
  run_layer(&whole, TOKENS);
  run_layer(&pruned, TOKENS);
  assert_near("output", pruned.y->data, whole.y->data, TOKENS * WIDTH);
  assert_near("input gradient", pruned.x->grad, whole.x->grad, TOKENS * WIDTH);
  assert_near("router gradient", parameter_of(&pruned, "moe.router")->tensor.grad,
              parameter_of(&whole, "moe.router")->tensor.grad, EXPERTS * WIDTH);
  for (int i = 0; i < BANK_NAMES; i++) {
    const esp_parameter *p = parameter_of(&pruned, bank_names[i]), *q = parameter_of(&whole, bank_names[i]);
    const int64_t size = q->count / EXPERTS;
    for (int e = 0; e < EXPERTS; e++)
      if (index[e] >= 0) assert_near(bank_names[i], p->tensor.grad + index[e] * size, q->tensor.grad + e * size, size);
  }
  free_layer(&whole);
  free_layer(&pruned);
}

static void impossible_layouts_are_refused(void **state) {
  (void)state;
  const int32_t nothing[] = {Z, Z, Z, Z, Z, Z, Z, Z}, too_few[] = {M, M, M, M, 0, M, M, M};
  const struct {
    const int32_t *index;
    const char *message;
  } cases[] = {{nothing, "no stored expert"}, {too_few, "can route to 1 of its 8 experts"}};
  const esp_model_config c = layer_config(ESP_LAYER_MOE, ESP_ACTIVATION_SWIGLU);
  for (int i = 0; i < 2; i++) {
    const esp_expert_layout layout = make_layout(cases[i].index);
    esp_parameters *parameters = esp_parameters_create();
    esp_moe moe;
    assert_int_equal(esp_moe_declare(&moe, parameters, "moe",
                                     &(esp_moe_options){.config = &c, .layout = &layout, .residual_scale = 1}),
                     ESP_ERR_CONFIG);
    assert_non_null(strstr(esp_error_message(), cases[i].message));
    esp_parameters_free(parameters);
  }
}

/* --- selection and routing --------------------------------------------------------------------------------------- */

/* There is one token, so that a neuron that is not selected is so for all tokens of its expert. */
static void check_unselected(esp_activation_kind activation, esp_neuron_ranking ranking) {
  esp_model_config c = layer_config(ESP_LAYER_MONE, activation);
  const bool gated = esp_activation_is_gated(activation);
  c.moe.neurons_kept = 0.3;
  c.moe.neuron_ranking = ranking;
  layer l = make_layer(&c, NULL);
  run_layer(&l, 1);
  const int kept = 4; /* 0.3 x 12, rounded up */
  const int64_t rows = gated ? 2 * HIDDEN : HIDDEN;
  const esp_routing *r = l.record.routing;
  const esp_real *up = parameter_of(&l, gated ? "moe.experts.gate_up" : "moe.experts.up")->tensor.grad,
                 *bias = parameter_of(&l, gated ? "moe.experts.gate_up_bias" : "moe.experts.up_bias")->tensor.grad,
                 *down = parameter_of(&l, "moe.experts.down")->tensor.grad;
  for (int64_t e = 0; e < EXPERTS; e++) {
    int selected = 0;
    for (int64_t j = 0; j < HIDDEN; j++) {
      const int64_t first = e * rows + j, last = first + rows - HIDDEN; /* of the gate, and of up */
      const bool idle = all_zero(up + first * WIDTH, WIDTH) && all_zero(up + last * WIDTH, WIDTH) &&
                        all_zero(down + (e * HIDDEN + j) * WIDTH, WIDTH) && bias[first] == 0 && bias[last] == 0;
      const int64_t row = r->first_row[e];
      const bool marked = row < r->first_row[e + 1] && l.record.experts.mask[row * HIDDEN + j];
      const bool lives = marked && l.record.experts.selected->data[row * HIDDEN + j] != 0; /* a ReLU's may not */
      assert_int_equal(idle, !lives);
      selected += marked;
    }
    assert_int_equal(selected, r->wanted[e] ? kept : 0);
  }
  free_layer(&l);
}

static void unselected_neurons_learn_nothing(void **state) {
  (void)state;
  for (int i = 0; i < ACTIVATIONS; i++) {
    check_unselected(activations[i], ESP_RANK_ACTIVATION);
    check_unselected(activations[i], ESP_RANK_PRE_ACTIVATION);
  }
}

static void ties_go_to_the_lower_index(void **state) {
  (void)state;
  esp_tape *tape = esp_tape_create();
  esp_expert_layout layout;
  esp_expert_layout_full(&layout, EXPERTS);
  layout.index[1] = ESP_EXPERT_MASKED;
  esp_tensor *logits = esp_tape_tensor(tape, 2, (const int64_t[]){5, EXPERTS});
  for (int i = 0; i < 5 * EXPERTS; i++) logits->data[i] = i % EXPERTS == 6 ? 2 : 1;
  const esp_route_request request = esp_plain_request(&(esp_router_config){.renormalise = true}, &layout, 3, 5);
  esp_routed routed = {0};
  assert_non_null(esp_route(tape, logits, &request, &routed));
  for (int t = 0; t < 5; t++)
    assert_memory_equal(routed.routing->choice + 3 * t, ((const int32_t[]){6, 0, 2}), 3 * sizeof(int32_t));
  esp_tensor *h = esp_tape_tensor(tape, 2, (const int64_t[]){1, 6});
  const esp_real values[] = {-1, 1, 3, 1, -1, 1}, expected[] = {-1, 1, 3, 0, 0, 0};
  memcpy(h->data, values, sizeof values);
  assert_same_bits(
      "neurons",
      esp_neuron_top_k(tape, h, h, &(esp_neuron_selection){.kept = 3, .ranking = ESP_GATE_IDENTITY}, NULL)->data,
      expected, 6);
  esp_tape_free(tape);
}

/* Scores of 20000 tokens whose logits are 0. */
static const esp_real *noisy_scores(esp_tape *tape, bool training, uint64_t stream) {
  esp_expert_layout layout;
  esp_expert_layout_full(&layout, EXPERTS);
  esp_tensor *logits = esp_tape_tensor(tape, 2, (const int64_t[]){20000, EXPERTS});
  memset(logits->data, 0, 20000 * EXPERTS * sizeof *logits->data);
  esp_route_request request = esp_plain_request(&(esp_router_config){.noise = 1}, &layout, 1, 20000);
  request.training = training;
  request.seed = 7;
  request.stream = stream;
  esp_routed routed = {0};
  assert_non_null(esp_route(tape, logits, &request, &routed));
  return routed.scores->data;
}

/* log p_i is the noise n_i but for a number common to the token: sum_i (log p_i - mean)^2 / (E - 1) estimates its
 * variance. 140000 degrees of freedom: a standard error of 0.2 %. */
static void router_noise_has_deviation_one_over_experts(void **state) {
  (void)state;
  esp_tape *tape = esp_tape_create();
  const esp_real *scores = noisy_scores(tape, true, 3);
  double squares = 0;
  for (int64_t t = 0; t < 20000; t++) {
    double sum = 0, sum_squares = 0;
    for (int64_t i = 0; i < EXPERTS; i++) {
      const double z = log((double)scores[t * EXPERTS + i]);
      sum += z;
      sum_squares += z * z;
    }
    squares += sum_squares - sum * sum / EXPERTS;
  }
  const double deviation = sqrt(squares / (20000.0 * (EXPERTS - 1)));
  if (fabs(deviation * EXPERTS - 1) > 0.01) fail_msg("the noise's standard deviation is %g / E", deviation * EXPERTS);
  assert_same_bits("the same stream", scores, noisy_scores(tape, true, 3), 20000 * EXPERTS);
  assert_memory_not_equal(scores, noisy_scores(tape, true, 4), EXPERTS * sizeof *scores);
  const esp_real *quiet = noisy_scores(tape, false, 3);
  for (int64_t i = 0; i < 20000 * EXPERTS; i++) assert_true(quiet[i] == (esp_real)1 / EXPERTS);
  esp_tape_free(tape);
}

/* The balance loss where token t of EXPERTS prefers experts t * stride, t * stride + 1, ... by `preference`. */
static double balance_of(int stride, int k, double preference) {
  esp_tape *tape = esp_tape_create();
  esp_expert_layout layout;
  esp_expert_layout_full(&layout, EXPERTS);
  esp_tensor *logits = esp_tape_tensor(tape, 2, (const int64_t[]){EXPERTS, EXPERTS});
  memset(logits->data, 0, EXPERTS * EXPERTS * sizeof *logits->data);
  for (int t = 0; t < EXPERTS; t++)
    for (int i = 0; i < k; i++)
      logits->data[t * EXPERTS + (t * stride + i) % EXPERTS] = (esp_real)(preference * (k - i));
  const esp_route_request request = esp_plain_request(&(esp_router_config){.renormalise = true}, &layout, k, EXPERTS);
  esp_routed routed = {0};
  assert_non_null(esp_route(tape, logits, &request, &routed));
  const double loss = (double)esp_balance_loss(tape, routed.scores, routed.routing, &request)->data[0];
  esp_tape_free(tape);
  return loss;
}

static void balance_loss_is_one_at_balance(void **state) {
  (void)state;
  for (int k = 1; k <= 3; k++) assert_true(fabs(balance_of(1, k, 1.5) - 1) < 1e-6);
  assert_true(fabs(balance_of(0, 1, 30) - EXPERTS) < 1e-4); /* all to one expert, surely */
  assert_true(balance_of(0, 2, 1) > 1.5);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(one_expert_is_the_dense_layer),
      cmocka_unit_test(mone_with_all_neurons_is_the_moe),
      cmocka_unit_test(the_mixture_is_the_double_loop),
      cmocka_unit_test(masking_is_removing_the_router_row),
      cmocka_unit_test(zero_experts_only_lack_their_output),
      cmocka_unit_test(zero_experts_are_experts_that_give_zero),
      cmocka_unit_test(impossible_layouts_are_refused),
      cmocka_unit_test(unselected_neurons_learn_nothing),
      cmocka_unit_test(ties_go_to_the_lower_index),
      cmocka_unit_test(router_noise_has_deviation_one_over_experts),
      cmocka_unit_test(balance_loss_is_one_at_balance),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
