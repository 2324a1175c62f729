/* prune: criterion and budget make a plan, the surgeon carries it out. */
#include "commands_internal.h"

#include <espalier/core.h>
#include <espalier/cost.h>
#include <espalier/prune.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct pruning {
  esp_trained model, reference;
  const esp_criterion *criterion;      /* of experts, or ... */
  const esp_neuron_criterion *neurons; /* of neurons; both NULL: a saved plan is applied */
  esp_neuron_budget neuron_budget;
  esp_prune_mode mode;
  esp_prune_budget budget;
  esp_gate_form gates;
  esp_reconstruction_loss loss;
  long long seed;
  esp_dataset *dataset; /* NULL: the criterion needs none */
  esp_calibration calibration;
  esp_plan *plan;
  esp_model *pruned;
  char target[ESP_PATH_SIZE]; /* the new checkpoint */
} pruning;

/* --- arguments ----------------------------------------------------------------------------------------------- */

static esp_status read_budget(pruning *p, const arguments *a) {
  if (!a->drop == !a->ratio)
    return esp_fail(ESP_ERR_USAGE, "give either --drop N (experts a layer) or --ratio R (their share)");
  p->budget = (esp_prune_budget){.drop = -1, .exclude = a->exclude};
  long long drop, floor;
  ESP_TRY(whole_number("--floor", a->floor, 0, ESP_MAX_EXPERTS, 0, &floor));
  p->budget.floor = (int)floor;
  p->budget.global = a->budget && strcmp(a->budget, "global") == 0;
  if (a->budget && !p->budget.global && strcmp(a->budget, "layer") != 0)
    return esp_fail(ESP_ERR_USAGE, "--budget is \"%s\"; it must be layer (each loses as many) or global", a->budget);
  if (a->ratio) return real_number("--ratio", a->ratio, 0, 1, &p->budget.ratio);
  ESP_TRY(whole_number("--drop", a->drop, 0, ESP_MAX_EXPERTS, 0, &drop));
  p->budget.drop = (int)drop;
  return ESP_OK;
}

static esp_status read_loss(pruning *p, const arguments *a) {
  p->loss = a->loss && strcmp(a->loss, "batches") == 0 ? ESP_RECONSTRUCTION_BATCH_NORMS : ESP_RECONSTRUCTION_ONE_NORM;
  if (!a->loss || p->loss == ESP_RECONSTRUCTION_BATCH_NORMS || strcmp(a->loss, "norm") == 0) return ESP_OK;
  return esp_fail(ESP_ERR_USAGE, "--loss is \"%s\"; it must be norm (one over all tokens) or batches (their sum)",
                  a->loss);
}

/* Options of calibration and comparison that the criterion does not look at. */
static esp_status refuse_unused(const esp_criterion *c, const arguments *a) {
  const struct {
    bool used;
    const char *options, *reason;
  } uses[] = {
      {c->needs_data, "--data --calibration --validation", "looks at no data"},
      {c->needs_reference, "--reference", "compares with no other model"},
      {c->weighs_gates, "--gates", "looks at no gates"},
      {c->uses_loss, "--loss", "chooses by scores, not by a reconstruction's loss"},
      {c->uses_seed || c->needs_data, "--seed", "draws nothing"},
  };
  for (size_t i = 0; i < sizeof uses / sizeof uses[0]; i++) {
    char reason[128];
    snprintf(reason, sizeof reason, "the criterion %s %s", c->name, uses[i].reason);
    if (!uses[i].used) ESP_TRY(refuse_options(a, uses[i].options, reason));
  }
  return ESP_OK;
}

static esp_status read_criterion(pruning *p, const arguments *a) {
  if (!a->criterion) return esp_fail(ESP_ERR_USAGE, "--criterion is missing; `espalier prune --help` lists them");
  if (esp_is_neuron_criterion(a->criterion)) return read_neuron_pruning(&p->neurons, &p->neuron_budget, a);
  if (a->below)
    return esp_fail(ESP_ERR_USAGE, "--below is for neurons, with --criterion neuron-frequency; give --drop or --ratio");
  ESP_TRY(blame("--criterion", esp_criterion_find(&p->criterion, a->criterion)));
  if (p->criterion->needs_reference && !a->reference)
    return esp_fail(ESP_ERR_USAGE,
                    "--criterion %s compares with the model from before finetuning: give it as --reference",
                    a->criterion);
  if (p->criterion->needs_data && !a->data)
    return esp_fail(
        ESP_ERR_USAGE,
        "--criterion %s looks at what experts do with data: give --data, those of the task the model is for",
        a->criterion);
  ESP_TRY(refuse_unused(p->criterion, a));
  if (a->mode) ESP_TRY(blame("--mode", esp_prune_mode_parse(&p->mode, a->mode)));
  ESP_TRY(parse_gates(a, &p->gates));
  ESP_TRY(read_loss(p, a));
  return read_budget(p, a);
}

