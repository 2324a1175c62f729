/* Ops that treat each element, or each row of a gated pair, by itself. */
#include "ops_internal.h"
#include <espalier/op_helpers.h>
#include <espalier/random.h>

#include <string.h>

/* --- add, multiply: c = a + b, c = a b, b repeated over a's leading dimensions ------------------------------
 * add: da = dc, db = dc summed over the repeats; multiply: da = dc b, db = dc a summed. */

static bool is_tail_of(const esp_tensor *b, const esp_tensor *a) {
  return b->rank <= a->rank &&
         memcmp(b->shape, a->shape + a->rank - b->rank, (size_t)b->rank * sizeof b->shape[0]) == 0;
}

static void broadcast_prepare(esp_node *node) {
  const esp_tensor *a = node->inputs[0], *b = node->inputs[1];
  esp_require(node, is_tail_of(b, a), "the second shape must be that of the first's last dimensions");
  esp_set_output_same(node);
  if (!esp_same_shape(a, b)) node->scratch_bytes = (size_t)(ESP_PARTS * esp_tensor_count(b)) * sizeof(esp_real);
}

static void add_prepare(esp_node *node) {
  broadcast_prepare(node);
  node->unread = ESP_UNREAD_INPUT(0) | ESP_UNREAD_INPUT(1) | ESP_UNREAD_OUTPUTS;
  node->passes = ESP_PASSES(0);
  if (esp_same_shape(node->inputs[0], node->inputs[1])) node->passes |= ESP_PASSES(1);
}

/* Loops over elements [begin, end) of a in runs within which b's index is consecutive. */
#define FOR_BROADCAST_RUNS(begin, end, period, body)                                 \
  for (int64_t i_ = (begin); i_ < (end);) {                                          \
    const int64_t offset = i_, phase = i_ % (period);                                \
    const int64_t rest = (period)-phase, length = rest < (end)-i_ ? rest : (end)-i_; \
    body;                                                                            \
    i_ += length;                                                                    \
  }

ESP_HOT static void add_range(void *context, int64_t begin, int64_t end) {
  const esp_node *node = context;
  const esp_real *a = node->inputs[0]->data, *b = node->inputs[1]->data;
  esp_real *c = node->outputs[0]->data;
  const int64_t period = esp_tensor_count(node->inputs[1]);
  FOR_BROADCAST_RUNS(begin, end, period,
                     for (int64_t j = 0; j < length; j++) c[offset + j] = a[offset + j] + b[phase + j])
}

ESP_HOT static void multiply_range(void *context, int64_t begin, int64_t end) {
  const esp_node *node = context;
  const esp_real *a = node->inputs[0]->data, *b = node->inputs[1]->data;
  esp_real *c = node->outputs[0]->data;
  const int64_t period = esp_tensor_count(node->inputs[1]);
  FOR_BROADCAST_RUNS(begin, end, period,
                     for (int64_t j = 0; j < length; j++) c[offset + j] = a[offset + j] * b[phase + j])
}

static void add_forward(esp_node *node) { esp_parallel_elements(esp_tensor_count(node->inputs[0]), add_range, node); }

static void multiply_forward(esp_node *node) {
  esp_parallel_elements(esp_tensor_count(node->inputs[0]), multiply_range, node);
}

/* target (+)= source, or source * factor where factor is given (repeated with `period`). */
typedef struct accumulation {
  esp_real *target;
  const esp_real *source, *factor;
  int64_t period;
  bool accumulate;
} accumulation;

ESP_HOT static void accumulate_range(void *context, int64_t begin, int64_t end) {
  const accumulation *x = context;
  esp_real *target = x->target;
  const esp_real *source = x->source, *factor = x->factor;
  if (!factor && !x->accumulate) memcpy(target + begin, source + begin, (size_t)(end - begin) * sizeof *target);
  else if (!factor)
    for (int64_t i = begin; i < end; i++) target[i] += source[i];
  else
    FOR_BROADCAST_RUNS(
        begin, end, x->period, for (int64_t j = 0; j < length; j++) {
          const esp_real value = source[offset + j] * factor[phase + j];
          target[offset + j] = x->accumulate ? target[offset + j] + value : value;
        })
}

static void accumulate(int64_t count, accumulation x) { esp_parallel_elements(count, accumulate_range, &x); }

typedef struct repeat_sum {
  const esp_real *source, *factor;
  int64_t repeats, period;
  esp_real *parts;
} repeat_sum;

