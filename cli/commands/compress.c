/* compress: factors experts, prunes rows of S while finetuning or without, keeps what is left. */
#include "training_internal.h"

#include <espalier/core.h>
#include <espalier/cost.h>
#include <espalier/prune.h>
#include <espalier/stable_rank.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ZERO_SHOT_SAMPLES = 512, ZERO_SHOT_BATCH = 16 };

/* --- settings ---------------------------------------------------------------------------------------------------- */

/* What the paper finetunes with (arXiv 2310.01334, appendix A and code). Its learning rates are 3e-5 to 3e-4. */
static void recommend(esp_run_config *config, const esp_model *model) {
  esp_router_config *router = &config->model.moe.router;
  esp_optimizer_config *o = &config->optimizer;
  router->noise = 0;
  router->balance_weight = router->importance_weight = router->load_weight = router->z_weight = router->entropy_weight =
      0;
  config->model.dropout = 0;
  *o = (esp_optimizer_config){.kind = ESP_OPTIMIZER_ADAMW,
                              .learning_rate = 3e-4,
                              .router_rate = 1,
                              .weight_decay = 0.01,
                              .momentum = o->momentum,
                              .beta1 = 0.9,
                              .beta2 = 0.98,
                              .epsilon = 1e-6,
                              .clip_norm = o->clip_norm,
                              .schedule = {.kind = ESP_SCHEDULE_LINEAR, .warmup = 0.05}};
  config->training.epochs /= 10;
  const bool has_router = esp_model_moe_count(model) > 0 && esp_model_moe(model, 0)->router;
  snprintf(config->training.freeze, sizeof config->training.freeze, "%s", has_router ? "*.router" : "");
}

static esp_status settle(training *t, const arguments *a, const esp_trained *source) {
  esp_run_config base;
  char *text = NULL;
  ESP_TRY(esp_run_config_recall(&base, source->path, source->info.run_config));
  base.model = source->model->config;
  recommend(&base, source->model);
  ESP_TRY(esp_run_config_save(&text, &base));
  const esp_status status = esp_run_config_parse(&t->config, source->path, text, a->overrides, a->override_count);
  esp_free(text);
  return status;
}

static esp_status start_compressing(training *t, const arguments *a) {
  ESP_TRY(start_from_model(t, a, settle));
  esp_model *factored;
  ESP_TRY(esp_factor_experts(&factored, t->trained.model, &t->config.compression));
  esp_model_free(t->trained.model);
  t->trained.model = factored;
  esp_history_entry *entry = &t->trained.info.history[t->trained.info.history_count - 1];
  const size_t length = strlen(entry->detail);
  snprintf(entry->detail + length, sizeof entry->detail - length, ", rank %d, keep %g%s", t->config.compression.rank,
           t->config.compression.keep, a->zero_shot ? ", not trained" : "");
  return ESP_OK;
}

static esp_status prune_untrained(training *t, esp_training_result *result) {
  long long samples;
  ESP_TRY(whole_number("--calibration", t->arguments->calibration, 1, INT64_MAX, ZERO_SHOT_SAMPLES, &samples));
  const esp_zero_shot_options options = {samples, ZERO_SHOT_BATCH, t->config.training.seed};
  const double start = esp_seconds();
  *result = (esp_training_result){.step = 0};
  ESP_TRY(esp_prune_rows_zero_shot(t->trained.model, t->dataset, &t->trained.info.normalisation, &t->config.compression,
                                   &options));
  result->seconds = esp_seconds() - start;
  result->images_per_second = (double)samples / result->seconds;
  return ESP_OK;
}

/* --- what is left ------------------------------------------------------------------------------------------------ */

/* Before and after. */
typedef struct outcome {
  esp_trained source;
  esp_model *compact;
  esp_stable_ranks *before, *after;
  esp_evaluation was; /* of the source; examples 0 if it does not know the data's classes */
  esp_model_cost cost_before, cost_after;
} outcome;

static esp_status load_source(outcome *o, const training *t) {
  const char *parent = t->trained.info.history[t->trained.info.history_count - 1].parent;
  ESP_TRY(esp_trained_load(&o->source, t->arguments->operands[0]));
  if (strcmp(o->source.info.digest, parent) == 0) return ESP_OK;
  return esp_fail(ESP_ERR_MISMATCH, "the run was started from the model %s, but %s is %s; give the one it came from",
                  parent, o->source.path, o->source.info.digest);
}

static esp_status evaluate(const training *t, const esp_model *model, esp_split_name split,
                           esp_evaluation *evaluation) {
  const esp_evaluation_options options = {.split = split};
  return esp_evaluate(model, t->dataset, &t->trained.info.normalisation, &options, evaluation);
}

