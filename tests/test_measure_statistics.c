/* label: short */
/* Statistics of mixture layers: by hand, against a recount, in pieces. */
#include "test_measure_models.h"

/* --- statistics: hand-made records ---------------------------------------------------------------------- */

/* What a mixture layer would show of 3 tokens, 4 experts and k = 2; expert 3 is a zero expert. */
typedef struct hand {
  esp_real logits[12], scores[12], gates[6], activation[4 * 20];
  int32_t choice[6];
  int32_t token[6], row[6], labels[3];
  int64_t first_slot[4], first_row[4], wanted[4], served[4];
  esp_routing routing;
  esp_tensor logits_of, scores_of, gates_of, activation_of;
  esp_moe_record record;
} hand;

static void set_hand(hand *h, const esp_moe *moe) {
  *h = (hand){.logits = {1, 2, -1, 0, 0, 3, 0, 0, 0, 0, 0, 1},
              .scores = {0.5f, 0.5f, 0, 0, 0.25f, 0.25f, 0.25f, 0.25f, 0, 1, 0, 0},
              .gates = {0.5f, 0.25f, 0.75f, 0.125f, 1, 0.5f},
              .choice = {0, 1, 1, 3, 1, 3},
              .token = {0, 0, 1, 1, 2, 2},
              .row = {0, 1, 2, -1, 3, -1},
              .labels = {1, 0, 1},
              .first_slot = {0, 2, 4, 6},
              .wanted = {1, 3, 0, 2},
              .served = {1, 3, 0, 0}};
  h->routing = (esp_routing){.tokens = 3,
                             .slots = 6,
                             .first_slot = h->first_slot,
                             .token = h->token,
                             .row = h->row,
                             .served = h->served,
                             .k = 2,
                             .experts = 4,
                             .stored = 3,
                             .rows = 4,
                             .choice = h->choice,
                             .first_row = h->first_row,
                             .wanted = h->wanted};
  h->logits_of = (esp_tensor){.data = h->logits, .rank = 2, .shape = {3, 4}};
  h->scores_of = (esp_tensor){.data = h->scores, .rank = 2, .shape = {3, 4}};
  h->gates_of = (esp_tensor){.data = h->gates, .rank = 2, .shape = {3, 2}};
  h->activation_of = (esp_tensor){.data = h->activation, .rank = 2, .shape = {4, 20}};
  h->record = (esp_moe_record){.layer = moe,
                               .routing = &h->routing,
                               .logits = &h->logits_of,
                               .scores = &h->scores_of,
                               .gates = &h->gates_of,
                               .labels = h->labels,
                               .tokens_per_image = 1,
                               .images = 3,
                               .experts = {.activation = &h->activation_of}};
  for (int j = 0; j < 20; j++) h->activation[j] = j == 7 ? 2.5f : -0.05f; /* row 0: one large neuron */
  for (int j = 0; j < 20; j++) h->activation[20 + j] = j < 10 ? 0.0005f : -3.f;
  h->activation[40] = NAN; /* row 2: otherwise zeros, as row 3 */
  h->activation[41] = HUGE_VALF;
}

static esp_model *relu_model(void) {
  esp_model_config config = small_config();
  config.feed_forward.activation = ESP_ACTIVATION_RELU;
  return make(&config, pruned_layouts(ESP_EXPERT_ZERO, 3, -1), 1);
}

