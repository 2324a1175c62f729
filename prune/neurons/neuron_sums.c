/* What calibration data show of every neuron: an observer of the experts' activations. */
#include "neurons_internal.h"
#include <espalier/memory.h>
#include <espalier/parallel.h>

#include <math.h>

static int64_t neurons_of(const esp_expert_bank *bank) {
  int64_t count = 0;
  for (int e = 0; e < bank->experts; e++) count += esp_expert_width(bank, e);
  return count;
}

static esp_status prepare(esp_neuron_sums *sums, const esp_moe *moe) {
  const size_t count = (size_t)neurons_of(&moe->bank);
  sums->stored = moe->bank.experts;
  sums->selected = esp_alloc(count, sizeof *sums->selected);
  sums->activation = esp_alloc(count, sizeof *sums->activation);
  sums->contribution = esp_alloc(count, sizeof *sums->contribution);
  return sums->selected && sums->activation && sums->contribution ? ESP_OK : ESP_ERR_MEMORY;
}

void esp_neuron_sums_free(esp_neuron_sums *sums, int layers) {
  for (int i = 0; sums && i < layers; i++) {
    esp_free(sums[i].selected);
    esp_free(sums[i].activation);
    esp_free(sums[i].contribution);
  }
  esp_free(sums);
}

typedef struct seen {
  esp_neuron_sums *sums;
  const esp_moe_record *record;
} seen;

static void add_row(const seen *s, int64_t row, int64_t first, int64_t width) {
  const int64_t columns = esp_tensor_columns(s->record->experts.activation);
  const esp_real *before = s->record->experts.activation->data + row * columns;
  const esp_real *after = s->record->experts.selected->data + row * columns;
  const uint8_t *mask = s->record->experts.mask ? s->record->experts.mask + row * columns : NULL;
  for (int64_t j = 0; j < width; j++) {
    s->sums->selected[first + j] += !mask || mask[j];
    s->sums->activation[first + j] += fabs((double)before[j]);
    s->sums->contribution[first + j] += fabs((double)after[j]);
  }
}

/* An expert's rows are added by one thread, in their order. */
static void add_experts(void *context, int64_t begin, int64_t end) {
  const seen *s = context;
  const esp_expert_bank *bank = &s->record->layer->bank;
  const int64_t *first_row = s->record->routing->first_row;
  int64_t first = 0;
  for (int e = 0; e < begin; e++) first += esp_expert_width(bank, e);
  for (int64_t e = begin; e < end; e++) {
    const int width = esp_expert_width(bank, (int)e);
    for (int64_t r = first_row[e]; r < first_row[e + 1]; r++) add_row(s, r, first, width);
    s->sums->rows[e] += first_row[e + 1] - first_row[e];
    first += width;
  }
}

typedef struct watcher {
  const esp_model *model;
  esp_neuron_sums *sums;
} watcher;

static void observe(void *context, const esp_moe_record *record) {
  const watcher *w = context;
  int i = 0;
  while (esp_model_moe(w->model, i)->block != record->layer->block) i++;
  esp_parallel_for_uneven(record->layer->bank.experts, 1, add_experts, &(seen){&w->sums[i], record});
}

esp_status esp_neuron_sums_collect(esp_neuron_sums **sums, const esp_criterion_inputs *inputs) {
  const int layers = esp_model_moe_count(inputs->model);
  *sums = esp_alloc((size_t)layers, sizeof **sums);
  esp_status status = *sums ? ESP_OK : ESP_ERR_MEMORY;
  for (int i = 0; status == ESP_OK && i < layers; i++) status = prepare(&(*sums)[i], esp_model_moe(inputs->model, i));
  watcher w = {inputs->model, *sums};
  const esp_observer observer = {observe, &w};
  if (status == ESP_OK) status = esp_calibration_pass(inputs->model, inputs->calibration, &observer);
  if (status == ESP_OK) return ESP_OK;
  esp_neuron_sums_free(*sums, layers);
  *sums = NULL;
  return status;
}