static esp_status measure(outcome *o, const training *t, esp_training_result *result) {
  const bool knows = o->source.model->config.classes == o->compact->config.classes;
  if (knows) ESP_TRY(evaluate(t, o->source.model, ESP_TEST, &o->was));
  ESP_TRY(evaluate(t, o->compact, ESP_TEST, &result->final));
  if (esp_dataset_info_of(t->dataset)->count[ESP_VALIDATION] > 0)
    ESP_TRY(evaluate(t, o->compact, ESP_VALIDATION, &result->validation));
  result->best = result->final; /* of the model that is kept */
  result->best_validation = result->validation;
  result->best_step = result->step;
  esp_model_cost_of(o->source.model, &o->cost_before);
  esp_model_cost_of(o->compact, &o->cost_after);
  ESP_TRY(esp_stable_ranks_create(&o->before, o->source.model));
  return esp_stable_ranks_create(&o->after, o->compact);
}

static esp_status write_ranks(const outcome *o, const char *folder) {
  char path[ESP_PATH_SIZE], *text = NULL;
  size_t size;
  ESP_TRY(esp_folder_path(path, folder, "compression.csv"));
  FILE *file = open_memstream(&text, &size);
  if (!file) return ESP_ERR_MEMORY;
  fputs("layer,expert,matrix,out,in,rank,sparse_rows,stable_rank_before,stable_rank_after\n", file);
  for (int64_t i = 0; i < o->after->count; i++) {
    const esp_matrix_rank *r = &o->after->of[i];
    fprintf(file, "%s,%d,%s,%lld,%lld,%d,%lld,%.6g,%.6g\n", r->layer, r->expert, r->matrix, (long long)r->out,
            (long long)r->in, r->rank, (long long)r->sparse_rows, o->before->of[i].stable_rank, r->stable_rank);
  }
  const bool written = fclose(file) == 0;
  const esp_status status = written ? esp_file_write(path, text) : ESP_ERR_MEMORY;
  free(text);
  return status;
}

static double mean_rank(const esp_stable_ranks *ranks) {
  double sum = 0;
  for (int64_t i = 0; i < ranks->count; i++) sum += ranks->of[i].stable_rank;
  return sum / (double)ranks->count;
}

static void tell(const outcome *o, training *t, const esp_training_result *result) {
  const char *target = t->resume_from;
  const double bytes_before = (double)file_size(o->source.path), bytes = (double)file_size(target);
  t->more = json_pack("{s:f, s:I, s:I, s:f, s:f, s:I, s:I, s:f, s:f, s:i, s:f}", "accuracy_before", o->was.accuracy,
                      "parameters_before", (json_int_t)o->cost_before.parameters, "parameters",
                      (json_int_t)o->cost_after.parameters, "flops_per_image_before", o->cost_before.flops,
                      "flops_per_image", o->cost_after.flops, "bytes_before", (json_int_t)bytes_before, "bytes",
                      (json_int_t)bytes, "mean_stable_rank_before", mean_rank(o->before), "mean_stable_rank",
                      mean_rank(o->after), "rank", t->config.compression.rank, "keep", t->config.compression.keep);
  if (t->arguments->json) return;
  if (o->was.examples)
    printf("test accuracy: %.2f %% before, %.2f %% after\n", 100 * o->was.accuracy, 100 * result->final.accuracy);
  printf("parameters: %.3f M of %.3f M left; %.1f MFLOP an image where there were %.1f\n",
         1e-6 * (double)o->cost_after.parameters, 1e-6 * (double)o->cost_before.parameters, 1e-6 * o->cost_after.flops,
         1e-6 * o->cost_before.flops);
  printf("on disk, compressed: %.2f MB; the original %.2f MB, with its optimiser if that was kept\n", 1e-6 * bytes,
         1e-6 * bytes_before);
  printf("in memory: %.2f MB of parameters; the original %.2f MB\n",
         1e-6 * ESP_PARAMETER_BYTES * (double)o->cost_after.parameters,
         1e-6 * ESP_PARAMETER_BYTES * (double)o->cost_before.parameters);
  printf("stable rank of the experts' matrices: %.2f on average before, %.2f after; each in %s/compression.csv\n",
         mean_rank(o->before), mean_rank(o->after), t->arguments->out);
}

/* What is left holds no rows that could still be pruned. */
static bool is_finished(const training *t) {
  for (int i = 0; i < esp_model_moe_count(t->trained.model); i++)
    if (esp_model_moe(t->trained.model, i)->layout.pruning) return false;
  return true;
}

/* Of a run that ended before its results were written the model is compact already. */
static esp_status keep_compact(outcome *o, training *t, esp_training_result *result) {
  ESP_TRY(load_source(o, t));
  if (is_finished(t)) o->compact = t->trained.model;
  else ESP_TRY(esp_remove_zero_rows(&o->compact, t->trained.model));
  ESP_TRY(measure(o, t, result));
  ESP_TRY(write_ranks(o, t->arguments->out));
  ESP_TRY(esp_checkpoint_save(t->resume_from, o->compact, NULL, &t->trained.info, t->config.training.compression));
  tell(o, t, result);
  return ESP_OK;
}

