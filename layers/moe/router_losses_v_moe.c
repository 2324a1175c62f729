/* V-MoE's importance and load losses (Riquelme et al., arXiv 2106.05974, appendix A). Both are the squared coefficient
 * of variation of something that each expert has, in each routing group. */
#include "moe_ops_internal.h"
#include <espalier/ops.h>

#include <math.h>
#include <string.h>

typedef struct group_attributes {
  esp_route_request request;
  const esp_real *noisy; /* load loss: [T, experts] */
} group_attributes;

/* What forward leaves for backward: the loss of each group, and its slope by what each of its experts has. */
typedef struct group_results {
  double *losses; /* [groups] */
  double *slopes; /* [groups, experts] */
} group_results;

static int64_t group_count(const esp_route_request *r) { return esp_group_count(r) * r->members; }

static group_results results_of(const esp_node *node) {
  double *saved = node->saved;
  return (group_results){saved, saved + group_count(&((const group_attributes *)node->attributes)->request)};
}

static void group_prepare(esp_node *node) {
  const esp_route_request *r = &((const group_attributes *)node->attributes)->request;
  esp_require(
      node, esp_tensor_columns(node->inputs[0]) == r->layout->experts && esp_tensor_rows(node->inputs[0]) == r->tokens,
      "needs logits [tokens, experts]");
  esp_set_output_scalar(node);
  node->saved_bytes = (size_t)(group_count(r) * (1 + r->layout->experts)) * sizeof(double);
}

/* variance / mean^2 of v_e over the group's routable experts, and its slopes 2 (v_e - mean) / (R mean^2)
 * - 2 variance / (R mean^3). */
static double variation(const esp_route_request *r, const esp_token_group *g, const double *v, double *slopes) {
  double sum = 0, squares = 0, routable = 0;
  for (int e = g->first_expert; e < g->end_expert; e++) {
    if (r->layout->index[e] == ESP_EXPERT_MASKED) continue;
    sum += v[e];
    routable++;
  }
  const double mean = sum / routable;
  memset(slopes, 0, (size_t)r->layout->experts * sizeof *slopes);
  if (!(mean > 0)) return mean; /* 0, or not-a-number, which comes through */
  for (int e = g->first_expert; e < g->end_expert; e++)
    if (r->layout->index[e] != ESP_EXPERT_MASKED) squares += (v[e] - mean) * (v[e] - mean);
  const double variance = squares / routable;
  for (int e = g->first_expert; e < g->end_expert; e++)
    if (r->layout->index[e] != ESP_EXPERT_MASKED)
      slopes[e] = 2 * (v[e] - mean) / (routable * mean * mean) - 2 * variance / (routable * mean * mean * mean);
  return variance / (mean * mean);
}

static void add_up(esp_node *node) {
  const int64_t groups = group_count(&((const group_attributes *)node->attributes)->request);
  double sum = 0;
  for (int64_t i = 0; i < groups; i++) sum += results_of(node).losses[i];
  node->outputs[0]->data[0] = (esp_real)(sum / (double)groups);
}

typedef struct group_gradient {
  const esp_node *node;
  esp_real *dlogits;
  bool accumulate;
} group_gradient;

/* Slopes of the whole loss by what the experts of a group have. */
static void set_slopes(const esp_node *node, int64_t group, double *slopes) {
  const esp_route_request *r = &((const group_attributes *)node->attributes)->request;
  const double scale = (double)node->outputs[0]->grad[0] / (double)group_count(r);
  for (int e = 0; e < r->layout->experts; e++)
    slopes[e] = scale * results_of(node).slopes[group * r->layout->experts + e];
}

static void run_backward(esp_node *node, esp_range_body *groups) {
  group_gradient g = {.node = node};
  g.dlogits = esp_grad(node->inputs[0], &g.accumulate);
  if (!g.accumulate) memset(g.dlogits, 0, (size_t)esp_tensor_count(node->inputs[0]) * sizeof *g.dlogits);
  esp_parallel_for(group_count(&((const group_attributes *)node->attributes)->request), 1, groups, &g);
}

