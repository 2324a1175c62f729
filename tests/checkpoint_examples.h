/* For the tests of checkpoints: a small pruned model with all that a checkpoint holds, and comparisons with
 * it. */
#ifndef ESPALIER_CHECKPOINT_EXAMPLES_H
#define ESPALIER_CHECKPOINT_EXAMPLES_H

#include "testing.h"

#include <espalier/checkpoint.h>
#include <espalier/memory.h>

#include <hdf5.h>

/* ---- a small pruned model with all that a checkpoint holds ---- */

static char folder[TESTING_PATH_SIZE];
static esp_model *model;
static esp_optimizer *optimizer;
static esp_checkpoint_info info;

static inline const char *in_folder(const char *name) {
  static char paths[4][TESTING_PATH_SIZE + 64];
  static int next;
  char *const path = paths[next = (next + 1) % 4];
  snprintf(path, sizeof paths[0], "%s/%s", folder, name);
  return path;
}

static inline esp_model_config small_config(void) {
  esp_model_config c = esp_model_defaults;
  c.image_height = c.image_width = 8;
  c.image_channels = 1;
  c.classes = 3;
  c.width = 8;
  c.heads = 2;
  c.blocks = 4;
  c.feed_forward = (esp_feed_forward_config){ESP_ACTIVATION_SWIGLU, true, 10};
  c.layers_count = 4;
  memcpy(c.layers, (esp_layer_kind[]){ESP_LAYER_DENSE, ESP_LAYER_MOE, ESP_LAYER_MONE, ESP_LAYER_MOE},
         4 * sizeof c.layers[0]);
  c.moe.experts = 4;
  c.moe.hidden = 6;
  c.moe.shared_hidden = 4;
  c.moe.neurons_kept = 1.0 / 3;
  return c;
}

/* Uneven layers: two experts zeroed and two stored in another order; one row removed, and experts of different
 * widths; two merged and one masked, and all narrower than the config says. */
static const esp_expert_layout pruned[] = {
    {0},
    {.experts = 4, .stored = 2, .index = {1, ESP_EXPERT_ZERO, 0, ESP_EXPERT_ZERO}, .original_ids = {0, 1, 2, 3}},
    {.experts = 3, .stored = 3, .index = {0, 1, 2}, .original_ids = {0, 2, 3}, .widths = {6, 2, 5}},
    {.experts = 4, .stored = 2, .index = {0, ESP_EXPERT_MASKED, 1, 1}, .original_ids = {0, 1, 2, 3}, .widths = {3, 3}}};

static inline esp_optimizer *make_optimizer(const esp_model *of, esp_optimizer_kind kind) {
  esp_optimizer_config config = esp_optimizer_defaults;
  config.kind = kind;
  esp_optimizer *made;
  assert_int_equal(esp_optimizer_create(&made, &config, of->parameters), ESP_OK);
  return made;
}

static inline void fill_info(void) {
  info = (esp_checkpoint_info){.data_name = "synthetic:narrow",
                               .data_digest = "crc32:01234567",
                               .normalisation = {{0.5f, 0.25f}, {0.125f, 1}},
                               .progress = {40, 100, 41, UINT64_MAX - 1, 0.1 + 0.2, 30},
                               .history_count = 2};
  info.history[0] = (esp_history_entry){"pretrain", "synthetic, 20 classes: é", "", "", "", 500};
  info.history[1] = (esp_history_entry){"finetune", "", "0123456789abcdef", "fedcba9876543210", "blocks.*.router", 40};
  info.run_config = esp_copy_text("training:\n  epochs: 3\n");
}

static inline int set_up(void **state) {
  (void)state;
  make_folder(folder);
  const esp_model_config config = small_config();
  assert_int_equal(esp_model_create(&model, &config, pruned, 7), ESP_OK);
  optimizer = make_optimizer(model, ESP_OPTIMIZER_ADAMW);
  const char *name;
  for (int i = 0; i < 2; i++)
    fill_normal(esp_optimizer_state(optimizer, i, &name), esp_parameters_size(model->parameters), (uint64_t)i);
  esp_optimizer_set_steps(optimizer, 40);
  fill_info();
  return 0;
}

