/* label: short */
/* Experts of different widths in one layer: the same numbers as without the padding, less memory and fewer products. */
#include "test_measure_models.h"

#include <espalier/checkpoint.h>
#include <espalier/expert_bank.h>
#include <espalier/moe_ops.h>
#include <espalier/ops.h>
#include <espalier/parallel.h>

/* --- the maps ----------------------------------------------------------------------------------------------------- */

enum { ROWS = 203, THIN = 33, MOST = 40, GROUPS = 3, PARTS = 2 };

static const int64_t first_row[] = {0, 90, 90, ROWS};
static const int32_t equal_widths[] = {MOST, MOST, MOST}, odd_widths[] = {7, MOST, 13};

typedef struct maps {
  esp_tape *tape;
  esp_tensor x, up, up_bias, down, down_bias; /* leaves */
  esp_tensor *y;
} maps;

static esp_tensor leaf(int rank, const int64_t *shape, uint64_t stream) {
  esp_tensor t = {.rank = rank, .requires_grad = true};
  memcpy(t.shape, shape, (size_t)rank * sizeof *shape);
  t.data = esp_alloc((size_t)esp_tensor_count(&t), sizeof *t.data);
  t.grad = esp_alloc((size_t)esp_tensor_count(&t), sizeof *t.grad);
  fill_normal(t.data, esp_tensor_count(&t), stream);
  return t;
}

#define LEAF(stream, ...) leaf(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t), (int64_t[]){__VA_ARGS__}, stream)

/* Up, SwiGLU, down and backward. widths NULL: the uniform maps. */
static maps run_maps(const int32_t *widths) {
  int64_t n = 0;
  for (int g = 0; g < GROUPS; g++) n += widths ? widths[g] : MOST;
  maps m = {.tape = esp_tape_create(), .x = LEAF(1, ROWS, THIN), .down_bias = LEAF(5, GROUPS, THIN)};
  m.up = widths ? LEAF(2, PARTS * n, THIN) : LEAF(2, GROUPS, PARTS * MOST, THIN);
  m.up_bias = widths ? LEAF(3, PARTS * n) : LEAF(3, GROUPS, PARTS * MOST);
  m.down = widths ? LEAF(4, n, THIN) : LEAF(4, GROUPS, MOST, THIN);
  esp_tensor weights = LEAF(6, ROWS, THIN);
  weights.requires_grad = false;
  esp_tape_reset(m.tape, true);
  esp_tensor *h, *y;
  if (widths) {
    h = esp_swiglu(
        m.tape,
        esp_grouped_map(
            m.tape, &m.x, &m.up, &m.up_bias,
            &(esp_grouped_map_options){
                .first_row = first_row, .groups = GROUPS, .widths = widths, .parts = PARTS, .transpose = true}));
    y = esp_grouped_map(m.tape, h, &m.down, &m.down_bias,
                        &(esp_grouped_map_options){.first_row = first_row, .groups = GROUPS, .widths = widths});
  } else {
    h = esp_swiglu(m.tape, esp_grouped_map(m.tape, &m.x, &m.up, &m.up_bias,
                                           &(esp_grouped_map_options){
                                               .first_row = first_row, .groups = GROUPS, .transpose = true}));
    y = esp_grouped_map(m.tape, h, &m.down, &m.down_bias,
                        &(esp_grouped_map_options){.first_row = first_row, .groups = GROUPS});
  }
  m.y = y;
  assert_int_equal(esp_tape_backward(m.tape, esp_mean(m.tape, esp_multiply(m.tape, y, &weights))), ESP_OK);
  esp_free(weights.data);
  esp_free(weights.grad);
  return m;
}

static void free_maps(maps *m) {
  esp_tensor *const leaves[] = {&m->x, &m->up, &m->up_bias, &m->down, &m->down_bias};
  for (int i = 0; i < 5; i++) {
    esp_free(leaves[i]->data);
    esp_free(leaves[i]->grad);
  }
  esp_tape_free(m->tape);
}

