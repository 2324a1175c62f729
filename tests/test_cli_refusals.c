/* label: medium */
/* Everything that can be wrong with a command of the program: the exit code, a message that names what and where, and
 * nothing left half-written. */
#include "cli_program.h"

/* ---- usage ---- */

/* A page fits a terminal of 96 columns, has an example and stands on standard output. */
static void check_help(const char *command, const char *option) {
  char line[64], example[64];
  snprintf(line, sizeof line, "%s %s", command, option);
  succeed(line);
  snprintf(example, sizeof example, "\nExample:\n  espalier %s ", command);
  if (strncmp(out, "usage: espalier ", 16) != 0 || !strstr(out, example) || !strstr(out, "\nOptions:\n"))
    fail_msg("%s", out);
  assert_non_null(strstr(out, "\n  --json "));
  assert_string_equal(err, "");
  for (const char *at = out; *at; at += strcspn(at, "\n") + 1)
    if (strcspn(at, "\n") > 96) fail_msg("%s: a line is too long: %s", line, at);
}

static void test_help(void **state) {
  (void)state;
  static const char *const commands[] = {"pretrain", "finetune", "evaluate", "measure", "compare",
                                         "prune",    "overlap",  "skip",     "sweep",   "merge",
                                         "compress", "upcycle",  "inspect",  "data",    "bench"};
  succeed("--help");
  for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++) assert_non_null(strstr(out, commands[i]));
  for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++) check_help(commands[i], i % 2 ? "-h" : "--help");
  succeed("--version");
  assert_int_equal(strncmp(out, "espalier ", 9), 0);
  assert_int_equal(run(""), 2);
  assert_non_null(strstr(err, "usage: espalier COMMAND"));
}

