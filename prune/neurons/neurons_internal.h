/* What the sources about neurons share. */
#ifndef ESPALIER_NEURONS_INTERNAL_H
#define ESPALIER_NEURONS_INTERNAL_H

#include <espalier/neurons.h>

struct json_t;

enum { ESP_MAX_PLAN_NEURONS = 1 << 28 }; /* of a layer, in a plan that is read */

/* Frees what a choice holds. */
void esp_neuron_choice_clear(esp_neuron_choice *choice);

/* [{stored, neurons, left, stay: "0-5 7"}] and back; ESP_ERR_FORMAT if it is nothing of the kind. */
struct json_t *esp_neuron_choice_json(const esp_layer_plan *layer);
esp_status esp_neuron_choice_read(esp_neuron_choice *choice, const struct json_t *json);

/* What calibration shows of each neuron, in the order of a plan's. Sums over the rows of its expert; a row is one token
 * in one expert. */
typedef struct esp_neuron_sums {
  int stored;
  int64_t rows[ESP_MAX_EXPERTS]; /* [stored] */
  double *selected;              /* rows in which it is selected; all without a selection */
  double *activation;            /* |its activation| before any selection */
  double *contribution;          /* |its activation| after it */
} esp_neuron_sums;

/* One of each mixture layer, from one pass over the calibration data. On failure *sums is NULL. */
esp_status esp_neuron_sums_collect(esp_neuron_sums **sums, const esp_criterion_inputs *inputs);
void esp_neuron_sums_free(esp_neuron_sums *sums, int layers);

#endif
