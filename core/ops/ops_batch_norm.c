/* Batch normalisation of rows. */
#include "ops_internal.h"
#include <espalier/op_helpers.h>

#include <math.h>
#include <string.h>

/* --- batch norm: xh = (x - mu) r, r = 1 / sqrt(var + eps), y = gain xh + bias, mu and var [C] of a column ----------
 * Training: of the batch's n rows; dx = gain r (dy - dbias / n - xh dgain / n), dgain = sum_rows dy xh,
 * dbias = sum_rows dy. Otherwise mu and var are what was kept, constants: dx = gain r dy. Columns are summed up in
 * double, in ESP_PARTS parts of the rows, after the first row was taken off: the variance of a column with a large mean
 * would drown otherwise. */

typedef struct batch_norm_attributes {
  double epsilon;
  bool training;
} batch_norm_attributes;

enum { INPUT_GAIN = 1, INPUT_BIAS, INPUT_MEAN, INPUT_VARIANCE };

/* What forward keeps: of each column the mean, the variance and r. Behind them the parts of two sums a column. */
typedef struct kept {
  double *parts; /* [ESP_PARTS, 2 columns] */
  esp_real *mean, *variance, *inverse;
} kept;

static kept kept_of(const esp_node *node) {
  const int64_t columns = esp_tensor_columns(node->inputs[0]);
  double *parts = node->saved;
  esp_real *mean = (esp_real *)(parts + 2 * ESP_PARTS * columns);
  return (kept){parts, mean, mean + columns, mean + 2 * columns};
}

static bool of_batch(const esp_node *node) { return ((const batch_norm_attributes *)node->attributes)->training; }

static void batch_norm_prepare(esp_node *node) {
  const int64_t columns = esp_tensor_columns(node->inputs[0]);
  for (int i = 1; i < node->input_count; i++)
    esp_require(node, esp_tensor_count(node->inputs[i]) == columns,
                "gain, bias, mean and variance need one entry a column");
  esp_set_output_same(node);
  node->saved_bytes = (size_t)columns * (2 * ESP_PARTS * sizeof(double) + 3 * sizeof(esp_real));
  node->unread = ESP_UNREAD_OUTPUTS;
}

/* Sums of x - x0 and of its square, x0 the first row. */
ESP_HOT static void statistics_parts(void *context, int64_t begin, int64_t end) {
  const esp_node *node = context;
  const int64_t rows = esp_tensor_rows(node->inputs[0]), columns = esp_tensor_columns(node->inputs[0]);
  const esp_real *restrict origin = node->inputs[0]->data;
  for (int64_t part = begin; part < end; part++) {
    double *restrict sums = kept_of(node).parts + 2 * part * columns, *restrict squares = sums + columns;
    memset(sums, 0, (size_t)(2 * columns) * sizeof *sums);
    for (int64_t r = esp_part_begin(rows, part); r < esp_part_begin(rows, part + 1); r++) {
      const esp_real *restrict x = node->inputs[0]->data + r * columns;
      for (int64_t j = 0; j < columns; j++) {
        const double d = (double)(x[j] - origin[j]);
        sums[j] += d;
        squares[j] += d * d;
      }
    }
  }
}

/* The parts' sums into those of part 0. */
static void join_parts(double *parts, int64_t columns) {
  for (int part = 1; part < ESP_PARTS; part++)
    for (int64_t j = 0; j < 2 * columns; j++) parts[j] += parts[2 * part * columns + j];
}

static void take_statistics(const esp_node *node, const kept *k) {
  const esp_tensor *x = node->inputs[0];
  const int64_t columns = esp_tensor_columns(x);
  const double rows = (double)esp_tensor_rows(x);
  esp_parallel_for(ESP_PARTS, 1, statistics_parts, (void *)(uintptr_t)node);
  join_parts(k->parts, columns);
  for (int64_t j = 0; j < columns; j++) {
    const double mean = k->parts[j] / rows, variance = k->parts[columns + j] / rows - mean * mean;
    k->mean[j] = (esp_real)((double)x->data[j] + mean);
    k->variance[j] = (esp_real)(variance < 0 ? 0 : variance); /* not-a-number stays what it is */
  }
}

ESP_HOT static void normalise_rows(void *context, int64_t begin, int64_t end) {
  const esp_node *node = context;
  const int64_t columns = esp_tensor_columns(node->inputs[0]);
  const esp_real *restrict gain = node->inputs[INPUT_GAIN]->data, *restrict bias = node->inputs[INPUT_BIAS]->data;
  const kept k = kept_of(node);
  const esp_real *restrict mean = k.mean, *restrict inverse = k.inverse;
  for (int64_t r = begin; r < end; r++) {
    const esp_real *restrict x = node->inputs[0]->data + r * columns;
    esp_real *restrict y = node->outputs[0]->data + r * columns;
    for (int64_t j = 0; j < columns; j++) y[j] = (x[j] - mean[j]) * inverse[j] * gain[j] + bias[j];
  }
}

static void batch_norm_forward(esp_node *node) {
  const esp_tensor *x = node->inputs[0];
  const size_t bytes = (size_t)esp_tensor_columns(x) * sizeof(esp_real);
  const double epsilon = ((const batch_norm_attributes *)node->attributes)->epsilon;
  const kept k = kept_of(node);
  if (of_batch(node)) {
    take_statistics(node, &k);
  } else {
    memcpy(k.mean, node->inputs[INPUT_MEAN]->data, bytes);
    memcpy(k.variance, node->inputs[INPUT_VARIANCE]->data, bytes);
  }
  for (int64_t j = 0; j < esp_tensor_columns(x); j++)
    k.inverse[j] = (esp_real)(1 / sqrt((double)k.variance[j] + epsilon));
  esp_parallel_rows(esp_tensor_rows(x), esp_tensor_columns(x), normalise_rows, node);
}

