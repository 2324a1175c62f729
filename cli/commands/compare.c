/* compare: trains an MoE and the MoNEs that match it, with several seeds, and shows how they do. */
#include "training_internal.h"

#include <espalier/bench.h>
#include <espalier/core.h>
#include <espalier/measure.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_VARIANTS = 32, MOST_SEEDS = 64, NAME_SIZE = 64 };
enum { TIMED_IMAGES = 64, TIMED_ROUNDS = 101 };

typedef struct comparing {
  const arguments *a;
  const volatile sig_atomic_t *stop;
  esp_dataset *dataset;
  const esp_variant *variants[MOST_VARIANTS];
  esp_run_config *configs; /* [variant_count] */
  int variant_count;
  uint64_t seeds[MOST_SEEDS];
  int seed_count;
  esp_compared_run *runs; /* [variants x seeds], seed after seed */
  int run_count;
} comparing;

/* --- what is asked for ---------------------------------------------------------------------------------- */

static esp_status read_seeds(comparing *c) {
  char space[LIST_SIZE];
  const char *items[MOST_SEEDS];
  ESP_TRY(read_list("--seeds", c->a->seeds ? c->a->seeds : "1,2,3", space, items, MOST_SEEDS, &c->seed_count));
  for (int i = 0; i < c->seed_count; i++) {
    long long seed;
    ESP_TRY(whole_number("--seeds", items[i], 0, INT64_MAX, 0, &seed));
    c->seeds[i] = (uint64_t)seed;
    for (int j = 0; j < i; j++)
      if (c->seeds[j] == c->seeds[i]) return fail_twice("--seeds", items[i]);
  }
  return ESP_OK;
}

static esp_status add_variant(comparing *c, const char *name) {
  const esp_variant *table;
  const size_t count = esp_variant_list(&table);
  const char *names[MOST_VARIANTS];
  int index;
  for (size_t i = 0; i < count; i++) names[i] = table[i].name;
  ESP_TRY(blame("--variants", esp_find_name(&index, "variant", name, names, count)));
  c->variants[c->variant_count++] = &table[index];
  return ESP_OK;
}

static esp_status read_variants(comparing *c) {
  char space[LIST_SIZE];
  const char *items[MOST_VARIANTS];
  const esp_variant *table;
  int named = 0;
  const size_t count = esp_variant_list(&table);
  if (c->a->variants) ESP_TRY(read_list("--variants", c->a->variants, space, items, MOST_VARIANTS, &named));
  for (int i = 0; i < named; i++) ESP_TRY(add_variant(c, items[i]));
  for (size_t i = 0; named == 0 && i < count; i++)
    if (table[i].usual) c->variants[c->variant_count++] = &table[i];
  return ESP_OK;
}

/* The settings of every variant, so that what cannot be matched is refused before anything is trained. */
static esp_status read_configs(comparing *c) {
  const arguments *a = c->a;
  training base = {.dataset = c->dataset};
  ESP_TRY(esp_run_config_load(&base.config, a->operands[0], a->overrides, a->override_count));
  training_take_sizes(&base);
  ESP_TRY(training_split_data(&base));
  c->configs = esp_alloc((size_t)c->variant_count, sizeof *c->configs);
  c->runs = esp_alloc((size_t)(c->variant_count * c->seed_count), sizeof *c->runs);
  if (!c->configs || !c->runs) return ESP_ERR_MEMORY;
  for (int i = 0; i < c->variant_count; i++) {
    c->configs[i] = base.config;
    ESP_TRY(esp_variant_config(c->variants[i], &base.config.model, &c->configs[i].model));
    ESP_TRY(esp_check_data_fits(&c->configs[i].model, c->dataset, true));
  }
  return ESP_OK;
}

static esp_status prepare(comparing *c) {
  if (!c->a->out) return esp_fail(ESP_ERR_USAGE, "--out is missing: the folder for all runs, e.g. --out runs/compared");
  ESP_TRY(read_seeds(c));
  ESP_TRY(read_variants(c));
  ESP_TRY(open_data(&c->dataset, c->a));
  ESP_TRY(read_configs(c));
  return take_folder(c->a->out, "compare");
}

/* --- one run -------------------------------------------------------------------------------------------- */

static esp_status run_folder(char folder[ESP_PATH_SIZE], const comparing *c, int variant, uint64_t seed) {
  char name[NAME_SIZE + 32];
  snprintf(name, sizeof name, "%s-%llu", c->variants[variant]->name, (unsigned long long)seed);
  return esp_folder_path(folder, c->a->out, name);
}

