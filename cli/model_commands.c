/* evaluate, measure and inspect: what a model is and does. */
#include "commands_internal.h"

#include <espalier/core.h>
#include <espalier/measure.h>
#include <espalier/train.h>

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

enum { EVALUATION_BATCH = 128 };

/* Opens --data, which must suit the model, and reads which part of it to look at. */
static esp_status open_part(const loaded *l, const arguments *a, esp_dataset **dataset,
                            esp_evaluation_options *options) {
  long long limit;
  *options = (esp_evaluation_options){.batch = EVALUATION_BATCH};
  ESP_TRY(parse_split(a, &options->split));
  ESP_TRY(whole_number("--limit", a->limit, 1, INT64_MAX, 0, &limit));
  ESP_TRY(open_data(dataset, a));
  const int64_t count = esp_dataset_info_of(*dataset)->count[options->split];
  options->limit = limit < count ? limit : 0;
  return esp_check_data_fits(&l->model->config, *dataset, true);
}

static json_t *evaluation_json(const loaded *l, const esp_dataset *dataset, const esp_evaluation *e) {
  return json_pack("{s:s, s:s, s:f, s:f, s:I, s:f, s:f, s:i, s:s, s:s}", "checkpoint", l->path, "data",
                   esp_dataset_info_of(dataset)->name, "accuracy", e->accuracy, "loss", e->loss, "examples",
                   (json_int_t)e->examples, "seconds", e->seconds, "images_per_second",
                   (double)e->examples / e->seconds, "threads", esp_threads(), "blas_kernel", esp_blas_kernel(),
                   "product_kernel", esp_gemm_kernel());
}

static int show_evaluation(const arguments *a, const loaded *l, const esp_dataset *dataset, const esp_evaluation *e) {
  if (a->json) {
    json_t *json = evaluation_json(l, dataset, e);
    if (json && a->flip)
      json_object_update_new(json,
                             json_pack("{s:f, s:f}", "flip_accuracy", e->flip_accuracy, "flip_loss", e->flip_loss));
    return print_json(json);
  }
  printf("%s on %s: accuracy %.2f %%, loss %.4f, %lld images, %.0f images/s\n", l->path,
         esp_dataset_info_of(dataset)->name, 100 * e->accuracy, e->loss, (long long)e->examples,
         (double)e->examples / e->seconds);
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
  float *logits; /* [images, classes] */
} logit_table;

