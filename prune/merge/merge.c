#include "similarity_internal.h"

#include <espalier/criteria.h>
#include <espalier/memory.h>
#include <espalier/merge.h>
#include <espalier/zip.h>

#include <stdio.h>
#include <string.h>

/* --- names -------------------------------------------------------------------------------------------------- */

static const esp_merge_method table[] = {
    {"m-smoe", "aligned by weights, averaged by frequency", "Li et al., ICLR 2024, arXiv 2310.01334", ESP_MERGE_AVERAGE,
     ESP_ALIGN_WEIGHTS, ESP_AVERAGE_FREQUENCY},
    {"plain-average", "as they are, averaged evenly", "its baseline", ESP_MERGE_AVERAGE, ESP_ALIGN_NONE,
     ESP_AVERAGE_UNIFORM},
    {"git-rebasin", "aligned by weights, averaged evenly", "after Ainsworth et al., arXiv 2209.04836",
     ESP_MERGE_AVERAGE, ESP_ALIGN_WEIGHTS, ESP_AVERAGE_UNIFORM},
    {"zipit", "ZipIt-like: neurons that do the same put together, averaged evenly",
     "after Stoica et al., arXiv 2305.03053", ESP_MERGE_AVERAGE, ESP_ALIGN_ZIP, ESP_AVERAGE_UNIFORM},
    {"redirect", "the others go; the dominant expert of their group takes their tokens", "baseline", ESP_MERGE_REDIRECT,
     ESP_ALIGN_NONE, ESP_AVERAGE_UNIFORM},
    {"reroute", "the others go; their tokens are routed among the dominant experts", "baseline", ESP_MERGE_REROUTE,
     ESP_ALIGN_NONE, ESP_AVERAGE_UNIFORM},
};
enum { METHODS = sizeof table / sizeof table[0] };

size_t esp_merge_method_list(const esp_merge_method **methods) {
  *methods = table;
  return METHODS;
}

esp_status esp_merge_method_find(esp_merge_method *method, const char *name) {
  const char *names[METHODS];
  int index;
  for (size_t i = 0; i < METHODS; i++) names[i] = table[i].name;
  ESP_TRY(esp_find_name(&index, "method of merging", name, names, METHODS));
  *method = table[index];
  return ESP_OK;
}

static const char *const align_names[] = {"none", "weights", "activations", "zip"};
static const char *const average_names[] = {"frequency", "uniform", "fisher"};

const char *esp_align_name(esp_align_kind kind) { return align_names[kind]; }
const char *esp_average_name(esp_average_kind kind) { return average_names[kind]; }

esp_status esp_align_parse(esp_align_kind *kind, const char *name) {
  int index;
  ESP_TRY(esp_find_name(&index, "alignment", name, align_names, sizeof align_names / sizeof align_names[0]));
  *kind = (esp_align_kind)index;
  return ESP_OK;
}

esp_status esp_average_parse(esp_average_kind *kind, const char *name) {
  int index;
  ESP_TRY(esp_find_name(&index, "average", name, average_names, sizeof average_names / sizeof average_names[0]));
  *kind = (esp_average_kind)index;
  return ESP_OK;
}

/* --- what a merge holds ------------------------------------------------------------------------------------- */

typedef struct merge {
  const esp_model *model;
  const esp_calibration *calibration;
  const esp_merge_options *options;
  esp_plan *plan;
  int count; /* mixture layers */
  esp_group_layer *layers;
  expert_inputs *inputs;
  esp_real *gradient, *fisher; /* NULL unless asked for */
} merge;

static void release(merge *m) {
  for (int i = 0; m->layers && i < m->count; i++) esp_free(m->layers[i].similarity);
  esp_free(m->layers);
  esp_expert_inputs_free(m->inputs, m->count);
  esp_free(m->gradient);
  esp_free(m->fisher);
}

static bool is_averaged(const merge *m, int layer) {
  return m->options->method.form == ESP_MERGE_AVERAGE && !m->layers[layer].excluded;
}

