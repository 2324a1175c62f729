#include <espalier/metrics.h>
#include <espalier/ops.h>
#include <espalier/progress.h>
#include <espalier/routing_log.h>
#include <espalier/run_folder.h>
#include <espalier/trainer.h>
#include <espalier/whitening.h>

#include <math.h>
#include <stdio.h>
#include <string.h>

/* A batch's share in a batch norm's running averages is that of PyTorch. */
static const double batch_norm_share = 0.1;

int64_t esp_training_steps(const esp_training_config *config, int64_t batches_per_epoch) {
  return (int64_t)ceil(config->epochs * (double)batches_per_epoch - 1e-9);
}

int64_t esp_run_steps(const esp_training_config *config, const esp_dataset *dataset) {
  const int64_t images = esp_dataset_info_of(dataset)->count[ESP_TRAIN];
  return esp_training_steps(config, images < config->batch ? 1 : images / config->batch);
}

/* Names the first op whose result (or whose input's gradient) is not finite. */
static esp_status not_finite(esp_tape *tape, bool gradients, int64_t step) {
  const esp_node *node = gradients ? esp_tape_first_gradient_not_finite(tape) : esp_tape_first_not_finite(tape);
  return esp_fail(ESP_ERR_NOT_FINITE,
                  "step %lld: the %s is not finite; the first op with such a %s is %s in %s. Try a lower "
                  "optimizer.learning_rate, a longer optimizer.schedule.warmup or a smaller optimizer.clip_norm",
                  (long long)step + 1, gradients ? "gradient" : "loss", gradients ? "gradient" : "result",
                  node ? node->op->name : "unknown", node && *node->scope ? node->scope : "the loss");
}

static void *repeat(esp_tape *tape, const void *values, size_t size, int64_t count, int times) {
  if (!values || times == 1) return (void *)(uintptr_t)values;
  char *repeated = esp_tape_take(tape, size * (size_t)(count * times));
  for (int i = 0; repeated && i < times; i++)
    memcpy(repeated + (size_t)(i * count) * size, values, size * (size_t)count);
  return repeated;
}

/* Each member of an E3 answers for itself: its own cross-entropy against the same labels. */
static esp_tensor *task_loss(esp_tape *tape, const esp_model_output *output, const esp_batch *batch, double smoothing) {
  const int members = output->members;
  const esp_targets targets = {repeat(tape, batch->labels, sizeof *batch->labels, batch->count, members),
                               repeat(tape, batch->mixed_labels, sizeof *batch->mixed_labels, batch->count, members),
                               repeat(tape, batch->mix, sizeof *batch->mix, batch->count, members), smoothing};
  if (!targets.labels || (batch->mixed_labels && !targets.mixed_labels) || (batch->mix && !targets.mix)) return NULL;
  return esp_cross_entropy(tape, output->logits, &targets);
}

esp_status esp_training_step(const esp_model *model, esp_optimizer *optimizer, esp_tape *tape, const esp_batch *batch,
                             const esp_step_options *options, esp_step_result *result) {
  const esp_pass *pass = &options->pass;
  esp_tape_reset(tape, true);
  esp_tensor *images = esp_batch_images(tape, batch, &model->config);
  if (!images) return esp_tape_status(tape);
  esp_model_output output = esp_model_forward(model, tape, images, pass);
  if (!output.logits) return esp_tape_status(tape);
  if (options->distillation) ESP_TRY(esp_distillation_add(options->distillation, tape, images, &output));
  esp_tape_scope(tape, "loss");
  esp_tensor *task = task_loss(tape, &output, batch, options->label_smoothing);
  esp_tensor *loss = esp_total_loss(tape, task, &output.auxiliary);
  const esp_tensor *prediction = esp_ensemble_prediction(tape, &output);
  if (!loss || !prediction) return esp_tape_status(tape);
  if (!isfinite(loss->data[0])) return not_finite(tape, false, (int64_t)pass->step);
  ESP_TRY(esp_tape_backward(tape, loss));
  const double norm = esp_gradient_norm(model->parameters);
  if (!isfinite(norm)) return not_finite(tape, true, (int64_t)pass->step);
  esp_optimizer_step(optimizer, options->learning_rate_multiplier, norm);
  esp_model_update_router_biases(model, &output.auxiliary);
  esp_batch_norm_update(tape, batch_norm_share);
  *result = (esp_step_result){.loss = (double)loss->data[0],
                              .task_loss = (double)task->data[0],
                              .gradient_norm = norm,
                              .correct = esp_count_correct(prediction, batch->labels),
                              .auxiliary = output.auxiliary};
  return ESP_OK;
}

