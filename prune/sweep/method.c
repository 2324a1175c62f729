#include "method_internal.h"

#include <espalier/memory.h>
#include <espalier/skip.h>
#include <espalier/surgeon.h>

#include <stdio.h>
#include <string.h>

/* A plan in which every expert stays makes a copy. */
static esp_status make_copy(const esp_method *method, const esp_method_inputs *inputs, esp_compressed *made) {
  esp_plan *plan;
  ESP_TRY(esp_plan_create(&plan, inputs->model, method->name, ESP_PRUNE_ZERO));
  const esp_status status = esp_apply_plan(&made->model, inputs->model, plan);
  esp_plan_free(plan);
  return status;
}

esp_status esp_apply_method_plan(const esp_method_inputs *inputs, const esp_plan *plan, esp_compressed *made) {
  ESP_TRY(esp_plan_json(&made->plan, plan));
  return esp_apply_plan(&made->model, inputs->model, plan);
}

static esp_status make_by_criterion(const esp_method *method, const esp_method_inputs *inputs, esp_compressed *made) {
  const esp_criterion_inputs seen = {.model = inputs->model,
                                     .info = inputs->info,
                                     .reference = inputs->reference,
                                     .reference_info = inputs->reference_info,
                                     .seed = inputs->seed,
                                     .calibration = inputs->calibration,
                                     .gates = inputs->gates,
                                     .scores = inputs->scores};
  const esp_prune_budget budget = {.drop = -1, .ratio = inputs->ratio};
  const esp_prune_mode mode = inputs->mode ? *inputs->mode : esp_criterion_mode(method->criterion, inputs->model);
  esp_plan *plan;
  ESP_TRY(esp_plan_make(&plan, method->criterion, &seen, mode, &budget));
  for (int i = 0; i < plan->layer_count; i++) made->greedy += plan->layers[i].greedy;
  const esp_status status = esp_apply_method_plan(inputs, plan, made);
  esp_plan_free(plan);
  return status;
}

/* Otherwise as the paper has it: global budget, router logits. */
static esp_status make_merged(const esp_method *method, const esp_method_inputs *inputs, esp_compressed *made) {
  const esp_merge_options options = {
      .method = *method->merge, .budget = {.ratio = inputs->ratio, .global = true}, .seed = inputs->seed};
  esp_plan *plan;
  ESP_TRY(esp_merge_plan(&plan, inputs->model, inputs->calibration, &options));
  const esp_status status = esp_apply_method_plan(inputs, plan, made);
  esp_plan_free(plan);
  return status;
}

/* Replaces `made` by a model that skips. */
static esp_status skip_in(const esp_method_inputs *inputs, esp_compressed *made) {
  double beta[ESP_MAX_BLOCKS];
  esp_model *skipping;
  ESP_TRY(esp_skip_calibrate(made->model, inputs->calibration, beta));
  ESP_TRY(esp_skip_apply(&skipping, made->model, beta));
  esp_model_free(made->model);
  made->model = skipping;
  return ESP_OK;
}

static esp_status make_skipping(const esp_method *method, const esp_method_inputs *inputs, esp_compressed *made) {
  ESP_TRY(make_copy(method, inputs, made));
  return skip_in(inputs, made);
}

/* --- the table -------------------------------------------------------------------------------------------- */

static const esp_method first_rows[] = {
    {.name = "unpruned", .summary = "the model as it is", .kind = ESP_METHOD_NONE, .make = make_copy},
    {.name = "skip",
     .summary = "dynamic skipping, beta the median of g_2 / g_1 of each layer",
     .kind = ESP_METHOD_SKIP,
     .needs_data = true,
     .make = make_skipping},
    {.name = "factored",
     .summary = "each matrix U V + S, rows of S pruned without training",
     .kind = ESP_METHOD_FACTOR,
     .needs_data = true,
     .has_ratio = true,
     .make = esp_make_factored},
    {.name = "m-smoe-factored",
     .summary =
         "m-smoe keeps sqrt(1 - ratio) of the experts, which are then factored to 1 - ratio of the weights, nothing "
         "being trained: the steps of MC-SMoE, but neither its shares nor its training",
     .kind = ESP_METHOD_FACTOR,
     .needs_data = true,
     .has_ratio = true,
     .make = esp_make_merged_and_factored},
};