static esp_status check_exclusion(const merge *m) {
  int excluded = 0;
  for (int i = 0; i < m->count; i++) excluded += m->layers[i].excluded;
  const char *patterns = m->options->exclude;
  if (patterns && *patterns && excluded == 0)
    return esp_fail(ESP_ERR_USAGE, "\"%s\" excludes none of the mixture layers, %s to %s", patterns, m->layers[0].scope,
                    m->layers[m->count - 1].scope);
  if (excluded == m->count)
    return esp_fail(ESP_ERR_USAGE, "\"%s\" excludes all mixture layers, so nothing is left to merge", patterns);
  return ESP_OK;
}

static esp_status describe_layers(merge *m) {
  const char *patterns = m->options->exclude;
  m->layers = esp_alloc((size_t)m->count, sizeof *m->layers);
  if (!m->layers) return ESP_ERR_MEMORY;
  for (int i = 0; i < m->count; i++) {
    const esp_moe *moe = esp_model_moe(m->model, i);
    esp_group_layer *layer = &m->layers[i];
    const size_t experts = (size_t)moe->layout.experts;
    layer->scope = m->plan->layers[i].scope;
    layer->experts = moe->layout.experts;
    layer->members = moe->config.members;
    layer->excluded = patterns && *patterns && esp_name_matches(patterns, layer->scope);
    layer->similarity = esp_alloc(experts * experts, sizeof *layer->similarity);
    if (!layer->similarity) return ESP_ERR_MEMORY;
    for (int e = 0; e < layer->experts; e++) layer->alive[e] = moe->layout.index[e] >= 0;
  }
  return check_exclusion(m);
}

/* --- alignment ---------------------------------------------------------------------------------------------- */

/* The first expert with weights of expert e's member. */
static int reference_of(const esp_group_layer *layer, int e) {
  const int own = layer->experts / layer->members;
  int reference = e / own * own;
  while (!layer->alive[reference]) reference++;
  return reference;
}

static esp_status align_by_weights(const merge *m, int i, double *gain) {
  const esp_moe *moe = esp_model_moe(m->model, i);
  esp_layer_plan *plan = &m->plan->layers[i];
  for (int e = 0; e < plan->experts; e++) {
    const int reference = m->layers[i].alive[e] ? reference_of(&m->layers[i], e) : e;
    if (reference == e) continue;
    esp_weight_gains(&moe->bank, moe->layout.index[reference], moe->layout.index[e], !m->options->without_down, gain);
    ESP_TRY(esp_align(plan->neurons, gain, plan->place + (int64_t)e * plan->neurons));
  }
  return ESP_OK;
}

static void free_matches(neuron_match *matches, int count) {
  for (int i = 0; matches && i < count; i++) esp_correlation_free(&matches[i].correlation);
  esp_free(matches);
}

/* A match of each expert with its reference, in the layers that are merged. */
static esp_status prepare_alignment(const merge *m, neuron_match *matches, int *count) {
  for (int i = 0; i < m->count; i++)
    for (int e = 0; is_averaged(m, i) && e < m->layers[i].experts; e++) {
      const int reference = m->layers[i].alive[e] ? reference_of(&m->layers[i], e) : e;
      if (reference == e) continue;
      neuron_match *match = &matches[*count];
      const int neurons = m->plan->layers[i].neurons;
      match->layer = i;
      match->row_count = match->column_count = 1;
      match->rows[0] = reference;
      match->columns[0] = e;
      ESP_TRY(esp_correlation_create(&match->correlation, neurons, neurons));
      ++*count;
    }
  return ESP_OK;
}

