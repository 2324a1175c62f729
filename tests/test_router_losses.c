/* label: short */
/* Auxiliary losses of routers against hand calculations and naive references in double precision. */
#include "testing.h"

#include <espalier/layers.h>
#include <espalier/ops.h>

enum { EXPERTS = 6, TOKENS = 40, WIDTH = 8 };

typedef struct fixture {
  esp_tape *tape;
  esp_expert_layout layout;
  esp_router_config config;
  esp_route_request request;
  esp_tensor *logits;
  esp_routed routed;
} fixture;

static void set_up(fixture *f, int k) {
  *f = (fixture){.tape = esp_tape_create(), .config = {.noise = 1, .load_weight = 1, .group_images = 3}};
  assert_non_null(f->tape);
  esp_expert_layout_full(&f->layout, EXPERTS);
  f->request = esp_plain_request(&f->config, &f->layout, k, TOKENS);
  f->request.images = 10; /* groups of 12, 12, 12 and 4 tokens */
  f->request.training = true;
  f->request.seed = 5;
  f->logits = esp_tape_tensor(f->tape, 2, (const int64_t[]){TOKENS, EXPERTS});
  assert_non_null(f->logits);
  f->logits->requires_grad = true;
  fill_normal(f->logits->data, TOKENS * EXPERTS, 9);
}

static void tear_down(fixture *f) { esp_tape_free(f->tape); }

static double value(const esp_tensor *loss) {
  assert_non_null(loss);
  return (double)loss->data[0];
}

static double logit(const fixture *f, int64_t t, int e) { return (double)f->logits->data[t * EXPERTS + e]; }

static double probability(const fixture *f, int64_t t, int e) {
  double sum = 0;
  for (int j = 0; j < EXPERTS; j++) sum += exp(logit(f, t, j));
  return exp(logit(f, t, e)) / sum;
}

static double squared_variation(const double *v) {
  double mean = 0, variance = 0;
  for (int e = 0; e < EXPERTS; e++) mean += v[e] / EXPERTS;
  for (int e = 0; e < EXPERTS; e++) variance += (v[e] - mean) * (v[e] - mean) / EXPERTS;
  return variance / (mean * mean);
}

/* --- row 7 ------------------------------------------------------------------------------------------------ */

static void importance_loss_is_its_formula(void **state) {
  (void)state;
  fixture f;
  set_up(&f, 2);
  double expected = 0;
  for (int64_t begin = 0; begin < TOKENS; begin += 12) {
    double importance[EXPERTS] = {0};
    for (int64_t t = begin; t < TOKENS && t < begin + 12; t++)
      for (int e = 0; e < EXPERTS; e++) importance[e] += probability(&f, t, e);
    expected += squared_variation(importance) / 4;
  }
  assert_true(fabs(value(esp_importance_loss(f.tape, f.logits, &f.request)) - expected) < 1e-6 * expected);
  tear_down(&f);
}

static void load_loss_is_its_formula(void **state) {
  (void)state;
  fixture f;
  set_up(&f, 2);
  assert_non_null(esp_route(f.tape, f.logits, &f.request, &f.routed));
  double expected = 0;
  for (int64_t begin = 0; begin < TOKENS; begin += 12) {
    double load[EXPERTS] = {0};
    for (int64_t t = begin; t < TOKENS && t < begin + 12; t++) {
      const double threshold =
          (double)f.routed.noisy->data[t * EXPERTS + f.routed.routing->choice[2 * t + 1]]; /* the second of two */
      for (int e = 0; e < EXPERTS; e++) load[e] += 0.5 * erfc((threshold - logit(&f, t, e)) * EXPERTS / sqrt(2));
    }
    expected += squared_variation(load) / 4;
  }
  const double loss = value(esp_load_loss(f.tape, f.logits, f.routed.noisy, &f.request));
  assert_true(fabs(loss - expected) < 1e-5 * expected);
  tear_down(&f);
}

