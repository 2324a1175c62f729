/* Products of groups of rows with matrices of their own: the two maps of an expert bank. */
#include "moe_ops_internal.h"

#include <string.h>

/* --- grouped map: Y_g = X_g B_g^T + b_g (transpose) or X_g B_g + b_g for the rows of each group g -------------
 * B_g [width_g, thin] in both cases: a group's own width is on the side of the neurons, which is Y with `transpose`
 * and X without. dX_g = dY_g B_g resp. dY_g B_g^T;  dB_g = dY_g^T X_g resp. X_g^T dY_g;  db_g = the column sums of
 * dY_g.
 *
 * The wide side is a rectangle [rows, parts x f], f the largest width. A narrower group's matrix is `parts` matrices
 * one after another (gate, up), which make columns 0.., f.. and so on; its other columns are 0. */

/* What one product takes: of a group's rows, and of the bank's. */
typedef struct slice {
  int64_t row, rows;     /* of x and y */
  int64_t neuron, width; /* rows of the bank, columns of the wide side ... */
  int64_t column;        /* ... from here */
} slice;

typedef struct grouped_shape {
  int64_t thin, wide, most; /* columns of the two sides; most: of a part */
  int64_t slices;
  bool transpose;
} grouped_shape;

static grouped_shape grouped_shape_of(const esp_node *node) {
  const esp_grouped_map_options *at = node->attributes;
  const esp_tensor *bank = node->inputs[1];
  grouped_shape s = {.thin = bank->shape[bank->rank - 1],
                     .most = bank->shape[bank->rank - 2],
                     .slices = at->groups * at->parts,
                     .transpose = at->transpose};
  if (at->widths) s.most = 0;
  for (int64_t g = 0; at->widths && g < at->groups; g++)
    if (at->widths[g] > s.most) s.most = at->widths[g];
  s.wide = s.most * at->parts;
  return s;
}

static slice *slices_of(const esp_node *node) {
  return (slice *)((esp_gemm *)node->saved + grouped_shape_of(node).slices);
}

static int64_t bank_rows(const esp_grouped_map_options *at, const grouped_shape *s) {
  int64_t rows = at->widths ? 0 : at->groups * s->most;
  for (int64_t g = 0; at->widths && g < at->groups; g++) rows += at->parts * at->widths[g];
  return rows;
}

static void check_bank(const esp_node *node, const grouped_shape *s) {
  const esp_grouped_map_options *at = node->attributes;
  const esp_tensor *bank = node->inputs[1], *bias = node->inputs[2];
  const int64_t rows = bank_rows(at, s);
  if (at->widths)
    esp_require(node, bank->rank == 2 && bank->shape[0] == rows, "needs one row a neuron of each group and part");
  else esp_require(node, (bank->rank == 2 ? 1 : bank->shape[0]) == at->groups, "needs one matrix a group");
  esp_require(node, !bias || esp_tensor_count(bias) == (at->transpose ? rows : at->groups * s->thin),
              "the bias needs one row a group");
}

static void grouped_prepare(esp_node *node) {
  const esp_tensor *x = node->inputs[0], *bank = node->inputs[1];
  const esp_grouped_map_options *at = node->attributes;
  esp_require(node, bank->rank >= 2, "needs a bank of matrices");
  const grouped_shape s = grouped_shape_of(node);
  check_bank(node, &s);
  esp_require(node, esp_tensor_columns(x) == (s.transpose ? s.thin : s.wide), "the rows do not fit the matrices");
  esp_require(node, at->first_row[at->groups] == esp_tensor_rows(x), "the groups do not cover the rows");
  const int64_t out = s.transpose ? s.wide : s.thin;
  esp_set_output_columns(node, 0, out);
  node->saved_bytes = (size_t)s.slices * (sizeof(esp_gemm) + sizeof(slice)); /* room for a list of products */
  const int64_t partial = ESP_GEMM_PARTIALS * s.wide * s.thin, sums = node->inputs[2] ? (ESP_PARTS + 1) * out : 0;
  node->scratch_bytes = (size_t)(partial > sums ? partial : sums) * sizeof(esp_real);
  node->unread = ESP_UNREAD_INPUT(2) | ESP_UNREAD_OUTPUTS;
}

/* Slices are in the order of the parts, then of the groups. A group as wide as the rectangle is one slice: its parts
 * are neighbours on both sides. */
