/* label: short */
/* Optimisers against the formulas written out in double precision; schedules, clipping, groups, bad settings. */
#include "testing.h"

#include <espalier/memory.h>
#include <espalier/optim.h>
#include <espalier/parallel.h>

enum { PARAMETERS = 5, COUNT = 50, STEPS = 3 };

static const struct {
  const char *name;
  esp_parameter_kind kind;
  bool decays;
} groups[PARAMETERS] = {{"weight", ESP_KIND_WEIGHT, true},
                        {"bias", ESP_KIND_BIAS, false},
                        {"gain", ESP_KIND_NORM, false},
                        {"positions", ESP_KIND_POSITION, false},
                        {"router", ESP_KIND_ROUTER, true}};

/* One parameter of each kind, and what the formulas make of it. */
typedef struct setting {
  esp_parameters *parameters;
  esp_parameter *parameter[PARAMETERS];
  esp_optimizer *optimizer;
  esp_optimizer_config config;
  double w[PARAMETERS][COUNT], m[PARAMETERS][COUNT], v[PARAMETERS][COUNT];
} setting;

static void set_up(setting *s, const esp_optimizer_config *config) {
  *s = (setting){.parameters = esp_parameters_create(), .config = *config};
  for (int i = 0; i < PARAMETERS; i++) {
    s->parameter[i] = esp_parameters_add(
        s->parameters, "", groups[i].name,
        &(esp_parameter_options){.kind = groups[i].kind, .rank = 1, .shape = {COUNT}, .deviation = 1});
    assert_non_null(s->parameter[i]);
  }
  assert_int_equal(esp_parameters_allocate(s->parameters, 1), ESP_OK);
  for (int i = 0; i < PARAMETERS; i++)
    for (int j = 0; j < COUNT; j++) s->w[i][j] = (double)s->parameter[i]->tensor.data[j];
  if (esp_optimizer_create(&s->optimizer, config, s->parameters) != ESP_OK) fail_msg("%s", esp_error_message());
}

static void tear_down(setting *s) {
  esp_optimizer_free(s->optimizer);
  esp_parameters_free(s->parameters);
}

/* Random gradients for step `step`, as backward leaves them. */
static void set_gradients(setting *s, int step) {
  for (int i = 0; i < PARAMETERS; i++) {
    fill_normal(s->parameter[i]->tensor.grad, COUNT, (uint64_t)(10 * step + i));
    s->parameter[i]->tensor.grad_written = true;
  }
}

static double hand_norm(const setting *s) {
  double sum = 0;
  for (int i = 0; i < PARAMETERS; i++)
    for (int j = 0; j < COUNT && !s->parameter[i]->tensor.frozen; j++) {
      const double g = (double)s->parameter[i]->tensor.grad[j];
      sum += g * g;
    }
  return sqrt(sum);
}

/* Step `step` (from 1) of element j of parameter i, with gradient g. */
static void hand_update(setting *s, int i, int j, double g, int step, double rate) {
  const esp_optimizer_config *c = &s->config;
  double *w = &s->w[i][j], *m = &s->m[i][j], *v = &s->v[i][j], move;
  const double decay = (groups[i].kind == ESP_KIND_ROUTER ? c->router_decay
                        : groups[i].decays                ? 1
                                                          : 0) *
                       c->weight_decay;
  if (c->kind == ESP_OPTIMIZER_SGD) {
    move = *m = c->momentum * *m + g;
  } else {
    *m = c->beta1 * *m + (1 - c->beta1) * g;
    *v = c->beta2 * *v + (1 - c->beta2) * g * g;
    move = *m / (1 - pow(c->beta1, step)) / (sqrt(*v / (1 - pow(c->beta2, step))) + c->epsilon);
  }
  *w -= rate * (groups[i].kind == ESP_KIND_ROUTER ? c->router_rate : 1) * (move + decay * *w);
}

