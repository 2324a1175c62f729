/* The part of a plan that speaks of neurons: memory, counts, and its JSON. */
#include "neurons_internal.h"
#include <espalier/memory.h>

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static esp_status take(esp_neuron_choice *n) {
  n->stays = esp_alloc((size_t)n->count, sizeof *n->stays);
  n->score = esp_alloc((size_t)n->count, sizeof *n->score);
  if (!n->stays || !n->score) return ESP_ERR_MEMORY;
  memset(n->stays, true, (size_t)n->count * sizeof *n->stays);
  return ESP_OK;
}

esp_status esp_plan_take_neurons(esp_layer_plan *layer, const esp_moe *moe) {
  esp_neuron_choice *n = &layer->neuron;
  if (moe->bank.rank)
    return esp_fail(ESP_ERR_MISMATCH,
                    "the experts of %s are factored, and their neurons cannot be cut; cut first, then compress",
                    moe->scope);
  n->stored = moe->bank.experts;
  for (int s = 0; s < n->stored; s++) n->count += n->width[s] = esp_expert_width(&moe->bank, s);
  return take(n);
}

void esp_neuron_choice_clear(esp_neuron_choice *choice) {
  esp_free(choice->stays);
  esp_free(choice->score);
  *choice = (esp_neuron_choice){0};
}

int64_t esp_plan_neurons_cut(const esp_layer_plan *layer) {
  int64_t cut = 0;
  for (int64_t i = 0; i < layer->neuron.count; i++) cut += !layer->neuron.stays[i];
  return cut;
}

int esp_plan_neurons_left(const esp_layer_plan *layer, int stored, int64_t *first) {
  const esp_neuron_choice *n = &layer->neuron;
  int left = 0;
  *first = 0;
  for (int s = 0; s < stored; s++) *first += n->width[s];
  for (int64_t i = *first; i < *first + n->width[stored]; i++) left += n->stays[i];
  return left;
}

/* --- as JSON ------------------------------------------------------------------------------------------------- */

/* "0-5 7 9-31": those that stay. A text, because a line for each number would bury all else. */
static json_t *ranges_json(const bool *stays, int width) {
  char *text = esp_alloc((size_t)width * 12 + 1, 1), *end = text;
  for (int j = 0; text && j < width; j++) {
    if (!stays[j]) continue;
    const int begin = j;
    while (j + 1 < width && stays[j + 1]) j++;
    end += sprintf(end, end == text ? "%d" : " %d", begin);
    if (j > begin) end += sprintf(end, "-%d", j);
  }
  json_t *json = text ? json_string(text) : NULL;
  esp_free(text);
  return json;
}

json_t *esp_neuron_choice_json(const esp_layer_plan *layer) {
  json_t *experts = json_array();
  for (int s = 0; s < layer->neuron.stored; s++) {
    int64_t first;
    const int left = esp_plan_neurons_left(layer, s, &first), width = layer->neuron.width[s];
    json_array_append_new(experts, json_pack("{s:i, s:i, s:i, s:o}", "stored", s, "neurons", width, "left", left,
                                             "stay", ranges_json(layer->neuron.stays + first, width)));
  }
  return experts;
}

/* Sets the neurons of the ranges; false if they are not ascending ranges within the expert. */
static bool read_ranges(const char *text, bool *stays, int width) {
  long next = 0;
  while (*text) {
    char *end;
    long begin = strtol(text, &end, 10), last = begin;
    if (end == text || begin < next || begin >= width) return false;
    if (*end == '-') {
      const char *second = end + 1;
      last = strtol(second, &end, 10);
      if (end == second || last < begin || last >= width) return false;
    }
    for (long j = begin; j <= last; j++) stays[j] = true;
    next = last + 1;
    text = *end == ' ' ? end + 1 : end;
    if (*end && *end != ' ') return false;
  }
  return true;
}

static bool read_widths(esp_neuron_choice *n, const json_t *json) {
  if (!json_is_array(json) || json_array_size(json) < 1 || json_array_size(json) > ESP_MAX_EXPERTS) return false;
  n->stored = (int)json_array_size(json);
  for (int s = 0; s < n->stored; s++) {
    const json_int_t width = json_integer_value(json_object_get(json_array_get(json, (size_t)s), "neurons"));
    if (width < 1 || width > ESP_MAX_PLAN_NEURONS) return false;
    n->width[s] = (int32_t)width;
    n->count += width;
  }
  return n->count <= ESP_MAX_PLAN_NEURONS;
}

esp_status esp_neuron_choice_read(esp_neuron_choice *n, const json_t *json) {
  bool fits = read_widths(n, json);
  if (fits) ESP_TRY(take(n));
  int64_t first = 0;
  for (int s = 0; fits && s < n->stored; first += n->width[s++]) {
    const char *text = json_string_value(json_object_get(json_array_get(json, (size_t)s), "stay"));
    memset(n->stays + first, false, (size_t)n->width[s] * sizeof *n->stays);
    fits = text && read_ranges(text, n->stays + first, n->width[s]);
  }
  return fits ? ESP_OK : esp_fail(ESP_ERR_FORMAT, "`neurons` does not say which neurons of each expert stay");
}
