/* overlap: which experts would go with one calibration set, and which with another. */
#include "commands_internal.h"

#include <espalier/escape.h>
#include <espalier/memory.h>
#include <espalier/prune.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_SETS = 8 };

typedef struct comparison {
  esp_trained model;
  int sets;
  esp_dataset *datasets[MAX_SETS];
  esp_calibration calibrations[MAX_SETS];
  esp_expert_scores *scores[MAX_SETS];
  esp_gate_form gates;
  esp_prune_budget budget;
  int criteria;
  const esp_criterion *criterion[MAX_REPEATS];
  esp_plan *plans[MAX_REPEATS][MAX_SETS];
  double overlap[MAX_REPEATS];
} comparison;

/* --- arguments ----------------------------------------------------------------------------------------------- */

static esp_status read_budget(comparison *c, const arguments *a) {
  if (!a->drop == !a->ratio)
    return esp_fail(ESP_ERR_USAGE, "give either --drop N (experts a layer) or --ratio R (their share)");
  c->budget = (esp_prune_budget){.drop = -1, .exclude = a->exclude};
  if (a->ratio) return real_number("--ratio", a->ratio, 0, 1, &c->budget.ratio);
  long long drop;
  ESP_TRY(whole_number("--drop", a->drop, 0, ESP_MAX_EXPERTS, 0, &drop));
  c->budget.drop = (int)drop;
  return ESP_OK;
}

static esp_status add_criterion(comparison *c, const char *name) {
  ESP_TRY(blame("--criterion", esp_criterion_find(&c->criterion[c->criteria], name)));
  if (c->criterion[c->criteria]->needs_reference)
    return esp_fail(ESP_ERR_USAGE, "--criterion %s looks at no data, so its choice is the same for all", name);
  for (int i = 0; i < c->criteria; i++)
    if (c->criterion[i] == c->criterion[c->criteria])
      return esp_fail(ESP_ERR_USAGE, "--criterion %s is given twice; leave one out", name);
  c->criteria++;
  return ESP_OK;
}

static esp_status refuse_unused_gates(const comparison *c, const arguments *a) {
  for (int i = 0; i < c->criteria; i++)
    if (c->criterion[i]->weighs_gates) return ESP_OK;
  return refuse_options(a, "--gates", "none of the criteria looks at gates");
}

/* All that score by data, damage besides its cost included; random is what they are compared with. */
static esp_status read_criteria(comparison *c, const arguments *a) {
  const esp_criterion *list;
  const size_t count = esp_criterion_list(&list);
  for (int i = 0; i < a->criteria.count; i++) ESP_TRY(add_criterion(c, a->criteria.values[i]));
  for (size_t i = 0; a->criteria.count == 0 && i < count && c->criteria < MAX_REPEATS; i++)
    if ((list[i].needs_data && list[i].score) || strcmp(list[i].name, "random") == 0)
      c->criterion[c->criteria++] = &list[i];
  return ESP_OK;
}

static esp_status open_sets(comparison *c, const arguments *a) {
  if (a->data_sets.count < 2 || a->data_sets.count > MAX_SETS)
    return esp_fail(ESP_ERR_USAGE, "%d --data; two to %d calibration sets are compared, each with a --data of its own",
                    a->data_sets.count, MAX_SETS);
  for (int i = 0; i < a->data_sets.count; i++, c->sets++) {
    ESP_TRY(open_calibration(&c->calibrations[i], &c->datasets[i], a->data_sets.values[i], &c->model, a));
    ESP_TRY(refuse_same_data("--data", (const esp_dataset *const *)c->datasets, i, c->datasets[i]));
  }
  return ESP_OK;
}

/* --- comparing ----------------------------------------------------------------------------------------------- */

/* One pass serves all criteria that look at its sums. */
static esp_status pass_over_sets(comparison *c) {
  for (int i = 0; i < c->sets; i++) {
    ESP_TRY(esp_expert_scores_create(&c->scores[i], c->model.model, c->gates));
    const esp_observer observer = esp_expert_scores_observer(c->scores[i]);
    ESP_TRY(esp_calibration_pass(c->model.model, &c->calibrations[i], &observer));
  }
  return ESP_OK;
}

static esp_status compare_criterion(comparison *c, int k) {
  const esp_plan *plans[MAX_SETS];
  for (int i = 0; i < c->sets; i++) {
    const esp_criterion_inputs inputs = {.model = c->model.model,
                                         .info = &c->model.info,
                                         .seed = c->calibrations[i].seed + (uint64_t)i, /* for random */
                                         .calibration = &c->calibrations[i],
                                         .gates = c->gates,
                                         .scores = c->scores[i]};
    const esp_prune_mode mode = esp_criterion_mode(c->criterion[k], c->model.model);
    ESP_TRY(esp_plan_make(&c->plans[k][i], c->criterion[k], &inputs, mode, &c->budget));
    plans[i] = c->plans[k][i];
  }
  return esp_mean_overlap(plans, c->sets, c->model.model, &c->overlap[k]);
}

static esp_status compare(comparison *c, const arguments *a) {
  ESP_TRY(read_budget(c, a));
  ESP_TRY(read_criteria(c, a));
  ESP_TRY(refuse_unused_gates(c, a));
  ESP_TRY(parse_gates(a, &c->gates));
  ESP_TRY(esp_trained_load(&c->model, a->operands[0]));
  ESP_TRY(open_sets(c, a));
  ESP_TRY(pass_over_sets(c));
  for (int k = 0; k < c->criteria; k++) ESP_TRY(compare_criterion(c, k));
  return ESP_OK;
}

/* --- results ------------------------------------------------------------------------------------------------- */

