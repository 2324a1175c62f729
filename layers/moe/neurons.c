/* MoNE's neuron selection (Mixture of Neuron Experts, arXiv 2510.05781). */
#include "moe_ops_internal.h"

#include <string.h>

/* --- which neurons of a row are selected -----------------------------------------------------------------------
 * A threshold is sought that just `kept` magnitudes reach. A guess costs one counting pass at vector speed; the first
 * one is the threshold of the row before, the next ones follow the density of magnitudes around it, and now and
 * then the bits between the bounds are halved, so that no data can make the search long. The mask is the same
 * wherever the search began. */

#ifdef ESP_DOUBLE
typedef int64_t real_bits;
#else
typedef int32_t real_bits;
#endif

/* The bits of non-negative numbers order like the numbers; that after infinity stands for "more than all". */
static real_bits bits_of(esp_real value) {
  real_bits bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

static esp_real real_of(real_bits bits) {
  esp_real value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

/* Not-a-number reaches every threshold, so that it cannot hide. */
ESP_HOT static int64_t count_reaching(const esp_real *restrict x, int64_t width, esp_real threshold) {
  real_bits count = 0;
  for (int64_t j = 0; j < width; j++) count += !(esp_abs(x[j]) < threshold);
  return count;
}

typedef struct bounds {
  real_bits low, high;           /* the threshold lies in [low, high) */
  int64_t reach_low, reach_high; /* magnitudes that reach them */
} bounds;

/* Where the count should be `kept`, by a straight line through what is known; not between the bounds if nothing is. */
static esp_real estimate(const bounds *b, const esp_threshold_search *search, int64_t width, int64_t kept) {
  const esp_real infinity = (esp_real)INFINITY, low = real_of(b->low);
  const esp_real excess = (esp_real)(b->reach_low - kept) + ESP_LITERAL(0.5);
  if (b->low == 0 && b->high > bits_of(infinity)) return search->guess;
  if (b->high > bits_of(infinity)) { /* beyond all guesses */
    const esp_real density = search->density > 0 ? search->density : (esp_real)(width - b->reach_low + 1) / low;
    return low + excess / density;
  }
  const esp_real high = real_of(b->high);
  if (b->low == 0 && search->density > 0)
    return high - ((esp_real)(kept - b->reach_high) + ESP_LITERAL(0.5)) / search->density;
  return low + (high - low) * excess / (esp_real)(b->reach_low - b->reach_high + 1);
}

static void remember(esp_threshold_search *search, const bounds *b, esp_real threshold) {
  const esp_real span = real_of(b->high) - real_of(b->low);
  if (!(threshold > 0 && threshold < (esp_real)INFINITY)) return;
  search->guess = threshold;
  if (b->low > 0 && span > 0 && span < (esp_real)INFINITY)
    search->density = (esp_real)(b->reach_low - b->reach_high) / span;
}

/* A threshold that exactly `kept` < width magnitudes reach. If there is none, because of ties, the one the tied ones
 * have, and *tied is true. */
static esp_real find_threshold(esp_threshold_search *search, const esp_real *x, int64_t width, int64_t kept,
                               bool *tied) {
  enum { ESTIMATES = 6, NONZERO_STEP = 2 };
  bounds b = {0, bits_of((esp_real)INFINITY) + 1, width, 0};
  *tied = false;
  for (int step = 0; b.high - b.low > 1; step++) {
    real_bits probe = b.low + (b.high - b.low) / 2;
    if (step < ESTIMATES || step % 2) {
      const esp_real estimated = estimate(&b, search, width, kept);
      if (estimated > real_of(b.low) && bits_of(estimated) < b.high) probe = bits_of(estimated);
    }
    if (b.low == 0 && step >= NONZERO_STEP) probe = 1; /* a ReLU's zeros: is it among them? */
    const int64_t reached = count_reaching(x, width, real_of(probe));
    if (reached == kept) {
      remember(search, &b, real_of(probe));
      return real_of(probe);
    }
    if (reached > kept) b.low = probe, b.reach_low = reached;
    else b.high = probe, b.reach_high = reached;
  }
  *tied = true;
  return real_of(b.low);
}

ESP_HOT static void mask_reaching(const esp_real *restrict x, int64_t width, esp_real threshold,
                                  uint8_t *restrict mask) {
  for (int64_t j = 0; j < width; j++) mask[j] = (uint8_t) !(esp_abs(x[j]) < threshold);
}

ESP_HOT static int64_t mask_above(const esp_real *restrict x, int64_t width, esp_real threshold,
                                  uint8_t *restrict mask) {
  real_bits above = 0;
  for (int64_t j = 0; j < width; j++) above += !(esp_abs(x[j]) <= threshold);
  for (int64_t j = 0; j < width; j++) mask[j] = (uint8_t) !(esp_abs(x[j]) <= threshold);
  return above;
}

/* The lower indices of those at the threshold stay. Only not-a-numbers alone can be too many. */
static void mask_tied(const esp_real *x, int64_t width, int64_t kept, esp_real threshold, uint8_t *mask) {
  int64_t left = kept - mask_above(x, width, threshold, mask);
  for (int64_t j = 0; left > 0 && j < width; j++)
    if (esp_abs(x[j]) == threshold) {
      mask[j] = 1;
      left--;
    }
  for (int64_t j = width - 1; left < 0 && j >= 0; j--)
    if (mask[j]) {
      mask[j] = 0;
      left++;
    }
}

void esp_neuron_mask(esp_threshold_search *search, const esp_real *x, int64_t width, int64_t kept, uint8_t *mask) {
  bool tied;
  if (kept >= width) {
    memset(mask, 1, (size_t)width);
    return;
  }
  const esp_real threshold = find_threshold(search, x, width, kept, &tied);
  if (tied) mask_tied(x, width, kept, threshold, mask);
  else mask_reaching(x, width, threshold, mask);
}

/* --- neuron top-k: y_j = m_j h_j, m the mask of the K largest |ranking|;  dh_j = m_j dy_j ------------------------- */

typedef struct neuron_attributes {
  esp_neuron_selection selection;
  uint8_t *mask; /* [rows, f] */
} neuron_attributes;

static void neuron_prepare(esp_node *node) {
  const esp_tensor *h = node->inputs[0], *pre = node->inputs[1];
  const int64_t kept = ((const neuron_attributes *)node->attributes)->selection.kept, width = esp_tensor_columns(h);
  const int64_t columns = esp_tensor_columns(pre);
  esp_require(node, kept > 0 && kept <= width, "must keep between 1 and all neurons");
  esp_require(node, esp_tensor_rows(pre) == esp_tensor_rows(h) && (columns == width || columns == 2 * width),
              "needs h [rows, f] and pre [rows, f or 2 f]");
  esp_set_output_same(node);
}

ESP_HOT static void apply_mask(const uint8_t *restrict mask, const esp_real *restrict x, esp_real *restrict y,
                               int64_t width, bool accumulate) {
  if (accumulate)
    for (int64_t j = 0; j < width; j++) y[j] += mask[j] ? x[j] : 0;
  else
    for (int64_t j = 0; j < width; j++) y[j] = mask[j] ? x[j] : 0;
}

/* Neurons of row r, whose expert is *expert or a later one. */
static int64_t neurons_of_row(const esp_neuron_selection *selection, int64_t width, int64_t r, int *expert) {
  if (!selection->widths) return width;
  while (r >= selection->first_row[*expert + 1]) ++*expert;
  return selection->widths[*expert];
}

/* The row of y holds what the neurons are ranked by until the mask is known. */
static void select_rows(void *context, int64_t begin, int64_t end) {
  const esp_node *node = context;
  const neuron_attributes *at = node->attributes;
  int expert = 0;
  const esp_tensor *h = node->inputs[0], *pre = node->inputs[1];
  const int64_t width = esp_tensor_columns(h), columns = esp_tensor_columns(pre);
  esp_threshold_search search = {.guess = 1};
  for (int64_t r = begin; r < end; r++) {
    esp_real *y = node->outputs[0]->data + r * width;
    uint8_t *mask = at->mask + r * width;
    const int64_t neurons = neurons_of_row(&at->selection, width, r, &expert);
    esp_gate_values(at->selection.ranking, pre->data + r * columns, neurons, y);
    esp_neuron_mask(&search, y, neurons, at->selection.kept, mask);
    memset(mask + neurons, 0, (size_t)(width - neurons));
    apply_mask(mask, h->data + r * width, y, width, false);
  }
}

static void neuron_forward(esp_node *node) {
  esp_parallel_rows(esp_tensor_rows(node->inputs[0]), esp_tensor_columns(node->inputs[0]), select_rows, node);
}

typedef struct mask_gradient {
  const esp_node *node;
  esp_real *dh;
  bool accumulate;
} mask_gradient;

static void mask_gradient_rows(void *context, int64_t begin, int64_t end) {
  const mask_gradient *g = context;
  const int64_t width = esp_tensor_columns(g->node->inputs[0]);
  const uint8_t *mask = ((const neuron_attributes *)g->node->attributes)->mask;
  for (int64_t r = begin; r < end; r++)
    apply_mask(mask + r * width, g->node->outputs[0]->grad + r * width, g->dh + r * width, width, g->accumulate);
}

static void neuron_backward(esp_node *node) {
  mask_gradient g = {.node = node};
  g.dh = esp_grad(node->inputs[0], &g.accumulate);
  if (!g.dh) return;
  esp_parallel_rows(esp_tensor_rows(node->inputs[0]), esp_tensor_columns(node->inputs[0]), mask_gradient_rows, &g);
}

/* The activation, and about six counting passes. */
static esp_cost neuron_cost(const esp_node *node) { return esp_cost_elementwise(node, 10); }

const esp_op esp_op_neuron_top_k = {
    "neuron top-k",  neuron_prepare, neuron_forward,
    neuron_backward, neuron_cost,    {1e-6, 1e-6, "two magnitudes at the edge of the selection are equal"}};

esp_tensor *esp_neuron_top_k(esp_tape *tape, esp_tensor *h, esp_tensor *pre, const esp_neuron_selection *selection,
                             const uint8_t **mask) {
  neuron_attributes at = {*selection, h && pre ? esp_tape_take(tape, (size_t)esp_tensor_count(h)) : NULL};
  if (!at.mask) return NULL;
  if (mask) *mask = at.mask;
  return esp_tape_apply(tape, &esp_op_neuron_top_k, (esp_tensor *[]){h, pre}, 2, &at, sizeof at);
}