static esp_cost group_cost(const esp_node *node) {
  return (esp_cost){12.0 * (double)esp_tensor_count(node->inputs[0]), 4.0 * (double)esp_tensor_count(node->inputs[0])};
}

/* --- importance: I_e = sum_t p_te;  dz_te = p_te (s_e - sum_j s_j p_tj), s the slopes by I ----------------------- */

/* p of one token over its group's experts; 0 for the others. */
static void softmax_of(const esp_route_request *r, const esp_token_group *g, const esp_real *z, double *p) {
  double most = -INFINITY, sum = 0;
  memset(p, 0, (size_t)r->layout->experts * sizeof *p);
  for (int e = g->first_expert; e < g->end_expert; e++)
    if (r->layout->index[e] != ESP_EXPERT_MASKED && (double)z[e] > most) most = (double)z[e];
  for (int e = g->first_expert; e < g->end_expert; e++)
    if (r->layout->index[e] != ESP_EXPERT_MASKED) sum += p[e] = exp((double)z[e] - most);
  for (int e = 0; e < r->layout->experts; e++)
    if (isnan(z[e])) sum = NAN; /* comes through, wherever it is */
  for (int e = g->first_expert; e < g->end_expert; e++) p[e] /= sum;
}

static void importance_groups(void *context, int64_t begin, int64_t end) {
  const esp_node *node = context;
  const esp_route_request *r = &((const group_attributes *)node->attributes)->request;
  const int experts = r->layout->experts;
  double p[ESP_MAX_EXPERTS], importance[ESP_MAX_EXPERTS];
  for (int64_t i = begin; i < end; i++) {
    const esp_token_group g = esp_group_at(r, i);
    memset(importance, 0, sizeof importance);
    for (int64_t t = g.begin; t < g.end; t++) {
      softmax_of(r, &g, node->inputs[0]->data + t * experts, p);
      for (int e = 0; e < experts; e++) importance[e] += p[e];
    }
    results_of(node).losses[i] = variation(r, &g, importance, results_of(node).slopes + i * experts);
  }
}

static void importance_forward(esp_node *node) {
  esp_parallel_for(group_count(&((const group_attributes *)node->attributes)->request), 1, importance_groups, node);
  add_up(node);
}

static void importance_gradient(void *context, int64_t begin, int64_t end) {
  const group_gradient *gradient = context;
  const esp_node *node = gradient->node;
  const esp_route_request *r = &((const group_attributes *)node->attributes)->request;
  const int experts = r->layout->experts;
  double p[ESP_MAX_EXPERTS], slopes[ESP_MAX_EXPERTS];
  for (int64_t i = begin; i < end; i++) {
    const esp_token_group g = esp_group_at(r, i);
    set_slopes(node, i, slopes);
    for (int64_t t = g.begin; t < g.end; t++) {
      double dot = 0;
      softmax_of(r, &g, node->inputs[0]->data + t * experts, p);
      for (int e = 0; e < experts; e++) dot += slopes[e] * p[e];
      for (int e = 0; e < experts; e++) gradient->dlogits[t * experts + e] += (esp_real)(p[e] * (slopes[e] - dot));
    }
  }
}

static void importance_backward(esp_node *node) { run_backward(node, importance_gradient); }

const esp_op esp_op_importance_loss = {"importance loss",   group_prepare, importance_forward,
                                       importance_backward, group_cost,    {1e-5, 1e-7, NULL}};

esp_tensor *esp_importance_loss(esp_tape *tape, esp_tensor *logits, const esp_route_request *request) {
  group_attributes at = {.noisy = NULL};
  if (!esp_request_copy(tape, request, &at.request)) return NULL;
  return esp_tape_apply(tape, &esp_op_importance_loss, &logits, 1, &at, sizeof at);
}

/* --- load: p_te = 1 - Phi(x), x = (threshold_t - z_te) / deviation;  dp_te = phi(x) / deviation by z_te, and as much
 * with the other sign by the threshold, which is the k-th largest noisy logit: dz of that expert. */