/* Equal logits: nothing to gain, and the gradient is 0, where the standard deviation's would be undefined. */
static void uniform_gates_cost_nothing(void **state) {
  (void)state;
  fixture f;
  set_up(&f, 1);
  for (int i = 0; i < TOKENS * EXPERTS; i++) f.logits->data[i] = 0.5f;
  esp_tensor *loss = esp_importance_loss(f.tape, f.logits, &f.request);
  assert_true(fabs(value(loss)) < 1e-12);
  assert_int_equal(esp_tape_backward(f.tape, loss), ESP_OK);
  for (int i = 0; i < TOKENS * EXPERTS; i++) assert_true(fabs((double)f.logits->grad[i]) < 1e-12);
  tear_down(&f);
}

/* A router trained by plain gradient descent on the load loss alone. */
static void load_loss_falls_when_trained_on_alone(void **state) {
  (void)state;
  fixture f;
  set_up(&f, 1);
  double first = 0, last = 0;
  esp_real *z = malloc(sizeof *z * TOKENS * EXPERTS);
  assert_non_null(z);
  for (int i = 0; i < TOKENS * EXPERTS; i++) z[i] = f.logits->data[i] + (esp_real)(i % EXPERTS == 2);
  for (int step = 0; step < 60; step++) {
    esp_tape_reset(f.tape, true);
    f.logits = esp_tape_tensor(f.tape, 2, (const int64_t[]){TOKENS, EXPERTS});
    f.logits->requires_grad = true;
    memcpy(f.logits->data, z, sizeof *z * TOKENS * EXPERTS);
    assert_non_null(esp_route(f.tape, f.logits, &f.request, &f.routed));
    esp_tensor *loss = esp_load_loss(f.tape, f.logits, f.routed.noisy, &f.request);
    assert_int_equal(esp_tape_backward(f.tape, loss), ESP_OK);
    if (step == 0) first = value(loss);
    last = value(loss);
    for (int i = 0; i < TOKENS * EXPERTS; i++) z[i] -= f.logits->grad[i];
  }
  assert_true(last < 0.5 * first);
  free(z);
  tear_down(&f);
}

/* --- row 8 ------------------------------------------------------------------------------------------------ */

/* Token t prefers experts t, t + 1, ...: every expert is chosen as often, in every place. */
static void balance_loss_is_one_at_perfect_balance(void **state) {
  (void)state;
  for (int k = 1; k <= 2; k++)
    for (int kind = ESP_BALANCE_ALL_CHOICES; kind <= ESP_BALANCE_FIRST_CHOICE; kind++) {
      fixture f;
      set_up(&f, k);
      f.config.balance = (esp_balance_kind)kind;
      f.request.training = false;
      f.request.tokens = f.logits->shape[0] = 6 * EXPERTS;
      f.request.images = 6;
      for (int t = 0; t < 6 * EXPERTS; t++)
        for (int e = 0; e < EXPERTS; e++) f.logits->data[t * EXPERTS + (t + e) % EXPERTS] = (esp_real)(-e);
      assert_non_null(esp_route(f.tape, f.logits, &f.request, &f.routed));
      const double loss = value(esp_balance_loss(f.tape, f.routed.scores, f.routed.routing, &f.request));
      assert_true(fabs(loss - 1) < 1e-6);
      tear_down(&f);
    }
}

/* Two tokens, k = 2. Switch counts slots: expert 0 twice, experts 1 and 2 once; GShard first choices: 0 twice. */
static void switch_and_gshard_count_differently(void **state) {
  (void)state;
  fixture f;
  set_up(&f, 2);
  f.request.training = false;
  f.request.tokens = f.logits->shape[0] = 2;
  f.request.images = 1;
  for (int t = 0; t < 2; t++)
    for (int e = 0; e < EXPERTS; e++) f.logits->data[t * EXPERTS + e] = (esp_real)(e == 0 ? 2 : e == t + 1);
  assert_non_null(esp_route(f.tape, f.logits, &f.request, &f.routed));
  double mean[EXPERTS];
  for (int e = 0; e < EXPERTS; e++) mean[e] = 0.5 * (probability(&f, 0, e) + probability(&f, 1, e));
  const double all = EXPERTS * (0.5 * mean[0] + 0.25 * mean[1] + 0.25 * mean[2]);
  assert_true(fabs(value(esp_balance_loss(f.tape, f.routed.scores, f.routed.routing, &f.request)) - all) < 1e-6);
  f.config.balance = ESP_BALANCE_FIRST_CHOICE;
  const double first = value(esp_balance_loss(f.tape, f.routed.scores, f.routed.routing, &f.request));
  assert_true(fabs(first - EXPERTS * mean[0]) < 1e-6);
  tear_down(&f);
}

