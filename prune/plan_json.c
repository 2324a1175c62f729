/* Plans as JSON, kept beside the models they made. */
#include "neurons_internal.h"
#include <espalier/input_file.h>
#include <espalier/memory.h>

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_BYTES = 1 << 26 };

/* --- writing ------------------------------------------------------------------------------------------------- */

/* Where each neuron of an expert goes: "3 0 1 2". A text, because a line for each number would bury all else. */
static json_t *places_json(const int32_t *place, int neurons) {
  char *text = esp_alloc((size_t)neurons * 12 + 1, 1), *end = text;
  for (int n = 0; text && n < neurons; n++) end += sprintf(end, n ? " %d" : "%d", (int)place[n]);
  json_t *json = text ? json_string(text) : NULL;
  esp_free(text);
  return json;
}

static json_t *expert_json(const esp_layer_plan *layer, int e) {
  json_t *json = json_pack("{s:i, s:i, s:f}", "expert", e, "target", (int)layer->target[e], "score", layer->score[e]);
  if (layer->averaged) json_object_set_new(json, "weight", json_real(layer->weight[e]));
  if (layer->place)
    json_object_set_new(json, "places", places_json(layer->place + (int64_t)e * layer->neurons, layer->neurons));
  return json;
}

static json_t *layer_json(const esp_layer_plan *layer) {
  json_t *experts = json_array();
  for (int e = 0; e < layer->experts; e++) json_array_append_new(experts, expert_json(layer, e));
  json_t *json =
      json_pack("{s:s, s:i, s:i, s:i, s:b, s:o}", "name", layer->scope, "dropped", esp_plan_dropped(layer), "unrouted",
                layer->unrouted, "groups", esp_plan_groups(layer), "averaged", layer->averaged, "experts", experts);
  if (layer->place) json_object_set_new(json, "placed_neurons", json_integer(layer->neurons));
  if (layer->loss > 0) {
    json_object_set_new(json, "loss", json_real(layer->loss));
    json_object_set_new(json, "greedy", json_boolean(layer->greedy));
  }
  if (layer->neuron.stored) json_object_set_new(json, "neurons", esp_neuron_choice_json(layer));
  return json;
}

static json_t *data_json(const esp_plan_data *data) {
  if (!*data->name) return json_null();
  return json_pack("{s:s, s:s, s:s, s:I, s:I}", "name", data->name, "digest", data->digest, "split", data->split,
                   "images", (json_int_t)data->images, "seed", (json_int_t)data->seed);
}

esp_status esp_plan_json(char **text, const esp_plan *plan) {
  json_t *layers = json_array();
  for (int i = 0; i < plan->layer_count; i++) json_array_append_new(layers, layer_json(&plan->layers[i]));
  json_t *root = json_pack("{s:s, s:s, s:s, s:s, s:I, s:o, s:o}", "model_digest", plan->model_digest, "criterion",
                           plan->criterion, "formula", plan->formula, "mode", esp_prune_mode_name(plan->mode), "seed",
                           (json_int_t)plan->seed, "calibration", data_json(&plan->data), "layers", layers);
  char *dumped = root ? json_dumps(root, JSON_INDENT(2)) : NULL;
  json_decref(root);
  *text = dumped ? esp_copy_text(dumped) : NULL;
  free(dumped);
  return *text ? ESP_OK : ESP_ERR_MEMORY;
}

/* More than any file could place. */
enum { MOST_NEURONS = 1 << 20 };

/* --- reading ------------------------------------------------------------------------------------------------- */

static void copy_string(char *target, size_t size, const json_t *object, const char *key) {
  const char *text = json_string_value(json_object_get(object, key));
  snprintf(target, size, "%s", text ? text : "");
}

static void read_data(esp_plan_data *data, const json_t *json) {
  copy_string(data->name, sizeof data->name, json, "name");
  copy_string(data->digest, sizeof data->digest, json, "digest");
  copy_string(data->split, sizeof data->split, json, "split");
  data->images = json_integer_value(json_object_get(json, "images"));
  data->seed = (uint64_t)json_integer_value(json_object_get(json, "seed"));
}

static bool read_places(esp_layer_plan *layer, int expert, const json_t *json) {
  const char *text = json_string_value(json_object_get(json, "places"));
  char *end;
  for (int n = 0; n < layer->neurons; n++, text = end) {
    const long place = text ? strtol(text, &end, 10) : -1;
    if (!text || end == text || place < 0 || place >= layer->neurons) return false;
    layer->place[(int64_t)expert * layer->neurons + n] = (int32_t)place;
  }
  return true;
}

