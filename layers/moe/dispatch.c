/* The token dispatcher: tokens to the rows of their experts, and the rows back into tokens. */
#include "moe_ops_internal.h"

#include <string.h>

typedef struct routing_attributes {
  const esp_routing *routing;
} routing_attributes;

static const esp_routing *routing_of(const esp_node *node) {
  return ((const routing_attributes *)node->attributes)->routing;
}

static esp_cost no_flops(const esp_node *node) { return esp_cost_elementwise(node, 0); }

/* --- dispatch: row r = x of the token of slot[r];  dx_t = sum of the rows of token t's slots, in order ------- */

static void dispatch_prepare(esp_node *node) {
  const esp_routing *r = routing_of(node);
  esp_require(node, esp_tensor_rows(node->inputs[0]) == r->tokens, "needs one row a token");
  esp_set_output(node, 0, 2, (const int64_t[]){r->rows, esp_tensor_columns(node->inputs[0])});
  node->unread = ESP_UNREAD_INPUT(0) | ESP_UNREAD_OUTPUTS;
}

static void dispatch_rows(void *context, int64_t begin, int64_t end) {
  const esp_node *node = context;
  const esp_routing *r = routing_of(node);
  const int64_t columns = esp_tensor_columns(node->inputs[0]);
  for (int64_t row = begin; row < end; row++)
    memcpy(node->outputs[0]->data + row * columns, node->inputs[0]->data + r->token[r->slot[row]] * columns,
           (size_t)columns * sizeof(esp_real));
}

static void dispatch_forward(esp_node *node) {
  esp_parallel_rows(routing_of(node)->rows, esp_tensor_columns(node->inputs[0]), dispatch_rows, node);
}

typedef struct token_gradient {
  const esp_node *node;
  esp_real *dx;
  bool accumulate;
} token_gradient;

ESP_HOT static void dispatch_gradient_tokens(void *context, int64_t begin, int64_t end) {
  const token_gradient *g = context;
  const esp_routing *r = routing_of(g->node);
  const int64_t columns = esp_tensor_columns(g->node->inputs[0]);
  for (int64_t t = begin; t < end; t++) {
    esp_real *restrict dx = g->dx + t * columns;
    if (!g->accumulate) memset(dx, 0, (size_t)columns * sizeof *dx);
    for (int64_t i = r->first_slot[t]; i < r->first_slot[t + 1]; i++) {
      if (r->row[i] < 0) continue;
      const esp_real *restrict dy = g->node->outputs[0]->grad + r->row[i] * columns;
      for (int64_t j = 0; j < columns; j++) dx[j] += dy[j];
    }
  }
}

static void dispatch_backward(esp_node *node) {
  token_gradient g = {.node = node};
  g.dx = esp_grad(node->inputs[0], &g.accumulate);
  esp_parallel_rows(routing_of(node)->tokens, esp_tensor_columns(node->inputs[0]), dispatch_gradient_tokens, &g);
}

const esp_op esp_op_dispatch = {"dispatch",        dispatch_prepare, dispatch_forward,
                                dispatch_backward, no_flops,         {1e-4, 1e-8, NULL}};

esp_tensor *esp_dispatch(esp_tape *tape, esp_tensor *x, const esp_routing *routing) {
  return esp_tape_apply(tape, &esp_op_dispatch, &x, 1, &(routing_attributes){routing}, sizeof(routing_attributes));
}

/* --- combine: y_t = sum_i g_ti x_row(t,i);  dx_row = g_ti dy_t;  dg_ti = <dy_t, x_row> ------------------------ */

static void combine_prepare(esp_node *node) {
  const esp_routing *r = routing_of(node);
  const esp_tensor *rows = node->inputs[0], *gates = node->inputs[1];
  esp_require(node, esp_tensor_rows(rows) == r->rows && esp_tensor_count(gates) == r->slots,
              "needs the routing's rows and a gate of each slot");
  esp_set_output(node, 0, 2, (const int64_t[]){r->tokens, esp_tensor_columns(rows)});
  node->unread = ESP_UNREAD_OUTPUTS;
}

