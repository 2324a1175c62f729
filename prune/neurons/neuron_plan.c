/* Budgets of neurons, and the way from a criterion to a plan. */
#include "criteria_internal.h"
#include "neurons_internal.h"
#include <espalier/memory.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

static bool selects(const esp_moe *moe) { return moe->neurons_kept < moe->bank.hidden; }

/* What a token uses of an expert. */
static int least_left(const esp_moe *moe, int stored) {
  const int width = esp_expert_width(&moe->bank, stored), kept = selects(moe) ? moe->neurons_kept : 1;
  return kept < width ? kept : width;
}

static bool is_excluded(const esp_neuron_budget *budget, const esp_layer_plan *layer) {
  return budget->exclude && *budget->exclude && esp_name_matches(budget->exclude, layer->scope);
}

/* Ratios of tenths and thirds are not exact: 0.3 of 10 are 3. */
static int64_t share_of(double ratio, int64_t count) { return (int64_t)floor(ratio * (double)count + 1e-9); }

/* --- the lowest go ------------------------------------------------------------------------------------------- */

typedef struct candidate {
  double score;
  int64_t index; /* in the plan's layer */
  int stored;
} candidate;

static int lowest_first(const void *a, const void *b) {
  const candidate *x = a, *y = b;
  if (x->score != y->score) return x->score < y->score ? -1 : 1;
  return (x->index < y->index) - (x->index > y->index);
}

/* Cuts up to `most` of the candidates, those with a score below `below`, as long as their experts can spare them. */
static void cut_lowest(esp_neuron_choice *choice, candidate *candidates, int64_t count, int64_t most, double below,
                       int *spare) {
  qsort(candidates, (size_t)count, sizeof *candidates, lowest_first);
  for (int64_t i = 0; i < count && most > 0 && candidates[i].score < below; i++) {
    if (spare[candidates[i].stored] == 0) continue;
    spare[candidates[i].stored]--;
    choice->stays[candidates[i].index] = false;
    most--;
  }
}

/* The neurons of stored experts [begin, end). */
static int64_t list_candidates(const esp_neuron_choice *choice, int begin, int end, candidate *candidates) {
  int64_t index = 0, count = 0;
  for (int s = 0; s < end; s++)
    for (int j = 0; j < choice->width[s]; j++, index++)
      if (s >= begin) candidates[count++] = (candidate){choice->score[index], index, s};
  return count;
}

/* --- per layer ----------------------------------------------------------------------------------------------- */

static esp_status check_expert(const esp_layer_plan *layer, const esp_moe *moe, int s, int64_t cut) {
  const int width = layer->neuron.width[s], least = least_left(moe, s);
  if (width - cut >= least) return ESP_OK;
  return esp_fail(ESP_ERR_USAGE, "%s: stored expert %d has %d neurons; cutting %lld would leave %lld, but %s %d",
                  layer->scope, s, width, (long long)cut, (long long)(width - cut),
                  selects(moe) ? "each token uses" : "it must keep at least", least);
}

static esp_status check_layer(const esp_layer_plan *layer, const esp_moe *moe, int64_t cut) {
  int64_t most = 0;
  for (int s = 0; s < layer->neuron.stored; s++) most += layer->neuron.width[s] - least_left(moe, s);
  if (cut <= most) return ESP_OK;
  return esp_fail(ESP_ERR_USAGE,
                  "%s: %lld of the %lld neurons of its experts are to go, but only %lld can: each expert keeps "
                  "%d, which %s",
                  layer->scope, (long long)cut, (long long)layer->neuron.count, (long long)most, least_left(moe, 0),
                  selects(moe) ? "a token uses" : "is the least");
}

static esp_status check_scores(const esp_plan *plan, const esp_layer_plan *layer) {
  for (int64_t i = 0; i < layer->neuron.count; i++)
    if (!isfinite(layer->neuron.score[i]))
      return esp_fail(ESP_ERR_NOT_FINITE,
                      "%s scores neuron %lld of %s with %g: are all parameters of the model finite?", plan->criterion,
                      (long long)i, layer->scope, layer->neuron.score[i]);
  return ESP_OK;
}

/* Whether the budget can be, before the long part. */
static esp_status check_counts(const esp_layer_plan *layer, const esp_moe *moe, const esp_neuron_budget *budget) {
  if (budget->below > 0) return ESP_OK;
  if (budget->by_layer) return check_layer(layer, moe, share_of(budget->ratio, layer->neuron.count));
  for (int s = 0; s < layer->neuron.stored; s++)
    ESP_TRY(check_expert(layer, moe, s, share_of(budget->ratio, layer->neuron.width[s])));
  return ESP_OK;
}

static bool all_zero(const double *scores, int64_t count) {
  for (int64_t i = 0; i < count; i++)
    if (scores[i] != 0) return false;
  return true;
}

