#include "neurons_internal.h"
#include <espalier/memory.h>
#include <espalier/plan.h>

#include <stdio.h>
#include <string.h>

static const char *const mode_names[] = {"zero", "remove", "mask"};

const char *esp_prune_mode_name(esp_prune_mode mode) { return mode_names[mode]; }

esp_status esp_prune_mode_parse(esp_prune_mode *mode, const char *name) {
  int index;
  ESP_TRY(esp_find_name(&index, "mode", name, mode_names, sizeof mode_names / sizeof mode_names[0]));
  *mode = (esp_prune_mode)index;
  return ESP_OK;
}

esp_status esp_plan_create(esp_plan **plan, const esp_model *model, const char *criterion, esp_prune_mode mode) {
  *plan = NULL;
  const int count = esp_model_moe_count(model);
  if (count == 0)
    return esp_fail(ESP_ERR_MISMATCH, "the model has no mixture layers, so there are no experts to prune");
  esp_plan *made = esp_alloc(1, sizeof *made);
  if (!made) return ESP_ERR_MEMORY;
  made->layers = esp_alloc((size_t)count, sizeof *made->layers);
  const esp_status status = made->layers ? esp_model_digest(model, made->model_digest) : ESP_ERR_MEMORY;
  if (status != ESP_OK) {
    esp_plan_free(made);
    return status;
  }
  snprintf(made->criterion, sizeof made->criterion, "%s", criterion);
  made->mode = mode;
  made->layer_count = count;
  for (int i = 0; i < count; i++) {
    const esp_moe *moe = esp_model_moe(model, i);
    esp_layer_plan *layer = &made->layers[i];
    snprintf(layer->scope, sizeof layer->scope, "%s", moe->scope);
    layer->experts = moe->layout.experts;
    for (int e = 0; e < layer->experts; e++) layer->target[e] = moe->layout.index[e] < 0 ? moe->layout.index[e] : e;
  }
  *plan = made;
  return ESP_OK;
}

void esp_plan_free(esp_plan *plan) {
  if (!plan) return;
  for (int i = 0; plan->layers && i < plan->layer_count; i++) {
    esp_neuron_choice_clear(&plan->layers[i].neuron);
    esp_free(plan->layers[i].place);
  }
  esp_free(plan->layers);
  esp_free(plan);
}

int esp_plan_dropped(const esp_layer_plan *layer) {
  int dropped = 0;
  for (int e = 0; e < layer->experts; e++) dropped += layer->target[e] < 0;
  return dropped;
}

esp_status esp_plan_take_places(esp_layer_plan *layer, int neurons) {
  layer->place = esp_alloc((size_t)layer->experts * (size_t)neurons, sizeof *layer->place);
  if (!layer->place) return ESP_ERR_MEMORY;
  layer->neurons = neurons;
  for (int e = 0; e < layer->experts; e++)
    for (int n = 0; n < neurons; n++) layer->place[e * neurons + n] = n;
  return ESP_OK;
}

int esp_plan_groups(const esp_layer_plan *layer) {
  bool used[ESP_MAX_EXPERTS] = {false};
  int groups = 0;
  for (int e = 0; e < layer->experts; e++) {
    if (layer->target[e] < 0 || used[layer->target[e]]) continue;
    used[layer->target[e]] = true;
    groups++;
  }
  return groups;
}

void esp_plan_drop(esp_plan *plan, int layer, int expert) {
  static const int32_t targets[] = {ESP_TARGET_ZERO, ESP_TARGET_REMOVED, ESP_TARGET_MASKED};
  plan->layers[layer].target[expert] = targets[plan->mode];
}