static const char *set_name(const comparison *c, int i) { return esp_dataset_info_of(c->datasets[i])->name; }

static json_t *layer_json(const comparison *c, int k, int i, int j, int layer) {
  esp_layer_overlap overlap;
  if (esp_plan_overlap(c->plans[k][i], c->plans[k][j], c->model.model, layer, &overlap) != ESP_OK) return NULL;
  return json_pack("{s:s, s:s, s:s, s:s, s:i, s:i}", "criterion", c->criterion[k]->name, "data", set_name(c, i),
                   "other", set_name(c, j), "layer", c->plans[k][i]->layers[layer].scope, "dropped", overlap.dropped,
                   "common", overlap.common);
}

static json_t *pairs_json(const comparison *c, int k) {
  json_t *pairs = json_array();
  for (int i = 0; i < c->sets; i++)
    for (int j = i + 1; j < c->sets; j++)
      for (int l = 0; l < c->plans[k][i]->layer_count; l++) json_array_append_new(pairs, layer_json(c, k, i, j, l));
  return pairs;
}

static json_t *result_json(const comparison *c) {
  json_t *list = json_array();
  for (int k = 0; k < c->criteria; k++)
    json_array_append_new(list,
                          json_pack("{s:s, s:s, s:f, s:o}", "criterion", c->criterion[k]->name, "formula",
                                    c->criterion[k]->formula, "overlap", c->overlap[k], "layers", pairs_json(c, k)));
  return json_pack("{s:s, s:s, s:I, s:I, s:o}", "checkpoint", c->model.path, "digest", c->model.info.digest, "images",
                   (json_int_t)c->calibrations[0].images, "seed", (json_int_t)c->calibrations[0].seed, "criteria",
                   list);
}

static void write_row(const json_t *row, FILE *file) {
  static const char *const texts[] = {"data", "other", "layer"};
  fprintf(file, "\"%s\"", json_string_value(json_object_get(row, "criterion")));
  for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
    fputc(',', file);
    esp_csv_text(file, json_string_value(json_object_get(row, texts[i])));
  }
  fprintf(file, ",%d,%d\n", (int)json_integer_value(json_object_get(row, "dropped")),
          (int)json_integer_value(json_object_get(row, "common")));
}

static void write_rows(const void *context, FILE *file) {
  const json_t *result = context;
  size_t k, i;
  json_t *criterion, *row;
  fprintf(file, "criterion,data,other,layer,dropped,common\n");
  json_array_foreach(json_object_get(result, "criteria"), k, criterion)
      json_array_foreach(json_object_get(criterion, "layers"), i, row) write_row(row, file);
}

static esp_status save(const comparison *c, const char *folder) {
  json_t *result = result_json(c);
  esp_status status = result ? take_folder(folder, "overlap") : esp_fail(ESP_ERR_MEMORY, "out of memory");
  if (status == ESP_OK) status = esp_file_compose(folder, "overlap.csv", write_rows, result);
  if (status == ESP_OK) return esp_json_write(folder, "overlap.json", result, ESP_JSON_DIGITS);
  json_decref(result);
  return status;
}

static void print_table(const comparison *c) {
  printf("%-28s %8s  %s\n", "criterion", "overlap", "formula");
  for (int k = 0; k < c->criteria; k++)
    printf("%-28s %8.3f  %s\n", c->criterion[k]->name, c->overlap[k], c->criterion[k]->formula);
}

static int run_overlap(const arguments *a) {
  comparison c = {.sets = 0};
  esp_status status = compare(&c, a);
  if (status == ESP_OK && a->out) status = save(&c, a->out);
  int code = EXIT_DONE;
  if (status != ESP_OK) code = report_failure(status);
  else if (a->json) code = print_json(result_json(&c));
  else print_table(&c);
  for (int i = 0; i < MAX_SETS; i++) {
    for (int k = 0; k < c.criteria; k++) esp_plan_free(c.plans[k][i]);
    esp_expert_scores_free(c.scores[i]);
    esp_dataset_close(c.datasets[i]);
  }
  esp_trained_clear(&c.model);
  return code;
}

/* --- help ------------------------------------------------------------------------------------------------------ */

static const command_option options[] = {
    {"--data", "images to calibrate on; given once for each set"},
    {"--validation", NULL},
    {"--criterion", "how experts are scored; may be repeated"},
    {"--drop", NULL},
    {"--ratio", NULL},
    {"--calibration", NULL},
    {"--gates", NULL},
    {"--exclude", NULL},
    {"--out", "the folder for overlap.csv and overlap.json"},
    {"--seed", "draws the calibration images, and what is random (default 1)"},
    {NULL, NULL},
};

static const command_option repeats[] = {{"--data", NULL}, {"--criterion", NULL}, {NULL, NULL}};

const command overlap_command = {
    .name = "overlap",
    .usage = "overlap RUN|CKPT --data A --data B [--data C]... --drop N|--ratio R [--criterion NAME]... [--out FOLDER]",
    .summary = "How much the experts a criterion drops depend on the calibration data",
    .details =
        "For each criterion the share of experts that two calibration sets both put among the lowest of a layer, "
        "averaged over the pairs of sets and the layers (arXiv 2606.15716): 1 if the data do not matter, about "
        "the ratio for random ranking (which gets another seed for each set). Nothing is pruned. The sets need "
        "the model's image shape, not its classes. Without --criterion: all that score by a pass of data, and "
        "random.\n"
        "--out gets overlap.csv and overlap.json.",
    .example = "overlap runs/finetuned --data synthetic --data synthetic:narrow --ratio 0.25 --criterion man "
               "--criterion seer",
    .options = options,
    .repeats = repeats,
    .least_operands = 1,
    .most_operands = 1,
    .run = run_overlap,
};
