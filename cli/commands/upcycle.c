/* upcycle: a mixture from a trained dense model. */
#include "commands_internal.h"

#include <espalier/core.h>
#include <espalier/cost.h>
#include <espalier/layers.h>
#include <espalier/run_config.h>

#include <math.h>
#include <stdio.h>
#include <string.h>

typedef struct upcycling {
  esp_trained dense;
  esp_run_config config; /* of the new model */
  esp_model *model;
  double noise;
  long long seed;
  char target[ESP_PATH_SIZE];
} upcycling;

/* The dense model's settings, with experts of its size and gates that sum to 1; --set goes on top. */
static esp_status read_settings(upcycling *u, const arguments *a) {
  esp_run_config base;
  char *text = NULL;
  ESP_TRY(esp_run_config_recall(&base, u->dense.path, u->dense.info.run_config));
  base.model = u->dense.model->config;
  base.model.moe.hidden = base.model.feed_forward.hidden;
  base.model.moe.router.renormalise = true;
  ESP_TRY(esp_run_config_save(&text, &base));
  const esp_status status = esp_run_config_parse(&u->config, u->dense.path, text, a->overrides, a->override_count);
  esp_free(text);
  return status;
}

static esp_status save_model(upcycling *u) {
  const esp_moe_config *moe = &u->config.model.moe;
  esp_checkpoint_info *info = &u->dense.info;
  char detail[200], parent[ESP_DIGEST_SIZE], *text;
  memcpy(parent, info->digest, sizeof parent);
  snprintf(detail, sizeof detail, "%d mixtures of %d experts, top %d, noise %g", esp_model_moe_count(u->model),
           moe->experts, moe->top_k, u->noise);
  ESP_TRY(esp_checkpoint_add_history(info, "upcycle", detail, parent, ""));
  ESP_TRY(esp_run_config_save(&text, &u->config));
  esp_free(info->run_config);
  info->run_config = text;
  return esp_checkpoint_save(u->target, u->model, NULL, info, ESP_DEFAULT_COMPRESSION);
}

static esp_status upcycle(upcycling *u, const arguments *a) {
  if (a->noise) ESP_TRY(real_number("--noise", a->noise, 0, 100, &u->noise));
  ESP_TRY(whole_number("--seed", a->seed, 0, INT64_MAX, 1, &u->seed));
  ESP_TRY(choose_checkpoint(u->target, a));
  ESP_TRY(esp_trained_load(&u->dense, a->operands[0]));
  ESP_TRY(check_not_input(u->target, u->dense.path));
  ESP_TRY(read_settings(u, a));
  ESP_TRY(esp_upcycle(&u->model, u->dense.model, &u->config.model, u->noise, (uint64_t)u->seed));
  if (strcmp(u->target, a->out) != 0) ESP_TRY(take_folder(a->out, "upcycle"));
  return save_model(u);
}

static int show(const upcycling *u, const arguments *a) {
  esp_model_cost before, after;
  esp_model_cost_of(u->dense.model, &before);
  esp_model_cost_of(u->model, &after);
  const bool keeps = u->noise == 0 && esp_upcycling_keeps_function(&u->config.model);
  if (a->json)
    return print_json(json_pack(
        "{s:s, s:s, s:i, s:i, s:I, s:I, s:I, s:f, s:f, s:b}", "checkpoint", u->target, "digest", u->dense.info.digest,
        "mixture_layers", esp_model_moe_count(u->model), "experts", u->config.model.moe.experts, "parameters_before",
        (json_int_t)before.parameters, "parameters", (json_int_t)after.parameters, "activated_parameters",
        (json_int_t)after.activated, "flops_per_image", after.flops, "noise", u->noise, "keeps_function", keeps));
  printf(
      "%s: %d mixtures of %d experts, %.3f M parameters where there were %.3f M, %.1f MFLOP an image where there were "
      "%.1f\n%s\n",
      u->target, esp_model_moe_count(u->model), u->config.model.moe.experts, 1e-6 * (double)after.parameters,
      1e-6 * (double)before.parameters, 1e-6 * after.flops, 1e-6 * before.flops,
      keeps ? "It computes what the dense model does, until it is trained."
            : "It does not compute quite what the dense model does: noise, or gates that do not sum to 1.");
  return EXIT_DONE;
}

static int run_upcycle(const arguments *a) {
  upcycling u = {.noise = 0};
  const esp_status status = upcycle(&u, a);
  const int code = status == ESP_OK ? show(&u, a) : report_failure(status);
  esp_model_free(u.model);
  esp_trained_clear(&u.dense);
  return code;
}

/* --- help ------------------------------------------------------------------------------------------------------ */

static const command_option options[] = {
    {"--set", NULL},
    {"--noise", NULL},
    {"--out", "a folder, or a file ending in .h5, for the mixture"},
    {"--overwrite", NULL},
    {"--seed", "of the new routers and of --noise (default 1)"},
    {NULL, NULL},
};

const command upcycle_command = {
    .name = "upcycle",
    .usage = "upcycle RUN|CKPT --set model.layers=[...] [--set KEY=VALUE]... [--noise S] --out RUN|CKPT",
    .summary = "Makes a mixture of a trained dense model (arXiv 2212.05055)",
    .details = "Blocks that model.layers makes mixtures get experts that are copies of their dense layer, and a new "
               "router. Gates are renormalised unless --set model.moe.router.renormalise=false, so that nothing is "
               "computed otherwise at first. With top_k=1 such a gate is always 1, and only the auxiliary losses train "
               "the router. Then finetune.",
    .example = "upcycle runs/dense --set model.layers=[dense,moe] --set model.moe.experts=8 --set model.moe.top_k=2 "
               "--out runs/upcycled",
    .options = options,
    .least_operands = 1,
    .most_operands = 1,
    .run = run_upcycle,
};
