/* Products with factored experts, W = U V + S, S having a few rows only. */
#include "moe_ops_internal.h"

#include <string.h>

/* --- factored map: Y_e = H_e U_e^T + X_e S_e^T + b_e with H_e = X_e V_e^T, for the rows of each group e -------------
 * S_e has the rows that the list names, the others are 0. With two parts (gate | up) U is block-diagonal: part p of Y
 * is made of part p of H.
 * dH = dY U;  dU = dY^T H;  dV = dH^T X;  dS = (dY's columns that the list names)^T X;  dX = dH V + (these columns)
 * S. */

typedef struct factored_attributes {
  const int64_t *first_row;
  int64_t groups, parts;
  const int32_t *counts; /* [groups] rows of S */
} factored_attributes;

typedef struct factored_shape {
  int64_t rows, in, out, inner; /* inner: parts x rank */
  int64_t most;                 /* rows of S in the group that has most */
} factored_shape;

enum { X, U, V, S, LIST, BIAS, INPUTS };

static factored_shape factored_shape_of(const esp_node *node) {
  const factored_attributes *at = node->attributes;
  const esp_tensor *u = node->inputs[U];
  factored_shape s = {esp_tensor_rows(node->inputs[X]), esp_tensor_columns(node->inputs[V]), u->shape[1],
                      at->parts * u->shape[2], 0};
  for (int64_t e = 0; e < at->groups; e++)
    if (at->counts[e] > s.most) s.most = at->counts[e];
  return s;
}

/* The list of products, H, and room for products with rows of S. */
typedef struct factored_memory {
  esp_gemm *products;
  esp_real *hidden; /* [rows, inner] */
  esp_real *packed; /* [rows, most] */
} factored_memory;

static int64_t product_count(const factored_attributes *at) { return at->groups * (at->parts + 1); }

static factored_memory memory_of(const esp_node *node) {
  const factored_shape s = factored_shape_of(node);
  factored_memory m = {.products = node->saved};
  m.hidden = (esp_real *)(void *)(m.products + product_count(node->attributes));
  m.packed = m.hidden + s.rows * s.inner;
  return m;
}

/* Whether the row numbers of each group that lacks rows ascend and lie from 0 to out - 1. */
static bool lists_ascend(const esp_node *node, int64_t out) {
  const factored_attributes *at = node->attributes;
  const esp_real *list = node->inputs[LIST]->data;
  for (int64_t e = 0; e < at->groups; list += at->counts[e++])
    for (int64_t i = 0; at->counts[e] < out && i < at->counts[e]; i++)
      if (!(list[i] >= 0 && list[i] < (esp_real)out) || (i > 0 && list[i] <= list[i - 1])) return false;
  return true;
}

static void factored_prepare(esp_node *node) {
  const factored_attributes *at = node->attributes;
  const esp_tensor *u = node->inputs[U], *v = node->inputs[V], *s = node->inputs[S], *bias = node->inputs[BIAS];
  esp_require(node, u->rank == 3 && v->rank == 3 && u->shape[0] == at->groups && v->shape[0] == at->groups,
              "needs two factors a group");
  const factored_shape shape = factored_shape_of(node);
  int64_t listed = 0;
  for (int64_t e = 0; e < at->groups; e++) listed += at->counts[e];
  esp_require(node, v->shape[1] == shape.inner && shape.out % at->parts == 0, "the factors do not fit each other");
  esp_require(node, esp_tensor_columns(node->inputs[X]) == shape.in, "the rows do not fit the matrices");
  esp_require(node, at->first_row[at->groups] == shape.rows, "the groups do not cover the rows");
  esp_require(node,
              s->rank == 2 && s->shape[1] == shape.in && s->shape[0] == (listed ? listed : 1) &&
                  shape.most <= shape.out && esp_tensor_count(node->inputs[LIST]) == s->shape[0],
              "the sparse rows are not as many as their list says");
  esp_require(node, lists_ascend(node, shape.out), "the list of sparse rows does not ascend");
  esp_require(node, !bias || esp_tensor_count(bias) == at->groups * shape.out, "the bias needs one row a group");
  esp_set_output_columns(node, 0, shape.out);
  node->saved_bytes = (size_t)product_count(at) * sizeof(esp_gemm) +
                      (size_t)(shape.rows * (shape.inner + shape.most)) * sizeof(esp_real);
  node->scratch_bytes = (size_t)(shape.rows * shape.inner + ESP_PARTS * shape.out) * sizeof(esp_real);
}

