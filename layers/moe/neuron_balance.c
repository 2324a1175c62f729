/* The loss that evens out how often an expert's neurons are selected. */
#include "moe_ops_internal.h"

#include <string.h>

/* --- neuron balance loss: L = 1/E sum_i (f_i/K_i) sum_j F_ij P_ij over the E experts with rows -----------------------
 * F_ij the share of expert i's T_i rows that selected neuron j, P_ij the mean of q over them; G the gate activation.
 *   abs:  q_j = m_j |G_j|                               d|G_j| = dL w_ij m_j
 *   norm: q_j = |G_j| / S, S = sum_l |G_l|               d|G_j| = dL (w_ij - sum_l w_il q_l) / S
 * with w_ij = f_i F_ij / (K_i T_i E), a constant. */

typedef struct balance_attributes {
  esp_neuron_balance balance;
  const uint8_t *mask;
  int64_t hidden;
} balance_attributes;

/* What is kept of expert i: its part of the loss, its weights, and room for one row. */
typedef struct expert_part {
  double *loss, *weight;
  esp_real *value, *slope;
} expert_part;

static expert_part part_of(const esp_node *node, int64_t expert) {
  const balance_attributes *at = node->attributes;
  const int64_t experts = at->balance.experts, f = at->hidden;
  double *loss = node->saved, *weight = loss + experts;
  esp_real *value = (esp_real *)(weight + experts * f);
  return (expert_part){loss + expert, weight + expert * f, value + 2 * expert * f, value + (2 * expert + 1) * f};
}

static void balance_prepare(esp_node *node) {
  const balance_attributes *at = node->attributes;
  const esp_neuron_balance *b = &at->balance;
  const int64_t columns = esp_tensor_columns(node->inputs[0]);
  esp_require(node, esp_tensor_rows(node->inputs[0]) == b->first_row[b->experts], "needs the rows of all experts");
  esp_require(node, columns == at->hidden || columns == 2 * at->hidden, "needs pre [rows, f or 2 f]");
  esp_set_output_scalar(node);
  node->saved_bytes =
      (size_t)b->experts * (sizeof(double) + (size_t)at->hidden * (sizeof(double) + 2 * sizeof(esp_real)));
}

static int64_t neurons_of(const balance_attributes *at, int64_t expert) {
  return at->balance.widths ? at->balance.widths[expert] : at->hidden;
}

static int serving_experts(const esp_neuron_balance *b) {
  int serving = 0;
  for (int e = 0; e < b->experts; e++) serving += b->first_row[e + 1] > b->first_row[e];
  return serving;
}

static void set_weights(const balance_attributes *at, int64_t expert, double *weight) {
  const esp_neuron_balance *b = &at->balance;
  const int64_t begin = b->first_row[expert], end = b->first_row[expert + 1], neurons = neurons_of(at, expert);
  const double rows = (double)(end - begin), kept = (double)(b->kept < neurons ? b->kept : neurons);
  const double scale = (double)neurons / (kept * rows * rows * serving_experts(b));
  for (int64_t j = 0; j < neurons; j++) weight[j] = 0;
  for (int64_t r = begin; r < end; r++)
    for (int64_t j = 0; j < neurons; j++) weight[j] += at->mask[r * at->hidden + j];
  for (int64_t j = 0; j < neurons; j++) weight[j] *= scale;
}

/* The sums of |G| and of w |G| over a row; of the selected neurons only where `mask` is given. */
static void sum_row(const esp_real *g, const double *weight, const uint8_t *mask, int64_t count, double *sum,
                    double *weighted) {
  double s = 0, w = 0;
  ESP_SUMS(s, w)
  for (int64_t j = 0; j < count; j++) {
    const double magnitude = mask && !mask[j] ? 0 : (double)esp_abs(g[j]);
    s += magnitude;
    w += weight[j] * magnitude;
  }
  *sum = s;
  *weighted = w;
}

