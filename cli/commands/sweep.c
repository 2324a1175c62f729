/* sweep: all methods on the same models, side by side. */
#include "commands_internal.h"

#include <espalier/core.h>
#include <espalier/sweep.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct sweeping {
  esp_trained models[ESP_SWEEP_MODELS], reference;
  esp_sweep_model referenced;
  esp_dataset *data, *others[ESP_SWEEP_LIST];
  char methods[LIST_SIZE], ratios[LIST_SIZE], seeds[LIST_SIZE], modes[LIST_SIZE],
      gates[LIST_SIZE]; /* cut into their items */
  esp_sweep_settings settings;
  esp_sweep *sweep;
} sweeping;

/* "all" leaves out what needs a reference if there is none. */
static esp_status read_methods(sweeping *s, const arguments *a) {
  esp_sweep_settings *to = &s->settings;
  const char *all[ESP_SWEEP_METHODS];
  static esp_method rows[ESP_SWEEP_METHODS];
  int count;
  ESP_TRY(read_list("--methods", a->methods ? a->methods : "all", s->methods, all, ESP_SWEEP_METHODS, &count));
  for (int i = 0; i < count; i++) {
    if (strcmp(all[i], "all") != 0) {
      ESP_TRY(blame("--methods", esp_method_find(&rows[0], all[i])));
      if (rows[0].needs_reference && !a->reference)
        return esp_fail(ESP_ERR_USAGE, "%s compares with the model from before finetuning: give it as --reference",
                        all[i]);
      if (to->method_count < ESP_SWEEP_METHODS) to->methods[to->method_count++] = all[i];
      continue;
    }
    for (size_t n = 0; n < esp_method_count() && to->method_count < ESP_SWEEP_METHODS; n++) {
      esp_method_at(&rows[n], n);
      if (!rows[n].needs_reference || a->reference) to->methods[to->method_count++] = rows[n].name;
    }
  }
  return ESP_OK;
}

static esp_status read_numbers(sweeping *s, const arguments *a) {
  const char *items[ESP_SWEEP_LIST];
  long long number;
  ESP_TRY(read_list("--ratios", a->ratios ? a->ratios : "0.25,0.5,0.75", s->ratios, items, ESP_SWEEP_LIST,
                    &s->settings.ratio_count));
  for (int i = 0; i < s->settings.ratio_count; i++) {
    ESP_TRY(real_number("--ratios", items[i], 0, 1, &s->settings.ratios[i]));
    for (int j = 0; j < i; j++)
      if (!(s->settings.ratios[j] < s->settings.ratios[i]) && !(s->settings.ratios[j] > s->settings.ratios[i]))
        return fail_twice("--ratios", items[i]);
  }
  ESP_TRY(
      read_list("--seeds", a->seeds ? a->seeds : "1,2,3", s->seeds, items, ESP_SWEEP_LIST, &s->settings.seed_count));
  for (int i = 0; i < s->settings.seed_count; i++) {
    ESP_TRY(whole_number("--seeds", items[i], 0, INT64_MAX, 0, &number));
    s->settings.seeds[i] = (uint64_t)number;
    for (int j = 0; j < i; j++)
      if (s->settings.seeds[j] == s->settings.seeds[i]) return fail_twice("--seeds", items[i]);
  }
  if (a->finetune) ESP_TRY(real_number("--finetune", a->finetune, 0, 1e6, &s->settings.finetune));
  ESP_TRY(whole_number("--calibration", a->calibration, 1, INT64_MAX, 1024, &number));
  s->settings.calibration_images = number;
  ESP_TRY(whole_number("--limit", a->limit, 1, INT64_MAX, INT64_MAX, &number));
  s->settings.limit = number;
  return ESP_OK;
}

static esp_status read_modes(sweeping *s, const arguments *a) {
  const char *items[3];
  if (!a->modes) return ESP_OK;
  ESP_TRY(read_list("--modes", a->modes, s->modes, items, 3, &s->settings.mode_count));
  for (int i = 0; i < s->settings.mode_count; i++) {
    ESP_TRY(blame("--modes", esp_prune_mode_parse(&s->settings.modes[i], items[i])));
    for (int j = 0; j < i; j++)
      if (s->settings.modes[j] == s->settings.modes[i]) return fail_twice("--modes", items[i]);
  }
  return ESP_OK;
}