/* What a run holds while it goes on. */
typedef struct run {
  const esp_training_job *job;
  esp_optimizer *optimizer;
  esp_distillation *distillation;
  esp_row_pruning *pruning; /* NULL: no rows of factored experts are being pruned */
  esp_loader *loader;
  esp_tape *tape;
  esp_metrics *metrics;
  esp_routing_log *routing;
  esp_window window;
  esp_progress_bar bar;
  int64_t step, steps, batches_per_epoch;
  bool lengthened;         /* resumed with more steps than it was planned for */
  int64_t saved_step;      /* in last.h5; -1: none */
  double next_evaluation;  /* in epochs */
  double last_checkpoint;  /* esp_seconds() */
  double training_seconds; /* of steps alone */
  int64_t images;
  double last_distillation; /* mean over the window that closed last */
  esp_training_result result;
} run;

static double epoch_of(const run *r) { return (double)r->step / (double)r->batches_per_epoch; }

static esp_history_entry *history_of(const run *r) { return &r->job->info->history[r->job->info->history_count - 1]; }

static esp_status save(run *r, const char *name) {
  esp_checkpoint_info *info = r->job->info;
  info->progress.step = r->step;
  info->progress.steps = r->steps;
  info->progress.batches = r->step;
  info->progress.seed = r->job->config->training.seed;
  history_of(r)->steps = r->step;
  char path[ESP_PATH_SIZE];
  ESP_TRY(esp_folder_path(path, r->job->folder, name));
  r->last_checkpoint = esp_seconds();
  ESP_TRY(esp_metrics_sync(r->metrics));
  ESP_TRY(esp_routing_log_sync(r->routing));
  ESP_TRY(esp_checkpoint_save(path, r->job->model, r->optimizer, info, r->job->config->training.compression));
  r->saved_step = r->step;
  return ESP_OK;
}

static void restart_window(run *r) { r->window = (esp_window){.started = esp_seconds()}; }

/* The window goes to the metrics and to the bar, and starts again. */
static esp_status close_window(run *r) {
  const esp_window *w = &r->window;
  if (w->steps == 0) return ESP_OK;
  const esp_run_config *config = r->job->config;
  const double rate =
      config->optimizer.learning_rate * esp_schedule_multiplier(&config->optimizer.schedule, r->step - 1, r->steps);
  r->bar.loss = esp_window_mean(w, w->loss);
  r->last_distillation = esp_window_mean(w, w->raw[ESP_LOSS_DISTILLATION]);
  r->bar.accuracy = w->correct / (double)w->images;
  r->bar.rate = (double)w->images / (esp_seconds() - w->started);
  ESP_TRY(esp_metrics_write_training(r->metrics, r->step, epoch_of(r), rate, w));
  restart_window(r);
  return ESP_OK;
}

static bool has_validation(const run *r) { return esp_dataset_info_of(r->job->dataset)->count[ESP_VALIDATION] > 0; }