static esp_status align_by_activations(const merge *m, double *gain) {
  int total = 0, count = 0;
  for (int i = 0; i < m->count; i++) total += m->layers[i].experts;
  neuron_match *matches = esp_alloc((size_t)total, sizeof *matches);
  esp_status status = matches ? prepare_alignment(m, matches, &count) : ESP_ERR_MEMORY;
  if (status == ESP_OK) status = esp_match_neurons(matches, count, m->model, m->calibration);
  for (int i = 0; status == ESP_OK && i < count; i++) {
    const esp_layer_plan *plan = &m->plan->layers[matches[i].layer];
    esp_correlation_gains(&matches[i].correlation, gain);
    status = esp_align(plan->neurons, gain, plan->place + (int64_t)matches[i].columns[0] * plan->neurons);
  }
  free_matches(matches, total);
  return status;
}

static esp_status align(const merge *m) {
  const esp_align_kind kind = m->options->method.align;
  int most = 0;
  if (m->options->method.form != ESP_MERGE_AVERAGE || kind == ESP_ALIGN_NONE) return ESP_OK;
  for (int i = 0; i < m->count; i++)
    if (is_averaged(m, i)) {
      const int neurons = esp_model_moe(m->model, i)->bank.hidden;
      ESP_TRY(esp_plan_take_places(&m->plan->layers[i], neurons));
      if (neurons > most) most = neurons;
    }
  if (kind == ESP_ALIGN_ZIP) return ESP_OK; /* once there are groups */
  double *gain = esp_alloc((size_t)most * (size_t)most, sizeof *gain);
  esp_status status = gain ? ESP_OK : ESP_ERR_MEMORY;
  if (status == ESP_OK && kind == ESP_ALIGN_ACTIVATIONS) status = align_by_activations(m, gain);
  for (int i = 0; status == ESP_OK && kind == ESP_ALIGN_WEIGHTS && i < m->count; i++)
    if (is_averaged(m, i)) status = align_by_weights(m, i, gain);
  esp_free(gain);
  return status;
}

/* --- ZipIt-like matching ------------------------------------------------------------------------------------ */

static int experts_of_group(const esp_group_layer *layer, int dominant, int32_t *experts) {
  int count = 0;
  for (int e = 0; e < layer->experts; e++)
    if (layer->dominant[e] == dominant) experts[count++] = e;
  return count;
}

/* Without tokens to compare by, neurons stay where they are. */
static esp_status zip_group(const merge *m, const neuron_match *match) {
  if (match->correlation.tokens < 2) return ESP_OK;
  const esp_layer_plan *plan = &m->plan->layers[match->layer];
  const size_t all = (size_t)match->row_count * (size_t)plan->neurons;
  double *likeness = esp_alloc(all * all, sizeof *likeness);
  int32_t *place = esp_alloc(all, sizeof *place);
  esp_status status = likeness && place ? ESP_OK : ESP_ERR_MEMORY;
  if (status == ESP_OK) {
    esp_correlation_gains(&match->correlation, likeness);
    status = esp_zip((int)all, plan->neurons, likeness, place);
  }
  for (int i = 0; status == ESP_OK && i < match->row_count; i++)
    memcpy(plan->place + (int64_t)match->rows[i] * plan->neurons, place + (int64_t)i * plan->neurons,
           (size_t)plan->neurons * sizeof *place);
  esp_free(likeness);
  esp_free(place);
  return status;
}

static esp_status prepare_zip(const merge *m, neuron_match *matches, int *count) {
  for (int i = 0; i < m->count; i++)
    for (int d = 0; is_averaged(m, i) && d < m->layers[i].experts; d++) {
      neuron_match *match = &matches[*count];
      match->layer = i;
      match->row_count = match->column_count = experts_of_group(&m->layers[i], d, match->rows);
      if (match->row_count < 2) continue;
      memcpy(match->columns, match->rows, sizeof match->columns);
      const int64_t all = (int64_t)match->row_count * m->plan->layers[i].neurons;
      ESP_TRY(esp_correlation_create(&match->correlation, all, all));
      ++*count;
    }
  return ESP_OK;
}