static void set_slices(const esp_node *node) {
  const esp_grouped_map_options *at = node->attributes;
  const grouped_shape s = grouped_shape_of(node);
  slice *slices = slices_of(node);
  int64_t neuron = 0;
  for (int64_t g = 0; g < at->groups; g++) {
    const int64_t width = at->widths ? at->widths[g] : s.most, row = at->first_row[g];
    const bool whole = width == s.most;
    for (int64_t p = 0; p < at->parts; p++)
      slices[p * at->groups + g] = whole && p > 0 ? (slice){0}
                                                  : (slice){.row = row,
                                                            .rows = at->first_row[g + 1] - row,
                                                            .neuron = neuron + p * width,
                                                            .width = whole ? s.wide : width,
                                                            .column = p * s.most};
    neuron += at->parts * width;
  }
}

/* What a list of products does with what is there, or with a bias. */
typedef struct addition {
  bool add;
  const esp_real *bias;
} addition;

/* wide = thin B^T + bias, or + wide. */
static void list_widening(const esp_node *node, esp_gemm *products, const esp_real *thin, esp_real *wide, addition to) {
  const grouped_shape s = grouped_shape_of(node);
  const slice *slices = slices_of(node);
  for (int64_t i = 0; i < s.slices; i++)
    products[i] = (esp_gemm){.transpose_b = true,
                             .m = slices[i].rows,
                             .n = slices[i].width,
                             .k = s.thin,
                             .a = thin + slices[i].row * s.thin,
                             .lda = s.thin,
                             .b = node->inputs[1]->data + slices[i].neuron * s.thin,
                             .ldb = s.thin,
                             .c = wide + slices[i].row * s.wide + slices[i].column,
                             .ldc = s.wide,
                             .alpha = 1,
                             .precision = node->precision,
                             .beta = to.add,
                             .bias = to.bias ? to.bias + slices[i].neuron : NULL};
}

/* thin = wide B + bias, or + thin. Must be run part by part, for the parts add up. */
static void list_narrowing(const esp_node *node, esp_gemm *products, const esp_real *wide, esp_real *thin,
                           addition to) {
  const grouped_shape s = grouped_shape_of(node);
  const esp_grouped_map_options *at = node->attributes;
  const slice *slices = slices_of(node);
  for (int64_t i = 0; i < s.slices; i++)
    products[i] = (esp_gemm){.m = slices[i].rows,
                             .n = s.thin,
                             .k = slices[i].width,
                             .a = wide + slices[i].row * s.wide + slices[i].column,
                             .lda = s.wide,
                             .b = node->inputs[1]->data + slices[i].neuron * s.thin,
                             .ldb = s.thin,
                             .c = thin + slices[i].row * s.thin,
                             .ldc = s.thin,
                             .alpha = 1,
                             .precision = node->precision,
                             .beta = to.add || i >= at->groups,
                             .bias = to.bias && i < at->groups ? to.bias + i * s.thin : NULL};
}

/* Columns of the wide side that are no neuron's. */
static void clear_padding(const esp_node *node, esp_real *wide) {
  const grouped_shape s = grouped_shape_of(node);
  const slice *slices = slices_of(node);
  for (int64_t i = 0; i < s.slices; i++) {
    const int64_t padding = s.most - slices[i].width;
    for (int64_t r = 0; padding > 0 && r < slices[i].rows; r++)
      memset(wide + (slices[i].row + r) * s.wide + slices[i].column + slices[i].width, 0,
             (size_t)padding * sizeof *wide);
  }
}

/* Lists y or dX, and says how many of it may run at once: all, or those of one part. */
static int64_t list_map(const esp_node *node, bool widens, esp_gemm *products, const esp_real *from, esp_real *to,
                        addition how) {
  const esp_grouped_map_options *at = node->attributes;
  if (widens) list_widening(node, products, from, to, how);
  else list_narrowing(node, products, from, to, how);
  return widens ? grouped_shape_of(node).slices : at->groups;
}

static void run_list(esp_gemm *products, int64_t count, int64_t at_once) {
  for (int64_t i = 0; i < count; i += at_once) esp_gemm_run(products + i, at_once);
}

static void grouped_forward(esp_node *node) {
  const grouped_shape s = grouped_shape_of(node);
  const esp_real *bias = node->inputs[2] ? node->inputs[2]->data : NULL;
  esp_real *y = node->outputs[0]->data;
  set_slices(node);
  const int64_t at_once = list_map(node, s.transpose, node->saved, node->inputs[0]->data, y, (addition){false, bias});
  run_list(node->saved, s.slices, at_once);
  if (s.transpose) clear_padding(node, y);
}