/* One group: where its rows and its sparse rows are. */
typedef struct group {
  int64_t first, count;   /* of the rows of X and Y */
  int64_t sparse, listed; /* of the rows of S */
  bool whole;             /* S has all rows: in their own order, for lists ascend */
} group;

static group next_group(const esp_node *node, int64_t e, int64_t sparse) {
  const factored_attributes *at = node->attributes;
  const int64_t listed = at->counts[e];
  return (group){at->first_row[e], at->first_row[e + 1] - at->first_row[e], sparse, listed,
                 listed == node->inputs[U]->shape[1]};
}

/* Calls body(node, group, e, context) for each group. */
typedef void group_body(const esp_node *node, const group *g, int64_t e, void *context);

static void each_group(const esp_node *node, group_body *body, void *context) {
  const factored_attributes *at = node->attributes;
  int64_t sparse = 0;
  for (int64_t e = 0; e < at->groups; e++) {
    const group g = next_group(node, e, sparse);
    body(node, &g, e, context);
    sparse += g.listed;
  }
}

/* Products are listed, then run together. */
typedef struct product_list {
  factored_shape shape;
  factored_memory memory;
  int64_t count;
  esp_real *target; /* a gradient */
  const esp_real *dhidden;
  bool accumulate;
  esp_precision precision;
} product_list;

static product_list start_list(const esp_node *node) {
  return (product_list){.shape = factored_shape_of(node), .memory = memory_of(node), .precision = node->precision};
}

static void run_list(product_list *list) {
  esp_gemm_run(list->memory.products, list->count);
  list->count = 0;
}

static void add(product_list *list, esp_gemm product) {
  product.alpha = 1;
  product.precision = list->precision;
  list->memory.products[list->count++] = product;
}

/* Between the columns of Y's rows that a list names and `packed` [rows, listed]: added resp. copied out. */
typedef struct columns_job {
  const esp_real *list;
  esp_real *wide, *packed;
  int64_t out, listed;
} columns_job;

static void add_columns(void *context, int64_t begin, int64_t end) {
  const columns_job *j = context;
  for (int64_t r = begin; r < end; r++)
    for (int64_t i = 0; i < j->listed; i++) j->wide[r * j->out + (int64_t)j->list[i]] += j->packed[r * j->listed + i];
}

static void take_columns(void *context, int64_t begin, int64_t end) {
  const columns_job *j = context;
  for (int64_t r = begin; r < end; r++)
    for (int64_t i = 0; i < j->listed; i++) j->packed[r * j->listed + i] = j->wide[r * j->out + (int64_t)j->list[i]];
}

static void move_columns(const esp_node *node, const group *g, esp_real *wide, esp_range_body *body) {
  const factored_shape s = factored_shape_of(node);
  if (g->whole || g->listed == 0) return;
  columns_job job = {node->inputs[LIST]->data + g->sparse, wide + g->first * s.out,
                     memory_of(node).packed + g->first * s.most, s.out, g->listed};
  esp_parallel_rows(g->count, g->listed, body, &job);
}

/* --- forward --- */

static void list_hidden(const esp_node *node, const group *g, int64_t e, void *context) {
  product_list *l = context;
  const factored_shape *s = &l->shape;
  add(l, (esp_gemm){.transpose_b = true,
                    .m = g->count,
                    .n = s->inner,
                    .k = s->in,
                    .a = node->inputs[X]->data + g->first * s->in,
                    .lda = s->in,
                    .b = node->inputs[V]->data + e * s->inner * s->in,
                    .ldb = s->in,
                    .c = l->memory.hidden + g->first * s->inner,
                    .ldc = s->inner});
}

static void list_outputs(const esp_node *node, const group *g, int64_t e, void *context) {
  product_list *l = context;
  const factored_shape *s = &l->shape;
  const int64_t parts = ((const factored_attributes *)node->attributes)->parts, rank = s->inner / parts;
  const int64_t own = s->out / parts;
  const esp_real *bias = node->inputs[BIAS] ? node->inputs[BIAS]->data + e * s->out : NULL;
  esp_real *y = node->outputs[0]->data + g->first * s->out;
  for (int64_t p = 0; p < parts; p++)
    add(l, (esp_gemm){.transpose_b = true,
                      .m = g->count,
                      .n = own,
                      .k = rank,
                      .a = l->memory.hidden + g->first * s->inner + p * rank,
                      .lda = s->inner,
                      .b = node->inputs[U]->data + (e * s->out + p * own) * rank,
                      .ldb = rank,
                      .c = y + p * own,
                      .ldc = s->out,
                      .bias = bias ? bias + p * own : NULL});
}

