#include "averaging_internal.h"

#include <espalier/factors.h>
#include <espalier/memory.h>
#include <espalier/surgeon.h>

#include <string.h>

/* Which of the old bank's experts a layer keeps, and its new layout. */
typedef struct operation {
  esp_expert_layout layout;
  int32_t old_stored[ESP_MAX_EXPERTS];  /* [layout.stored]; where experts are averaged, the target of the group */
  int32_t old_logical[ESP_MAX_EXPERTS]; /* [layout.experts] */
} operation;

/* A plan without a word on neurons leaves them all. */
static esp_status check_neurons(const esp_layer_plan *plan, const esp_moe *moe) {
  const esp_neuron_choice *n = &plan->neuron;
  if (!n->stored) return ESP_OK;
  if (moe->bank.rank)
    return esp_fail(ESP_ERR_MISMATCH, "the plan speaks of neurons, but the experts of %s are factored", plan->scope);
  if (n->stored != moe->bank.experts)
    return esp_fail(ESP_ERR_MISMATCH, "the plan speaks of the neurons of %d experts in %s, which stores %d", n->stored,
                    plan->scope, moe->bank.experts);
  for (int s = 0; s < n->stored; s++) {
    int64_t first;
    if (n->width[s] != esp_expert_width(&moe->bank, s))
      return esp_fail(ESP_ERR_MISMATCH, "the plan speaks of %d neurons in stored expert %d of %s, which has %d",
                      (int)n->width[s], s, plan->scope, esp_expert_width(&moe->bank, s));
    if (esp_plan_neurons_left(plan, s, &first) == 0)
      return esp_fail(ESP_ERR_MISMATCH, "the plan leaves no neuron of stored expert %d of %s; drop the expert instead",
                      s, plan->scope);
  }
  return ESP_OK;
}

static esp_status check_layer(const esp_layer_plan *plan, const esp_moe *moe) {
  if (strcmp(plan->scope, moe->scope) != 0 || plan->experts != moe->layout.experts)
    return esp_fail(ESP_ERR_MISMATCH,
                    "the plan speaks of %s with %d experts, the model has %s with %d: it was made for another model",
                    plan->scope, plan->experts, moe->scope, moe->layout.experts);
  for (int e = 0; e < plan->experts; e++) {
    const int32_t target = plan->target[e];
    const bool lives = target >= 0 && target < plan->experts && moe->layout.index[target] >= 0;
    if (!lives && (target < ESP_TARGET_REMOVED || target >= 0))
      return esp_fail(ESP_ERR_MISMATCH, "the plan sends expert %d of %s to expert %d, which has no weights", e,
                      plan->scope, (int)target);
  }
  ESP_TRY(check_neurons(plan, moe));
  return esp_check_averages(plan, moe);
}

/* What expert e's weights are afterwards made from: an old stored expert or, averaged, a group. */
static int32_t origin(const esp_layer_plan *plan, const esp_expert_layout *old, int e) {
  return plan->averaged ? plan->target[e] : old->index[plan->target[e]];
}

/* Stored experts keep their order. */
static void plan_operation(operation *o, const esp_layer_plan *plan, const esp_expert_layout *old, int hidden) {
  int32_t place[ESP_MAX_EXPERTS]; /* origin -> new stored */
  const int origins = plan->averaged ? plan->experts : old->stored;
  for (int s = 0; s < origins; s++) place[s] = -1;
  for (int e = 0; e < plan->experts; e++)
    if (plan->target[e] >= 0) place[origin(plan, old, e)] = 0;
  memset(o, 0, sizeof *o);
  o->layout.rank = old->rank;
  o->layout.pruning = old->pruning;
  for (int s = 0; s < origins; s++) {
    if (place[s] < 0) continue;
    place[s] = (int32_t)o->layout.stored;
    const int stored = plan->averaged ? old->index[s] : s;
    int64_t first;
    o->layout.widths[o->layout.stored] =
        (int32_t)(plan->neuron.stored ? esp_plan_neurons_left(plan, s, &first) : esp_stored_width(old, stored, hidden));
    for (int side = 0; side < ESP_SIDES; side++)
      o->layout.sparse_rows[side][o->layout.stored] = old->sparse_rows[side][stored];
    o->old_stored[o->layout.stored++] = (int32_t)s;
  }
  for (int e = 0; e < plan->experts; e++) {
    if (plan->target[e] == ESP_TARGET_REMOVED) continue;
    const int i = o->layout.experts++;
    o->old_logical[i] = (int32_t)e;
    o->layout.original_ids[i] = old->original_ids[e];
    o->layout.index[i] = plan->target[e] >= 0 ? place[origin(plan, old, e)] : plan->target[e];
  }
}

/* Rows of `source`, one a slice of the first dimension, to `target`. */
static void copy_slices(const esp_tensor *target, const esp_tensor *source, const int32_t *rows) {
  if (!target) return;
  const int64_t size = esp_tensor_count(target) / target->shape[0];
  for (int64_t i = 0; i < target->shape[0]; i++)
    memcpy(target->data + i * size, source->data + rows[i] * size, (size_t)size * sizeof *target->data);
}

