/* label: short */
/* MC-SMoE as a method with one ratio: how much is left, and in what form. */
#include "test_calibration_models.h"

#include <espalier/method.h>

static esp_model *eight_experts(void) {
  esp_model_config config = calibration_config();
  config.layers[2] = ESP_LAYER_MOE;
  config.moe.experts = 8;
  config.moe.shared_hidden = 0;
  return random_model(&config);
}

/* Numbers in the experts' matrices. */
static double expert_parameters(const esp_model *model) {
  esp_model_cost cost;
  double sum = 0;
  esp_model_cost_of(model, &cost);
  for (int i = 0; i < esp_model_moe_count(model); i++) {
    const esp_moe *moe = esp_model_moe(model, i);
    sum += (double)(cost.layers[moe->block].parameters - esp_tensor_count(moe->router));
  }
  return sum;
}

static void make_method(const char *name, const esp_model *model, double ratio, esp_compressed *made) {
  const esp_calibration c = calibration_on(data);
  const esp_method_inputs inputs = {.model = model, .calibration = &c, .seed = 1, .ratio = ratio};
  esp_method method;
  assert_int_equal(esp_method_find(&method, name), ESP_OK);
  if (esp_method_make(&method, &inputs, made) != ESP_OK) fail_msg("%s: %s", name, esp_error_message());
}

/* A layer keeps sqrt(1 - ratio) of its 8 experts, rounded up; then U V + S goes the rest of the way. Rows of S are
 * whole, and so is the rank: an expert has 480 numbers, a row of down 20. */
static void merging_and_factoring_leave_what_the_ratio_says(void **state) {
  (void)state;
  const struct {
    double ratio;
    int stored;
  } cases[] = {{0.25, 14}, {0.5, 12}, {0.75, 8}};
  esp_model *model = eight_experts();
  for (int i = 0; i < 3; i++) {
    esp_compressed made;
    make_method("m-smoe-factored", model, cases[i].ratio, &made);
    int stored = 0;
    for (int l = 0; l < 2; l++) {
      const esp_moe *moe = esp_model_moe(made.model, l);
      assert_int_equal(moe->layout.experts, 8);
      assert_true(moe->layout.rank > 0);
      stored += moe->layout.stored;
    }
    assert_int_equal(stored, cases[i].stored);
    const double left = expert_parameters(made.model) / expert_parameters(model);
    if (fabs(left - (1 - cases[i].ratio)) > 0.03) fail_msg("ratio %g leaves %g", cases[i].ratio, left);
    assert_non_null(made.plan);
    esp_compressed_clear(&made);
  }
  esp_model_free(model);
}

/* Experts without merging: the same share in all of them. */
static void factoring_alone_keeps_all_experts(void **state) {
  (void)state;
  esp_model *model = eight_experts();
  esp_compressed made;
  make_method("factored", model, 0.5, &made);
  for (int l = 0; l < 2; l++) assert_int_equal(esp_model_moe(made.model, l)->layout.stored, 8);
  assert_true(fabs(expert_parameters(made.model) / expert_parameters(model) - 0.5) < 0.03);
  esp_compressed_clear(&made);
  esp_model_free(model);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(merging_and_factoring_leave_what_the_ratio_says, open_data, close_data),
      cmocka_unit_test_setup_teardown(factoring_alone_keeps_all_experts, open_data, close_data),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
