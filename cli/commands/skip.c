/* skip: a model that leaves out hardly wanted experts at inference. */
#include "commands_internal.h"

#include <espalier/core.h>
#include <espalier/skip.h>

#include <stdio.h>
#include <string.h>

typedef struct skipping {
  esp_trained model;
  esp_dataset *dataset; /* NULL: beta is given */
  esp_model *made;
  double beta[ESP_MAX_BLOCKS];
  char target[ESP_PATH_SIZE];
} skipping;

static esp_status find_beta(skipping *s, const arguments *a) {
  const int layers = esp_model_moe_count(s->model.model);
  long long images, seed;
  ESP_TRY(esp_skip_check(s->model.model));
  if (a->beta) {
    double beta;
    ESP_TRY(real_number("--beta", a->beta, 0, 1e6, &beta));
    for (int i = 0; i < layers; i++) s->beta[i] = beta;
    return ESP_OK;
  }
  ESP_TRY(whole_number("--calibration", a->calibration, 1, INT64_MAX, ESP_CALIBRATION_IMAGES, &images));
  ESP_TRY(whole_number("--seed", a->seed, 0, INT64_MAX, 1, &seed));
  ESP_TRY(need_data(a));
  ESP_TRY(open_data_of(&s->dataset, a->data, &s->model, a));
  const esp_calibration calibration = {.dataset = s->dataset,
                                       .normalisation = &s->model.info.normalisation,
                                       .split = ESP_TRAIN,
                                       .images = images,
                                       .seed = (uint64_t)seed};
  return esp_skip_calibrate(s->model.model, &calibration, s->beta);
}

static esp_status make(skipping *s, const arguments *a) {
  char detail[200], parent[ESP_DIGEST_SIZE];
  if (a->beta) ESP_TRY(refuse_options(a, "--data --calibration --seed", "--beta says already what is skipped"));
  ESP_TRY(choose_checkpoint(s->target, a));
  ESP_TRY(esp_trained_load(&s->model, a->operands[0]));
  ESP_TRY(check_not_input(s->target, s->model.path));
  ESP_TRY(find_beta(s, a));
  ESP_TRY(esp_skip_apply(&s->made, s->model.model, s->beta));
  memcpy(parent, s->model.info.digest, sizeof parent);
  if (a->beta) snprintf(detail, sizeof detail, "beta %s", a->beta);
  else snprintf(detail, sizeof detail, "beta calibrated on %s", esp_dataset_info_of(s->dataset)->name);
  ESP_TRY(esp_checkpoint_add_history(&s->model.info, "skip", detail, parent, ""));
  if (strcmp(s->target, a->out) != 0) ESP_TRY(take_folder(a->out, "skip"));
  return esp_checkpoint_save(s->target, s->made, NULL, &s->model.info, ESP_DEFAULT_COMPRESSION);
}

static int show(const skipping *s, const arguments *a) {
  json_t *layers = json_array();
  for (int i = 0; i < esp_model_moe_count(s->made); i++) {
    const char *scope = esp_model_moe(s->made, i)->scope;
    json_array_append_new(layers, json_pack("{s:s, s:f}", "name", scope, "beta", s->beta[i]));
    if (!a->json) printf("%s: beta %.4f\n", scope, s->beta[i]);
  }
  json_t *result =
      json_pack("{s:s, s:s, s:o}", "checkpoint", s->target, "digest", s->model.info.digest, "layers", layers);
  if (a->json) return print_json(result);
  json_decref(result);
  printf("%s: `espalier measure` counts what it skips\n", esp_shown(s->target));
  return EXIT_DONE;
}

static int run_skip(const arguments *a) {
  skipping s = {.dataset = NULL};
  const esp_status status = make(&s, a);
  const int code = status == ESP_OK ? show(&s, a) : report_failure(status);
  esp_model_free(s.made);
  esp_dataset_close(s.dataset);
  esp_trained_clear(&s.model);
  return code;
}

/* --- help ------------------------------------------------------------------------------------------------------ */

static const command_option options[] = {
    {"--data", NULL},
    {"--validation", NULL},
    {"--beta", NULL},
    {"--calibration", NULL},
    {"--out", "a folder, or a file ending in .h5, for the model that skips"},
    {"--overwrite", NULL},
    {"--seed", "draws the calibration images (default 1)"},
    {NULL, NULL},
};

const command skip_command = {
    .name = "skip",
    .usage = "skip RUN|CKPT --data DATA --out RUN|CKPT\n"
             "skip RUN|CKPT --beta B --out RUN|CKPT",
    .summary = "Leaves out experts that a token hardly wants",
    .details =
        "At inference a token's second expert is skipped if its gate is below beta times the first one's, and "
        "the first gets all the weight (arXiv 2402.14800). beta is, for each layer, the median of that ratio "
        "over N training images of --data (--calibration), which skips it for half of the tokens, or --beta; 0 "
        "skips nothing. With more experts a token: the last ones, if together they have less than beta times the "
        "others' weight. Nothing is stored less, and training does not skip. Prune first, then calibrate the "
        "pruned model: pruning takes the beta away.",
    .example = "skip runs/pruned --data synthetic:narrow --out runs/skipping",
    .options = options,
    .least_operands = 1,
    .most_operands = 1,
    .run = run_skip,
};