static esp_status read_object(json_t **object, const char *folder, const char *name) {
  char path[ESP_PATH_SIZE];
  json_error_t error;
  ESP_TRY(esp_folder_path(path, folder, name));
  *object = json_load_file(path, 0, &error);
  if (json_is_object(*object)) return ESP_OK;
  json_decref(*object);
  return esp_fail(ESP_ERR_FORMAT, "%s cannot be read: %s; remove the run's folder to train it again", path, error.text);
}

static double number_or_nan(const json_t *object, const char *key) {
  const json_t *value = json_object_get(object, key);
  return json_is_number(value) ? json_number_value(value) : (double)NAN;
}

/* Trains it, unless that was done before. */
static esp_status train_one(training *t, const comparing *c, int variant) {
  char results[ESP_PATH_SIZE];
  const unsigned long long seed = (unsigned long long)t->config.training.seed;
  ESP_TRY(esp_folder_path(results, t->folder, "results.json"));
  ESP_TRY(t->resumes ? training_load(t) : training_create(t));
  if (t->resumes) ESP_TRY(training_check_settings_kept(t));
  if (t->resumes && esp_file_exists(results)) return ESP_OK;
  if (!t->quiet)
    fprintf(stderr, "compare: %s, seed %llu (run %d of %d)\n", c->variants[variant]->name, seed, c->run_count + 1,
            c->variant_count * c->seed_count);
  esp_training_result result;
  const esp_status status = training_run(t, &result);
  if (status != ESP_ERR_INTERRUPTED) return status;
  return esp_fail(status, "stopped in the run of %s with seed %llu; the same command goes on from there",
                  c->variants[variant]->name, seed);
}

/* Means over the mixture layers; neurons are counted in MoNEs only. */
static void take_statistics(const esp_statistics *statistics, double *values) {
  const int layers = esp_statistics_layer_count(statistics);
  values[ESP_COMPARED_NEAR_ZERO_HUNDREDTH] = values[ESP_COMPARED_NEAR_ZERO_TENTH] = layers ? 0 : (double)NAN;
  int64_t dead = 0, counted = 0;
  double gini = 0;
  for (int i = 0; i < layers; i++) {
    esp_layer_statistics s;
    esp_statistics_layer(statistics, i, &s);
    values[ESP_COMPARED_NEAR_ZERO_HUNDREDTH] += s.near_zero[1] / layers;
    values[ESP_COMPARED_NEAR_ZERO_TENTH] += s.near_zero[2] / layers;
    gini += s.neuron_gini / layers;
    dead += s.dead_neurons;
    counted += s.counted_neurons;
  }
  values[ESP_COMPARED_NEURON_GINI] = counted ? gini : (double)NAN;
  values[ESP_COMPARED_DEAD_NEURONS] = counted ? (double)dead / (double)counted : (double)NAN;
}

static esp_status measure_one(const training *t, double *values) {
  esp_statistics *statistics;
  ESP_TRY(esp_statistics_create(&statistics, t->trained.model, ESP_STATISTICS_STRIDE));
  const esp_observer observer = esp_statistics_observer(statistics);
  const esp_evaluation_options options = {.split = ESP_TEST, .observer = &observer};
  esp_evaluation evaluation;
  const esp_status status =
      esp_evaluate(t->trained.model, t->dataset, &t->trained.info.normalisation, &options, &evaluation);
  if (status == ESP_OK) take_statistics(statistics, values);
  esp_statistics_free(statistics);
  return status;
}

static void take_cost(const training *t, esp_compared_run *run) {
  esp_model_cost cost;
  esp_model_cost_of(t->trained.model, &cost);
  double *values = run->values;
  values[ESP_COMPARED_PARAMETERS] = (double)cost.parameters;
  values[ESP_COMPARED_ACTIVATED] = (double)cost.activated;
  values[ESP_COMPARED_ACTIVATED_SELECTED] = (double)cost.activated_selected;
  values[ESP_COMPARED_TOUCHED] = (double)cost.touched;
  values[ESP_COMPARED_FLOPS] = cost.flops;
  values[ESP_COMPARED_FLOPS_SELECTED] = cost.flops_selected;
  values[ESP_COMPARED_NEURONS_USED] = (double)NAN;
  const esp_moe *moe = esp_model_moe(t->trained.model, 0);
  if (!moe) return;
  run->top_k = moe->config.top_k;
  run->neurons = moe->bank.hidden;
  run->neurons_kept = moe->neurons_kept;
  values[ESP_COMPARED_NEURONS_USED] = (double)moe->neurons_kept / moe->bank.hidden;
}

