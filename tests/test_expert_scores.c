/* label: short */
/* Sums over experts' gates and outputs, and what criteria make of them: routings and outputs by hand. */
#include "test_measure_models.h"

#include <espalier/parallel.h>

enum { EXPERTS = 4, K = 2, WIDTH = 8, MOST = 4096 };

static esp_model *model;

static int set_up(void **state) {
  (void)state;
  const esp_model_config config = small_config();
  model = make(&config, NULL, 1);
  return 0;
}

static int tear_down(void **state) {
  (void)state;
  esp_model_free(model);
  return 0;
}

/* --- batches by hand ---------------------------------------------------------------------------------------------- */

/* Tokens with two choices each: [tokens, K], and each slot's output [tokens, K, WIDTH]. */
typedef struct batch {
  int tokens;
  int32_t choice[MOST];
  esp_real gate[MOST], score[MOST * EXPERTS / K], output[MOST * WIDTH];
  uint8_t padding[MOST];
  bool unserved[MOST]; /* slots beyond the capacity */
} batch;

static batch data;

/* The first layer sees tokens order[0] .. order[count - 1] of `data`; NULL: all in turn. */
static void show(const esp_observer *observer, const int *order, int count, bool padded) {
  static int32_t token[MOST], choice[MOST], row[MOST], slot[MOST];
  static esp_real gates[MOST], scores[MOST * EXPERTS / K], output[MOST * WIDTH];
  static uint8_t padding[MOST];
  int64_t first_slot[MOST / K + 1], first_row[EXPERTS + 1] = {0}, wanted[EXPERTS] = {0}, served[EXPERTS] = {0};
  const int slots = count * K;
  int rows = 0;
  for (int i = 0; i < slots; i++) {
    const int from = (order ? order[i / K] : i / K) * K + i % K;
    token[i] = i / K;
    choice[i] = data.choice[from];
    gates[i] = data.gate[from];
    row[i] = data.unserved[from] ? -1 : 0;
    padding[i / K] = data.padding[from / K];
    memcpy(scores + i / K * EXPERTS, data.score + from / K * EXPERTS, EXPERTS * sizeof *scores);
  }
  for (int t = 0; t <= count; t++) first_slot[t] = t * K;
  for (int e = 0; e < EXPERTS; e++) {
    for (int i = 0; i < slots; i++) {
      wanted[e] += choice[i] == e;
      if (choice[i] != e || row[i] < 0) continue;
      const int from = (order ? order[i / K] : i / K) * K + i % K;
      served[e]++;
      row[i] = rows;
      slot[rows] = i;
      memcpy(output + rows++ * WIDTH, data.output + from * WIDTH, WIDTH * sizeof *output);
    }
    first_row[e + 1] = rows;
  }
  const esp_routing routing = {.tokens = count,
                               .slots = slots,
                               .k = K,
                               .experts = EXPERTS,
                               .stored = EXPERTS,
                               .rows = rows,
                               .first_slot = first_slot,
                               .token = token,
                               .choice = choice,
                               .row = row,
                               .slot = slot,
                               .first_row = first_row,
                               .wanted = wanted,
                               .served = served};
  const esp_tensor gate_tensor = {.data = gates, .rank = 2, .shape = {count, K}};
  const esp_tensor score_tensor = {.data = scores, .rank = 2, .shape = {count, EXPERTS}};
  esp_tensor output_tensor = {.data = output, .rank = 2, .shape = {rows, WIDTH}};
  observer->moe(observer->context, &(esp_moe_record){.layer = esp_model_moe(model, 0),
                                                     .routing = &routing,
                                                     .gates = &gate_tensor,
                                                     .scores = &score_tensor,
                                                     .experts = {.output = &output_tensor},
                                                     .images = 1,
                                                     .tokens_per_image = count,
                                                     .padding = padded ? padding : NULL});
}

static esp_expert_scores *empty(esp_gate_form form) {
  esp_expert_scores *scores;
  assert_int_equal(esp_expert_scores_create(&scores, model, form), ESP_OK);
  return scores;
}

static esp_expert_scores *scores_of(const int *order, int count, esp_gate_form form) {
  esp_expert_scores *scores = empty(form);
  const esp_observer observer = esp_expert_scores_observer(scores);
  show(&observer, order, count, false);
  return scores;
}

static esp_expert_sums sums_of(const esp_expert_scores *scores, int expert) {
  esp_expert_sums sums;
  esp_expert_scores_expert(scores, 0, expert, &sums);
  return sums;
}

