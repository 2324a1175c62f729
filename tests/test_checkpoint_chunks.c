/* label: medium */
/* Datasets of several chunks, the last of them partly empty, whose bytes are noise, or zeros, or in between: what is
 * read back through HDF5's own filters is what was written. */
#include "checkpoint_examples.h"

/* Experts' matrices are [experts, hidden, 256]. */
static void make_large(int experts, int hidden) {
  esp_model_config config = small_config();
  config.blocks = 1;
  config.layers_count = 1;
  memset(config.layers, 0, sizeof config.layers);
  config.layers[0] = ESP_LAYER_MOE;
  config.feed_forward.activation = ESP_ACTIVATION_RELU;
  config.feed_forward.bias = false;
  config.width = 256;
  config.moe.experts = experts;
  config.moe.hidden = hidden;
  assert_int_equal(esp_model_create(&model, &config, NULL, 7), ESP_OK);
  optimizer = make_optimizer(model, ESP_OPTIMIZER_ADAMW);
}

static int make_place(void **state) {
  (void)state;
  make_folder(folder);
  fill_info();
  return 0;
}

/* One half of the second moment is zero, the other has normal numbers; the first moment is all zero. */
static void fill_second_moment(void) {
  const char *name;
  fill_normal(esp_optimizer_state(optimizer, 1, &name), esp_parameters_size(model->parameters) / 2, 1);
}

static long size_of(const char *path) {
  struct stat found;
  assert_int_equal(stat(path, &found), 0);
  return (long)found.st_size;
}

static void check_round_trip(int level) {
  const char *name, *const path = save_to("large.h5", level);
  esp_model *loaded;
  esp_checkpoint_info found;
  assert_int_equal(esp_checkpoint_load(path, &loaded, &found), ESP_OK);
  assert_same_model(loaded);
  esp_optimizer *read = make_optimizer(loaded, ESP_OPTIMIZER_ADAMW);
  assert_int_equal(esp_checkpoint_load_optimizer(path, read), ESP_OK);
  for (int i = 0; i < 2; i++)
    assert_same_array("state", esp_optimizer_state(read, i, &name), esp_optimizer_state(optimizer, i, &name));
  esp_optimizer_free(read);
  esp_checkpoint_info_clear(&found);
  esp_model_free(loaded);
}

/* Chunks have at most 2^20 numbers: [3, 1024, 256] here, of which the second has an empty third. */
static void chunks_of_experts_come_back(void **state) {
  (void)state;
  make_large(5, 1024);
  fill_second_moment();
  check_round_trip(0);
  check_round_trip(1);
  check_round_trip(9);
}

/* [1, 2101, 256]: a part of one expert. */
static void chunks_of_an_expert_come_back(void **state) {
  (void)state;
  make_large(2, 4201);
  fill_second_moment();
  check_round_trip(1);
}

/* A seventh of what varies, and nearly all of what does not. Without compression the empty part of chunks is there,
 * too. */
static void level_1_saves_what_can_be_saved(void **state) {
  (void)state;
  make_large(5, 1024);
  fill_second_moment();
  const long plain = size_of(save_to("plain.h5", 0)), packed = size_of(save_to("packed.h5", 1));
  const long array = 4 * (long)esp_parameters_size(model->parameters);
  assert_true(plain >= 3 * array);
  assert_true(packed <= array * 3 / 2 * 6 / 7 + array / 50);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(chunks_of_experts_come_back, make_place, tear_down),
      cmocka_unit_test_setup_teardown(chunks_of_an_expert_come_back, make_place, tear_down),
      cmocka_unit_test_setup_teardown(level_1_saves_what_can_be_saved, make_place, tear_down)};
  return cmocka_run_group_tests_name("checkpoint chunks", tests, NULL, NULL);
}
