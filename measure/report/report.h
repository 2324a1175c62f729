/* What was measured, for people and for programs: tables, JSON, CSV. */
#ifndef ESPALIER_REPORT_H
#define ESPALIER_REPORT_H

#include <espalier/cost.h>
#include <espalier/evaluate.h>
#include <espalier/router_change.h>
#include <espalier/statistics.h>

#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif

struct json_t; /* jansson's */

/* All that a report is about. What is NULL was not measured and is left out: a key, cells of a column, a
 * table. */
typedef struct esp_measurement {
  const esp_model *model;
  const char *checkpoint, *reference, *data; /* how people call them */
  const esp_statistics *statistics;
  const esp_router_changes *changes;
  const esp_evaluation *evaluation; /* of the pass that the statistics come from */
} esp_measurement;

/* A new reference; NULL if memory is short. Keys:
 *   checkpoint, reference, data, accuracy, loss, examples
 *   parameters, activated_parameters, activated_parameters_selected, touched_parameters, flops_per_image,
 *     flops_per_image_selected
 *   layers[], the mixture layers: name, kind, block, top_k, neurons (of the widest), neurons_kept, stored_experts;
 *     with statistics tokens, slots, served, skipped, entropy, normalised_entropy, token_entropy, imbalance,
 *       dead_experts, logit_rms, sampled_rows, silent_rows, near_zero {level: share},
 *       top_mass {percent: share}, histogram {edges[], counts[], below, above, not_finite};
 *       of a MoNE neuron_gini, dead_neurons, counted_neurons, neuron_usage[] of the stored experts {rows, gini,
 *       dead_neurons, selected[]};
 *     experts[]: index, original_id, stored (place in the bank; -1: zero expert, -2: masked), neurons, router_norm;
 *       with changes router_norm_change (signed), absolute_change, difference_norm, reference_norm;
 *       with statistics count, served, share, first_choices, gate_mass, mean_gate, gate_served,
 *       mean_score, together[] (tokens that chose each other expert, too), classes[] (slots of each class; none with
 *       Soft MoE)
 * Numbers that are not finite, and what the router's policy does not have, are null. */
ESP_API struct json_t *esp_measurement_json(const esp_measurement *measurement);

/* Writes measure.json, experts.csv (a row per layer and expert) and, with statistics, routing.csv and sparsity.csv (a
 * row per layer), coactivation.csv and specialisation.csv (statistics_rows.h says of what), activations.csv (per layer
 * and bin) and neurons.csv (per stored expert and neuron of the layers that select neurons) into a folder that
 * exists. */
ESP_API esp_status esp_measurement_write(const esp_measurement *measurement, const char *folder) ESP_MUST_CHECK;

/* A table per mixture layer. */
ESP_API void esp_measurement_print(const esp_measurement *measurement, FILE *file);

/* A new reference; NULL if memory is short. Keys: parameters, activated_parameters,
 * activated_parameters_selected, touched_parameters, flops_per_image, flops_per_image_selected,
 * parameter_bytes (float32), training_bytes (with AdamW: gradient and two moments, too); layers[], one per block: name,
 * kind, experts, stored_experts, neurons_kept (per token and expert), parameters, activated_parameters,
 * activated_parameters_selected, touched_parameters, flops, flops_selected. */
ESP_API struct json_t *esp_model_cost_json(const esp_model_cost *cost);

/* A table with a row per block and the whole model. */
ESP_API void esp_model_cost_print(const esp_model_cost *cost, FILE *file);

#ifdef __cplusplus
}
#endif
#endif