static esp_status zip_groups(const merge *m) {
  int total = 1, count = 0;
  for (int i = 0; i < m->count; i++) total += m->layers[i].experts;
  neuron_match *matches = esp_alloc((size_t)total, sizeof *matches);
  esp_status status = matches ? prepare_zip(m, matches, &count) : ESP_ERR_MEMORY;
  if (status == ESP_OK) status = esp_match_neurons(matches, count, m->model, m->calibration);
  for (int i = 0; status == ESP_OK && i < count; i++) status = zip_group(m, &matches[i]);
  free_matches(matches, total);
  return status;
}

/* --- groups and weights ------------------------------------------------------------------------------------- */

static esp_status measure(merge *m) {
  ESP_TRY(esp_expert_inputs_make(&m->inputs, m->model, m->calibration));
  const bool gradients =
      m->options->similarity == ESP_SIMILARITY_GRADIENTS || m->options->method.average == ESP_AVERAGE_FISHER;
  if (gradients) ESP_TRY(esp_sum_gradients(&m->gradient, &m->fisher, m->model, m->calibration));
  for (int i = 0; i < m->count; i++) {
    esp_tensor tensors[4];
    const esp_moe *moe = esp_model_moe(m->model, i);
    const esp_expert_bank bank = m->gradient ? esp_bank_in(&moe->bank, m->model, m->gradient, tensors) : moe->bank;
    const similarity_source source = {moe, &m->plan->layers[i], &m->inputs[i], &bank, m->options->seed};
    for (int e = 0; e < moe->layout.experts; e++)
      m->plan->layers[i].score[e] = m->layers[i].frequency[e] = m->inputs[i].count[e] / m->inputs[i].slots;
    ESP_TRY(esp_similarities(m->layers[i].similarity, m->options->similarity, &source));
  }
  return ESP_OK;
}

static double trace(const esp_real *rows, int64_t count) {
  double sum = 0;
  for (int64_t i = 0; rows && i < count; i++) sum += (double)rows[i];
  return sum;
}

/* What an expert weighs before its group's weights are made to sum to 1. */
static double raw_weight(const merge *m, int layer, int e) {
  const esp_moe *moe = esp_model_moe(m->model, layer);
  esp_tensor tensors[4];
  switch (m->options->method.average) {
  case ESP_AVERAGE_FREQUENCY:
    return m->layers[layer].frequency[e];
  case ESP_AVERAGE_UNIFORM:
    return 1;
  case ESP_AVERAGE_FISHER:
    break;
  }
  const esp_expert_bank bank = esp_bank_in(&moe->bank, m->model, m->fisher, tensors);
  const esp_expert_weights v = esp_expert_weights_of(&bank, moe->layout.index[e]);
  const int64_t count = v.neurons * bank.width;
  return trace(v.gate, count) + trace(v.up, count) + trace(v.down, count);
}

/* The paper's code divides by the sum of frequencies plus 1e-7, against groups that were never used. Here a group that
 * weighs nothing is averaged evenly, and all others' weights sum to 1. */
static void weigh_group(const merge *m, int layer, int dominant) {
  esp_layer_plan *plan = &m->plan->layers[layer];
  int32_t experts[ESP_MAX_EXPERTS];
  const int count = experts_of_group(&m->layers[layer], dominant, experts);
  double sum = 0;
  for (int i = 0; i < count; i++) sum += plan->weight[experts[i]] = raw_weight(m, layer, experts[i]);
  for (int i = 0; i < count; i++) plan->weight[experts[i]] = sum > 0 ? plan->weight[experts[i]] / sum : 1.0 / count;
}

static esp_status check_routable(const esp_group_layer *layer, int top_k) {
  const int own = layer->experts / layer->members;
  for (int m = 0; m < layer->members; m++) {
    int left = 0;
    for (int e = m * own; e < (m + 1) * own; e++) left += layer->dominant[e] == e;
    if (left < top_k)
      return esp_fail(
          ESP_ERR_USAGE,
          "%s would be left with %d experts that can be routed to, but its router chooses %d; ask for more, "
          "or take the method redirect",
          layer->scope, left, top_k);
  }
  return ESP_OK;
}