static void sum_experts(void *context, int64_t begin, int64_t end) {
  const esp_node *node = context;
  const balance_attributes *at = node->attributes;
  const esp_neuron_balance *b = &at->balance;
  const esp_tensor *pre = node->inputs[0];
  for (int64_t e = begin; e < end; e++) {
    const expert_part part = part_of(node, e);
    const int64_t neurons = neurons_of(at, e);
    *part.loss = 0;
    set_weights(at, e, part.weight);
    for (int64_t r = b->first_row[e]; r < b->first_row[e + 1]; r++) {
      const bool norm = b->kind == ESP_NEURON_BALANCE_NORM;
      double sum, weighted;
      esp_gate_values(b->gate, pre->data + r * esp_tensor_columns(pre), neurons, part.value);
      sum_row(part.value, part.weight, norm ? NULL : at->mask + r * at->hidden, neurons, &sum, &weighted);
      *part.loss += !norm ? weighted : sum > 0 ? weighted / sum : sum; /* not-a-number comes through */
    }
  }
}

static void balance_forward(esp_node *node) {
  const esp_neuron_balance *b = &((const balance_attributes *)node->attributes)->balance;
  double loss = 0;
  esp_parallel_for_uneven(b->experts, 1, sum_experts, node);
  for (int e = 0; e < b->experts; e++) loss += *part_of(node, e).loss;
  node->outputs[0]->data[0] = (esp_real)loss;
}

typedef struct balance_gradient {
  const esp_node *node;
  esp_real *dpre;
  double dloss;
  bool accumulate;
} balance_gradient;

static void gradient_row(const balance_gradient *g, const expert_part *part, int64_t neurons, int64_t r) {
  const balance_attributes *at = g->node->attributes;
  const int64_t columns = esp_tensor_columns(g->node->inputs[0]);
  const uint8_t *mask = at->mask + r * at->hidden;
  const bool norm = at->balance.kind == ESP_NEURON_BALANCE_NORM;
  esp_real *d = g->dpre + r * columns;
  double sum = 1, weighted = 0;
  if (!g->accumulate) memset(d, 0, (size_t)columns * sizeof *d);
  esp_gate_curve(at->balance.gate, g->node->inputs[0]->data + r * columns, neurons, part->value, part->slope);
  if (norm) sum_row(part->value, part->weight, NULL, neurons, &sum, &weighted);
  if (!(sum > 0)) return;
  const double mean = weighted / sum, scale = g->dloss / sum;
  for (int64_t j = 0; j < neurons; j++) {
    const double sign = part->value[j] > 0 ? 1 : part->value[j] < 0 ? -1 : 0;
    const double slope = norm ? part->weight[j] - mean : mask[j] * part->weight[j];
    d[j] += (esp_real)(scale * slope * sign * (double)part->slope[j]);
  }
}

static void gradient_experts(void *context, int64_t begin, int64_t end) {
  const balance_gradient *g = context;
  const balance_attributes *at = g->node->attributes;
  for (int64_t e = begin; e < end; e++) {
    const expert_part part = part_of(g->node, e);
    for (int64_t r = at->balance.first_row[e]; r < at->balance.first_row[e + 1]; r++)
      gradient_row(g, &part, neurons_of(at, e), r);
  }
}

static void balance_backward(esp_node *node) {
  const esp_neuron_balance *b = &((const balance_attributes *)node->attributes)->balance;
  balance_gradient g = {.node = node, .dloss = (double)node->outputs[0]->grad[0]};
  g.dpre = esp_grad(node->inputs[0], &g.accumulate);
  if (g.dpre) esp_parallel_for_uneven(b->experts, 1, gradient_experts, &g);
}

static esp_cost balance_cost(const esp_node *node) {
  const double count = (double)esp_tensor_count(node->inputs[0]);
  return (esp_cost){8 * count, sizeof(esp_real) * count};
}

const esp_op esp_op_neuron_balance_loss = {
    "neuron balance loss", balance_prepare, balance_forward,
    balance_backward,      balance_cost,    {1e-6, 1e-6, "a gate activation is 0; F changes where the selection does"}};

esp_tensor *esp_neuron_balance_loss(esp_tape *tape, esp_tensor *pre, const uint8_t *mask, int64_t hidden,
                                    const esp_neuron_balance *balance) {
  const balance_attributes at = {*balance, mask, hidden};
  return esp_tape_apply(tape, &esp_op_neuron_balance_loss, &pre, 1, &at, sizeof at);
}
