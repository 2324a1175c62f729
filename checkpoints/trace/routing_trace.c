/* A routing trace in memory: recording and replay. */
#include <espalier/memory.h>
#include <espalier/checkpoint.h>
#include <espalier/routing_trace.h>

#include <stdio.h>
#include <string.h>

static int64_t slots_of_image(const esp_routing_trace *trace, const esp_trace_layer *layer) {
  return trace->members * trace->tokens_per_image * layer->k;
}

static esp_status check_policy(const esp_moe *moe) {
  const esp_router_kind kind = moe->config.router.policy;
  if (kind == ESP_ROUTER_TOKEN_CHOICE || kind == ESP_ROUTER_HASH || kind == ESP_ROUTER_EVEN) return ESP_OK;
  return esp_fail(ESP_ERR_MISMATCH,
                  "%s is routed by policy %s, under which tokens do not have a fixed number of experts each; traces "
                  "are of token_choice, hash and even",
                  moe->scope, moe->policy->name);
}

static esp_status prepare(esp_routing_trace *trace, const esp_model *model) {
  const int count = esp_model_moe_count(model);
  if (count == 0) return esp_fail(ESP_ERR_MISMATCH, "the model has no mixture layer, so there is no routing to trace");
  int rows, columns;
  esp_token_grid(&model->config, &rows, &columns);
  trace->tokens_per_image = (int64_t)rows * columns;
  trace->members = model->config.moe.members;
  trace->layers = esp_alloc((size_t)count, sizeof *trace->layers);
  if (!trace->layers) return ESP_ERR_MEMORY;
  trace->layer_count = count;
  for (int i = 0; i < count; i++) {
    const esp_moe *moe = esp_model_moe(model, i);
    esp_trace_layer *layer = &trace->layers[i];
    ESP_TRY(check_policy(moe));
    *layer = (esp_trace_layer){.block = moe->block, .experts = moe->layout.experts, .k = moe->config.top_k};
    snprintf(layer->scope, sizeof layer->scope, "%s", moe->scope);
    const size_t slots = (size_t)(trace->images * slots_of_image(trace, layer));
    layer->choices = esp_alloc(slots, sizeof *layer->choices);
    layer->gates = esp_alloc(slots, sizeof *layer->gates);
    if (!layer->choices || !layer->gates) return ESP_ERR_MEMORY;
  }
  return ESP_OK;
}

esp_status esp_routing_trace_create(esp_routing_trace **trace, const esp_model *model, const esp_dataset_info *data,
                                    esp_split_name split, int64_t images) {
  *trace = NULL;
  esp_routing_trace *made = esp_alloc(1, sizeof *made);
  if (!made) return ESP_ERR_MEMORY;
  made->images = images;
  made->split_images = data->count[split];
  snprintf(made->data_name, sizeof made->data_name, "%s", data->name);
  snprintf(made->data_digest, sizeof made->data_digest, "%s", data->digest);
  snprintf(made->split, sizeof made->split, "%s", esp_split_text(split));
  esp_status status = esp_model_digest(model, made->model);
  if (status == ESP_OK) status = prepare(made, model);
  if (status != ESP_OK) {
    esp_routing_trace_free(made);
    return status;
  }
  *trace = made;
  return ESP_OK;
}

void esp_routing_trace_free(esp_routing_trace *trace) {
  if (!trace) return;
  for (int i = 0; i < trace->layer_count; i++) {
    esp_free(trace->layers[i].choices);
    esp_free(trace->layers[i].gates);
  }
  esp_free(trace->layers);
  esp_free(trace);
}

/* A batch holds its members one after another, a trace its images. */
static void append(esp_routing_trace *trace, esp_trace_layer *layer, const esp_moe_record *record) {
  const int64_t slots = trace->tokens_per_image * layer->k;
  for (int64_t i = 0; i < record->images && layer->images < trace->images; i++, layer->images++)
    for (int m = 0; m < trace->members; m++) {
      const int64_t from = (m * record->images + i) * slots, to = (layer->images * trace->members + m) * slots;
      memcpy(layer->choices + to, record->routing->choice + from, (size_t)slots * sizeof *layer->choices);
      for (int64_t s = 0; s < slots; s++) layer->gates[to + s] = (float)record->gates->data[from + s];
    }
}

static void observe(void *context, const esp_moe_record *record) {
  esp_routing_trace *trace = context;
  for (int i = 0; i < trace->layer_count; i++)
    if (trace->layers[i].block == record->layer->block) append(trace, &trace->layers[i], record);
}