static void statistics_of_a_record_by_hand(void **state) {
  (void)state;
  esp_model *model = relu_model();
  esp_statistics *statistics;
  assert_int_equal(esp_statistics_create(&statistics, model, 1), ESP_OK);
  const esp_observer observer = esp_statistics_observer(statistics);
  hand h;
  set_hand(&h, esp_model_moe(model, 0));
  observer.moe(observer.context, &h.record);
  esp_model_free(model); /* they do without */

  esp_expert_statistics e[4];
  for (int i = 0; i < 4; i++) esp_statistics_expert(statistics, 0, i, &e[i]);
  assert_int_equal(e[0].count, 1);
  assert_int_equal(e[1].count, 3);
  assert_int_equal(e[2].count, 0);
  assert_int_equal(e[3].count, 2);
  assert_int_equal(e[0].first_choices, 1);
  assert_int_equal(e[1].first_choices, 2);
  assert_int_equal(e[3].first_choices, 0);
  assert_near(e[1].gate_mass, 2);
  assert_near(e[1].mean_gate, 2.0 / 3);
  assert_near(e[2].mean_gate, 0);
  assert_near(e[3].mean_gate, 0.3125);
  assert_near(e[1].gate_served, 2);
  assert_near(e[3].gate_mass, 0.625);
  assert_near(e[3].gate_served, 0); /* a zero expert's gates reach nothing */
  assert_near(e[1].mean_score, 1.75 / 3);
  assert_near(e[3].share, 1.0 / 3);
  assert_int_equal(e[1].served, 3);
  assert_int_equal(e[3].served, 0);
  assert_int_equal(esp_statistics_pair(statistics, 0, 0, 1), 1);
  assert_int_equal(esp_statistics_pair(statistics, 0, 3, 1), 2);
  assert_int_equal(esp_statistics_pair(statistics, 0, 1, 3), 2);
  assert_int_equal(esp_statistics_pair(statistics, 0, 0, 3), 0);
  assert_int_equal(esp_statistics_pair(statistics, 0, 1, 1), 0);
  assert_int_equal(esp_statistics_class(statistics, 0, 1, 0), 1);
  assert_int_equal(esp_statistics_class(statistics, 0, 1, 1), 2);
  assert_int_equal(esp_statistics_class(statistics, 0, 3, 1), 1);
  assert_int_equal(esp_statistics_class_served(statistics, 0, 1, 1), 2);
  assert_int_equal(esp_statistics_class_served(statistics, 0, 3, 1), 0);
  assert_int_equal(esp_statistics_class(statistics, 0, 0, 0), 0);

  esp_layer_statistics s;
  esp_statistics_layer(statistics, 0, &s);
  assert_string_equal(s.scope, "blocks.1.moe");
  assert_int_equal(s.kind, ESP_LAYER_MOE);
  assert_int_equal(s.tokens, 3);
  assert_int_equal(s.scored, 3);
  assert_int_equal(s.slots, 6);
  assert_int_equal(s.served, 4);
  assert_int_equal(s.routable, 4);
  assert_int_equal(s.dead_experts, 1);
  assert_near(s.imbalance, 2);
  assert_near(s.entropy, log(6) / 6 + log(2) / 2 + log(3) / 3);
  assert_near(s.normalised_entropy, s.entropy / log(4));
  assert_near(s.token_entropy, (log(2) + log(4) + 0) / 3);
  assert_near(s.logit_rms, sqrt(16.0 / 12));
  assert_int_equal(s.rows, 4);
  assert_int_equal(s.values, 80);
  assert_int_equal(s.not_finite, 2);
  assert_int_equal(s.silent_rows, 2);
  assert_int_equal(s.above, 1);
  assert_int_equal(s.below, 10);
  assert_int_equal(s.histogram[40], 10 + 38);
  assert_int_equal(s.histogram[39], 19);
  assert_near(s.near_zero[0], 48.0 / 78);
  assert_near(s.near_zero[1], 48.0 / 78);
  assert_near(s.near_zero[2], 67.0 / 78);
  const double one = 2.5 + 19 * (double)0.05f, two = 30 + 10 * (double)0.0005f;
  assert_near(s.top_mass[0], (2.5 / one + 3 / two) / 2); /* 1 % of 20 neurons: 1 */
  assert_near(s.top_mass[2], ((2.5 + (double)0.05f) / one + 6 / two) / 2);
  assert_near(s.top_mass[5], ((2.5 + 9 * (double)0.05f) / one + 30 / two) / 2);
  esp_statistics_layer(statistics, 1, &s); /* nothing was seen there */
  assert_int_equal(s.tokens, 0);
  assert_true(s.entropy == 0 && s.imbalance == 0 && s.logit_rms == 0 && s.top_mass[0] == 0 && s.dead_experts == 0);
  esp_statistics_free(statistics);
}