static bool read_expert(esp_layer_plan *layer, int expert, const json_t *json) {
  const json_t *target = json_object_get(json, "target");
  const json_int_t value = json_integer_value(target);
  if (!json_is_integer(target) || value < ESP_TARGET_REMOVED || value >= layer->experts) return false;
  layer->target[expert] = (int32_t)value;
  layer->score[expert] = json_number_value(json_object_get(json, "score"));
  layer->weight[expert] = json_number_value(json_object_get(json, "weight"));
  if (layer->place && !read_places(layer, expert, json)) return false;
  return json_integer_value(json_object_get(json, "expert")) == expert;
}

static bool read_layer(esp_layer_plan *layer, const json_t *json) {
  const json_t *experts = json_object_get(json, "experts");
  const size_t count = json_array_size(experts);
  if (count < 1 || count > ESP_MAX_EXPERTS || !json_is_string(json_object_get(json, "name"))) return false;
  copy_string(layer->scope, sizeof layer->scope, json, "name");
  layer->experts = (int)count;
  layer->unrouted = (int)json_integer_value(json_object_get(json, "unrouted"));
  layer->loss = json_number_value(json_object_get(json, "loss"));
  layer->greedy = json_is_true(json_object_get(json, "greedy"));
  layer->averaged = json_is_true(json_object_get(json, "averaged"));
  const json_int_t placed = json_integer_value(json_object_get(json, "placed_neurons"));
  if (placed < 0 || placed > MOST_NEURONS) return false;
  if (placed > 0 && esp_plan_take_places(layer, (int)placed) != ESP_OK) return false;
  for (int e = 0; e < layer->experts; e++)
    if (!read_expert(layer, e, json_array_get(experts, (size_t)e))) return false;
  const json_t *neurons = json_object_get(json, "neurons");
  return !neurons || esp_neuron_choice_read(&layer->neuron, neurons) == ESP_OK;
}

static bool read_plan(esp_plan *plan, const json_t *root) {
  const char *mode = json_string_value(json_object_get(root, "mode"));
  const json_t *layers = json_object_get(root, "layers");
  if (!mode || esp_prune_mode_parse(&plan->mode, mode) != ESP_OK || !json_is_array(layers)) return false;
  if (!json_is_string(json_object_get(root, "model_digest")) || json_array_size(layers) < 1 ||
      json_array_size(layers) > ESP_MAX_BLOCKS)
    return false;
  copy_string(plan->model_digest, sizeof plan->model_digest, root, "model_digest");
  copy_string(plan->criterion, sizeof plan->criterion, root, "criterion");
  copy_string(plan->formula, sizeof plan->formula, root, "formula");
  plan->seed = (uint64_t)json_integer_value(json_object_get(root, "seed"));
  read_data(&plan->data, json_object_get(root, "calibration"));
  plan->layer_count = (int)json_array_size(layers);
  plan->layers = esp_alloc((size_t)plan->layer_count, sizeof *plan->layers);
  for (int i = 0; plan->layers && i < plan->layer_count; i++)
    if (!read_layer(&plan->layers[i], json_array_get(layers, (size_t)i))) return false;
  return plan->layers != NULL;
}

esp_status esp_plan_load(esp_plan **plan, const char *path) {
  *plan = NULL;
  char *text;
  size_t length;
  json_error_t error = {.line = 0};
  ESP_TRY(esp_input_read(&text, &length, path, "the plan.json of a pruned run", MOST_BYTES));
  json_t *root = json_loadb(text, length, JSON_REJECT_DUPLICATES, &error);
  esp_free(text);
  if (!root && json_error_code(&error) == json_error_out_of_memory)
    return esp_fail(ESP_ERR_MEMORY, "%s cannot be read: out of memory", path);
  if (!root) return esp_fail(ESP_ERR_FORMAT, "%s is no plan: line %d: %s", path, error.line, error.text);
  esp_plan *made = esp_alloc(1, sizeof *made);
  const bool good = made && read_plan(made, root);
  json_decref(root);
  if (!made) return ESP_ERR_MEMORY;
  if (good) {
    *plan = made;
    return ESP_OK;
  }
  esp_plan_free(made);
  return esp_fail(ESP_ERR_FORMAT,
                  "%s is no plan: it needs model_digest, mode, and layers with a name and, for every "
                  "expert in turn, its number and target; take the plan.json of a pruned run",
                  path);
}
