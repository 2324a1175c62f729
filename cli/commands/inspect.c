/* inspect: what a model is, and what settings would cost. */
#include "commands_internal.h"

#include <espalier/core.h>
#include <espalier/cost.h>
#include <espalier/measure.h>
#include <espalier/run_config.h>

#include <stdio.h>
#include <string.h>

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

static json_t *inspection_json(const esp_trained *l, const esp_model_cost *cost, bool parameters) {
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

static void print_inspection(const esp_trained *l, const esp_model_cost *cost, bool parameters) {
  const esp_model_config *c = &l->model->config;
  printf("%s: %.2f MB, digest %s\n%d classes (%s), images of %d x %d x %d\n", esp_shown(l->path),
         1e-6 * (double)file_size(l->path), l->info.digest, c->classes, esp_shown(l->info.data_name), c->image_height,
         c->image_width, c->image_channels);
  esp_model_cost_print(cost, stdout);
  print_experts(l->model);
  puts("history:");
  print_history(&l->info);
  if (parameters) print_parameters(l->model->parameters);
}

static int inspect_model(const arguments *a) {
  esp_trained l;
  esp_status status = ESP_OK;
  if (a->override_count)
    status = esp_fail(ESP_ERR_USAGE,
                      "--set %s is of no use: %s is a trained model, whose settings stay; inspect a "
                      "CONFIG.yaml to count other ones",
                      a->overrides[0], a->operands[0]);
  if (status == ESP_OK) status = esp_trained_load(&l, a->operands[0]);
  if (status != ESP_OK) return report_failure(status);
  esp_model_cost cost;
  esp_model_cost_of(l.model, &cost);
  int code = EXIT_DONE;
  if (a->json) code = print_json(inspection_json(&l, &cost, a->parameters));
  else print_inspection(&l, &cost, a->parameters);
  esp_trained_clear(&l);
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
    printf("%s: %d classes, images of %d x %d x %d%s, %d tokens each\n", esp_shown(a->operands[0]), c->classes,
           c->image_height, c->image_width, c->image_channels,
           assumed ? " (assumed where the settings leave it to the data)" : "", rows * columns);
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

static int run_inspect(const arguments *a) {
  if (!is_settings(a->operands[0])) return inspect_model(a);
  esp_model_config config;
  bool assumed = false;
  const esp_status status = read_settings(a, &config, &assumed);
  return status == ESP_OK ? show_settings(a, &config, assumed) : report_failure(status);
}

/* --- help ------------------------------------------------------------------------------------------------------ */

static const command_option options[] = {
    {"--parameters", NULL},
    {"--set", NULL},
    {NULL, NULL},
};

const command inspect_command = {
    .name = "inspect",
    .usage = "inspect RUN|CKPT [--parameters]\n"
             "inspect CONFIG.yaml [--set KEY=VALUE]...",
    .summary = "What a model is, what it costs, and how it came to be",
    .details =
        "Of a model also what became of its experts: removed, merged, their widths, rank and sparse rows, what "
        "it skips.\n"
        "Of CONFIG.yaml it counts what the model would cost, without making it: any size can be asked for. Image "
        "sizes and classes that the settings leave to the data are taken as 32 x 32 x 3 and 10.",
    .example = "inspect runs/pruned\n"
               "inspect examples/configs/mixtral.yaml --set model.moe.experts=6",
    .options = options,
    .least_operands = 1,
    .most_operands = 1,
    .run = run_inspect,
};