static esp_status take_results(const training *t, double *values) {
  json_t *results;
  ESP_TRY(read_object(&results, t->folder, "results.json"));
  const double rate = number_or_nan(results, "images_per_second");
  values[ESP_COMPARED_VALIDATION_ACCURACY] = number_or_nan(results, "validation_accuracy");
  values[ESP_COMPARED_ACCURACY] = number_or_nan(results, "accuracy");
  values[ESP_COMPARED_LOSS] = number_or_nan(results, "loss");
  values[ESP_COMPARED_TRAINING_RATE] = rate > 0 ? rate : (double)NAN; /* resumed after its last step */
  values[ESP_COMPARED_MILLISECONDS] = (double)NAN;
  json_decref(results);
  return ESP_OK;
}

static esp_status do_run(comparing *c, int variant, uint64_t seed) {
  char folder[ESP_PATH_SIZE];
  esp_compared_run *run = &c->runs[c->run_count];
  *run = (esp_compared_run){.variant = c->variants[variant], .seed = seed};
  ESP_TRY(run_folder(folder, c, variant, seed));
  training t = {
      .action = "pretrain", .quiet = c->a->quiet, .terse = true, .dataset = c->dataset, .config = c->configs[variant]};
  t.config.training.seed = seed;
  esp_status status = training_place(&t, folder, true, false);
  if (status == ESP_OK) status = train_one(&t, c, variant);
  if (status == ESP_OK) status = measure_one(&t, run->values);
  if (status == ESP_OK) status = take_results(&t, run->values);
  if (status == ESP_OK) take_cost(&t, run);
  training_release(&t);
  if (status == ESP_OK) c->run_count++;
  return status == ESP_OK || status == ESP_ERR_INTERRUPTED ? status : esp_fail_in(status, "%s", folder);
}

/* --- all of them ---------------------------------------------------------------------------------------- */

/* Seed after seed, so that a comparison that is stopped half way has whole pairs. */
static esp_status do_runs(comparing *c) {
  for (int s = 0; s < c->seed_count; s++)
    for (int v = 0; v < c->variant_count; v++) {
      if (*c->stop) return esp_fail(ESP_ERR_INTERRUPTED, "stopped; the same command goes on from there");
      ESP_TRY(do_run(c, v, c->seeds[s]));
    }
  return ESP_OK;
}

/* --- single images -------------------------------------------------------------------------------------- */

/* A model that takes one image of a batch after another. */
typedef struct single {
  esp_trained l;
  esp_tape *tape;
  const esp_batch *batch;
  int64_t next;
} single;

static esp_status run_single(void *context) {
  single *s = context;
  const esp_model_config *config = &s->l.model->config;
  const int64_t size = (int64_t)config->image_height * config->image_width * config->image_channels;
  const esp_batch image = {.count = 1, .images = s->batch->images + s->next * size};
  s->next = (s->next + 1) % s->batch->count;
  esp_tape_reset(s->tape, false);
  esp_tensor *images = esp_batch_images(s->tape, &image, config);
  if (!images) return esp_tape_status(s->tape);
  const esp_model_output output = esp_model_forward(s->l.model, s->tape, images, &(esp_pass){.training = false});
  return esp_ensemble_prediction(s->tape, &output) ? ESP_OK : esp_tape_status(s->tape);
}

/* The models in turns; of the first seed, one a variant. */
static esp_status time_singles(comparing *c, single *models, esp_loader *loader) {
  const esp_batch *batch;
  esp_bench bench = {.rounds = TIMED_ROUNDS};
  esp_bench_case cases[MOST_VARIANTS];
  esp_bench_result results[MOST_VARIANTS];
  ESP_TRY(esp_loader_next(loader, &batch));
  for (int v = 0; v < c->variant_count; v++) {
    models[v].batch = batch;
    models[v].tape = esp_tape_create();
    if (!models[v].tape) return ESP_ERR_MEMORY;
    cases[v] = (esp_bench_case){.name = c->variants[v]->name, .run = run_single, .context = &models[v]};
  }
  ESP_TRY(esp_bench_compare(&bench, "a single image", cases, c->variant_count, results));
  for (int v = 0; v < c->variant_count; v++) c->runs[v].values[ESP_COMPARED_MILLISECONDS] = 1e3 * results[v].median;
  return ESP_OK;
}