/* Straight into Y where S has all rows, else into `packed`. */
static void list_sparse(const esp_node *node, const group *g, int64_t e, void *context) {
  product_list *l = context;
  const factored_shape *s = &l->shape;
  (void)e;
  add(l, (esp_gemm){.transpose_b = true,
                    .m = g->count,
                    .n = g->listed,
                    .k = s->in,
                    .a = node->inputs[X]->data + g->first * s->in,
                    .lda = s->in,
                    .b = node->inputs[S]->data + g->sparse * s->in,
                    .ldb = s->in,
                    .c = g->whole ? node->outputs[0]->data + g->first * s->out : l->memory.packed + g->first * s->most,
                    .ldc = g->whole ? s->out : g->listed,
                    .beta = g->whole});
}

static void add_packed(const esp_node *node, const group *g, int64_t e, void *context) {
  (void)e;
  (void)context;
  move_columns(node, g, node->outputs[0]->data, add_columns);
}

static void factored_forward(esp_node *node) {
  product_list list = start_list(node);
  each_group(node, list_hidden, &list);
  run_list(&list);
  each_group(node, list_outputs, &list);
  run_list(&list);
  each_group(node, list_sparse, &list);
  run_list(&list);
  each_group(node, add_packed, NULL);
}

/* --- backward --- */

static void list_hidden_gradient(const esp_node *node, const group *g, int64_t e, void *context) {
  product_list *l = context;
  const factored_shape *s = &l->shape;
  const int64_t parts = ((const factored_attributes *)node->attributes)->parts, rank = s->inner / parts;
  const int64_t own = s->out / parts;
  for (int64_t p = 0; p < parts; p++)
    add(l, (esp_gemm){.m = g->count,
                      .n = rank,
                      .k = own,
                      .a = node->outputs[0]->grad + g->first * s->out + p * own,
                      .lda = s->out,
                      .b = node->inputs[U]->data + (e * s->out + p * own) * rank,
                      .ldb = rank,
                      .c = l->target + g->first * s->inner + p * rank,
                      .ldc = s->inner});
}

static void list_u_gradient(const esp_node *node, const group *g, int64_t e, void *context) {
  product_list *l = context;
  const factored_shape *s = &l->shape;
  const int64_t parts = ((const factored_attributes *)node->attributes)->parts, rank = s->inner / parts;
  const int64_t own = s->out / parts;
  for (int64_t p = 0; p < parts; p++)
    add(l, (esp_gemm){.transpose_a = true,
                      .m = own,
                      .n = rank,
                      .k = g->count,
                      .a = node->outputs[0]->grad + g->first * s->out + p * own,
                      .lda = s->out,
                      .b = l->memory.hidden + g->first * s->inner + p * rank,
                      .ldb = s->inner,
                      .c = l->target + (e * s->out + p * own) * rank,
                      .ldc = rank,
                      .beta = l->accumulate});
}

static void list_v_gradient(const esp_node *node, const group *g, int64_t e, void *context) {
  product_list *l = context;
  const factored_shape *s = &l->shape;
  add(l, (esp_gemm){.transpose_a = true,
                    .m = s->inner,
                    .n = s->in,
                    .k = g->count,
                    .a = l->dhidden + g->first * s->inner,
                    .lda = s->inner,
                    .b = node->inputs[X]->data + g->first * s->in,
                    .ldb = s->in,
                    .c = l->target + e * s->inner * s->in,
                    .ldc = s->in,
                    .beta = l->accumulate});
}

/* The gradient of what the sparse rows gave, [count, listed], and its row length. */
static const esp_real *sparse_outputs(const esp_node *node, const group *g, const product_list *l, int64_t *length) {
  *length = g->whole ? l->shape.out : g->listed;
  return g->whole ? node->outputs[0]->grad + g->first * l->shape.out : l->memory.packed + g->first * l->shape.most;
}

