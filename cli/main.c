/* The program: finds the command, sets threads, runs it. Only the files of this folder print and exit. */
#include "commands_internal.h"

#include <espalier/core.h>
#include <espalier/sweep.h>

#include <errno.h>
#include <stdio.h>
#include <string.h>

static const command commands[] = {
    {"pretrain", "pretrain [CONFIG.yaml] --data DATA --out RUN [--set KEY=VALUE]... [--resume]", "Trains a new model",
     "Without CONFIG.yaml the default settings are used; the resolved ones are printed and kept in RUN/config.yaml.\n"
     "RUN gets metrics.csv, last.h5, best.h5 and results.json; at each evaluation routing.csv, coactivation.csv and\n"
     "specialisation.csv tell what the routers do, alarms.csv which experts go unused. Ctrl-C ends at a safe point;\n"
     "--resume goes on.\n\n"
     "Example:\n  espalier pretrain examples/configs/quickstart.yaml --data synthetic --out runs/pretrained\n",
     "--data --out --set --resume --overwrite", 0, 1, run_pretrain},
    {"finetune", "finetune RUN|CKPT --data DATA --out RUN [--teacher RUN|CKPT] [--set KEY=VALUE]... [--resume]",
     "Trains a trained model further, on other data or after pruning",
     "Settings start from those the model was trained with. With another number of classes the head is made anew;\n"
     "--set training.freeze=\"blocks.*.router,stem.*\" leaves chosen parts as they are. With --teacher the loss\n"
     "gets distillation.weight (0.2) times KL(teacher || student) at distillation.temperature (2), times\n"
     "temperature^2 if distillation.squared: what a pruned or merged model lost comes back faster (arXiv\n"
     "2310.01334 also freezes the routers). metrics.csv shows it.\n\n"
     "Example:\n"
     "  espalier finetune runs/pretrained --data synthetic:narrow --out runs/finetuned --set training.epochs=3\n",
     "--data --out --set --resume --overwrite --new-head --teacher", 1, 1, run_finetune},
    {"evaluate", "evaluate RUN|CKPT --data DATA [--flip] [--replay TRACE.h5] [--logits FILE.csv]",
     "Accuracy and loss on a split",
     "--replay: tokens go where a trace of `measure --trace` says, in this model or in another one with as many\n"
     "experts; gates are still the routers' own.\n"
     "--logits: a row for each image, in the split's order: its number, its label, and the logit of each class (of an\n"
     "E3 the logarithm of its members' mean probability).\n\n"
     "Example:\n"
     "  espalier evaluate runs/finetuned --data synthetic:narrow --json\n",
     "--data --split --limit --replay --logits --flip", 1, 1, run_evaluate},
    {"measure", "measure RUN|CKPT [--data DATA [--trace FILE.h5]] [--reference RUN|CKPT] [--out FOLDER]",
     "What routers and neurons do",
     "With --data: routing counts, shares, gates, entropy, and how sparse the neurons' activations are. With\n"
     "--reference: how far each expert's router row moved since that model. CSV and JSON go to RUN/measured or\n"
     "--out. --trace: which experts each token chose, with its gates, as HDF5; `evaluate --replay` routes by it.\n"
     "--sparsify: the study of arXiv 2510.05781 on any model, without training: of the neurons a token activates\n"
     "in an expert (in a MoNE: the selected ones) a share q = 0, 0.1 ... 0.9, 0.95, 0.99 is left out, those of\n"
     "smallest |gate activation| first; also the largest, at random (--seed), and those of smallest contribution,\n"
     "|h_j| times the norm of row j of W_down; in all mixture layers together and in each alone. sparsify.csv,\n"
     ".json, .svg and .png. On 1000 images, or --limit N: the time of 45 evaluations of them for every mixture\n"
     "layer, and 45 more; a small model takes a minute or two.\n\n"
     "Example:\n"
     "  espalier measure runs/finetuned --data synthetic:narrow --reference runs/pretrained --out runs/measured\n"
     "  espalier measure runs/finetuned --data synthetic:narrow --sparsify --layers together\n",
     "--data --reference --out --split --limit --trace --sparsify --layers", 1, 1, run_measure},
    {"prune",
     "prune RUN|CKPT --criterion NAME --drop N|--ratio R [--data DATA] [--reference RUN|CKPT] [--mode MODE]\n"
     "                      --out RUN|CKPT\n"
     "       espalier prune RUN|CKPT --plan FILE.json --out RUN|CKPT",
     "Drops experts for good",
     "Which criterion: for a model that is to stay good at everything (task-agnostic), man or msan, the mean over\n"
     "the routed tokens without gates; for one task with --data of that task, gate-weighted-ean or\n"
     "squared-gate-energy, which keep frequency and gates (arXiv 2606.15716); reconstruction where experts are few\n"
     "(arXiv 2402.14800); after finetuning with the model from before it, router-norm-change, which needs no data\n"
     "(arXiv 2405.16646). Always compare with random.\n\n"
     "Criteria. g: a token's gate, n: norm of the expert's output before the gate, N: tokens routed to the expert;\n"
     "sums and means over these. With --data, N training images (--calibration) drawn by --seed:\n"
     "  frequency              N                            seer                   sum g (arXiv 2404.05089)\n"
     "  ean                    sum n                        gate-weighted-ean      sum g n\n"
     "  reap                   mean g n (2510.13999)        squared-gate-energy    sum g^2 n^2\n"
     "  man                    mean n                       msan                   mean n^2\n"
     "  \"S(b,alpha,beta)\"      (1/N^b) sum g^alpha n^beta, b 0 or 1, alpha and beta 0 to 2: 17 in all, those above "
     "too\n"
     "  novice-mone            mean g x norm of the outputs' standard deviations (2507.00390)\n"
     "  max-activation         largest entry of an output\n"
     "  importance             share of first choices x exp(their mean score) (NLLB, 2207.04672)\n"
     "  damage                 sum of |y - y without the expert|, its tokens rerouted (2606.15716)\n"
     "  reconstruction, reconstruction-progressive, reconstruction-greedy\n"
     "                         the subset without which the layer's output changes least: each layer by itself, on "
     "what\n"
     "                         comes of the layers pruned before, or expert by expert (2402.14800)\n"
     "Without data:\n"
     "  router-norm-change     signed change of the router row's norm since --reference; for models finetuned to a "
     "task,\n"
     "                         with the routers trained; ablations: router-norm-change-absolute, "
     "router-difference-norm\n"
     "  weight-norm, aimer     of the expert's weights: L2 norm; mean magnitude over root mean square (2603.18492)\n"
     "  random                 the baseline; give several --seed\n"
     "Neurons instead of experts, cut out for good: N training images show each neuron of an expert, h its\n"
     "activation; --ratio R of each expert's neurons (--budget expert) or of each layer's (--budget layer), or\n"
     "--below P; in every expert stay as many as a token uses. The experts then differ in width.\n"
     "  neuron-frequency       share of the expert's rows in which a MoNE selects it\n"
     "  neuron-activation      mean |h| before any selection\n"
     "  neuron-contribution    mean |h| after the selection x norm of its row of down\n"
     "  neuron-weight-norm, neuron-random                      without data\n"
     "The mode is the paper's unless --mode says otherwise: zero for router-norm-change and random, remove for the\n"
     "others and with routers whose experts choose. The input is never changed. --out gets the smaller checkpoint\n"
     "and, if it is a folder, plan.json.\n\n"
     "Example:\n"
     "  espalier prune runs/finetuned --criterion router-norm-change --reference runs/pretrained --ratio 0.5 \\\n"
     "    --out runs/pruned\n"
     "  espalier prune runs/finetuned --criterion man --data synthetic --ratio 0.5 --out runs/man\n"
     "  espalier prune runs/mone --criterion neuron-frequency --data synthetic --below 0.02 --out runs/narrow\n",
     "--criterion --drop --ratio --below --reference --data --calibration --gates --loss --budget --floor --exclude "
     "--mode --plan "
     "--out --overwrite",
     1, 1, run_prune},
    {"overlap",
     "overlap RUN|CKPT --data A --data B [--data C]... --drop N|--ratio R [--criterion NAME]... [--out FOLDER]",
     "How much the experts a criterion drops depend on the calibration data",
     "For each criterion the share of experts that two calibration sets both put among the lowest of a layer,\n"
     "averaged over the pairs of sets and the layers (arXiv 2606.15716): 1 if the data do not matter, about the\n"
     "ratio for random ranking (which gets another seed for each set). Nothing is pruned. The sets need the\n"
     "model's image shape, not its classes. Without --criterion: all that score by a pass of data, and random.\n"
     "--out gets overlap.csv and overlap.json.\n\n"
     "Example:\n"
     "  espalier overlap runs/finetuned --data synthetic --data synthetic:narrow --ratio 0.25 --criterion man "
     "--criterion seer\n",
     "--data --criterion --drop --ratio --calibration --gates --exclude --out", 1, 1, run_overlap},
    {"compare",
     "compare CONFIG.yaml --data DATA --out RUN [--seeds N,N,...] [--variants NAME,...] [--set KEY=VALUE]...",
     "Trains an MoE and matched MoNEs with several seeds, and compares them",
     "The mixture layers of CONFIG.yaml are the MoE: k experts a token of f = model.moe.hidden neurons. All\n"
     "variants but the last have its total parameters, and see the same data in the same order:\n"
     "  moe                  all neurons: the baseline\n"
     "  mone-half-full       half the activated expert parameters, W_gate counted in full: K_N = f/4\n"
     "  mone-half-selected   half of them, selected neurons counted only: K_N = f/2\n"
     "  mone-equal-full      as many, W_gate in full, of more experts a token: k' (f + 2 K_N) = 3 k f, usually k' = "
     "2 k\n"
     "  mone-equal-selected  as many, selected neurons only: k' K_N = k f\n"
     "  ...-balanced         each of these four with the neuron balance loss (model.moe.neuron_balance_weight, or "
     "0.01)\n"
     "  dense                no experts, a network of k f neurons (only if named)\n"
     "Each run is an ordinary run in RUN/VARIANT-SEED. Given again, the command goes on where it was stopped and\n"
     "does not repeat what is done. RUN gets compare.csv (a row a run), compare_summary.csv (means and standard\n"
     "deviations over seeds, differences to the MoE of the same seed), compare.json, and accuracy over activated\n"
     "parameters as compare.svg and .png. Single images are timed at the end, all variants in turns.\n\n"
     "Example:\n"
     "  espalier compare examples/configs/mone-comparison.yaml --data fashion-mnist --out runs/compared --seeds "
     "1,2,3\n",
     "--data --out --set --seeds --variants", 1, 1, run_compare},
    {"skip", "skip RUN|CKPT --data DATA | --beta B --out RUN|CKPT", "Leaves out experts that a token hardly wants",
     "At inference a token's second expert is skipped if its gate is below beta times the first one's, and the\n"
     "first gets all the weight (arXiv 2402.14800). beta is, for each layer, the median of that ratio over N\n"
     "training images of --data (--calibration), which skips it for half of the tokens, or --beta; 0 skips\n"
     "nothing. With more experts a token: the last ones, if together they have less than beta times the others'\n"
     "weight. Nothing is stored less, and training does not skip. Prune first, then calibrate the pruned model:\n"
     "pruning takes the beta away.\n\n"
     "Example:\n  espalier skip runs/pruned --data synthetic:narrow --out runs/skipping\n",
     "--data --beta --calibration --out --overwrite", 1, 1, run_skip},
    {"sweep",
     "sweep RUN|CKPT... --data DATA --out FOLDER [--methods LIST] [--ratios LIST] [--seeds LIST]\n"
     "                      [--finetune EPOCHS] [--calibration N] [--calibrate-on DATA]... [--reference RUN|CKPT]\n"
     "                      [--limit N] [--distil] [--keep] [--set KEY=VALUE]...",
     "Sets methods side by side on the same models",
     "Every method at every ratio and seed: accuracy before and after a short finetuning, parameters, FLOPs, bytes\n"
     "on disk, memory, time. Methods are the criteria of `espalier prune`, S(b,alpha,beta) too, the methods of\n"
     "`espalier merge`, skip, NAME+skip, factored (U V + S without training), mc-smoe (m-smoe to sqrt(1 - R) of\n"
     "the experts, then factored, so that 1 - R of their weights are left; this share-out is ours) and unpruned,\n"
     "the model as it is; it and random are always in. Those that look at images take a sample of --data's\n"
     "training split (matched) and of each --calibrate-on. --set changes settings of the finetuning, --limit looks\n"
     "at the first N test images. FOLDER gets cells.csv, summary.csv, sweep.json and curves (sweep.svg). Ctrl-C\n"
     "ends after a cell; the same command goes on, and more methods, ratios, seeds or calibration data may be\n"
     "asked for: a cell that is done is not done again.\n\n"
     "Example:\n"
     "  espalier sweep runs/finetuned --data synthetic:narrow --reference runs/pretrained --finetune 0.2 --out "
     "runs/sweep\n",
     "--data --out --methods --ratios --seeds --finetune --calibration --calibrate-on --reference --limit --set "
     "--distil --keep",
     1, ESP_SWEEP_MODELS, run_sweep},
    {"merge", "merge RUN|CKPT --data DATA --groups N|--ratio R [--method NAME] [--budget global|layer] --out RUN|CKPT",
     "Lets groups of experts share one expert's weights",
     "Methods (each but the last two averages a group's experts; the router stays as it is and maps to fewer\n"
     "experts):\n"
     "  m-smoe         neurons aligned by weights, averaged by how often experts are used (arXiv 2310.01334)\n"
     "  git-rebasin    neurons aligned by weights, averaged evenly\n"
     "  plain-average  as they are, averaged evenly\n"
     "  zipit          ZipIt-like: neurons that do the same, within experts and across, are put together\n"
     "  redirect       dominant experts stay as they are and take the tokens of their group\n"
     "  reroute        dominant experts stay as they are; tokens are routed among them\n"
     "The most used experts are dominant; each other one joins the dominant expert it is most like. --similarity:\n"
     "router-logits, router-weights, expert-weights, weights-features, gradients, mean-features,\n"
     "mean-absolute-features, random. Merge a model finetuned to the task with its training images as --data, then\n"
     "`finetune --teacher` the merged model with the unmerged one. The input is never changed. --out gets the smaller\n"
     "checkpoint and, if it is a folder, plan.json.\n\n"
     "Example:\n  espalier merge runs/finetuned --data synthetic:narrow --ratio 0.5 --out runs/merged\n",
     "--data --groups --ratio --method --similarity --align --average --budget --exclude --capacity --calibration "
     "--ranks "
     "--out --overwrite",
     1, 1, run_merge},
    {"compress",
     "compress RUN|CKPT --data DATA --out RUN [--rank R] [--share P] [--teacher RUN|CKPT]\n"
     "                         [--set KEY=VALUE]... [--resume]",
     "Factors experts into low rank and sparse rows, and prunes the rows while finetuning (MC-SMoE)",
     "Each matrix of an expert becomes U V + S by singular value decomposition (arXiv 2310.01334): rank R (32), S\n"
     "the rest. While U, V and S are finetuned, rows of S go, the least important of all layers first, until the\n"
     "share P (0.1) is left:\n"
     "none before compression.start (0.04) of the steps, all by compression.finish (0.16) before the end. The\n"
     "checkpoint holds only what is left. Best after merging; --exclude leaves layers as they are; the experts'\n"
     "stable ranks before and after go to compression.csv. Settings are the model's with the paper's for\n"
     "finetuning: routers frozen, no auxiliary losses, no noise, no dropout, AdamW (0.9, 0.98), linear decay,\n"
     "learning rate 3e-4, a tenth of the epochs; --set goes on top, and --teacher with the model from before\n"
     "recommends itself. With --zero-shot nothing is trained: --calibration (512) images tell which rows matter.\n\n"
     "Example:\n"
     "  espalier compress runs/finetuned --data synthetic:narrow --rank 8 --share 0.1 --teacher runs/finetuned \\\n"
     "    --out runs/small\n",
     "--data --out --rank --share --exclude --zero-shot --calibration --teacher --set --resume --overwrite "
     "--new-head",
     1, 1, run_compress},
    {"upcycle", "upcycle RUN|CKPT --set model.layers=[...] [--set KEY=VALUE]... [--noise S] --out RUN|CKPT",
     "Makes a mixture of a trained dense model (arXiv 2212.05055)",
     "Blocks that model.layers makes mixtures get experts that are copies of their dense layer, and a new router.\n"
     "Gates are renormalised unless --set model.moe.router.renormalise=false, so that nothing is computed\n"
     "otherwise at first. With top_k=1 such a gate is always 1, and only the auxiliary losses train the router.\n"
     "Then finetune.\n\n"
     "Example:\n"
     "  espalier upcycle runs/dense --set model.layers=[dense,moe] --set model.moe.experts=8 --set model.moe.top_k=2 "
     "\\\n"
     "    --out runs/upcycled\n",
     "--set --noise --out --overwrite", 1, 1, run_upcycle},
    {"inspect", "inspect RUN|CKPT | CONFIG.yaml [--set KEY=VALUE]...",
     "What a model is, what it costs, and how it came to be",
     "Of CONFIG.yaml it counts what the model would cost, without making it: any size can be asked for. Image\n"
     "sizes and classes that the settings leave to the data are taken as 32 x 32 x 3 and 10. Of a model also what\n"
     "became of its experts: removed, merged, their widths, rank and sparse rows, what it skips.\n\n"
     "Example:\n  espalier inspect runs/pruned\n"
     "  espalier inspect examples/configs/mixtral.yaml --set model.moe.experts=6\n",
     "--parameters --set", 1, 1, run_inspect},
    {"data", "data list | info DATA | preview DATA --out FILE.png", "Data sets: which there are, and what is in them",
     "Example:\n  espalier data preview synthetic --out sheet.png\n", "--out --split --augment", 1, 2, run_data},
    {"bench", "bench [SUITE]", "Compares speeds on this machine",
     "Without SUITE it lists them. Cases that are compared run in turns in one process; figures are medians,\n"
     "ratios are those of each round. With --threads 1 times are the processor's, so that other programs' turns do\n"
     "not count. \"least\" is the share of the first case's work that a case cannot do without, \"reached\" how\n"
     "much of the possible saving its time shows. \"of the limit\" is the share of the time that the products of a\n"
     "case take at the speed that this machine's BLAS gives for their shapes, measured in the same run (suite\n"
     "gemm). `train` shows a training step by phase and kind of op. Other work on the machine disturbs: ratios\n"
     "stand it better than times.\n\n"
     "Example:\n  espalier bench train\n  espalier bench mone --threads 1\n",
     "--rounds", 0, 1, run_bench},
};
enum { COMMAND_COUNT = sizeof commands / sizeof commands[0] };