static void test_usage(void **state) {
  (void)state;
  static const refusal refusals[] = {
      {"pretrian", 2, "no command \"pretrian\"", "did you mean \"pretrain\"?"},
      {"pretrain --dta synthetic", 2, "no option \"--dta\"", "did you mean \"--data\"?"},
      {"evaluate finetuned --data synthetic:narrow --resume", 2, "`espalier evaluate`: there is no option \"--resume\"",
       "--replay"},
      {"evaluate finetuned --data", 2, "--data needs a value", "--data DATA"},
      {"evaluate finetuned", 2, "--data is missing", "espalier data list"},
      {"evaluate finetuned pretrained --data synthetic", 2, "\"pretrained\"", "usage: espalier evaluate"},
      {"evaluate", 2, "usage: espalier evaluate RUN|CKPT --data DATA", ""},
      {"evaluate finetuned --data synthetic:narrow --json=yes", 2, "--json is a switch", ""},
      {"evaluate finetuned --data synthetic:narrow --limit 0", 2, "--limit is \"0\"", "whole number from 1"},
      {"evaluate finetuned --data synthetic:narrow --split all", 2, "--split is \"all\"", "test, validation or train"},
      {"evaluate finetuned --data synthetic:narrow --threads 1x", 2, "--threads is \"1x\"", "whole number"},
      {"pretrain --data synthetic", 2, "--out is missing", "runs/first"},
      {PRETRAIN "--out new --seed -1", 2, "--seed is \"-1\"", "whole number from 0"},
      {"finetune pretrained --data synthetic:narrow --out new --new-head perhaps", 2, "--new-head is \"perhaps\"",
       "never"},
      {"measure finetuned", 2, "--data", "--reference"},
      {"measure finetuned --data synthetic:narrow --split all --out new", 2, "--split is \"all\"", ""},
      {"prune finetuned --drop 1 --out new", 2, "--criterion is missing", "espalier prune --help"},
      {"prune finetuned --criterion rondom --drop 1 --out new", 2, "--criterion: there is no criterion \"rondom\"",
       "did you mean \"random\"?"},
      {"prune finetuned --criterion random --out new", 2, "--drop N", "--ratio R"},
      {"prune finetuned --criterion random --drop 1 --ratio 0.1 --out new", 2, "--drop N", "--ratio R"},
      {"prune finetuned --criterion random --ratio 1.5 --out new", 2, "--ratio is \"1.5\"", "from 0 to 1"},
      {"prune finetuned --criterion random --drop 4 --out new", 2, "blocks.0.moe has 4 experts", "at least 1"},
      {"prune finetuned --criterion random --drop 1 --mode zreo --out new", 2, "zreo", "zero"},
      {"prune finetuned --criterion random --drop 1", 2, "--out is missing", ".h5"},
      {"prune finetuned --criterion random --drop 1 --below 0.1 --out new", 2, "--below is for neurons",
       "neuron-frequency"},
      {"prune finetuned --criterion neuron-rondom --ratio 0.1 --out new", 2, "neuron-rondom", "neuron-random"},
      {"prune finetuned --criterion neuron-random --out new", 2, "--ratio R", "--below P"},
      {"prune finetuned --criterion neuron-random --ratio 0.1 --below 0.1 --out new", 2, "--ratio R", "--below P"},
      {"prune finetuned --criterion neuron-random --below 0.1 --out new", 2, "neuron-random", "use neuron-frequency"},
      {"prune finetuned --criterion neuron-frequency --below 0.1 --out new", 2, "give --data", "neuron-frequency"},
      {"prune finetuned --criterion neuron-random --drop 1 --ratio 0.1 --out new", 2, "cuts neurons",
       "leave out --drop"},
      {"prune finetuned --criterion neuron-random --ratio 0.1 --budget global --out new", 2, "--budget is \"global\"",
       "expert"},
      {"prune finetuned --criterion neuron-random --ratio 0.999 --out new", 2, "cutting 7 would leave 1",
       "each token uses 4"},
      {"merge finetuned --data synthetic:narrow --out new", 2, "--groups N", "--ratio R"},
      {"merge finetuned --groups 2 --out new", 2, "--data is missing", ""},
      {"merge finetuned --data synthetic:narrow --groups 5 --out new", 2, "blocks.0.moe has 4 experts", "5 groups"},
      {"merge finetuned --data synthetic:narrow --groups 2 --method smoe --out new", 2, "--method: there is no",
       "did you mean \"m-smoe\"?"},
      {"merge finetuned --data synthetic:narrow --groups 2 --align none --method redirect --out new", 2,
       "--method redirect averages nothing", ""},
      {"merge finetuned --data synthetic:narrow --groups 2 --budget all --out new", 2, "--budget is \"all\"",
       "global or layer"},
      {"merge finetuned --data synthetic:narrow --groups 2 --out finetuned --overwrite", 2, "finetuned/last.h5",
       "never changed"},
      {"merge finetuned --data fashion-mnist --groups 2 --out new", 1, "calibration data", "28 x 28"},
      {"prune finetuned --criterion router-norm-change --drop 1 --out new", 2, "router-norm-change", "--reference"},
      {PRETRAIN "--out mistyped --resume", 2, "--resume: mistyped holds no run", "leave out --resume"},
      {"finetune pretrained --data synthetic:narrow --out mistyped --resume", 2, "mistyped holds no run", "check the"},
      {"prune finetuned --criterion random --drop 1 --drop 2 --out new", 2, "--drop is given twice", ""},
      {"prune finetuned --criterion random --drop 1 --out new --data synthetic", 2, "--data would do nothing",
       "the criterion random looks at no data"},
      {"prune finetuned --criterion aimer --drop 1 --out new --gates model", 2, "--gates would do nothing", "aimer"},
      {"prune finetuned --criterion random --drop 1 --out new --reference pretrained", 2,
       "--reference would do nothing", "no other model"},
      {"prune finetuned --criterion man --data synthetic --drop 1 --out new --loss norm", 2, "--loss would do nothing",
       "not by a reconstruction"},
      {"prune finetuned --criterion neuron-random --ratio 0.1 --out new --calibration 9", 2,
       "--calibration would do nothing", "no data"},
      {"prune finetuned --plan x.json --out new --floor 1", 2, "--floor would do nothing", "--plan says already"},
      {"skip finetuned --beta 0.5 --calibration 9 --out new", 2, "--calibration would do nothing", "--beta says"},
      {"measure finetuned --reference pretrained --limit 9 --out new", 2, "--limit would do nothing", "--data"},
      {"measure finetuned --reference pretrained --seed 9 --out new", 2, "--seed would do nothing", "--sparsify"},
      {"data list --augment", 2, "--augment would do nothing", "data preview"},
      {"bench --rounds 3", 2, "--rounds would do nothing", "no suite"},
      {"sweep finetuned --data synthetic:narrow --out new --seeds 1,2,1", 2, "--seeds names 1 twice", ""},
      {"sweep finetuned --data synthetic:narrow --out new --ratios 0.5,0.50", 2, "--ratios names 0.50 twice", ""},
      {"sweep finetuned --data synthetic:narrow --out new --methods man,man", 2, "--methods names man twice", ""},
      {"sweep finetuned --data synthetic:narrow --out new --distil", 2, "--distil would do nothing", "--finetune"},
      {"overlap finetuned --data synthetic --data synthetic:narrow --drop 1 --criterion man --criterion man", 2,
       "--criterion man is given twice", ""},
      {"prune finetuned --criterion frequency --data synthetic:narrow --drop 1 --out new --gates model", 2,
       "--gates would do nothing", "frequency looks at no gates"},
      {"prune finetuned --criterion damage --data synthetic:narrow --drop 1 --out new --gates model", 2,
       "--gates would do nothing", "damage looks at no gates"},
      {"prune finetuned --criterion aimer --drop 1 --out new --seed 2", 2, "--seed would do nothing", "draws nothing"},
      {"prune finetuned --criterion aimer --drop 1 --out new --validation 0.1", 2, "--validation would do nothing",
       "looks at no data"},
      {"prune finetuned --criterion neuron-weight-norm --ratio 0.1 --out new --seed 2", 2, "--seed would do nothing",
       "draws nothing"},
      {"prune finetuned --criterion man --criterion ean --data synthetic --drop 1 --out new", 2,
       "--criterion is given twice", ""},
      {"evaluate finetuned --data synthetic --data synthetic:narrow", 2, "--data is given twice", ""},
      {"overlap finetuned --data synthetic --data synthetic --drop 1", 2, "--data: synthetic has the same images", ""},
      {"overlap finetuned --data synthetic --data synthetic:narrow --drop 1 --criterion man --gates model", 2,
       "--gates would do nothing", "none of the criteria"},
      {"sweep finetuned finetuned --data synthetic:narrow --out new", 2, "are the same model", ""},
      {"sweep finetuned --data synthetic:narrow --out new --calibrate-on synthetic --calibrate-on synthetic", 2,
       "--calibrate-on: synthetic has the same images", ""},
      {"sweep finetuned --data synthetic:narrow --out new --calibrate-on synthetic:narrow", 2,
       "--calibrate-on: synthetic:narrow has the same images", ""},
      {"sweep finetuned --data synthetic:narrow --out new --finetune 0.1 --set model.dropout=0.2", 2,
       "the setting model.dropout would do nothing", "what its method makes"},
      {"sweep finetuned --data synthetic:narrow --out new --finetune 0.1 --set training.epochs=2", 2,
       "the setting training.epochs would do nothing", "a setting of the sweep"},
      {"sweep finetuned --data synthetic:narrow --out new --finetune 0.1 --set training.seed=2", 2,
       "the setting training.seed would do nothing", "the seed of its row"},
      {"sweep finetuned --data synthetic:narrow --out new --finetune 0.1 --set distillation.weight=2", 2,
       "the setting distillation.weight would do nothing", "does not distil"},
      {"finetune pretrained --data synthetic:narrow --out finetuned --resume --new-head never", 2,
       "--new-head would do nothing", "has its head already"},
      {"bench mnone", 2, "no suite \"mnone\"", "did you mean \"mone\"?"},
      {"bench mone --rounds 0", 2, "--rounds is \"0\"", "whole number from 1"},
      {"data", 2, "usage: espalier data", "info"},
      {"data show", 2, "usage: espalier data", "preview"},
      {"data info synthetic:wide", 2, "synthetic:wide", "synthetic:narrow"},
  };
  REFUSE_ALL(refusals);
}

