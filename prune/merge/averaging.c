#include "averaging_internal.h"

#include <espalier/memory.h>

#include <math.h>
#include <string.h>

/* --- checks ------------------------------------------------------------------------------------------------ */

static esp_status check_places(const esp_layer_plan *plan, const esp_moe *moe) {
  if (!plan->place) return ESP_OK;
  if (plan->neurons != moe->bank.hidden)
    return esp_fail(ESP_ERR_MISMATCH, "the plan places %d neurons of each expert of %s, but they have %d",
                    plan->neurons, plan->scope, moe->bank.hidden);
  for (int64_t i = 0; i < (int64_t)plan->experts * plan->neurons; i++)
    if (plan->place[i] < 0 || plan->place[i] >= plan->neurons)
      return esp_fail(ESP_ERR_MISMATCH, "the plan puts neuron %lld of expert %lld of %s at %d of %d",
                      (long long)(i % plan->neurons), (long long)(i / plan->neurons), plan->scope, (int)plan->place[i],
                      plan->neurons);
  return ESP_OK;
}

esp_status esp_check_averages(const esp_layer_plan *plan, const esp_moe *moe) {
  if (!plan->averaged) return ESP_OK;
  if (plan->neuron.stored)
    return esp_fail(ESP_ERR_MISMATCH, "the plan averages experts of %s and cuts neurons of them; that takes two plans",
                    plan->scope);
  if (moe->bank.rank)
    return esp_fail(ESP_ERR_MISMATCH,
                    "the plan averages experts of %s, whose matrices are factored; merge first, then compress",
                    plan->scope);
  double sums[ESP_MAX_EXPERTS] = {0};
  for (int e = 0; e < plan->experts; e++) {
    const int32_t target = plan->target[e];
    if (target < 0) continue;
    if (moe->layout.index[e] < 0 || plan->target[target] != target)
      return esp_fail(ESP_ERR_MISMATCH, "the plan averages expert %d of %s into %d, which %s", e, plan->scope,
                      (int)target, moe->layout.index[e] < 0 ? "it cannot: it has no weights" : "has another target");
    if (!(plan->weight[e] >= 0))
      return esp_fail(ESP_ERR_MISMATCH, "the plan gives expert %d of %s the weight %g in its average", e, plan->scope,
                      plan->weight[e]);
    if (esp_expert_width(&moe->bank, moe->layout.index[e]) != esp_expert_width(&moe->bank, moe->layout.index[target]))
      return esp_fail(ESP_ERR_MISMATCH,
                      "experts %d and %d of %s have %d and %d neurons; experts of different widths cannot be averaged",
                      e, (int)target, plan->scope, esp_expert_width(&moe->bank, moe->layout.index[e]),
                      esp_expert_width(&moe->bank, moe->layout.index[target]));
    sums[target] += plan->weight[e];
  }
  for (int e = 0; e < plan->experts; e++)
    if (plan->target[e] == e && fabs(sums[e] - 1) > 1e-6)
      return esp_fail(ESP_ERR_MISMATCH, "the weights of group %d of %s sum to %g instead of 1", e, plan->scope,
                      sums[e]);
  return check_places(plan, moe);
}

/* --- averages ---------------------------------------------------------------------------------------------- */

/* What the average of a group is made in, in double precision. */
typedef struct sums {
  int64_t neurons, width;
  double *matrix; /* [neurons, width] */
  double *vector; /* [neurons] */
  double *share;  /* [neurons] sum of the weights that meet at each neuron */
} sums;

/* Adds weight x (rows of an expert) where they belong. rows [neurons, columns]. */
static void add_rows(double *target, const esp_real *rows, int64_t neurons, int64_t columns, double weight,
                     const int32_t *place) {
  for (int64_t n = 0; n < neurons; n++) {
    double *to = target + (place ? place[n] : n) * columns;
    for (int64_t j = 0; j < columns; j++) to[j] += weight * (double)rows[n * columns + j];
  }
}