static esp_status read_gates(sweeping *s, const arguments *a) {
  const char *items[2];
  if (!a->gates) return ESP_OK;
  ESP_TRY(read_list("--gates", a->gates, s->gates, items, 2, &s->settings.gate_count));
  for (int i = 0; i < s->settings.gate_count; i++) {
    ESP_TRY(parse_gates(&(arguments){.gates = items[i]}, &s->settings.gates[i]));
    for (int j = 0; j < i; j++)
      if (s->settings.gates[j] == s->settings.gates[i]) return fail_twice("--gates", items[i]);
  }
  return ESP_OK;
}

/* One split ranks all of them: it must not be what one of them was trained on. */
static esp_status check_held_out_alike(const sweeping *s, const arguments *a) {
  double first, other;
  if (esp_dataset_info_of(s->data)->own_validation) return ESP_OK;
  ESP_TRY(validation_share(&s->models[0], a, &first));
  for (int i = 1; i < a->operand_count; i++) {
    ESP_TRY(validation_share(&s->models[i], a, &other));
    if (!(fabs(first - other) > 0)) continue;
    return esp_fail(
        ESP_ERR_USAGE,
        "%s held out %g of its training images for validation and %s %g, so that one of them was trained on "
        "what would rank it; --validation SHARE says what all of them are to be ranked by (the smaller share "
        "is part of the larger)",
        s->models[0].path, first, s->models[i].path, other);
  }
  return ESP_OK;
}

static esp_status refuse_same_models(const sweeping *s) {
  for (int i = 0; i < s->settings.model_count; i++)
    for (int j = 0; j < i; j++)
      if (strcmp(s->models[i].info.digest, s->models[j].info.digest) == 0)
        return esp_fail(ESP_ERR_USAGE, "%s and %s are the same model; leave one out", s->models[j].path,
                        s->models[i].path);
  return ESP_OK;
}

static esp_status open_all(sweeping *s, const arguments *a) {
  esp_sweep_settings *to = &s->settings;
  for (int i = 0; i < a->operand_count; i++) {
    ESP_TRY(esp_trained_load(&s->models[i], a->operands[i]));
    to->models[to->model_count++] = (esp_sweep_model){s->models[i].model, &s->models[i].info, s->models[i].path};
  }
  ESP_TRY(need_data(a));
  ESP_TRY(open_data_of(&s->data, a->data, &s->models[0], a));
  ESP_TRY(check_held_out_alike(s, a));
  to->data = to->calibration[to->calibration_count++] = s->data;
  for (int i = 0; i < a->calibrate_on.count; i++) {
    if (to->calibration_count == ESP_SWEEP_LIST)
      return esp_fail(ESP_ERR_USAGE, "more than %d --calibrate-on", ESP_SWEEP_LIST - 1);
    ESP_TRY(open_data_of(&s->others[i], a->calibrate_on.values[i], &s->models[0], a));
    ESP_TRY(refuse_same_data("--calibrate-on", to->calibration, to->calibration_count, s->others[i]));
    to->calibration[to->calibration_count++] = s->others[i];
  }
  if (!a->reference) return ESP_OK;
  ESP_TRY(esp_trained_load(&s->reference, a->reference));
  s->referenced = (esp_sweep_model){s->reference.model, &s->reference.info, s->reference.path};
  to->reference = &s->referenced;
  return ESP_OK;
}

static esp_status sweep(sweeping *s, const arguments *a) {
  if (!a->out) return esp_fail(ESP_ERR_USAGE, "--out is missing: the folder for the sweep, e.g. --out runs/sweep");
  if (!a->finetune) ESP_TRY(refuse_options(a, "--distil --set", "nothing is finetuned without --finetune"));
  ESP_TRY(read_methods(s, a));
  ESP_TRY(read_numbers(s, a));
  ESP_TRY(read_modes(s, a));
  ESP_TRY(read_gates(s, a));
  ESP_TRY(open_all(s, a));
  ESP_TRY(refuse_same_models(s));
  s->settings.overrides = a->overrides;
  s->settings.override_count = a->override_count;
  s->settings.folder = a->out;
  s->settings.distil = a->distil;
  s->settings.keep = a->keep;
  s->settings.quiet = a->quiet;
  s->settings.stop = watch_interrupts();
  return esp_sweep_run(&s->sweep, &s->settings);
}