static void test_unwritable(void **state) {
  (void)state;
  static const refusal refusals[] = {
      {PRETRAIN "--out small.yaml/run", 1, "the output folder small.yaml", "a file of that name is in the way"},
      {"finetune pretrained --data synthetic:narrow --out small.yaml", 1, "the output folder small.yaml", "in the way"},
      {"measure finetuned --reference pretrained --out small.yaml/m", 1, "the output folder small.yaml", "in the way"},
      {"prune finetuned --criterion random --drop 1 --out small.yaml/p", 1, "the output folder small.yaml",
       "in the way"},
      {"prune finetuned --criterion random --drop 1 --out missing/p.h5", 1, "missing/p.h5", "No such file"},
      {"prune finetuned --criterion random --drop 1 --out small.yaml/p.h5", 1, "small.yaml/p.h5", "Not a directory"},
  };
  REFUSE_ALL(refusals);
  if (!is_there("/dev/full")) return;
  assert_int_equal(finish(spawn("inspect finetuned --json", "/dev/full")), 1);
  assert_non_null(strstr(err, "standard output cannot be written: No space left on device"));
}

/* ---- bad input ---- */

static void test_bad_configs(void **state) {
  (void)state;
  static const char doubled[] = "model:\n  width: 16\n  wdith: 16\n";
  static const char wrong[] = "training:\n  batch: many\n";
  write_file("doubled.yaml", doubled, strlen(doubled));
  write_file("wrong.yaml", wrong, strlen(wrong));
  write_file("torn.yaml", wrong, 8);
  static const refusal refusals[] = {
      {"pretrain doubled.yaml --data synthetic --out new", 2, "doubled.yaml, line 3", "did you mean \"width\""},
      {"pretrain wrong.yaml --data synthetic --out new", 2, "wrong.yaml, line 2",
       "\"training.batch\" is \"many\"; expected a whole number"},
      {"pretrain missing.yaml --data synthetic --out new", 1, "missing.yaml", "No such file"},
      {"pretrain pretrained/last.h5 --data synthetic --out new", 2, "pretrained/last.h5", ""},
      {PRETRAIN "--out new --set model.moe.exprts=8", 2, "setting model.moe.exprts=8", "did you mean \"experts\""},
      {PRETRAIN "--out new --set model.moe.experts=few", 2, "\"few\"; expected a whole number",
       "setting model.moe.experts=few"},
      {PRETRAIN "--out new --set model.width", 2, "model.width", "="},
      {PRETRAIN "--out new --set model.moe.top_k=5", 2, "model.moe.top_k is 5", "only 4 experts"},
      {PRETRAIN "--out new --set model.moe.router.capacity=0", 2, "model.moe.router.capacity is 0", "no expert could"},
      {PRETRAIN "--out new --set model.moe.members=3", 2, "model.moe.members is 3",
       "does not divide model.moe.experts, 4"},
      {PRETRAIN "--out new --set model.moe.router.policy=hash --set model.moe.top_k=2", 2, "model.moe.top_k is 2",
       "one hash"},
      {PRETRAIN "--out new --set model.moe.router.policy=expert_choice --set model.moe.router.renormalise=true", 2,
       "model.moe.router.renormalise", "expert_choice"},
      {PRETRAIN "--out new --set model.moe.top_k=1 --set model.moe.router.renormalise=true", 2,
       "model.moe.router.renormalise true", "the task never trains it"},
      {PRETRAIN "--out new --set model.norm=batch --set training.batch=1", 2, "training.batch is 1", "at least 2"},
      {PRETRAIN "--out new --set optimizer.learning_rate=1e-50", 2, "optimizer.learning_rate is 1e-50",
       "0 in single precision"},
      {PRETRAIN "--out new --set model.moe.router.load_weight=0.1", 2, "model.moe.router.load_weight", "noise"},
      {PRETRAIN "--out new --set model.moe.router.policy=hasch", 2, "hasch", "hash"},
      {PRETRAIN "--out new --set model.mixing=attention --set model.heads=3", 2, "model.heads is 3", "model.width, 16"},
      {PRETRAIN "--out new --set model.stem.pools=[4,5]", 2, "model.stem", "32 x 32"},
      {PRETRAIN "--out new --set model.layers=[moe,mix]", 2, "mix", "dense, moe"},
      {PRETRAIN "--out new --set training.batch=0", 2, "training.batch is 0", "[1, 65536]"},
      {PRETRAIN "--out new --set optimizer.learning_rate=-1", 2, "optimizer.learning_rate is -1", ""},
      {PRETRAIN "--out new --set model.classes=7", 1, "knows 7 classes", "has 20"},
      {PRETRAIN "--out new --set model.image_height=16 --set model.image_width=16", 1, "16 x 16 x 3", "32 x 32 x 3"},
      {PRETRAIN "--out new --set augmentation.crop_padding=-1", 2, "crop_padding", "-1"},
      {PRETRAIN "--out new --set training.freeze=blocks.*.ruoter", 2, "blocks.*.ruoter", ""},
      {PRETRAIN "--out new --set training.freeze=\"*\"", 2, "training.freeze is \"*\"", "nothing to train"},
      {PRETRAIN "--out pretrained --overwrite --set training.freeze=blocks.*.ruoter", 2, "blocks.*.ruoter", ""},
      {"finetune pretrained --data synthetic:narrow --out new --set model.blocks=3", 1, "model.blocks", ""},
      {"finetune pretrained --data synthetic:narrow --out new --set model.width=32", 1,
       "stem.1.weight is [32, 3, 3, 8]", "[16, 3, 3, 8]"},
      {"finetune pretrained --data synthetic:narrow --out new --new-head never", 1, "knows 20 classes", "5"},
  };
  REFUSE_ALL(refusals);
}