static esp_status time_variants(comparing *c) {
  single models[MOST_VARIANTS] = {{.next = 0}};
  esp_loader *loader = NULL;
  esp_status status = ESP_OK;
  for (int v = 0; status == ESP_OK && v < c->variant_count; v++) {
    char folder[ESP_PATH_SIZE];
    status = run_folder(folder, c, v, c->seeds[0]);
    if (status == ESP_OK) status = esp_trained_load(&models[v].l, folder);
  }
  const esp_loader_options options = {.batch = TIMED_IMAGES, .normalisation = models[0].l.info.normalisation};
  if (status == ESP_OK) status = esp_loader_create(&loader, c->dataset, ESP_TEST, &options, 0);
  if (status == ESP_OK) status = time_singles(c, models, loader);
  esp_loader_close(loader);
  for (int v = 0; v < c->variant_count; v++) {
    esp_tape_free(models[v].tape);
    esp_trained_clear(&models[v].l);
  }
  return status;
}

/* --- the end -------------------------------------------------------------------------------------------- */

static int show(const comparing *c) {
  const esp_comparison comparison = {c->a->operands[0], esp_dataset_info_of(c->dataset)->name, c->runs, c->run_count};
  const esp_status status = esp_comparison_write(&comparison, c->a->out);
  if (status != ESP_OK) return report_failure(status);
  draw_figure(c->a, c->a->out, "compare");
  if (c->a->json) return print_json(esp_comparison_json(&comparison));
  esp_comparison_print(&comparison, stdout);
  printf("%s: compare.csv, compare_summary.csv, compare.json, compare.svg, and a folder for each run\n",
         esp_shown(c->a->out));
  return EXIT_DONE;
}

static int run_compare(const arguments *a) {
  comparing c = {.a = a, .stop = watch_interrupts()};
  esp_status status = prepare(&c);
  if (status == ESP_OK) status = do_runs(&c);
  if (status == ESP_OK) status = time_variants(&c);
  const int code = status == ESP_OK ? show(&c) : report_failure(status);
  esp_free(c.runs);
  esp_free(c.configs);
  esp_dataset_close(c.dataset);
  return code;
}

/* --- help ------------------------------------------------------------------------------------------------------ */

static const command_option options[] = {
    {"--data", NULL}, {"--out", "the folder for all runs"}, {"--set", NULL}, {"--seeds", NULL}, {"--variants", NULL},
    {NULL, NULL},
};

const command compare_command = {
    .name = "compare",
    .usage = "compare CONFIG.yaml --data DATA --out RUN [--seeds N,N,...] [--variants NAME,...] [--set KEY=VALUE]...",
    .summary = "Trains an MoE and matched MoNEs with several seeds, and compares them",
    .details =
        "The mixture layers of CONFIG.yaml are the MoE: k experts a token of f = model.moe.hidden neurons. All "
        "variants but the last have its total parameters, and see the same data in the same order:\n"
        "moe\tall neurons: the baseline\n"
        "mone-half-full\thalf the activated expert parameters, W_gate counted in full: K_N = f/4\n"
        "mone-half-selected\thalf of them, selected neurons counted only: K_N = f/2\n"
        "mone-equal-full\tas many, W_gate in full, of more experts a token: k' (f + 2 K_N) = 3 k f, usually k' = "
        "2 k\n"
        "mone-equal-selected\tas many, selected neurons only: k' K_N = k f\n"
        "...-balanced\teach of these four with the neuron balance loss (model.moe.neuron_balance_weight, or 0.01)\n"
        "dense\tno experts, a network of k f neurons (only if named)\n"
        "Each run is an ordinary run in RUN/VARIANT-SEED. Given again, the command goes on where it was stopped "
        "and does not repeat what is done. RUN gets compare.csv (a row a run), compare_summary.csv (means and "
        "standard deviations over seeds, differences to the MoE of the same seed), compare.json, and accuracy "
        "over activated parameters as compare.svg and .png. Single images are timed at the end, all variants in "
        "turns.",
    .example = "compare examples/configs/mone-comparison.yaml --data fashion-mnist --out runs/compared --seeds 1,2,3",
    .options = options,
    .least_operands = 1,
    .most_operands = 1,
    .run = run_compare,
};
