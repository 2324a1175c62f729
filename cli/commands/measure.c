/* measure: what routers and neurons do. */
#include "commands_internal.h"

#include <espalier/core.h>
#include <espalier/measure.h>
#include <espalier/train.h>

#include <stdio.h>
#include <string.h>

/* What `measure` holds. */
typedef struct measuring {
  esp_trained model, reference;
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
  ESP_TRY(esp_trained_load(&m->reference, a->reference));
  ESP_TRY(esp_router_changes_create(&m->changes, m->model.model, m->reference.model));
  m->measurement.reference = m->reference.path;
  m->measurement.changes = m->changes;
  return ESP_OK;
}

static esp_status start_trace(measuring *m) {
  const esp_dataset_info *info = esp_dataset_info_of(m->dataset);
  return esp_routing_trace_create(&m->trace, m->model.model, info, m->options.split,
                                  esp_evaluated_images(info, &m->options));
}

esp_status choose_measure_folder(char folder[ESP_PATH_SIZE], const arguments *a) {
  if (a->out) snprintf(folder, ESP_PATH_SIZE, "%s", a->out);
  else if (is_folder(a->operands[0])) ESP_TRY(esp_folder_path(folder, a->operands[0], "measured"));
  return *folder ? take_folder(folder, "measure") : ESP_OK;
}

static esp_status measure(measuring *m, const arguments *a) {
  if (a->layers) return esp_fail(ESP_ERR_USAGE, "--layers chooses what --sparsify looks at: give that too");
  if (!a->data && !a->reference)
    return esp_fail(ESP_ERR_USAGE,
                    "nothing to measure: give --data (what routers and neurons do), --reference (how far routers "
                    "moved), or both");
  ESP_TRY(refuse_options(a, "--seed", "only --sparsify draws anything"));
  if (!a->data) ESP_TRY(refuse_options(a, "--split --limit", "they choose among the images of --data"));
  if (a->trace && !a->data) return esp_fail(ESP_ERR_USAGE, "--trace records the routing of images: give --data too");
  if (a->trace) ESP_TRY(esp_output_check(a->trace));
  ESP_TRY(esp_trained_load(&m->model, a->operands[0]));
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

static int run_measure(const arguments *a) {
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
  esp_trained_clear(&m.reference);
  esp_trained_clear(&m.model);
  return code;
}

/* --- help ------------------------------------------------------------------------------------------------------ */

static const command_option options[] = {
    {"--data", NULL},      {"--validation", NULL},
    {"--reference", NULL}, {"--out", "the folder for what is measured (default: RUN/measured)"},
    {"--split", NULL},     {"--limit", NULL},
    {"--trace", NULL},     {"--sparsify", NULL},
    {"--layers", NULL},    {"--seed", "of --sparsify: which neurons are left out at random (default 1)"},
    {NULL, NULL},
};

const command measure_command = {
    .name = "measure",
    .usage = "measure RUN|CKPT [--data DATA [--trace FILE.h5]] [--reference RUN|CKPT] [--out FOLDER]\n"
             "measure RUN|CKPT --data DATA --sparsify [--layers WHICH] [--out FOLDER]",
    .summary = "What routers and neurons do",
    .details = "With --data: routing counts, shares, gates, entropy, and how sparse the neurons' activations are. With "
               "--reference: how far each expert's router row moved since that model. CSV and JSON go to RUN/measured "
               "or --out.\n"
               "--trace: which experts each token chose, with its gates, as HDF5; `evaluate --replay` routes by it.\n"
               "--sparsify: the study of arXiv 2510.05781 on any model, without training: of the neurons a token "
               "activates in an expert (in a MoNE: the selected ones) a share q = 0, 0.1 ... 0.9, 0.95, 0.99 is left "
               "out, those of smallest |gate activation| first; also the largest, at random (--seed), and those of "
               "smallest contribution, |h_j| times the norm of row j of W_down; in all mixture layers together and in "
               "each alone. It makes sparsify.csv, .json, .svg and .png, on 1000 images or --limit N: the time of 45 "
               "evaluations of them for every mixture layer, and 45 more; a small model takes a minute or two.",
    .example = "measure runs/finetuned --data synthetic:narrow --reference runs/pretrained --out runs/measured\n"
               "measure runs/finetuned --data synthetic:narrow --sparsify --layers together",
    .options = options,
    .least_operands = 1,
    .most_operands = 1,
    .run = run_measure,
};