static esp_status complete(training *t, esp_training_result *result) {
  outcome o = {.compact = NULL};
  const esp_status status = keep_compact(&o, t, result);
  esp_stable_ranks_free(o.before);
  esp_stable_ranks_free(o.after);
  if (o.compact != t->trained.model) esp_model_free(o.compact);
  esp_trained_clear(&o.source);
  return status;
}

/* --- the command ------------------------------------------------------------------------------------------------- */

/* Options that are settings too go before the --set of the command line, which so have the last word. */
static esp_status add_settings(arguments *a) {
  static char texts[3][600];
  const char *const keys[] = {"rank", "keep", "exclude"}, *const values[] = {a->rank, a->share, a->exclude};
  size_t count = 0;
  const char *all[MAX_OVERRIDES];
  for (int i = 0; i < 3; i++) {
    if (!values[i]) continue;
    if (snprintf(texts[i], sizeof texts[i], "compression.%s=%s", keys[i], values[i]) >= (int)sizeof texts[i])
      return esp_fail(ESP_ERR_USAGE, "--%s is too long", keys[i]);
    all[count++] = texts[i];
  }
  if (count + a->override_count > MAX_OVERRIDES)
    return esp_fail(ESP_ERR_USAGE, "there are more than %d settings on the command line", MAX_OVERRIDES);
  for (size_t i = 0; i < a->override_count; i++) all[count++] = a->overrides[i];
  memcpy(a->overrides, all, count * sizeof *all);
  a->override_count = count;
  return ESP_OK;
}

static esp_status check_arguments(const arguments *a) {
  long long samples;
  ESP_TRY(whole_number("--calibration", a->calibration, 1, INT64_MAX, ZERO_SHOT_SAMPLES, &samples));
  if (a->zero_shot && (a->resume || a->teacher))
    return esp_fail(ESP_ERR_USAGE, "--zero-shot trains nothing, so that %s makes no sense",
                    a->resume ? "--resume" : "--teacher");
  if (a->calibration && !a->zero_shot)
    return esp_fail(ESP_ERR_USAGE, "--calibration is for --zero-shot; finetuning sees all training images");
  return ESP_OK;
}

static int run_compress(const arguments *given) {
  arguments a = *given;
  const recipe r = {.action = "compress",
                    .start = start_compressing,
                    .work = a.zero_shot ? prune_untrained : NULL,
                    .finished = is_finished,
                    .complete = complete};
  esp_status status = check_arguments(&a);
  if (status == ESP_OK) status = add_settings(&a);
  return status == ESP_OK ? run_training(&a, &r) : report_failure(status);
}

/* --- help ------------------------------------------------------------------------------------------------------ */

static const command_option options[] = {
    {"--data", NULL},
    {"--out", "the folder of the run"},
    {"--rank", NULL},
    {"--share", NULL},
    {"--exclude", "layers that stay as they are, e.g. \"blocks.3.*,blocks.5.*\""},
    {"--zero-shot", NULL},
    {"--calibration", "of --zero-shot: training images that tell which rows matter (default 512)"},
    {"--teacher", NULL},
    {"--set", NULL},
    {"--resume", NULL},
    {"--overwrite", NULL},
    {"--new-head", NULL},
    {"--seed", "overrides training.seed"},
    {NULL, NULL},
};

const command compress_command = {
    .name = "compress",
    .usage = "compress RUN|CKPT --data DATA --out RUN [--rank R] [--share P] [--teacher RUN|CKPT] [--set "
             "KEY=VALUE]... [--resume]\n"
             "compress RUN|CKPT --data DATA --out RUN --zero-shot [--rank R] [--share P] [--calibration N]",
    .summary = "Factors experts into low rank and sparse rows, and prunes the rows while finetuning (MC-SMoE)",
    .details =
        "Each matrix of an expert becomes U V + S by singular value decomposition (arXiv 2310.01334): rank R "
        "(32), S the rest. While U, V and S are finetuned, rows of S go, the least important of all layers "
        "first, until the share P (0.1) is left: none before compression.start (0.04) of the steps, all by "
        "compression.finish (0.16) before the end. The checkpoint holds only what is left. Best after merging; "
        "--exclude leaves layers as they are; the experts' stable ranks before and after go to compression.csv.\n"
        "Settings are the model's with the paper's for finetuning: routers frozen, no auxiliary losses, no "
        "noise, no dropout, AdamW (0.9, 0.98), linear decay, learning rate 3e-4, a tenth of the epochs; --set "
        "goes on top, and --teacher with the model from before recommends itself. With --zero-shot nothing is "
        "trained: --calibration (512) images tell which rows matter.",
    .example = "compress runs/finetuned --data synthetic:narrow --rank 8 --share 0.1 --teacher runs/finetuned --out "
               "runs/small",
    .options = options,
    .least_operands = 1,
    .most_operands = 1,
    .run = run_compress,
};