ESP_HOT static void sum_repeats(void *context, int64_t begin, int64_t end) {
  const repeat_sum *x = context;
  for (int64_t part = begin; part < end; part++) {
    esp_real *restrict sums = x->parts + part * x->period;
    memset(sums, 0, (size_t)x->period * sizeof *sums);
    for (int64_t r = esp_part_begin(x->repeats, part); r < esp_part_begin(x->repeats, part + 1); r++) {
      const int64_t offset = r * x->period;
      if (x->factor)
        for (int64_t j = 0; j < x->period; j++) sums[j] += x->source[offset + j] * x->factor[offset + j];
      else
        for (int64_t j = 0; j < x->period; j++) sums[j] += x->source[offset + j];
    }
  }
}

static void broadcast_backward(esp_node *node, const esp_real *factor_of_a, const esp_real *factor_of_b) {
  esp_tensor *a = node->inputs[0], *b = node->inputs[1];
  const esp_real *dc = node->outputs[0]->grad;
  const int64_t count = esp_tensor_count(a), period = esp_tensor_count(b);
  bool add;
  esp_real *da = esp_grad(a, &add);
  if (da) accumulate(count, (accumulation){da, dc, factor_of_a, period, add});
  esp_real *db = esp_grad(b, &add);
  if (!db) return;
  if (count == period) {
    accumulate(count, (accumulation){db, dc, factor_of_b, count, add});
  } else {
    repeat_sum sum = {dc, factor_of_b, count / period, period, node->scratch};
    esp_parallel_for(ESP_PARTS, 1, sum_repeats, &sum);
    esp_add_parts(node->scratch, period, db, add);
  }
}

static void add_backward(esp_node *node) { broadcast_backward(node, NULL, NULL); }

static void multiply_backward(esp_node *node) {
  broadcast_backward(node, node->inputs[1]->data, node->inputs[0]->data);
}

static esp_cost one_flop(const esp_node *node) { return esp_cost_elementwise(node, 1); }

const esp_op esp_op_add = {"add", add_prepare, add_forward, add_backward, one_flop, {1e-4, 1e-8, NULL}};
const esp_op esp_op_multiply = {"multiply",        broadcast_prepare, multiply_forward,
                                multiply_backward, one_flop,          {1e-4, 1e-8, NULL}};

esp_tensor *esp_add(esp_tape *tape, esp_tensor *a, esp_tensor *b) {
  return esp_tape_apply(tape, &esp_op_add, (esp_tensor *[]){a, b}, 2, NULL, 0);
}

esp_tensor *esp_multiply(esp_tape *tape, esp_tensor *a, esp_tensor *b) {
  return esp_tape_apply(tape, &esp_op_multiply, (esp_tensor *[]){a, b}, 2, NULL, 0);
}

/* --- scale: y = factor x;  dx = factor dy ------------------------------------------------------------------ */

typedef struct scale_attributes {
  esp_real factor;
} scale_attributes;

ESP_HOT static void scale_range(void *context, int64_t begin, int64_t end) {
  const esp_node *node = context;
  const esp_real factor = ((const scale_attributes *)node->attributes)->factor, *x = node->inputs[0]->data;
  esp_real *y = node->outputs[0]->data;
  for (int64_t i = begin; i < end; i++) y[i] = factor * x[i];
}

static void scale_forward(esp_node *node) {
  esp_parallel_elements(esp_tensor_count(node->inputs[0]), scale_range, node);
}

static void scale_backward(esp_node *node) {
  const scale_attributes *at = node->attributes;
  bool add;
  esp_real *dx = esp_grad(node->inputs[0], &add);
  accumulate(esp_tensor_count(node->inputs[0]), (accumulation){dx, node->outputs[0]->grad, &at->factor, 1, add});
}

static void scale_prepare(esp_node *node) {
  esp_set_output_same(node);
  node->unread = ESP_UNREAD_INPUT(0) | ESP_UNREAD_OUTPUTS;
}

const esp_op esp_op_scale = {"scale", scale_prepare, scale_forward, scale_backward, one_flop, {1e-4, 1e-8, NULL}};

esp_tensor *esp_scale(esp_tape *tape, esp_tensor *x, double factor) {
  return esp_tape_apply(tape, &esp_op_scale, &x, 1, &(scale_attributes){(esp_real)factor}, sizeof(scale_attributes));
}

/* --- activations: y = f(x);  dx = f'(x) dy ----------------------------------------------------------------- */

#define SQRT_2_OVER_PI ESP_LITERAL(0.79788456080286535588)
#define HALF ESP_LITERAL(0.5)
#define CUBIC ESP_LITERAL(0.044715)