static esp_status read_arguments(pruning *p, const arguments *a) {
  ESP_TRY(whole_number("--seed", a->seed, 0, INT64_MAX, 1, &p->seed));
  if (!a->plan) return read_criterion(p, a);
  return refuse_options(a,
                        "--criterion --drop --ratio --below --mode --data --reference --calibration --gates --loss "
                        "--budget --floor --exclude --seed",
                        "--plan says already what goes");
}

/* --- the plan ------------------------------------------------------------------------------------------------ */

/* A warning where scores say nothing. */
static void warn_of_unrouted(const esp_plan *plan, bool neurons) {
  int unrouted = 0;
  for (int i = 0; i < plan->layer_count; i++) unrouted += plan->layers[i].unrouted;
  const bool one = unrouted == 1;
  if (!unrouted) return;
  fprintf(stderr, "espalier: warning: %d expert%s saw no calibration token, so that ", unrouted, one ? "" : "s");
  if (neurons) fprintf(stderr, "%s neurons all score 0 and go first", one ? "its" : "their");
  else fprintf(stderr, "%s 0 and go%s first", one ? "it scores" : "they score", one ? "es" : "");
  fputs("; more --calibration images may help\n", stderr);
}

static esp_status make_plan(pruning *p, const arguments *a) {
  if (a->plan) return esp_plan_load(&p->plan, a->plan);
  const esp_criterion_inputs inputs = {.model = p->model.model,
                                       .info = &p->model.info,
                                       .reference = p->reference.model,
                                       .reference_info = p->reference.model ? &p->reference.info : NULL,
                                       .seed = (uint64_t)p->seed,
                                       .calibration = p->dataset ? &p->calibration : NULL,
                                       .gates = p->gates,
                                       .loss = p->loss};
  ESP_TRY(p->neurons ? esp_neuron_plan_make(&p->plan, p->neurons, &inputs, &p->neuron_budget)
                     : esp_plan_make(&p->plan, p->criterion, &inputs, p->mode, &p->budget));
  warn_of_unrouted(p->plan, p->neurons);
  if (*p->plan->note && !a->quiet) fprintf(stderr, "espalier: note: %s\n", p->plan->note);
  return ESP_OK;
}

/* Says for the history what was done, to how many, with which data. */
static void describe(const pruning *p, const arguments *a, char *text, size_t size) {
  char amount[64] = "by a saved plan", data[160] = "", mode[16] = "";
  if (p->neurons) describe_neurons(&p->neuron_budget, amount, sizeof amount);
  else if (a->drop)
    snprintf(amount, sizeof amount, "%d expert%s a layer", p->budget.drop, p->budget.drop == 1 ? "" : "s");
  else if (a->ratio) snprintf(amount, sizeof amount, "ratio %g", p->budget.ratio);
  if (*p->plan->data.name)
    snprintf(data, sizeof data, ", calibrated on %lld %s images of %s (seed %llu)", (long long)p->plan->data.images,
             p->plan->data.split, p->plan->data.name, (unsigned long long)p->plan->data.seed);
  if (!p->neurons) snprintf(mode, sizeof mode, ", mode %s", esp_prune_mode_name(p->plan->mode));
  snprintf(text, size, "%s%s, %s%s%s%s%s", p->plan->criterion, mode, amount, p->budget.global ? " over all layers" : "",
           a->exclude ? " but " : "", a->exclude ? a->exclude : "", data);
}

static esp_status save_model(pruning *p, const arguments *a) {
  char detail[256], parent[ESP_DIGEST_SIZE];
  memcpy(parent, p->model.info.digest, sizeof parent);
  describe(p, a, detail, sizeof detail);
  ESP_TRY(esp_checkpoint_add_history(&p->model.info, "prune", detail, parent,
                                     p->reference.model ? p->reference.info.digest : ""));
  return esp_checkpoint_save(p->target, p->pruned, NULL, &p->model.info, ESP_DEFAULT_COMPRESSION);
}