esp_observer esp_routing_trace_observer(esp_routing_trace *trace) { return (esp_observer){observe, trace}; }

/* --- replay ---------------------------------------------------------------------------------------------- */

static esp_status check_layer(const esp_trace_layer *layer, const esp_moe *moe) {
  ESP_TRY(check_policy(moe));
  if (layer->block != moe->block || layer->experts != moe->layout.experts || layer->k != moe->config.top_k)
    return esp_fail(ESP_ERR_MISMATCH, "the trace has %s with top %d of %d experts, the model %s with top %d of %d",
                    layer->scope, layer->k, layer->experts, moe->scope, moe->config.top_k, moe->layout.experts);
  return ESP_OK;
}

/* Experts that the model can no longer route to. */
static esp_status check_choices(const esp_routing_trace *trace, const esp_trace_layer *layer, const esp_moe *moe) {
  const int64_t slots = trace->images * slots_of_image(trace, layer);
  for (int64_t i = 0; i < slots; i++)
    if (moe->layout.index[layer->choices[i]] == ESP_EXPERT_MASKED)
      return esp_fail(ESP_ERR_MISMATCH, "the trace routes to expert %d of %s, which is masked in this model",
                      (int)layer->choices[i], layer->scope);
  return ESP_OK;
}

esp_status esp_routing_trace_check(const esp_routing_trace *trace, const esp_model *model, const esp_dataset_info *data,
                                   esp_split_name split, int64_t images) {
  if (strcmp(trace->data_digest, data->digest) != 0 || strcmp(trace->split, esp_split_text(split)) != 0)
    return esp_fail(ESP_ERR_MISMATCH,
                    "the trace was recorded on the %s split of %s (%s), but this is the %s split of "
                    "%s (%s)",
                    trace->split, trace->data_name, trace->data_digest, esp_split_text(split), data->name,
                    data->digest);
  const int64_t count = data->count[split];
  if (trace->split_images != count)
    return esp_fail(ESP_ERR_MISMATCH,
                    "the trace was recorded when the %s split of %s had %lld images, but now it has %lld; hold out the "
                    "same share for validation",
                    trace->split, trace->data_name, (long long)trace->split_images, (long long)count);
  if (trace->images == count && images < count)
    return esp_fail(
        ESP_ERR_MISMATCH,
        "the trace has all %lld images in their own order, but %lld of them are to be evaluated, which come "
        "in another one; evaluate all",
        (long long)trace->images, (long long)images);
  if (images > trace->images)
    return esp_fail(ESP_ERR_MISMATCH, "the trace has %lld images, but %lld are to be evaluated; evaluate %lld",
                    (long long)trace->images, (long long)images, (long long)trace->images);
  int rows, columns;
  esp_token_grid(&model->config, &rows, &columns);
  if (trace->tokens_per_image != (int64_t)rows * columns || trace->members != model->config.moe.members ||
      trace->layer_count != esp_model_moe_count(model))
    return esp_fail(ESP_ERR_MISMATCH,
                    "the trace has %d mixture layers, %lld tokens an image and %d members; the model %d, %d and %d",
                    trace->layer_count, (long long)trace->tokens_per_image, trace->members, esp_model_moe_count(model),
                    rows * columns, model->config.moe.members);
  for (int i = 0; i < trace->layer_count; i++) {
    ESP_TRY(check_layer(&trace->layers[i], esp_model_moe(model, i)));
    ESP_TRY(check_choices(trace, &trace->layers[i], esp_model_moe(model, i)));
  }
  return ESP_OK;
}

const int32_t *const *esp_routing_trace_choices(const esp_routing_trace *trace, esp_tape *tape, int64_t first,
                                                int64_t count) {
  const int32_t **blocks = esp_tape_take(tape, ESP_MAX_BLOCKS * sizeof *blocks);
  if (!blocks) return NULL;
  for (int b = 0; b < ESP_MAX_BLOCKS; b++) blocks[b] = NULL;
  for (int l = 0; l < trace->layer_count; l++) {
    const esp_trace_layer *layer = &trace->layers[l];
    const int64_t slots = trace->tokens_per_image * layer->k;
    int32_t *choices = esp_tape_take(tape, (size_t)(count * trace->members * slots) * sizeof *choices);
    if (!choices) return NULL;
    for (int m = 0; m < trace->members; m++)
      for (int64_t i = 0; i < count; i++)
        memcpy(choices + (m * count + i) * slots, layer->choices + ((first + i) * trace->members + m) * slots,
               (size_t)slots * sizeof *choices);
    blocks[layer->block] = choices;
  }
  return (const int32_t *const *)blocks;
}
