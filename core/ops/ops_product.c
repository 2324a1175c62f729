/* Products of matrices. */
#include "ops_internal.h"
#include <espalier/op_helpers.h>

#include <string.h>

/* --- matmul: C = op(A) op(B) ---------------------------------------------------------------------------
 * dA = dC op(B)^T, transposed back if A was; dB = op(A)^T dC, transposed back if B was. */

typedef struct matmul_attributes {
  bool transpose_a, transpose_b;
} matmul_attributes;

typedef struct matmul_shape {
  int64_t batch, m, n, k;
} matmul_shape;

static int64_t from_end(const esp_tensor *t, int position) { return t->shape[t->rank - position]; }

static matmul_shape matmul_shape_of(const esp_node *node) {
  const matmul_attributes *at = node->attributes;
  const esp_tensor *a = node->inputs[0], *b = node->inputs[1];
  matmul_shape s = {.batch = 1,
                    .m = from_end(a, at->transpose_a ? 1 : 2),
                    .k = from_end(a, at->transpose_a ? 2 : 1),
                    .n = from_end(b, at->transpose_b ? 2 : 1)};
  for (int i = 0; i + 2 < a->rank; i++) s.batch *= a->shape[i];
  return s;
}

static void matmul_prepare(esp_node *node) {
  const matmul_attributes *at = node->attributes;
  const esp_tensor *a = node->inputs[0], *b = node->inputs[1];
  esp_require(node, a->rank >= 2 && a->rank == b->rank, "needs two matrices, or batches of the same rank");
  esp_require(node, memcmp(a->shape, b->shape, (size_t)(a->rank - 2) * sizeof a->shape[0]) == 0,
              "the batch dimensions differ");
  const matmul_shape s = matmul_shape_of(node);
  esp_require(node, s.k == from_end(b, at->transpose_b ? 1 : 2), "the inner dimensions differ");
  int64_t shape[ESP_MAX_RANK];
  memcpy(shape, a->shape, sizeof shape);
  shape[a->rank - 2] = s.m;
  shape[a->rank - 1] = s.n;
  esp_set_output(node, 0, a->rank, shape);
  node->saved_bytes = (size_t)s.batch * sizeof(esp_gemm); /* room for the list of products */
  node->unread = ESP_UNREAD_OUTPUTS;
}

/* The matrices of a batch, one behind the other, each [rows, columns] in memory, and whether they are transposed in the
 * product. */
typedef struct matrices {
  const esp_real *data;
  int64_t rows, columns;
  bool transpose;
} matrices;

static matrices transposed(matrices x) {
  x.transpose = !x.transpose;
  return x;
}

static matrices matmul_a(const esp_node *node) {
  const esp_tensor *a = node->inputs[0];
  return (matrices){a->data, from_end(a, 2), from_end(a, 1),
                    ((const matmul_attributes *)node->attributes)->transpose_a};
}

static matrices matmul_b(const esp_node *node) {
  const esp_tensor *b = node->inputs[1];
  return (matrices){b->data, from_end(b, 2), from_end(b, 1),
                    ((const matmul_attributes *)node->attributes)->transpose_b};
}

/* c = x y, or c += x y. */
static void multiply(const esp_node *node, matrices x, matrices y, esp_real *c, bool accumulate) {
  esp_gemm *products = node->saved;
  const int64_t batch = matmul_shape_of(node).batch;
  const int64_t m = x.transpose ? x.columns : x.rows, k = x.transpose ? x.rows : x.columns;
  const int64_t n = y.transpose ? y.rows : y.columns;
  for (int64_t i = 0; i < batch; i++)
    products[i] = (esp_gemm){.transpose_a = x.transpose,
                             .transpose_b = y.transpose,
                             .m = m,
                             .n = n,
                             .k = k,
                             .a = x.data + i * m * k,
                             .lda = x.columns,
                             .b = y.data + i * k * n,
                             .ldb = y.columns,
                             .c = c + i * m * n,
                             .ldc = n,
                             .alpha = 1,
                             .beta = accumulate};
  esp_gemm_run(products, batch);
}

static void matmul_forward(esp_node *node) {
  multiply(node, matmul_a(node), matmul_b(node), node->outputs[0]->data, false);
}

/* What was transposed gets the transpose of its gradient: dA^T = op(B) dC^T, dB^T = dC^T op(A). */
static void matmul_backward(esp_node *node) {
  const matrices a = matmul_a(node), b = matmul_b(node);
  const matrices dc = {node->outputs[0]->grad, from_end(node->outputs[0], 2), from_end(node->outputs[0], 1), false};
  bool accumulate;
  esp_real *da = esp_grad(node->inputs[0], &accumulate);
  if (da && a.transpose) multiply(node, b, transposed(dc), da, accumulate);
  else if (da) multiply(node, dc, transposed(b), da, accumulate);
  esp_real *db = esp_grad(node->inputs[1], &accumulate);
  if (db && b.transpose) multiply(node, transposed(dc), a, db, accumulate);
  else if (db) multiply(node, transposed(a), dc, db, accumulate);
}

