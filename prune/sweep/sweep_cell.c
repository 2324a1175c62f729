/* One cell: the model, what it does, what it costs, and the same after a short finetuning. */
#include "sweep_internal.h"

#include <espalier/cost.h>
#include <espalier/memory.h>
#include <espalier/trainer.h>
#include <espalier/compare.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { BATCH = 128, ROUNDS = 7 };

/* Counts them as an evaluation does: 0 is all. */
static int64_t test_images(const esp_sweep *sweep) {
  const esp_sweep_settings *s = &sweep->settings;
  return s->limit < esp_dataset_info_of(s->data)->count[ESP_TEST] ? s->limit : 0;
}

/* --- what it does ---------------------------------------------------------------------------------------- */

typedef struct row_count {
  int64_t rows[ESP_MAX_BLOCKS], tokens[ESP_MAX_BLOCKS];
} row_count;

static void count_rows(void *context, const esp_moe_record *record) {
  row_count *count = context;
  count->rows[record->layer->block] += record->routing->rows;
  count->tokens[record->layer->block] += record->routing->tokens;
}

/* FLOPs with the rows that were counted, and the mean over the mixture layers of a token's rows. */
static void note_rows(esp_sweep_cell *cell, const esp_model *model, const row_count *count) {
  double rows[ESP_MAX_BLOCKS] = {0}, sum = 0;
  esp_model_cost cost;
  for (int b = 0; b < model->config.blocks; b++) {
    if (count->tokens[b] > 0) rows[b] = (double)count->rows[b] / (double)count->tokens[b];
    sum += rows[b];
  }
  esp_model_cost_measured(model, rows, &cost);
  cell->measured_flops = cost.flops;
  cell->rows_per_token = sum / esp_model_moe_count(model);
}

static esp_status evaluate(const esp_sweep *sweep, esp_sweep_cell *cell, const esp_model *model) {
  const esp_sweep_settings *s = &sweep->settings;
  row_count count = {{0}, {0}};
  esp_evaluation evaluation;
  const esp_observer observer = {count_rows, &count};
  const esp_evaluation_options options = {.split = ESP_TEST, .limit = test_images(sweep), .observer = &observer};
  ESP_TRY(esp_evaluate(model, s->data, &s->models[cell->model].info->normalisation, &options, &evaluation));
  cell->accuracy = evaluation.accuracy;
  cell->loss = evaluation.loss;
  if (esp_dataset_info_of(s->data)->count[ESP_VALIDATION] > 0) {
    const esp_evaluation_options validating = {.split = ESP_VALIDATION, .limit = options.limit};
    ESP_TRY(esp_evaluate(model, s->data, &s->models[cell->model].info->normalisation, &validating, &evaluation));
    cell->validation_accuracy = evaluation.accuracy;
  }
  note_rows(cell, model, &count);
  return ESP_OK;
}

/* --- how fast it is, and in how much memory --------------------------------------------------------------- */

static double median(double *values, int count) {
  qsort(values, (size_t)count, sizeof *values, esp_ascending);
  return 0.5 * (values[(count - 1) / 2] + values[count / 2]);
}

static esp_status time_batch(const esp_model *model, esp_tape *tape, const esp_batch *batch, double *seconds) {
  const double start = esp_seconds();
  esp_tape_reset(tape, false);
  esp_tensor *images = esp_batch_images(tape, batch, &model->config);
  if (!images) return esp_tape_status(tape);
  const esp_pass pass = {.training = false};
  const esp_model_output output = esp_model_forward(model, tape, images, &pass);
  *seconds = esp_seconds() - start;
  return output.logits ? ESP_OK : esp_tape_status(tape);
}

/* Batches of the unpruned model and of this one in turns, so that what else the machine does meets both. */
static esp_status race(const esp_model *unpruned, const esp_model *model, esp_tape *const tapes[2],
                       const esp_batch *batch, esp_sweep_cell *cell) {
  double own[ROUNDS], ratio[ROUNDS], first, second;
  for (int i = -1; i < ROUNDS; i++) { /* the first round warms up */
    ESP_TRY(time_batch(unpruned, tapes[0], batch, &first));
    ESP_TRY(time_batch(model, tapes[1], batch, &second));
    if (i < 0) continue;
    own[i] = second;
    ratio[i] = first / second;
  }
  cell->milliseconds = 1e3 * median(own, ROUNDS) / (double)batch->count;
  cell->speed = median(ratio, ROUNDS);
  cell->memory = cell->parameters * ESP_PARAMETER_BYTES + (int64_t)esp_arena_peak(esp_tape_arena(tapes[1]));
  return ESP_OK;
}

