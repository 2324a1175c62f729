/* Models that suites run, ready to step. */
#ifndef ESPALIER_STAGES_INTERNAL_H
#define ESPALIER_STAGES_INTERNAL_H

#include <espalier/trainer.h>

/* Images of 32 x 32 x 3 in patches of 4 x 4, 10 classes; the rest as in esp_model_defaults. */
typedef struct bench_model {
  const char *name;
  int width, blocks, heads, dense_hidden, experts, expert_hidden;
  int batch; /* of its training */
} bench_model;

/* The model of the defaults: width 192, 6 blocks, 3 heads, dense 512, every second block 8 experts of 384, top-2. */
extern const bench_model bench_reference_model;
/* What a lesson trains: width 64, 2 blocks, the second a mixture of 4 experts; hidden sizes in proportion, 176 and
 * 128. */
extern const bench_model bench_teaching_model;
/* Serves suites that only have to work. */
extern const bench_model bench_quick_model;

esp_model_config bench_model_config(const bench_model *model);

/* A model, perhaps with its optimiser, and one batch of random images made once. */
typedef struct model_stage {
  esp_model_config config;
  esp_model *model;
  esp_optimizer *optimizer;
  esp_tape *tape;
  esp_batch batch;
  const esp_observer *observer; /* of the steps; NULL: none */
  uint64_t step;
} model_stage;

/* Makes an optimiser too, with `training`. */
esp_status model_stage_set(model_stage *stage, const bench_model *model, int64_t images, bool training) ESP_MUST_CHECK;
void model_stage_clear(model_stage *stage); /* of a stage that is all zero, too */

/* These are for esp_bench_case; context: a model_stage. A training step with AdamW, the same with its heavy products in
 * bf16; a forward pass that records nothing. */
esp_status model_stage_train(void *context);
esp_status model_stage_train_bf16(void *context);
esp_status model_stage_infer(void *context);

#endif