static void masked_experts_are_not_counted_as_experts(void **state) {
  (void)state;
  esp_model_config config = small_config();
  esp_model *model = make(&config, pruned_layouts(ESP_EXPERT_MASKED, 0, 2), 1);
  esp_statistics *statistics;
  esp_layer_statistics s;
  assert_int_equal(esp_statistics_create(&statistics, model, 1), ESP_OK);
  const esp_observer observer = esp_statistics_observer(statistics);
  esp_tape *tape = esp_tape_create();
  esp_moe *moe = esp_model_moe(model, 0);
  for (int j = 0; j < 8; j++) moe->router->data[j] = 100; /* the masked expert's logit is huge and counts nowhere */
  look(model, tape, &observer, 0, IMAGES, false);
  esp_statistics_layer(statistics, 0, &s);
  assert_int_equal(s.routable, 2);
  assert_int_equal(s.served, s.slots);
  assert_int_equal(s.dead_experts, 0);
  assert_near(s.imbalance, 1); /* k = 2 of 2 */
  assert_near(s.normalised_entropy, 1);
  assert_true(s.logit_rms > 0 && s.logit_rms < 1);
  esp_tape_free(tape);
  esp_statistics_free(statistics);
  esp_model_free(model);
}

/* --- statistics: a recount ------------------------------------------------------------------------------ */

/* Counts again, from the records' rows instead of their slots, with the slowest possible means. */
typedef struct recount {
  int stride;
  double tokens, slots, served, entropy, squares, rows, values, near_zero[ESP_NEAR_ZERO_LEVELS],
      top_mass[ESP_TOP_MASS_LEVELS];
  double count[4], first[4], mass[4], score[4], histogram[ESP_HISTOGRAM_BINS + 2];
} recount;

static void recount_routing(recount *c, const esp_moe_record *r) {
  for (int t = 0; t < r->routing->tokens; t++) {
    for (int e = 0; e < 4; e++) {
      const double p = (double)r->scores->data[4 * t + e], z = (double)r->logits->data[4 * t + e];
      c->score[e] += p;
      c->entropy -= p > 0 ? p * log(p) : 0;
      c->squares += z * z;
      for (int i = 0; i < 2; i++) {
        if (r->routing->choice[2 * t + i] != e) continue;
        c->count[e]++;
        c->first[e] += i == 0;
        c->mass[e] += (double)r->gates->data[2 * t + i];
      }
    }
  }
}

static double gate_activation(const esp_moe_record *r, int64_t row, int neuron) {
  if (r->layer->bank.activation != ESP_ACTIVATION_SWIGLU) return (double)r->experts.activation->data[row * 20 + neuron];
  const double gate = (double)r->experts.pre->data[row * 40 + neuron];
  return gate / (1 + exp(-gate));
}

static void recount_row(recount *c, const esp_moe_record *r, int64_t row) {
  double magnitude[20], total = 0, top = 0;
  for (int j = 0; j < 20; j++) {
    const double a = gate_activation(r, row, j);
    total += magnitude[j] = fabs(a);
    int bin = 0;
    while (bin <= ESP_HISTOGRAM_BINS && a >= esp_histogram_edge(bin)) bin++;
    c->histogram[bin]++;
    for (int i = 0; i < ESP_NEAR_ZERO_LEVELS; i++) c->near_zero[i] += fabs(a) < esp_near_zero_levels[i];
  }
  for (int n = 1; n <= 20; n++) { /* takes the largest away, n times */
    int most = 0;
    for (int j = 1; j < 20; j++)
      if (magnitude[j] > magnitude[most]) most = j;
    top += magnitude[most];
    magnitude[most] = -1;
    for (int i = 0; i < ESP_TOP_MASS_LEVELS; i++)
      if (n == (int)ceil(0.2 * esp_top_mass_percents[i])) c->top_mass[i] += top / total;
  }
}

static void observe_recount(void *context, const esp_moe_record *r) {
  recount *c = (recount *)context + (r->layer->block - 1);
  c->tokens += (double)r->routing->tokens;
  c->slots += 2 * (double)r->routing->tokens;
  recount_routing(c, r);
  for (int64_t row = 0; row < r->routing->rows; row++) {
    c->served++;
    if (row % c->stride) continue;
    c->rows++;
    c->values += 20;
    recount_row(c, r, row);
  }
}