static void print_logits(const void *context, FILE *file) {
  const logit_table *t = context;
  fputs("image,label", file);
  for (int64_t c = 0; c < t->classes; c++) fprintf(file, ",logit.%lld", (long long)c);
  fputc('\n', file);
  for (int64_t i = 0; i < t->images; i++) {
    fprintf(file, "%lld,%d", (long long)i, (int)esp_dataset_label(t->dataset, t->split, i));
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
  logit_table table = {.dataset = dataset, .split = options->split, .classes = l->model->config.classes};
  table.images = options->limit ? options->limit : esp_dataset_info_of(dataset)->count[options->split];
  table.logits = esp_alloc((size_t)(table.images * table.classes), sizeof *table.logits);
  if (!table.logits) return ESP_ERR_MEMORY;
  options->logits = table.logits;
  esp_status status = esp_evaluate(l->model, dataset, &l->info.normalisation, options, evaluation);
  if (status == ESP_OK) status = write_logits(a->logits, &table);
  esp_free(table.logits);
  return status;
}

int run_evaluate(const arguments *a) {
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
  const int code = status == ESP_OK ? show_evaluation(a, &l, dataset, &evaluation) : report_failure(status);
  esp_routing_trace_free(replay);
  esp_dataset_close(dataset);
  unload(&l);
  return code;
}

/* What `measure` holds. */
typedef struct measuring {
  loaded model, reference;
  esp_dataset *dataset;
  esp_evaluation_options options;
  esp_statistics *statistics;
  esp_routing_trace *trace; /* NULL: none is asked for */
  esp_router_changes *changes;
  esp_evaluation evaluation;
  esp_measurement measurement;
} measuring;

static void watch(void *context, const esp_moe_record *record) {
  const measuring *m = context;
  const esp_observer statistics = esp_statistics_observer(m->statistics);
  statistics.moe(statistics.context, record);
  if (!m->trace) return;
  const esp_observer trace = esp_routing_trace_observer(m->trace);
  trace.moe(trace.context, record);
}

static esp_status measure_data(measuring *m) {
  ESP_TRY(esp_statistics_create(&m->statistics, m->model.model, ESP_STATISTICS_STRIDE));
  const esp_observer observer = {watch, m};
  m->options.observer = &observer;
  ESP_TRY(esp_evaluate(m->model.model, m->dataset, &m->model.info.normalisation, &m->options, &m->evaluation));
  m->measurement.data = esp_dataset_info_of(m->dataset)->name;
  m->measurement.statistics = m->statistics;
  m->measurement.evaluation = &m->evaluation;
  return ESP_OK;
}

static esp_status measure_change(measuring *m, const arguments *a) {
  ESP_TRY(load(&m->reference, a->reference));
  ESP_TRY(esp_router_changes_create(&m->changes, m->model.model, m->reference.model));
  m->measurement.reference = m->reference.path;
  m->measurement.changes = m->changes;
  return ESP_OK;
}

static esp_status start_trace(measuring *m) {
  const esp_dataset_info *info = esp_dataset_info_of(m->dataset);
  return esp_routing_trace_create(&m->trace, m->model.model, info, m->options.split,
                                  m->options.limit ? m->options.limit : info->count[m->options.split]);
}

esp_status choose_measure_folder(char folder[ESP_PATH_SIZE], const arguments *a) {
  struct stat found;
  if (a->out) snprintf(folder, ESP_PATH_SIZE, "%s", a->out);
  else if (stat(a->operands[0], &found) == 0 && S_ISDIR(found.st_mode))
    ESP_TRY(esp_folder_path(folder, a->operands[0], "measured"));
  return *folder ? esp_folder_make(folder) : ESP_OK;
}

static esp_status measure(measuring *m, const arguments *a) {
  if (a->layers) return esp_fail(ESP_ERR_USAGE, "--layers chooses what --sparsify looks at: give that too");
  if (!a->data && !a->reference)
    return esp_fail(ESP_ERR_USAGE,
                    "nothing to measure: give --data (what routers and neurons do), --reference (how far routers "
                    "moved), or both");
  if (a->trace && !a->data) return esp_fail(ESP_ERR_USAGE, "--trace records the routing of images: give --data too");
  ESP_TRY(load(&m->model, a->operands[0]));
  m->measurement.model = m->model.model;
  m->measurement.checkpoint = m->model.path;
  if (a->reference) ESP_TRY(measure_change(m, a));
  if (a->data) ESP_TRY(open_part(&m->model, a, &m->dataset, &m->options));
  if (a->trace) ESP_TRY(start_trace(m));
  char folder[ESP_PATH_SIZE] = "";
  ESP_TRY(choose_measure_folder(folder, a));
  if (a->data) ESP_TRY(measure_data(m));
  if (a->trace) ESP_TRY(esp_routing_trace_save(a->trace, m->trace));
  return *folder ? esp_measurement_write(&m->measurement, folder) : ESP_OK;
}

int run_measure(const arguments *a) {
  if (a->sparsify) return run_sparsify(a);
  measuring m = {.dataset = NULL};
  const esp_status status = measure(&m, a);
  int code = EXIT_DONE;
  if (status != ESP_OK) code = report_failure(status);
  else if (a->json) code = print_json(esp_measurement_json(&m.measurement));
  else esp_measurement_print(&m.measurement, stdout);
  esp_router_changes_free(m.changes);
  esp_statistics_free(m.statistics);
  esp_routing_trace_free(m.trace);
  esp_dataset_close(m.dataset);
  unload(&m.reference);
  unload(&m.model);
  return code;
}

static json_t *parameters_json(const esp_parameters *parameters) {
  json_t *list = json_array();
  for (int64_t i = 0; i < esp_parameters_count(parameters); i++) {
    const esp_parameter *p = esp_parameters_at(parameters, i);
    json_t *shape = json_array();
    for (int d = 0; d < p->tensor.rank; d++) json_array_append_new(shape, json_integer(p->tensor.shape[d]));
    json_array_append_new(list, json_pack("{s:s, s:o}", "name", p->tensor.name, "shape", shape));
  }
  return list;
}

static json_t *inspection_json(const loaded *l, const esp_model_cost *cost, bool parameters) {
  json_t *json = esp_model_cost_json(cost);
  if (!json) return NULL;
  put_experts_json(json_object_get(json, "layers"), l->model);
  json_object_set_new(json, "checkpoint", json_string(l->path));
  json_object_set_new(json, "digest", json_string(l->info.digest));
  json_object_set_new(json, "bytes", json_integer(file_size(l->path)));
  json_object_set_new(json, "task_classes", json_integer(l->model->config.classes));
  json_object_set_new(json, "data", json_string(l->info.data_name));
  json_object_set_new(json, "history", history_json(&l->info));
  if (parameters) json_object_set_new(json, "parameter_shapes", parameters_json(l->model->parameters));
  return json;
}

static void print_parameters(const esp_parameters *parameters) {
  puts("parameters:");
  for (int64_t i = 0; i < esp_parameters_count(parameters); i++) {
    const esp_parameter *p = esp_parameters_at(parameters, i);
    char shape[64];
    printf("  %-36s %s\n", p->tensor.name, esp_shape_text(&p->tensor, shape, sizeof shape));
  }
}

static void print_inspection(const loaded *l, const esp_model_cost *cost, bool parameters) {
  const esp_model_config *c = &l->model->config;
  printf("%s: %.2f MB, digest %s\n%d classes (%s), images of %d x %d x %d\n", l->path,
         1e-6 * (double)file_size(l->path), l->info.digest, c->classes, l->info.data_name, c->image_height,
         c->image_width, c->image_channels);
  esp_model_cost_print(cost, stdout);
  print_experts(l->model);
  puts("history:");
  print_history(&l->info);
  if (parameters) print_parameters(l->model->parameters);
}

static int inspect_model(const arguments *a) {
  loaded l;
  esp_status status = ESP_OK;
  if (a->override_count)
    status = esp_fail(ESP_ERR_USAGE,
                      "--set %s is of no use: %s is a trained model, whose settings stay; inspect a "
                      "CONFIG.yaml to count other ones",
                      a->overrides[0], a->operands[0]);
  if (status == ESP_OK) status = load(&l, a->operands[0]);
  if (status != ESP_OK) return report_failure(status);
  esp_model_cost cost;
  esp_model_cost_of(l.model, &cost);
  int code = EXIT_DONE;
  if (a->json) code = print_json(inspection_json(&l, &cost, a->parameters));
  else print_inspection(&l, &cost, a->parameters);
  unload(&l);
  return code;
}

/* --- settings without a model ---------------------------------------------------------------------------- */

static bool is_settings(const char *path) {
  const char *dot = strrchr(path, '.');
  return dot && (strcmp(dot, ".yaml") == 0 || strcmp(dot, ".yml") == 0);
}

/* Sizes that the data would give. Returns whether any was missing. */
static bool assume_sizes(esp_model_config *config) {
  struct {
    int *size, assumed;
  } sizes[] = {
      {&config->image_height, 32}, {&config->image_width, 32}, {&config->image_channels, 3}, {&config->classes, 10}};
  bool any = false;
  for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
    if (*sizes[i].size) continue;
    *sizes[i].size = sizes[i].assumed;
    any = true;
  }
  return any;
}

