#include <espalier/expert_bank.h>
#include <espalier/moe_ops.h>
#include <espalier/ops.h>

#include <math.h>
#include <string.h>

typedef struct declaration {
  esp_parameters *parameters;
  const char *scope;
  int experts;
  bool identical;
} declaration;

/* A matrix or, with columns = 0, a vector for each expert. */
static esp_status declare(const declaration *d, esp_tensor **place, const char *name, int rows, int columns,
                          double deviation) {
  int64_t shape[3];
  int rank = 0;
  if (d->experts) shape[rank++] = d->experts;
  shape[rank++] = rows;
  if (columns) shape[rank++] = columns;
  esp_parameter *p = esp_parameters_add(d->parameters, d->scope, name, columns ? ESP_KIND_WEIGHT : ESP_KIND_BIAS, rank,
                                        shape, deviation, 0);
  if (p && d->experts && d->identical) p->shared_init = 1;
  return esp_take_parameter(place, p);
}

esp_status esp_expert_bank_declare(esp_expert_bank *bank, esp_parameters *parameters, const char *scope, int experts,
                                   int width, int hidden, const esp_feed_forward_config *config, double residual_scale,
                                   bool identical) {
  const bool gated = config->activation == ESP_ACTIVATION_SWIGLU;
  const declaration d = {parameters, scope, experts, identical};
  *bank = (esp_expert_bank){
      .activation = config->activation, .experts = experts ? experts : 1, .width = width, .hidden = hidden};
  ESP_TRY(declare(&d, &bank->up, gated ? "gate_up" : "up", gated ? 2 * hidden : hidden, width, 1 / sqrt(width)));
  ESP_TRY(declare(&d, &bank->down, "down", hidden, width, residual_scale / sqrt(hidden)));
  if (!config->bias) return ESP_OK;
  ESP_TRY(declare(&d, &bank->up_bias, gated ? "gate_up_bias" : "up_bias", gated ? 2 * hidden : hidden, 0, 0));
  return declare(&d, &bank->down_bias, "down_bias", width, 0, 0);
}

static esp_tensor *activate(esp_activation_kind kind, esp_tape *tape, esp_tensor *pre) {
  switch (kind) {
  case ESP_ACTIVATION_RELU:
    return esp_relu(tape, pre);
  case ESP_ACTIVATION_GELU:
    return esp_gelu(tape, pre);
  case ESP_ACTIVATION_SWIGLU:
    break;
  }
  return esp_swiglu(tape, pre);
}

static esp_tensor *apply_filter(const esp_expert_bank *bank, esp_tape *tape, const esp_neuron_filter *filter,
                                const int64_t *first_row, const esp_bank_trace *trace) {
  if (esp_tape_records(tape)) esp_panic("a neuron filter was given to a pass that records gradients");
  esp_tensor *changed = trace->selected ? esp_tape_tensor(tape, 2, trace->selected->shape) : NULL;
  if (!changed) return NULL;
  memcpy(changed->data, trace->selected->data, (size_t)esp_tensor_count(changed) * sizeof *changed->data);
  filter->rows(filter->context, bank, first_row, &(esp_bank_trace){trace->pre, trace->activation, changed, NULL});
  return changed;
}

esp_tensor *esp_expert_bank_forward(const esp_expert_bank *bank, esp_tape *tape, esp_tensor *x,
                                    const int64_t *first_row, int64_t kept, const esp_neuron_filter *filter,
                                    esp_bank_trace *trace) {
  const bool gated = bank->activation == ESP_ACTIVATION_SWIGLU;
  esp_tensor *pre = esp_grouped_map(tape, x, bank->up, bank->up_bias, true, first_row, bank->experts);
  esp_tensor *activation = activate(bank->activation, tape, pre), *selected = activation;
  if (kept < bank->hidden) selected = esp_neuron_top_k(tape, activation, gated ? pre : NULL, kept);
  if (filter)
    selected = apply_filter(bank, tape, filter, first_row, &(esp_bank_trace){pre, activation, selected, NULL});
  esp_tensor *output = esp_grouped_map(tape, selected, bank->down, bank->down_bias, false, first_row, bank->experts);
  if (trace) *trace = (esp_bank_trace){pre, activation, selected, output};
  return output;
}

esp_tensor *esp_expert_bank_forward_all(const esp_expert_bank *bank, esp_tape *tape, esp_tensor *x) {
  int64_t *first_row = x ? esp_tape_take(tape, 2 * sizeof *first_row) : NULL;
  if (!first_row) return NULL;
  first_row[0] = 0;
  first_row[1] = esp_tensor_rows(x);
  return esp_expert_bank_forward(bank, tape, x, first_row, bank->hidden, NULL, NULL);
}
