/* Softmax, its logarithm, and the losses made of it. */
#include "ops_internal.h"
#include <espalier/op_helpers.h>

typedef struct row_gradient {
  const esp_real *y, *dy;
  esp_real *dx;
  int64_t columns;
  bool accumulate;
} row_gradient;

static row_gradient row_gradient_of(esp_node *node) {
  const esp_tensor *y = node->outputs[0];
  row_gradient g = {.y = y->data, .dy = y->grad, .columns = esp_tensor_columns(y)};
  g.dx = esp_grad(node->inputs[0], &g.accumulate);
  return g;
}

static void for_rows(const esp_tensor *tensor, esp_range_body *body, void *context) {
  esp_parallel_rows(esp_tensor_rows(tensor), esp_tensor_columns(tensor), body, context);
}

/* --- softmax: y_j = e^(x_j - m) / sum_i e^(x_i - m), m the largest;  dx = y (dy - sum_i dy_i y_i) ----------- */

ESP_HOT static void softmax_rows(void *context, int64_t begin, int64_t end) {
  const esp_node *node = context;
  const int64_t columns = esp_tensor_columns(node->inputs[0]);
  for (int64_t r = begin; r < end; r++) {
    const esp_real *restrict x = node->inputs[0]->data + r * columns;
    esp_real *restrict y = node->outputs[0]->data + r * columns;
    const esp_real most = esp_largest(x, columns);
    esp_real sum = 0;
    for (int64_t j = 0; j < columns; j++) y[j] = esp_exp(x[j] - most);
    ESP_SUMS(sum)
    for (int64_t j = 0; j < columns; j++) sum += y[j];
    for (int64_t j = 0; j < columns; j++) y[j] /= sum;
  }
}

static void softmax_forward(esp_node *node) { for_rows(node->inputs[0], softmax_rows, node); }

ESP_HOT static void softmax_gradient_rows(void *context, int64_t begin, int64_t end) {
  const row_gradient *g = context;
  for (int64_t r = begin; r < end; r++) {
    const esp_real *y = g->y + r * g->columns, *dy = g->dy + r * g->columns;
    esp_real *dx = g->dx + r * g->columns, dot = 0;
    ESP_SUMS(dot)
    for (int64_t j = 0; j < g->columns; j++) dot += dy[j] * y[j];
    for (int64_t j = 0; j < g->columns; j++) {
      const esp_real value = y[j] * (dy[j] - dot);
      dx[j] = g->accumulate ? dx[j] + value : value;
    }
  }
}

static void softmax_backward(esp_node *node) {
  row_gradient g = row_gradient_of(node);
  for_rows(node->inputs[0], softmax_gradient_rows, &g);
}

static esp_cost softmax_cost(const esp_node *node) { return esp_cost_elementwise(node, 5); }

const esp_op esp_op_softmax = {"softmax",        esp_set_output_same, softmax_forward,
                               softmax_backward, softmax_cost,        {1e-5, 1e-7, NULL}};

esp_tensor *esp_softmax(esp_tape *tape, esp_tensor *x) { return esp_tape_apply(tape, &esp_op_softmax, &x, 1, NULL, 0); }

/* --- log-softmax: y_j = x_j - m - log sum_i e^(x_i - m);  dx = dy - e^y sum_i dy_i --------------------------- */

static void log_softmax_row(const esp_real *x, esp_real *y, int64_t columns) {
  const esp_real most = esp_largest(x, columns);
  esp_real sum = 0;
  for (int64_t j = 0; j < columns; j++) sum += esp_exp(x[j] - most);
  const esp_real shift = most + esp_log(sum);
  for (int64_t j = 0; j < columns; j++) y[j] = x[j] - shift;
}

static void log_softmax_rows(void *context, int64_t begin, int64_t end) {
  const esp_node *node = context;
  const int64_t columns = esp_tensor_columns(node->inputs[0]);
  for (int64_t r = begin; r < end; r++)
    log_softmax_row(node->inputs[0]->data + r * columns, node->outputs[0]->data + r * columns, columns);
}

static void log_softmax_forward(esp_node *node) { for_rows(node->inputs[0], log_softmax_rows, node); }