static void hand_step(setting *s, int step, double multiplier, double norm) {
  const esp_optimizer_config *c = &s->config;
  const double scale = c->clip_norm > 0 && norm > c->clip_norm ? c->clip_norm / norm : 1;
  for (int i = 0; i < PARAMETERS; i++)
    for (int j = 0; j < COUNT && !s->parameter[i]->tensor.frozen; j++)
      hand_update(s, i, j, scale * (double)s->parameter[i]->tensor.grad[j], step, multiplier * c->learning_rate);
}

static void check_steps(const esp_optimizer_config *config) {
  static const double shares[STEPS] = {0.1, 1, 0.5};
  setting s;
  set_up(&s, config);
  for (int step = 1; step <= STEPS; step++) {
    set_gradients(&s, step);
    const double norm = hand_norm(&s);
    assert_true(fabs(esp_gradient_norm(s.parameters) - norm) < 1e-6 * norm);
    hand_step(&s, step, shares[step - 1], norm);
    esp_optimizer_step(s.optimizer, shares[step - 1], esp_gradient_norm(s.parameters));
    assert_int_equal(esp_optimizer_steps(s.optimizer), step);
    for (int i = 0; i < PARAMETERS; i++)
      assert_close(groups[i].name, s.parameter[i]->tensor.data, s.w[i], COUNT, 1e-6, 1e-6);
  }
  const char *name;
  const esp_real *first = esp_optimizer_state(s.optimizer, 0, &name);
  for (int i = 0; i < PARAMETERS; i++) assert_close("state", first + s.parameter[i]->offset, s.m[i], COUNT, 1e-6, 1e-6);
  tear_down(&s);
}

static esp_optimizer_config make_config(esp_optimizer_kind kind) {
  esp_optimizer_config c = esp_optimizer_defaults;
  c.kind = kind;
  c.learning_rate = 0.1;
  c.router_rate = 0.25;
  c.weight_decay = 0.2;
  c.clip_norm = 0;
  return c;
}

static void steps_follow_the_formulas(void **state) {
  (void)state;
  for (int kind = 0; kind < 2; kind++) {
    esp_optimizer_config c = make_config(kind ? ESP_OPTIMIZER_ADAMW : ESP_OPTIMIZER_SGD);
    check_steps(&c);
    c.clip_norm = 3; /* the norm is about sqrt(250) */
    check_steps(&c);
    c.clip_norm = 1000; /* too high to matter */
    check_steps(&c);
    c.router_decay = 0.5;
    check_steps(&c);
    c.momentum = c.beta1 = 0;
    c.weight_decay = 0;
    check_steps(&c);
  }
}

/* --- Muon ----------------------------------------------------------------------------------------------------- */

enum { MATRICES = 3, SHORT = 7, LONG = 19, MATRIX = SHORT * LONG };

/* c = op(a) op(b), [rows, inner] and [inner, columns]. */
static void multiply(int rows, int columns, int inner, const double *a, bool ta, const double *b, bool tb, double *c) {
  for (int i = 0; i < rows; i++)
    for (int j = 0; j < columns; j++) {
      c[i * columns + j] = 0;
      for (int k = 0; k < inner; k++)
        c[i * columns + j] += a[ta ? k * rows + i : i * inner + k] * b[tb ? j * inner + k : k * columns + j];
    }
}

/* The iteration as printed: always from the left. */
static void orthogonalise(int rows, int columns, double x[MATRIX]) {
  double gram[LONG * LONG], square[LONG * LONG], product[MATRIX], norm = 0;
  for (int i = 0; i < MATRIX; i++) norm += x[i] * x[i];
  for (int i = 0; i < MATRIX; i++) x[i] /= sqrt(norm);
  for (int iteration = 0; iteration < 5; iteration++) {
    multiply(rows, rows, columns, x, false, x, true, gram);
    multiply(rows, rows, rows, gram, false, gram, false, square);
    for (int i = 0; i < rows * rows; i++) gram[i] = -4.7750 * gram[i] + 2.0315 * square[i];
    multiply(rows, columns, rows, gram, false, x, false, product);
    for (int i = 0; i < MATRIX; i++) x[i] = 3.4445 * x[i] + product[i];
  }
}