static esp_status measure_speed(const esp_sweep *sweep, const esp_model *model, esp_sweep_cell *cell) {
  const esp_sweep_model *origin = &sweep->settings.models[cell->model];
  const esp_loader_options loading = {.batch = BATCH, .normalisation = origin->info->normalisation};
  esp_loader *loader;
  const esp_batch *batch;
  ESP_TRY(esp_loader_create(&loader, sweep->settings.data, ESP_TEST, &loading, 0));
  esp_tape *tapes[2] = {esp_tape_create(), esp_tape_create()};
  esp_status status = tapes[0] && tapes[1] ? esp_loader_next(loader, &batch) : ESP_ERR_MEMORY;
  if (status == ESP_OK) status = race(origin->model, model, tapes, batch, cell);
  esp_tape_free(tapes[0]);
  esp_tape_free(tapes[1]);
  esp_loader_close(loader);
  return status;
}

/* --- how large it is on disk ----------------------------------------------------------------------------- */

static esp_status add_history(esp_checkpoint_info *info, const char *action, const esp_sweep_cell *cell,
                              const char *reference) {
  char detail[256];
  snprintf(detail, sizeof detail, "%s%s%s, ratio %g, seed %llu", cell->method.name, cell->mode < 0 ? "" : ", mode ",
           cell->mode < 0 ? "" : esp_sweep_mode(cell->mode), cell->ratio, (unsigned long long)cell->seed);
  return esp_checkpoint_add_history(info, action, detail, info->digest, reference);
}

/* folder/models/NAME+suffix.h5, or a file that does not stay. */
static esp_status save_model(const esp_sweep *sweep, const esp_sweep_cell *cell, const char *suffix,
                             const esp_model *model, esp_checkpoint_info *info, int64_t *bytes) {
  char folder[ESP_PATH_SIZE], path[ESP_PATH_SIZE], name[SWEEP_NAME_SIZE], file[SWEEP_NAME_SIZE + 32];
  struct stat found;
  esp_sweep_cell_name(sweep, cell, name);
  snprintf(file, sizeof file, "%s%s.h5", name, suffix);
  ESP_TRY(esp_folder_path(folder, sweep->settings.folder, sweep->settings.keep ? "models" : "work"));
  ESP_TRY(esp_folder_path(path, folder, sweep->settings.keep ? file : "model.h5"));
  ESP_TRY(esp_checkpoint_save(path, model, NULL, info, ESP_DEFAULT_COMPRESSION));
  *bytes = stat(path, &found) == 0 ? (int64_t)found.st_size : 0;
  if (!sweep->settings.keep) unlink(path);
  return ESP_OK;
}

/* --- finetuning ------------------------------------------------------------------------------------------ */

static esp_status read_config(const esp_sweep *sweep, const esp_sweep_cell *cell, const esp_model *model,
                              esp_run_config *config) {
  const esp_sweep_settings *s = &sweep->settings;
  const esp_sweep_model *origin = &s->models[cell->model];
  ESP_TRY(esp_run_config_parse(config, origin->name, origin->info->run_config, s->overrides, s->override_count));
  config->model = model->config;
  if (!esp_dataset_info_of(s->data)->own_validation)
    config->data.validation = esp_dataset_info_of(s->data)->validation; /* what is held out, whoever decided it */
  config->training.epochs = s->finetune;
  config->training.seed = cell->seed;
  config->training.evaluate_every = s->finetune + 1; /* at the end only */
  config->training.checkpoint_minutes = 0;
  return ESP_OK;
}

static void remove_work(const char *folder) {
  static const char *const files[] = {"last.h5",    "best.h5",          "metrics.csv",       "routing.csv",
                                      "alarms.csv", "coactivation.csv", "specialisation.csv"};
  char path[ESP_PATH_SIZE];
  for (size_t i = 0; i < sizeof files / sizeof files[0]; i++)
    if (esp_folder_path(path, folder, files[i]) == ESP_OK) unlink(path);
}

