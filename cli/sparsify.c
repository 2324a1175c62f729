/* measure --sparsify: what a trained model does without some of its neurons. */
#include "commands_internal.h"

#include <espalier/core.h>
#include <espalier/measure.h>
#include <espalier/progress.h>

#include <stdio.h>
#include <string.h>

enum { SPARSIFY_IMAGES = 1000 };

typedef struct sparsifying {
  esp_trained l;
  esp_dataset *dataset;
  esp_sparsify_options options;
  esp_sparsify_point *points;
  int64_t count;
  char folder[ESP_PATH_SIZE]; /* "": nothing is written */
} sparsifying;

static esp_status parse_layers(sparsifying *s, const arguments *a) {
  const int layers = esp_model_moe_count(s->l.model);
  long long layer;
  if (!a->layers || strcmp(a->layers, "each") == 0) {
    s->options.end_layer = layers;
    return ESP_OK;
  }
  if (strcmp(a->layers, "together") == 0) return ESP_OK;
  if (whole_number("--layers", a->layers, 0, layers - 1, 0, &layer) != ESP_OK)
    return esp_fail(ESP_ERR_USAGE,
                    "--layers is \"%s\"; it must be each, together, or the number of a mixture layer, 0 to %d",
                    a->layers, layers - 1);
  s->options.first_layer = (int)layer;
  s->options.end_layer = (int)layer + 1;
  return ESP_OK;
}

static void show_progress(void *context, int64_t done, int64_t evaluations) {
  const esp_progress_bar *bar = context;
  if (!bar->quiet && bar->terminal)
    fprintf(stderr, "\r\033[K%lld of %lld points, %.0f s", (long long)done, (long long)evaluations,
            esp_seconds() - bar->started);
}

static esp_status open_inputs(sparsifying *s, const arguments *a) {
  long long limit, seed;
  if (a->reference || a->trace)
    return esp_fail(ESP_ERR_USAGE, "--sparsify is a study of its own; measure --reference and --trace without it");
  ESP_TRY(parse_split(a, &s->options.evaluation.split));
  ESP_TRY(whole_number("--limit", a->limit, 1, INT64_MAX, SPARSIFY_IMAGES, &limit));
  ESP_TRY(whole_number("--seed", a->seed, 0, INT64_MAX, 1, &seed));
  s->options.seed = (uint64_t)seed;
  ESP_TRY(esp_trained_load(&s->l, a->operands[0]));
  ESP_TRY(parse_layers(s, a));
  ESP_TRY(need_data(a));
  ESP_TRY(open_data_of(&s->dataset, a->data, &s->l, a));
  s->options.evaluation.limit = limit;
  ESP_TRY(esp_check_data_fits(&s->l.model->config, s->dataset, true));
  return choose_measure_folder(s->folder, a);
}

static json_t *points_json(const sparsifying *s) {
  json_t *points = json_array();
  for (int64_t i = 0; i < s->count; i++) {
    const esp_sparsify_point *p = &s->points[i];
    const char *layer = p->layer < 0 ? "all" : esp_model_moe(s->l.model, p->layer)->scope;
    json_array_append_new(points, json_pack("{s:s, s:s, s:f, s:f, s:f, s:f}", "layer", layer, "order",
                                            esp_sparsify_order_name(p->order), "q", p->share, "accuracy", p->accuracy,
                                            "loss", p->loss, "active", p->active));
  }
  const esp_dataset_info *data = esp_dataset_info_of(s->dataset);
  return json_pack("{s:s, s:s, s:s, s:I, s:I, s:o}", "checkpoint", s->l.path, "data", data->name, "split",
                   esp_split_text(s->options.evaluation.split), "examples",
                   (json_int_t)esp_evaluated_images(data, &s->options.evaluation), "seed", (json_int_t)s->options.seed,
                   "points", points);
}

static esp_status sparsify(sparsifying *s, const arguments *a) {
  ESP_TRY(open_inputs(s, a));
  esp_progress_bar bar = esp_progress_start(a->quiet, 0, 1);
  s->options.progress = show_progress;
  s->options.context = &bar;
  s->options.stop = watch_interrupts();
  s->count = esp_sparsify_count(&s->options);
  s->points = esp_alloc((size_t)s->count, sizeof *s->points);
  if (!s->points) return ESP_ERR_MEMORY;
  const esp_status status = esp_sparsify(s->l.model, s->dataset, &s->l.info.normalisation, &s->options, s->points);
  esp_progress_end(&bar);
  ESP_TRY(status);
  if (!*s->folder) return ESP_OK;
  char title[ESP_PATH_SIZE + 100];
  snprintf(title, sizeof title, "%s on %s without a share of the neurons", a->operands[0],
           esp_dataset_info_of(s->dataset)->name);
  ESP_TRY(esp_sparsify_write(s->l.model, s->points, s->count, title, s->folder));
  ESP_TRY(esp_json_write(s->folder, "sparsify.json", points_json(s), ESP_JSON_DIGITS));
  draw_figure(a, s->folder, "sparsify");
  if (s->options.end_layer > s->options.first_layer) draw_figure(a, s->folder, "sparsify_layers");
  return ESP_OK;
}

int run_sparsify(const arguments *a) {
  sparsifying s = {.dataset = NULL};
  const esp_status status = sparsify(&s, a);
  int code = EXIT_DONE;
  if (status != ESP_OK) {
    code = report_failure(status);
  } else if (a->json) {
    code = print_json(points_json(&s));
  } else {
    esp_sparsify_print(s.l.model, s.points, s.count, stdout);
    if (*s.folder) printf("%s: sparsify.csv, sparsify.json, sparsify.svg\n", esp_shown(s.folder));
  }
  esp_free(s.points);
  esp_dataset_close(s.dataset);
  esp_trained_clear(&s.l);
  return code;
}
