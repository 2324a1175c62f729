/* label: short */
/* The exact assignment, the alignment of neurons by weights and by activations, and ZipIt-like clusters. */
#include "test_measure_models.h"

#include <espalier/prune.h>

static void expect_ok(esp_status status) {
  if (status != ESP_OK) fail_msg("status %d: %s", status, esp_error_message());
}

/* --- assignment ------------------------------------------------------------------------------------------------ */

static double total(int n, const double *gain, const int32_t *column) {
  double sum = 0;
  for (int r = 0; r < n; r++) sum += gain[r * n + column[r]];
  return sum;
}

static void assert_permutation(int n, const int32_t *column) {
  bool used[1024] = {false};
  for (int r = 0; r < n; r++) {
    assert_in_range(column[r], 0, n - 1);
    assert_false(used[column[r]]);
    used[column[r]] = true;
  }
}

/* The best of all permutations of the rows from `row` on. */
static double best_of_all(int n, const double *gain, int row, unsigned used) {
  if (row == n) return 0;
  double best = -HUGE_VAL;
  for (int j = 0; j < n; j++)
    if (!(used & 1U << j)) best = fmax(best, gain[row * n + j] + best_of_all(n, gain, row + 1, used | 1U << j));
  return best;
}

static void fill_doubles(double *values, int count, bool whole, uint64_t stream) {
  esp_random random = esp_random_stream(TESTING_SEED, ESP_PURPOSE_TEST, stream);
  for (int i = 0; i < count; i++)
    values[i] = whole ? (double)esp_random_below(&random, 5) - 2 : esp_random_normal(&random);
}

static void assignment_equals_brute_force(void **state) {
  (void)state;
  double gain[49];
  int32_t column[7];
  for (int n = 1; n <= 7; n++)
    for (int trial = 0; trial < 40; trial++) { /* half of them with many ties */
      fill_doubles(gain, n * n, trial % 2, (uint64_t)(100 * n + trial));
      expect_ok(esp_assign(n, gain, column));
      assert_permutation(n, column);
      const double best = best_of_all(n, gain, 0, 0), found = total(n, gain, column);
      if (fabs(found - best) > 1e-12 * n) fail_msg("n = %d: found %.15g, the best is %.15g", n, found, best);
    }
}

/* At the optimum no two rows gain by changing columns. */
static void assignment_of_768_is_done_in_seconds(void **state) {
  (void)state;
  enum { N = 768 };
  double *gain = esp_alloc(N * N, sizeof *gain);
  int32_t column[N];
  fill_doubles(gain, N * N, false, 7);
  expect_ok(esp_assign(N, gain, column));
  assert_permutation(N, column);
  for (int a = 0; a < N; a++)
    for (int b = a + 1; b < N; b++)
      assert_true(gain[a * N + column[a]] + gain[b * N + column[b]] >=
                  gain[a * N + column[b]] + gain[b * N + column[a]] - 1e-9);
  gain[5] = NAN;
  assert_int_equal(esp_assign(N, gain, column), ESP_ERR_NOT_FINITE);
  esp_free(gain);
}

/* --- experts ------------------------------------------------------------------------------------------------------ */

/* Weights and biases random. */
static esp_model *speaking(esp_activation_kind activation) {
  esp_model_config config = small_config();
  config.feed_forward.activation = activation;
  config.feed_forward.bias = true;
  config.layers[2] = ESP_LAYER_MOE;
  esp_model *model = make(&config, NULL, 1);
  fill_parameters(model->parameters, 0.4);
  fill_normal(pixels, IMAGES * PIXELS, 9);
  return model;
}

/* The rows of an expert of size f x columns; gate and up are halves of the same tensor. */
static void copy_shuffled(const esp_tensor *tensor, int f, const int32_t *order, int from, int to) {
  const int64_t size = esp_tensor_count(tensor) / tensor->shape[0], halves = tensor->shape[1] / f;
  const int64_t columns = size / (halves * f);
  const esp_real *source = tensor->data + from * size;
  esp_real *target = tensor->data + to * size;
  for (int64_t h = 0; h < halves; h++)
    for (int n = 0; n < f; n++)
      memcpy(target + (h * f + n) * columns, source + (h * f + order[n]) * columns, (size_t)columns * sizeof *target);
}

