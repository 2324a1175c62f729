/* pretrain: a new model. */
#include "training_internal.h"

#include <espalier/core.h>

static esp_status start_pretraining(training *t, const arguments *a) {
  const char *path = a->operand_count ? a->operands[0] : NULL;
  ESP_TRY(esp_run_config_load(&t->config, path, a->overrides, a->override_count));
  ESP_TRY(apply_seed(t, a));
  training_take_sizes(t);
  return training_create(t);
}

static int run_pretrain(const arguments *a) {
  return run_training(
      a,
      &(recipe){.action = "pretrain", .start = start_pretraining, .finished = training_has_ended, .lengthens = true});
}

/* --- help ------------------------------------------------------------------------------------------------------ */

static const command_option options[] = {
    {"--data", NULL},      {"--out", "the folder of the run"},    {"--set", NULL}, {"--resume", NULL},
    {"--overwrite", NULL}, {"--seed", "overrides training.seed"}, {NULL, NULL},
};

const command pretrain_command = {
    .name = "pretrain",
    .usage = "pretrain [CONFIG.yaml] --data DATA --out RUN [--set KEY=VALUE]... [--resume]",
    .summary = "Trains a new model",
    .details = "Without CONFIG.yaml the default settings are used; the resolved ones are printed and kept in "
               "RUN/config.yaml.\n"
               "RUN gets metrics.csv, last.h5, best.h5 and results.json; at each evaluation routing.csv, "
               "coactivation.csv and specialisation.csv tell what the routers do, alarms.csv which experts go unused. "
               "Ctrl-C ends at a safe point; --resume goes on, with more training.epochs beyond the end, too.",
    .example = "pretrain examples/configs/quickstart.yaml --data synthetic --out runs/pretrained",
    .options = options,
    .most_operands = 1,
    .run = run_pretrain,
};
