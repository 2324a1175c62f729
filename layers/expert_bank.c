#include <espalier/expert_bank.h>
#include <espalier/factors.h>
#include <espalier/moe_ops.h>
#include <espalier/ops.h>

#include <math.h>
#include <string.h>

typedef struct declaration {
  esp_parameters *parameters;
  const char *scope;
  int experts;     /* 0: a dense layer's */
  int64_t neurons; /* of all experts together if they differ in width, else of one */
  bool ragged, identical;
} declaration;

/* A matrix or, with columns = 0, a vector for each expert. */
static esp_status declare(const declaration *d, esp_tensor **place, const char *name, int64_t rows, int columns,
                          double deviation) {
  esp_parameter_options options = {.kind = columns ? ESP_KIND_WEIGHT : ESP_KIND_BIAS, .deviation = deviation};
  if (d->experts && !d->ragged) options.shape[options.rank++] = d->experts;
  options.shape[options.rank++] = rows;
  if (columns) options.shape[options.rank++] = columns;
  esp_parameter *p = esp_parameters_add(d->parameters, d->scope, name, &options);
  if (p && d->experts && !d->ragged && d->identical) p->shared_init = 1;
  if (p && columns && !d->ragged) {
    p->matrices = d->experts ? d->experts : 1;
    p->matrix_rows = rows;
  }
  return esp_take_parameter(place, p);
}

static esp_status declare_biases(declaration d, esp_expert_bank *bank, int64_t ups) {
  const bool gated = esp_activation_is_gated(bank->activation);
  ESP_TRY(declare(&d, &bank->up_bias, gated ? "gate_up_bias" : "up_bias", ups, 0, 0));
  d.ragged = false; /* an expert's output has the same width as the others' */
  return declare(&d, &bank->down_bias, "down_bias", bank->width, 0, 0);
}

esp_status esp_expert_bank_declare(esp_expert_bank *bank, esp_parameters *parameters, const char *scope,
                                   const esp_expert_bank_options *o) {
  const bool gated = esp_activation_is_gated(o->config->activation);
  declaration d = {parameters, scope, o->experts, o->widths ? 0 : o->hidden, o->widths != NULL, o->identical};
  for (int e = 0; o->widths && e < o->experts; e++) d.neurons += o->widths[e];
  const int64_t ups = gated ? 2 * d.neurons : d.neurons;
  *bank = (esp_expert_bank){.activation = o->config->activation,
                            .experts = o->experts ? o->experts : 1,
                            .width = o->width,
                            .hidden = o->hidden,
                            .widths = o->widths};
  if (o->factored) {
    ESP_TRY(esp_factors_declare(bank, parameters, scope, o->factored));
  } else {
    ESP_TRY(declare(&d, &bank->up, gated ? "gate_up" : "up", ups, o->width, 1 / sqrt(o->width)));
    ESP_TRY(declare(&d, &bank->down, "down", d.neurons, o->width, o->residual_scale / sqrt(o->hidden)));
  }
  return o->config->bias ? declare_biases(d, bank, ups) : ESP_OK;
}

int esp_expert_width(const esp_expert_bank *bank, int expert) {
  return bank->widths ? bank->widths[expert] : bank->hidden;
}

esp_expert_weights esp_expert_weights_of(const esp_expert_bank *bank, int expert) {
  const bool gated = esp_activation_is_gated(bank->activation);
  const int64_t width = bank->width, neurons = esp_expert_width(bank, expert), ups = gated ? 2 : 1;
  int64_t first = 0;
  for (int e = 0; e < expert; e++) first += esp_expert_width(bank, e);
  esp_real *rows = bank->rank ? NULL : bank->up->data + ups * first * width;
  esp_real *biases = bank->up_bias ? bank->up_bias->data + ups * first : NULL;
  return (esp_expert_weights){.neurons = neurons,
                              .gate = gated ? rows : NULL,
                              .up = gated && rows ? rows + neurons * width : rows,
                              .down = rows ? bank->down->data + first * width : NULL,
                              .gate_bias = gated ? biases : NULL,
                              .up_bias = gated && biases ? biases + neurons : biases,
                              .down_bias = bank->down_bias ? bank->down_bias->data + expert * width : NULL};
}

static esp_tensor *activate(esp_activation_kind kind, esp_tape *tape, esp_tensor *pre) {
  switch (kind) {
  case ESP_ACTIVATION_RELU:
    return esp_relu(tape, pre);
  case ESP_ACTIVATION_GELU:
    return esp_gelu(tape, pre);
  case ESP_ACTIVATION_SQUARED_RELU:
    return esp_squared_relu(tape, pre);
  case ESP_ACTIVATION_SWIGLU:
  case ESP_ACTIVATION_GLU:
  case ESP_ACTIVATION_GEGLU:
  case ESP_ACTIVATION_REGLU:
  case ESP_ACTIVATION_SQUARED_REGLU:
    break;
  }
  return esp_glu(tape, pre, esp_activation_gate(kind));
}

esp_neuron_selection esp_expert_bank_selection(const esp_expert_bank *bank, const int64_t *first_row, int64_t kept) {
  const bool before = bank->ranking == ESP_RANK_PRE_ACTIVATION;
  return (esp_neuron_selection){.kept = kept,
                                .ranking = before ? ESP_GATE_IDENTITY : esp_activation_gate(bank->activation),
                                .widths = bank->widths,
                                .first_row = first_row};
}

