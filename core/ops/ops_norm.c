/* Normalisation of rows. */
#include "ops_internal.h"
#include <espalier/op_helpers.h>

#include <string.h>

typedef struct norm_attributes {
  double epsilon;
} norm_attributes;

/* Parts of the gain's and the bias's gradients lie one after the other in the scratch. */
static void norm_prepare(esp_node *node) {
  const int64_t columns = esp_tensor_columns(node->inputs[0]);
  for (int i = 1; i < node->input_count; i++)
    esp_require(node, esp_tensor_count(node->inputs[i]) == columns, "gain and bias need one entry a column");
  esp_set_output_same(node);
  node->saved_bytes = (size_t)(2 * esp_tensor_rows(node->inputs[0])) * sizeof(esp_real);
  node->scratch_bytes = (size_t)(2 * ESP_PARTS * columns) * sizeof(esp_real);
  node->unread = ESP_UNREAD_OUTPUTS;
}

typedef struct norm_gradient {
  const esp_node *node;
  esp_real *dx, *gain_parts, *bias_parts;
  bool accumulate;
} norm_gradient;

static void run_norm_backward(esp_node *node, esp_range_body *parts) {
  const int64_t columns = esp_tensor_columns(node->inputs[0]);
  esp_real *scratch = node->scratch;
  norm_gradient g = {.node = node, .gain_parts = scratch, .bias_parts = scratch + ESP_PARTS * columns};
  g.dx = esp_grad(node->inputs[0], &g.accumulate);
  memset(scratch, 0, node->scratch_bytes);
  esp_parallel_for(ESP_PARTS, 1, parts, &g);
  bool add;
  esp_real *dgain = esp_grad(node->inputs[1], &add);
  if (dgain) esp_add_parts(g.gain_parts, columns, dgain, add);
  esp_real *dbias = node->input_count > 2 ? esp_grad(node->inputs[2], &add) : NULL;
  if (dbias) esp_add_parts(g.bias_parts, columns, dbias, add);
}

/* --- layer norm: xh = (x - mu) r, r = 1 / sqrt(var + eps), y = gain xh + bias -------------------------------
 * with d = gain dy:  dx = r (d - mean(d) - xh mean(d xh));  dgain = sum_rows dy xh;  dbias = sum_rows dy. */

ESP_HOT static void layer_norm_rows(void *context, int64_t begin, int64_t end) {
  const esp_node *node = context;
  const int64_t columns = esp_tensor_columns(node->inputs[0]);
  const esp_real epsilon = (esp_real)((const norm_attributes *)node->attributes)->epsilon;
  const esp_real *restrict gain = node->inputs[1]->data, *restrict bias = node->inputs[2]->data;
  esp_real *saved = node->saved;
  for (int64_t r = begin; r < end; r++) {
    const esp_real *restrict x = node->inputs[0]->data + r * columns;
    esp_real *restrict y = node->outputs[0]->data + r * columns;
    esp_real sum = 0, squares = 0;
    ESP_SUMS(sum)
    for (int64_t j = 0; j < columns; j++) sum += x[j];
    const esp_real mean = sum / (esp_real)columns;
    ESP_SUMS(squares)
    for (int64_t j = 0; j < columns; j++) squares += (x[j] - mean) * (x[j] - mean);
    const esp_real inverse = 1 / esp_sqrt(squares / (esp_real)columns + epsilon);
    for (int64_t j = 0; j < columns; j++) y[j] = (x[j] - mean) * inverse * gain[j] + bias[j];
    saved[2 * r] = mean;
    saved[2 * r + 1] = inverse;
  }
}

static void layer_norm_forward(esp_node *node) {
  const esp_tensor *x = node->inputs[0];
  esp_parallel_rows(esp_tensor_rows(x), esp_tensor_columns(x), layer_norm_rows, node);
}