typedef struct both {
  esp_observer a, b;
} both;

static void observe_both(void *context, const esp_moe_record *r) {
  const both *observers = context;
  observers->a.moe(observers->a.context, r);
  observers->b.moe(observers->b.context, r);
}

static void compare_layer(const esp_statistics *statistics, int layer, const recount *c) {
  esp_layer_statistics s;
  esp_statistics_layer(statistics, layer, &s);
  double most = 0;
  for (int e = 0; e < 4; e++) {
    esp_expert_statistics x;
    esp_statistics_expert(statistics, layer, e, &x);
    assert_true((double)x.count == c->count[e] && (double)x.first_choices == c->first[e]);
    assert_near(x.share, c->count[e] / c->slots);
    assert_near(x.gate_mass, c->mass[e]);
    assert_near(x.mean_gate, c->count[e] > 0 ? c->mass[e] / c->count[e] : 0);
    assert_near(x.mean_score, c->score[e] / c->tokens);
    if (c->count[e] > most) most = c->count[e];
  }
  assert_true((double)s.tokens == c->tokens && (double)s.slots == c->slots && (double)s.served == c->served);
  assert_near(s.imbalance, most / (c->slots / 4));
  if (fabs(s.token_entropy - c->entropy / c->tokens) > 1e-6)
    fail_msg("entropy %g", s.token_entropy); /* float sums to 1 */
  assert_near(s.logit_rms, sqrt(c->squares / c->tokens / 4));
  assert_true((double)s.rows == c->rows && (double)s.values == c->values && s.silent_rows == 0 && s.not_finite == 0);
  int64_t moved =
      llabs(s.below - (int64_t)c->histogram[0]) + llabs(s.above - (int64_t)c->histogram[ESP_HISTOGRAM_BINS + 1]);
  for (int i = 0; i < ESP_HISTOGRAM_BINS; i++) moved += llabs(s.histogram[i] - (int64_t)c->histogram[i + 1]);
  assert_true(moved <= 2); /* a value that rounds over an edge leaves one bin and enters another */
  for (int i = 0; i < ESP_NEAR_ZERO_LEVELS; i++)
    assert_true(fabs(s.near_zero[i] - c->near_zero[i] / c->values) < 1.5 / c->values);
  for (int i = 0; i < ESP_TOP_MASS_LEVELS; i++) assert_true(fabs(s.top_mass[i] - c->top_mass[i] / c->rows) < 1e-5);
}

static void check_recount(const esp_model_config *config, const esp_expert_layout *layouts, int stride) {
  esp_model *model = make(config, layouts, 17);
  for (int64_t i = 0; i < esp_parameters_size(model->parameters); i++) esp_parameters_values(model->parameters)[i] *= 3;
  esp_statistics *statistics;
  assert_int_equal(esp_statistics_create(&statistics, model, stride), ESP_OK);
  recount counts[2] = {{.stride = stride}, {.stride = stride}};
  both observers = {esp_statistics_observer(statistics), {observe_recount, counts}};
  const esp_observer observer = {observe_both, &observers};
  esp_tape *tape = esp_tape_create();
  look(model, tape, &observer, 0, 4, false);
  look(model, tape, &observer, 4, IMAGES, false);
  assert_int_equal(esp_statistics_layer_count(statistics), 2);
  for (int i = 0; i < 2; i++) compare_layer(statistics, i, &counts[i]);
  esp_tape_free(tape);
  esp_statistics_free(statistics);
  esp_model_free(model);
}

static void statistics_are_those_of_a_recount(void **state) {
  (void)state;
  esp_model_config config = small_config();
  check_recount(&config, NULL, 1);
  check_recount(&config, NULL, 3);
  check_recount(&config, pruned_layouts(ESP_EXPERT_ZERO, 2, -1), 1);
  config.feed_forward.activation = ESP_ACTIVATION_GELU;
  check_recount(&config, NULL, 1);
}

/* --- statistics: sums ----------------------------------------------------------------------------------- */