enum { FIRST_ROWS = sizeof first_rows / sizeof first_rows[0], MOST_METHODS = 128 };

size_t esp_method_count(void) {
  const esp_criterion *criteria;
  const esp_merge_method *merges;
  return FIRST_ROWS + esp_merge_method_list(&merges) + esp_criterion_list(&criteria);
}

static esp_method merging(const esp_merge_method *merge) {
  return (esp_method){.name = merge->name,
                      .summary = merge->summary,
                      .kind = ESP_METHOD_MERGE,
                      .needs_data = true,
                      .has_ratio = true,
                      .make = make_merged,
                      .merge = merge};
}

static esp_method method_of(const esp_criterion *criterion) {
  return (esp_method){.name = criterion->name,
                      .summary = criterion->formula,
                      .kind = ESP_METHOD_PRUNE,
                      .needs_reference = criterion->needs_reference,
                      .needs_data = criterion->needs_data,
                      .has_ratio = true,
                      .make = make_by_criterion,
                      .criterion = criterion};
}

void esp_method_at(esp_method *method, size_t index) {
  const esp_criterion *criteria;
  const esp_merge_method *merges;
  const size_t first_criterion = FIRST_ROWS + esp_merge_method_list(&merges);
  (void)esp_criterion_list(&criteria);
  if (index < FIRST_ROWS) *method = first_rows[index];
  else if (index < first_criterion) *method = merging(&merges[index - FIRST_ROWS]);
  else *method = method_of(&criteria[index - first_criterion]);
}

static esp_status find_variant(esp_method *method, const char *name) {
  const esp_criterion *criterion;
  ESP_TRY(esp_criterion_find(&criterion, name));
  *method = method_of(criterion);
  return ESP_OK;
}

static esp_status find_skipping(esp_method *method, const char *name, size_t length) {
  char base[64];
  snprintf(base, sizeof base, "%.*s", (int)length, name);
  ESP_TRY(esp_method_find(method, base));
  method->name = name;
  method->needs_data = method->then_skip = true;
  return ESP_OK;
}

esp_status esp_method_find(esp_method *method, const char *name) {
  static const char suffix[] = "+skip";
  const size_t length = strlen(name), rest = sizeof suffix - 1;
  if (length > rest && strcmp(name + length - rest, suffix) == 0) return find_skipping(method, name, length - rest);
  const size_t count = esp_method_count();
  const char *names[MOST_METHODS];
  for (size_t i = 0; i < count && i < MOST_METHODS; i++) {
    esp_method_at(method, i);
    names[i] = method->name;
    if (strcmp(name, names[i]) == 0) return ESP_OK;
  }
  if (strchr(name, ',')) return find_variant(method, name);
  return esp_fail_unknown(ESP_ERR_USAGE, "method", name, names, count);
}

esp_status esp_method_make(const esp_method *method, const esp_method_inputs *inputs, esp_compressed *made) {
  *made = (esp_compressed){.model = NULL};
  if (method->needs_reference && !inputs->reference)
    return esp_fail(ESP_ERR_USAGE, "%s compares with the model from before finetuning, and no reference was given",
                    method->name);
  if (method->needs_data && !inputs->calibration)
    return esp_fail(ESP_ERR_USAGE, "%s is calibrated on images, and no data were given", method->name);
  esp_status status = method->make(method, inputs, made);
  if (status == ESP_OK && method->then_skip) status = skip_in(inputs, made);
  if (status != ESP_OK) esp_compressed_clear(made);
  return status;
}

void esp_compressed_clear(esp_compressed *made) {
  esp_model_free(made->model);
  esp_free(made->plan);
  *made = (esp_compressed){.model = NULL};
}