enum { IMAGES = 5, PIXELS = 28 * 28 };

/* The four files of a data set in IDX. */
static void write_idx(const char *folder, unsigned magic, size_t missing_bytes, unsigned label) {
  static const char *const names[2] = {"train", "t10k"};
  mkdir(folder, 0777);
  for (int split = 0; split < 2; split++) {
    char path[256];
    unsigned char images[16 + IMAGES * PIXELS] = {0, 0, 8, (unsigned char)magic, 0, 0, 0, IMAGES, 0, 0, 0, 28, 0,
                                                  0, 0, 28};
    unsigned char labels[8 + IMAGES] = {0, 0, 8, 1, 0, 0, 0, IMAGES, 0, 1, 2, 3, (unsigned char)label};
    snprintf(path, sizeof path, "%s/%s-images-idx3-ubyte", folder, names[split]);
    write_file(path, images, sizeof images - missing_bytes);
    snprintf(path, sizeof path, "%s/%s-labels-idx1-ubyte", folder, names[split]);
    write_file(path, labels, sizeof labels);
  }
}

static void test_bad_data(void **state) {
  (void)state;
  write_idx("good", 3, 0, 4);
  write_idx("magic", 4, 0, 4);
  write_idx("short", 3, 100, 4);
  write_idx("labels", 3, 0, 11);
  write_file("images.h5", "no HDF5", 7);
  mkdir("cifar", 0777);
  write_file("cifar/train.bin", config, sizeof config);
  write_file("cifar.tar.gz", config, sizeof config);
  succeed("data info mnist:good");
  static const refusal refusals[] = {
      {"data info mnits", 1, "no data set \"mnits\"", "did you mean \"mnist\"?"},
      {"data info mnist:missing", 1, "missing does not exist", "four IDX files"},
      {"data info mnist:magic", 1, "magic/train-images-idx3-ubyte", "0x00000804; expected 0x00000803"},
      {"data info mnist:short", 1, "short/train-images-idx3-ubyte", ""},
      {"data info mnist:labels", 1, "labels/train-labels-idx1-ubyte", "the label of image 4 is 11; expected 0 to 9"},
      {"data info cifar100:cifar", 1, "cifar/train.bin", ""},
      {"data info cifar100:cifar.tar.gz", 1, "cifar.tar.gz", ""},
      {"data info cifar10:missing.tar.gz", 1, "missing.tar.gz", ""},
      {"data info hdf5", 2, "hdf5:PATH", ""},
      {"data info hdf5:images.h5", 1, "images.h5", "HDF5"},
      {"pretrain small.yaml --data mnist:short --out new", 1, "short/train-images-idx3-ubyte", ""},
      {"finetune pretrained --data hdf5:images.h5 --out new", 1, "images.h5", "HDF5"},
      {"finetune pretrained --data mnist:good --out new", 1, "32 x 32 x 3", "28 x 28 x 1"},
      {"evaluate finetuned --data mnist:labels", 1, "labels/train-labels-idx1-ubyte", ""},
      {"evaluate finetuned --data mnist:good", 1, "32 x 32 x 3", "28 x 28 x 1"},
      {"evaluate finetuned --data synthetic", 1, "the model knows 5 classes", "has 20"},
      {"measure finetuned --data synthetic --out new", 1, "the model knows 5 classes", "has 20"},
  };
  REFUSE_ALL(refusals);
}