/* One group: its experts and where their neurons go. */
typedef struct group {
  const esp_layer_plan *plan;
  const esp_moe *source;
  int32_t target;
} group;

typedef esp_real *member_rows(const esp_expert_weights *expert);

static esp_real *gate_of(const esp_expert_weights *v) { return v->gate; }
static esp_real *up_of(const esp_expert_weights *v) { return v->up; }
static esp_real *down_of(const esp_expert_weights *v) { return v->down; }
static esp_real *gate_bias_of(const esp_expert_weights *v) { return v->gate_bias; }
static esp_real *up_bias_of(const esp_expert_weights *v) { return v->up_bias; }
static esp_real *down_bias_of(const esp_expert_weights *v) { return v->down_bias; }

/* target [rows, columns] = the weighted sum over the group's experts, each row over its share if there are `shares`. */
static void average(const group *g, const esp_expert_weights *target, member_rows *part, int64_t rows, int64_t columns,
                    double *total, bool placed, const double *shares) {
  esp_real *out = part(target);
  if (!out) return;
  memset(total, 0, (size_t)(rows * columns) * sizeof *total);
  for (int e = 0; e < g->plan->experts; e++) {
    if (g->plan->target[e] != g->target || !(g->plan->weight[e] > 0)) continue;
    const esp_expert_weights member = esp_expert_weights_of(&g->source->bank, g->source->layout.index[e]);
    const int32_t *place = placed && g->plan->place ? g->plan->place + (int64_t)e * g->plan->neurons : NULL;
    add_rows(total, part(&member), rows, columns, g->plan->weight[e], place);
  }
  for (int64_t r = 0; r < rows; r++) {
    const double share = shares ? shares[r] : 1;
    for (int64_t j = 0; j < columns; j++)
      out[r * columns + j] = share > 0 ? (esp_real)(total[r * columns + j] / share) : 0;
  }
}

static void add_shares(const group *g, sums *s) {
  memset(s->share, 0, (size_t)s->neurons * sizeof *s->share);
  for (int e = 0; e < g->plan->experts; e++) {
    if (g->plan->target[e] != g->target) continue;
    const int32_t *place = g->plan->place ? g->plan->place + (int64_t)e * g->plan->neurons : NULL;
    for (int64_t n = 0; n < s->neurons; n++) s->share[place ? place[n] : n] += g->plan->weight[e];
  }
}

static void average_group(const group *g, const esp_expert_weights *target, sums *s) {
  s->neurons = target->neurons;
  add_shares(g, s);
  average(g, target, gate_of, s->neurons, s->width, s->matrix, true, s->share);
  average(g, target, up_of, s->neurons, s->width, s->matrix, true, s->share);
  average(g, target, down_of, s->neurons, s->width, s->matrix, true, NULL);
  average(g, target, gate_bias_of, s->neurons, 1, s->vector, true, s->share);
  average(g, target, up_bias_of, s->neurons, 1, s->vector, true, s->share);
  average(g, target, down_bias_of, s->width, 1, s->matrix, false, NULL);
}

esp_status esp_average_layer(const esp_moe *target, const esp_moe *source, const esp_layer_plan *plan,
                             const int32_t *groups) {
  sums s = {.neurons = source->bank.hidden, .width = source->bank.width};
  s.matrix = esp_alloc((size_t)(s.neurons * s.width), sizeof *s.matrix);
  s.vector = esp_alloc((size_t)s.neurons, sizeof *s.vector);
  s.share = esp_alloc((size_t)s.neurons, sizeof *s.share);
  const bool ready = s.matrix && s.vector && s.share;
  for (int i = 0; ready && i < target->layout.stored; i++) {
    const esp_expert_weights view = esp_expert_weights_of(&target->bank, i);
    average_group(&(group){plan, source, groups[i]}, &view, &s);
  }
  esp_free(s.matrix);
  esp_free(s.vector);
  esp_free(s.share);
  return ready ? ESP_OK : ESP_ERR_MEMORY;
}
