/* Ops of ensembles whose members run side by side in one batch. */
#include "ops_internal.h"
#include <espalier/op_helpers.h>
#include <espalier/vector_math.h>

#include <string.h>

/* --- tile: y = x, x, ...;  dx = the sum of the copies' dy, in their order ---------------------------------------- */

typedef struct tile_attributes {
  int64_t times;
} tile_attributes;

static void tile_prepare(esp_node *node) {
  const esp_tensor *x = node->inputs[0];
  const int64_t times = ((const tile_attributes *)node->attributes)->times;
  esp_require(node, times > 0 && x->rank > 0, "needs a first dimension and a positive number of copies");
  int64_t shape[ESP_MAX_RANK];
  memcpy(shape, x->shape, sizeof shape);
  shape[0] *= times;
  esp_set_output(node, 0, x->rank, shape);
  node->unread = ESP_UNREAD_INPUT(0) | ESP_UNREAD_OUTPUTS;
}

static void tile_forward(esp_node *node) {
  const int64_t count = esp_tensor_count(node->inputs[0]);
  for (int64_t i = 0; i < ((const tile_attributes *)node->attributes)->times; i++)
    memcpy(node->outputs[0]->data + i * count, node->inputs[0]->data, (size_t)count * sizeof(esp_real));
}

static void tile_backward(esp_node *node) {
  const int64_t count = esp_tensor_count(node->inputs[0]);
  bool add;
  esp_real *dx = esp_grad(node->inputs[0], &add);
  for (int64_t i = 0; i < ((const tile_attributes *)node->attributes)->times; i++) {
    const esp_real *dy = node->outputs[0]->grad + i * count;
    for (int64_t j = 0; j < count; j++) dx[j] = (add ? dx[j] : 0) + dy[j];
    add = true;
  }
}

static esp_cost tile_cost(const esp_node *node) { return esp_cost_elementwise(node, 0); }

const esp_op esp_op_tile = {"tile", tile_prepare, tile_forward, tile_backward, tile_cost, {1e-4, 1e-8, NULL}};

esp_tensor *esp_tile(esp_tape *tape, esp_tensor *x, int64_t times) {
  if (times == 1) return x;
  return esp_tape_apply(tape, &esp_op_tile, &x, 1, &(tile_attributes){times}, sizeof(tile_attributes));
}

/* --- log mean probability: y = log(1/M sum_m p_m), p_m = softmax(x_m);  with w_mc = p_mc / (M e^(y_c)), the member's
 * share of class c:  dx_mc = w_mc dy_c - p_mc sum_j w_mj dy_j. */

static void mean_prepare(esp_node *node) {
  const esp_tensor *x = node->inputs[0];
  const int64_t members = ((const tile_attributes *)node->attributes)->times;
  esp_require(node, x->rank == 2 && members > 0 && x->shape[0] % members == 0, "needs [members x rows, columns]");
  esp_set_output(node, 0, 2, (const int64_t[]){x->shape[0] / members, x->shape[1]});
  node->saved_bytes = (size_t)x->shape[0] * sizeof(esp_real); /* log sum e^x of each row */
}

static void mean_forward(esp_node *node) {
  const esp_tensor *x = node->inputs[0], *y = node->outputs[0];
  const int64_t rows = y->shape[0], columns = y->shape[1], members = x->shape[0] / rows;
  esp_real *sums = node->saved;
  for (int64_t i = 0; i < x->shape[0]; i++) {
    const esp_real *z = x->data + i * columns;
    esp_real most = z[0], mass = 0;
    for (int64_t j = 1; j < columns; j++) most = z[j] > most ? z[j] : most;
    for (int64_t j = 0; j < columns; j++) mass += esp_exp(z[j] - most);
    sums[i] = most + esp_log(mass);
  }
  /* The largest log probability is taken out first, so that small ones do not underflow. */
  for (int64_t i = 0; i < rows * columns; i++) {
    esp_real most = (esp_real)-INFINITY, mass = 0;
    for (int64_t m = 0; m < members; m++) {
      const esp_real log_p = x->data[m * rows * columns + i] - sums[m * rows + i / columns];
      most = log_p > most ? log_p : most;
    }
    const bool no_chance = most == (esp_real)-INFINITY; /* unless it is not-a-number, which a sum keeps */
    for (int64_t m = 0; m < members; m++) {
      const esp_real log_p = x->data[m * rows * columns + i] - sums[m * rows + i / columns];
      mass += no_chance ? log_p : esp_exp(log_p - most);
    }
    y->data[i] = no_chance ? mass : most + esp_log(mass / (esp_real)members);
  }
}

/* A member's share of a class's probability; of none at all it has none. */
static esp_real share_of(esp_real log_p, esp_real log_mean, int64_t members) {
  return log_mean == (esp_real)-INFINITY ? 0 : esp_exp(log_p - log_mean) / (esp_real)members;
}

static void mean_backward(esp_node *node) {
  const esp_tensor *x = node->inputs[0], *y = node->outputs[0];
  const int64_t rows = y->shape[0], columns = y->shape[1], members = x->shape[0] / rows;
  const esp_real *sums = node->saved;
  bool add;
  esp_real *dx = esp_grad(node->inputs[0], &add);
  for (int64_t i = 0; i < x->shape[0]; i++) {
    const esp_real *z = x->data + i * columns, *log_mean = y->data + i % rows * columns;
    const esp_real *dy = y->grad + i % rows * columns;
    esp_real dot = 0;
    for (int64_t j = 0; j < columns; j++) dot += share_of(z[j] - sums[i], log_mean[j], members) * dy[j];
    for (int64_t j = 0; j < columns; j++) {
      const esp_real share = share_of(z[j] - sums[i], log_mean[j], members);
      dx[i * columns + j] = (add ? dx[i * columns + j] : 0) + share * dy[j] - esp_exp(z[j] - sums[i]) * dot;
    }
  }
}

static esp_cost mean_cost(const esp_node *node) { return esp_cost_elementwise(node, 8); }

const esp_op esp_op_log_mean_probability = {"log mean probability", mean_prepare, mean_forward,
                                            mean_backward,          mean_cost,    {1e-5, 1e-7, NULL}};

esp_tensor *esp_log_mean_probability(esp_tape *tape, esp_tensor *x, int64_t members) {
  if (members == 1) return x;
  return esp_tape_apply(tape, &esp_op_log_mean_probability, &x, 1, &(tile_attributes){members},
                        sizeof(tile_attributes));
}