static esp_status train(const esp_sweep *sweep, const esp_sweep_cell *cell, esp_model *model, esp_checkpoint_info *info,
                        esp_training_result *after) {
  const esp_sweep_model *origin = &sweep->settings.models[cell->model];
  const bool distil = sweep->settings.distil;
  char folder[ESP_PATH_SIZE];
  esp_run_config config;
  esp_training_result result;
  ESP_TRY(read_config(sweep, cell, model, &config));
  ESP_TRY(esp_training_freeze(&config.training, model));
  ESP_TRY(esp_folder_path(folder, sweep->settings.folder, "work"));
  info->progress = (esp_progress){.best_accuracy = -1};
  const esp_training_job job = {.model = model,
                                .dataset = sweep->settings.data,
                                .config = &config,
                                .folder = folder,
                                .info = info,
                                .teacher = distil ? origin->model : NULL,
                                .teacher_info = distil ? origin->info : NULL,
                                .final_examples = test_images(sweep),
                                .stop = sweep->settings.stop,
                                .quiet = true};
  const esp_status status = esp_train(&job, &result);
  remove_work(folder);
  *after = result;
  return status;
}

static esp_status finetune(const esp_sweep *sweep, esp_sweep_cell *cell, esp_model *model, esp_checkpoint_info *info) {
  esp_training_result after = {.step = 0};
  int64_t bytes;
  if (!(sweep->settings.finetune > 0)) return ESP_OK;
  const char *teacher = sweep->settings.distil ? sweep->settings.models[cell->model].info->digest : "";
  ESP_TRY(add_history(info, "finetune", cell, teacher));
  ESP_TRY(train(sweep, cell, model, info, &after));
  cell->tuned_accuracy = after.final.accuracy;
  cell->tuned_loss = after.final.loss;
  if (after.validation.examples) cell->tuned_validation_accuracy = after.validation.accuracy;
  return sweep->settings.keep ? save_model(sweep, cell, "-finetuned", model, info, &bytes) : ESP_OK;
}

/* --- the whole ------------------------------------------------------------------------------------------- */

/* A cell that is done and has the same model; with `seed` also the same finetuning. */
static const esp_sweep_cell *find_twin(const esp_sweep *sweep, const esp_sweep_cell *cell, bool seed) {
  for (int64_t i = 0; i < sweep->cell_count; i++) {
    const esp_sweep_cell *other = &sweep->cells[i];
    if (other != cell && other->done && !*other->failure && other->model == cell->model &&
        strcmp(other->digest, cell->digest) == 0 && (!seed || other->seed == cell->seed))
      return other;
  }
  return NULL;
}

static void copy_numbers(esp_sweep_cell *cell, const esp_sweep_cell *twin, bool tuned) {
  const esp_sweep_cell own = *cell;
  *cell = *twin;
  cell->model = own.model;
  cell->calibration = own.calibration;
  cell->method = own.method;
  cell->mode = own.mode;
  cell->gates = own.gates;
  cell->greedy_layers = own.greedy_layers;
  cell->ratio = own.ratio;
  cell->seed = own.seed;
  cell->done = false;
  cell->same_as[0] = '\0';
  if (!tuned) cell->tuned_accuracy = cell->tuned_loss = cell->tuned_validation_accuracy = NAN;
}

static esp_status measure(const esp_sweep *sweep, esp_sweep_cell *cell, const esp_model *model,
                          esp_checkpoint_info *info) {
  esp_model_cost cost;
  esp_model_cost_of(model, &cost);
  cell->parameters = cost.parameters;
  cell->activated_parameters = cost.activated;
  cell->flops = cost.flops;
  ESP_TRY(evaluate(sweep, cell, model));
  ESP_TRY(save_model(sweep, cell, "", model, info, &cell->bytes));
  return measure_speed(sweep, model, cell);
}

static esp_status fill(const esp_sweep *sweep, esp_sweep_cell *cell, esp_model *model) {
  esp_checkpoint_info info = *sweep->settings.models[cell->model].info;
  ESP_TRY(esp_model_digest(model, cell->digest));
  const esp_sweep_cell *twin = find_twin(sweep, cell, sweep->settings.finetune > 0);
  const esp_sweep_cell *sibling = find_twin(sweep, cell, false);
  if (twin) {
    copy_numbers(cell, twin, true);
    esp_sweep_cell_name(sweep, twin, cell->same_as);
    return ESP_OK;
  }
  ESP_TRY(add_history(&info, "sweep", cell, ""));
  if (sibling) copy_numbers(cell, sibling, false);
  else ESP_TRY(measure(sweep, cell, model, &info));
  return finetune(sweep, cell, model, &info);
}

