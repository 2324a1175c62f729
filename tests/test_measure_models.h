/* What the tests of measure/ share: a small model and its pruned relatives, images, passes over them. */
#ifndef ESPALIER_TEST_MEASURE_MODELS_H
#define ESPALIER_TEST_MEASURE_MODELS_H

#include "testing.h"

#include <espalier/measure.h>
#include <espalier/memory.h>

/* Three blocks, dense, moe and mone, of width 8, with 4 experts of 20 neurons and 2 choices. */
static inline esp_model_config small_config(void) {
  esp_model_config config = esp_model_defaults;
  config.image_height = config.image_width = 8;
  config.image_channels = 3;
  config.classes = 5;
  config.stem.patch = 2;
  config.width = 8;
  config.blocks = 3;
  config.heads = 2;
  config.feed_forward.hidden = 24;
  config.layers[0] = ESP_LAYER_DENSE;
  config.layers[1] = ESP_LAYER_MOE;
  config.layers[2] = ESP_LAYER_MONE;
  config.layers_count = 3;
  config.moe.experts = 4;
  config.moe.top_k = 2;
  config.moe.hidden = 20;
  config.moe.shared_hidden = 6;
  config.moe.neurons_kept = 0.25;
  return config;
}

static inline esp_model *make(const esp_model_config *config, const esp_expert_layout *layouts, uint64_t seed) {
  esp_model *model;
  if (esp_model_create(&model, config, layouts, seed) != ESP_OK) fail_msg("%s", esp_error_message());
  return model;
}

/* Layouts of all blocks: expert `first` and `second` of 4 are removed that way. */
static inline esp_expert_layout *pruned_layouts(int32_t how, int first, int second) {
  static esp_expert_layout layouts[3];
  for (int i = 0; i < 3; i++) {
    esp_expert_layout_full(&layouts[i], 4);
    layouts[i].stored = 0;
    for (int e = 0; e < 4; e++) layouts[i].index[e] = e == first || e == second ? how : layouts[i].stored++;
  }
  return layouts;
}

enum { IMAGES = 6, PIXELS = 8 * 8 * 3 };

static esp_real pixels[IMAGES * PIXELS];

/* A forward pass over images [begin, end) of `pixels`. */
static inline void look(const esp_model *model, esp_tape *tape, const esp_observer *observer, int begin, int end,
                        bool record) {
  esp_tape_reset(tape, record);
  esp_tensor *images = esp_tape_take(tape, sizeof *images); /* the recorded ops still look at it */
  *images = (esp_tensor){.data = pixels + begin * PIXELS, .rank = 4, .shape = {end - begin, 8, 8, 3}};
  assert_non_null(esp_model_forward(model, tape, images, &(esp_pass){.observer = observer}).logits);
}

static inline void assert_near(double actual, double expected) {
  if (fabs(actual - expected) > 1e-9 * (1 + fabs(expected))) fail_msg("%.12g should be %.12g", actual, expected);
}

/* Statistics over the images named by pairs of begin and end, each a batch of its own. */
static inline esp_statistics *pass_over(const esp_model *model, const int *ranges, int count) {
  esp_statistics *statistics;
  assert_int_equal(esp_statistics_create(&statistics, model, 1), ESP_OK);
  const esp_observer observer = esp_statistics_observer(statistics);
  esp_tape *tape = esp_tape_create();
  for (int i = 0; i < count; i++) look(model, tape, &observer, ranges[2 * i], ranges[2 * i + 1], false);
  esp_tape_free(tape);
  return statistics;
}

#endif