/* Expert `to` becomes expert `from` with neuron n holding what neuron order[n] held. */
static void plant(const esp_moe *moe, const int32_t *order, int from, int to) {
  copy_shuffled(moe->bank.up, moe->bank.hidden, order, from, to);
  copy_shuffled(moe->bank.up_bias, moe->bank.hidden, order, from, to);
  copy_shuffled(moe->bank.down, moe->bank.hidden, order, from, to);
  const int64_t width = moe->bank.width;
  memcpy(moe->bank.down_bias->data + to * width, moe->bank.down_bias->data + from * width,
         (size_t)width * sizeof(esp_real));
}

static void shuffled(int32_t *order, int count, uint64_t stream) {
  esp_random random = esp_random_stream(TESTING_SEED, ESP_PURPOSE_TEST, stream);
  uint32_t items[1024];
  for (int i = 0; i < count; i++) items[i] = (uint32_t)i;
  esp_random_shuffle(&random, items, (uint32_t)count);
  for (int i = 0; i < count; i++) order[i] = (int32_t)items[i];
}

static const esp_activation_kind activations[] = {ESP_ACTIVATION_RELU, ESP_ACTIVATION_GELU, ESP_ACTIVATION_SWIGLU};
enum { F = 20 };

static void a_shuffled_copy_is_recovered_exactly(void **state) {
  (void)state;
  double gain[F * F];
  int32_t order[F], place[F];
  for (int a = 0; a < 3; a++)
    for (int include = 0; include < 2; include++) {
      esp_model *model = speaking(activations[a]);
      const esp_moe *moe = esp_model_moe(model, 0);
      shuffled(order, F, 11);
      plant(moe, order, 0, 3);
      esp_weight_gains(&moe->bank, 0, 3, include, gain);
      expect_ok(esp_align(F, gain, place));
      assert_memory_equal(place, order, sizeof order);
      esp_model_free(model);
    }
}

/* A plan in which every expert is a group of its own, its neurons in another order. */
static esp_plan *aligned(const esp_model *model) {
  esp_plan *plan;
  double gain[F * F];
  expect_ok(esp_plan_create(&plan, model, "alignment", ESP_PRUNE_ZERO));
  for (int i = 0; i < plan->layer_count; i++) {
    esp_layer_plan *layer = &plan->layers[i];
    layer->averaged = true;
    expect_ok(esp_plan_take_places(layer, F));
    for (int e = 0; e < layer->experts; e++) {
      layer->weight[e] = 1;
      esp_weight_gains(&esp_model_moe(model, i)->bank, 0, e, true, gain);
      expect_ok(esp_align(F, gain, layer->place + e * F));
    }
  }
  return plan;
}

static double distance(const esp_tensor *tensor, int a, int b) {
  const int64_t size = esp_tensor_count(tensor) / tensor->shape[0];
  double sum = 0;
  for (int64_t i = 0; i < size; i++) {
    const double d = (double)tensor->data[a * size + i] - (double)tensor->data[b * size + i];
    sum += d * d;
  }
  return sum;
}

static const esp_tensor *logits_of(const esp_model *model, esp_tape *tape) {
  static esp_tensor images;
  images = (esp_tensor){.data = pixels, .rank = 4, .shape = {IMAGES, 8, 8, 3}};
  esp_tape_reset(tape, false);
  const esp_tensor *logits = esp_model_forward(model, tape, &images, &(esp_pass){.training = false}).logits;
  assert_non_null(logits);
  return logits;
}

static void assert_same_function(const esp_model *a, const esp_model *b, double tolerance) {
  esp_tape *one = esp_tape_create(), *two = esp_tape_create();
  const esp_tensor *x = logits_of(a, one), *y = logits_of(b, two);
  for (int64_t i = 0; i < esp_tensor_count(x); i++)
    if (fabs((double)(x->data[i] - y->data[i])) > tolerance)
      fail_msg("logit %d: %g and %g", (int)i, (double)x->data[i], (double)y->data[i]);
  esp_tape_free(one);
  esp_tape_free(two);
}