static esp_tensor *apply_filter(const esp_expert_bank *bank, esp_tape *tape, const esp_neuron_filter *filter,
                                const int64_t *first_row, const esp_bank_trace *trace) {
  if (esp_tape_records(tape)) esp_panic("a neuron filter was given to a pass that records gradients");
  esp_tensor *changed = trace->selected ? esp_tape_tensor(tape, 2, trace->selected->shape) : NULL;
  if (!changed) return NULL;
  memcpy(changed->data, trace->selected->data, (size_t)esp_tensor_count(changed) * sizeof *changed->data);
  filter->rows(filter->context, bank, first_row,
               &(esp_bank_trace){trace->pre, trace->activation, changed, NULL, trace->mask});
  return changed;
}

/* The maps to the neurons and back. */
static esp_tensor *map_up(const esp_expert_bank *b, esp_tape *tape, esp_tensor *x, const int64_t *first_row) {
  const int parts = esp_activation_is_gated(b->activation) ? 2 : 1;
  const esp_grouped_map_options options = {first_row, b->experts, b->widths, b->widths ? parts : 1, true};
  if (b->rank) return esp_factored_map(tape, x, &b->factors[ESP_SIDE_UP], b->up_bias, first_row, b->experts);
  return esp_grouped_map(tape, x, b->up, b->up_bias, &options);
}

static esp_tensor *map_down(const esp_expert_bank *b, esp_tape *tape, esp_tensor *x, const int64_t *first_row) {
  if (b->rank) return esp_factored_map(tape, x, &b->factors[ESP_SIDE_DOWN], b->down_bias, first_row, b->experts);
  const esp_grouped_map_options options = {.first_row = first_row, .groups = b->experts, .widths = b->widths};
  return esp_grouped_map(tape, x, b->down, b->down_bias, &options);
}

esp_tensor *esp_expert_bank_forward(const esp_expert_bank *bank, esp_tape *tape, esp_tensor *x,
                                    const int64_t *first_row, const esp_neuron_options *neurons,
                                    esp_bank_trace *trace) {
  const int64_t kept = neurons ? neurons->kept : bank->hidden;
  const esp_neuron_filter *filter = neurons ? neurons->filter : NULL;
  esp_tensor *pre = map_up(bank, tape, x, first_row);
  esp_tensor *activation = activate(bank->activation, tape, pre), *selected = activation;
  const esp_neuron_selection selection = esp_expert_bank_selection(bank, first_row, kept);
  const uint8_t *mask = NULL;
  if (kept < bank->hidden) selected = esp_neuron_top_k(tape, activation, pre, &selection, &mask);
  if (filter)
    selected = apply_filter(bank, tape, filter, first_row, &(esp_bank_trace){pre, activation, selected, NULL, mask});
  esp_tensor *output = map_down(bank, tape, selected, first_row);
  if (trace) *trace = (esp_bank_trace){pre, activation, selected, output, mask};
  return output;
}

bool esp_gathering_pays(double rows, int64_t neurons, int64_t width, int64_t kept, bool gated) {
  if (!gated) return rows <= 1 && 4 * kept <= neurons;
  if (8 * kept <= neurons) return true;
  if (4 * kept <= neurons) return rows <= 1 || width >= 256;
  if (2 * kept <= neurons) return rows <= (width >= 512 ? 8 : width >= 256 ? 2 : width >= 128 ? 1 : 0);
  return false;
}

/* Rows of a busy expert: of those that have any, the mean. */
static double mean_rows(const int64_t *first_row, int64_t experts) {
  int64_t busy = 0;
  for (int64_t e = 0; e < experts; e++) busy += first_row[e + 1] > first_row[e];
  return busy ? (double)first_row[experts] / (double)busy : 0;
}

bool esp_expert_bank_gathers(const esp_expert_bank *bank, const esp_tape *tape, const int64_t *first_row, int64_t kept,
                             esp_neuron_path path) {
  if (kept >= bank->hidden || bank->rank > 0 || path == ESP_NEURONS_MASKED || esp_tape_records(tape)) return false;
  return path == ESP_NEURONS_GATHERED ||
         esp_gathering_pays(mean_rows(first_row, bank->experts), bank->hidden, bank->width, kept,
                            esp_activation_is_gated(bank->activation));
}

esp_tensor *esp_expert_bank_gather(const esp_expert_bank *bank, esp_tape *tape, esp_tensor *x, const int64_t *first_row,
                                   int64_t kept) {
  esp_expert_weights *experts = x ? esp_tape_take(tape, (size_t)bank->experts * sizeof *experts) : NULL;
  if (!experts) return NULL;
  for (int e = 0; e < bank->experts; e++) /* of an idle expert nothing is asked */
    experts[e] = first_row[e] < first_row[e + 1] ? esp_expert_weights_of(bank, e) : (esp_expert_weights){0};
  const esp_neuron_selection selection = esp_expert_bank_selection(bank, first_row, kept);
  return esp_gathered_experts(tape, x,
                              &(esp_gathered_options){.experts = experts,
                                                      .groups = bank->experts,
                                                      .first_row = first_row,
                                                      .selection = selection,
                                                      .activation = esp_activation_gate(bank->activation)});
}

esp_tensor *esp_expert_bank_forward_all(const esp_expert_bank *bank, esp_tape *tape, esp_tensor *x) {
  int64_t *first_row = x ? esp_tape_take(tape, 2 * sizeof *first_row) : NULL;
  if (!first_row) return NULL;
  first_row[0] = 0;
  first_row[1] = esp_tensor_rows(x);
  esp_bank_trace trace;
  esp_tensor *output = esp_expert_bank_forward(bank, tape, x, first_row, NULL, &trace);
  trace.output = NULL;
  esp_bank_trace_release(tape, &trace);
  return output;
}

void esp_bank_trace_release(esp_tape *tape, esp_bank_trace *trace) {
  esp_tape_release(tape, trace->pre);
  esp_tape_release(tape, trace->activation);
  esp_tape_release(tape, trace->selected);
  esp_tape_release(tape, trace->output);
}