/* The rows of neurons that stay; stays NULL: all. */
static void copy_neurons(esp_real *target, const esp_real *source, int64_t neurons, int64_t columns,
                         const bool *stays) {
  if (!target) return;
  for (int64_t j = 0; j < neurons; j++) {
    if (stays && !stays[j]) continue;
    memcpy(target, source + j * columns, (size_t)columns * sizeof *target);
    target += columns;
  }
}

/* Rows of the tensor `target` from the to-th on become those of `source` from the from-th on. */
static void copy_rows(const esp_tensor *target, int64_t to, const esp_tensor *source, int64_t from, int64_t count) {
  if (!target) return;
  const int64_t size = esp_tensor_count(source) / source->shape[0];
  memcpy(target->data + to * size, source->data + from * size, (size_t)(count * size) * sizeof *target->data);
}

static void copy_factors(const esp_factors *target, int to, const esp_factors *source, int from) {
  const int64_t first = esp_first_sparse_row(target, to), old = esp_first_sparse_row(source, from);
  const int64_t count = source->counts[from];
  copy_rows(target->u, to, source->u, from, 1);
  copy_rows(target->v, to, source->v, from, 1);
  copy_rows(target->s, first, source->s, old, count);
  copy_rows(target->rows, first, source->rows, old, count);
  copy_rows(target->importance, first, source->importance, old, count);
  copy_rows(target->last_importance, first, source->last_importance, old, count);
}

static void copy_expert(const esp_expert_bank *target, int to, const esp_expert_bank *source, int from,
                        const bool *stays) {
  const esp_expert_weights t = esp_expert_weights_of(target, to), s = esp_expert_weights_of(source, from);
  copy_neurons(t.gate, s.gate, s.neurons, source->width, stays);
  copy_neurons(t.gate_bias, s.gate_bias, s.neurons, 1, stays);
  copy_neurons(t.up, s.up, s.neurons, source->width, stays);
  copy_neurons(t.up_bias, s.up_bias, s.neurons, 1, stays);
  copy_neurons(t.down, s.down, s.neurons, source->width, stays);
  copy_neurons(t.down_bias, s.down_bias, 1, source->width, NULL);
  for (int side = 0; source->rank && side < ESP_SIDES; side++)
    copy_factors(&target->factors[side], to, &source->factors[side], from);
}

static esp_status copy_layer(const esp_moe *target, const esp_moe *source, const esp_layer_plan *plan,
                             const operation *o) {
  copy_slices(target->router, source->router, o->old_logical);
  copy_slices(target->router_bias, source->router_bias, o->old_logical);
  if (plan->averaged) return esp_average_layer(target, source, plan, o->old_stored);
  for (int s = 0; s < o->layout.stored; s++) {
    int64_t first = 0;
    if (plan->neuron.stored) (void)esp_plan_neurons_left(plan, o->old_stored[s], &first);
    copy_expert(&target->bank, s, &source->bank, o->old_stored[s],
                plan->neuron.stored ? plan->neuron.stays + first : NULL);
  }
  return ESP_OK;
}

static esp_status operate(esp_model **pruned, const esp_model *model, const esp_plan *plan, operation *operations,
                          esp_expert_layout *layouts) {
  for (int i = 0; i < plan->layer_count; i++) {
    const esp_moe *moe = esp_model_moe(model, i);
    ESP_TRY(check_layer(&plan->layers[i], moe));
    plan_operation(&operations[i], &plan->layers[i], &moe->layout, model->config.moe.hidden);
    layouts[moe->block] = operations[i].layout;
  }
  ESP_TRY(esp_model_create(pruned, &model->config, layouts, 0));
  ESP_TRY(esp_model_copy_parameters(*pruned, model, "*.router,*.router_bias,*.experts.*"));
  for (int i = 0; i < plan->layer_count; i++)
    ESP_TRY(copy_layer(esp_model_moe(*pruned, i), esp_model_moe(model, i), &plan->layers[i], &operations[i]));
  return ESP_OK;
}

esp_status esp_apply_plan(esp_model **pruned, const esp_model *model, const esp_plan *plan) {
  *pruned = NULL;
  char digest[ESP_DIGEST_SIZE];
  ESP_TRY(esp_model_digest(model, digest));
  if (strcmp(digest, plan->model_digest) != 0 || plan->layer_count != esp_model_moe_count(model))
    return esp_fail(ESP_ERR_MISMATCH, "the plan was made for the model %s, but this one is %s", plan->model_digest,
                    digest);
  operation *operations = esp_alloc((size_t)plan->layer_count, sizeof *operations);
  esp_expert_layout *layouts = esp_alloc((size_t)model->config.blocks, sizeof *layouts);
  esp_status status = operations && layouts ? operate(pruned, model, plan, operations, layouts) : ESP_ERR_MEMORY;
  if (status != ESP_OK) {
    esp_model_free(*pruned);
    *pruned = NULL;
  }
  esp_free(operations);
  esp_free(layouts);
  return status;
}
