/* label: short */
/* Settings that do nothing are refused where they are set, and only there. */
#include "testing.h"

#include <espalier/run_config.h>

#include <string.h>

/* `idle` makes `setting` do nothing, `acting` makes it act. */
static const struct {
  const char *setting, *idle, *acting;
} pairs[] = {
    {"training.evaluate_examples=64", "data.validation=0", "data.validation=0.1"},
    {"model.stem.patch=2", "model.stem.kind=flatten", "model.stem.kind=patch"},
    {"model.stem.channels=[8]", "model.stem.kind=patch", "model.stem.kind=convolution"},
    {"model.stem.pools=[2, 2]", "model.stem.kind=patch", "model.stem.kind=convolution"},
    {"model.stem.extra_convolutions=1", "model.stem.kind=patch", "model.stem.kind=convolution"},
    {"model.stem.whitening=12", "model.stem.kind=patch", "model.stem.kind=convolution"},
    {"model.heads=4", "model.mixing=convolution", "model.mixing=attention"},
    {"model.kernel=3", "model.mixing=none", "model.mixing=convolution"},
    {"model.feed_forward.hidden=64", "model.layers=[moe]", "model.layers=[dense, moe]"},
    {"model.moe.experts=4", "model.layers=[dense]", "model.layers=[dense, mone]"},
    {"model.moe.router.noise=1", "model.layers=[dense]", "model.layers=[moe]"},
    {"model.moe.top_k=3", "model.moe.router.policy=soft", "model.moe.router.policy=even"},
    {"model.moe.neurons_kept=0.25", "model.layers=[moe]", "model.layers=[mone]"},
    {"model.moe.neurons_kept=0.25", "model.moe.neurons_kept_per_layer=[0.5]", "model.layers=[mone]"},
    {"model.moe.neurons_kept_per_layer=[0.5]", "model.layers=[moe]", "model.layers=[moe, mone]"},
    {"model.moe.neuron_ranking=pre_activation", "model.layers=[moe]", "model.layers=[mone]"},
    {"model.moe.neuron_balance=abs", "model.layers=[mone]", "model={layers: [mone], moe: {neuron_balance_weight: 1}}"},
    {"model.moe.neuron_balance_weight=0.1", "model.layers=[moe]", "model.layers=[mone]"},
    {"model.moe.router.score=sigmoid", "model.moe.router.policy=hash", "model.moe.router.policy=token_choice"},
    {"model.moe.router.score_selected_only=true", "model.moe.router.policy=soft", "model.moe.top_k=2"},
    {"model.moe.router.renormalise=true", "model.moe.router.policy=soft", "model.moe.top_k=2"},
    {"model.moe.router.renormalise=true", "model={moe: {top_k: 1, router: {policy: hash}}}", "model.moe.top_k=2"},
    {"model.moe.router.temperature=0.2", "model.moe.router.cosine=false", "model.moe.router.cosine=true"},
    {"model.moe.router.group_images=2", "model.moe.router.policy=token_choice", "model.moe.router.capacity=1"},
    {"model.moe.router.group_images=2", "model.moe.router.policy=soft", "model.moe.router.policy=expert_choice"},
    {"model.moe.router.group_images=2", "model.moe.top_k=2", "model.moe.router.importance_weight=0.01"},
    {"model.moe.router.evaluation_group=2", "model.moe.router.capacity=1", "model.moe.router.evaluation_capacity=1"},
    {"model.moe.router.evaluation_group=2", "model.moe.router.policy=soft", "model.moe.router.policy=expert_choice"},
    {"model.moe.router.balance=first_choice", "model.moe.router.balance_weight=0", "model.moe.top_k=2"},
    {"model.moe.router.balance_scores=selected", "model.moe.router.balance_weight=0", "model.moe.top_k=2"},
    {"model.moe.router.balance_weight=0.1", "model.moe.router.policy=expert_choice", "model.moe.top_k=2"},
    {"model.moe.router.balance_weight=0.1", "model.moe.router.policy=soft", "model.moe.top_k=2"},
    {"model.moe.router.balance_weight=0.1", "model={moe: {top_k: 1, router: {policy: hash}}}", "model.moe.top_k=1"},
    {"model.moe.router.balance_weight=0.1", "model.moe.router.policy=even", "model.moe.top_k=2"},
    {"optimizer.router_rate=2", "model.layers=[dense]", "model.layers=[moe]"},
    {"optimizer.router_decay=1", "model.layers=[dense]", "model.layers=[moe]"},
    {"optimizer.router_decay=1", "optimizer.weight_decay=0", "optimizer.weight_decay=0.1"},
    {"optimizer.momentum=0.8", "optimizer.kind=adamw", "optimizer.kind=muon"},
    {"optimizer.beta1=0.8", "optimizer.kind=sgd", "optimizer.kind=muon"},
    {"optimizer.beta2=0.99", "optimizer.kind=sgd", "optimizer.kind=adamw"},
    {"optimizer.epsilon=1e-6", "optimizer.kind=sgd", "optimizer.kind=adamw"},
    {"optimizer.schedule.final_share=0.1", "optimizer.schedule.kind=constant", "optimizer.schedule.kind=linear"},
    {"augmentation.reflect=true", "augmentation.crop_padding=0", "augmentation.crop_padding=2"},
    {"augmentation.alternate=true", "augmentation.flip=false", "augmentation.flip=true"},
    {"training.alarm_share=0.2", "model.layers=[dense]", "model.layers=[moe]"},
    {"training.alarm_evaluations=2", "training.alarm_share=0", "training.alarm_share=0.3"},
};