typedef struct batch_norm_gradient {
  const esp_node *node;
  kept kept;
  esp_real *dx;
  bool accumulate;
} batch_norm_gradient;

/* Sums of dy and of dy xh. */
ESP_HOT static void gradient_sum_parts(void *context, int64_t begin, int64_t end) {
  const batch_norm_gradient *g = context;
  const esp_tensor *input = g->node->inputs[0];
  const int64_t rows = esp_tensor_rows(input), columns = esp_tensor_columns(input);
  const esp_real *restrict mean = g->kept.mean, *restrict inverse = g->kept.inverse;
  for (int64_t part = begin; part < end; part++) {
    double *restrict dbias = g->kept.parts + 2 * part * columns, *restrict dgain = dbias + columns;
    memset(dbias, 0, (size_t)(2 * columns) * sizeof *dbias);
    for (int64_t r = esp_part_begin(rows, part); r < esp_part_begin(rows, part + 1); r++) {
      const esp_real *restrict x = input->data + r * columns, *restrict dy = g->node->outputs[0]->grad + r * columns;
      for (int64_t j = 0; j < columns; j++) {
        dbias[j] += (double)dy[j];
        dgain[j] += (double)(dy[j] * ((x[j] - mean[j]) * inverse[j]));
      }
    }
  }
}

/* Afterwards the first part holds dbias / n and dgain / n, or zeros if mean and variance are constants. */
ESP_HOT static void gradient_rows(void *context, int64_t begin, int64_t end) {
  const batch_norm_gradient *g = context;
  const int64_t columns = esp_tensor_columns(g->node->inputs[0]);
  const esp_real *restrict gain = g->node->inputs[INPUT_GAIN]->data;
  const esp_real *restrict mean = g->kept.mean, *restrict inverse = g->kept.inverse;
  const double *restrict dbias = g->kept.parts, *restrict dgain = dbias + columns;
  for (int64_t r = begin; r < end; r++) {
    const esp_real *restrict x = g->node->inputs[0]->data + r * columns;
    const esp_real *restrict dy = g->node->outputs[0]->grad + r * columns;
    esp_real *restrict dx = g->dx + r * columns;
    if (!g->accumulate) memset(dx, 0, (size_t)columns * sizeof *dx);
    for (int64_t j = 0; j < columns; j++)
      dx[j] += gain[j] * inverse[j] * (dy[j] - (esp_real)dbias[j] - (x[j] - mean[j]) * inverse[j] * (esp_real)dgain[j]);
  }
}

static void give_gradient(esp_tensor *tensor, const double *values) {
  bool add;
  esp_real *gradient = esp_grad(tensor, &add);
  for (int64_t j = 0; gradient && j < esp_tensor_count(tensor); j++)
    gradient[j] = (add ? gradient[j] : 0) + (esp_real)values[j];
}

static void batch_norm_backward(esp_node *node) {
  const esp_tensor *x = node->inputs[0];
  const int64_t columns = esp_tensor_columns(x);
  batch_norm_gradient g = {.node = node, .kept = kept_of(node)};
  esp_parallel_for(ESP_PARTS, 1, gradient_sum_parts, &g);
  join_parts(g.kept.parts, columns);
  give_gradient(node->inputs[INPUT_BIAS], g.kept.parts);
  give_gradient(node->inputs[INPUT_GAIN], g.kept.parts + columns);
  g.dx = esp_grad(node->inputs[0], &g.accumulate);
  if (!g.dx) return;
  const double share = of_batch(node) ? 1 / (double)esp_tensor_rows(x) : 0;
  for (int64_t j = 0; j < 2 * columns; j++) g.kept.parts[j] *= share;
  esp_parallel_rows(esp_tensor_rows(x), columns, gradient_rows, &g);
}

static esp_cost batch_norm_cost(const esp_node *node) { return esp_cost_elementwise(node, 7); }

const esp_op esp_op_batch_norm = {"batch norm",        batch_norm_prepare, batch_norm_forward,
                                  batch_norm_backward, batch_norm_cost,    {1e-5, 1e-7, NULL}};

esp_tensor *esp_batch_norm(esp_tape *tape, esp_tensor *x, esp_tensor *gain, esp_tensor *bias,
                           const esp_batch_norm_options *options) {
  return esp_tape_apply(tape, &esp_op_batch_norm, (esp_tensor *[]){x, gain, bias, options->mean, options->variance}, 5,
                        &(batch_norm_attributes){options->epsilon, options->training}, sizeof(batch_norm_attributes));
}

static void move_towards(esp_tensor *average, const esp_real *values, double factor, double share) {
  if (average->frozen) return;
  for (int64_t j = 0; j < esp_tensor_count(average); j++)
    average->data[j] += (esp_real)(share * (factor * (double)values[j] - (double)average->data[j]));
}

void esp_batch_norm_update(const esp_tape *tape, double share) {
  for (int64_t i = 0; i < esp_tape_node_count(tape); i++) {
    const esp_node *node = esp_tape_node(tape, i);
    if (node->op != &esp_op_batch_norm || !of_batch(node)) continue;
    const double rows = (double)esp_tensor_rows(node->inputs[0]);
    const kept k = kept_of(node);
    move_towards(node->inputs[INPUT_MEAN], k.mean, 1, share);
    move_towards(node->inputs[INPUT_VARIANCE], k.variance, rows > 1 ? rows / (rows - 1) : 1, share);
  }
}
