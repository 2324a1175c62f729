/* label: short */
/* Every config of examples/configs is one that the program takes, and the counter finds in them what is published. */
#include "testing.h"

#include <espalier/cost.h>
#include <espalier/run_config.h>

#include <glob.h>

#define CONFIGS "../examples/configs/"

/* The settings of a model for images of 32 x 32 x 3 in 10 classes, unless they say otherwise. */
static esp_model_config load_model(const char *path, const char *override) {
  esp_run_config run;
  if (esp_run_config_load(&run, path, &override, override ? 1 : 0) != ESP_OK) fail_msg("%s", esp_error_message());
  esp_model_config *model = &run.model;
  if (!model->image_height) model->image_height = 32;
  if (!model->image_width) model->image_width = 32;
  if (!model->image_channels) model->image_channels = 3;
  if (!model->classes) model->classes = 10;
  if (esp_model_config_check(model) != ESP_OK) fail_msg("%s: %s", path, esp_error_message());
  return *model;
}

static int64_t parameters_of(const char *path, const char *override) {
  const esp_model_config model = load_model(path, override);
  esp_model_cost cost;
  esp_config_cost(&model, NULL, &cost);
  return cost.parameters;
}

static void every_config_is_taken(void **state) {
  (void)state;
  glob_t found;
  assert_int_equal(glob(CONFIGS "*.yaml", 0, NULL, &found), 0);
  for (size_t i = 0; i < found.gl_pathc; i++) load_model(found.gl_pathv[i], NULL);
  assert_true(found.gl_pathc > 10);
  globfree(&found);
}

/* Experts of T5-base have 2 x 768 x 3072 = 4,718,592 parameters (arXiv 2101.03961); every second of twelve blocks
 * has a mixture, and an expert brings a row of the router. */
static void switch_experts_have_the_published_size(void **state) {
  (void)state;
  const char *path = CONFIGS "switch-base.yaml";
  const int64_t more = parameters_of(path, "model.moe.experts=33") - parameters_of(path, NULL);
  assert_int_equal(more, 6 * (INT64_C(4718592) + 768));
}

/* Mixtral 8x7B without two experts a layer needs 21504 MiB less at two bytes a parameter. */
static void mixtral_shrinks_as_published(void **state) {
  (void)state;
  const char *path = CONFIGS "mixtral.yaml";
  const int64_t less = parameters_of(path, NULL) - parameters_of(path, "model.moe.experts=6");
  const int64_t router_rows = INT64_C(32) * 2 * 4096;
  assert_int_equal(2 * (less - router_rows), INT64_C(21504) << 20);
}

/* V-MoE-B/16 without 2, 4 or 6 of the 8 experts in all its mixtures but that of block 9: the ratios that arXiv
 * 2405.16646 plots, here with the head for CIFAR-10 (to one in the last digit). */
static void v_moe_shrinks_as_published(void **state) {
  (void)state;
  esp_model_config model = load_model(CONFIGS "v-moe-b16.yaml", NULL);
  static esp_expert_layout layouts[ESP_MAX_BLOCKS];
  static const double published[] = {0.166, 0.332, 0.499};
  esp_model_cost full, pruned;
  esp_config_cost(&model, NULL, &full);
  for (int third = 0; third < 3; third++) {
    for (int b = 0; b < model.blocks; b++) {
      esp_expert_layout_full(&layouts[b], 8);
      if (b == 9 || esp_layer_kind_of(&model, b) == ESP_LAYER_DENSE) continue;
      layouts[b].stored = 6 - 2 * third;
      for (int e = layouts[b].stored; e < 8; e++) layouts[b].index[e] = ESP_EXPERT_ZERO;
    }
    esp_config_cost(&model, layouts, &pruned);
    const double ratio = 1 - (double)pruned.parameters / (double)full.parameters;
    if (fabs(ratio - published[third]) > 0.0006) fail_msg("%d experts: %.4f", 2 + 2 * third, ratio);
  }
}

static bool is_running_average(const esp_parameter *p) {
  return p->kind == ESP_KIND_STATE && (strstr(p->tensor.name, "norm.mean") || strstr(p->tensor.name, "norm.variance"));
}

/* Whatever the router: the counter says what a model of these settings then has, the averages of batch norms apart. */
static void counted_parameters_are_those_of_the_model(void **state) {
  (void)state;
  static const char *const paths[] = {CONFIGS "toy-v-moe.yaml",   CONFIGS "toy-e3.yaml",
                                      CONFIGS "toy-switch.yaml",  CONFIGS "router-comparison.yaml",
                                      CONFIGS "cifar10.yaml",     CONFIGS "cifar10-large.yaml",
                                      CONFIGS "cifar10-hour.yaml"};
  static const char *const overrides[] = {NULL, "model.moe.shared_hidden=16", "model.moe.router.bias_rate=0.001",
                                          "model.layers=[dense,mone]"};
  for (size_t i = 0; i < sizeof paths / sizeof paths[0]; i++)
    for (size_t o = 0; o < sizeof overrides / sizeof overrides[0]; o++) {
      const esp_model_config config = load_model(paths[i], overrides[o]);
      esp_model_cost cost;
      esp_model *model;
      int64_t count = 0;
      esp_config_cost(&config, NULL, &cost);
      if (esp_model_create(&model, &config, NULL, 1) != ESP_OK) fail_msg("%s", esp_error_message());
      for (int64_t p = 0; p < esp_parameters_count(model->parameters); p++)
        if (!is_running_average(esp_parameters_at(model->parameters, p)))
          count += esp_parameters_at(model->parameters, p)->count;
      assert_int_equal(cost.parameters, count);
      esp_model_free(model);
    }
}

/* 64 tokens of width 64, 8 experts of 8 slots and 128 neurons: three products of tokens and slots (logits, dispatch,
 * combine), and three of 64 slots with 64 x 128 weights. */
static void soft_moe_costs_its_mixing(void **state) {
  (void)state;
  const esp_model_config config = load_model(CONFIGS "router-comparison.yaml", "model.moe.router.policy=soft");
  esp_model_cost cost;
  esp_config_cost(&config, NULL, &cost);
  assert_true(cost.layers[0].flops == 2.0 * 3 * 64 * 64 * 64 + 2.0 * 3 * 64 * 64 * 128);
}

/* The same layer with k = 1 of 8 experts: a router of 8 rows, three products of 64 rows. An ensemble of 2 runs all
 * twice. */
static void token_choice_and_ensembles_cost_their_rows(void **state) {
  (void)state;
  const char *path = CONFIGS "router-comparison.yaml";
  const esp_model_config one = load_model(path, NULL), two = load_model(path, "model.moe.members=2");
  esp_model_cost single, pair;
  esp_config_cost(&one, NULL, &single);
  esp_config_cost(&two, NULL, &pair);
  assert_true(single.layers[0].flops == 2.0 * 64 * 64 * 8 + 2.0 * 3 * 64 * 64 * 128);
  assert_true(pair.layers[0].flops == 2 * single.layers[0].flops);
  assert_true(pair.head_flops == 2 * single.head_flops && pair.stem_flops == single.stem_flops);
  assert_true(pair.parameters == single.parameters);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(every_config_is_taken),
                                     cmocka_unit_test(switch_experts_have_the_published_size),
                                     cmocka_unit_test(mixtral_shrinks_as_published),
                                     cmocka_unit_test(v_moe_shrinks_as_published),
                                     cmocka_unit_test(counted_parameters_are_those_of_the_model),
                                     cmocka_unit_test(soft_moe_costs_its_mixing),
                                     cmocka_unit_test(token_choice_and_ensembles_cost_their_rows)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