static void list_s_gradient(const esp_node *node, const group *g, int64_t e, void *context) {
  product_list *l = context;
  const factored_shape *s = &l->shape;
  (void)e;
  int64_t length;
  const esp_real *dy = sparse_outputs(node, g, l, &length);
  add(l, (esp_gemm){.transpose_a = true,
                    .m = g->listed,
                    .n = s->in,
                    .k = g->count,
                    .a = dy,
                    .lda = length,
                    .b = node->inputs[X]->data + g->first * s->in,
                    .ldb = s->in,
                    .c = l->target + g->sparse * s->in,
                    .ldc = s->in,
                    .beta = l->accumulate});
}

static void list_x_gradient(const esp_node *node, const group *g, int64_t e, void *context) {
  product_list *l = context;
  const factored_shape *s = &l->shape;
  add(l, (esp_gemm){.m = g->count,
                    .n = s->in,
                    .k = s->inner,
                    .a = l->dhidden + g->first * s->inner,
                    .lda = s->inner,
                    .b = node->inputs[V]->data + e * s->inner * s->in,
                    .ldb = s->in,
                    .c = l->target + g->first * s->in,
                    .ldc = s->in,
                    .beta = l->accumulate});
}

static void list_x_sparse_gradient(const esp_node *node, const group *g, int64_t e, void *context) {
  product_list *l = context;
  const factored_shape *s = &l->shape;
  (void)e;
  int64_t length;
  const esp_real *dy = sparse_outputs(node, g, l, &length);
  add(l, (esp_gemm){.m = g->count,
                    .n = s->in,
                    .k = g->listed,
                    .a = dy,
                    .lda = length,
                    .b = node->inputs[S]->data + g->sparse * s->in,
                    .ldb = s->in,
                    .c = l->target + g->first * s->in,
                    .ldc = s->in,
                    .beta = 1});
}

static void take_packed(const esp_node *node, const group *g, int64_t e, void *context) {
  (void)e;
  (void)context;
  move_columns(node, g, node->outputs[0]->grad, take_columns);
}

static void add_bias_gradient(const esp_node *node, const group *g, int64_t e, void *context) {
  const product_list *l = context;
  const factored_shape *s = &l->shape;
  esp_column_sums(node->outputs[0]->grad + g->first * s->out, g->count, s->out, l->target + e * s->out, l->accumulate,
                  (esp_real *)node->scratch + s->rows * s->inner);
}

/* Nothing is computed for an input that needs no gradient. */
static void gradient_of(const esp_node *node, int input, group_body *body, product_list *list) {
  list->target = esp_grad(node->inputs[input], &list->accumulate);
  if (!list->target) return;
  each_group(node, body, list);
  run_list(list);
}

static void factored_backward(esp_node *node) {
  product_list list = start_list(node);
  list.dhidden = list.target = node->scratch;
  each_group(node, list_hidden_gradient, &list);
  run_list(&list);
  each_group(node, take_packed, NULL);
  gradient_of(node, U, list_u_gradient, &list);
  gradient_of(node, V, list_v_gradient, &list);
  gradient_of(node, S, list_s_gradient, &list);
  gradient_of(node, BIAS, add_bias_gradient, &list);
  gradient_of(node, X, list_x_gradient, &list);
  if (!list.target) return;
  each_group(node, list_x_sparse_gradient, &list);
  run_list(&list);
}

static esp_cost factored_cost(const esp_node *node) {
  const factored_attributes *at = node->attributes;
  const factored_shape s = factored_shape_of(node);
  esp_cost cost = esp_cost_elementwise(node, 0);
  cost.flops = 2.0 * (double)(s.rows * s.inner * s.in + s.rows * s.out * (s.inner / at->parts));
  for (int64_t e = 0; e < at->groups; e++)
    cost.flops += 2.0 * (double)((at->first_row[e + 1] - at->first_row[e]) * at->counts[e] * s.in);
  return cost;
}

const esp_op esp_op_factored_map = {"factored map",    factored_prepare, factored_forward,
                                    factored_backward, factored_cost,    {1e-4, 1e-7, NULL}};

esp_tensor *esp_factored_map(esp_tape *tape, esp_tensor *x, const esp_factors *factors, esp_tensor *bias,
                             const int64_t *first_row, int64_t groups) {
  return esp_tape_apply(
      tape, &esp_op_factored_map, (esp_tensor *[INPUTS]){x, factors->u, factors->v, factors->s, factors->rows, bias},
      INPUTS, &(factored_attributes){first_row, groups, factors->parts, factors->counts}, sizeof(factored_attributes));
}
