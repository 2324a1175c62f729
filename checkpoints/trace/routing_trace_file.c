/* A routing trace as HDF5: see FORMAT.md. */
#include "checkpoint_parts_internal.h"
#include <espalier/memory.h>
#include <espalier/routing_trace.h>

#include <stdio.h>
#include <string.h>

enum { LEVEL = 1, SPARE_BYTES = 1 << 20 };

/* choices or gates of a layer: [images, members, tokens, k]. */
static esp_h5_array slots_array(const esp_routing_trace *trace, const esp_trace_layer *layer, hid_t stored,
                                hid_t type) {
  return (esp_h5_array){
      .stored = stored,
      .type = type,
      .rank = 4,
      .shape = {(hsize_t)trace->images, (hsize_t)trace->members, (hsize_t)trace->tokens_per_image, (hsize_t)layer->k}};
}

static esp_h5_array choices_array(const esp_routing_trace *trace, const esp_trace_layer *layer) {
  return slots_array(trace, layer, H5T_STD_I32LE, H5T_NATIVE_INT32);
}

static esp_h5_array gates_array(const esp_routing_trace *trace, const esp_trace_layer *layer) {
  return slots_array(trace, layer, H5T_IEEE_F32LE, H5T_NATIVE_FLOAT);
}

/* ---- writing ---- */

static esp_status write_layer(hid_t group, const esp_routing_trace *trace, const esp_trace_layer *layer) {
  const esp_h5_array choices = choices_array(trace, layer), gates = gates_array(trace, layer);
  ESP_TRY(esp_h5_set_number(group, "block", layer->block));
  ESP_TRY(esp_h5_set_number(group, "experts", layer->experts));
  ESP_TRY(esp_h5_set_number(group, "k", layer->k));
  ESP_TRY(esp_h5_write(group, "choices", &choices, layer->choices, LEVEL));
  return esp_h5_write(group, "gates", &gates, layer->gates, LEVEL);
}

static esp_status write_layers(hid_t layers, const esp_routing_trace *trace) {
  for (int i = 0; i < trace->layer_count; i++) {
    esp_h5_handles handles = {0};
    hid_t group;
    esp_status status = esp_h5_make_group(&handles, layers, trace->layers[i].scope, &group);
    if (status == ESP_OK) status = write_layer(group, trace, &trace->layers[i]);
    esp_h5_close(&handles);
    if (status != ESP_OK) return status;
  }
  return ESP_OK;
}

static esp_status write_trace(hid_t file, const void *context) {
  const esp_routing_trace *trace = context;
  ESP_TRY(esp_h5_set_text(file, "format", "espalier routing trace"));
  ESP_TRY(esp_h5_set_number(file, "format_version", ESP_FORMAT_VERSION));
  ESP_TRY(esp_h5_set_text(file, "espalier_version", esp_version()));
  ESP_TRY(esp_h5_set_text(file, "model", trace->model));
  ESP_TRY(esp_h5_set_text(file, "data_name", trace->data_name));
  ESP_TRY(esp_h5_set_text(file, "data_digest", trace->data_digest));
  ESP_TRY(esp_h5_set_text(file, "split", trace->split));
  ESP_TRY(esp_h5_set_number(file, "split_images", trace->split_images));
  ESP_TRY(esp_h5_set_number(file, "images", trace->images));
  ESP_TRY(esp_h5_set_number(file, "tokens_per_image", trace->tokens_per_image));
  ESP_TRY(esp_h5_set_number(file, "members", trace->members));
  esp_h5_handles handles = {0};
  hid_t layers;
  esp_status status = esp_h5_make_group(&handles, file, "layers", &layers);
  if (status == ESP_OK) status = write_layers(layers, trace);
  esp_h5_close(&handles);
  return status;
}

static size_t most_bytes(const esp_routing_trace *trace) {
  size_t bytes = SPARE_BYTES;
  for (int i = 0; i < trace->layer_count; i++) {
    const esp_h5_array choices = choices_array(trace, &trace->layers[i]), gates = gates_array(trace, &trace->layers[i]);
    bytes += esp_h5_most_bytes(&choices, sizeof(int32_t)) + esp_h5_most_bytes(&gates, sizeof(float));
  }
  return bytes;
}

esp_status esp_routing_trace_save(const char *path, const esp_routing_trace *trace) {
  for (int i = 0; i < trace->layer_count; i++)
    if (trace->layers[i].images != trace->images)
      return esp_fail(ESP_ERR_MISMATCH, "%s: %s has been traced for %lld of %lld images", path, trace->layers[i].scope,
                      (long long)trace->layers[i].images, (long long)trace->images);
  return esp_sealed_file_write(path, most_bytes(trace), write_trace, trace);
}

/* ---- reading ---- */

static esp_status get_size(hid_t place, const char *name, int64_t least, int64_t most, int64_t *value) {
  ESP_TRY(esp_h5_get_number(place, name, value));
  if (*value >= least && *value <= most) return ESP_OK;
  return esp_fail(ESP_ERR_FORMAT, "the attribute `%s` is %lld; expected %lld to %lld", name, (long long)*value,
                  (long long)least, (long long)most);
}

static esp_status get_int(hid_t place, const char *name, int64_t least, int64_t most, int *value) {
  int64_t number;
  ESP_TRY(get_size(place, name, least, most, &number));
  *value = (int)number;
  return ESP_OK;
}