static esp_status read_settings(const arguments *a, esp_model_config *config, bool *assumed) {
  if (a->parameters)
    return esp_fail(ESP_ERR_USAGE, "--parameters lists a trained model's, but %s holds settings only", a->operands[0]);
  esp_run_config run;
  ESP_TRY(esp_run_config_load(&run, a->operands[0], a->overrides, a->override_count));
  *config = run.model;
  *assumed = assume_sizes(config);
  return esp_model_config_check(config);
}

static int show_settings(const arguments *a, const esp_model_config *c, bool assumed) {
  esp_model_cost cost;
  int rows, columns;
  esp_config_cost(c, NULL, &cost);
  esp_token_grid(c, &rows, &columns);
  if (!a->json) {
    printf("%s: %d classes, images of %d x %d x %d%s, %d tokens each\n", a->operands[0], c->classes, c->image_height,
           c->image_width, c->image_channels, assumed ? " (assumed where the settings leave it to the data)" : "",
           rows * columns);
    esp_model_cost_print(&cost, stdout);
    return EXIT_DONE;
  }
  json_t *json = esp_model_cost_json(&cost);
  json_t *sizes = json_pack("{s:s, s:i, s:i, s:i, s:i, s:b, s:i}", "config", a->operands[0], "image_height",
                            c->image_height, "image_width", c->image_width, "image_channels", c->image_channels,
                            "task_classes", c->classes, "sizes_assumed", assumed, "tokens", rows * columns);
  if (json && sizes) json_object_update(json, sizes);
  json_decref(sizes);
  return print_json(json);
}

int run_inspect(const arguments *a) {
  if (!is_settings(a->operands[0])) return inspect_model(a);
  esp_model_config config;
  bool assumed = false;
  const esp_status status = read_settings(a, &config, &assumed);
  return status == ESP_OK ? show_settings(a, &config, assumed) : report_failure(status);
}
