/* merge: groups of experts come to share one expert's weights. */
#include "commands_internal.h"

#include <espalier/core.h>
#include <espalier/cost.h>
#include <espalier/prune.h>
#include <espalier/stable_rank.h>

#include <stdio.h>
#include <string.h>

typedef struct merging {
  esp_trained model;
  esp_dataset *dataset;
  esp_merge_options options;
  esp_calibration calibration;
  esp_plan *plan;
  esp_model *merged;
  esp_stable_ranks *before, *after; /* with --ranks */
  char target[ESP_PATH_SIZE];       /* the new checkpoint */
} merging;

static esp_status read_budget(merging *m, const arguments *a) {
  esp_group_budget *budget = &m->options.budget;
  long long groups, capacity;
  if (!a->groups == !a->ratio)
    return esp_fail(ESP_ERR_USAGE,
                    "give either --groups N (stored experts a layer, on average) or --ratio R (the share of "
                    "a layer's experts that is to go)");
  budget->global = true;
  if (a->budget && strcmp(a->budget, "layer") == 0) budget->global = false;
  else if (a->budget && strcmp(a->budget, "global") != 0)
    return esp_fail(ESP_ERR_USAGE, "--budget is \"%s\"; it must be global or layer", a->budget);
  if (a->ratio) ESP_TRY(real_number("--ratio", a->ratio, 0, 1, &budget->ratio));
  ESP_TRY(whole_number("--groups", a->groups, 1, ESP_MAX_EXPERTS, 0, &groups));
  ESP_TRY(whole_number("--capacity", a->capacity, 1, ESP_MAX_EXPERTS, 0, &capacity));
  budget->groups = (int)groups;
  budget->capacity = (int)capacity;
  return ESP_OK;
}

static esp_status read_arguments(merging *m, const arguments *a) {
  esp_merge_options *o = &m->options;
  ESP_TRY(blame("--method", esp_merge_method_find(&o->method, a->method ? a->method : "m-smoe")));
  if (a->align) ESP_TRY(blame("--align", esp_align_parse(&o->method.align, a->align)));
  if (a->average) ESP_TRY(blame("--average", esp_average_parse(&o->method.average, a->average)));
  if (a->similarity) ESP_TRY(blame("--similarity", esp_similarity_parse(&o->similarity, a->similarity)));
  if ((a->align || a->average) && o->method.form != ESP_MERGE_AVERAGE)
    return esp_fail(ESP_ERR_USAGE, "--method %s averages nothing, so --align and --average make no sense with it",
                    o->method.name);
  o->exclude = a->exclude;
  return read_budget(m, a);
}

static esp_status save_model(merging *m) {
  const esp_merge_options *o = &m->options;
  char detail[200], budget[48], parent[ESP_DIGEST_SIZE];
  memcpy(parent, m->model.info.digest, sizeof parent);
  if (o->budget.groups) snprintf(budget, sizeof budget, "%d groups", o->budget.groups);
  else snprintf(budget, sizeof budget, "ratio %g", o->budget.ratio);
  snprintf(detail, sizeof detail, "%s, %s a layer (%s), similarity %s, align %s, average %s, %lld images of %s",
           o->method.name, budget, o->budget.global ? "global" : "each", esp_similarity_name(o->similarity),
           esp_align_name(o->method.align), esp_average_name(o->method.average), (long long)m->plan->data.images,
           m->plan->data.name);
  ESP_TRY(esp_checkpoint_add_history(&m->model.info, "merge", detail, parent, ""));
  return esp_checkpoint_save(m->target, m->merged, NULL, &m->model.info, ESP_DEFAULT_COMPRESSION);
}

static esp_status merge(merging *m, const arguments *a) {
  ESP_TRY(read_arguments(m, a));
  ESP_TRY(choose_checkpoint(m->target, a));
  if (!a->data)
    return esp_fail(ESP_ERR_USAGE, "--data is missing: training images of the model's task, to calibrate on");
  ESP_TRY(esp_trained_load(&m->model, a->operands[0]));
  ESP_TRY(check_not_input(m->target, m->model.path));
  ESP_TRY(open_calibration(&m->calibration, &m->dataset, a->data, &m->model, a));
  if (!a->calibration) m->calibration.images = ESP_MERGE_IMAGES;
  m->options.seed = m->calibration.seed;
  ESP_TRY(esp_merge_plan(&m->plan, m->model.model, &m->calibration, &m->options));
  ESP_TRY(esp_apply_plan(&m->merged, m->model.model, m->plan));
  if (a->ranks) ESP_TRY(esp_stable_ranks_create(&m->before, m->model.model));
  if (a->ranks) ESP_TRY(esp_stable_ranks_create(&m->after, m->merged));
  if (strcmp(m->target, a->out) != 0) ESP_TRY(take_folder(a->out, "merge"));
  ESP_TRY(write_plan(m->plan, m->target, a));
  return save_model(m);
}

/* Mean over a layer's matrices. */
static double mean_rank(const esp_stable_ranks *ranks, const char *layer) {
  double sum = 0;
  int64_t count = 0;
  for (int64_t i = 0; i < ranks->count; i++) {
    if (strcmp(ranks->of[i].layer, layer) != 0) continue;
    sum += ranks->of[i].stable_rank;
    count++;
  }
  return count ? sum / (double)count : 0;
}