static void expect_refused(esp_status got, const char *key) {
  if (got != ESP_ERR_CONFIG || !strstr(esp_error_message(), key) || !strstr(esp_error_message(), "does nothing: "))
    fail_msg("%s: status %d, \"%s\"", key, got, got == ESP_OK ? "" : esp_error_message());
}

static void overrides_that_do_nothing_are_refused(void **state) {
  (void)state;
  for (size_t i = 0; i < sizeof pairs / sizeof pairs[0]; i++) {
    esp_run_config config;
    char key[128];
    snprintf(key, sizeof key, "%.*s", (int)strcspn(pairs[i].setting, "="), pairs[i].setting);
    const char *idle[] = {pairs[i].idle, pairs[i].setting}, *acting[] = {pairs[i].acting, pairs[i].setting};
    expect_refused(esp_run_config_load(&config, NULL, idle, 2), key);
    if (esp_run_config_load(&config, NULL, acting, 2) != ESP_OK) fail_msg("%s: %s", key, esp_error_message());
  }
}

static void write_text(const char *path, const char *text) {
  FILE *file = fopen(path, "w");
  assert_non_null(file);
  assert_true(fputs(text, file) >= 0);
  assert_int_equal(fclose(file), 0);
}

/* A file must make sense by itself; what an override makes idle in it is no mistake. */
static void files_are_judged_by_themselves(void **state) {
  (void)state;
  esp_run_config config;
  char folder[TESTING_PATH_SIZE], path[TESTING_PATH_SIZE + 16];
  make_folder(folder);
  snprintf(path, sizeof path, "%s/c.yaml", folder);
  write_text(path, "model:\n  layers: [moe]\n  heads: 4\n  mixing: none\n");
  expect_refused(esp_run_config_load(&config, path, NULL, 0), "c.yaml: model.heads");
  write_text(path, "model:\n  layers: [moe]\n  feed_forward: {hidden: 64}\n  moe: {experts: 4}\n");
  const char *dense = "model.layers=[dense]";
  assert_int_equal(esp_run_config_load(&config, path, NULL, 0), ESP_OK);
  assert_int_equal(esp_run_config_load(&config, path, &dense, 1), ESP_OK);
  remove_folder(folder);
}