typedef struct token_chances {
  double p[ESP_MAX_EXPERTS], density[ESP_MAX_EXPERTS]; /* p and phi(x) / deviation */
  int threshold;                                       /* the expert whose noisy logit is the threshold */
} token_chances;

static void set_chances(const esp_node *node, const esp_token_group *g, int64_t t, token_chances *c) {
  const group_attributes *at = node->attributes;
  const esp_route_request *r = &at->request;
  const int experts = r->layout->experts;
  const double deviation = r->config->noise / esp_routable_between(r->layout, g->first_expert, g->end_expert);
  int32_t best[ESP_MAX_EXPERTS];
  const esp_real *noisy = at->noisy + t * experts, *z = node->inputs[0]->data + t * experts;
  esp_top_k_of(noisy, experts, r->k, best);
  c->threshold = best[r->k - 1];
  double threshold = (double)noisy[c->threshold];
  for (int e = 0; e < experts; e++)
    if (isnan(z[e])) threshold = NAN; /* comes through, wherever it is */
  for (int e = 0; e < experts; e++) {
    const bool open = e >= g->first_expert && e < g->end_expert && r->layout->index[e] != ESP_EXPERT_MASKED;
    const double x = (threshold - (double)z[e]) / deviation;
    c->p[e] = open ? 0.5 * erfc(x * 0.70710678118654752440) : 0;
    c->density[e] = open ? 0.39894228040143267794 * exp(-0.5 * x * x) / deviation : 0;
  }
}

static void load_groups(void *context, int64_t begin, int64_t end) {
  const esp_node *node = context;
  const esp_route_request *r = &((const group_attributes *)node->attributes)->request;
  const int experts = r->layout->experts;
  token_chances c;
  double load[ESP_MAX_EXPERTS];
  for (int64_t i = begin; i < end; i++) {
    const esp_token_group g = esp_group_at(r, i);
    memset(load, 0, sizeof load);
    for (int64_t t = g.begin; t < g.end; t++) {
      set_chances(node, &g, t, &c);
      for (int e = 0; e < experts; e++) load[e] += c.p[e] / (double)(g.end - g.begin);
    }
    results_of(node).losses[i] = variation(r, &g, load, results_of(node).slopes + i * experts);
  }
}

static void load_forward(esp_node *node) {
  esp_parallel_for(group_count(&((const group_attributes *)node->attributes)->request), 1, load_groups, node);
  add_up(node);
}

static void load_gradient(void *context, int64_t begin, int64_t end) {
  const group_gradient *gradient = context;
  const esp_node *node = gradient->node;
  const esp_route_request *r = &((const group_attributes *)node->attributes)->request;
  const int experts = r->layout->experts;
  token_chances c;
  double slopes[ESP_MAX_EXPERTS];
  for (int64_t i = begin; i < end; i++) {
    const esp_token_group g = esp_group_at(r, i);
    set_slopes(node, i, slopes);
    for (int64_t t = g.begin; t < g.end; t++) {
      double by_threshold = 0;
      set_chances(node, &g, t, &c);
      for (int e = 0; e < experts; e++) {
        const double slope = slopes[e] * c.density[e] / (double)(g.end - g.begin);
        by_threshold -= slope;
        gradient->dlogits[t * experts + e] += (esp_real)slope;
      }
      gradient->dlogits[t * experts + c.threshold] += (esp_real)by_threshold;
    }
  }
}

static void load_backward(esp_node *node) { run_backward(node, load_gradient); }

const esp_op esp_op_load_loss = {"load loss",   group_prepare, load_forward,
                                 load_backward, group_cost,    {1e-5, 1e-7, "two noisy logits are equal"}};

esp_tensor *esp_load_loss(esp_tape *tape, esp_tensor *logits, const esp_tensor *noisy,
                          const esp_route_request *request) {
  if (!noisy) return NULL;
  group_attributes at = {.noisy = noisy->data};
  if (!esp_request_copy(tape, request, &at.request)) return NULL;
  return esp_tape_apply(tape, &esp_op_load_loss, &logits, 1, &at, sizeof at);
}
