/* label: medium */
/* The theory of pruning by router-norm change as a simulation (examples/theory.h): both theorems' shape. */
#include "testing.h"

#include "../examples/theory.h"

enum { BATCHES = 32, SEEDS = 2 };

static double accuracy(theory *t, const bool *gone) {
  double result = 0;
  assert_int_equal(theory_accuracy(t, gone, BATCHES, &result), ESP_OK);
  return result;
}

static void check_changes(const theory *t) {
  double least = INFINITY, most = 0;
  for (int s = 0; s < THEORY_EXPERTS; s++) {
    if (s < THEORY_RELEVANT && t->change[s] < least) least = t->change[s];
    if (s >= THEORY_RELEVANT && fabs(t->change[s]) > most) most = fabs(t->change[s]);
  }
  if (!(least > 10 * most))
    fail_msg("d %d, seed %d: the relevant experts' Delta is at least %g, the others' at most %g", t->d, (int)t->seed,
             least, most);
}

/* Returns the accuracy without the 12 experts of the largest Delta. */
static double check_model(int d, uint64_t seed) {
  theory t;
  bool gone[THEORY_EXPERTS] = {false};
  assert_int_equal(theory_create(&t, d, seed), ESP_OK);
  assert_int_equal(theory_train(&t), ESP_OK);
  check_changes(&t);
  const double whole = accuracy(&t, gone);
  theory_choose(&t, 12, false, gone);
  const double smallest = accuracy(&t, gone);
  theory_choose(&t, 14, false, gone);
  const double two_left = accuracy(&t, gone);
  theory_choose(&t, 12, true, gone);
  const double largest = accuracy(&t, gone);
  print_message(
      "d %4d, seed %d: accuracy %.3f, without the 12 smallest %.3f, the 14 smallest %.3f, the 12 largest %.3f\n", d,
      (int)seed, whole, smallest, two_left, largest);
  assert_true(whole >= 0.99);
  assert_true(smallest >= 0.99);
  assert_true(two_left > 0.4); /* about 1, or about 0.5 if both survivors know the same label */
  theory_free(&t);
  return largest;
}

/* Random pruning of 12 of 16 is worse on average than pruning by Delta. */
static void check_random(int d) {
  theory t;
  double sum = 0;
  assert_int_equal(theory_create(&t, d, 1), ESP_OK);
  assert_int_equal(theory_train(&t), ESP_OK);
  for (uint64_t draw = 0; draw < 8; draw++) {
    uint32_t order[THEORY_EXPERTS];
    bool gone[THEORY_EXPERTS] = {false};
    for (uint32_t s = 0; s < THEORY_EXPERTS; s++) order[s] = s;
    esp_random random = esp_random_stream(TESTING_SEED, ESP_PURPOSE_TEST, draw);
    esp_random_shuffle(&random, order, THEORY_EXPERTS);
    for (int s = 0; s < 12; s++) gone[order[s]] = true;
    sum += accuracy(&t, gone);
  }
  print_message("d %4d: accuracy without 12 random experts %.3f, mean of 8\n", d, sum / 8);
  assert_true(sum / 8 < 0.97);
  theory_free(&t);
}

static void the_theory_holds_in_simulation(void **state) {
  (void)state;
  static const int sizes[] = {64, 256, 1024};
  double largest = 0;
  for (int i = 0; i < 3; i++)
    for (uint64_t seed = 1; seed <= SEEDS; seed++) largest += check_model(sizes[i], seed);
  assert_true(largest / (3 * SEEDS) < 0.95);
  check_random(64);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(the_theory_holds_in_simulation)};
  return cmocka_run_group_tests_name("theory", tests, NULL, NULL);
}