/* A stack of matrices that are wide or tall, and a bias, which AdamW moves. */
typedef struct stack {
  esp_parameters *parameters;
  esp_parameter *matrices, *bias;
  esp_optimizer *optimizer;
} stack;

static stack make_stack(int rows, const esp_optimizer_config *config) {
  stack s = {.parameters = esp_parameters_create()};
  s.matrices = esp_parameters_add(
      s.parameters, "", "matrices",
      &(esp_parameter_options){
          .kind = ESP_KIND_WEIGHT, .rank = 3, .shape = {MATRICES, rows, MATRIX / rows}, .deviation = 1});
  s.matrices->matrices = MATRICES;
  s.matrices->matrix_rows = rows;
  s.bias =
      esp_parameters_add(s.parameters, "", "bias",
                         &(esp_parameter_options){.kind = ESP_KIND_BIAS, .rank = 1, .shape = {COUNT}, .deviation = 1});
  assert_int_equal(esp_parameters_allocate(s.parameters, 1), ESP_OK);
  assert_int_equal(esp_optimizer_create(&s.optimizer, config, s.parameters), ESP_OK);
  return s;
}

static void free_stack(stack *s) {
  esp_optimizer_free(s->optimizer);
  esp_parameters_free(s->parameters);
}

static void step_stack(stack *s, int step) {
  fill_normal(s->matrices->tensor.grad, s->matrices->count, (uint64_t)(2 * step));
  fill_normal(s->bias->tensor.grad, COUNT, (uint64_t)(2 * step + 1));
  s->matrices->tensor.grad_written = s->bias->tensor.grad_written = true;
  esp_optimizer_step(s->optimizer, 1, 0);
}

static void check_muon(int rows) {
  const esp_optimizer_config c = make_config(ESP_OPTIMIZER_MUON), adam = make_config(ESP_OPTIMIZER_ADAMW);
  stack s = make_stack(rows, &c), plain = make_stack(rows, &adam);
  static double w[MATRICES * MATRIX], m[MATRICES * MATRIX], x[MATRIX];
  for (int i = 0; i < MATRICES * MATRIX; i++) w[i] = (double)s.matrices->tensor.data[i], m[i] = 0;
  for (int step = 0; step < STEPS; step++) {
    step_stack(&s, step);
    step_stack(&plain, step);
    for (int n = 0; n < MATRICES; n++) {
      for (int i = 0; i < MATRIX; i++) {
        const double g = (double)s.matrices->tensor.grad[n * MATRIX + i];
        m[n * MATRIX + i] = c.momentum * m[n * MATRIX + i] + g;
        x[i] = g + c.momentum * m[n * MATRIX + i];
      }
      orthogonalise(rows, MATRIX / rows, x);
      for (int i = 0; i < MATRIX; i++)
        w[n * MATRIX + i] -= c.learning_rate * (0.2 * sqrt(LONG) * x[i] + c.weight_decay * w[n * MATRIX + i]);
    }
  }
  /* The iteration takes small errors up to 3.4445^5 times. */
  assert_close("matrices", s.matrices->tensor.data, w, MATRICES * MATRIX, 1e-4, 1e-4);
  assert_same_bits("bias", s.bias->tensor.data, plain.bias->tensor.data, COUNT);
  free_stack(&s);
  free_stack(&plain);
}

static void muon_makes_steps_orthogonal_and_leaves_the_rest_to_adam(void **state) {
  (void)state;
  check_muon(SHORT);
  check_muon(LONG);
}

static void muon_has_the_same_bits_for_any_number_of_threads(void **state) {
  (void)state;
  const esp_optimizer_config c = make_config(ESP_OPTIMIZER_MUON);
  const int threads = esp_threads();
  stack one = make_stack(LONG, &c), two = make_stack(LONG, &c);
  for (int step = 0; step < STEPS; step++) {
    esp_threads_set(1);
    step_stack(&one, step);
    esp_threads_set(2);
    step_stack(&two, step);
  }
  esp_threads_set(threads);
  assert_same_bits("weights", one.matrices->tensor.data, two.matrices->tensor.data, one.matrices->count);
  free_stack(&one);
  free_stack(&two);
}

