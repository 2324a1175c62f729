/* Auxiliary losses of routers: balance, z, entropy. Those of V-MoE are in router_losses_v_moe.c. */
#include "moe_ops_internal.h"

#include <string.h>

static esp_cost loss_cost(const esp_node *node) {
  return (esp_cost){2.0 * (double)esp_tensor_count(node->inputs[0]), 4.0 * (double)esp_tensor_count(node->inputs[0])};
}

/* --- balance loss: L = E sum_i F_i P_i;  dP_i = dL E F_i, so d score_ti = dL E F_i / T ----------------------------
 * With the scores of chosen experts only, the others' and their gradients are 0.
 * With M members each has E / M experts and T / M tokens, and L is the mean over them. */

typedef struct balance_attributes {
  esp_route_request request;
  const esp_routing *routing;
} balance_attributes;

static void balance_prepare(esp_node *node) {
  const balance_attributes *at = node->attributes;
  esp_require(node,
              esp_tensor_rows(node->inputs[0]) == at->routing->tokens &&
                  esp_tensor_columns(node->inputs[0]) == at->routing->experts,
              "needs scores [tokens, experts]");
  esp_set_output_scalar(node);
}

/* Slots, or first choices, of each expert. */
static void count_load(const balance_attributes *at, int64_t *load) {
  const esp_routing *r = at->routing;
  memcpy(load, r->wanted, (size_t)r->experts * sizeof *load);
  if (at->request.config->balance == ESP_BALANCE_ALL_CHOICES || !r->first_slot) return;
  memset(load, 0, (size_t)r->experts * sizeof *load);
  for (int64_t t = 0; t < r->tokens; t++)
    if (r->first_slot[t] < r->first_slot[t + 1]) load[r->choice[r->first_slot[t]]]++;
}

/* factor[i] = E F_i / T of expert i in its member, over the number of members. */
static void set_factors(const balance_attributes *at, double *factor) {
  const esp_route_request *request = &at->request;
  const int own = at->routing->experts / request->members;
  int64_t load[ESP_MAX_EXPERTS];
  count_load(at, load);
  for (int first = 0; first < at->routing->experts; first += own) {
    int64_t total = 0;
    int routable = 0;
    for (int i = first; i < first + own; i++) {
      total += load[i];
      routable += request->layout->index[i] != ESP_EXPERT_MASKED;
    }
    for (int i = first; i < first + own; i++)
      factor[i] = total > 0 ? (double)routable * (double)load[i] / (double)total / (double)at->routing->tokens : 0;
  }
}

/* Whether token t's score of expert i is one of those that are meant. */
static bool counts(const balance_attributes *at, int64_t t, int i) {
  const esp_routing *r = at->routing;
  if (at->request.config->balance_scores == ESP_BALANCE_SCORES_ALL || !r->first_slot) return true;
  for (int64_t s = r->first_slot[t]; s < r->first_slot[t + 1]; s++)
    if (r->choice[s] == i) return true;
  return false;
}

static void balance_forward(esp_node *node) {
  const balance_attributes *at = node->attributes;
  const int experts = at->routing->experts;
  double factor[ESP_MAX_EXPERTS], loss = 0;
  set_factors(at, factor);
  for (int i = 0; i < experts; i++) {
    double sum = 0;
    for (int64_t t = 0; t < at->routing->tokens; t++) {
      const double score = (double)node->inputs[0]->data[t * experts + i];
      if (counts(at, t, i) || isnan(score)) sum += score; /* not-a-number comes through */
    }
    loss += factor[i] * sum;
  }
  node->outputs[0]->data[0] = (esp_real)loss;
}

static void balance_backward(esp_node *node) {
  const balance_attributes *at = node->attributes;
  const int experts = at->routing->experts;
  const double dloss = (double)node->outputs[0]->grad[0];
  double factor[ESP_MAX_EXPERTS];
  bool add;
  esp_real *dscores = esp_grad(node->inputs[0], &add);
  set_factors(at, factor);
  for (int64_t t = 0; t < at->routing->tokens; t++)
    for (int i = 0; i < experts; i++) {
      esp_real *d = dscores + t * experts + i;
      *d = (add ? *d : 0) + (counts(at, t, i) ? (esp_real)(dloss * factor[i]) : 0);
    }
}

const esp_op esp_op_balance_loss = {"balance loss",  balance_prepare,
                                    balance_forward, balance_backward,
                                    loss_cost,       {1e-5, 1e-7, "the shares F change where routing does"}};

esp_tensor *esp_balance_loss(esp_tape *tape, esp_tensor *scores, const esp_routing *routing,
                             const esp_route_request *request) {
  balance_attributes at = {.routing = routing};
  if (!esp_request_copy(tape, request, &at.request)) return NULL;
  return esp_tape_apply(tape, &esp_op_balance_loss, &scores, 1, &at, sizeof at);
}

/* --- losses of each token's logits, meant over the tokens --------------------------------------------------- */

typedef struct token_attributes {
  esp_route_request request;
} token_attributes;

static void token_prepare(esp_node *node) {
  const esp_route_request *r = &((const token_attributes *)node->attributes)->request;
  esp_require(
      node, esp_tensor_columns(node->inputs[0]) == r->layout->experts && esp_tensor_rows(node->inputs[0]) == r->tokens,
      "needs logits [tokens, experts]");
  esp_set_output_scalar(node);
  node->saved_bytes = (size_t)r->tokens * 2 * sizeof(esp_real);
}