static void assert_same_maps(const maps *a, const maps *b) {
  const esp_tensor *const one[] = {&a->x, &a->up, &a->up_bias, &a->down, &a->down_bias};
  const esp_tensor *const other[] = {&b->x, &b->up, &b->up_bias, &b->down, &b->down_bias};
  assert_same_bits("output", a->y->data, b->y->data, ROWS * THIN);
  for (int i = 0; i < 5; i++) {
    assert_int_equal(esp_tensor_count(one[i]), esp_tensor_count(other[i]));
    assert_same_bits("gradient", one[i]->grad, other[i]->grad, esp_tensor_count(one[i]));
  }
}

static void equal_widths_are_the_uniform_bank(void **state) {
  (void)state;
  maps uniform = run_maps(NULL), ragged = run_maps(equal_widths);
  assert_same_maps(&ragged, &uniform);
  free_maps(&uniform);
  free_maps(&ragged);
}

static void threads_do_not_change_bits(void **state) {
  (void)state;
  esp_threads_set(1);
  maps one = run_maps(odd_widths);
  esp_threads_set(2);
  maps two = run_maps(odd_widths);
  esp_threads_set(0);
  assert_same_maps(&one, &two);
  free_maps(&one);
  free_maps(&two);
}

/* --- a bank against loops ----------------------------------------------------------------------------------------- */

enum { WIDTH = 9, TOKENS = 23, EXPERTS = 4 };

static const int64_t expert_rows[] = {0, 6, 6, 15, TOKENS};
static const int32_t widths[] = {7, 3, 12, 1};

static double gate_of(esp_gate_kind kind, double x) {
  const double positive = x > 0 ? x : 0;
  switch (kind) {
  case ESP_GATE_IDENTITY:
    break;
  case ESP_GATE_RELU:
    return positive;
  case ESP_GATE_GELU:
    return x * 0.5 * erfc(-x / sqrt(2));
  case ESP_GATE_SILU:
    return x / (1 + exp(-x));
  case ESP_GATE_SIGMOID:
    return 1 / (1 + exp(-x));
  case ESP_GATE_SQUARED_RELU:
    return positive * positive;
  }
  return x;
}

static double dot(const esp_real *a, const esp_real *b, int64_t count) {
  double sum = 0;
  for (int64_t i = 0; i < count; i++) sum += (double)a[i] * (double)b[i];
  return sum;
}

/* Those `kept` activations h stay whose |by| is largest; ties go to the lower index. */
static void select_neurons(double *h, const double *by, int64_t count, int kept) {
  for (int64_t j = 0; j < count; j++) {
    int before = 0;
    for (int64_t i = 0; i < count; i++) before += fabs(by[i]) > fabs(by[j]) || (fabs(by[i]) == fabs(by[j]) && i < j);
    if (before >= kept) h[j] = 0;
  }
}

static void run_expert(const esp_expert_bank *bank, int expert, const esp_real *x, int kept, double *y) {
  const esp_expert_weights w = esp_expert_weights_of(bank, expert);
  double h[16], by[16];
  assert_int_equal(w.neurons, widths[expert]);
  for (int64_t j = 0; j < w.neurons; j++) {
    const double up = dot(w.up + j * WIDTH, x, WIDTH) + (double)w.up_bias[j];
    const double gate = w.gate ? dot(w.gate + j * WIDTH, x, WIDTH) + (double)w.gate_bias[j] : 0;
    by[j] = gate_of(esp_activation_gate(bank->activation), w.gate ? gate : up);
    h[j] = w.gate ? by[j] * up : by[j];
  }
  select_neurons(h, by, w.neurons, kept);
  for (int64_t i = 0; i < WIDTH; i++) {
    y[i] = (double)w.down_bias[i];
    for (int64_t j = 0; j < w.neurons; j++) y[i] += h[j] * (double)w.down[j * WIDTH + i];
  }
}

