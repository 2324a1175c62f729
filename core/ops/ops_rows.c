/* Ops that choose: rows by index, and the largest of a row. */
#include "ops_internal.h"
#include <espalier/op_helpers.h>

#include <string.h>

/* --- gather: y_i = x_rows[i], dx_rows[i] += dy_i;  scatter: y_rows[i] += x_i, dx_i = dy_rows[i] -------------- */

typedef struct rows_attributes {
  const int32_t *rows;
  int64_t count, height;
} rows_attributes;

static void gather_prepare(esp_node *node) {
  const rows_attributes *at = node->attributes;
  const int64_t height = esp_tensor_rows(node->inputs[0]);
  for (int64_t i = 0; i < at->count; i++)
    esp_require(node, at->rows[i] >= 0 && at->rows[i] < height, "a row to gather does not exist");
  esp_set_output(node, 0, 2, (const int64_t[]){at->count, esp_tensor_columns(node->inputs[0])});
}

static void scatter_prepare(esp_node *node) {
  const rows_attributes *at = node->attributes;
  esp_require(node, at->count == esp_tensor_rows(node->inputs[0]), "needs one target a row");
  for (int64_t i = 0; i < at->count; i++)
    esp_require(node, at->rows[i] >= 0 && at->rows[i] < at->height, "a row to scatter to does not exist");
  esp_set_output(node, 0, 2, (const int64_t[]){at->height, esp_tensor_columns(node->inputs[0])});
}

static void copy_rows(const rows_attributes *at, const esp_real *source, int64_t columns, esp_real *target, bool add) {
  for (int64_t i = 0; i < at->count; i++)
    for (int64_t j = 0; j < columns; j++) {
      esp_real *t = target + i * columns + j;
      *t = (add ? *t : 0) + source[at->rows[i] * columns + j];
    }
}

static void add_rows(const rows_attributes *at, const esp_real *source, int64_t columns, esp_real *target) {
  for (int64_t i = 0; i < at->count; i++)
    for (int64_t j = 0; j < columns; j++) target[at->rows[i] * columns + j] += source[i * columns + j];
}

static void gather_forward(esp_node *node) {
  copy_rows(node->attributes, node->inputs[0]->data, esp_tensor_columns(node->inputs[0]), node->outputs[0]->data,
            false);
}

static void gather_backward(esp_node *node) {
  bool add;
  esp_real *dx = esp_grad(node->inputs[0], &add);
  if (!add) memset(dx, 0, (size_t)esp_tensor_count(node->inputs[0]) * sizeof *dx);
  add_rows(node->attributes, node->outputs[0]->grad, esp_tensor_columns(node->inputs[0]), dx);
}

static void scatter_forward(esp_node *node) {
  esp_real *y = node->outputs[0]->data;
  memset(y, 0, (size_t)esp_tensor_count(node->outputs[0]) * sizeof *y);
  add_rows(node->attributes, node->inputs[0]->data, esp_tensor_columns(node->inputs[0]), y);
}

static void scatter_backward(esp_node *node) {
  bool add;
  esp_real *dx = esp_grad(node->inputs[0], &add);
  copy_rows(node->attributes, node->outputs[0]->grad, esp_tensor_columns(node->inputs[0]), dx, add);
}

static esp_cost no_flops(const esp_node *node) { return esp_cost_elementwise(node, 0); }

const esp_op esp_op_gather_rows = {"gather rows",   gather_prepare, gather_forward,
                                   gather_backward, no_flops,       {1e-4, 1e-8, NULL}};
const esp_op esp_op_scatter_rows = {"scatter rows",   scatter_prepare, scatter_forward,
                                    scatter_backward, no_flops,        {1e-4, 1e-8, NULL}};

static esp_tensor *apply_rows(esp_tape *tape, const esp_op *op, esp_tensor *x, const int32_t *rows, int64_t count,
                              int64_t height) {
  if (!x) return NULL;
  int32_t *copy = esp_tape_take(tape, (size_t)count * sizeof *copy);
  if (!copy) return NULL;
  memcpy(copy, rows, (size_t)count * sizeof *copy);
  return esp_tape_apply(tape, op, &x, 1, &(rows_attributes){copy, count, height}, sizeof(rows_attributes));
}