/* A run's config.yaml can start another run, whatever was idle in the settings of the first. */
static void what_is_saved_loads_again(void **state) {
  (void)state;
  esp_run_config config, again;
  char folder[TESTING_PATH_SIZE], path[TESTING_PATH_SIZE + 16], *text, *once_more;
  make_folder(folder);
  snprintf(path, sizeof path, "%s/c.yaml", folder);
  write_text(path, "model:\n  layers: [moe]\n  moe: {experts: 4, top_k: 1, router: {balance_weight: 0.2}}\n");
  const char *overrides[] = {"model.moe.router.policy=expert_choice", "optimizer.kind=sgd"};
  assert_int_equal(esp_run_config_load(&config, path, overrides, 2), ESP_OK);
  assert_int_equal(esp_run_config_save_used(&text, &config), ESP_OK);
  assert_null(strstr(text, " balance_weight: "));
  assert_null(strstr(text, " beta1: "));
  assert_non_null(strstr(text, " momentum: "));
  write_text(path, text);
  if (esp_run_config_load(&again, path, NULL, 0) != ESP_OK) fail_msg("%s", esp_error_message());
  assert_int_equal(esp_run_config_save_used(&once_more, &again), ESP_OK);
  assert_string_equal(text, once_more);
  esp_free(text);
  esp_free(once_more);
  remove_folder(folder);
}

/* A file over a trained model's settings changes what it names and no more, and is judged by all of them together. */
static void files_go_over_settings(void **state) {
  (void)state;
  esp_run_config config, before;
  char folder[TESTING_PATH_SIZE], path[TESTING_PATH_SIZE + 16];
  const char *override = "training.epochs=3", *idle = "optimizer.beta1=0.8";
  make_folder(folder);
  snprintf(path, sizeof path, "%s/f.yaml", folder);
  const char *own[] = {"model.moe.experts=4", "optimizer.weight_decay=0.1", "training.epochs=9", "training.batch=48",
                       "model.mixing=none"};
  assert_int_equal(esp_run_config_load(&before, NULL, own, 5), ESP_OK);
  write_text(path, "optimizer: {kind: sgd, momentum: 0.8, weight_decay: 0}\ntraining: {epochs: 5}\n");
  config = before;
  if (esp_run_config_overlay(&config, path, &override, 1) != ESP_OK) fail_msg("%s", esp_error_message());
  assert_int_equal(config.optimizer.kind, ESP_OPTIMIZER_SGD);
  assert_true(config.optimizer.momentum == 0.8 && config.optimizer.weight_decay == 0);
  assert_true(config.training.epochs == 3 && config.training.batch == 48 && config.model.moe.experts == 4);
  config = before;
  expect_refused(esp_run_config_overlay(&config, path, &idle, 1), "optimizer.beta1");
  assert_true(config.training.epochs == 9 && config.optimizer.kind == before.optimizer.kind);
  write_text(path, "model: {heads: 4}\n");
  expect_refused(esp_run_config_overlay(&config, path, NULL, 0), "f.yaml: model.heads");
  write_text(path, "optimizer: {knid: sgd}\n");
  assert_int_equal(esp_run_config_overlay(&config, path, NULL, 0), ESP_ERR_CONFIG);
  assert_non_null(strstr(esp_error_message(), "kind"));
  assert_int_equal(esp_run_config_overlay(&config, NULL, &override, 1), ESP_OK);
  assert_true(config.training.epochs == 3 && config.optimizer.weight_decay == 0.1);
  remove_folder(folder);
}

static void gates_are_divided_where_there_is_something_to_divide_by(void **state) {
  (void)state;
  static const struct {
    const char *setting;
    bool renormalises;
  } cases[] = {{"model.moe.top_k=2", true},
               {"model.moe.top_k=1", false},
               {"model.moe.router.policy=expert_choice", false},
               {"model.moe.router.renormalise=false", false}};
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    esp_run_config config;
    assert_int_equal(esp_run_config_load(&config, NULL, &cases[i].setting, 1), ESP_OK);
    assert_int_equal(config.model.moe.router.renormalise, cases[i].renormalises);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(overrides_that_do_nothing_are_refused), cmocka_unit_test(files_are_judged_by_themselves),
      cmocka_unit_test(what_is_saved_loads_again), cmocka_unit_test(files_go_over_settings),
      cmocka_unit_test(gates_are_divided_where_there_is_something_to_divide_by)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