static esp_status load_inputs(pruning *p, const arguments *a) {
  ESP_TRY(esp_trained_load(&p->model, a->operands[0]));
  if (a->reference) ESP_TRY(esp_trained_load(&p->reference, a->reference));
  ESP_TRY(check_not_input(p->target, p->model.path));
  ESP_TRY(check_not_input(p->target, p->reference.path));
  if (p->neurons && p->neurons->needs_data)
    return open_calibration(&p->calibration, &p->dataset, a->data, &p->model, a);
  if (!p->criterion) return ESP_OK;
  if (!a->mode) p->mode = esp_criterion_mode(p->criterion, p->model.model);
  if (!a->data || !p->criterion->needs_data) return ESP_OK;
  return open_calibration(&p->calibration, &p->dataset, a->data, &p->model, a);
}

static esp_status prune(pruning *p, const arguments *a) {
  ESP_TRY(read_arguments(p, a));
  ESP_TRY(choose_checkpoint(p->target, a));
  ESP_TRY(load_inputs(p, a));
  ESP_TRY(make_plan(p, a));
  ESP_TRY(esp_apply_plan(&p->pruned, p->model.model, p->plan));
  if (strcmp(p->target, a->out) != 0) ESP_TRY(take_folder(a->out, "prune"));
  ESP_TRY(write_plan(p->plan, p->target, a));
  return save_model(p, a);
}

/* --- results ------------------------------------------------------------------------------------------------- */

static json_t *dropped_json(const esp_layer_plan *layer) {
  json_t *dropped = json_array();
  for (int e = 0; e < layer->experts; e++)
    if (layer->target[e] < 0) json_array_append_new(dropped, json_integer(e));
  json_t *json = json_pack("{s:s, s:i, s:o}", "name", layer->scope, "experts", layer->experts, "dropped", dropped);
  if (json && layer->neuron.stored) json_object_set_new(json, "neurons", neurons_left_json(layer));
  return json;
}

static json_t *result_json(const pruning *p, const esp_model_cost *before, const esp_model_cost *after) {
  json_t *layers = json_array();
  for (int i = 0; i < p->plan->layer_count; i++) json_array_append_new(layers, dropped_json(&p->plan->layers[i]));
  return json_pack("{s:s, s:s, s:s, s:s, s:s, s:I, s:I, s:I, s:f, s:o}", "checkpoint", p->target, "criterion",
                   p->plan->criterion, "note", p->plan->note, "mode", esp_prune_mode_name(p->plan->mode), "digest",
                   p->model.info.digest, "parameters_before", (json_int_t)before->parameters, "parameters",
                   (json_int_t)after->parameters, "bytes", (json_int_t)file_size(p->target), "flops_per_image",
                   after->flops, "layers", layers);
}

static void print_result(const pruning *p, const esp_model_cost *before, const esp_model_cost *after) {
  for (int i = 0; i < p->plan->layer_count; i++) {
    const esp_layer_plan *layer = &p->plan->layers[i];
    print_neurons(layer);
    if (layer->neuron.stored && esp_plan_dropped(layer) == 0) continue;
    printf("%s: drops", layer->scope);
    for (int e = 0; e < layer->experts; e++)
      if (layer->target[e] < 0) printf(" %d", e);
    printf("%s of %d experts", esp_plan_dropped(layer) ? "" : " none", layer->experts);
    if (layer->loss > 0) printf(", loss %.4g%s", layer->loss, layer->greedy ? " (greedily, one by one)" : "");
    putchar('\n');
  }
  printf("%s: %.3f M of %.3f M parameters left, %.2f MB\n", esp_shown(p->target), 1e-6 * (double)after->parameters,
         1e-6 * (double)before->parameters, 1e-6 * (double)file_size(p->target));
}

static int run_prune(const arguments *a) {
  pruning p = {.plan = NULL};
  const esp_status status = prune(&p, a);
  int code = EXIT_DONE;
  if (status != ESP_OK) {
    code = report_failure(status);
  } else {
    esp_model_cost before, after;
    esp_model_cost_of(p.model.model, &before);
    esp_model_cost_of(p.pruned, &after);
    if (a->json) code = print_json(result_json(&p, &before, &after));
    else print_result(&p, &before, &after);
  }
  esp_model_free(p.pruned);
  esp_plan_free(p.plan);
  esp_dataset_close(p.dataset);
  esp_trained_clear(&p.reference);
  esp_trained_clear(&p.model);
  return code;
}

/* --- help ------------------------------------------------------------------------------------------------------ */