/* Watched by `observer`, or by nobody (NULL). */
static esp_status evaluate(run *r, const esp_model *model, esp_split_name split, int64_t limit,
                           const esp_observer *observer, esp_evaluation *evaluation) {
  const esp_training_job *job = r->job;
  const esp_evaluation_options options = {.split = split, .limit = limit, .observer = observer};
  const esp_status status = esp_evaluate(model, job->dataset, &job->info->normalisation, &options, evaluation);
  return status == ESP_OK ? ESP_OK : esp_fail_in(status, "evaluating after step %lld", (long long)r->step);
}

/* Puts an evaluation of the model as it is now into the metrics; if `watch`, what its routers do goes into their
 * logs. */
static esp_status evaluate_now(run *r, esp_split_name split, int64_t limit, bool watch, esp_evaluation *evaluation) {
  const esp_observer observer = esp_routing_log_observer(r->routing);
  ESP_TRY(evaluate(r, r->job->model, split, limit, watch ? &observer : NULL, evaluation));
  ESP_TRY(esp_metrics_write_evaluation(r->metrics, r->step, epoch_of(r), split, evaluation));
  esp_progress_evaluation(&r->bar, r->step, epoch_of(r), split, evaluation);
  return watch ? esp_routing_log_write(r->routing, r->step, epoch_of(r), &r->bar) : ESP_OK;
}

static void take_as_best(run *r, const esp_evaluation *validation) {
  r->job->info->progress.best_accuracy = validation->accuracy;
  r->job->info->progress.best_step = r->step;
}

/* Evaluations under way look at as many images each, so that their figures compete. */
static esp_status evaluate_on_the_way(run *r) {
  esp_evaluation validation;
  ESP_TRY(close_window(r));
  if (has_validation(r)) {
    ESP_TRY(evaluate_now(r, ESP_VALIDATION, r->job->config->training.evaluate_examples, true, &validation));
    /* While rows are pruned, the best would be the least pruned. */
    if (!r->pruning && validation.accuracy > r->job->info->progress.best_accuracy) {
      take_as_best(r, &validation);
      ESP_TRY(save(r, "best.h5"));
    }
  }
  ESP_TRY(save(r, ESP_LAST_CHECKPOINT));
  restart_window(r);
  return ESP_OK;
}

/* The best model before this step, evaluated on `limit` images of the validation split; NULL: there is none. */
static esp_status load_candidate(run *r, int64_t limit, esp_model **candidate, esp_evaluation *validation) {
  char path[ESP_PATH_SIZE];
  esp_checkpoint_info info;
  const esp_progress *p = &r->job->info->progress;
  *candidate = NULL;
  if (r->pruning || !has_validation(r) || p->best_accuracy < 0 || p->best_step == r->step) return ESP_OK;
  ESP_TRY(esp_folder_path(path, r->job->folder, "best.h5"));
  ESP_TRY(esp_checkpoint_load(path, candidate, &info));
  esp_checkpoint_info_clear(&info);
  return evaluate(r, *candidate, ESP_VALIDATION, limit, NULL, validation);
}

/* Compares the model at the end and the best one before on equal terms. */
static esp_status choose_best(run *r, const esp_model *candidate, const esp_evaluation *validation) {
  esp_training_result *result = &r->result;
  const bool keeps = candidate && !(result->validation.accuracy > validation->accuracy);
  result->best_validation = keeps ? *validation : result->validation;
  if (keeps) {
    r->job->info->progress.best_accuracy = validation->accuracy;
    return ESP_OK;
  }
  take_as_best(r, &result->validation);
  return r->pruning ? ESP_OK : save(r, "best.h5");
}

static esp_status conclude_with(run *r, const esp_model *candidate, const esp_evaluation *validation) {
  esp_training_result *result = &r->result;
  ESP_TRY(choose_best(r, candidate, validation));
  ESP_TRY(save(r, ESP_LAST_CHECKPOINT));
  ESP_TRY(evaluate_now(r, ESP_TEST, r->job->final_examples, !has_validation(r), &result->final));
  result->best = result->final;
  if (r->job->info->progress.best_step == r->step) return ESP_OK;
  return evaluate(r, candidate, ESP_TEST, r->job->final_examples, NULL, &result->best);
}