static void log_softmax_gradient_rows(void *context, int64_t begin, int64_t end) {
  const row_gradient *g = context;
  for (int64_t r = begin; r < end; r++) {
    const esp_real *y = g->y + r * g->columns, *dy = g->dy + r * g->columns;
    esp_real *dx = g->dx + r * g->columns, sum = 0;
    for (int64_t j = 0; j < g->columns; j++) sum += dy[j];
    for (int64_t j = 0; j < g->columns; j++) {
      const esp_real value = dy[j] - esp_exp(y[j]) * sum;
      dx[j] = g->accumulate ? dx[j] + value : value;
    }
  }
}

static void log_softmax_backward(esp_node *node) {
  row_gradient g = row_gradient_of(node);
  for_rows(node->inputs[0], log_softmax_gradient_rows, &g);
}

const esp_op esp_op_log_softmax = {"log softmax",        esp_set_output_same, log_softmax_forward,
                                   log_softmax_backward, softmax_cost,        {1e-5, 1e-7, NULL}};

esp_tensor *esp_log_softmax(esp_tape *tape, esp_tensor *x) {
  return esp_tape_apply(tape, &esp_op_log_softmax, &x, 1, NULL, 0);
}

/* --- cross-entropy: L = -1/N sum_n sum_j q_nj log softmax(x_n)_j --------------------------------------------
 * q = (1 - s) (mix at the label, 1 - mix at the mixed label) + s / C;  dx_n = dL (softmax(x_n) - q_n) / N. */

static void cross_entropy_prepare(esp_node *node) {
  const esp_tensor *logits = node->inputs[0];
  esp_require(node, logits->rank == 2, "needs logits [rows, classes]");
  const esp_targets *targets = node->attributes;
  for (int64_t r = 0; r < logits->shape[0]; r++) {
    esp_require(node, targets->labels[r] >= 0 && targets->labels[r] < logits->shape[1], "a label is out of range");
    esp_require(node, !targets->mix || (targets->mixed_labels[r] >= 0 && targets->mixed_labels[r] < logits->shape[1]),
                "a mixed label is out of range");
  }
  esp_set_output_scalar(node);
  node->saved_bytes = (size_t)esp_tensor_count(logits) * sizeof(esp_real); /* log-probabilities */
}

/* q y, where 0 times the logarithm of 0 is 0 and not-a-number stays what it is. */
static double weighed(double q, double y) { return q > 0 || !isinf(y) ? q * y : 0; }

/* -sum_j q_j y_j of one row of log-probabilities. */
static double row_loss(const esp_targets *targets, int64_t row, const esp_real *y, int64_t classes) {
  double uniform = 0;
  for (int64_t j = 0; j < classes; j++) uniform += (double)y[j];
  double hit = (double)y[targets->labels[row]];
  if (targets->mix) {
    const double mix = (double)targets->mix[row];
    hit = weighed(mix, hit) + weighed(1 - mix, (double)y[targets->mixed_labels[row]]);
  }
  return -weighed(1 - targets->smoothing, hit) - weighed(targets->smoothing, uniform / (double)classes);
}

static void cross_entropy_forward(esp_node *node) {
  const esp_tensor *logits = node->inputs[0];
  const int64_t rows = logits->shape[0], classes = logits->shape[1];
  esp_real *log_probabilities = node->saved;
  double loss = 0;
  for (int64_t r = 0; r < rows; r++) {
    log_softmax_row(logits->data + r * classes, log_probabilities + r * classes, classes);
    loss += row_loss(node->attributes, r, log_probabilities + r * classes, classes);
  }
  node->outputs[0]->data[0] = (esp_real)(loss / (double)rows);
}

static void cross_entropy_backward(esp_node *node) {
  const esp_targets *targets = node->attributes;
  const int64_t rows = node->inputs[0]->shape[0], classes = node->inputs[0]->shape[1];
  const esp_real scale = node->outputs[0]->grad[0] / (esp_real)rows, *y = node->saved;
  const esp_real kept = (esp_real)(1 - targets->smoothing), spread = (esp_real)(targets->smoothing / (double)classes);
  bool add;
  esp_real *dx = esp_grad(node->inputs[0], &add);
  for (int64_t r = 0; r < rows; r++, dx += classes, y += classes) {
    for (int64_t j = 0; j < classes; j++) dx[j] = (add ? dx[j] : 0) + scale * (esp_exp(y[j]) - spread);
    const esp_real mix = targets->mix ? (esp_real)targets->mix[r] : 1;
    dx[targets->labels[r]] -= scale * kept * mix;
    if (targets->mix) dx[targets->mixed_labels[r]] -= scale * kept * (1 - mix);
  }
}