/* With several models the reference serves those that came from it. */
static bool descends(const esp_sweep_settings *s, const esp_checkpoint_info *info) {
  if (!s->reference || s->model_count == 1) return s->reference;
  for (int i = 0; i < info->history_count; i++)
    if (strcmp(info->history[i].parent, s->reference->info->digest) == 0) return true;
  return false;
}

void esp_sweep_forget_scores(esp_sweep *sweep) {
  esp_expert_scores **all = &sweep->scores[0][0][0];
  for (size_t i = 0; i < sizeof sweep->scores / sizeof *all; i++) {
    esp_expert_scores_free(all[i]);
    all[i] = NULL;
  }
}

static int seed_index(const esp_sweep_settings *s, uint64_t seed) {
  int index = 0;
  while (s->seeds[index] != seed) index++;
  return index;
}

/* A cell without gates takes any pass. */
static esp_gate_form gates_of(const esp_sweep_cell *cell) {
  return cell->gates < 0 ? ESP_GATES_NORMALISED : (esp_gate_form)cell->gates;
}

/* The calibration pass of a cell's model, gates, data and seed, made when it is first asked for. */
static esp_status take_scores(esp_sweep *sweep, const esp_sweep_cell *cell, const esp_calibration *calibration,
                              const esp_expert_scores **scores) {
  const esp_model *model = sweep->settings.models[cell->model].model;
  if (sweep->scored_model != cell->model) esp_sweep_forget_scores(sweep);
  sweep->scored_model = cell->model;
  const esp_gate_form gates = gates_of(cell);
  esp_expert_scores **kept = &sweep->scores[gates][cell->calibration][seed_index(&sweep->settings, cell->seed)];
  if (!*kept) {
    esp_expert_scores *made;
    ESP_TRY(esp_expert_scores_create(&made, model, gates));
    const esp_observer observer = esp_expert_scores_observer(made);
    const esp_status status = esp_calibration_pass(model, calibration, &observer);
    if (status != ESP_OK) {
      esp_expert_scores_free(made);
      return status;
    }
    *kept = made;
  }
  *scores = *kept;
  return ESP_OK;
}

static esp_status compute(esp_sweep *sweep, esp_sweep_cell *cell) {
  const esp_sweep_settings *s = &sweep->settings;
  const esp_sweep_model *origin = &s->models[cell->model];
  const bool refer = descends(s, origin->info), calibrate = cell->calibration >= 0;
  const esp_calibration calibration = {.dataset = calibrate ? s->calibration[cell->calibration] : NULL,
                                       .normalisation = &origin->info->normalisation,
                                       .split = ESP_TRAIN,
                                       .images = s->calibration_images,
                                       .seed = cell->seed};
  const esp_prune_mode mode = (esp_prune_mode)cell->mode;
  esp_method_inputs inputs = {.model = origin->model,
                              .info = origin->info,
                              .reference = refer ? s->reference->model : NULL,
                              .reference_info = refer ? s->reference->info : NULL,
                              .calibration = calibrate ? &calibration : NULL,
                              .seed = cell->seed,
                              .mode = cell->mode < 0 ? NULL : &mode,
                              .gates = gates_of(cell),
                              .ratio = cell->ratio};
  esp_compressed made;
  if (calibrate) ESP_TRY(take_scores(sweep, cell, &calibration, &inputs.scores));
  ESP_TRY(esp_method_make(&cell->method, &inputs, &made));
  cell->greedy_layers = made.greedy;
  const esp_status status = fill(sweep, cell, made.model);
  esp_compressed_clear(&made);
  return status;
}

/* What says something about the method, not about the machine. */
static bool belongs_to_method(esp_status status) {
  return status == ESP_ERR_USAGE || status == ESP_ERR_CONFIG || status == ESP_ERR_MISMATCH ||
         status == ESP_ERR_NOT_FINITE;
}

esp_status esp_sweep_compute(esp_sweep *sweep, esp_sweep_cell *cell) {
  const double start = esp_seconds();
  cell->accuracy = cell->loss = cell->tuned_accuracy = cell->tuned_loss = NAN;
  cell->validation_accuracy = cell->tuned_validation_accuracy = NAN;
  cell->flops = cell->measured_flops = cell->rows_per_token = cell->milliseconds = cell->speed = NAN;
  const esp_status status = compute(sweep, cell);
  if (status != ESP_OK && !belongs_to_method(status)) return status;
  if (status != ESP_OK) snprintf(cell->failure, sizeof cell->failure, "%s", esp_error_message());
  cell->seconds = esp_seconds() - start;
  cell->done = true;
  return ESP_OK;
}