static void check_bank(esp_activation_kind kind, int kept) {
  const esp_feed_forward_config config = {.activation = kind, .bias = true};
  esp_parameters *parameters = esp_parameters_create();
  esp_expert_bank bank;
  assert_int_equal(esp_expert_bank_declare(&bank, parameters, "bank",
                                           &(esp_expert_bank_options){.experts = EXPERTS,
                                                                      .width = WIDTH,
                                                                      .hidden = 12,
                                                                      .widths = widths,
                                                                      .config = &config,
                                                                      .residual_scale = 1}),
                   ESP_OK);
  assert_int_equal(esp_parameters_allocate(parameters, 1), ESP_OK);
  for (int64_t i = 0; i < esp_parameters_count(parameters); i++)
    fill_normal(esp_parameters_at(parameters, i)->tensor.data, esp_parameters_at(parameters, i)->count,
                50 + (uint64_t)i);
  esp_tape *tape = esp_tape_create();
  esp_tape_reset(tape, false);
  esp_tensor *x = esp_tape_tensor(tape, 2, (const int64_t[]){TOKENS, WIDTH});
  fill_normal(x->data, TOKENS * WIDTH, 3);
  esp_bank_trace trace;
  const esp_tensor *y =
      esp_expert_bank_forward(&bank, tape, x, expert_rows, &(esp_neuron_options){.kept = kept}, &trace);
  for (int e = 0; e < EXPERTS; e++)
    for (int64_t r = expert_rows[e]; r < expert_rows[e + 1]; r++) {
      double expected[WIDTH];
      run_expert(&bank, e, x->data + r * WIDTH, kept, expected);
      assert_close("row", y->data + r * WIDTH, expected, WIDTH, 1e-5, 2e-5);
      for (int64_t j = widths[e]; j < 12; j++) assert_true(trace.activation->data[r * 12 + j] == 0);
    }
  esp_tape_free(tape);
  esp_parameters_free(parameters);
}

static void a_bank_is_the_double_loop(void **state) {
  (void)state;
  const esp_activation_kind kinds[] = {ESP_ACTIVATION_RELU,         ESP_ACTIVATION_GELU,         ESP_ACTIVATION_SWIGLU,
                                       ESP_ACTIVATION_SQUARED_RELU, ESP_ACTIVATION_GLU,          ESP_ACTIVATION_GEGLU,
                                       ESP_ACTIVATION_REGLU,        ESP_ACTIVATION_SQUARED_REGLU};
  for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++)
    for (int kept = 1; kept <= 12; kept += 1 + kept / 4) check_bank(kinds[i], kept);
}

/* --- whole models ------------------------------------------------------------------------------------------------- */

static esp_model *ragged_model(bool bias) {
  esp_model_config config = small_config();
  esp_expert_layout layouts[3];
  config.feed_forward.bias = bias;
  for (int i = 0; i < 3; i++) esp_expert_layout_full(&layouts[i], 4);
  memcpy(layouts[1].widths, (const int32_t[]){20, 3, 0, 11}, 4 * sizeof(int32_t)); /* 0: the config's 20 */
  for (int s = 0; s < 4; s++) layouts[2].widths[s] = 4;
  return make(&config, layouts, 3);
}

static void names_and_shapes(void **state) {
  (void)state;
  esp_model *model = ragged_model(true);
  const struct {
    const char *name, *shape;
  } cases[] = {{"blocks.1.moe.experts.gate_up", "[108, 8]"},  {"blocks.1.moe.experts.gate_up_bias", "[108]"},
               {"blocks.1.moe.experts.down", "[54, 8]"},      {"blocks.1.moe.experts.down_bias", "[4, 8]"},
               {"blocks.2.moe.experts.gate_up", "[4, 8, 8]"}, {"blocks.2.moe.experts.gate_up_bias", "[4, 8]"},
               {"blocks.2.moe.experts.down", "[4, 4, 8]"}};
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    const esp_parameter *p = esp_parameters_find(model->parameters, cases[i].name);
    char shape[64];
    assert_non_null(p);
    assert_string_equal(esp_shape_text(&p->tensor, shape, sizeof shape), cases[i].shape);
  }
  assert_int_equal(esp_model_moe(model, 1)->neurons_kept, 4); /* of 5 that the config says */
  esp_model_free(model);
}