/* The first slot sets and the others add: with k = 1 and a gate of 1 the rows come back bit for bit. */
ESP_HOT static void combine_tokens(void *context, int64_t begin, int64_t end) {
  const esp_node *node = context;
  const esp_routing *r = routing_of(node);
  const int64_t columns = esp_tensor_columns(node->inputs[0]);
  for (int64_t t = begin; t < end; t++) {
    esp_real *restrict y = node->outputs[0]->data + t * columns;
    memset(y, 0, (size_t)columns * sizeof *y);
    for (int64_t i = r->first_slot[t]; i < r->first_slot[t + 1]; i++) {
      if (r->row[i] < 0) continue;
      const esp_real *restrict x = node->inputs[0]->data + r->row[i] * columns, gate = node->inputs[1]->data[i];
      for (int64_t j = 0; j < columns; j++) y[j] += gate * x[j];
    }
  }
}

static void combine_forward(esp_node *node) {
  esp_parallel_rows(routing_of(node)->tokens, esp_tensor_columns(node->inputs[0]), combine_tokens, node);
}

typedef struct combine_gradient {
  const esp_node *node;
  esp_real *dx, *dgates;
  bool add_x, add_gates;
} combine_gradient;

ESP_HOT static void combine_gradient_slot(const combine_gradient *g, int64_t slot, int64_t columns) {
  const esp_routing *r = routing_of(g->node);
  const esp_real *restrict dy = g->node->outputs[0]->grad + r->token[slot] * columns;
  esp_real dot = 0;
  if (r->row[slot] >= 0) {
    const int64_t offset = r->row[slot] * columns;
    const esp_real *restrict x = g->node->inputs[0]->data + offset, gate = g->node->inputs[1]->data[slot];
    ESP_SUMS(dot)
    for (int64_t j = 0; j < columns; j++) dot += dy[j] * x[j];
    esp_real *restrict dx = g->dx ? g->dx + offset : NULL;
    if (dx && g->add_x)
      for (int64_t j = 0; j < columns; j++) dx[j] += gate * dy[j];
    else if (dx)
      for (int64_t j = 0; j < columns; j++) dx[j] = gate * dy[j];
  }
  if (g->dgates) g->dgates[slot] = (g->add_gates ? g->dgates[slot] : 0) + dot;
}

static void combine_gradient_tokens(void *context, int64_t begin, int64_t end) {
  const combine_gradient *g = context;
  const int64_t columns = esp_tensor_columns(g->node->inputs[0]), *first_slot = routing_of(g->node)->first_slot;
  for (int64_t slot = first_slot[begin]; slot < first_slot[end]; slot++) combine_gradient_slot(g, slot, columns);
}

static void combine_backward(esp_node *node) {
  combine_gradient g = {.node = node};
  g.dx = esp_grad(node->inputs[0], &g.add_x);
  g.dgates = esp_grad(node->inputs[1], &g.add_gates);
  esp_parallel_rows(routing_of(node)->tokens, esp_tensor_columns(node->inputs[0]), combine_gradient_tokens, &g);
}

static esp_cost combine_cost(const esp_node *node) {
  const esp_routing *r = routing_of(node);
  return esp_cost_elementwise(node, 2.0 * (double)r->slots / (double)r->tokens);
}

const esp_op esp_op_combine = {"combine",        combine_prepare, combine_forward,
                               combine_backward, combine_cost,    {1e-4, 1e-7, NULL}};

esp_tensor *esp_combine(esp_tape *tape, esp_tensor *rows, esp_tensor *gates, const esp_routing *routing) {
  return esp_tape_apply(tape, &esp_op_combine, (esp_tensor *[]){rows, gates}, 2, &(routing_attributes){routing},
                        sizeof(routing_attributes));
}
