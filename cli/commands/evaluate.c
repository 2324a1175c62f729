/* evaluate: how good a model is. */
#include "commands_internal.h"

#include <espalier/core.h>
#include <espalier/train.h>

#include <stdio.h>
#include <string.h>

enum { WORST_CLASSES = 3 };

/* What `evaluate` holds. */
typedef struct evaluating {
  esp_trained l;
  esp_dataset *dataset;
  esp_routing_trace *replay;
  esp_evaluation_options options;
  esp_evaluation evaluation;
  esp_predictions predictions, flip_predictions;
  char folder[ESP_PATH_SIZE]; /* of the tables; "": none are written */
} evaluating;

/* NULL if memory is short. */
static json_t *evaluation_json(const evaluating *v) {
  const esp_evaluation *e = &v->evaluation;
  json_t *json = json_pack("{s:s, s:s, s:s, s:f, s:f, s:I, s:f, s:f, s:i, s:s, s:s}", "checkpoint", v->l.path, "data",
                           esp_dataset_info_of(v->dataset)->name, "split", esp_split_text(v->options.split), "accuracy",
                           e->accuracy, "loss", e->loss, "examples", (json_int_t)e->examples, "seconds", e->seconds,
                           "images_per_second", (double)e->examples / e->seconds, "threads", esp_threads(),
                           "blas_kernel", esp_blas_kernel(), "product_kernel", esp_gemm_kernel());
  bool is_whole = json && esp_predictions_put(&v->predictions, "", json);
  if (is_whole && v->options.flip)
    is_whole = json_object_update_new(
                   json, json_pack("{s:f, s:f}", "flip_accuracy", e->flip_accuracy, "flip_loss", e->flip_loss)) == 0 &&
               esp_predictions_put(&v->flip_predictions, "flip_", json);
  if (is_whole) return json;
  json_decref(json);
  return NULL;
}

static int show_evaluation(const arguments *a, const evaluating *v) {
  if (a->json) return print_json(evaluation_json(v));
  const esp_evaluation *e = &v->evaluation;
  printf("%s on the %s split of %s: accuracy %.2f %%, loss %.4f, %lld images, %.0f images/s\n", esp_shown(v->l.path),
         esp_split_text(v->options.split), esp_dataset_info_of(v->dataset)->name, 100 * e->accuracy, e->loss,
         (long long)e->examples, (double)e->examples / e->seconds);
  esp_predictions_print(&v->predictions, WORST_CLASSES, stdout);
  if (a->flip) {
    printf("with mirror images, mean of both logits: accuracy %.2f %%, loss %.4f\n", 100 * e->flip_accuracy,
           e->flip_loss);
    esp_predictions_print(&v->flip_predictions, WORST_CLASSES, stdout);
  }
  if (*v->folder) printf("%s: evaluation.json, classes.csv, confusion.csv, calibration.csv\n", esp_shown(v->folder));
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
  if (slash) snprintf(folder, sizeof folder, "%.*s", slash > path ? (int)(slash - path) : 1, path);
  return esp_file_compose(folder, slash ? slash + 1 : path, print_logits, table);
}

static esp_status evaluate_model(evaluating *v) {
  return esp_evaluate(v->l.model, v->dataset, &v->l.info.normalisation, &v->options, &v->evaluation);
}

static esp_status evaluate_with_logits(evaluating *v, const char *path) {
  ESP_TRY(esp_output_check(path));
  logit_table table = {.dataset = v->dataset, .split = v->options.split, .classes = v->l.model->config.classes};
  table.images = esp_evaluated_images(esp_dataset_info_of(v->dataset), &v->options);
  table.logits = esp_alloc((size_t)(table.images * table.classes), sizeof *table.logits);
  table.places = esp_alloc((size_t)table.images, sizeof *table.places);
  v->options.logits = table.logits;
  v->options.places = table.places;
  esp_status status = table.logits && table.places ? ESP_OK : ESP_ERR_MEMORY;
  if (status == ESP_OK) status = evaluate_model(v);
  if (status == ESP_OK) status = write_logits(path, &table);
  esp_free(table.logits);
  esp_free(table.places);
  return status;
}