/* One step of AdamW with a first gradient of 1 and no decay is one of the rate's size, whatever the betas. */
static void the_first_step_of_adam_has_the_size_of_the_rate(void **state) {
  (void)state;
  setting s;
  esp_optimizer_config c = make_config(ESP_OPTIMIZER_ADAMW);
  c.weight_decay = 0;
  c.epsilon = 0;
  set_up(&s, &c);
  set_gradients(&s, 1);
  esp_optimizer_step(s.optimizer, 1, 0);
  for (int j = 0; j < COUNT; j++) {
    const double sign = s.parameter[0]->tensor.grad[j] > 0 ? 1 : -1;
    assert_true(fabs((double)s.parameter[0]->tensor.data[j] - (s.w[0][j] - 0.1 * sign)) < 1e-6);
  }
  tear_down(&s);
}

static void clipped_gradients_have_the_clipping_norm(void **state) {
  (void)state;
  setting s;
  esp_optimizer_config c = make_config(ESP_OPTIMIZER_SGD);
  c.router_rate = c.learning_rate = 1;
  c.weight_decay = 0;
  c.clip_norm = 0.5;
  set_up(&s, &c);
  set_gradients(&s, 1);
  esp_optimizer_step(s.optimizer, 1, esp_gradient_norm(s.parameters));
  double sum = 0;
  for (int i = 0; i < PARAMETERS; i++)
    for (int j = 0; j < COUNT; j++) sum += pow((double)s.parameter[i]->tensor.data[j] - s.w[i][j], 2);
  assert_true(fabs(sqrt(sum) - 0.5) < 1e-6);
  tear_down(&s);
}

static void frozen_parameters_do_not_count_and_do_not_move(void **state) {
  (void)state;
  for (int kind = 0; kind < 2; kind++) {
    setting s;
    esp_optimizer_config c = make_config(kind ? ESP_OPTIMIZER_ADAMW : ESP_OPTIMIZER_SGD);
    c.clip_norm = 1;
    set_up(&s, &c);
    assert_int_equal(esp_parameters_freeze(s.parameters, "router,b*"), ESP_OK);
    set_gradients(&s, 1);
    const double norm = hand_norm(&s), all = sqrt(PARAMETERS * COUNT);
    assert_true(norm < 0.9 * all);
    assert_true(fabs(esp_gradient_norm(s.parameters) - norm) < 1e-6 * norm);
    hand_step(&s, 1, 1, norm);
    esp_optimizer_step(s.optimizer, 1, norm);
    for (int i = 0; i < PARAMETERS; i++) {
      const double tolerance = s.parameter[i]->tensor.frozen ? 0 : 1e-6;
      assert_close(groups[i].name, s.parameter[i]->tensor.data, s.w[i], COUNT, tolerance, tolerance);
    }
    assert_true(s.parameter[1]->tensor.frozen && s.parameter[4]->tensor.frozen && !s.parameter[0]->tensor.frozen);
    tear_down(&s);
  }
}

/* What backward did not reach counts as a gradient of zero: it decays, and its old gradient is forgotten. */
static void parameters_without_gradient_only_decay(void **state) {
  (void)state;
  setting s;
  esp_optimizer_config c = make_config(ESP_OPTIMIZER_SGD);
  set_up(&s, &c);
  set_gradients(&s, 1);
  for (int i = 0; i < PARAMETERS; i++) s.parameter[i]->tensor.grad_written = i == 2;
  double norm = 0;
  for (int j = 0; j < COUNT; j++) norm += pow((double)s.parameter[2]->tensor.grad[j], 2);
  assert_true(fabs(esp_gradient_norm(s.parameters) - sqrt(norm)) < 1e-6 * sqrt(norm));
  esp_optimizer_step(s.optimizer, 1, sqrt(norm));
  assert_false(s.parameter[2]->tensor.grad_written); /* used up */
  for (int j = 0; j < COUNT; j++) {
    assert_true(fabs((double)s.parameter[0]->tensor.data[j] - s.w[0][j] * (1 - 0.1 * 0.2)) < 1e-6);
    assert_true((double)s.parameter[1]->tensor.data[j] == s.w[1][j]);
    assert_true((double)s.parameter[2]->tensor.data[j] != s.w[2][j]);
  }
  tear_down(&s);
}

