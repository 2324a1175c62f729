/* Auxiliary losses of routers. */
#include "moe_ops_internal.h"

typedef struct loss_attributes {
  const esp_routing *routing;
  int routable; /* experts that can be routed to */
} loss_attributes;

static esp_cost loss_cost(const esp_node *node) {
  return (esp_cost){2.0 * (double)esp_tensor_count(node->inputs[0]), 4.0 * (double)esp_tensor_count(node->inputs[0])};
}

/* --- balance loss: L = E sum_i F_i P_i;  dP_i = dL E F_i, so d score_ti = dL E F_i / T ------------------------ */

static void balance_plan(esp_node *node) {
  const loss_attributes *at = node->attributes;
  esp_require(node,
              esp_tensor_rows(node->inputs[0]) == at->routing->tokens &&
                  esp_tensor_columns(node->inputs[0]) == at->routing->experts,
              "needs scores [tokens, experts]");
  esp_plan_scalar(node);
}

/* E F_i / T. */
static double balance_factor(const loss_attributes *at, int expert) {
  const esp_routing *r = at->routing;
  const double share = (double)r->wanted[expert] / ((double)r->tokens * r->k);
  return at->routable * share / (double)r->tokens;
}

static void balance_forward(esp_node *node) {
  const loss_attributes *at = node->attributes;
  const esp_routing *r = at->routing;
  double loss = 0;
  for (int i = 0; i < r->experts; i++) {
    double sum = 0;
    for (int64_t t = 0; t < r->tokens; t++) sum += (double)node->inputs[0]->data[t * r->experts + i];
    loss += balance_factor(at, i) * sum;
  }
  node->outputs[0]->data[0] = (esp_real)loss;
}

static void balance_backward(esp_node *node) {
  const loss_attributes *at = node->attributes;
  const esp_routing *r = at->routing;
  const double dloss = (double)node->outputs[0]->grad[0];
  bool add;
  esp_real *dscores = esp_grad(node->inputs[0], &add);
  esp_real slope[ESP_MAX_EXPERTS];
  for (int i = 0; i < r->experts; i++) slope[i] = (esp_real)(dloss * balance_factor(at, i));
  for (int64_t t = 0; t < r->tokens; t++)
    for (int i = 0; i < r->experts; i++) {
      esp_real *d = dscores + t * r->experts + i;
      *d = (add ? *d : 0) + slope[i];
    }
}

const esp_op esp_op_balance_loss = {"balance loss",  balance_plan,
                                    balance_forward, balance_backward,
                                    loss_cost,       {1e-5, 1e-7, "the shares F change where routing does"}};

esp_tensor *esp_balance_loss(esp_tape *tape, esp_tensor *scores, const esp_routing *routing,
                             const esp_expert_layout *layout) {
  const loss_attributes at = {routing, esp_routable_experts(layout)};
  return esp_tape_apply(tape, &esp_op_balance_loss, &scores, 1, &at, sizeof at);
}

/* --- z-loss: L = 1/T sum_t l_t^2, l_t = log sum_i e^(z_ti);  dz_ti = dL 2 l_t softmax(z_t)_i / T ---------------
 * Masked experts count as z = -infinity. */

typedef struct z_attributes {
  const esp_expert_layout *layout;
} z_attributes;

static bool is_routable(const esp_node *node, int64_t expert) {
  return ((const z_attributes *)node->attributes)->layout->index[expert] != ESP_EXPERT_MASKED;
}

static void z_plan(esp_node *node) {
  const z_attributes *at = node->attributes;
  esp_require(node, esp_tensor_columns(node->inputs[0]) == at->layout->experts, "needs logits [tokens, experts]");
  esp_plan_scalar(node);
  node->saved_bytes = (size_t)esp_tensor_rows(node->inputs[0]) * sizeof(esp_real); /* l */
}

static esp_real log_sum(const esp_node *node, const esp_real *z, int64_t experts) {
  esp_real most = (esp_real)-INFINITY, mass = 0;
  for (int64_t i = 0; i < experts; i++)
    if (is_routable(node, i) && z[i] > most) most = z[i];
  for (int64_t i = 0; i < experts; i++)
    if (is_routable(node, i)) mass += esp_exp(z[i] - most);
  return most + esp_log(mass);
}

static void z_forward(esp_node *node) {
  const int64_t tokens = esp_tensor_rows(node->inputs[0]), experts = esp_tensor_columns(node->inputs[0]);
  esp_real *l = node->saved;
  double sum = 0;
  for (int64_t t = 0; t < tokens; t++) {
    l[t] = log_sum(node, node->inputs[0]->data + t * experts, experts);
    sum += (double)l[t] * (double)l[t];
  }
  node->outputs[0]->data[0] = (esp_real)(sum / (double)tokens);
}

static void z_backward(esp_node *node) {
  const int64_t tokens = esp_tensor_rows(node->inputs[0]), experts = esp_tensor_columns(node->inputs[0]);
  const esp_real *l = node->saved, scale = 2 * node->outputs[0]->grad[0] / (esp_real)tokens;
  bool add;
  esp_real *dz = esp_grad(node->inputs[0], &add);
  for (int64_t i = 0; i < tokens * experts; i++) {
    const esp_real lt = l[i / experts];
    const esp_real slope = is_routable(node, i % experts) ? scale * lt * esp_exp(node->inputs[0]->data[i] - lt) : 0;
    dz[i] = (add ? dz[i] : 0) + slope;
  }
}

const esp_op esp_op_z_loss = {"z-loss", z_plan, z_forward, z_backward, loss_cost, {1e-5, 1e-7, NULL}};

esp_tensor *esp_z_loss(esp_tape *tape, esp_tensor *logits, const esp_expert_layout *layout) {
  return esp_tape_apply(tape, &esp_op_z_loss, &logits, 1, &(z_attributes){layout}, sizeof(z_attributes));
}