static esp_cost cross_entropy_cost(const esp_node *node) {
  return (esp_cost){8.0 * (double)esp_tensor_count(node->inputs[0]), 4.0 * (double)esp_tensor_count(node->inputs[0])};
}

const esp_op esp_op_cross_entropy = {"cross-entropy",        cross_entropy_prepare, cross_entropy_forward,
                                     cross_entropy_backward, cross_entropy_cost,    {1e-5, 1e-7, NULL}};

esp_tensor *esp_cross_entropy(esp_tape *tape, esp_tensor *logits, const esp_targets *targets) {
  return esp_tape_apply(tape, &esp_op_cross_entropy, &logits, 1, targets, sizeof *targets);
}

/* --- distillation: L = 1/N sum_n sum_j p_nj (log p_nj - log q_nj), p = softmax(teacher / T), q = softmax(x / T);
 * dx_n = dL (q_n - p_n) / (N T). ------------------------------------------------------------------------------ */

typedef struct distillation_attributes {
  const esp_tensor *teacher;
  double temperature;
} distillation_attributes;

static void distillation_prepare(esp_node *node) {
  const esp_tensor *logits = node->inputs[0];
  const distillation_attributes *a = node->attributes;
  esp_require(node, logits->rank == 2, "needs logits [rows, classes]");
  esp_require(node, esp_same_shape(logits, a->teacher), "needs a teacher's logits of the same shape");
  esp_require(node, a->temperature > 0, "needs a temperature above 0");
  esp_set_output_scalar(node);
  node->saved_bytes = 2 * (size_t)esp_tensor_count(logits) * sizeof(esp_real); /* log q, then log p */
}

/* log softmax of one row over the temperature. */
static void log_softened_row(const esp_real *x, double temperature, esp_real *y, int64_t columns) {
  for (int64_t j = 0; j < columns; j++) y[j] = x[j] / (esp_real)temperature;
  log_softmax_row(y, y, columns);
}

static void distillation_forward(esp_node *node) {
  const esp_tensor *logits = node->inputs[0];
  const distillation_attributes *a = node->attributes;
  const int64_t rows = logits->shape[0], classes = logits->shape[1];
  esp_real *log_q = node->saved, *log_p = log_q + rows * classes;
  double loss = 0;
  for (int64_t i = 0; i < rows * classes; i += classes) {
    log_softened_row(logits->data + i, a->temperature, log_q + i, classes);
    log_softened_row(a->teacher->data + i, a->temperature, log_p + i, classes);
    for (int64_t j = i; j < i + classes; j++) {
      const double p = exp((double)log_p[j]); /* an exact 0 where the teacher gives no chance */
      loss += weighed(p, (double)log_p[j]) - weighed(p, (double)log_q[j]);
    }
  }
  node->outputs[0]->data[0] = (esp_real)(loss / (double)rows);
}

static void distillation_backward(esp_node *node) {
  const distillation_attributes *a = node->attributes;
  const int64_t count = esp_tensor_count(node->inputs[0]);
  const esp_real *log_q = node->saved, *log_p = log_q + count;
  const esp_real scale = node->outputs[0]->grad[0] / (esp_real)((double)node->inputs[0]->shape[0] * a->temperature);
  bool add;
  esp_real *dx = esp_grad(node->inputs[0], &add);
  for (int64_t i = 0; i < count; i++) dx[i] = (add ? dx[i] : 0) + scale * (esp_exp(log_q[i]) - esp_exp(log_p[i]));
}

static esp_cost distillation_cost(const esp_node *node) {
  return (esp_cost){18.0 * (double)esp_tensor_count(node->inputs[0]), 8.0 * (double)esp_tensor_count(node->inputs[0])};
}

const esp_op esp_op_distillation = {"distillation",        distillation_prepare, distillation_forward,
                                    distillation_backward, distillation_cost,    {1e-5, 1e-7, NULL}};

esp_tensor *esp_distillation_loss(esp_tape *tape, esp_tensor *logits, const esp_tensor *teacher, double temperature) {
  if (!teacher) return NULL;
  return esp_tape_apply(tape, &esp_op_distillation, &logits, 1, &(distillation_attributes){teacher, temperature},
                        sizeof(distillation_attributes));
}