static json_t *groups_json(const merging *m, const esp_layer_plan *layer) {
  json_t *groups = json_array();
  for (int d = 0; d < layer->experts; d++) {
    if (layer->target[d] != d) continue;
    json_t *members = json_array();
    for (int e = 0; e < layer->experts; e++)
      if (layer->target[e] == d)
        json_array_append_new(members, json_pack("{s:i, s:f}", "expert", e, "frequency", layer->score[e]));
    json_array_append_new(groups, json_pack("{s:i, s:o}", "dominant", d, "experts", members));
  }
  json_t *json = json_pack("{s:s, s:i, s:o}", "name", layer->scope, "experts", layer->experts, "groups", groups);
  if (m->after) {
    json_object_set_new(json, "stable_rank_before", json_real(mean_rank(m->before, layer->scope)));
    json_object_set_new(json, "stable_rank", json_real(mean_rank(m->after, layer->scope)));
  }
  return json;
}

static json_t *result_json(const merging *m, const esp_model_cost *before, const esp_model_cost *after) {
  const esp_merge_options *o = &m->options;
  json_t *layers = json_array();
  for (int i = 0; i < m->plan->layer_count; i++) json_array_append_new(layers, groups_json(m, &m->plan->layers[i]));
  return json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:I, s:I, s:I, s:f, s:o}", "checkpoint", m->target, "method",
                   o->method.name, "similarity", esp_similarity_name(o->similarity), "align",
                   esp_align_name(o->method.align), "average", esp_average_name(o->method.average), "digest",
                   m->model.info.digest, "parameters_before", (json_int_t)before->parameters, "parameters",
                   (json_int_t)after->parameters, "bytes", (json_int_t)file_size(m->target), "flops_per_image",
                   after->flops, "layers", layers);
}

static void print_groups(const merging *m, const esp_layer_plan *layer) {
  printf("%s: %d experts, %d groups:", layer->scope, layer->experts, esp_plan_groups(layer));
  for (int d = 0; d < layer->experts; d++) {
    if (layer->target[d] != d) continue;
    printf("  %d (%.1f %%)", d, 100 * layer->score[d]);
    for (int e = 0; e < layer->experts; e++)
      if (e != d && layer->target[e] == d) printf(" + %d (%.1f %%)", e, 100 * layer->score[e]);
  }
  if (m->after)
    printf("; stable rank %.2f, was %.2f", mean_rank(m->after, layer->scope), mean_rank(m->before, layer->scope));
  putchar('\n');
}

static void print_result(const merging *m, const esp_model_cost *before, const esp_model_cost *after) {
  for (int i = 0; i < m->plan->layer_count; i++) print_groups(m, &m->plan->layers[i]);
  printf("%s: %.3f M of %.3f M parameters left, %.2f MB\n", esp_shown(m->target), 1e-6 * (double)after->parameters,
         1e-6 * (double)before->parameters, 1e-6 * (double)file_size(m->target));
}

static int run_merge(const arguments *a) {
  merging m = {.plan = NULL};
  const esp_status status = merge(&m, a);
  int code = EXIT_DONE;
  if (status != ESP_OK) {
    code = report_failure(status);
  } else {
    esp_model_cost before, after;
    esp_model_cost_of(m.model.model, &before);
    esp_model_cost_of(m.merged, &after);
    if (a->json) code = print_json(result_json(&m, &before, &after));
    else print_result(&m, &before, &after);
  }
  esp_stable_ranks_free(m.before);
  esp_stable_ranks_free(m.after);
  esp_model_free(m.merged);
  esp_plan_free(m.plan);
  esp_dataset_close(m.dataset);
  esp_trained_clear(&m.model);
  return code;
}

/* --- help ------------------------------------------------------------------------------------------------------ */

static const command_option options[] = {
    {"--data", NULL},
    {"--validation", NULL},
    {"--groups", NULL},
    {"--ratio", "the share of each layer's experts that is to go, e.g. 0.5"},
    {"--method", NULL},
    {"--similarity", NULL},
    {"--align", NULL},
    {"--average", NULL},
    {"--budget", "global (default: over all layers) or layer (each has as many groups)"},
    {"--exclude", NULL},
    {"--capacity", NULL},
    {"--calibration", "training images to calibrate on, drawn by --seed (default 256)"},
    {"--ranks", NULL},
    {"--out", "a folder, or a file ending in .h5, for the smaller model"},
    {"--overwrite", NULL},
    {"--seed", "draws the calibration images, and what is random (default 1)"},
    {NULL, NULL},
};

const command merge_command = {
    .name = "merge",
    .usage = "merge RUN|CKPT --data DATA --groups N|--ratio R [--method NAME] [--budget global|layer] --out RUN|CKPT",
    .summary = "Lets groups of experts share one expert's weights",
    .details = "Methods; each but the last two averages a group's experts, and the router stays as it is and maps to "
               "fewer experts:\n"
               "m-smoe\tneurons aligned by weights, averaged by how often experts are used (arXiv 2310.01334)\n"
               "git-rebasin\tneurons aligned by weights, averaged evenly\n"
               "plain-average\tas they are, averaged evenly\n"
               "zipit\tZipIt-like: neurons that do the same, within experts and across, are put together\n"
               "redirect\tdominant experts stay as they are and take the tokens of their group\n"
               "reroute\tdominant experts stay as they are; tokens are routed among them\n"
               "The most used experts are dominant; each other one joins the dominant expert it is most like. "
               "--similarity: router-logits, router-weights, expert-weights, weights-features, gradients, "
               "mean-features, mean-absolute-features, random.\n"
               "Merge a model finetuned to the task with its training images as --data, then `finetune --teacher` the "
               "merged model with the unmerged one. The input is never changed. --out gets the smaller checkpoint and, "
               "if it is a folder, plan.json.",
    .example = "merge runs/finetuned --data synthetic:narrow --ratio 0.5 --out runs/merged",
    .options = options,
    .least_operands = 1,
    .most_operands = 1,
    .run = run_merge,
};