/* dB = wide^T thin. */
static void list_weight_gradient(const esp_node *node, esp_gemm *products, esp_real *dw, bool accumulate) {
  const grouped_shape s = grouped_shape_of(node);
  const slice *slices = slices_of(node);
  const esp_real *wide = s.transpose ? node->outputs[0]->grad : node->inputs[0]->data;
  const esp_real *thin = s.transpose ? node->inputs[0]->data : node->outputs[0]->grad;
  for (int64_t i = 0; i < s.slices; i++)
    products[i] = (esp_gemm){.transpose_a = true,
                             .m = slices[i].width,
                             .n = s.thin,
                             .k = slices[i].rows,
                             .a = wide + slices[i].row * s.wide + slices[i].column,
                             .lda = s.wide,
                             .b = thin + slices[i].row * s.thin,
                             .ldb = s.thin,
                             .c = dw + slices[i].neuron * s.thin,
                             .ldc = s.thin,
                             .alpha = 1,
                             .precision = node->precision,
                             .beta = accumulate};
}

static void run_gradients(const esp_node *node, esp_real *dw, bool add_w, esp_real *dx, bool add_x) {
  const grouped_shape s = grouped_shape_of(node);
  esp_gemm *products = node->saved;
  if (dw) {
    list_weight_gradient(node, products, dw, add_w);
    esp_gemm_sums(products, s.slices, node->scratch);
  }
  if (!dx) return;
  const int64_t at_once = list_map(node, !s.transpose, products, node->outputs[0]->grad, dx, (addition){add_x, NULL});
  run_list(products, s.slices, at_once);
  if (!s.transpose && !add_x) clear_padding(node, dx);
}

static void add_sums(const esp_real *sums, int64_t count, esp_real *target, bool accumulate) {
  for (int64_t j = 0; j < count; j++) target[j] = (accumulate ? target[j] : 0) + sums[j];
}

static void grouped_bias_gradient(const esp_node *node, esp_real *dbias, bool accumulate) {
  const esp_grouped_map_options *at = node->attributes;
  const grouped_shape s = grouped_shape_of(node);
  const slice *slices = slices_of(node);
  const int64_t out = s.transpose ? s.wide : s.thin;
  esp_real *sums = (esp_real *)node->scratch + ESP_PARTS * out;
  for (int64_t g = 0; g < at->groups; g++) {
    const esp_real *dy = node->outputs[0]->grad + at->first_row[g] * out;
    const int64_t rows = at->first_row[g + 1] - at->first_row[g];
    const bool whole = !s.transpose || slices[g].width == s.wide;
    esp_real *target = dbias + (s.transpose ? slices[g].neuron : g * out);
    esp_column_sums(dy, rows, out, whole ? target : sums, whole && accumulate, node->scratch);
    for (int64_t p = 0; !whole && p < at->parts; p++) {
      const slice *part = &slices[p * at->groups + g];
      add_sums(sums + part->column, part->width, dbias + part->neuron, accumulate);
    }
  }
}

static void grouped_backward(esp_node *node) {
  bool add_w = false, add_x = false, add;
  esp_real *dw = esp_grad(node->inputs[1], &add_w), *dx = esp_grad(node->inputs[0], &add_x);
  run_gradients(node, dw, add_w, dx, add_x);
  esp_real *dbias = esp_grad(node->inputs[2], &add);
  if (dbias) grouped_bias_gradient(node, dbias, add);
}

static esp_cost grouped_cost(const esp_node *node) {
  const esp_grouped_map_options *at = node->attributes;
  const grouped_shape s = grouped_shape_of(node);
  esp_cost cost = esp_cost_elementwise(node, 0);
  for (int64_t g = 0; g < at->groups; g++) {
    const int64_t width = at->parts * (at->widths ? at->widths[g] : s.most);
    cost.flops += 2.0 * (double)(at->first_row[g + 1] - at->first_row[g]) * (double)(width * s.thin);
  }
  return cost;
}

const esp_op esp_op_grouped_map = {"grouped map",    grouped_prepare, grouped_forward,
                                   grouped_backward, grouped_cost,    {1e-4, 1e-7, NULL}};

esp_tensor *esp_grouped_map(esp_tape *tape, esp_tensor *x, esp_tensor *bank, esp_tensor *bias,
                            const esp_grouped_map_options *options) {
  esp_grouped_map_options attributes = *options;
  if (!attributes.parts) attributes.parts = 1;
  return esp_tape_apply(tape, &esp_op_grouped_map, (esp_tensor *[]){x, bank, bias}, 3, &attributes, sizeof attributes);
}