/* The end: what was learnt is validated, then tested. */
static esp_status conclude(run *r) {
  esp_model *candidate = NULL;
  esp_evaluation validation = {0};
  ESP_TRY(close_window(r));
  if (has_validation(r)) ESP_TRY(evaluate_now(r, ESP_VALIDATION, r->job->final_examples, true, &r->result.validation));
  esp_status status = load_candidate(r, r->job->final_examples, &candidate, &validation);
  if (status == ESP_OK) status = conclude_with(r, candidate, &validation);
  esp_model_free(candidate);
  return status;
}

static esp_status do_step(run *r) {
  const esp_run_config *config = r->job->config;
  const double start = esp_seconds();
  const esp_batch *batch;
  ESP_TRY(esp_loader_next(r->loader, &batch));
  const esp_observer observer = esp_window_observer(&r->window);
  const esp_pass pass = {
      .training = true, .seed = config->training.seed, .step = (uint64_t)r->step, .observer = &observer};
  const double multiplier = esp_schedule_multiplier(&config->optimizer.schedule, r->step, r->steps);
  esp_step_result result;
  ESP_TRY(esp_training_step(r->job->model, r->optimizer, r->tape, batch,
                            &(esp_step_options){.pass = pass,
                                                .label_smoothing = config->training.label_smoothing,
                                                .learning_rate_multiplier = multiplier,
                                                .distillation = r->distillation},
                            &result));
  r->step++;
  if (r->pruning)
    esp_row_pruning_step(r->pruning, config->compression.beta,
                         esp_compression_share(&config->compression, r->step, r->steps));
  esp_window *w = &r->window;
  w->steps++;
  w->images += batch->count;
  w->loss += result.loss;
  w->task_loss += result.task_loss;
  w->correct += (double)result.correct;
  w->gradient_norm += result.gradient_norm;
  esp_window_add_losses(w, &result.auxiliary);
  r->images += batch->count;
  r->training_seconds += esp_seconds() - start;
  return ESP_OK;
}

/* What is due between two steps. */
static esp_status after_step(run *r) {
  const esp_training_config *config = &r->job->config->training;
  if (r->step % config->log_every == 0) ESP_TRY(close_window(r));
  esp_progress_step(&r->bar, r->step);
  if (epoch_of(r) + 1e-9 >= r->next_evaluation && r->step < r->steps) {
    ESP_TRY(evaluate_on_the_way(r));
    while (r->next_evaluation <= epoch_of(r) + 1e-9) r->next_evaluation += config->evaluate_every;
  }
  if (config->checkpoint_minutes > 0 && esp_seconds() - r->last_checkpoint > 60 * config->checkpoint_minutes)
    ESP_TRY(save(r, ESP_LAST_CHECKPOINT));
  if (!r->job->stop || !*r->job->stop) return ESP_OK;
  ESP_TRY(close_window(r));
  ESP_TRY(save(r, ESP_LAST_CHECKPOINT));
  return esp_fail(ESP_ERR_INTERRUPTED, "stopped after step %lld of %lld", (long long)r->step, (long long)r->steps);
}

static esp_status explain_not_finite(const run *r) {
  if (r->saved_step < 0) return esp_fail(ESP_ERR_NOT_FINITE, "%s. There is no checkpoint yet", esp_error_message());
  return esp_fail(ESP_ERR_NOT_FINITE, "%s. %s/" ESP_LAST_CHECKPOINT " holds the state after step %lld",
                  esp_error_message(), r->job->folder, (long long)r->saved_step);
}

