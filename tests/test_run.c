/* Whole runs by the library's own calls, as examples/train.c makes them: what the folder holds, what the history says,
 * and that a run which cannot be leaves nothing behind. */
#define SHARED_DATA "synthetic:narrow"
#include "testing.h"
#include "shared_data.h"

#include <espalier/espalier.h>
#include <jansson.h>

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

static json_t *results_of(const char *folder) {
  char path[ESP_PATH_SIZE];
  expect_ok(esp_folder_path(path, folder, "results.json"));
  json_t *results = json_load_file(path, 0, NULL);
  assert_non_null(results);
  return results;
}

static void expect_text(const json_t *object, const char *key, const char *expected) {
  assert_string_equal(json_string_value(json_object_get(object, key)), expected);
}

static void test_what_a_run_leaves(void **state) {
  (void)state;
  char folder[TESTING_PATH_SIZE], path[ESP_PATH_SIZE];
  make_folder(folder);
  expect_ok(esp_folder_path(path, folder, "results.json"));
  expect_ok(esp_file_write(path, "of an older run"));
  esp_trained trained, again;
  expect_ok(train(folder, NULL, &trained));
  json_t *results = results_of(folder);
  expect_text(results, "action", "pretrain");
  expect_text(results, "run", folder);
  expect_text(results, "digest", trained.info.digest);
  json_decref(results);
  expect_ok(esp_trained_load(&again, trained.path));
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

static esp_status finetune(const char *folder, const esp_run *how, esp_trained *tuned) {
  esp_training_result result;
  esp_run run = *how;
  run.folder = folder;
  run.quiet = true;
  return esp_run_train(&run, tuned, &result);
}

static void test_finetuning_goes_on_from_a_model(void **state) {
  (void)state;
  char folder[TESTING_PATH_SIZE], tuned_folder[ESP_PATH_SIZE], before[ESP_DIGEST_SIZE];
  make_folder(folder);
  esp_trained trained, tuned;
  expect_ok(train(folder, NULL, &trained));
  expect_ok(esp_folder_path(tuned_folder, folder, "tuned"));
  expect_ok(finetune(tuned_folder, &(esp_run){.from = &trained, .dataset = data, .teacher = &trained}, &tuned));
  assert_int_equal(tuned.info.history_count, 2);
  assert_string_equal(tuned.info.history[1].action, "finetune");
  assert_string_equal(tuned.info.history[1].parent, trained.info.digest);
  assert_string_not_equal(tuned.info.digest, trained.info.digest);
  json_t *results = results_of(tuned_folder);
  expect_text(results, "action", "finetune");
  expect_text(results, "digest", tuned.info.digest);
  expect_text(json_object_get(results, "distillation"), "teacher", trained.info.digest);
  json_decref(results);
  expect_ok(esp_model_digest(trained.model, before));
  assert_string_equal(before, trained.info.digest);
  esp_trained_clear(&tuned);
  esp_trained_clear(&trained);
  remove_folder(folder);
}

/* With nothing trained but the head, what is not the head stays: it came from the model. */
static void test_finetuning_makes_a_head_for_other_classes(void **state) {
  (void)state;
  char folder[TESTING_PATH_SIZE], tuned_folder[ESP_PATH_SIZE];
  make_folder(folder);
  esp_dataset *broad;
  esp_run_config config;
  esp_trained trained, tuned;
  expect_ok(esp_dataset_open(&broad, "synthetic"));
  expect_ok(train(folder, NULL, &trained));
  expect_ok(esp_folder_path(tuned_folder, folder, "tuned"));
  const char *const overrides[] = {"training.freeze=stem.*,blocks.*,norm.*", "training.epochs=0.01"};
  expect_ok(esp_run_config_parse(&config, "settings", trained.info.run_config, overrides, 2));
  const esp_run run = {.config = &config, .from = &trained, .dataset = broad};
  expect_ok(finetune(tuned_folder, &run, &tuned));
  assert_int_equal(tuned.model->config.classes, 20);
  const esp_parameter *was = esp_parameters_find(trained.model->parameters, "blocks.0.moe.router");
  const esp_parameter *is = esp_parameters_find(tuned.model->parameters, "blocks.0.moe.router");
  assert_memory_equal(was->tensor.data, is->tensor.data, (size_t)was->count * sizeof(esp_real));
  esp_trained_clear(&tuned);
  expect_failure(finetune(tuned_folder, &(esp_run){.from = &trained, .dataset = broad, .head = ESP_HEAD_KEPT}, &tuned),
                 ESP_ERR_MISMATCH, "classes");
  assert_null(tuned.model);
  esp_trained_clear(&trained);
  esp_dataset_close(broad);
  remove_folder(folder);
}

static void test_a_folder_that_another_run_has_is_left_alone(void **state) {
  (void)state;
  char folder[TESTING_PATH_SIZE], path[ESP_PATH_SIZE];
  make_folder(folder);
  esp_folder_lock *lock;
  esp_trained trained;
  expect_ok(esp_folder_path(path, folder, "results.json"));
  expect_ok(esp_file_write(path, "of the other run"));
  expect_ok(esp_folder_lock_take(&lock, folder, "another"));
  expect_failure(train(folder, NULL, &trained), ESP_ERR_BUSY, "another");
  assert_null(trained.model);
  assert_true(esp_file_exists(path));
  esp_folder_lock_free(lock);
  expect_ok(train(folder, NULL, &trained));
  expect_ok(esp_folder_lock_take(&lock, folder, "another"));
  esp_folder_lock_free(lock);
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
      cmocka_unit_test(test_finetuning_goes_on_from_a_model),
      cmocka_unit_test(test_finetuning_makes_a_head_for_other_classes),
      cmocka_unit_test(test_a_folder_that_another_run_has_is_left_alone),
      cmocka_unit_test(test_a_run_that_cannot_be_makes_no_folder),
      cmocka_unit_test(test_methods_on_a_trained_model),
      cmocka_unit_test(test_methods_that_cannot_be),
  };
  return cmocka_run_group_tests_name("run", tests, open_data, close_data);
}