/* The slots of a token are different experts that the layer has. */
static esp_status check_choices(const esp_trace_layer *layer, int64_t tokens) {
  for (int64_t t = 0; t < tokens; t++)
    for (int i = 0; i < layer->k; i++) {
      const int32_t expert = layer->choices[t * layer->k + i];
      bool known = expert >= 0 && expert < layer->experts;
      for (int j = 0; j < i; j++) known = known && layer->choices[t * layer->k + j] != expert;
      if (!known)
        return esp_fail(ESP_ERR_FORMAT,
                        "`choices` of %s sends token %lld to expert %d; expected %d different ones of %d", layer->scope,
                        (long long)t, (int)expert, layer->k, layer->experts);
    }
  return ESP_OK;
}

static esp_status read_slots(esp_h5_handles *handles, hid_t group, const char *name, const esp_h5_array *expected,
                             H5T_class_t kind, void **values) {
  esp_h5_array found = {0};
  hid_t data;
  char has[96], needs[96];
  ESP_TRY(esp_h5_open(handles, group, name, kind, 4, &found, &data));
  if (!esp_h5_same_shape(&found, expected))
    return esp_fail(ESP_ERR_FORMAT, "`%s` has the shape %s; expected %s", name,
                    esp_h5_shape_text(&found, has, sizeof has), esp_h5_shape_text(expected, needs, sizeof needs));
  size_t count = 1;
  for (int i = 0; i < found.rank; i++) count *= (size_t)found.shape[i];
  *values = esp_alloc(count, 4);
  return *values ? esp_h5_read(data, name, expected->type, *values) : ESP_ERR_MEMORY;
}

static esp_status read_layer(esp_h5_handles *handles, hid_t layers, const char *name, esp_routing_trace *trace) {
  esp_trace_layer *layer = &trace->layers[trace->layer_count];
  hid_t group;
  if (trace->layer_count == ESP_MAX_BLOCKS)
    return esp_fail(ESP_ERR_FORMAT, "`layers` has more than %d entries", (int)ESP_MAX_BLOCKS);
  trace->layer_count++; /* from here on freed with the trace */
  snprintf(layer->scope, sizeof layer->scope, "%s", name);
  ESP_TRY(esp_h5_open_group(handles, layers, name, &group));
  ESP_TRY(get_int(group, "block", 0, ESP_MAX_BLOCKS - 1, &layer->block));
  ESP_TRY(get_int(group, "experts", 1, ESP_MAX_EXPERTS, &layer->experts));
  ESP_TRY(get_int(group, "k", 1, layer->experts, &layer->k));
  const esp_h5_array choices = choices_array(trace, layer), gates = gates_array(trace, layer);
  void *values = NULL;
  esp_status status = read_slots(handles, group, "choices", &choices, H5T_INTEGER, &values);
  layer->choices = values;
  ESP_TRY(status);
  values = NULL;
  status = read_slots(handles, group, "gates", &gates, H5T_FLOAT, &values);
  layer->gates = values;
  ESP_TRY(status);
  layer->images = trace->images;
  return check_choices(layer, trace->images * trace->members * trace->tokens_per_image);
}

static esp_status visit_layer(void *context, hid_t layers, const char *name) {
  esp_h5_handles handles = {0};
  const esp_status status = read_layer(&handles, layers, name, context);
  esp_h5_close(&handles);
  return status;
}

/* HDF5 orders names as texts; layers go by block. */
static void sort_layers(esp_routing_trace *trace) {
  for (int i = 1; i < trace->layer_count; i++)
    for (int j = i; j > 0 && trace->layers[j].block < trace->layers[j - 1].block; j--) {
      const esp_trace_layer layer = trace->layers[j];
      trace->layers[j] = trace->layers[j - 1];
      trace->layers[j - 1] = layer;
    }
}

static esp_status read_trace(hid_t file, void *context) {
  esp_routing_trace *const trace = context;
  ESP_TRY(esp_h5_get_text(file, "model", trace->model, sizeof trace->model));
  ESP_TRY(esp_h5_get_text(file, "data_name", trace->data_name, sizeof trace->data_name));
  ESP_TRY(esp_h5_get_text(file, "data_digest", trace->data_digest, sizeof trace->data_digest));
  ESP_TRY(esp_h5_get_text(file, "split", trace->split, sizeof trace->split));
  ESP_TRY(get_size(file, "split_images", 1, INT32_MAX, &trace->split_images));
  ESP_TRY(get_size(file, "images", 1, trace->split_images, &trace->images));
  ESP_TRY(get_size(file, "tokens_per_image", 1, INT32_MAX, &trace->tokens_per_image));
  ESP_TRY(get_int(file, "members", 1, ESP_MAX_EXPERTS, &trace->members));
  esp_h5_handles handles = {0};
  hid_t layers;
  esp_status status = esp_h5_open_group(&handles, file, "layers", &layers);
  if (status == ESP_OK) status = esp_h5_each(layers, visit_layer, trace);
  esp_h5_close(&handles);
  sort_layers(trace);
  return status;
}

esp_status esp_routing_trace_load(esp_routing_trace **trace, const char *path) {
  *trace = NULL;
  esp_routing_trace *made = esp_alloc(1, sizeof *made);
  if (made) made->layers = esp_alloc(ESP_MAX_BLOCKS, sizeof *made->layers);
  esp_status status = ESP_ERR_MEMORY;
  if (made && made->layers) status = esp_checkpoint_read(path, "routing trace", read_trace, made);
  if (status == ESP_OK) *trace = made;
  else esp_routing_trace_free(made);
  return status;
}