static esp_status loop(run *r) {
  r->bar = esp_progress_start(r->job->quiet, r->step, r->steps);
  r->last_checkpoint = esp_seconds();
  restart_window(r);
  while (r->next_evaluation <= epoch_of(r) + 1e-9) r->next_evaluation += r->job->config->training.evaluate_every;
  esp_status status = ESP_OK;
  while (status == ESP_OK && r->step < r->steps) {
    status = do_step(r);
    if (status == ESP_OK) status = after_step(r);
  }
  if (status == ESP_OK) status = conclude(r);
  esp_progress_end(&r->bar);
  return status == ESP_ERR_NOT_FINITE ? explain_not_finite(r) : status;
}

static esp_status check_resumed(run *r) {
  const esp_progress *p = &r->job->info->progress;
  if (p->seed != r->job->config->training.seed)
    return esp_fail(ESP_ERR_CONFIG, "the run was started with seed %llu, not %llu; a resumed run keeps its settings",
                    (unsigned long long)p->seed, (unsigned long long)r->job->config->training.seed);
  if (r->steps < p->steps)
    return esp_fail(ESP_ERR_CONFIG,
                    "the run was planned for %lld steps and has done %lld, and now it is to have %lld; a run can be "
                    "lengthened, but not shortened",
                    (long long)p->steps, (long long)r->step, (long long)r->steps);
  if (r->pruning && r->steps > p->steps)
    return esp_fail(ESP_ERR_CONFIG,
                    "the run was planned for %lld steps, not %lld; rows of its experts go by the share of the run that "
                    "is done, so that it cannot be lengthened",
                    (long long)p->steps, (long long)r->steps);
  r->lengthened = r->steps > p->steps;
  return ESP_OK;
}

/* At its end the best model was chosen on all images perhaps. From now on it competes with evaluations on the way
 * again, and so it is evaluated as they are. */
static esp_status measure_best_again(run *r) {
  esp_model *best = NULL;
  esp_evaluation validation;
  const int64_t limit = r->job->config->training.evaluate_examples;
  esp_status status = load_candidate(r, limit, &best, &validation);
  if (status == ESP_OK && !best) status = evaluate(r, r->job->model, ESP_VALIDATION, limit, NULL, &validation);
  if (status == ESP_OK) r->job->info->progress.best_accuracy = validation.accuracy;
  esp_model_free(best);
  return status;
}

/* The history and, at once, the checkpoint say that there is more to come. */
static esp_status lengthen(run *r) {
  const esp_progress *p = &r->job->info->progress;
  esp_history_entry *entry = history_of(r);
  const size_t used = strlen(entry->detail);
  if (r->step == p->steps && p->best_accuracy >= 0 && has_validation(r)) ESP_TRY(measure_best_again(r));
  snprintf(entry->detail + used, sizeof entry->detail - used, "; lengthened after step %lld from %lld to %lld steps",
           (long long)r->step, (long long)p->steps, (long long)r->steps);
  return save(r, ESP_LAST_CHECKPOINT);
}

static esp_status take_teacher(run *r) {
  const esp_training_job *job = r->job;
  const char *expected = history_of(r)->reference, *found = job->teacher ? job->teacher_info->digest : "";
  if (job->resume_from && strcmp(expected, found) != 0)
    return esp_fail(ESP_ERR_MISMATCH,
                    "the run was started with %s%s, but now there is %s%s; a resumed run keeps its teacher",
                    *expected ? "the teacher " : "no teacher", expected, *found ? "the teacher " : "no teacher", found);
  if (!job->teacher) return ESP_OK;
  ESP_TRY(esp_distillation_check(job->teacher, job->teacher_info, &job->model->config, &job->info->normalisation));
  memcpy(history_of(r)->reference, found, sizeof history_of(r)->reference);
  return esp_distillation_create(&r->distillation, &job->config->distillation, job->teacher);
}

esp_status esp_training_freeze(const esp_training_config *config, const esp_model *model) {
  ESP_TRY(esp_parameters_freeze(model->parameters, config->freeze));
  if (esp_parameters_can_train(model->parameters)) return ESP_OK;
  return esp_fail(ESP_ERR_CONFIG,
                  "training.freeze is \"%s\", which leaves nothing to train; let it leave something out",
                  config->freeze);
}

