#include <espalier/memory.h>
#include <espalier/router_change.h>

#include <math.h>
#include <string.h>

void esp_router_changes_free(esp_router_changes *changes) {
  if (!changes) return;
  for (int i = 0; changes->layers && i < changes->layer_count; i++) esp_free(changes->layers[i].experts);
  esp_free(changes->layers);
  esp_free(changes);
}

static esp_status check_blocks(const esp_model *model, const esp_model *reference) {
  const int blocks = model->config.blocks, reference_blocks = reference->config.blocks;
  if (blocks != reference_blocks)
    return esp_fail(ESP_ERR_MISMATCH,
                    "the model has %d blocks, but the reference has %d; give the checkpoint that the model "
                    "was finetuned from",
                    blocks, reference_blocks);
  for (int i = 0; i < blocks; i++) {
    const esp_block *block = &model->blocks[i], *other = &reference->blocks[i];
    if ((block->kind == ESP_LAYER_DENSE) != (other->kind == ESP_LAYER_DENSE))
      return esp_fail(ESP_ERR_MISMATCH,
                      "the model has %s where the reference has %s, so their routers cannot be compared; give "
                      "the checkpoint that the model was finetuned from",
                      block->layer_scope, other->layer_scope);
  }
  const int width = model->config.width, reference_width = reference->config.width;
  if (width == reference_width) return ESP_OK;
  return esp_fail(ESP_ERR_MISMATCH,
                  "the model's routing vectors have %d elements, but the reference's have %d (model.width); "
                  "give the checkpoint that the model was finetuned from",
                  width, reference_width);
}

/* The row of the reference's router that belongs to an expert of the unpruned layer; -1 if there is none. */
static int find_original(const esp_expert_layout *layout, int32_t original) {
  for (int e = 0; e < layout->experts; e++)
    if (layout->original_ids[e] == original) return e;
  return -1;
}

static double distance(const esp_real *a, const esp_real *b, int64_t count) {
  double squares = 0;
  for (int64_t j = 0; j < count; j++) {
    const double difference = (double)a[j] - (double)b[j];
    squares += difference * difference;
  }
  return sqrt(squares);
}

static esp_router_change compare_rows(const esp_moe *moe, int expert, const esp_moe *reference, int row) {
  const int64_t size = esp_router_vector_size(moe);
  const double norm = esp_router_norm(moe, expert), before = esp_router_norm(reference, row);
  return (esp_router_change){norm, before, norm - before, fabs(norm - before),
                             distance(moe->router->data + expert * size, reference->router->data + row * size, size)};
}

static esp_status check_routers(const esp_moe *moe, const esp_moe *reference) {
  const esp_moe *without = !moe->router ? moe : !reference->router ? reference : NULL;
  if (without)
    return esp_fail(ESP_ERR_MISMATCH,
                    "%s%s has router policy %s, which has no trained weights, so no change of them can be measured",
                    without == reference ? "the reference's " : "", without->scope, without->policy->name);
  const int64_t size = esp_router_vector_size(moe), reference_size = esp_router_vector_size(reference);
  if (size == reference_size) return ESP_OK;
  return esp_fail(ESP_ERR_MISMATCH,
                  "%s has %lld router weights an expert (policy %s), but the reference's has %lld (policy %s), so they "
                  "cannot be compared; give the checkpoint that the model was finetuned from",
                  moe->scope, (long long)size, moe->policy->name, (long long)reference_size, reference->policy->name);
}

static esp_status compare_layer(esp_layer_router_change *layer, const esp_moe *moe, const esp_moe *reference) {
  ESP_TRY(check_routers(moe, reference));
  layer->block = moe->block;
  layer->expert_count = moe->layout.experts;
  layer->experts = esp_alloc((size_t)moe->layout.experts, sizeof *layer->experts);
  if (!layer->experts) return ESP_ERR_MEMORY;
  for (int e = 0; e < moe->layout.experts; e++) {
    const int32_t original = moe->layout.original_ids[e];
    const int row = find_original(&reference->layout, original);
    if (row < 0)
      return esp_fail(ESP_ERR_MISMATCH,
                      "expert %d of %s is expert %d of the unpruned layer, which is not among the %d of the "
                      "reference's %s; give the checkpoint that the model was finetuned from",
                      e, moe->scope, original, reference->layout.experts, reference->scope);
    layer->experts[e] = compare_rows(moe, e, reference, row);
  }
  return ESP_OK;
}

static esp_status compare_all(esp_router_changes *changes, const esp_model *model, const esp_model *reference) {
  ESP_TRY(check_blocks(model, reference));
  changes->layer_count = esp_model_moe_count(model);
  if (changes->layer_count == 0)
    return esp_fail(ESP_ERR_MISMATCH, "the model has no mixture layer, so there are no routers to compare");
  changes->layers = esp_alloc((size_t)changes->layer_count, sizeof *changes->layers);
  if (!changes->layers) return ESP_ERR_MEMORY;
  for (int i = 0; i < changes->layer_count; i++) {
    const esp_moe *moe = esp_model_moe(model, i);
    memcpy(changes->layers[i].scope, model->blocks[moe->block].layer_scope, sizeof changes->layers[i].scope);
    ESP_TRY(compare_layer(&changes->layers[i], moe, esp_model_moe(reference, i)));
  }
  return ESP_OK;
}

esp_status esp_router_changes_create(esp_router_changes **changes, const esp_model *model, const esp_model *reference) {
  *changes = NULL;
  esp_router_changes *made = esp_alloc(1, sizeof *made);
  if (!made) return ESP_ERR_MEMORY;
  const esp_status status = compare_all(made, model, reference);
  if (status != ESP_OK) {
    esp_router_changes_free(made);
    return status;
  }
  *changes = made;
  return ESP_OK;
}