static void random_batch(int tokens) {
  esp_random random = esp_random_stream(TESTING_SEED, ESP_PURPOSE_TEST, 77);
  memset(&data, 0, sizeof data);
  data.tokens = tokens;
  for (int t = 0; t < tokens; t++) {
    const int a = (int)esp_random_below(&random, EXPERTS),
              b = (a + 1 + (int)esp_random_below(&random, EXPERTS - 1)) % EXPERTS;
    data.choice[t * K] = a;
    data.choice[t * K + 1] = b;
    for (int i = 0; i < K; i++) data.gate[t * K + i] = (esp_real)(0.05 + esp_random_uniform(&random));
    for (int e = 0; e < EXPERTS; e++) data.score[t * EXPERTS + e] = (esp_real)esp_random_uniform(&random);
  }
  fill_normal(data.output, (int64_t)tokens * K * WIDTH, 78);
}

static void assert_same_sums(const esp_expert_scores *a, const esp_expert_scores *b, double tolerance) {
  for (int e = 0; e < EXPERTS; e++) {
    const esp_expert_sums x = sums_of(a, e), y = sums_of(b, e);
    assert_int_equal(x.count, y.count);
    assert_int_equal(x.first_choices, y.first_choices);
    assert_true(x.largest == y.largest);
    assert_true(fabs(x.deviation - y.deviation) <= tolerance * fabs(y.deviation));
    assert_true(fabs(x.first_confidence - y.first_confidence) <= tolerance * fabs(y.first_confidence));
    for (int i = 0; i < ESP_MOMENTS; i++)
      for (int j = 0; j < ESP_MOMENTS; j++)
        if (fabs(x.moment[i][j] - y.moment[i][j]) > tolerance * fabs(y.moment[i][j]))
          fail_msg("expert %d, moment %d %d: %.17g and %.17g", e, i, j, x.moment[i][j], y.moment[i][j]);
  }
}

/* --- the pass ----------------------------------------------------------------------------------------------------- */

static void halves_merge_to_the_whole(void **state) {
  (void)state;
  random_batch(1000);
  int second[600];
  for (int i = 0; i < 600; i++) second[i] = 400 + i;
  esp_expert_scores *whole = scores_of(NULL, 1000, ESP_GATES_NORMALISED);
  esp_expert_scores *a = scores_of(NULL, 400, ESP_GATES_NORMALISED), *b = scores_of(second, 600, ESP_GATES_NORMALISED);
  esp_expert_scores *nothing = empty(ESP_GATES_NORMALISED), *other = empty(ESP_GATES_MODEL);
  assert_int_equal(esp_expert_scores_merge(a, b), ESP_OK);
  assert_same_sums(a, whole, 1e-12);
  assert_int_equal(esp_expert_scores_tokens(a, 0), 1000);
  assert_int_equal(esp_expert_scores_merge(a, nothing), ESP_OK); /* and the other way round */
  assert_same_sums(a, whole, 1e-12);
  assert_int_equal(esp_expert_scores_merge(nothing, whole), ESP_OK);
  assert_same_sums(nothing, whole, 0);
  for (int e = 0; e < EXPERTS; e++)
    for (int c = 0; c < WIDTH; c++)
      assert_near(esp_expert_scores_mean(a, 0, e)[c], esp_expert_scores_mean(whole, 0, e)[c]);
  assert_int_equal(esp_expert_scores_merge(other, whole), ESP_ERR_MISMATCH);
  esp_expert_scores_free(whole);
  esp_expert_scores_free(a);
  esp_expert_scores_free(b);
  esp_expert_scores_free(nothing);
  esp_expert_scores_free(other);
}

static void the_order_of_samples_does_not_matter(void **state) {
  (void)state;
  random_batch(1000);
  int order[1000];
  for (int i = 0; i < 1000; i++) order[i] = (i * 387 + 11) % 1000;
  esp_expert_scores *a = scores_of(NULL, 1000, ESP_GATES_NORMALISED), *b = scores_of(order, 1000, ESP_GATES_NORMALISED);
  assert_same_sums(a, b, 1e-9);
  esp_expert_scores_free(a);
  esp_expert_scores_free(b);
}

static void padding_is_not_counted(void **state) {
  (void)state;
  random_batch(100);
  int kept[50];
  for (int t = 0; t < 100; t++) data.padding[t] = (uint8_t)(t % 2);
  for (int i = 0; i < 50; i++) kept[i] = 2 * i;
  esp_expert_scores *expected = scores_of(kept, 50, ESP_GATES_NORMALISED), *masked = empty(ESP_GATES_NORMALISED);
  const esp_observer observer = esp_expert_scores_observer(masked);
  show(&observer, NULL, 100, true);
  assert_same_sums(masked, expected, 0);
  assert_int_equal(esp_expert_scores_tokens(masked, 0), 50);
  esp_expert_scores_free(expected);
  esp_expert_scores_free(masked);
}