esp_tensor *esp_gather_rows(esp_tape *tape, esp_tensor *x, const int32_t *rows, int64_t count) {
  return apply_rows(tape, &esp_op_gather_rows, x, rows, count, 0);
}

esp_tensor *esp_scatter_rows(esp_tape *tape, esp_tensor *x, const int32_t *rows, int64_t height) {
  return x ? apply_rows(tape, &esp_op_scatter_rows, x, rows, esp_tensor_rows(x), height) : NULL;
}

/* --- top-k: y_i = x at the i-th largest column;  dx there += dy_i --------------------------------------------- */

typedef struct top_k_attributes {
  int64_t k;
} top_k_attributes;

static void top_k_prepare(esp_node *node) {
  const int64_t k = ((const top_k_attributes *)node->attributes)->k;
  esp_require(node, k > 0 && k <= esp_tensor_columns(node->inputs[0]),
              "k must lie between 1 and the number of columns");
  esp_set_output_columns(node, 0, k);
  node->saved_bytes = (size_t)(esp_tensor_rows(node->inputs[0]) * k) * sizeof(int32_t);
}

/* Insertion into a short sorted list: k is a handful wherever this is used. A later value has to be larger, not
 * equal, to pass an earlier one, so that ties go to the lower index. */
void esp_top_k_of(const esp_real *values, int64_t count, int64_t k, int32_t *indices) {
  int64_t held = 0;
  for (int64_t i = 0; i < count; i++) {
    int64_t place = held;
    while (place > 0 && !(values[i] <= values[indices[place - 1]]) && values[i] == values[i]) place--;
    if (place >= k) continue;
    if (held < k) held++;
    memmove(indices + place + 1, indices + place, (size_t)(held - place - 1) * sizeof *indices);
    indices[place] = (int32_t)i;
  }
}

static void top_k_forward(esp_node *node) {
  const int64_t columns = esp_tensor_columns(node->inputs[0]), k = esp_tensor_columns(node->outputs[0]);
  int32_t *indices = node->saved;
  for (int64_t r = 0; r < esp_tensor_rows(node->inputs[0]); r++) {
    const esp_real *x = node->inputs[0]->data + r * columns;
    esp_top_k_of(x, columns, k, indices + r * k);
    bool spoiled = false; /* a row with not-a-number has no largest values */
    for (int64_t j = 0; j < columns; j++) spoiled = spoiled || x[j] != x[j];
    for (int64_t i = 0; i < k; i++) node->outputs[0]->data[r * k + i] = spoiled ? (esp_real)NAN : x[indices[r * k + i]];
  }
}

static void top_k_backward(esp_node *node) {
  const int64_t columns = esp_tensor_columns(node->inputs[0]), k = esp_tensor_columns(node->outputs[0]);
  const int32_t *indices = node->saved;
  bool add;
  esp_real *dx = esp_grad(node->inputs[0], &add);
  if (!add) memset(dx, 0, (size_t)esp_tensor_count(node->inputs[0]) * sizeof *dx);
  for (int64_t i = 0; i < esp_tensor_count(node->outputs[0]); i++)
    dx[i / k * columns + indices[i]] += node->outputs[0]->grad[i];
}

const esp_op esp_op_top_k = {"top-k",       top_k_prepare,
                             top_k_forward, top_k_backward,
                             no_flops,      {1e-5, 1e-8, "two values at the edge of the selection are equal"}};

esp_tensor *esp_top_k(esp_tape *tape, esp_tensor *x, int64_t k, const int32_t **indices) {
  esp_node *node = esp_tape_run(tape, &esp_op_top_k, &x, 1, &(top_k_attributes){k}, sizeof(top_k_attributes));
  if (node && indices) *indices = node->saved;
  return node ? node->outputs[0] : NULL;
}