static void permuting_keeps_the_function_and_never_leads_away(void **state) {
  (void)state;
  for (int a = 0; a < 3; a++) {
    esp_model *model = speaking(activations[a]), *permuted;
    esp_plan *plan = aligned(model);
    expect_ok(esp_apply_plan(&permuted, model, plan));
    assert_same_function(model, permuted, 1e-5);
    bool moved = false;
    for (int i = 0; i < 2; i++)
      for (int e = 1; e < 4; e++) {
        const esp_expert_bank *old = &esp_model_moe(model, i)->bank, *new = &esp_model_moe(permuted, i)->bank;
        const double before = distance(old->up, 0, e) + distance(old->down, 0, e);
        const double after = distance(new->up, 0, e) + distance(new->down, 0, e);
        assert_true(after <= before * (1 + 1e-6));
        moved |= after < 0.99 * before;
        assert_true(distance(new->up, 0, 0) == 0);
      }
    assert_true(moved);
    esp_plan_free(plan);
    esp_model_free(permuted);
    esp_model_free(model);
  }
}

/* --- correlation -------------------------------------------------------------------------------------------------- */

static void correlations_are_pearsons(void **state) {
  (void)state;
  const esp_real a[] = {1, 5, 2, 5, 3, 5, 4, 5}, b[] = {2, -1, 4, -2, 6, -3, 8, -4}; /* [4, 2] each */
  esp_correlation c;
  double gain[4];
  expect_ok(esp_correlation_create(&c, 2, 2));
  esp_correlation_add(&c, a, b, 1);
  esp_correlation_gains(&c, gain);
  assert_true(gain[0] == 1 && gain[1] == 0 && gain[2] == 0 && gain[3] == 1); /* one token: the identity */
  esp_correlation_add(&c, a + 2, b + 2, 3);
  esp_correlation_gains(&c, gain);
  assert_near(gain[0], 1);
  assert_near(gain[1], -1);
  assert_true(gain[2] == 0 && gain[3] == 0); /* a neuron that never varies */
  esp_correlation_free(&c);
}

static void zip_puts_together_what_is_alike(void **state) {
  (void)state;
  /* Two pairs: 0 with 3, 1 with 2 and, less so, 4. */
  double likeness[25] = {0};
  const struct {
    int a, b;
    double value;
  } pairs[] = {{0, 3, 0.9}, {1, 2, 0.8}, {1, 4, 0.5}, {2, 4, 0.3}, {0, 4, 0.35}, {3, 4, 0.1}};
  for (size_t i = 0; i < sizeof pairs / sizeof pairs[0]; i++)
    likeness[pairs[i].a * 5 + pairs[i].b] = likeness[pairs[i].b * 5 + pairs[i].a] = pairs[i].value;
  double copy[25];
  int32_t place[5];
  memcpy(copy, likeness, sizeof copy);
  expect_ok(esp_zip(5, 3, copy, place));
  assert_memory_equal(place, ((const int32_t[]){0, 1, 1, 0, 2}), sizeof place);
  memcpy(copy, likeness, sizeof copy);
  expect_ok(esp_zip(5, 2, copy, place));
  assert_memory_equal(place, ((const int32_t[]){0, 1, 1, 0, 1}), sizeof place);
  likeness[1] = NAN;
  assert_int_equal(esp_zip(5, 2, likeness, place), ESP_ERR_NOT_FINITE);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(assignment_equals_brute_force),
      cmocka_unit_test(assignment_of_768_is_done_in_seconds),
      cmocka_unit_test(a_shuffled_copy_is_recovered_exactly),
      cmocka_unit_test(permuting_keeps_the_function_and_never_leads_away),
      cmocka_unit_test(correlations_are_pearsons),
      cmocka_unit_test(zip_puts_together_what_is_alike),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