/* A choice beyond the capacity has no output, but it was a choice, and its gate had its share. */
static void choices_beyond_the_capacity_are_choices_only(void **state) {
  (void)state;
  random_batch(2);
  memcpy(data.choice, (int32_t[]){0, 1, 0, 1}, 4 * sizeof(int32_t));
  memcpy(data.gate, (esp_real[]){3, 1, 3, 1}, 4 * sizeof(esp_real));
  data.unserved[2] = true;
  esp_expert_scores *scores = scores_of(NULL, 2, ESP_GATES_NORMALISED);
  assert_int_equal(sums_of(scores, 0).count, 1);
  assert_int_equal(sums_of(scores, 0).first_choices, 2);
  assert_near(sums_of(scores, 1).moment[1][0], 0.5); /* a quarter twice */
  esp_expert_scores_free(scores);
}

static void passes_have_the_same_bits_for_any_threads(void **state) {
  (void)state;
  random_batch(1000);
  esp_expert_scores *scores[2];
  for (int i = 0; i < 2; i++) {
    esp_threads_set(i + 1);
    scores[i] = scores_of(NULL, 1000, ESP_GATES_MODEL);
  }
  esp_threads_set(0);
  assert_same_sums(scores[0], scores[1], 0);
  for (int i = 0; i < 2; i++) esp_expert_scores_free(scores[i]);
}

/* --- the family --------------------------------------------------------------------------------------------------- */

/* Five tokens; f = (n, 0 ...) so that the norm is n. Expert 0 is chosen by tokens 0, 1, 2, expert 1 by 0, 3, 4, expert
 * 2 by
 * 1, 2, 3, 4, expert 3 by none.
 *   token  choices  gates       n
 *     0      0 1    3/4 1/4    2  8
 *     1      0 2    1/2 1/2    4  1
 *     2      2 0    3/4 1/4    1  6
 *     3      1 2    1/2 1/2    3  2
 *     4      2 1    3/4 1/4    5  1 */
static void five_tokens(void) {
  const int32_t choice[10] = {0, 1, 0, 2, 2, 0, 1, 2, 2, 1};
  const double gate[10] = {0.75, 0.25, 0.5, 0.5, 0.75, 0.25, 0.5, 0.5, 0.75, 0.25};
  const double norm[10] = {2, 8, 4, 1, 1, 6, 3, 2, 5, 1};
  memset(&data, 0, sizeof data);
  data.tokens = 5;
  memcpy(data.choice, choice, sizeof choice);
  for (int i = 0; i < 10; i++) {
    data.gate[i] = (esp_real)gate[i];
    data.output[i * WIDTH] = (esp_real)norm[i];
  }
}

static void all_17_variants_of_five_tokens(void **state) {
  (void)state;
  /* Sums g^alpha n^beta [expert][alpha][beta], added up by hand. */
  const double sums[3][3][3] = {
      {{3, 12, 56}, {1.5, 5, 20}, {0.875, 2.5, 8.5}},
      {{3, 12, 74}, {1, 3.75, 20.75}, {0.375, 1.3125, 6.3125}},
      {{4, 9, 31}, {2.5, 6, 22}, {1.625, 4.125, 15.875}},
  };
  five_tokens();
  esp_expert_scores *scores = scores_of(NULL, 5, ESP_GATES_NORMALISED);
  for (int e = 0; e < 3; e++)
    for (int b = 0; b < 2; b++)
      for (int alpha = 0; alpha < 3; alpha++)
        for (int beta = 0; beta < 3; beta++) {
          const esp_expert_sums of = sums_of(scores, e);
          assert_near(esp_family_score(&of, b, alpha, beta), sums[e][alpha][beta] / (b ? sums[e][0][0] : 1));
        }
  const esp_expert_sums none = sums_of(scores, 3);
  for (int b = 0; b < 2; b++) assert_true(esp_family_score(&none, b, 1, 1) == 0); /* nobody's: 0, not 0 / 0 */
  assert_true(none.largest == 0 && none.deviation == 0 && none.count == 0);
  assert_near(sums_of(scores, 2).largest, 5);
  esp_expert_scores_free(scores);
}