static inline esp_real gelu_tanh_value(esp_real x) {
  return HALF * x * (1 + esp_tanh(SQRT_2_OVER_PI * (x + CUBIC * x * x * x)));
}
static inline esp_real gelu_tanh_slope(esp_real x) {
  const esp_real t = esp_tanh(SQRT_2_OVER_PI * (x + CUBIC * x * x * x));
  return HALF * (1 + t) + HALF * x * (1 - t * t) * SQRT_2_OVER_PI * (1 + 3 * CUBIC * x * x);
}

static void activation_prepare(esp_node *node) {
  esp_set_output_same(node);
  node->unread = ESP_UNREAD_OUTPUTS;
  node->overwrites = true;
}

/* An op from its value and its slope, both functions of x. */
#define ACTIVATION(function, op_name, flops, value, slope, kink)                                                  \
  ESP_HOT static void function##_range(void *context, int64_t begin, int64_t end) {                               \
    const esp_node *node = context;                                                                               \
    const esp_real *restrict x = node->inputs[0]->data;                                                           \
    esp_real *restrict y = node->outputs[0]->data;                                                                \
    for (int64_t i = begin; i < end; i++) y[i] = value(x[i]);                                                     \
  }                                                                                                               \
  ESP_HOT static void function##_gradient_range(void *context, int64_t begin, int64_t end) {                      \
    const accumulation *a = context;                                                                              \
    const esp_real *dy = a->source, *x = a->factor;                                                               \
    esp_real *dx = a->target; /* perhaps x itself */                                                              \
    if (a->accumulate) {                                                                                          \
      ESP_PRAGMA(omp simd)                                                                                        \
      for (int64_t i = begin; i < end; i++) dx[i] += dy[i] * slope(x[i]);                                         \
    } else {                                                                                                      \
      ESP_PRAGMA(omp simd)                                                                                        \
      for (int64_t i = begin; i < end; i++) dx[i] = dy[i] * slope(x[i]);                                          \
    }                                                                                                             \
  }                                                                                                               \
  static void function##_forward(esp_node *node) {                                                                \
    esp_parallel_elements(esp_tensor_count(node->inputs[0]), function##_range, node);                             \
  }                                                                                                               \
  static void function##_backward(esp_node *node) {                                                               \
    accumulation a = {.source = node->outputs[0]->grad, .factor = node->inputs[0]->data};                         \
    a.target = esp_grad(node->inputs[0], &a.accumulate);                                                          \
    esp_parallel_elements(esp_tensor_count(node->inputs[0]), function##_gradient_range, &a);                      \
  }                                                                                                               \
  static esp_cost function##_cost(const esp_node *node) { return esp_cost_elementwise(node, flops); }             \
  const esp_op esp_op_##function = {op_name,         activation_prepare, function##_forward, function##_backward, \
                                    function##_cost, {1e-5, 1e-7, kink}};                                         \
  esp_tensor *esp_##function(esp_tape *tape, esp_tensor *x) {                                                     \
    return esp_tape_apply(tape, &esp_op_##function, &x, 1, NULL, 0);                                              \
  }

ACTIVATION(relu, "relu", 1, esp_relu_value, esp_relu_slope, "x = 0")
ACTIVATION(squared_relu, "squared relu", 2, esp_squared_relu_value, esp_squared_relu_slope, NULL)
ACTIVATION(silu, "silu", 4, esp_silu_value, esp_silu_slope, NULL)
ACTIVATION(gelu, "gelu", 8, esp_gelu_value, esp_gelu_slope, NULL)
ACTIVATION(gelu_tanh, "gelu tanh", 9, gelu_tanh_value, gelu_tanh_slope, NULL)

/* --- glu: h = f(g) u for rows g | u, f one of esp_gate_kind -------------------------------------------------
 * dg = dh u f'(g);  du = dh f(g). */

typedef struct glu_attributes {
  esp_gate_kind gate;
} glu_attributes;

static void glu_prepare(esp_node *node) {
  esp_require(node, esp_tensor_columns(node->inputs[0]) % 2 == 0, "needs an even last dimension: gate | up");
  esp_set_output_columns(node, 0, esp_tensor_columns(node->inputs[0]) / 2);
  node->unread = ESP_UNREAD_OUTPUTS;
  node->overwrites = true;
}

ESP_HOT static void multiply_into(esp_real *restrict y, const esp_real *restrict x, int64_t count) {
  for (int64_t j = 0; j < count; j++) y[j] *= x[j];
}

static void glu_rows(void *context, int64_t begin, int64_t end) {
  const esp_node *node = context;
  const int64_t width = esp_tensor_columns(node->outputs[0]);
  for (int64_t r = begin; r < end; r++) {
    const esp_real *gate = node->inputs[0]->data + r * 2 * width;
    esp_real *h = node->outputs[0]->data + r * width;
    esp_gate_values(((const glu_attributes *)node->attributes)->gate, gate, width, h);
    multiply_into(h, gate + width, width);
  }
}