static void assert_same_statistics(const esp_statistics *a, const esp_statistics *b) {
  for (int layer = 0; layer < 2; layer++) {
    esp_layer_statistics x, y;
    esp_statistics_layer(a, layer, &x);
    esp_statistics_layer(b, layer, &y);
    assert_int_equal(x.tokens, y.tokens);
    assert_int_equal(x.served, y.served);
    assert_near(x.entropy, y.entropy);
    assert_near(x.token_entropy, y.token_entropy);
    assert_near(x.imbalance, y.imbalance);
    assert_near(x.logit_rms, y.logit_rms);
    assert_int_equal(x.rows, y.rows);
    assert_memory_equal(x.histogram, y.histogram, sizeof x.histogram);
    for (int i = 0; i < ESP_NEAR_ZERO_LEVELS; i++) assert_near(x.near_zero[i], y.near_zero[i]);
    for (int i = 0; i < ESP_TOP_MASS_LEVELS; i++) assert_near(x.top_mass[i], y.top_mass[i]);
    for (int e = 0; e < 4; e++) {
      esp_expert_statistics p, q;
      esp_statistics_expert(a, layer, e, &p);
      esp_statistics_expert(b, layer, e, &q);
      assert_int_equal(p.count, q.count);
      assert_int_equal(p.first_choices, q.first_choices);
      assert_near(p.gate_mass, q.gate_mass);
      assert_near(p.mean_score, q.mean_score);
    }
  }
}

static void halves_merge_to_the_whole_in_any_order(void **state) {
  (void)state;
  const esp_model_config config = small_config();
  esp_model *model = make(&config, NULL, 5);
  esp_statistics *whole = pass_over(model, (int[]){0, 2, 2, 4, 4, 6}, 3),
                 *reversed = pass_over(model, (int[]){4, 6, 2, 4, 0, 2}, 3);
  esp_statistics *first = pass_over(model, (int[]){0, 2}, 1), *second = pass_over(model, (int[]){2, 4, 4, 6}, 2);
  assert_same_statistics(whole, reversed);
  assert_int_equal(esp_statistics_merge(second, first), ESP_OK);
  assert_same_statistics(whole, second);
  esp_statistics_free(whole);
  esp_statistics_free(reversed);
  esp_statistics_free(first);
  esp_statistics_free(second);
  esp_model_free(model);
}

static void statistics_of_different_models_do_not_merge(void **state) {
  (void)state;
  esp_model_config config = small_config();
  esp_model *model = make(&config, NULL, 1), *pruned = make(&config, pruned_layouts(ESP_EXPERT_ZERO, 0, -1), 1);
  config.layers_count = 2;
  esp_model *other = make(&config, NULL, 1);
  esp_statistics *a, *b, *c;
  assert_int_equal(esp_statistics_create(&a, model, 1), ESP_OK);
  assert_int_equal(esp_statistics_create(&b, pruned, 1), ESP_OK);
  assert_int_equal(esp_statistics_create(&c, other, 1), ESP_OK);
  assert_int_equal(esp_statistics_merge(a, b), ESP_ERR_MISMATCH);
  assert_non_null(strstr(esp_error_message(), "blocks.1.moe"));
  assert_int_equal(esp_statistics_merge(a, c), ESP_ERR_MISMATCH);
  assert_non_null(strstr(esp_error_message(), "statistics of 2 and of 1 mixture layers"));
  esp_statistics *none;
  assert_int_equal(esp_statistics_create(&none, model, -1), ESP_ERR_USAGE);
  assert_null(none);
  esp_statistics_free(a);
  esp_statistics_free(b);
  esp_statistics_free(c);
  esp_model_free(model);
  esp_model_free(pruned);
  esp_model_free(other);
}

typedef struct stranger {
  esp_statistics *statistics;
  const esp_moe_record *record;
} stranger;

static void show_stranger(void *context) {
  const stranger *s = context;
  const esp_observer observer = esp_statistics_observer(s->statistics);
  observer.moe(observer.context, s->record);
}