static esp_status fill_plan(const merge *m) {
  const esp_merge_form form = m->options->method.form;
  for (int i = 0; i < m->count; i++) {
    const esp_group_layer *layer = &m->layers[i];
    esp_layer_plan *plan = &m->plan->layers[i];
    plan->averaged = is_averaged(m, i);
    if (form == ESP_MERGE_REROUTE) ESP_TRY(check_routable(layer, esp_model_moe(m->model, i)->config.top_k));
    for (int e = 0; e < layer->experts; e++) {
      if (!layer->alive[e]) continue;
      const bool goes = form == ESP_MERGE_REROUTE && layer->dominant[e] != e;
      plan->target[e] = goes ? ESP_TARGET_MASKED : layer->dominant[e];
    }
    for (int d = 0; plan->averaged && d < layer->experts; d++)
      if (layer->dominant[d] == d) weigh_group(m, i, d);
  }
  return ESP_OK;
}

static esp_status run(merge *m) {
  ESP_TRY(describe_layers(m));
  ESP_TRY(align(m));
  ESP_TRY(measure(m));
  ESP_TRY(esp_choose_dominant(m->layers, m->count, &m->options->budget));
  ESP_TRY(esp_join_groups(m->layers, m->count, &m->options->budget));
  if (m->options->method.form == ESP_MERGE_AVERAGE && m->options->method.align == ESP_ALIGN_ZIP) ESP_TRY(zip_groups(m));
  return fill_plan(m);
}

static esp_status check_method(const merge *m) {
  const esp_merge_method *method = &m->options->method;
  const bool by_tokens = method->align == ESP_ALIGN_ACTIVATIONS || method->align == ESP_ALIGN_ZIP;
  if (method->form == ESP_MERGE_AVERAGE && by_tokens && m->model->config.moe.router.policy == ESP_ROUTER_SOFT)
    return esp_fail(ESP_ERR_MISMATCH,
                    "with router policy soft no token chooses an expert, so activations cannot be compared over its "
                    "tokens; align by weights");
  for (int i = 0; i < m->count; i++)
    if (method->form == ESP_MERGE_AVERAGE && esp_model_moe(m->model, i)->bank.rank)
      return esp_fail(ESP_ERR_MISMATCH, "the experts of %s are factored; merge first, then compress",
                      esp_model_moe(m->model, i)->scope);
  for (int i = 0; i < m->count; i++)
    if (method->form == ESP_MERGE_AVERAGE && esp_model_moe(m->model, i)->bank.widths)
      return esp_fail(ESP_ERR_MISMATCH,
                      "the experts of %s have different widths, which cannot be averaged; merge before neurons are "
                      "pruned, or use the methods redirect or reroute",
                      esp_model_moe(m->model, i)->scope);
  return esp_calibration_check(m->calibration, &m->model->config);
}

esp_status esp_merge_plan(esp_plan **plan, const esp_model *model, const esp_calibration *calibration,
                          const esp_merge_options *options) {
  merge m = {.model = model, .calibration = calibration, .options = options, .count = esp_model_moe_count(model)};
  const esp_prune_mode mode = options->method.form == ESP_MERGE_REROUTE ? ESP_PRUNE_MASK : ESP_PRUNE_ZERO;
  *plan = NULL;
  ESP_TRY(esp_plan_create(&m.plan, model, options->method.name, mode));
  esp_plan_note_data(m.plan, calibration);
  snprintf(m.plan->formula, sizeof m.plan->formula, "%s", options->method.summary);
  m.plan->seed = options->seed;
  esp_status status = check_method(&m);
  if (status == ESP_OK) status = run(&m);
  release(&m);
  if (status == ESP_OK) *plan = m.plan;
  else esp_plan_free(m.plan);
  return status;
}
