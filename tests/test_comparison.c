/* label: short */
/* MoE against MoNE: the models that are compared activate what their names say, and the tables say what the runs
 * did. */
#include "testing.h"

#include <espalier/measure.h>
#include <jansson.h>

static esp_model_config base_config(void) {
  esp_model_config config = esp_model_defaults;
  config.image_height = config.image_width = 32;
  config.image_channels = 3;
  config.classes = 10;
  config.width = 64;
  config.heads = 4;
  config.blocks = 3;
  config.layers[0] = ESP_LAYER_DENSE;
  config.layers[1] = ESP_LAYER_MOE;
  config.layers_count = 2;
  config.feed_forward.activation = ESP_ACTIVATION_SWIGLU;
  config.feed_forward.hidden = 96;
  config.moe.experts = 8;
  config.moe.top_k = 2;
  config.moe.hidden = 48;
  config.moe.members = 1;
  return config;
}

static const esp_variant *variant_of(const char *name) {
  const esp_variant *table;
  const size_t count = esp_variant_list(&table);
  for (size_t i = 0; i < count; i++)
    if (strcmp(table[i].name, name) == 0) return &table[i];
  fail_msg("no variant %s", name);
  return NULL;
}

static esp_model_config derive(const esp_model_config *base, const char *name) {
  esp_model_config config;
  if (esp_variant_config(variant_of(name), base, &config) != ESP_OK) fail_msg("%s: %s", name, esp_error_message());
  return config;
}

/* Expert parameters activated for a token in the first mixture layer, by one of the counts: without router and
 * shared. */
static int64_t activated(const esp_model_config *config, esp_activation_count count) {
  esp_model_cost cost;
  esp_config_cost(config, NULL, &cost);
  const esp_layer_cost *layer = &cost.layers[1];
  const int64_t router = (int64_t)config->moe.experts * config->width;
  return (count == ESP_COUNT_SELECTED ? layer->activated_selected : layer->activated) - router;
}

static int64_t parameters(const esp_model_config *config) {
  esp_model_cost cost;
  esp_config_cost(config, NULL, &cost);
  return cost.parameters;
}

/* By the counter of costs, which knows nothing of the variants. */
static void test_variants_activate_what_they_say(void **state) {
  (void)state;
  static const struct {
    esp_activation_kind activation;
    const char *name;
    int share, top_k, kept; /* share: of the MoE's activated expert parameters, in halves */
  } rows[] = {
      {ESP_ACTIVATION_SWIGLU, "moe", 2, 2, 48},
      {ESP_ACTIVATION_SWIGLU, "mone-half-full", 1, 2, 12},
      {ESP_ACTIVATION_SWIGLU, "mone-half-selected", 1, 2, 24},
      {ESP_ACTIVATION_SWIGLU, "mone-equal-full", 2, 4, 12},
      {ESP_ACTIVATION_SWIGLU, "mone-equal-selected", 2, 4, 24},
      {ESP_ACTIVATION_RELU, "mone-half-selected", 1, 2, 24},
      {ESP_ACTIVATION_RELU, "mone-equal-full", 2, 3, 16},
      {ESP_ACTIVATION_RELU, "mone-equal-selected", 2, 4, 24},
  };
  for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
    esp_model_config base = base_config();
    base.feed_forward.activation = rows[i].activation;
    const esp_variant *variant = variant_of(rows[i].name);
    const esp_model_config config = derive(&base, rows[i].name);
    esp_model *model;
    assert_int_equal(esp_model_create(&model, &config, NULL, 1), ESP_OK);
    assert_int_equal(esp_model_moe(model, 0)->neurons_kept, rows[i].kept);
    assert_int_equal(esp_model_moe(model, 0)->config.top_k, rows[i].top_k);
    assert_int_equal(model->blocks[0].kind, ESP_LAYER_DENSE);
    esp_model_free(model);
    const int64_t of_moe = activated(&base, variant->count);
    if (2 * activated(&config, variant->count) != rows[i].share * of_moe)
      fail_msg("%s activates %lld, an MoE %lld", rows[i].name, (long long)activated(&config, variant->count),
               (long long)of_moe);
    assert_int_equal(parameters(&config), parameters(&base));
  }
}

static void test_dense_activates_as_many(void **state) {
  (void)state;
  const esp_model_config base = base_config(), config = derive(&base, "dense");
  esp_model_cost cost;
  esp_config_cost(&config, NULL, &cost);
  assert_int_equal(cost.layers[1].activated, activated(&base, ESP_COUNT_SELECTED));
}

/* A MoNE among the settings is taken as the MoE it would be with all its neurons. */
static void test_a_mone_is_taken_as_an_moe(void **state) {
  (void)state;
  esp_model_config base = base_config();
  const esp_model_config moe = derive(&base, "moe"), half = derive(&base, "mone-half-full");
  const esp_model_config again = derive(&half, "moe");
  assert_int_equal(again.layers[1], ESP_LAYER_MOE);
  assert_int_equal(activated(&again, ESP_COUNT_GATE_IN_FULL), activated(&moe, ESP_COUNT_GATE_IN_FULL));
}

