/* finetune: a trained model goes on, with other settings or data. */
#include "training_internal.h"

static esp_status settle_finetuning(training *t, const arguments *a, const esp_trained *source) {
  return training_settle(t, a, source->path, source->info.run_config);
}

static esp_status start_finetuning(training *t, const arguments *a) {
  return start_from_model(t, a, settle_finetuning);
}

static int run_finetune(const arguments *a) {
  return run_training(
      a, &(recipe){.action = "finetune", .start = start_finetuning, .finished = training_has_ended, .lengthens = true});
}

/* --- help ------------------------------------------------------------------------------------------------------ */

static const command_option options[] = {
    {"--data", NULL},
    {"--out", "the folder of the run"},
    {"--config", NULL},
    {"--set", NULL},
    {"--resume", NULL},
    {"--overwrite", NULL},
    {"--new-head", NULL},
    {"--teacher", NULL},
    {"--seed", "overrides training.seed"},
    {NULL, NULL},
};

const command finetune_command = {
    .name = "finetune",
    .usage = "finetune RUN|CKPT --data DATA --out RUN [--config FILE.yaml] [--teacher RUN|CKPT] [--set KEY=VALUE]... "
             "[--resume]",
    .summary = "Trains a trained model further, on other data or after pruning",
    .details =
        "Settings start from those the model was trained with, which --config overlays by a file's and --set by single "
        "ones. examples/configs/finetune-*.yaml are the recipes of papers: finetune-sgd.yaml the one after which "
        "`espalier prune --criterion router-norm-change` tells which experts matter.\n"
        "With another number of classes the head is made "
        "anew; --set training.freeze=\"blocks.*.router,stem.*\" leaves chosen parts as they are.\n"
        "With --teacher the loss gets distillation.weight (0.2) times KL(teacher || student) at "
        "distillation.temperature (2), times temperature^2 if distillation.squared: what a pruned or merged "
        "model lost comes back faster (arXiv 2310.01334 also freezes the routers). metrics.csv shows it.",
    .example = "finetune runs/pretrained --data synthetic:narrow --out runs/finetuned --config "
               "examples/configs/finetune-sgd.yaml",
    .options = options,
    .least_operands = 1,
    .most_operands = 1,
    .run = run_finetune,
};