static void a_layer_of_another_model_is_a_mistake(void **state) {
  (void)state;
  esp_model *model = relu_model();
  esp_moe other = *esp_model_moe(model, 0);
  other.layout.experts = 7;
  hand h;
  set_hand(&h, &other);
  stranger s = {.record = &h.record};
  assert_int_equal(esp_statistics_create(&s.statistics, model, 1), ESP_OK);
  assert_panics(show_stranger, &s, "blocks.1.moe, which has 7 experts of 20 neurons");
  esp_statistics_free(s.statistics);
  esp_model_free(model);
}

/* --- neurons: by hand ------------------------------------------------------------------------------------------ */

/* Expert 0 serves 4 tokens with the neurons 0 to 4, then 1 to 5 ..., expert 1 none, expert 2 two, always the same. */
static void neuron_usage_by_hand(void **state) {
  (void)state;
  const esp_model_config config = small_config();
  esp_model *model = make(&config, NULL, 1);
  const esp_moe *moe = esp_model_moe(model, 1);
  esp_statistics *statistics, *other;
  assert_int_equal(esp_statistics_create(&statistics, model, 1), ESP_OK);
  assert_int_equal(esp_statistics_create(&other, model, 1), ESP_OK);
  uint8_t mask[6 * 20] = {0};
  esp_real pre[6 * 40] = {0};
  const int64_t first_row[] = {0, 4, 4, 6, 6}, none[4] = {0};
  for (int r = 0; r < 6; r++)
    for (int j = 0; j < 5; j++) mask[r * 20 + j + (r < 4 ? r : 0)] = 1;
  esp_tensor pre_of = {.data = pre, .rank = 2, .shape = {6, 40}};
  const esp_routing routing = {.rows = 6, .experts = 4, .stored = 4, .first_row = first_row, .served = none};
  const esp_moe_record record = {.layer = moe, .routing = &routing, .experts = {.pre = &pre_of, .mask = mask}};
  for (int i = 0; i < 2; i++) {
    const esp_observer observer = esp_statistics_observer(i ? other : statistics);
    observer.moe(observer.context, &record);
  }
  assert_int_equal(esp_statistics_merge(statistics, other), ESP_OK);
  esp_neuron_usage u;
  assert_false(esp_statistics_neurons(statistics, 0, 0, &u)); /* an MoE selects none */
  assert_true(esp_statistics_neurons(statistics, 1, 0, &u));
  const int64_t expected[20] = {2, 4, 6, 8, 8, 6, 4, 2};
  assert_int_equal(u.rows, 8);
  assert_int_equal(u.neurons, 20);
  assert_memory_equal(u.selected, expected, sizeof expected);
  assert_int_equal(u.dead, 12);
  /* ascending: twelve 0, then 2 2 4 4 6 6 8 8: 2 (13 + 14 + 2 (15 + 16) + 3 (17 + 18) + 4 (19 + 20)) 2 / (20 x 40) - 21
   * / 20 */
  assert_near(u.gini, 2 * 2 * 350 / 800.0 - 1.05);
  assert_true(esp_statistics_neurons(statistics, 1, 1, &u));
  assert_true(u.rows == 0 && u.gini == 0 && u.dead == 0);
  assert_true(esp_statistics_neurons(statistics, 1, 2, &u));
  assert_true(u.rows == 4 && u.dead == 15);
  assert_near(u.gini, 0.75);
  esp_layer_statistics s;
  esp_statistics_layer(statistics, 1, &s);
  assert_near(s.neuron_gini, (0.7 + 0.75) / 2);
  assert_int_equal(s.dead_neurons, 27);
  assert_int_equal(s.counted_neurons, 40);
  esp_statistics_free(statistics);
  esp_statistics_free(other);
  esp_model_free(model);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(statistics_of_a_record_by_hand),
      cmocka_unit_test(masked_experts_are_not_counted_as_experts),
      cmocka_unit_test(statistics_are_those_of_a_recount),
      cmocka_unit_test(halves_merge_to_the_whole_in_any_order),
      cmocka_unit_test(statistics_of_different_models_do_not_merge),
      cmocka_unit_test(a_layer_of_another_model_is_a_mistake),
      cmocka_unit_test(neuron_usage_by_hand),
  };
  fill_normal(pixels, IMAGES * PIXELS, 1);
  return cmocka_run_group_tests(tests, NULL, NULL);
}
