#include "neuron_counts_internal.h"

#include <espalier/memory.h>
#include <espalier/parallel.h>

#include <stdlib.h>
#include <string.h>

static const double dead_share = 0.1; /* of an even share */

esp_status esp_neuron_counts_create(esp_neuron_counts *counts, const esp_moe *moe) {
  *counts = (esp_neuron_counts){.hidden = moe->bank.hidden};
  if (moe->neurons_kept >= moe->bank.hidden) return ESP_OK;
  const size_t experts = (size_t)moe->layout.stored, hidden = (size_t)counts->hidden;
  counts->experts = moe->layout.stored;
  counts->rows = esp_alloc(experts, sizeof *counts->rows);
  counts->selected = esp_alloc(experts * hidden, sizeof *counts->selected);
  counts->sorted = esp_alloc(hidden, sizeof *counts->sorted);
  return counts->rows && counts->selected && counts->sorted ? ESP_OK : ESP_ERR_MEMORY;
}

void esp_neuron_counts_free(esp_neuron_counts *counts) {
  esp_free(counts->rows);
  esp_free(counts->selected);
  esp_free(counts->sorted);
}

typedef struct counting {
  esp_neuron_counts *counts;
  const esp_moe_record *record;
} counting;

static void count_experts(void *context, int64_t begin, int64_t end) {
  const counting *c = context;
  const int64_t hidden = c->counts->hidden, *first_row = c->record->routing->first_row;
  for (int64_t e = begin; e < end; e++) {
    int64_t *selected = c->counts->selected + e * hidden;
    c->counts->rows[e] += first_row[e + 1] - first_row[e];
    for (int64_t r = first_row[e]; r < first_row[e + 1]; r++)
      for (int64_t j = 0; j < hidden; j++) selected[j] += c->record->experts.mask[r * hidden + j];
  }
}

void esp_neuron_counts_add(esp_neuron_counts *counts, const esp_moe_record *record) {
  if (!record->experts.mask) return;
  esp_parallel_for_uneven(counts->experts, 1, count_experts, &(counting){counts, record});
}

void esp_neuron_counts_reset(esp_neuron_counts *counts) {
  if (counts->experts == 0) return;
  memset(counts->rows, 0, (size_t)counts->experts * sizeof *counts->rows);
  memset(counts->selected, 0, (size_t)counts->experts * (size_t)counts->hidden * sizeof *counts->selected);
}

void esp_neuron_counts_merge(esp_neuron_counts *counts, const esp_neuron_counts *other) {
  const int64_t size = (int64_t)counts->experts * counts->hidden;
  for (int e = 0; e < counts->experts; e++) counts->rows[e] += other->rows[e];
  for (int64_t i = 0; i < size; i++) counts->selected[i] += other->selected[i];
}

static int ascending(const void *a, const void *b) {
  const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
  return (x > y) - (x < y);
}

/* The Gini coefficient of counts in ascending order x_1 .. x_n is 2 sum i x_i / (n sum x_i) - (n + 1) / n. */
static double gini_of(const int64_t *sorted, int n) {
  double sum = 0, weighted = 0;
  for (int i = 0; i < n; i++) {
    sum += (double)sorted[i];
    weighted += (i + 1.0) * (double)sorted[i];
  }
  return sum > 0 ? 2 * weighted / (n * sum) - (n + 1.0) / n : 0;
}

esp_neuron_usage esp_neuron_counts_usage(const esp_neuron_counts *counts, int expert, int neurons) {
  const int64_t *selected = counts->selected + (int64_t)expert * counts->hidden;
  esp_neuron_usage usage = {.rows = counts->rows[expert], .neurons = neurons, .selected = selected};
  int64_t total = 0;
  memcpy(counts->sorted, selected, (size_t)neurons * sizeof *selected);
  qsort(counts->sorted, (size_t)neurons, sizeof *selected, ascending);
  usage.gini = gini_of(counts->sorted, neurons);
  for (int j = 0; j < neurons; j++) total += selected[j];
  for (int j = 0; j < neurons && usage.rows > 0; j++)
    usage.dead += (double)selected[j] < dead_share * (double)total / neurons;
  return usage;
}