/* Whether token t may be sent to an expert: not masked, and of its own member. */
static bool is_open(const esp_route_request *r, int64_t t, int64_t expert) {
  const int64_t own = r->layout->experts / r->members;
  return r->layout->index[expert] != ESP_EXPERT_MASKED && expert / own == t / (r->tokens / r->members);
}

static esp_real log_sum(const esp_route_request *r, int64_t t, const esp_real *z) {
  esp_real most = (esp_real)-INFINITY, mass = 0;
  for (int i = 0; i < r->layout->experts; i++)
    if (is_open(r, t, i) && z[i] > most) most = z[i];
  for (int i = 0; i < r->layout->experts; i++)
    if (is_open(r, t, i) || isnan(z[i])) mass += esp_exp(z[i] - most); /* not-a-number comes through */
  return most + esp_log(mass);
}

/* --- z-loss: L = 1/T sum_t l_t^2, l_t = log sum_i e^(z_ti);  dz_ti = dL 2 l_t softmax(z_t)_i / T --------------- */

static void z_forward(esp_node *node) {
  const esp_route_request *r = &((const token_attributes *)node->attributes)->request;
  esp_real *l = node->saved;
  double sum = 0;
  for (int64_t t = 0; t < r->tokens; t++) {
    l[t] = log_sum(r, t, node->inputs[0]->data + t * r->layout->experts);
    sum += (double)l[t] * (double)l[t];
  }
  node->outputs[0]->data[0] = (esp_real)(sum / (double)r->tokens);
}

static void z_backward(esp_node *node) {
  const esp_route_request *r = &((const token_attributes *)node->attributes)->request;
  const int64_t experts = r->layout->experts;
  const esp_real *l = node->saved, scale = 2 * node->outputs[0]->grad[0] / (esp_real)r->tokens;
  bool add;
  esp_real *dz = esp_grad(node->inputs[0], &add);
  for (int64_t i = 0; i < r->tokens * experts; i++) {
    const int64_t t = i / experts;
    const esp_real slope = is_open(r, t, i % experts) ? scale * l[t] * esp_exp(node->inputs[0]->data[i] - l[t]) : 0;
    dz[i] = (add ? dz[i] : 0) + slope;
  }
}

const esp_op esp_op_z_loss = {"z-loss", token_prepare, z_forward, z_backward, loss_cost, {1e-5, 1e-7, NULL}};

static esp_tensor *apply_token_loss(esp_tape *tape, const esp_op *op, esp_tensor *logits,
                                    const esp_route_request *request) {
  token_attributes at;
  if (!esp_request_copy(tape, request, &at.request)) return NULL;
  return esp_tape_apply(tape, op, &logits, 1, &at, sizeof at);
}

esp_tensor *esp_z_loss(esp_tape *tape, esp_tensor *logits, const esp_route_request *request) {
  return apply_token_loss(tape, &esp_op_z_loss, logits, request);
}

/* --- entropy loss: L = 1/T sum_t H_t, H_t = -sum_i p_ti log p_ti, p = softmax(z);  dz_ti = -dL p_ti (log p_ti + H_t) /
 * T */

static void entropy_forward(esp_node *node) {
  const esp_route_request *r = &((const token_attributes *)node->attributes)->request;
  esp_real *saved = node->saved; /* l_t and H_t */
  double sum = 0;
  for (int64_t t = 0; t < r->tokens; t++) {
    const esp_real *z = node->inputs[0]->data + t * r->layout->experts, l = log_sum(r, t, z);
    esp_real entropy = 0;
    for (int i = 0; i < r->layout->experts; i++)
      if (is_open(r, t, i)) entropy -= esp_exp(z[i] - l) * (z[i] - l);
    saved[2 * t] = l;
    saved[2 * t + 1] = entropy;
    sum += (double)entropy;
  }
  node->outputs[0]->data[0] = (esp_real)(sum / (double)r->tokens);
}

static void entropy_backward(esp_node *node) {
  const esp_route_request *r = &((const token_attributes *)node->attributes)->request;
  const int64_t experts = r->layout->experts;
  const esp_real *saved = node->saved, scale = node->outputs[0]->grad[0] / (esp_real)r->tokens;
  bool add;
  esp_real *dz = esp_grad(node->inputs[0], &add);
  for (int64_t i = 0; i < r->tokens * experts; i++) {
    const int64_t t = i / experts;
    const esp_real log_p = node->inputs[0]->data[i] - saved[2 * t];
    const esp_real slope = is_open(r, t, i % experts) ? scale * esp_exp(log_p) * (log_p + saved[2 * t + 1]) : 0;
    dz[i] = (add ? dz[i] : 0) - slope;
  }
}

const esp_op esp_op_entropy_loss = {"entropy loss",   token_prepare, entropy_forward,
                                    entropy_backward, loss_cost,     {1e-5, 1e-7, NULL}};

esp_tensor *esp_entropy_loss(esp_tape *tape, esp_tensor *logits, const esp_route_request *request) {
  return apply_token_loss(tape, &esp_op_entropy_loss, logits, request);
}