static esp_status prepare(run *r) {
  const esp_training_job *job = r->job;
  const esp_run_config *config = job->config;
  const esp_dataset_info *data = esp_dataset_info_of(job->dataset);
  ESP_TRY(esp_check_data_fits(&job->model->config, job->dataset, true));
  ESP_TRY(esp_dataset_check(job->dataset, NULL, 0));
  ESP_TRY(esp_augmentation_check(&config->augmentation, data->height, data->width));
  ESP_TRY(esp_training_check(&config->training));
  ESP_TRY(esp_check_held_out(job->dataset, config->data.validation));
  ESP_TRY(esp_training_freeze(&config->training, job->model));
  ESP_TRY(take_teacher(r));
  ESP_TRY(esp_optimizer_create(&r->optimizer, &config->optimizer, job->model->parameters));
  ESP_TRY(esp_row_pruning_create(&r->pruning, job->model));
  if (job->resume_from) {
    ESP_TRY(esp_checkpoint_load_optimizer(job->resume_from, r->optimizer));
    r->step = r->saved_step = job->info->progress.step;
  } else {
    job->info->progress = (esp_progress){.best_accuracy = -1};
    ESP_TRY(esp_whiten(job->model, job->dataset, &job->info->normalisation, config->training.seed));
  }
  const esp_loader_options options = {.batch = config->training.batch,
                                      .shuffle = true,
                                      .drop_last = data->count[ESP_TRAIN] >= config->training.batch,
                                      .augmentation = config->augmentation,
                                      .normalisation = job->info->normalisation,
                                      .seed = config->training.seed};
  ESP_TRY(esp_loader_create(&r->loader, job->dataset, ESP_TRAIN, &options, r->step));
  r->batches_per_epoch = esp_loader_batches_per_epoch(r->loader);
  r->steps = esp_training_steps(&config->training, r->batches_per_epoch);
  if (job->resume_from) ESP_TRY(check_resumed(r));
  r->tape = esp_tape_create();
  if (!r->tape) return ESP_ERR_MEMORY;
  esp_tape_set_precision(r->tape, config->training.precision);
  ESP_TRY(esp_metrics_open(&r->metrics, job->folder, job->model, r->step));
  const esp_routing_alarm alarm = {config->training.alarm_share, config->training.alarm_evaluations};
  const int64_t seen = r->step < r->steps ? r->step : r->steps - 1; /* the evaluation at the end is done again */
  return esp_routing_log_open(&r->routing, job->folder, job->model, &alarm, seen);
}

esp_status esp_train(const esp_training_job *job, esp_training_result *result) {
  run r = {.job = job, .saved_step = -1};
  const double start = esp_seconds();
  esp_status status = prepare(&r);
  if (status == ESP_OK && r.lengthened) status = lengthen(&r);
  if (status == ESP_OK) status = loop(&r);
  *result = r.result;
  result->best_step = job->info->progress.best_step;
  result->step = r.step;
  result->steps = r.steps;
  result->seconds = esp_seconds() - start;
  result->images_per_second = r.training_seconds > 0 ? (double)r.images / r.training_seconds : 0;
  result->distillation = r.last_distillation;
  result->step_memory = r.tape ? esp_arena_capacity(esp_tape_arena(r.tape)) : 0;
  const esp_status metrics = esp_metrics_close(r.metrics), routing = esp_routing_log_close(r.routing);
  esp_distillation_free(r.distillation);
  esp_row_pruning_free(r.pruning);
  esp_tape_free(r.tape);
  esp_loader_close(r.loader);
  esp_optimizer_free(r.optimizer);
  return status != ESP_OK ? status : metrics != ESP_OK ? metrics : routing;
}