static void scaled_gates_scale_by_the_power(void **state) {
  (void)state;
  random_batch(200);
  esp_expert_scores *plain = scores_of(NULL, 200, ESP_GATES_MODEL),
                    *normalised = scores_of(NULL, 200, ESP_GATES_NORMALISED);
  for (int i = 0; i < 200 * K; i++) data.gate[i] *= 4;
  esp_expert_scores *scaled = scores_of(NULL, 200, ESP_GATES_MODEL),
                    *still = scores_of(NULL, 200, ESP_GATES_NORMALISED);
  for (int e = 0; e < EXPERTS; e++) {
    const esp_expert_sums a = sums_of(plain, e), b = sums_of(scaled, e);
    for (int mean = 0; mean < 2; mean++)
      for (int alpha = 0; alpha < 3; alpha++)
        for (int beta = 0; beta < 3; beta++)
          assert_near(esp_family_score(&b, mean, alpha, beta), pow(4, alpha) * esp_family_score(&a, mean, alpha, beta));
  }
  assert_same_sums(still, normalised, 1e-12); /* normalised gates do not know of it */
  esp_expert_scores_free(plain);
  esp_expert_scores_free(normalised);
  esp_expert_scores_free(scaled);
  esp_expert_scores_free(still);
}

static void repeated_data_double_sums_and_leave_means(void **state) {
  (void)state;
  random_batch(300);
  int twice[600];
  for (int i = 0; i < 600; i++) twice[i] = i % 300;
  esp_expert_scores *once = scores_of(NULL, 300, ESP_GATES_NORMALISED),
                    *both = scores_of(twice, 600, ESP_GATES_NORMALISED);
  for (int e = 0; e < EXPERTS; e++) {
    const esp_expert_sums a = sums_of(once, e), b = sums_of(both, e);
    for (int alpha = 0; alpha < 3; alpha++)
      for (int beta = 0; beta < 3; beta++) {
        assert_near(esp_family_score(&b, 1, alpha, beta), esp_family_score(&a, 1, alpha, beta));
        assert_near(esp_family_score(&b, 0, alpha, beta), 2 * esp_family_score(&a, 0, alpha, beta));
      }
  }
  esp_expert_scores_free(once);
  esp_expert_scores_free(both);
}

/* --- the spread of outputs ---------------------------------------------------------------------------------------- */

static double two_pass_deviation(int expert) {
  double mean[WIDTH] = {0}, squares = 0;
  int64_t count = 0;
  for (int i = 0; i < data.tokens * K; i++) {
    if (data.choice[i] != expert) continue;
    count++;
    for (int c = 0; c < WIDTH; c++) mean[c] += (double)data.output[i * WIDTH + c];
  }
  for (int i = 0; i < data.tokens * K; i++)
    for (int c = 0; data.choice[i] == expert && c < WIDTH; c++)
      squares += pow((double)data.output[i * WIDTH + c] - mean[c] / (double)count, 2);
  return sqrt(squares / (double)(count - 1));
}

static void one_pass_of_deviations_equals_two(void **state) {
  (void)state;
  random_batch(500);
  for (int i = 0; i < 500 * K * WIDTH; i++) data.output[i] += 1000; /* where sums of squares would cancel */
  esp_expert_scores *scores = scores_of(NULL, 500, ESP_GATES_NORMALISED);
  for (int e = 0; e < EXPERTS; e++) {
    const double expected = two_pass_deviation(e);
    assert_true(fabs(sums_of(scores, e).deviation - expected) <= 1e-9 * expected);
  }
  esp_expert_scores_free(scores);
}

static void constant_outputs_have_no_deviation(void **state) {
  (void)state;
  random_batch(50);
  for (int i = 0; i < 50 * K * WIDTH; i++) data.output[i] = (esp_real)0.1 * (esp_real)(i % WIDTH);
  esp_expert_scores *scores = scores_of(NULL, 50, ESP_GATES_NORMALISED);
  for (int e = 0; e < EXPERTS; e++) assert_true(sums_of(scores, e).deviation == 0);
  esp_expert_scores_free(scores);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void) {
  const struct CMUnitTest tests[] = {
      TEST(halves_merge_to_the_whole),
      TEST(the_order_of_samples_does_not_matter),
      TEST(padding_is_not_counted),
      TEST(choices_beyond_the_capacity_are_choices_only),
      TEST(passes_have_the_same_bits_for_any_threads),
      TEST(all_17_variants_of_five_tokens),
      TEST(scaled_gates_scale_by_the_power),
      TEST(repeated_data_double_sums_and_leave_means),
      TEST(one_pass_of_deviations_equals_two),
      TEST(constant_outputs_have_no_deviation),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
