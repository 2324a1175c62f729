/* label: short */
/* Not-a-number is not lost where values are compared, and infinite logits give the losses that their limits have. */
#include "op_fixture.h"

#include <espalier/layers.h>

enum { SIDE = 4, EXPERTS = 4, TOKENS = 6 };

static void a_pool_keeps_it_wherever_it_is_in_the_window(void **state) {
  (void)state;
  for (int pixel = 0; pixel < SIDE * SIDE; pixel++) {
    esp_tensor *x = normal(SHAPE(1, SIDE, SIDE, 1));
    x->data[pixel] = NAN;
    const esp_tensor *y = esp_max_pool(tape, x, 2);
    const int window = pixel / SIDE / 2 * 2 + pixel % SIDE / 2;
    for (int i = 0; i < 4; i++) assert_int_equal(isnan(y->data[i]) != 0, i == window);
  }
}

static void the_largest_of_a_row_with_it_are_not_numbers(void **state) {
  (void)state;
  for (int column = 0; column < 5; column++) {
    esp_tensor *x = normal(SHAPE(2, 5));
    x->data[5 + column] = NAN;
    const esp_tensor *y = esp_top_k(tape, x, 2, NULL);
    for (int i = 0; i < 4; i++) assert_int_equal(isnan(y->data[i]) != 0, i >= 2);
  }
}

/* Under every policy, score and form of gates, a logit that is not a number is no longer a number in some gate. */
static void routers_keep_it(void **state) {
  (void)state;
  for (int form = 0; form < 16; form++)
    for (int expert = 0; expert < EXPERTS; expert++) {
      const bool chooses = form & 8;
      const esp_router_config config = {.policy = chooses ? ESP_ROUTER_EXPERT_CHOICE : ESP_ROUTER_TOKEN_CHOICE,
                                        .score = form & 1 ? ESP_SCORE_SIGMOID : ESP_SCORE_SOFTMAX,
                                        .score_selected_only = form & 2,
                                        .renormalise = !chooses && form & 4};
      esp_expert_layout layout;
      esp_expert_layout_full(&layout, EXPERTS);
      const esp_route_request request = esp_plain_request(&config, &layout, 2, TOKENS);
      esp_tensor *logits = normal(SHAPE(TOKENS, EXPERTS));
      esp_routed routed = {0};
      logits->data[2 * EXPERTS + expert] = NAN;
      const esp_tensor *gates =
          chooses ? esp_route_experts(tape, logits, &request, &routed) : esp_route(tape, logits, &request, &routed);
      int spoiled = 0, served = 0;
      for (int64_t i = 0; i < esp_tensor_count(gates); i++) {
        spoiled += isnan(gates->data[i]) != 0;
        served += isnan(gates->data[i]) && routed.routing->row[i] >= 0;
      }
      if (!served) fail_msg("form %d, expert %d: %d gates are not numbers, none of a row", form, expert, spoiled);
      if (!chooses) assert_int_equal(spoiled, 2); /* of the token alone */
    }
}

/* Rows of logits with chances of 0, and the limits of their losses and gradients. */
static void cross_entropy_of_logits_of_minus_infinity(void **state) {
  (void)state;
  const esp_real rows[] = {1, -INFINITY, 0, -INFINITY, -INFINITY, 2, 0.5f, 0.25f, -INFINITY};
  const int32_t labels[] = {0, 2, 1}, mixed[] = {1, 0, 2};
  const float mix[] = {1, 1, 1};
  esp_tensor *x = holding(rows, SHAPE(3, 3));
  x->requires_grad = true;
  for (int with_mix = 0; with_mix < 2; with_mix++) {
    esp_tape_reset(tape, true);
    x = holding(rows, SHAPE(3, 3));
    x->requires_grad = true;
    const esp_targets targets = {labels, with_mix ? mixed : NULL, with_mix ? mix : NULL, 0};
    esp_tensor *loss = esp_cross_entropy(tape, x, &targets);
    const double p = 1 / (1 + exp(-1)), q = 1 / (1 + exp(-0.25));
    assert_close("loss", loss->data, (const double[]){(-log(p) - log(1 - q)) / 3}, 1, 1e-6, 0);
    assert_int_equal(esp_tape_backward(tape, loss), ESP_OK);
    const double gradient[] = {(p - 1) / 3, 0, (1 - p) / 3, 0, 0, 0, q / 3, -q / 3, 0};
    assert_close("gradient", x->grad, gradient, 9, 1e-5, 1e-7);
  }
  const esp_targets impossible = {.labels = mixed}; /* a label without a chance */
  const esp_tensor *loss = esp_cross_entropy(tape, holding(rows, SHAPE(3, 3)), &impossible);
  assert_true(isinf(loss->data[0]) && loss->data[0] > 0);
  x = holding(rows, SHAPE(3, 3));
  x->data[4] = NAN;
  assert_true(isnan(esp_cross_entropy(tape, x, &(esp_targets){.labels = labels})->data[0]));
}

static void distillation_from_a_teacher_that_is_sure(void **state) {
  (void)state;
  esp_tape_reset(tape, true);
  const esp_real sure[] = {0, -INFINITY, -INFINITY}, student[] = {0.5f, 1, -INFINITY};
  esp_tensor *x = holding(student, SHAPE(1, 3)), *teacher = holding(sure, SHAPE(1, 3));
  x->requires_grad = true;
  esp_tensor *loss = esp_distillation_loss(tape, x, teacher, 1);
  const double q = 1 / (1 + exp(0.5));
  assert_close("loss", loss->data, (const double[]){-log(q)}, 1, 1e-6, 0);
  assert_int_equal(esp_tape_backward(tape, loss), ESP_OK);
  assert_close("gradient", x->grad, (const double[]){q - 1, 1 - q, 0}, 3, 1e-5, 1e-7);
}

static void members_that_all_give_no_chance(void **state) {
  (void)state;
  esp_tape_reset(tape, true);
  const esp_real logits[] = {0, -INFINITY, 1, 2, -INFINITY, -INFINITY};
  esp_tensor *x = holding(logits, SHAPE(2, 3));
  x->requires_grad = true;
  esp_tensor *y = esp_log_mean_probability(tape, x, 2);
  const double p = 1 / (1 + exp(1));
  const double expected[] = {log((p + 1) / 2), -INFINITY, log((1 - p) / 2)};
  assert_close("log mean", y->data, expected, 3, 1e-6, 0);
  esp_tensor *loss = esp_cross_entropy(tape, y, &(esp_targets){.labels = (const int32_t[]){0}});
  assert_int_equal(esp_tape_backward(tape, loss), ESP_OK);
  for (int i = 0; i < 6; i++) assert_true(isfinite(x->grad[i]));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      TEST(a_pool_keeps_it_wherever_it_is_in_the_window),
      TEST(the_largest_of_a_row_with_it_are_not_numbers),
      TEST(routers_keep_it),
      TEST(cross_entropy_of_logits_of_minus_infinity),
      TEST(distillation_from_a_teacher_that_is_sure),
      TEST(members_that_all_give_no_chance),
  };
  return cmocka_run_group_tests_name("not a number", tests, NULL, NULL);
}
