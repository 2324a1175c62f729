/* evaluate: how good a model is. */
#include "commands_internal.h"

#include <espalier/core.h>
#include <espalier/train.h>

#include <stdio.h>
#include <string.h>

static json_t *evaluation_json(const loaded *l, const esp_dataset *dataset, const esp_evaluation_options *options,
                               const esp_evaluation *e) {
  return json_pack("{s:s, s:s, s:s, s:f, s:f, s:I, s:f, s:f, s:i, s:s, s:s}", "checkpoint", l->path, "data",
                   esp_dataset_info_of(dataset)->name, "split", esp_split_text(options->split), "accuracy", e->accuracy,
                   "loss", e->loss, "examples", (json_int_t)e->examples, "seconds", e->seconds, "images_per_second",
                   (double)e->examples / e->seconds, "threads", esp_threads(), "blas_kernel", esp_blas_kernel(),
                   "product_kernel", esp_gemm_kernel());
}

static int show_evaluation(const arguments *a, const loaded *l, const esp_dataset *dataset,
                           const esp_evaluation_options *options, const esp_evaluation *e) {
  if (a->json) {
    json_t *json = evaluation_json(l, dataset, options, e);
    if (json && a->flip)
      json_object_update_new(json,
                             json_pack("{s:f, s:f}", "flip_accuracy", e->flip_accuracy, "flip_loss", e->flip_loss));
    return print_json(json);
  }
  printf("%s on the %s split of %s: accuracy %.2f %%, loss %.4f, %lld images, %.0f images/s\n", esp_shown(l->path),
         esp_split_text(options->split), esp_dataset_info_of(dataset)->name, 100 * e->accuracy, e->loss,
         (long long)e->examples, (double)e->examples / e->seconds);
  if (a->flip)
    printf("with mirror images, mean of both logits: accuracy %.2f %%, loss %.4f\n", 100 * e->flip_accuracy,
           e->flip_loss);
  return EXIT_DONE;
}

/* What --logits writes. */
typedef struct logit_table {
  const esp_dataset *dataset;
  esp_split_name split;
  int64_t images, classes;
  float *logits;   /* [images, classes] */
  int64_t *places; /* [images] in the split */
} logit_table;

static void print_logits(const void *context, FILE *file) {
  const logit_table *t = context;
  fputs("image,label", file);
  for (int64_t c = 0; c < t->classes; c++) fprintf(file, ",logit.%lld", (long long)c);
  fputc('\n', file);
  for (int64_t i = 0; i < t->images; i++) {
    const int64_t place = t->places[i];
    fprintf(file, "%lld,%d", (long long)place, (int)esp_dataset_label(t->dataset, t->split, place));
    for (int64_t c = 0; c < t->classes; c++) fprintf(file, ",%.9g", (double)t->logits[i * t->classes + c]);
    fputc('\n', file);
  }
}

static esp_status write_logits(const char *path, const logit_table *table) {
  const char *slash = strrchr(path, '/');
  char folder[ESP_PATH_SIZE] = ".";
  if (slash) snprintf(folder, sizeof folder, "%.*s", (int)(slash - path), path);
  return esp_file_compose(folder, slash ? slash + 1 : path, print_logits, table);
}

static esp_status evaluate(const arguments *a, const loaded *l, const esp_dataset *dataset,
                           esp_evaluation_options *options, esp_evaluation *evaluation) {
  if (!a->logits) return esp_evaluate(l->model, dataset, &l->info.normalisation, options, evaluation);
  ESP_TRY(esp_output_check(a->logits));
  logit_table table = {.dataset = dataset, .split = options->split, .classes = l->model->config.classes};
  table.images = esp_evaluated_images(esp_dataset_info_of(dataset), options);
  table.logits = esp_alloc((size_t)(table.images * table.classes), sizeof *table.logits);
  table.places = esp_alloc((size_t)table.images, sizeof *table.places);
  options->logits = table.logits;
  options->places = table.places;
  esp_status status = table.logits && table.places ? ESP_OK : ESP_ERR_MEMORY;
  if (status == ESP_OK) status = esp_evaluate(l->model, dataset, &l->info.normalisation, options, evaluation);
  if (status == ESP_OK) status = write_logits(a->logits, &table);
  esp_free(table.logits);
  esp_free(table.places);
  return status;
}

static int run_evaluate(const arguments *a) {
  loaded l = {.model = NULL};
  esp_dataset *dataset = NULL;
  esp_routing_trace *replay = NULL;
  esp_evaluation_options options;
  esp_evaluation evaluation;
  esp_status status = load(&l, a->operands[0]);
  if (status == ESP_OK) status = open_part(&l, a, &dataset, &options);
  if (status == ESP_OK && a->replay) status = esp_routing_trace_load(&replay, a->replay);
  options.replay = replay;
  options.flip = a->flip;
  if (status == ESP_OK) status = evaluate(a, &l, dataset, &options, &evaluation);
  const int code = status == ESP_OK ? show_evaluation(a, &l, dataset, &options, &evaluation) : report_failure(status);
  esp_routing_trace_free(replay);
  esp_dataset_close(dataset);
  unload(&l);
  return code;
}

/* --- help ------------------------------------------------------------------------------------------------------ */

static const command_option options[] = {
    {"--data", NULL},   {"--validation", NULL}, {"--split", NULL}, {"--limit", NULL},
    {"--replay", NULL}, {"--logits", NULL},     {"--flip", NULL},  {NULL, NULL},
};

const command evaluate_command = {
    .name = "evaluate",
    .usage = "evaluate RUN|CKPT --data DATA [--flip] [--replay TRACE.h5] [--logits FILE.csv]",
    .summary = "Accuracy and loss on a split",
    .details = "--replay: tokens go where a trace of `measure --trace` says, in this model or in another one with as "
               "many experts; gates are still the routers' own.\n"
               "--logits: a row for each image, its number in the split, its label, and the logit of each class (of an "
               "E3 the logarithm of its members' mean probability).",
    .example = "evaluate runs/finetuned --data synthetic:narrow --json",
    .options = options,
    .least_operands = 1,
    .most_operands = 1,
    .run = run_evaluate,
};