/* --- others ----------------------------------------------------------------------------------------------- */

static void entropy_of_undecided_routers_is_log_of_the_experts(void **state) {
  (void)state;
  fixture f;
  set_up(&f, 1);
  f.layout.index[1] = ESP_EXPERT_MASKED;
  for (int i = 0; i < TOKENS * EXPERTS; i++) f.logits->data[i] = 3;
  assert_true(fabs(value(esp_entropy_loss(f.tape, f.logits, &f.request)) - log(EXPERTS - 1)) < 1e-6);
  tear_down(&f);
}

/* Each member of an E3 counts as a layer of its own. */
static void losses_of_members_are_the_mean_of_their_own(void **state) {
  (void)state;
  fixture f;
  set_up(&f, 1);
  enum { OWN = EXPERTS / 2, HALF = TOKENS / 2 };
  f.request.members = 2;
  f.config.noise = 0.5; /* of a member's 3 experts: the same deviation as 1 of 6 */
  esp_expert_layout own;
  esp_expert_layout_full(&own, OWN);
  double expected[4] = {0}, found[4];
  for (int m = 0; m < 2; m++) {
    esp_route_request alone = f.request;
    alone.members = 1;
    alone.layout = &own;
    alone.tokens = HALF;
    alone.images = 5;
    esp_tensor *part = esp_tape_tensor(f.tape, 2, (const int64_t[]){HALF, OWN}),
               *noisy = esp_tape_tensor(f.tape, 2, part->shape);
    for (int64_t i = 0; i < HALF * OWN; i++) {
      part->data[i] = f.logits->data[(m * HALF + i / OWN) * EXPERTS + m * OWN + i % OWN];
      noisy->data[i] = part->data[i] + (esp_real)(i % 5) / 10;
    }
    esp_routed routed = {0};
    assert_non_null(esp_route(f.tape, part, &alone, &routed));
    alone.training = false;
    assert_non_null(esp_route(f.tape, part, &alone, &routed));
    expected[0] += 0.5 * value(esp_balance_loss(f.tape, routed.scores, routed.routing, &alone));
    expected[1] += 0.5 * value(esp_importance_loss(f.tape, part, &alone));
    expected[2] += 0.5 * value(esp_load_loss(f.tape, part, noisy, &alone));
    expected[3] += 0.5 * value(esp_z_loss(f.tape, part, &alone));
  }
  esp_tensor *noisy = esp_tape_tensor(f.tape, 2, f.logits->shape);
  for (int64_t t = 0; t < TOKENS; t++)
    for (int e = 0; e < EXPERTS; e++) {
      const int64_t i = t % HALF * OWN + e % OWN;
      noisy->data[t * EXPERTS + e] =
          e / OWN == t / HALF ? f.logits->data[t * EXPERTS + e] + (esp_real)(i % 5) / 10 : (esp_real)-INFINITY;
    }
  f.request.training = false;
  assert_non_null(esp_route(f.tape, f.logits, &f.request, &f.routed));
  found[0] = value(esp_balance_loss(f.tape, f.routed.scores, f.routed.routing, &f.request));
  found[1] = value(esp_importance_loss(f.tape, f.logits, &f.request));
  found[2] = value(esp_load_loss(f.tape, f.logits, noisy, &f.request));
  found[3] = value(esp_z_loss(f.tape, f.logits, &f.request));
  for (int i = 0; i < 4; i++) assert_true(fabs(found[i] - expected[i]) < 1e-5 * expected[i]);
  tear_down(&f);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(importance_loss_is_its_formula),
      cmocka_unit_test(load_loss_is_its_formula),
      cmocka_unit_test(uniform_gates_cost_nothing),
      cmocka_unit_test(load_loss_falls_when_trained_on_alone),
      cmocka_unit_test(balance_loss_is_one_at_perfect_balance),
      cmocka_unit_test(switch_and_gshard_count_differently),
      cmocka_unit_test(entropy_of_undecided_routers_is_log_of_the_experts),
      cmocka_unit_test(losses_of_members_are_the_mean_of_their_own),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