ESP_HOT static void layer_norm_gradient_parts(void *context, int64_t begin, int64_t end) {
  const norm_gradient *g = context;
  const esp_node *node = g->node;
  const int64_t rows = esp_tensor_rows(node->inputs[0]), columns = esp_tensor_columns(node->inputs[0]);
  const esp_real *restrict gain = node->inputs[1]->data, *saved = node->saved;
  for (int64_t part = begin; part < end; part++) {
    esp_real *restrict dgain = g->gain_parts + part * columns, *restrict dbias = g->bias_parts + part * columns;
    for (int64_t r = esp_part_begin(rows, part); r < esp_part_begin(rows, part + 1); r++) {
      const esp_real *restrict x = node->inputs[0]->data + r * columns;
      const esp_real *restrict dy = node->outputs[0]->grad + r * columns;
      const esp_real mean = saved[2 * r], inverse = saved[2 * r + 1];
      esp_real d_sum = 0, d_dot = 0;
      ESP_SUMS(d_sum, d_dot)
      for (int64_t j = 0; j < columns; j++) {
        const esp_real normal = (x[j] - mean) * inverse, d = gain[j] * dy[j];
        dgain[j] += dy[j] * normal;
        dbias[j] += dy[j];
        d_sum += d;
        d_dot += d * normal;
      }
      if (!g->dx) continue;
      esp_real *restrict dx = g->dx + r * columns;
      if (!g->accumulate) memset(dx, 0, (size_t)columns * sizeof *dx);
      d_sum /= (esp_real)columns;
      d_dot /= (esp_real)columns;
      for (int64_t j = 0; j < columns; j++)
        dx[j] += inverse * (gain[j] * dy[j] - d_sum - (x[j] - mean) * inverse * d_dot);
    }
  }
}

static void layer_norm_backward(esp_node *node) { run_norm_backward(node, layer_norm_gradient_parts); }

static esp_cost norm_cost(const esp_node *node) { return esp_cost_elementwise(node, 8); }

const esp_op esp_op_layer_norm = {"layer norm",        norm_prepare, layer_norm_forward,
                                  layer_norm_backward, norm_cost,    {1e-5, 1e-7, NULL}};

esp_tensor *esp_layer_norm(esp_tape *tape, esp_tensor *x, esp_tensor *gain, esp_tensor *bias, double epsilon) {
  return esp_tape_apply(tape, &esp_op_layer_norm, (esp_tensor *[]){x, gain, bias}, 3, &(norm_attributes){epsilon},
                        sizeof(norm_attributes));
}

/* --- RMS norm: xh = x r, r = 1 / sqrt(mean(x^2) + eps), y = gain xh -----------------------------------------
 * with d = gain dy:  dx = r (d - xh mean(d xh));  dgain = sum_rows dy xh. */

ESP_HOT static void rms_norm_rows(void *context, int64_t begin, int64_t end) {
  const esp_node *node = context;
  const int64_t columns = esp_tensor_columns(node->inputs[0]);
  const esp_real epsilon = (esp_real)((const norm_attributes *)node->attributes)->epsilon;
  const esp_real *restrict gain = node->inputs[1]->data;
  esp_real *inverses = node->saved;
  for (int64_t r = begin; r < end; r++) {
    const esp_real *restrict x = node->inputs[0]->data + r * columns;
    esp_real *restrict y = node->outputs[0]->data + r * columns;
    esp_real squares = 0;
    ESP_SUMS(squares)
    for (int64_t j = 0; j < columns; j++) squares += x[j] * x[j];
    const esp_real inverse = 1 / esp_sqrt(squares / (esp_real)columns + epsilon);
    for (int64_t j = 0; j < columns; j++) y[j] = x[j] * inverse * gain[j];
    inverses[r] = inverse;
  }
}

static void rms_norm_forward(esp_node *node) {
  const esp_tensor *x = node->inputs[0];
  esp_parallel_rows(esp_tensor_rows(x), esp_tensor_columns(x), rms_norm_rows, node);
}

ESP_HOT static void rms_norm_gradient_parts(void *context, int64_t begin, int64_t end) {
  const norm_gradient *g = context;
  const esp_node *node = g->node;
  const int64_t rows = esp_tensor_rows(node->inputs[0]), columns = esp_tensor_columns(node->inputs[0]);
  const esp_real *restrict gain = node->inputs[1]->data, *inverses = node->saved;
  for (int64_t part = begin; part < end; part++) {
    esp_real *restrict dgain = g->gain_parts + part * columns;
    for (int64_t r = esp_part_begin(rows, part); r < esp_part_begin(rows, part + 1); r++) {
      const esp_real *restrict x = node->inputs[0]->data + r * columns;
      const esp_real *restrict dy = node->outputs[0]->grad + r * columns;
      const esp_real inverse = inverses[r];
      esp_real dot = 0;
      ESP_SUMS(dot)
      for (int64_t j = 0; j < columns; j++) {
        const esp_real normal = x[j] * inverse;
        dgain[j] += dy[j] * normal;
        dot += gain[j] * dy[j] * normal;
      }
      if (!g->dx) continue;
      esp_real *restrict dx = g->dx + r * columns;
      if (!g->accumulate) memset(dx, 0, (size_t)columns * sizeof *dx);
      dot /= (esp_real)columns;
      for (int64_t j = 0; j < columns; j++) dx[j] += inverse * (gain[j] * dy[j] - x[j] * inverse * dot);
    }
  }
}

