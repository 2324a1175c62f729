/* How often the neurons of a mixture layer's experts are selected. */
#ifndef ESPALIER_NEURON_COUNTS_INTERNAL_H
#define ESPALIER_NEURON_COUNTS_INTERNAL_H

#include <espalier/statistics.h>

typedef struct esp_neuron_counts {
  int experts, hidden; /* stored experts, neurons of the widest; no experts: the layer selects none */
  int64_t *rows;       /* [experts] tokens the expert served */
  int64_t *selected;   /* [experts, hidden] */
  int64_t *sorted;     /* [hidden] */
} esp_neuron_counts;

esp_status esp_neuron_counts_create(esp_neuron_counts *counts, const esp_moe *moe) ESP_MUST_CHECK;
void esp_neuron_counts_free(esp_neuron_counts *counts);
void esp_neuron_counts_add(esp_neuron_counts *counts, const esp_moe_record *record);
void esp_neuron_counts_reset(esp_neuron_counts *counts);
void esp_neuron_counts_merge(esp_neuron_counts *counts, const esp_neuron_counts *other);

/* Sums up one stored expert with `neurons` neurons. */
esp_neuron_usage esp_neuron_counts_usage(const esp_neuron_counts *counts, int expert, int neurons);

#endif