/* Two optimisers, of which the second takes over the first one's state, go on alike: what resuming needs. */
static void state_and_steps_are_all_there_is(void **state) {
  (void)state;
  for (int kind = 0; kind < 2; kind++) {
    setting a, b;
    const esp_optimizer_config c = make_config(kind ? ESP_OPTIMIZER_ADAMW : ESP_OPTIMIZER_SGD);
    static const char *const names[2][2] = {{"momentum", NULL}, {"first_moment", "second_moment"}};
    set_up(&a, &c);
    set_up(&b, &c);
    set_gradients(&a, 1);
    esp_optimizer_step(a.optimizer, 1, 0);
    const int64_t size = esp_parameters_size(a.parameters);
    memcpy(esp_parameters_values(b.parameters), esp_parameters_values(a.parameters), (size_t)size * sizeof(esp_real));
    const char *name;
    int states = 0;
    for (esp_real *from; (from = esp_optimizer_state(a.optimizer, states, &name)) != NULL; states++) {
      assert_string_equal(name, names[kind][states]);
      memcpy(esp_optimizer_state(b.optimizer, states, &name), from, (size_t)size * sizeof *from);
    }
    assert_int_equal(states, kind + 1);
    assert_null(esp_optimizer_state(a.optimizer, -1, &name));
    esp_optimizer_set_steps(b.optimizer, esp_optimizer_steps(a.optimizer));
    set_gradients(&a, 2);
    set_gradients(&b, 2);
    esp_optimizer_step(a.optimizer, 1, 0);
    esp_optimizer_step(b.optimizer, 1, 0);
    assert_same_bits("values", esp_parameters_values(a.parameters), esp_parameters_values(b.parameters), size);
    tear_down(&a);
    tear_down(&b);
  }
}

/* --- schedules ------------------------------------------------------------------------------------------------- */

static void assert_share(esp_schedule_kind kind, double warmup, double final_share, int64_t step, double expected) {
  const esp_schedule_config c = {kind, warmup, final_share};
  const double share = esp_schedule_multiplier(&c, step, 100);
  if (fabs(share - expected) > 1e-12)
    fail_msg("kind %d, warm-up %g, final share %g, step %d: %.15g instead of %.15g", (int)kind, warmup, final_share,
             (int)step, share, expected);
}

static void schedules_have_their_corners(void **state) {
  (void)state;
  const esp_schedule_kind kinds[] = {ESP_SCHEDULE_CONSTANT, ESP_SCHEDULE_LINEAR, ESP_SCHEDULE_COSINE};
  for (int i = 0; i < 3; i++) {
    const double end = kinds[i] == ESP_SCHEDULE_CONSTANT ? 1 : 0.1,
                 middle = kinds[i] == ESP_SCHEDULE_CONSTANT ? 1 : 0.55;
    assert_share(kinds[i], 0, 0.1, 0, 1); /* no warm-up */
    assert_share(kinds[i], 0, 0.1, 50, middle);
    assert_share(kinds[i], 0, 0.1, 100, end);
    assert_share(kinds[i], 0, 0.1, 1000, end); /* past the end */
    assert_share(kinds[i], 0.2, 0.1, 0, 0.05); /* never 0: the first step would be wasted */
    assert_share(kinds[i], 0.2, 0.1, 18, 0.95);
    assert_share(kinds[i], 0.2, 0.1, 19, 1); /* the warm-up's last step */
    assert_share(kinds[i], 0.2, 0.1, 20, 1);
    assert_share(kinds[i], 0.2, 0.1, 60, middle);
    assert_share(kinds[i], 0.2, 0.1, 100, end);
    assert_share(kinds[i], 1, 0.1, 98, 0.99); /* nothing but warm-up */
    assert_share(kinds[i], 1, 0.1, 99, 1);
    assert_share(kinds[i], 0.001, 0.1, 0, 1); /* less than a step of warm-up */
  }
  assert_share(ESP_SCHEDULE_LINEAR, 0, 0, 25, 0.75);
  assert_share(ESP_SCHEDULE_COSINE, 0, 0, 25, 0.5 + 0.25 * sqrt(2));
  assert_share(ESP_SCHEDULE_COSINE, 0, 1, 70, 1);
}