static const command_option options[] = {
    {"--criterion", "how experts or neurons are scored: one of those above"},
    {"--drop", NULL},
    {"--ratio", "the same as a share of each layer's experts (or of an expert's neurons), e.g. 0.5"},
    {"--below", NULL},
    {"--reference", NULL},
    {"--data", NULL},
    {"--validation", NULL},
    {"--calibration", NULL},
    {"--gates", NULL},
    {"--loss", NULL},
    {"--budget", "experts: layer (default: each loses as many) or global; neurons: expert (default) or layer"},
    {"--floor", NULL},
    {"--exclude", NULL},
    {"--mode", NULL},
    {"--plan", NULL},
    {"--out", "a folder, or a file ending in .h5, for the smaller model"},
    {"--overwrite", NULL},
    {"--seed", "draws the calibration images, and what is random (default 1)"},
    {NULL, NULL},
};

const command prune_command = {
    .name = "prune",
    .usage = "prune RUN|CKPT --criterion NAME --drop N|--ratio R [--data DATA] [--reference RUN|CKPT] [--mode MODE] "
             "--out RUN|CKPT\n"
             "prune RUN|CKPT --plan FILE.json --out RUN|CKPT",
    .summary = "Drops experts for good",
    .details =
        "Which criterion: for a model that is to stay good at everything (task-agnostic), man or msan, the mean "
        "over the routed tokens without gates; for one task with --data of that task, gate-weighted-ean or "
        "squared-gate-energy, which keep frequency and gates (arXiv 2606.15716); reconstruction where experts "
        "are few (arXiv 2402.14800); after finetuning with the model from before it, router-norm-change, which "
        "needs no data (arXiv 2405.16646). Always compare with random.\n"
        "Criteria with --data: N training images (--calibration), drawn by --seed. g is a token's gate, n the "
        "norm of the expert's output before the gate, N the tokens routed to the expert; sums and means are over "
        "these.\n"
        "frequency\tN\n"
        "seer\tsum g (arXiv 2404.05089)\n"
        "ean\tsum n\n"
        "gate-weighted-ean\tsum g n\n"
        "reap\tmean g n (2510.13999)\n"
        "squared-gate-energy\tsum g^2 n^2\n"
        "man\tmean n\n"
        "msan\tmean n^2\n"
        "\"S(b,alpha,beta)\"\t(1/N^b) sum g^alpha n^beta, b 0 or 1, alpha and beta 0 to 2: 17 in all, those above "
        "too\n"
        "novice-mone\tmean g x norm of the outputs' standard deviations (2507.00390)\n"
        "max-activation\tlargest entry of an output\n"
        "importance\tshare of first choices x exp(their mean score) (NLLB, 2207.04672)\n"
        "damage\tsum of |y - y without the expert|, its tokens rerouted (2606.15716)\n"
        "reconstruction\tthe subset without which the layer's output changes least, each layer by itself "
        "(2402.14800)\n"
        "reconstruction-progressive\tthe same, on what comes of the layers pruned before\n"
        "reconstruction-greedy\tthe same, expert by expert\n"
        "Criteria without data:\n"
        "router-norm-change\tsigned change of the router row's norm since --reference; for models finetuned to a "
        "task, with the routers trained\n"
        "router-norm-change-absolute\tits ablations: the absolute value, ...\n"
        "router-difference-norm\t... and the norm of the difference\n"
        "weight-norm\tL2 norm of the expert's weights\n"
        "aimer\ttheir mean magnitude over their root mean square (2603.18492)\n"
        "random\tthe baseline; give several --seed\n"
        "Neurons instead of experts, cut out for good: N training images show each neuron of an expert, h its "
        "activation; --ratio R of each expert's neurons (--budget expert) or of each layer's (--budget layer), "
        "or --below P; in every expert stay as many as a token uses. The experts then differ in width.\n"
        "neuron-frequency\tshare of the expert's rows in which a MoNE selects it\n"
        "neuron-activation\tmean |h| before any selection\n"
        "neuron-contribution\tmean |h| after the selection x norm of its row of down\n"
        "neuron-weight-norm\tof the neuron's weights, without data\n"
        "neuron-random\tthe baseline, without data\n"
        "The mode is the paper's unless --mode says otherwise: zero for router-norm-change and random, remove "
        "for the others and with routers whose experts choose. The input is never changed. --out gets the "
        "smaller checkpoint and, if it is a folder, plan.json.",
    .example = "prune runs/finetuned --criterion router-norm-change --reference runs/pretrained --ratio 0.5 --out "
               "runs/pruned\n"
               "prune runs/finetuned --criterion man --data synthetic --ratio 0.5 --out runs/man\n"
               "prune runs/mone --criterion neuron-frequency --data synthetic --below 0.02 --out runs/narrow",
    .options = options,
    .least_operands = 1,
    .most_operands = 1,
    .run = run_prune,
};