static void test_bad_checkpoints(void **state) {
  (void)state;
  static char bytes[1 << 21];
  const size_t size = read_file("finetuned/last.h5", bytes, sizeof bytes);
  write_file("short.h5", bytes, size / 2);
  bytes[size / 2] ^= 1;
  write_file("flipped.h5", bytes, size);
  write_file("text.h5", config, sizeof config);
  write_file("empty.h5", "", 0);
  mkdir("empty", 0777);
  static const char *const files[] = {"short.h5", "flipped.h5", "text.h5", "empty.h5", "empty", "missing.h5"};
  static const char *const lines[] = {
      "inspect %s",
      "evaluate %s --data synthetic:narrow",
      "measure %s --data synthetic:narrow --out new",
      "measure finetuned --reference %s --out new",
      "finetune %s --data synthetic:narrow --out new",
      "prune %s --criterion random --drop 1 --out new",
      "prune finetuned --criterion router-norm-change --reference %s --drop 1 --out new"};
  for (size_t f = 0; f < sizeof files / sizeof files[0]; f++)
    for (size_t i = 0; i < sizeof lines / sizeof lines[0]; i++) {
      char line[512];
      const char *place = strstr(lines[i], "%s");
      snprintf(line, sizeof line, "%.*s%s%s", (int)(place - lines[i]), lines[i], files[f], place + 2);
      refuse(line, 1, files[f], "");
    }
}