static void schedules_never_rise_after_the_warmup(void **state) {
  (void)state;
  for (int kind = ESP_SCHEDULE_CONSTANT; kind <= ESP_SCHEDULE_COSINE; kind++) {
    const esp_schedule_config c = {(esp_schedule_kind)kind, 0.13, 0.02};
    for (int64_t step = 1; step < 77; step++) {
      const double before = esp_schedule_multiplier(&c, step - 1, 77), now = esp_schedule_multiplier(&c, step, 77);
      assert_true(now > 0 && now <= 1);
      assert_true(step < 10 ? now > before : step < 11 || now <= before);
    }
  }
}

/* --- bad settings ---------------------------------------------------------------------------------------------- */

static void assert_refused(const esp_optimizer_config *c, const char *key) {
  esp_parameters *parameters = esp_parameters_create();
  esp_optimizer *optimizer;
  assert_int_equal(esp_optimizer_create(&optimizer, c, parameters), ESP_ERR_CONFIG);
  assert_null(optimizer);
  if (!strstr(esp_error_message(), key)) fail_msg("the message does not name %s: %s", key, esp_error_message());
  esp_parameters_free(parameters);
}

#define REFUSES(field, bad)                          \
  do {                                               \
    esp_optimizer_config c = esp_optimizer_defaults; \
    c.field = bad;                                   \
    assert_refused(&c, #field);                      \
  } while (0)

static void bad_settings_are_refused(void **state) {
  (void)state;
  assert_int_equal(esp_optimizer_config_check(&esp_optimizer_defaults), ESP_OK);
  REFUSES(learning_rate, -1e-3);
  REFUSES(learning_rate, (double)NAN);
  REFUSES(learning_rate, (double)INFINITY);
  REFUSES(router_rate, -1);
  REFUSES(weight_decay, -0.1);
  REFUSES(router_decay, -1);
  REFUSES(momentum, 1);
  REFUSES(momentum, -0.1);
  REFUSES(beta1, 1);
  REFUSES(beta2, 1.5);
  REFUSES(beta2, (double)NAN);
  REFUSES(epsilon, -1e-8);
  REFUSES(clip_norm, -1);
  REFUSES(schedule.warmup, 1.1);
  REFUSES(schedule.warmup, -0.1);
  REFUSES(schedule.final_share, 2);
}

static void short_memory_is_reported(void **state) {
  (void)state;
  setting s;
  const esp_optimizer_config c = make_config(ESP_OPTIMIZER_ADAMW);
  set_up(&s, &c);
  for (int calls = 0; calls < 3; calls++) {
    esp_optimizer *optimizer;
    esp_alloc_fail_after(calls);
    const esp_status status = esp_optimizer_create(&optimizer, &c, s.parameters);
    esp_alloc_fail_after(-1);
    assert_int_equal(status, ESP_ERR_MEMORY);
    assert_null(optimizer);
  }
  tear_down(&s);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(steps_follow_the_formulas),
      cmocka_unit_test(muon_makes_steps_orthogonal_and_leaves_the_rest_to_adam),
      cmocka_unit_test(muon_has_the_same_bits_for_any_number_of_threads),
      cmocka_unit_test(the_first_step_of_adam_has_the_size_of_the_rate),
      cmocka_unit_test(clipped_gradients_have_the_clipping_norm),
      cmocka_unit_test(frozen_parameters_do_not_count_and_do_not_move),
      cmocka_unit_test(parameters_without_gradient_only_decay),
      cmocka_unit_test(state_and_steps_are_all_there_is),
      cmocka_unit_test(schedules_have_their_corners),
      cmocka_unit_test(schedules_never_rise_after_the_warmup),
      cmocka_unit_test(bad_settings_are_refused),
      cmocka_unit_test(short_memory_is_reported),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