static esp_cost matmul_cost(const esp_node *node) {
  const matmul_shape s = matmul_shape_of(node);
  return esp_cost_elementwise(node, 2.0 * (double)s.k);
}

const esp_op esp_op_matmul = {"matmul",        matmul_prepare, matmul_forward,
                              matmul_backward, matmul_cost,    {1e-4, 1e-7, NULL}};

esp_tensor *esp_matmul(esp_tape *tape, esp_tensor *a, bool transpose_a, esp_tensor *b, bool transpose_b) {
  return esp_tape_apply(tape, &esp_op_matmul, (esp_tensor *[]){a, b}, 2, &(matmul_attributes){transpose_a, transpose_b},
                        sizeof(matmul_attributes));
}

/* --- linear map: Y = X W^T + b --------------------------------------------------------------------------
 * dX = dY W;  dW = dY^T X;  db = the column sums of dY. */

static void linear_map_prepare(esp_node *node) {
  const esp_tensor *x = node->inputs[0], *weight = node->inputs[1], *bias = node->inputs[2];
  esp_require(node, weight->rank == 2 && esp_tensor_columns(x) == weight->shape[1],
              "needs x [.., in] and weight [out, in]");
  esp_require(node, !bias || esp_tensor_count(bias) == weight->shape[0], "the bias needs one entry an output");
  esp_set_output_columns(node, 0, weight->shape[0]);
  const int64_t partial = ESP_GEMM_PARTIALS * esp_tensor_count(weight), sums = bias ? ESP_PARTS * weight->shape[0] : 0;
  node->scratch_bytes = (size_t)(partial > sums ? partial : sums) * sizeof(esp_real);
  node->unread = ESP_UNREAD_INPUT(2) | ESP_UNREAD_OUTPUTS;
}

static void linear_map_forward(esp_node *node) {
  const esp_tensor *x = node->inputs[0], *weight = node->inputs[1], *bias = node->inputs[2];
  const int64_t rows = esp_tensor_rows(x), out = weight->shape[0], in = weight->shape[1];
  esp_gemm_run(&(esp_gemm){.transpose_b = true,
                           .m = rows,
                           .n = out,
                           .k = in,
                           .a = x->data,
                           .lda = in,
                           .b = weight->data,
                           .ldb = in,
                           .c = node->outputs[0]->data,
                           .ldc = out,
                           .alpha = 1,
                           .bias = bias ? bias->data : NULL,
                           .precision = node->precision},
               1);
}

static void linear_map_backward(esp_node *node) {
  esp_tensor *x = node->inputs[0], *weight = node->inputs[1];
  const int64_t rows = esp_tensor_rows(x), out = weight->shape[0], in = weight->shape[1];
  const esp_real *dy = node->outputs[0]->grad;
  bool accumulate;
  esp_real *dweight = esp_grad(weight, &accumulate);
  if (dweight)
    esp_gemm_sums(&(esp_gemm){.transpose_a = true,
                              .m = out,
                              .n = in,
                              .k = rows,
                              .a = dy,
                              .lda = out,
                              .b = x->data,
                              .ldb = in,
                              .c = dweight,
                              .ldc = in,
                              .alpha = 1,
                              .beta = accumulate,
                              .precision = node->precision},
                  1, node->scratch);
  esp_real *dx = esp_grad(x, &accumulate);
  if (dx)
    esp_gemm_run(&(esp_gemm){.m = rows,
                             .n = in,
                             .k = out,
                             .a = dy,
                             .lda = out,
                             .b = weight->data,
                             .ldb = in,
                             .c = dx,
                             .ldc = in,
                             .alpha = 1,
                             .beta = accumulate,
                             .precision = node->precision},
                 1);
  esp_real *dbias = esp_grad(node->inputs[2], &accumulate);
  if (dbias) esp_column_sums(dy, rows, out, dbias, accumulate, node->scratch);
}

static esp_cost linear_map_cost(const esp_node *node) {
  return esp_cost_elementwise(node, 2.0 * (double)esp_tensor_columns(node->inputs[0]));
}

const esp_op esp_op_linear_map = {"linear map",        linear_map_prepare, linear_map_forward,
                                  linear_map_backward, linear_map_cost,    {1e-4, 1e-7, NULL}};

esp_tensor *esp_linear_map(esp_tape *tape, esp_tensor *x, esp_tensor *weight, esp_tensor *bias) {
  return esp_tape_apply(tape, &esp_op_linear_map, (esp_tensor *[]){x, weight, bias}, 3, NULL, 0);
}
