/* label: short */
/* What statistics of a pass must add up to whatever the router: over classes, pairs and capacity. */
#include "test_measure_models.h"

enum { CLASSES = 5 };

typedef struct variant {
  esp_router_kind policy;
  int top_k, members;
  double capacity;
  bool classes, pairs; /* there are any */
} variant;

static const variant variants[] = {
    {ESP_ROUTER_TOKEN_CHOICE, 2, 1, -1, true, true},  {ESP_ROUTER_TOKEN_CHOICE, 2, 1, 0.5, true, true},
    {ESP_ROUTER_TOKEN_CHOICE, 1, 1, -1, true, false}, {ESP_ROUTER_TOKEN_CHOICE, 2, 2, 1, true, true},
    {ESP_ROUTER_EXPERT_CHOICE, 1, 1, -1, true, true}, {ESP_ROUTER_HASH, 1, 1, -1, true, false},
    {ESP_ROUTER_EVEN, 2, 1, -1, true, true},          {ESP_ROUTER_SOFT, 1, 1, -1, false, false},
};

static esp_statistics *pass_with_labels(const esp_model *model) {
  static const int32_t labels[IMAGES] = {4, 0, 2, 2, 1, 4};
  esp_statistics *statistics;
  assert_int_equal(esp_statistics_create(&statistics, model, 0), ESP_OK);
  const esp_observer observer = esp_statistics_observer(statistics);
  esp_tape *tape = esp_tape_create();
  esp_tape_reset(tape, false);
  esp_tensor images = {.data = pixels, .rank = 4, .shape = {IMAGES, 8, 8, 3}};
  assert_non_null(esp_model_forward(model, tape, &images, &(esp_pass){.observer = &observer, .labels = labels}).logits);
  esp_tape_free(tape);
  return statistics;
}

static void check_classes(const esp_statistics *statistics, int layer, int expert, const variant *v) {
  esp_expert_statistics e;
  esp_statistics_expert(statistics, layer, expert, &e);
  int64_t count = 0, served = 0;
  for (int c = 0; c < esp_statistics_classes(statistics, layer); c++) {
    count += esp_statistics_class(statistics, layer, expert, c);
    served += esp_statistics_class_served(statistics, layer, expert, c);
  }
  assert_int_equal(esp_statistics_classes(statistics, layer), v->classes ? CLASSES : 0);
  if (v->classes) assert_true(count == e.count && served == e.served);
  assert_true(e.served <= e.count && e.gate_served <= e.gate_mass + 1e-12);
  if (v->classes) assert_int_equal(esp_statistics_class(statistics, layer, expert, 3), 0); /* of no image */
}

static int64_t check_pair(const esp_statistics *statistics, int layer, int a, int b) {
  esp_expert_statistics x, y;
  esp_statistics_expert(statistics, layer, a, &x);
  esp_statistics_expert(statistics, layer, b, &y);
  const int64_t both = esp_statistics_pair(statistics, layer, a, b);
  assert_int_equal(both, esp_statistics_pair(statistics, layer, b, a));
  assert_true(both <= x.count && both <= y.count);
  if (!esp_statistics_can_pair(statistics, layer, a, b)) assert_int_equal(both, 0);
  return both;
}

static void check_layer(const esp_statistics *statistics, int layer, const variant *v) {
  int64_t pairs = 0, dropped = 0;
  for (int a = 0; a < 4; a++) {
    esp_expert_statistics e;
    esp_statistics_expert(statistics, layer, a, &e);
    dropped += e.count - e.served;
    check_classes(statistics, layer, a, v);
    for (int b = 0; b < 4; b++) pairs += check_pair(statistics, layer, a, b);
  }
  assert_int_equal(pairs > 0, v->pairs);
  assert_int_equal(esp_statistics_can_pair(statistics, layer, 0, 1), v->pairs);
  assert_int_equal(esp_statistics_can_pair(statistics, layer, 0, 3),
                   v->pairs && v->members == 1); /* E3's 0, 1 and 2, 3 */
  esp_layer_statistics s;
  esp_statistics_layer(statistics, layer, &s);
  if (v->capacity > 0 && v->capacity < 1) assert_true(dropped >= s.slots / 2); /* capacity is a multiple of 4 here */
  const bool soft = v->policy == ESP_ROUTER_SOFT, hash = v->policy == ESP_ROUTER_HASH;
  assert_int_equal(s.scored, soft || hash ? 0 : s.tokens);
  assert_int_equal(s.logits, hash ? 0 : soft ? s.tokens * 4 * 4 : s.tokens * 4); /* 16 tokens: 4 slots of each expert */
  assert_true((s.logit_rms > 0) == !hash);
  assert_int_equal(s.rows, 0); /* nothing of neurons was asked for */
  if (v->policy == ESP_ROUTER_TOKEN_CHOICE && v->top_k == 2)
    assert_int_equal(pairs, 2 * s.tokens); /* once each, both ways */
}

static void sums_hold_with_every_router(void **state) {
  (void)state;
  for (int i = 0; i < IMAGES * PIXELS; i++) pixels[i] = (esp_real)sin(i * 0.7);
  for (size_t i = 0; i < sizeof variants / sizeof variants[0]; i++) {
    const variant *v = &variants[i];
    esp_model_config config = small_config();
    config.moe.router.policy = v->policy;
    config.moe.top_k = v->top_k;
    config.moe.members = v->members;
    config.moe.router.evaluation_capacity = v->capacity;
    config.moe.router.renormalise = v->policy == ESP_ROUTER_TOKEN_CHOICE && v->top_k > 1;
    config.moe.router.balance_weight = 0;
    esp_model *model = make(&config, NULL, 5);
    esp_statistics *statistics = pass_with_labels(model);
    for (int layer = 0; layer < 2; layer++) check_layer(statistics, layer, v);
    esp_statistics_reset(statistics);
    esp_layer_statistics s;
    esp_statistics_layer(statistics, 0, &s);
    assert_true(s.slots == 0 && s.scored == 0 && s.token_entropy == 0);
    for (int c = 0; c < esp_statistics_classes(statistics, 0); c++)
      assert_int_equal(esp_statistics_class(statistics, 0, 0, c), 0);
    esp_statistics_free(statistics);
    esp_model_free(model);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(sums_hold_with_every_router)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
