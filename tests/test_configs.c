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

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(every_config_is_taken),
                                     cmocka_unit_test(switch_experts_have_the_published_size),
                                     cmocka_unit_test(mixtral_shrinks_as_published)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
