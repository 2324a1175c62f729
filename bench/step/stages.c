#include "stages_internal.h"

#include <espalier/memory.h>
#include <espalier/random.h>

enum { SEED = 1, CLASSES = 10 };

const bench_model bench_reference_model = {"reference model", 192, 6, 3, 512, 8, 384, 128};
const bench_model bench_teaching_model = {"teaching model", 64, 2, 2, 176, 4, 128, 32};
const bench_model bench_quick_model = {"small model", 32, 2, 2, 32, 4, 16, 2};

esp_model_config bench_model_config(const bench_model *model) {
  esp_model_config c = esp_model_defaults;
  c.image_height = c.image_width = 32;
  c.image_channels = 3;
  c.classes = CLASSES;
  c.width = model->width;
  c.blocks = model->blocks;
  c.heads = model->heads;
  c.feed_forward.hidden = model->dense_hidden;
  c.moe.experts = model->experts;
  c.moe.hidden = model->expert_hidden;
  return c;
}

static esp_status make_batch(model_stage *s, int64_t images) {
  const int64_t numbers = images * s->config.image_height * s->config.image_width * s->config.image_channels;
  s->batch = (esp_batch){.count = images,
                         .images = esp_alloc((size_t)numbers, sizeof(float)),
                         .labels = esp_alloc((size_t)images, sizeof(int32_t)),
                         .mixed_labels = esp_alloc((size_t)images, sizeof(int32_t)),
                         .mix = esp_alloc((size_t)images, sizeof(float))};
  if (!s->batch.images || !s->batch.labels || !s->batch.mixed_labels || !s->batch.mix) return ESP_ERR_MEMORY;
  esp_random random = esp_random_stream(SEED, ESP_PURPOSE_TEST, 0);
  for (int64_t i = 0; i < numbers; i++) s->batch.images[i] = (float)esp_random_normal(&random);
  for (int64_t i = 0; i < images; i++) {
    s->batch.labels[i] = s->batch.mixed_labels[i] = (int32_t)esp_random_below(&random, CLASSES);
    s->batch.mix[i] = 1;
  }
  return ESP_OK;
}

esp_status model_stage_set(model_stage *stage, const bench_model *model, int64_t images, bool training) {
  *stage = (model_stage){.config = bench_model_config(model)};
  ESP_TRY(esp_model_create(&stage->model, &stage->config, NULL, SEED));
  if (training) ESP_TRY(esp_optimizer_create(&stage->optimizer, &esp_optimizer_defaults, stage->model->parameters));
  stage->tape = esp_tape_create();
  return stage->tape ? make_batch(stage, images) : ESP_ERR_MEMORY;
}

void model_stage_clear(model_stage *stage) {
  esp_optimizer_free(stage->optimizer);
  esp_model_free(stage->model);
  esp_tape_free(stage->tape);
  esp_free(stage->batch.images);
  esp_free(stage->batch.labels);
  esp_free(stage->batch.mixed_labels);
  esp_free(stage->batch.mix);
}

esp_status model_stage_train(void *context) {
  model_stage *s = context;
  esp_step_result result;
  const esp_pass pass = {.training = true, .seed = SEED, .step = s->step++, .observer = s->observer};
  return esp_training_step(s->model, s->optimizer, s->tape, &s->batch,
                           &(esp_step_options){.pass = pass, .learning_rate_multiplier = 1}, &result);
}

esp_status model_stage_train_bf16(void *context) {
  model_stage *s = context;
  esp_tape_set_precision(s->tape, ESP_BF16);
  const esp_status status = model_stage_train(s);
  esp_tape_set_precision(s->tape, ESP_FP32);
  return status;
}

esp_status model_stage_infer(void *context) {
  model_stage *s = context;
  esp_tape_reset(s->tape, false);
  esp_tensor *images = esp_batch_images(s->tape, &s->batch, &s->config);
  if (!images) return esp_tape_status(s->tape);
  const esp_model_output output = esp_model_forward(s->model, s->tape, images, &(esp_pass){.training = false});
  return output.logits ? ESP_OK : esp_tape_status(s->tape);
}
