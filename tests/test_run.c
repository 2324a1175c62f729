/* A whole run by the library's own calls, as examples/train.c makes it: what the folder holds, what the history says, and
 * that a run which cannot be leaves nothing behind. */
#define SHARED_DATA "synthetic:narrow"
#include "testing.h"
#include "shared_data.h"

#include <espalier/espalier.h>

static const char settings[] = "model: {stem: {patch: 8}, width: 16, blocks: 2, mixing: none, layers: [moe],\n"
                               "        moe: {experts: 4, top_k: 2, hidden: 8}}\n"
                               "training: {epochs: 0.02, batch: 32}\n";

static void expect_ok(esp_status status) {
  if (status != ESP_OK) fail_msg("status %d: %s", status, esp_error_message());
}

static void expect_failure(esp_status got, esp_status expected, const char *words) {
  if (got != expected) fail_msg("status %d, expected %d: %s", got, expected, esp_error_message());
  if (!strstr(esp_error_message(), words)) fail_msg("the message lacks \"%s\": %s", words, esp_error_message());
}

static esp_status train(const char *folder, const char *override, esp_trained *trained) {
  esp_run_config config;
  esp_training_result result;
  expect_ok(esp_run_config_parse(&config, "settings", settings, &override, override ? 1 : 0));
  const esp_run run = {.config = &config, .dataset = data, .folder = folder, .quiet = true};
  return esp_run_train(&run, trained, &result);
}

static void test_what_a_run_leaves(void **state) {
  (void)state;
  char folder[TESTING_PATH_SIZE], path[ESP_PATH_SIZE];
  make_folder(folder);
  expect_ok(esp_folder_path(path, folder, "results.json"));
  expect_ok(esp_file_write(path, "of an older run"));
  esp_trained trained, again;
  expect_ok(train(folder, NULL, &trained));
  assert_false(esp_file_exists(path));
  expect_ok(esp_trained_load(&again, folder));
  assert_string_equal(again.info.digest, trained.info.digest);
  assert_string_equal(again.info.run_config, trained.info.run_config);
  assert_int_equal(again.info.history_count, 1);
  assert_string_equal(again.info.history[0].action, "pretrain");
  assert_string_equal(again.info.history[0].detail, "synthetic:narrow");
  assert_true(again.info.history[0].steps == 3); /* 0.02 epochs of 4750 images, 32 a batch */
  assert_int_equal(again.model->config.classes, 5);
  expect_ok(esp_folder_path(path, folder, "config.yaml"));
  assert_true(esp_file_exists(path));
  esp_trained_clear(&again);
  esp_trained_clear(&trained);
  esp_trained_clear(&trained);
  remove_folder(folder);
}

static void test_a_run_that_cannot_be_makes_no_folder(void **state) {
  (void)state;
  static const struct {
    const char *override;
    esp_status status;
    const char *words;
  } refusals[] = {{"training.freeze=nothing.*", ESP_ERR_CONFIG, "nothing.*"},
                  {"model.classes=7", ESP_ERR_MISMATCH, "classes"},
                  {"model.image_height=16", ESP_ERR_MISMATCH, "16"},
                  {"augmentation.cutout=99", ESP_ERR_CONFIG, "cutout"}};
  char folder[TESTING_PATH_SIZE], path[ESP_PATH_SIZE];
  make_folder(folder);
  expect_ok(esp_folder_path(path, folder, "run"));
  for (size_t i = 0; i < sizeof refusals / sizeof refusals[0]; i++) {
    esp_trained trained;
    expect_failure(train(path, refusals[i].override, &trained), refusals[i].status, refusals[i].words);
    assert_null(trained.model);
    assert_false(esp_file_exists(path));
  }
  remove_folder(folder);
}

static void test_methods_on_a_trained_model(void **state) {
  (void)state;
  char folder[TESTING_PATH_SIZE], path[ESP_PATH_SIZE], before[ESP_DIGEST_SIZE];
  esp_trained trained, made, loaded;
  make_folder(folder);
  expect_ok(train(folder, NULL, &trained));
  const esp_calibration images = {
      .dataset = data, .normalisation = &trained.info.normalisation, .images = 32, .seed = 3};
  static const char *const rows[][3] = {
      {"reap", "prune", "reap, ratio 0.5, calibrated on 32 images of synthetic:narrow (seed 3)"},
      {"random", "prune", "random, ratio 0.5"},
      {"m-smoe", "merge", "m-smoe, ratio 0.5, calibrated on 32 images of synthetic:narrow (seed 3)"},
      {"skip", "skip", "skip, calibrated on 32 images of synthetic:narrow (seed 3)"}};
  for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
    expect_ok(
        esp_method_apply(rows[i][0], &trained, &(esp_method_inputs){.calibration = &images, .ratio = 0.5}, &made));
    expect_ok(esp_folder_path(path, folder, "made.h5"));
    expect_ok(esp_trained_save(&made, path));
    expect_ok(esp_trained_load(&loaded, path));
    const esp_history_entry *entry = &loaded.info.history[1];
    assert_int_equal(loaded.info.history_count, 2);
    assert_string_equal(entry->action, rows[i][1]);
    assert_string_equal(entry->detail, rows[i][2]);
    assert_string_equal(entry->parent, trained.info.digest);
    assert_string_equal(loaded.info.run_config, trained.info.run_config);
    assert_string_not_equal(loaded.info.digest, trained.info.digest);
    esp_trained_clear(&loaded);
    esp_trained_clear(&made);
  }
  expect_ok(esp_model_digest(trained.model, before));
  assert_string_equal(before, trained.info.digest);
  assert_int_equal(trained.info.history_count, 1);
  esp_trained_clear(&trained);
  remove_folder(folder);
}

static void test_methods_that_cannot_be(void **state) {
  (void)state;
  char folder[TESTING_PATH_SIZE];
  esp_trained trained, made;
  make_folder(folder);
  expect_ok(train(folder, NULL, &trained));
  const esp_method_inputs inputs = {.ratio = 0.5};
  expect_failure(esp_method_apply("reep", &trained, &inputs, &made), ESP_ERR_USAGE, "reap");
  assert_null(made.model);
  expect_failure(esp_method_apply("reap", &trained, &inputs, &made), ESP_ERR_USAGE, "no data");
  assert_null(made.model);
  expect_failure(esp_method_apply("router-norm-change", &trained, &inputs, &made), ESP_ERR_USAGE, "no reference");
  esp_trained_clear(&trained);
  remove_folder(folder);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_what_a_run_leaves),
      cmocka_unit_test(test_a_run_that_cannot_be_makes_no_folder),
      cmocka_unit_test(test_methods_on_a_trained_model),
      cmocka_unit_test(test_methods_that_cannot_be),
  };
  return cmocka_run_group_tests_name("run", tests, open_data, close_data);
}