/* Beside a run stands only what is its own and whole. A run that cannot be written to can still be evaluated. */
static esp_status choose_folder(evaluating *v, const arguments *a) {
  char evaluated[ESP_PATH_SIZE];
  if (a->out) {
    if (strlen(a->out) >= sizeof v->folder)
      return esp_fail(ESP_ERR_USAGE, "--out is longer than %d letters", ESP_PATH_SIZE - 1);
    strcpy(v->folder, a->out);
    return take_folder(v->folder, "evaluate");
  }
  if (!is_folder(a->operands[0]) || a->limit || a->replay) return ESP_OK;
  ESP_TRY(esp_folder_path(evaluated, a->operands[0], "evaluated"));
  ESP_TRY(esp_folder_path(v->folder, evaluated, esp_split_text(v->options.split)));
  if (take_folder(v->folder, "evaluate") == ESP_OK) return ESP_OK;
  if (!a->quiet)
    fprintf(stderr, "no tables are written: %s; --out FOLDER puts them elsewhere\n", esp_shown(esp_error_message()));
  *v->folder = '\0';
  return ESP_OK;
}

/* Tables of an earlier evaluation would pass for this one's. */
static esp_status remove_flipped(const char *folder) {
  static const char *const names[] = {"flip_classes.csv", "flip_confusion.csv", "flip_calibration.csv"};
  char path[ESP_PATH_SIZE];
  for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
    ESP_TRY(esp_folder_path(path, folder, names[i]));
    ESP_TRY(esp_file_delete(path));
  }
  return ESP_OK;
}

static esp_status write_tables(const evaluating *v) {
  ESP_TRY(esp_predictions_write(&v->predictions, v->folder, ""));
  ESP_TRY(v->options.flip ? esp_predictions_write(&v->flip_predictions, v->folder, "flip_")
                          : remove_flipped(v->folder));
  return esp_json_write(v->folder, "evaluation.json", evaluation_json(v), ESP_JSON_DIGITS);
}

static esp_status start_predictions(evaluating *v) {
  const esp_dataset_info *data = esp_dataset_info_of(v->dataset);
  const int classes = v->l.model->config.classes;
  ESP_TRY(esp_predictions_start(&v->predictions, classes, data->class_names));
  ESP_TRY(esp_predictions_start(&v->flip_predictions, classes, data->class_names));
  v->options.predictions = &v->predictions;
  v->options.flip_predictions = &v->flip_predictions;
  return ESP_OK;
}

static esp_status evaluate(evaluating *v, const arguments *a) {
  ESP_TRY(esp_trained_load(&v->l, a->operands[0]));
  ESP_TRY(open_part(&v->l, a, &v->dataset, &v->options));
  if (a->replay) ESP_TRY(esp_routing_trace_load(&v->replay, a->replay));
  v->options.replay = v->replay;
  v->options.flip = a->flip;
  ESP_TRY(start_predictions(v));
  ESP_TRY(choose_folder(v, a));
  ESP_TRY(a->logits ? evaluate_with_logits(v, a->logits) : evaluate_model(v));
  return *v->folder ? write_tables(v) : ESP_OK;
}

static int run_evaluate(const arguments *a) {
  evaluating v = {.dataset = NULL};
  const esp_status status = evaluate(&v, a);
  const int code = status == ESP_OK ? show_evaluation(a, &v) : report_failure(status);
  esp_predictions_clear(&v.predictions);
  esp_predictions_clear(&v.flip_predictions);
  esp_routing_trace_free(v.replay);
  esp_dataset_close(v.dataset);
  esp_trained_clear(&v.l);
  return code;
}

/* --- help ------------------------------------------------------------------------------------------------------ */

static const command_option options[] = {
    {"--data", NULL},   {"--validation", NULL},
    {"--split", NULL},  {"--limit", NULL},
    {"--replay", NULL}, {"--logits", NULL},
    {"--flip", NULL},   {"--out", "the folder for the tables (default: RUN/evaluated/SPLIT)"},
    {NULL, NULL},
};

const command evaluate_command = {
    .name = "evaluate",
    .usage = "evaluate RUN|CKPT --data DATA [--split SPLIT] [--flip] [--replay TRACE.h5] [--logits FILE.csv] [--out "
             "FOLDER]",
    .summary = "Accuracy, loss, calibration and confusions on a split",
    .details = "Besides accuracy and loss: top-5 accuracy (with more than 5 classes), the expected calibration error "
               "over 15 bins of the top probability (arXiv 1706.04599), the accuracy of each class, and which classes "
               "are taken for which. classes.csv, confusion.csv (row: the label, column: the prediction), "
               "calibration.csv and evaluation.json go to RUN/evaluated/SPLIT or --out; of a part (--limit) or by "
               "foreign routes (--replay) to --out only.\n"
               "--replay: tokens go where a trace of `measure --trace` says, in this model or in another one with as "
               "many experts; gates are still the routers' own.\n"
               "--logits: a row for each image, its number in the split, its label, and the logit of each class (of an "
               "E3 the logarithm of its members' mean probability).",
    .example = "evaluate runs/finetuned --data synthetic:narrow --json",
    .options = options,
    .least_operands = 1,
    .most_operands = 1,
    .run = run_evaluate,
};
