/* The sums behind esp_statistics, for the sources that observe, merge and read them. */
#ifndef ESPALIER_STATISTICS_INTERNAL_H
#define ESPALIER_STATISTICS_INTERNAL_H

#include "neuron_counts_internal.h"

#include <espalier/statistics.h>

typedef struct expert_sums {
  int64_t count, served, first_choices;
  double gate_mass, gate_served, score;
} expert_sums;

/* Slots of tokens of images of one class. */
typedef struct class_sums {
  int64_t count, served;
} class_sums;

typedef struct neuron_sums {
  int64_t rows, values, not_finite, below, above, silent_rows;
  int64_t histogram[ESP_HISTOGRAM_BINS];
  int64_t near_zero[ESP_NEAR_ZERO_LEVELS];
  double top_mass[ESP_TOP_MASS_LEVELS];
} neuron_sums;

typedef struct layer_sums {
  char scope[32];
  esp_layer_kind kind;
  esp_expert_layout layout;
  esp_activation_kind activation;
  int block, hidden;
  int members;
  bool pairable; /* a token may have several experts of a member */
  int64_t tokens, slots, served, skipped, scored, logits;
  double token_entropy, squared_logits;
  expert_sums *experts; /* [layout.experts] */
  int64_t *pairs;       /* [experts, experts] tokens that chose both */
  class_sums *by_class; /* [experts, classes] */
  int classes;          /* 0: slots do not belong to images */
  esp_neuron_counts selected;
  neuron_sums neurons;
  neuron_sums *parts; /* [ESP_PARTS] of one batch */
  float *scratch;     /* [ESP_PARTS, hidden] */
} layer_sums;

struct esp_statistics {
  int stride, layer_count;
  layer_sums *layers;
};

/* Adds what another part of the rows, or another pass, has summed up. */
void esp_neuron_sums_add(neuron_sums *sums, const neuron_sums *other);

#endif
