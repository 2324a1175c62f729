/* MoNE's neuron selection (Mixture of Neuron Experts, arXiv 2510.05781). */
#include "moe_ops_internal.h"

#include <string.h>

/* --- neuron top-k: y_j = m_j h_j, m the mask of the K largest |gate activation|;  dh_j = m_j dy_j -------------
 * The bits of a non-negative float order like the float itself, so the K-th largest is found by settling its
 * bits from the highest down: one counting pass over the row a bit, which runs at vector speed and does not
 * depend on the data. */

#ifdef ESP_DOUBLE
typedef uint64_t magnitude_bits;
enum { MAGNITUDE_BITS = 63 };
#else
typedef uint32_t magnitude_bits;
enum { MAGNITUDE_BITS = 31 };
#endif

typedef struct neuron_attributes {
  int64_t kept;
} neuron_attributes;

static void neuron_plan(esp_node *node) {
  const esp_tensor *h = node->inputs[0], *pre = node->inputs[1];
  const int64_t kept = ((const neuron_attributes *)node->attributes)->kept, width = esp_tensor_columns(h);
  esp_require(node, kept > 0 && kept <= width, "must keep between 1 and all neurons");
  esp_require(node, !pre || (esp_tensor_rows(pre) == esp_tensor_rows(h) && esp_tensor_columns(pre) == 2 * width),
              "needs h [rows, f] and pre [rows, 2 f]");
  esp_plan_same(node);
  node->saved_bytes = (size_t)esp_tensor_count(h) * sizeof(magnitude_bits); /* magnitudes, then the mask */
}

/* Not-a-number counts as the largest magnitude, so that it cannot hide. */
ESP_HOT static void set_magnitudes(const esp_real *restrict h, const esp_real *restrict gate, int64_t width,
                                   magnitude_bits *restrict bits) {
  for (int64_t j = 0; j < width; j++) {
    const esp_real magnitude = esp_abs(gate ? esp_silu_value(gate[j]) : h[j]);
    memcpy(&bits[j], &magnitude, sizeof magnitude);
  }
}

/* The largest threshold that at least `kept` magnitudes reach. */
ESP_HOT static magnitude_bits find_threshold(const magnitude_bits *restrict bits, int64_t width, int64_t kept) {
  magnitude_bits threshold = 0;
  for (int bit = MAGNITUDE_BITS - 1; bit >= 0; bit--) {
    const magnitude_bits candidate = threshold | (magnitude_bits)1 << bit;
    magnitude_bits reached = 0;
    for (int64_t j = 0; j < width; j++) reached += bits[j] >= candidate;
    if ((int64_t)reached >= kept) threshold = candidate;
  }
  return threshold;
}

/* Turns magnitudes into a mask of zeros and ones with exactly `kept` ones; of those at the threshold the lower
 * indices stay. */
ESP_HOT static void set_mask(magnitude_bits *restrict bits, int64_t width, int64_t kept, magnitude_bits threshold) {
  magnitude_bits above = 0;
  for (int64_t j = 0; j < width; j++) above += bits[j] > threshold;
  int64_t at_threshold = kept - (int64_t)above;
  for (int64_t j = 0; j < width; j++) {
    const bool tied = bits[j] == threshold;
    bits[j] = bits[j] > threshold || (tied && at_threshold > 0);
    at_threshold -= tied;
  }
}

ESP_HOT static void apply_mask(const magnitude_bits *restrict mask, const esp_real *restrict x, esp_real *restrict y,
                               int64_t width, bool accumulate) {
  if (accumulate)
    for (int64_t j = 0; j < width; j++) y[j] += mask[j] ? x[j] : 0;
  else
    for (int64_t j = 0; j < width; j++) y[j] = mask[j] ? x[j] : 0;
}

static void select_rows(void *context, int64_t begin, int64_t end) {
  const esp_node *node = context;
  const int64_t width = esp_tensor_columns(node->inputs[0]), kept = ((const neuron_attributes *)node->attributes)->kept;
  for (int64_t r = begin; r < end; r++) {
    const esp_real *h = node->inputs[0]->data + r * width;
    magnitude_bits *bits = (magnitude_bits *)node->saved + r * width;
    set_magnitudes(h, node->inputs[1] ? node->inputs[1]->data + r * 2 * width : NULL, width, bits);
    set_mask(bits, width, kept, find_threshold(bits, width, kept));
    apply_mask(bits, h, node->outputs[0]->data + r * width, width, false);
  }
}

static void neuron_forward(esp_node *node) {
  esp_parallel_for(esp_tensor_rows(node->inputs[0]), esp_row_grain(esp_tensor_columns(node->inputs[0])), select_rows,
                   node);
}

typedef struct mask_gradient {
  const esp_node *node;
  esp_real *dh;
  bool accumulate;
} mask_gradient;

static void mask_gradient_rows(void *context, int64_t begin, int64_t end) {
  const mask_gradient *g = context;
  const int64_t width = esp_tensor_columns(g->node->inputs[0]);
  for (int64_t r = begin; r < end; r++)
    apply_mask((const magnitude_bits *)g->node->saved + r * width, g->node->outputs[0]->grad + r * width,
               g->dh + r * width, width, g->accumulate);
}

static void neuron_backward(esp_node *node) {
  mask_gradient g = {.node = node};
  g.dh = esp_grad(node->inputs[0], &g.accumulate);
  if (!g.dh) return;
  esp_parallel_for(esp_tensor_rows(node->inputs[0]), esp_row_grain(esp_tensor_columns(node->inputs[0])),
                   mask_gradient_rows, &g);
}

static esp_cost neuron_cost(const esp_node *node) { return esp_cost_elementwise(node, MAGNITUDE_BITS); }

const esp_op esp_op_neuron_top_k = {
    "neuron top-k",  neuron_plan, neuron_forward,
    neuron_backward, neuron_cost, {1e-6, 1e-6, "two magnitudes at the edge of the selection are equal"}};

esp_tensor *esp_neuron_top_k(esp_tape *tape, esp_tensor *h, esp_tensor *pre, int64_t kept) {
  return esp_tape_apply(tape, &esp_op_neuron_top_k, (esp_tensor *[]){h, pre}, 2, &(neuron_attributes){kept},
                        sizeof(neuron_attributes));
}