static void test_damaged_run(void **state) {
  (void)state;
  succeed(PRETRAIN "--out damaged");
  static char bytes[1 << 21];
  const size_t size = read_file("damaged/last.h5", bytes, sizeof bytes);
  write_file("damaged/last.h5", bytes, size * 9 / 10);
  refuse(PRETRAIN "--out damaged --resume", 1, "damaged/last.h5", "");
}

static void test_references(void **state) {
  (void)state;
  succeed(PRETRAIN "--out wider --set model.width=32");
  succeed(PRETRAIN "--out deeper --set model.blocks=3");
  succeed(PRETRAIN "--out dense --set model.layers=[dense,moe]");
  succeed(PRETRAIN "--out fewer --set model.moe.experts=2");
  succeed("finetune pretrained --data synthetic:narrow --out frozen --quiet --set training.freeze=blocks.1.moe.router");
#define PRUNE " --criterion router-norm-change --drop 1 --out new --reference "
  static const refusal refusals[] = {
      {"prune finetuned" PRUNE "wider", 1, "16 elements", "32"},
      {"prune finetuned" PRUNE "deeper", 1, "2 blocks", "has 3"},
      {"prune finetuned" PRUNE "dense", 1, "blocks.0.moe", "blocks.0.ffn"},
      {"prune finetuned" PRUNE "fewer", 1, "blocks.0.moe", "the 2 of"},
      {"prune pretrained" PRUNE "pretrained", 1, "no router differs", "as the reference"},
      {"prune frozen" PRUNE "pretrained", 1, "blocks.1.moe.router was frozen",
       "training.freeze=\"blocks.1.moe.router\""},
      {"finetune finetuned --data synthetic:narrow --out new --teacher pretrained", 1, "the teacher knows 20 classes",
       "the student 5"},
      {"finetune finetuned --data synthetic:narrow --out new --teacher missing", 1, "missing", ""},
      {"finetune finetuned --data synthetic:narrow --out new --set distillation.weight=1", 2,
       "--set distillation.weight=1", "--teacher"},
      {"finetune finetuned --data synthetic:narrow --out new --teacher finetuned --set distillation.weight=0", 2,
       "the teacher would teach nothing", "distillation.weight is 0"},
      {"finetune finetuned --data synthetic:narrow --out new --teacher finetuned --set distillation.temperature=0", 2,
       "distillation.temperature is 0", "[0.001, 1e+06]"},
      {"finetune pretrained --data synthetic:narrow --out finetuned --overwrite --teacher finetuned", 2,
       "finetuned/last.h5 is the teacher", "--out"},
      {"measure finetuned --out new --reference wider", 1, "16 elements", "32"},
      {"measure finetuned --out new --reference deeper", 1, "2 blocks", "has 3"},
      {"measure finetuned --out new --reference fewer", 1, "blocks.0.moe", "the 2 of"},
  };
  REFUSE_ALL(refusals);
  succeed("prune frozen --criterion random --drop 1 --out chance.h5");
}