static void print_overview(FILE *file) {
  fputs("Espalier trains sparse mixtures of experts and of neuron experts, measures them, and prunes them.\n\n"
        "usage: espalier COMMAND ...\n\n",
        file);
  for (int i = 0; i < COMMAND_COUNT; i++) fprintf(file, "  %-10s %s\n", commands[i].name, commands[i].summary);
  fputs("\n`espalier COMMAND --help` explains each. Exit codes: 0 done, 1 failed, 2 wrong usage.\n", file);
}

static int unknown_command(const char *name) {
  const char *names[COMMAND_COUNT];
  for (int i = 0; i < COMMAND_COUNT; i++) names[i] = commands[i].name;
  const char *near = esp_nearest(name, names, COMMAND_COUNT);
  (void)esp_fail(ESP_ERR_USAGE, "there is no command %s%s%s; `espalier --help` lists them", name,
                 near ? "; did you mean " : "", near ? near : "");
  return report_failure(ESP_ERR_USAGE);
}

static int run(const command *c, int argc, char **argv) {
  arguments a;
  long long threads = 0;
  esp_status status = parse_arguments(c, argc, argv, &a);
  if (status == ESP_OK && a.help) {
    print_help(c);
    return EXIT_DONE;
  }
  if (status == ESP_OK) status = whole_number("--threads", a.threads, 1, 1024, 0, &threads);
  if (status != ESP_OK) return report_failure(status);
  esp_threads_set((int)threads);
  return c->run(&a);
}

/* What was printed may still be on its way, to a full disk say. */
static int end_output(int code) {
  if (fflush(stdout) == 0 && !ferror(stdout)) return code;
  return report_failure(esp_fail(ESP_ERR_IO, "standard output cannot be written: %s", strerror(errno)));
}

static int dispatch(int argc, char **argv) {
  if (argc < 2) {
    print_overview(stderr);
    return EXIT_USAGE;
  }
  if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 || strcmp(argv[1], "help") == 0) {
    print_overview(stdout);
    return EXIT_DONE;
  }
  if (strcmp(argv[1], "--version") == 0) {
    printf("espalier %s\n", esp_version());
    return EXIT_DONE;
  }
  for (int i = 0; i < COMMAND_COUNT; i++)
    if (strcmp(argv[1], commands[i].name) == 0) return run(&commands[i], argc, argv);
  return unknown_command(argv[1]);
}

int main(int argc, char **argv) { return end_output(dispatch(argc, argv)); }