/* ... and only the balanced ones have the loss, with the weight of the settings if they give one. */
static void test_balanced_variants(void **state) {
  (void)state;
  const esp_variant *table;
  const size_t count = esp_variant_list(&table);
  for (int weighted = 0; weighted < 2; weighted++) {
    esp_model_config base = base_config();
    base.moe.neuron_balance_weight = weighted ? 0.3 : 0;
    for (size_t i = 0; i < count; i++) {
      const esp_model_config config = derive(&base, table[i].name);
      assert_true(config.moe.neuron_balance_weight == (!table[i].balanced ? 0 : weighted ? 0.3 : 0.01));
      assert_int_equal(table[i].balanced, strstr(table[i].name, "-balanced") != NULL);
    }
  }
}

static void refuse(const esp_model_config *base, const char *name, const char *words) {
  esp_model_config config;
  assert_int_equal(esp_variant_config(variant_of(name), base, &config), ESP_ERR_CONFIG);
  if (!strstr(esp_error_message(), words)) fail_msg("\"%s\" lacks \"%s\"", esp_error_message(), words);
}

static void test_what_cannot_be_matched(void **state) {
  (void)state;
  esp_model_config base = base_config();
  base.moe.hidden = 46;
  refuse(&base, "mone-half-full", "multiple of 4");
  base = base_config();
  base.moe.top_k = 8;
  refuse(&base, "mone-equal-full", "model.moe.experts = 8");
  refuse(&base, "dense", "feed_forward.hidden = 384");
  base = base_config();
  base.feed_forward.activation = ESP_ACTIVATION_GELU;
  refuse(&base, "mone-half-full", "two matrices");
  base = base_config();
  base.layers[1] = ESP_LAYER_DENSE;
  refuse(&base, "moe", "no mixture");
  base = base_config();
  base.moe.router.policy = ESP_ROUTER_EXPERT_CHOICE;
  refuse(&base, "mone-equal-selected", "token_choice");
}

static esp_compared_run run_of(const char *name, uint64_t seed, double accuracy) {
  esp_compared_run run = {.variant = variant_of(name), .seed = seed};
  run.values[ESP_COMPARED_ACCURACY] = accuracy;
  run.values[ESP_COMPARED_VALIDATION_ACCURACY] = seed == 3 ? (double)NAN : accuracy + 0.1;
  run.values[ESP_COMPARED_MILLISECONDS] = seed == 1 ? 2 : (double)NAN;
  return run;
}

/* Differences are those of the same seed: their spread is not that of the two means. */
static void test_summaries(void **state) {
  (void)state;
  const esp_compared_run runs[] = {run_of("moe", 1, 0.5), run_of("mone-half-full", 1, 0.51), run_of("moe", 2, 0.7),
                                   run_of("mone-half-full", 2, 0.73), run_of("dense", 3, 0.4)};
  const esp_comparison comparison = {"a.yaml", "synthetic", runs, 5};
  esp_compared_summary s[5];
  assert_int_equal(esp_comparison_summaries(&comparison, s), 3);
  assert_ptr_equal(s[0].first, &runs[0]);
  assert_true(s[1].seeds == 2 && s[1].pairs == 2 && s[2].seeds == 1 && s[2].pairs == 0);
  assert_true(fabs(s[1].mean[ESP_COMPARED_ACCURACY] - 0.62) < 1e-12);
  assert_true(fabs(s[0].deviation[ESP_COMPARED_ACCURACY] - 0.2 / sqrt(2)) < 1e-12);
  assert_true(fabs(s[1].difference[ESP_COMPARED_ACCURACY] - 0.02) < 1e-12);
  assert_true(fabs(s[1].difference_deviation[ESP_COMPARED_ACCURACY] - 0.02 / sqrt(2)) < 1e-12);
  assert_true(isnan(s[2].deviation[ESP_COMPARED_ACCURACY]) && isnan(s[2].difference[ESP_COMPARED_ACCURACY]));
  assert_true(s[0].mean[ESP_COMPARED_MILLISECONDS] == 2);
  json_t *json = esp_comparison_json(&comparison);
  const json_t *dense = json_array_get(json_object_get(json, "variants"), 2);
  assert_true(json_is_null(json_object_get(json_object_get(dense, "accuracy"), "difference")));
  assert_int_equal(json_array_size(json_object_get(json, "runs")), 5);
  assert_true(json_is_null(json_object_get(json_object_get(dense, "validation_accuracy"), "mean")));
  const json_t *mone = json_array_get(json_object_get(json, "variants"), 1);
  const json_t *validation = json_object_get(mone, "validation_accuracy");
  assert_true(fabs(json_number_value(json_object_get(validation, "mean")) - 0.72) < 1e-12);
  assert_true(fabs(json_number_value(json_object_get(validation, "difference")) - 0.02) < 1e-12);
  json_decref(json);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_variants_activate_what_they_say), cmocka_unit_test(test_dense_activates_as_many),
      cmocka_unit_test(test_a_mone_is_taken_as_an_moe),       cmocka_unit_test(test_balanced_variants),
      cmocka_unit_test(test_what_cannot_be_matched),          cmocka_unit_test(test_summaries)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