static int run_sweep(const arguments *a) {
  static sweeping s;
  const esp_status status = sweep(&s, a);
  int code = EXIT_DONE;
  if (status != ESP_OK) code = report_failure(status);
  else if (a->json) code = print_json(esp_sweep_json(s.sweep));
  else esp_sweep_print(s.sweep, stdout);
  esp_sweep_free(s.sweep);
  for (int i = 0; i < ESP_SWEEP_MODELS; i++) esp_trained_clear(&s.models[i]);
  esp_trained_clear(&s.reference);
  for (int i = 0; i < ESP_SWEEP_LIST; i++) esp_dataset_close(s.others[i]);
  esp_dataset_close(s.data);
  return code;
}

/* --- help ------------------------------------------------------------------------------------------------------ */

static const command_option options[] = {
    {"--data", NULL},
    {"--validation", NULL},
    {"--out", "the folder for the sweep"},
    {"--methods", NULL},
    {"--ratios", NULL},
    {"--seeds", NULL},
    {"--finetune", NULL},
    {"--calibration", NULL},
    {"--calibrate-on", NULL},
    {"--reference", NULL},
    {"--limit", NULL},
    {"--set", "overrides a setting of the finetuning; may be repeated"},
    {"--modes", NULL},
    {"--gates",
     "normalised, model or both: what criteria that weigh gates take for them (default: normalised over a token's "
     "experts, with one expert a token the model's, since normalised they would be 1)"},
    {"--distil", NULL},
    {"--keep", NULL},
    {NULL, NULL},
};

static const command_option repeats[] = {{"--calibrate-on", NULL}, {NULL, NULL}};

const command sweep_command = {
    .name = "sweep",
    .usage =
        "sweep RUN|CKPT... --data DATA --out FOLDER [--methods LIST] [--modes LIST] [--gates LIST] [--ratios LIST] "
        "[--seeds LIST] [--finetune EPOCHS] [--calibration N] [--calibrate-on DATA]... [--reference RUN|CKPT] [--limit "
        "N] [--distil] [--keep] [--set KEY=VALUE]...",
    .summary = "Sets methods side by side on the same models",
    .details =
        "Every method at every ratio and seed: accuracy before and after a short finetuning (on the validation split, "
        "which ranks the methods, and on the test split), parameters, FLOPs, "
        "bytes on disk, memory, time. Methods are the criteria of `espalier prune`, S(b,alpha,beta) too, the "
        "methods of `espalier merge`, and these:\n"
        "skip, NAME+skip\twhat `espalier skip` does, by itself or after another method\n"
        "factored\tU V + S without training\n"
        "m-smoe-factored\tm-smoe to sqrt(1 - R) of the experts, then factored, so that 1 - R of their weights are "
        "left: MC-SMoE's steps without its training, with shares of our own\n"
        "unpruned\tthe model as it is; it and random are always in\n"
        "Criteria prune in each of --modes, random too, so that rows of one mode compare like with like: in mode zero "
        "a token sent to a dropped expert gets nothing, in mode remove the next expert. Where reconstruction has too "
        "many subsets to try, its row says in how many layers it went expert by expert.\n"
        "Those that look at images take a sample of --data's training split (matched) and of each "
        "--calibrate-on. --set changes settings of the finetuning, --limit looks at N images of a split, always the "
        "same. FOLDER gets cells.csv, summary.csv, sweep.json and curves (sweep.svg, or sweep-MODE.svg with several "
        "modes). Ctrl-C ends after a cell; the same command goes on, and more methods, ratios, seeds or calibration "
        "data may be asked for: a cell that is done is not done again.",
    .example =
        "sweep runs/finetuned --data synthetic:narrow --reference runs/pretrained --finetune 0.2 --out runs/sweep",
    .options = options,
    .repeats = repeats,
    .least_operands = 1,
    .most_operands = ESP_SWEEP_MODELS,
    .run = run_sweep,
};