static void cut_layer(esp_layer_plan *layer, const esp_moe *moe, const esp_neuron_budget *budget,
                      candidate *candidates) {
  esp_neuron_choice *n = &layer->neuron;
  int spare[ESP_MAX_EXPERTS];
  for (int s = 0; s < n->stored; s++) spare[s] = n->width[s] - least_left(moe, s);
  if (budget->below <= 0 && budget->by_layer) {
    list_candidates(n, 0, n->stored, candidates);
    cut_lowest(n, candidates, n->count, share_of(budget->ratio, n->count), HUGE_VAL, spare);
    return;
  }
  int64_t first = 0;
  for (int s = 0; s < n->stored; first += n->width[s++]) {
    const int64_t count = list_candidates(n, s, s + 1, candidates);
    if (budget->below <= 0) cut_lowest(n, candidates, count, share_of(budget->ratio, count), HUGE_VAL, spare);
    else if (!all_zero(n->score + first, count)) /* no rows: nothing is known */
      cut_lowest(n, candidates, count, count, budget->below, spare);
  }
}

/* --- the plan ------------------------------------------------------------------------------------------------ */

static esp_status check_budget(const esp_neuron_criterion *c, const esp_neuron_budget *budget) {
  if (budget->below > 0 && !c->needs_selection)
    return esp_fail(ESP_ERR_USAGE,
                    "a threshold is a share of rows, which %s does not score by; use neuron-frequency or a ratio",
                    c->name);
  if (budget->below > 0 && !(budget->below <= 1))
    return esp_fail(ESP_ERR_USAGE, "the threshold is %g; it is a share of rows and must lie in (0, 1]", budget->below);
  if (budget->below > 0 || (budget->ratio >= 0 && budget->ratio < 1)) return ESP_OK;
  return esp_fail(ESP_ERR_USAGE, "the ratio of neurons to cut is %g; it must lie in [0, 1)", budget->ratio);
}

/* A factored expert's neurons share their rows. */
static esp_status check_dense(const esp_model *model) {
  for (int i = 0; i < esp_model_moe_count(model); i++)
    if (esp_model_moe(model, i)->bank.rank)
      return esp_fail(ESP_ERR_MISMATCH,
                      "the experts of %s are factored, and their neurons share rows; prune neurons before the "
                      "experts are factored",
                      esp_model_moe(model, i)->scope);
  return ESP_OK;
}

static esp_status check_inputs(const esp_neuron_criterion *c, const esp_criterion_inputs *inputs,
                               const esp_neuron_budget *budget) {
  ESP_TRY(check_budget(c, budget));
  if (c->needs_data && !inputs->calibration)
    return esp_fail(ESP_ERR_USAGE, "%s looks at what neurons do with data, and no calibration data were given",
                    c->name);
  ESP_TRY(check_dense(inputs->model));
  bool any = !c->needs_selection;
  for (int i = 0; i < esp_model_moe_count(inputs->model); i++) any = any || selects(esp_model_moe(inputs->model, i));
  if (!any)
    return esp_fail(ESP_ERR_MISMATCH,
                    "%s counts how often neurons are selected, but no layer of the model selects any; use "
                    "neuron-activation or neuron-contribution",
                    c->name);
  return inputs->calibration ? esp_calibration_check(inputs->calibration, &inputs->model->config) : ESP_OK;
}

static bool takes_part(const esp_neuron_criterion *c, const esp_neuron_budget *budget, const esp_layer_plan *layer,
                       const esp_moe *moe) {
  return !is_excluded(budget, layer) && (selects(moe) || !c->needs_selection);
}

static esp_status fill(const esp_neuron_criterion *c, const esp_criterion_inputs *inputs,
                       const esp_neuron_budget *budget, esp_plan *plan) {
  int64_t most = 0;
  for (int i = 0; i < plan->layer_count; i++) {
    esp_layer_plan *layer = &plan->layers[i];
    const esp_moe *moe = esp_model_moe(inputs->model, i);
    ESP_TRY(esp_plan_take_neurons(layer, moe));
    if (takes_part(c, budget, layer, moe)) ESP_TRY(check_counts(layer, moe, budget));
    if (layer->neuron.count > most) most = layer->neuron.count;
  }
  ESP_TRY(c->score(c, inputs, plan));
  candidate *candidates = esp_alloc((size_t)most, sizeof *candidates);
  esp_status status = candidates ? ESP_OK : ESP_ERR_MEMORY;
  for (int i = 0; status == ESP_OK && i < plan->layer_count; i++) {
    const esp_moe *moe = esp_model_moe(inputs->model, i);
    status = check_scores(plan, &plan->layers[i]);
    if (status == ESP_OK && takes_part(c, budget, &plan->layers[i], moe))
      cut_layer(&plan->layers[i], moe, budget, candidates);
  }
  esp_free(candidates);
  return status;
}

esp_status esp_neuron_plan_make(esp_plan **plan, const esp_neuron_criterion *criterion,
                                const esp_criterion_inputs *inputs, const esp_neuron_budget *budget) {
  *plan = NULL;
  ESP_TRY(check_inputs(criterion, inputs, budget));
  ESP_TRY(esp_plan_create(plan, inputs->model, criterion->name, ESP_PRUNE_ZERO));
  esp_plan_note_origin(*plan, criterion->formula, criterion->needs_data, inputs);
  const esp_status status = fill(criterion, inputs, budget, *plan);
  if (status == ESP_OK) return ESP_OK;
  esp_plan_free(*plan);
  *plan = NULL;
  return status;
}