static void widths_that_say_nothing_are_left_out(void **state) {
  (void)state;
  const esp_model_config config = small_config();
  esp_expert_layout layouts[3];
  for (int i = 0; i < 3; i++) esp_expert_layout_full(&layouts[i], 4);
  esp_model *plain = make(&config, layouts, 3);
  for (int s = 0; s < 4; s++) layouts[1].widths[s] = 20;
  esp_model *stated = make(&config, layouts, 3);
  char digest[ESP_DIGEST_SIZE], other[ESP_DIGEST_SIZE];
  assert_int_equal(esp_model_digest(plain, digest), ESP_OK);
  assert_int_equal(esp_model_digest(stated, other), ESP_OK);
  assert_string_equal(digest, other);
  layouts[1].widths[2] = -1;
  esp_model *none;
  assert_int_equal(esp_model_create(&none, &config, layouts, 3), ESP_ERR_CONFIG);
  assert_non_null(strstr(esp_error_message(), "stored expert 2 a width of -1"));
  esp_model_free(plain);
  esp_model_free(stated);
}

/* Parameters are those that the model has; the activated ones and the FLOPs those of the mean expert. */
static void costs(void **state) {
  (void)state;
  for (int bias = 0; bias < 2; bias++) {
    esp_model *model = ragged_model(bias);
    esp_model_cost cost;
    int64_t parameters = 0;
    for (int64_t i = 0; i < esp_parameters_count(model->parameters); i++)
      parameters += esp_parameters_at(model->parameters, i)->count;
    esp_model_cost_of(model, &cost);
    assert_int_equal(cost.parameters, parameters);
    assert_true(cost.layers[1].narrowest == 3 && cost.layers[1].widest == 20);
    assert_true(cost.layers[2].narrowest == 4 && cost.layers[2].widest == 4);
    if (!bias) { /* 2 experts of 13.5 neurons and a shared one of 6, of 24 numbers each; the router of 4 x 8 */
      assert_int_equal(cost.layers[1].activated, 2 * 54 * 24 / 4 + 6 * 24 + 32);
      assert_int_equal(cost.layers[1].touched, 54 * 24 + 6 * 24 + 32);
      assert_near(cost.layers[1].flops, 2.0 * 16 * (2 * 13.5 * 24 + 6 * 24 + 32));
    }
    esp_model_free(model);
  }
}

/* Zeros beyond an expert's width are no activations. */
static void statistics_see_neurons_only(void **state) {
  (void)state;
  esp_model *model = ragged_model(false);
  fill_normal(pixels, IMAGES * PIXELS, 9);
  esp_statistics *statistics = pass_over(model, (const int[]){0, IMAGES}, 1);
  const esp_moe *moe = esp_model_moe(model, 0);
  esp_layer_statistics layer;
  int64_t values = 0;
  esp_statistics_layer(statistics, 0, &layer);
  for (int e = 0; e < 4; e++) {
    esp_expert_statistics expert;
    esp_statistics_expert(statistics, 0, e, &expert);
    values += expert.served * esp_expert_width(&moe->bank, e);
  }
  assert_int_equal(layer.values, values);
  esp_statistics_free(statistics);
  esp_model_free(model);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(equal_widths_are_the_uniform_bank),
                                     cmocka_unit_test(threads_do_not_change_bits),
                                     cmocka_unit_test(a_bank_is_the_double_loop),
                                     cmocka_unit_test(names_and_shapes),
                                     cmocka_unit_test(widths_that_say_nothing_are_left_out),
                                     cmocka_unit_test(costs),
                                     cmocka_unit_test(statistics_see_neurons_only)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