static void rms_norm_backward(esp_node *node) { run_norm_backward(node, rms_norm_gradient_parts); }

const esp_op esp_op_rms_norm = {"rms norm",        norm_prepare, rms_norm_forward,
                                rms_norm_backward, norm_cost,    {1e-5, 1e-7, NULL}};

esp_tensor *esp_rms_norm(esp_tape *tape, esp_tensor *x, esp_tensor *gain, double epsilon) {
  return esp_tape_apply(tape, &esp_op_rms_norm, (esp_tensor *[]){x, gain}, 2, &(norm_attributes){epsilon},
                        sizeof(norm_attributes));
}

/* --- unit rows: y = x r, r = 1 / sqrt(sum(x^2) + 1e-12);  dx = r (dy - y <dy, y>) ------------------------------ */

static void unit_prepare(esp_node *node) { esp_set_output_same(node); }

static esp_real inverse_length(const esp_real *restrict x, int64_t columns) {
  esp_real squares = 0;
  ESP_SUMS(squares)
  for (int64_t j = 0; j < columns; j++) squares += x[j] * x[j];
  return 1 / esp_sqrt(squares + (esp_real)1e-12);
}

ESP_HOT static void unit_rows(void *context, int64_t begin, int64_t end) {
  const esp_node *node = context;
  const int64_t columns = esp_tensor_columns(node->inputs[0]);
  for (int64_t r = begin; r < end; r++) {
    const esp_real *restrict x = node->inputs[0]->data + r * columns;
    esp_real *restrict y = node->outputs[0]->data + r * columns;
    const esp_real inverse = inverse_length(x, columns);
    for (int64_t j = 0; j < columns; j++) y[j] = x[j] * inverse;
  }
}

static void unit_forward(esp_node *node) {
  const esp_tensor *x = node->inputs[0];
  esp_parallel_rows(esp_tensor_rows(x), esp_tensor_columns(x), unit_rows, node);
}

typedef struct unit_gradient {
  const esp_node *node;
  esp_real *dx;
  bool accumulate;
} unit_gradient;

ESP_HOT static void unit_gradient_rows(void *context, int64_t begin, int64_t end) {
  const unit_gradient *g = context;
  const int64_t columns = esp_tensor_columns(g->node->inputs[0]);
  for (int64_t r = begin; r < end; r++) {
    const esp_real *restrict y = g->node->outputs[0]->data + r * columns;
    const esp_real *restrict dy = g->node->outputs[0]->grad + r * columns;
    esp_real *restrict dx = g->dx + r * columns;
    const esp_real inverse = inverse_length(g->node->inputs[0]->data + r * columns, columns);
    esp_real dot = 0;
    ESP_SUMS(dot)
    for (int64_t j = 0; j < columns; j++) dot += dy[j] * y[j];
    if (!g->accumulate) memset(dx, 0, (size_t)columns * sizeof *dx);
    for (int64_t j = 0; j < columns; j++) dx[j] += inverse * (dy[j] - y[j] * dot);
  }
}

static void unit_backward(esp_node *node) {
  unit_gradient g = {.node = node};
  g.dx = esp_grad(node->inputs[0], &g.accumulate);
  esp_parallel_rows(esp_tensor_rows(node->inputs[0]), esp_tensor_columns(node->inputs[0]), unit_gradient_rows, &g);
}

const esp_op esp_op_unit_rows = {"unit rows", unit_prepare, unit_forward, unit_backward, norm_cost, {1e-5, 1e-7, NULL}};

esp_tensor *esp_unit_rows(esp_tape *tape, esp_tensor *x) {
  return esp_tape_apply(tape, &esp_op_unit_rows, &x, 1, NULL, 0);
}