static inline int tear_down(void **state) {
  (void)state;
  esp_alloc_fail_after(-1);
  esp_checkpoint_info_clear(&info);
  esp_optimizer_free(optimizer);
  esp_model_free(model);
  remove_folder(folder);
  return 0;
}

static inline const char *save_to(const char *name, int level) {
  const char *const path = in_folder(name);
  if (esp_checkpoint_save(path, model, optimizer, &info, level) != ESP_OK) fail_msg("%s", esp_error_message());
  return path;
}

/* ---- comparisons ---- */

static inline void assert_same_array(const char *what, const esp_real *a, const esp_real *b) {
  for (int64_t i = 0; i < esp_parameters_count(model->parameters); i++) {
    const esp_parameter *p = esp_parameters_at(model->parameters, i);
    if (memcmp(a + p->offset, b + p->offset, (size_t)p->count * sizeof *a) != 0)
      fail_msg("%s: %s", what, p->tensor.name);
  }
}

static inline void assert_same_model(const esp_model *loaded) {
  assert_memory_equal(&loaded->config, &model->config, sizeof model->config);
  assert_int_equal(esp_parameters_count(loaded->parameters), esp_parameters_count(model->parameters));
  assert_same_array("values", esp_parameters_values(loaded->parameters), esp_parameters_values(model->parameters));
  for (int i = 0; i < esp_model_moe_count(model); i++) {
    const esp_expert_layout *a = &esp_model_moe(loaded, i)->layout, *b = &esp_model_moe(model, i)->layout;
    assert_memory_equal(a, b, sizeof *a);
  }
}

static inline void assert_same_info(const esp_checkpoint_info *loaded) {
  assert_string_equal(loaded->data_name, info.data_name);
  assert_string_equal(loaded->data_digest, info.data_digest);
  assert_memory_equal(&loaded->normalisation, &info.normalisation, sizeof info.normalisation);
  assert_memory_equal(&loaded->progress, &info.progress, sizeof info.progress);
  assert_int_equal(loaded->history_count, info.history_count);
  for (int i = 0; i < info.history_count; i++) {
    const esp_history_entry *a = &loaded->history[i], *b = &info.history[i];
    assert_string_equal(a->action, b->action);
    assert_string_equal(a->detail, b->detail);
    assert_string_equal(a->parent, b->parent);
    assert_string_equal(a->reference, b->reference);
    assert_string_equal(a->frozen, b->frozen);
    assert_int_equal(a->steps, b->steps);
  }
  assert_string_equal(loaded->digest, info.digest);
  assert_string_equal(loaded->run_config, info.run_config);
}

static inline void assert_same_optimizer(const esp_optimizer *loaded) {
  const char *name;
  assert_int_equal(esp_optimizer_steps(loaded), esp_optimizer_steps(optimizer));
  for (int i = 0; i < 2; i++)
    assert_same_array("state", esp_optimizer_state(loaded, i, &name), esp_optimizer_state(optimizer, i, &name));
}

/* ---- files ---- */

static inline void put_file(const char *path, const void *bytes, size_t size) {
  FILE *const file = fopen(path, "wb");
  assert_non_null(file);
  assert_int_equal(fwrite(bytes, 1, size, file), size);
  assert_int_equal(fclose(file), 0);
}

typedef struct bytes {
  unsigned char *data;
  size_t size;
} bytes;

static inline bytes get_file(const char *path) {
  struct stat found;
  assert_int_equal(stat(path, &found), 0);
  bytes all = {esp_alloc((size_t)found.st_size, 1), (size_t)found.st_size};
  FILE *const file = fopen(path, "rb");
  assert_int_equal(fread(all.data, 1, all.size, file), all.size);
  fclose(file);
  return all;
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

#endif