static void glu_forward(esp_node *node) {
  const esp_tensor *h = node->outputs[0];
  esp_parallel_rows(esp_tensor_rows(h), esp_tensor_columns(h), glu_rows, node);
}

typedef struct glu_gradient {
  esp_gate_kind gate;
  const esp_real *x, *dh;
  esp_real *dx;
  int64_t width;
  bool accumulate;
} glu_gradient;

static void glu_gradient_rows(void *context, int64_t begin, int64_t end) {
  const glu_gradient *s = context;
  const int64_t width = s->width;
  for (int64_t r = begin; r < end; r++) {
    const esp_real *gate = s->x + r * 2 * width;
    esp_real *dgate = s->dx + r * 2 * width;
    const esp_glu_arrays arrays = {
        .gate = gate, .up = gate + width, .dh = s->dh + r * width, .dgate = dgate, .dup = dgate + width};
    esp_glu_gradient(s->gate, &arrays, width, s->accumulate);
  }
}

static void glu_backward(esp_node *node) {
  const esp_tensor *h = node->outputs[0];
  glu_gradient s = {.gate = ((const glu_attributes *)node->attributes)->gate,
                    .x = node->inputs[0]->data,
                    .dh = h->grad,
                    .width = esp_tensor_columns(h)};
  s.dx = esp_grad(node->inputs[0], &s.accumulate);
  esp_parallel_rows(esp_tensor_rows(h), s.width, glu_gradient_rows, &s);
}

static esp_cost glu_cost(const esp_node *node) { return esp_cost_elementwise(node, 5); }

const esp_op esp_op_glu = {"glu",        glu_prepare, glu_forward,
                           glu_backward, glu_cost,    {1e-5, 1e-7, "gate = 0 with a ReLU"}};

esp_tensor *esp_glu(esp_tape *tape, esp_tensor *x, esp_gate_kind gate) {
  return esp_tape_apply(tape, &esp_op_glu, &x, 1, &(glu_attributes){gate}, sizeof(glu_attributes));
}

esp_tensor *esp_swiglu(esp_tape *tape, esp_tensor *x) { return esp_glu(tape, x, ESP_GATE_SILU); }

/* --- dropout: y = mask x / (1 - rate);  dx = mask dy / (1 - rate) ------------------------------------------ */

typedef struct dropout_attributes {
  double rate;
  uint64_t seed, index;
} dropout_attributes;

enum { DROPOUT_RANGE = 4096 }; /* each range of elements has a stream of its own */

static void dropout_prepare(esp_node *node) {
  esp_set_output_same(node);
  node->saved_bytes = (size_t)esp_tensor_count(node->inputs[0]) * sizeof(esp_real);
  node->unread = ESP_UNREAD_INPUT(0) | ESP_UNREAD_OUTPUTS;
}

static void dropout_range(void *context, int64_t begin, int64_t end) {
  const esp_node *node = context;
  const dropout_attributes *at = node->attributes;
  esp_real *mask = node->saved;
  const esp_real *x = node->inputs[0]->data, kept = (esp_real)(1 / (1 - at->rate));
  esp_real *y = node->outputs[0]->data;
  const uint64_t range = (uint64_t)(begin / DROPOUT_RANGE);
  esp_random stream = esp_random_stream(at->seed, ESP_PURPOSE_DROPOUT, at->index * 0x100000u + range);
  for (int64_t i = begin; i < end; i++) {
    mask[i] = esp_random_uniform(&stream) < at->rate ? 0 : kept;
    y[i] = mask[i] * x[i];
  }
}

static void dropout_forward(esp_node *node) {
  esp_parallel_for(esp_tensor_count(node->inputs[0]), DROPOUT_RANGE, dropout_range, node);
}

static void dropout_backward(esp_node *node) {
  const int64_t count = esp_tensor_count(node->inputs[0]);
  bool add;
  esp_real *dx = esp_grad(node->inputs[0], &add);
  accumulate(count, (accumulation){dx, node->outputs[0]->grad, node->saved, count, add});
}

const esp_op esp_op_dropout = {"dropout",        dropout_prepare, dropout_forward,
                               dropout_backward, one_flop,        {1e-4, 1e-8, NULL}};

esp_tensor *esp_dropout(esp_tape *tape, esp_tensor *x, double rate, uint64_t seed, uint64_t index) {
  if (rate <= 0) return x;
  return esp_tape_apply(tape, &esp_op_dropout, &x, 1, &(dropout_attributes){rate, seed, index},
                        sizeof(dropout_attributes));
}
