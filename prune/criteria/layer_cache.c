#include <espalier/layer_cache.h>
#include <espalier/memory.h>

#include <string.h>

typedef struct filling {
  esp_layer_cache *caches;
  int count;
  esp_status status;
} filling;

static esp_real *copy_of(const esp_tensor *tensor) {
  const int64_t count = esp_tensor_count(tensor);
  esp_real *copy = esp_alloc((size_t)count, sizeof *copy);
  if (copy) memcpy(copy, tensor->data, (size_t)count * sizeof *copy);
  return copy;
}

static esp_status keep(esp_layer_cache *cache, const esp_moe_record *record) {
  if (cache->count == cache->capacity)
    esp_panic("a pass of %d batches was expected, but there are more", cache->capacity);
  esp_layer_batch *batch = &cache->batches[cache->count];
  batch->tokens = record->routing->tokens;
  batch->images = record->images * record->layer->config.members;
  batch->input = copy_of(record->input);
  batch->logits = record->logits ? copy_of(record->logits) : NULL;
  cache->outputs[cache->count++] = copy_of(record->output);
  const bool whole = batch->input && (batch->logits || !record->logits) && cache->outputs[cache->count - 1];
  return whole ? ESP_OK : ESP_ERR_MEMORY;
}

static void watch(void *context, const esp_moe_record *record) {
  filling *f = context;
  for (int i = 0; f->status == ESP_OK && i < f->count; i++)
    if (f->caches[i].block == record->layer->block) f->status = keep(&f->caches[i], record);
}

static esp_status prepare(esp_layer_cache *cache, const esp_model *model, const esp_calibration *c) {
  const int64_t batch = esp_calibration_batch(c, &model->config);
  cache->count = 0;
  cache->capacity = (int)((esp_calibration_images(c) + batch - 1) / batch);
  cache->batches = esp_alloc((size_t)cache->capacity, sizeof *cache->batches);
  cache->outputs = esp_alloc((size_t)cache->capacity, sizeof *cache->outputs);
  return cache->batches && cache->outputs ? ESP_OK : ESP_ERR_MEMORY;
}

esp_status esp_layer_cache_fill(esp_layer_cache *caches, int count, const esp_model *model, const esp_calibration *c) {
  filling f = {caches, count, ESP_OK};
  const esp_observer observer = {watch, &f};
  for (int i = 0; i < count && f.status == ESP_OK; i++) f.status = prepare(&caches[i], model, c);
  if (f.status == ESP_OK) {
    const esp_status passed = esp_calibration_pass(model, c, &observer);
    if (passed != ESP_OK) f.status = passed;
  }
  for (int i = 0; i < count && f.status != ESP_OK; i++) esp_layer_cache_clear(&caches[i]);
  return f.status;
}

void esp_layer_cache_clear(esp_layer_cache *cache) {
  for (int i = 0; i < cache->count; i++) {
    esp_free(cache->batches[i].input);
    esp_free(cache->batches[i].logits);
    esp_free(cache->outputs[i]);
  }
  esp_free(cache->batches);
  esp_free(cache->outputs);
  *cache = (esp_layer_cache){.block = cache->block};
}

int64_t esp_layer_cache_tokens(const esp_model *model, const esp_calibration *c) {
  int rows, columns;
  esp_token_grid(&model->config, &rows, &columns);
  return esp_calibration_images(c) * rows * columns * model->config.moe.members;
}

int64_t esp_layer_cache_bytes(const esp_moe *moe, int64_t tokens) {
  return tokens * (2 * moe->bank.width + moe->layout.experts) * (int64_t)sizeof(esp_real);
}