/* What router-norm-change says of a finetuning that its paper would not have done; nothing of one that it would. */
static void test_doubts(void **state) {
  (void)state;
#define FINETUNE "finetune pretrained --data synthetic:narrow --quiet --set training.epochs=0.02 "
#define DOUBT " --criterion router-norm-change --drop 1 --reference pretrained --overwrite --out doubted"
  static const struct {
    const char *settings, *words, *not_words;
  } rows[] = {
      {"--set optimizer.kind=sgd", "", "doubtful"},
      {"--set optimizer.kind=sgd --set optimizer.router_decay=0.5", "decayed routers by 0.025", "AdamW"},
      {"--set optimizer.kind=adamw", "AdamW", "decayed"},
      {"--set optimizer.kind=adamw --set optimizer.router_decay=1", "(AdamW) and decayed routers by 0.05", "NULL"},
  };
  for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
    char line[512];
    snprintf(line, sizeof line, FINETUNE "--overwrite --out doubtful %s", rows[i].settings);
    succeed(line);
    succeed("prune doubtful" DOUBT);
    if (!strstr(err, rows[i].words) || strstr(err, rows[i].not_words)) fail_msg("%s: %s", rows[i].settings, err);
    if (*rows[i].words) assert_non_null(strstr(err, "espalier: note: the scores are doubtful"));
  }
}

/* A loss that is not finite ends the run with the step, the op and what to do. */
static void test_diverging(void **state) {
  (void)state;
  const int code =
      run(PRETRAIN "--out wild --set optimizer.kind=sgd --set optimizer.learning_rate=1000 --set optimizer.clip_norm=0 "
                   "--set optimizer.schedule.warmup=0 --set model.layers=[dense] --set training.epochs=1 "
                   "--set training.evaluate_every=1");
  assert_int_equal(code, 1);
  if (!strstr(err, "espalier: step ") || !strstr(err, "the first op with such a ") ||
      !strstr(err, "optimizer.learning_rate"))
    fail_msg("%s", err);
  assert_false(is_there("wild/results.json"));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_help),        cmocka_unit_test(test_usage),      cmocka_unit_test(test_unwritable),
      cmocka_unit_test(test_bad_configs), cmocka_unit_test(test_bad_data),   cmocka_unit_test(test_bad_checkpoints),
      cmocka_unit_test(test_damaged_run), cmocka_unit_test(test_references), cmocka_unit_test(test_doubts),
      cmocka_unit_test(test_diverging),
  };
  return cmocka_run_group_tests_name("cli refusals", tests, begin, end);
}
