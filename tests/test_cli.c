/* label: medium */
/* The program as people use it: the whole way from pretraining to a finetuned pruned model, and runs that are
 * interrupted, resumed and overwritten. */
#include "cli_program.h"

#include <hdf5.h>
#include <png.h>

static void test_runs(void **state) {
  (void)state;
  static const char *const files[] = {"config.yaml", "metrics.csv", "last.h5", "best.h5", "results.json"};
  char path[64], digest[32];
  for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
    snprintf(path, sizeof path, "finetuned/%s", files[i]);
    if (!is_there(path)) fail_msg("%s is missing", path);
  }
  json_t *results = json_load_file("finetuned/results.json", 0, NULL);
  digest_of("finetuned", digest);
  assert_string_equal(text(results, "digest"), digest);
  assert_true(number(results, "step") == 4 && number(results, "steps") == 4);
  json_decref(results);
  /* The resolved config is a config: it gives the same run. */
  succeed("pretrain pretrained/config.yaml --data synthetic --out again --quiet");
  char again[32];
  digest_of("pretrained", digest);
  digest_of("again", again);
  assert_string_equal(digest, again);
}

static void test_evaluate(void **state) {
  (void)state;
  json_t *e = succeed_json("evaluate finetuned --data synthetic:narrow");
  assert_true(number(e, "accuracy") >= 0 && number(e, "accuracy") <= 1);
  assert_true(number(e, "loss") > 1 && number(e, "loss") < 2);
  assert_true(number(e, "examples") == 1000);
  json_decref(e);
  e = succeed_json("evaluate finetuned/best.h5 --data synthetic:narrow --split train --limit 70 --threads 1");
  assert_true(number(e, "examples") == 70 && number(e, "threads") == 1);
  json_decref(e);
  succeed("evaluate pretrained --data synthetic --limit 10");
  assert_non_null(strstr(out, "accuracy"));
}

static void test_teacher(void **state) {
  (void)state;
  char digest[32];
  digest_of("finetuned", digest);
  json_t *r = succeed_json("finetune finetuned --data synthetic:narrow --out taught --quiet --teacher finetuned "
                           "--set distillation.temperature=3 --set training.freeze=blocks.*.router");
  const json_t *d = get(r, "distillation");
  assert_string_equal(text(d, "teacher"), digest);
  assert_true(number(d, "weight") == 0.2 && number(d, "temperature") == 3 && number(d, "last_loss") > 0);
  json_decref(r);
  r = succeed_json("inspect taught");
  assert_string_equal(text(item(r, "history", 2), "reference"), digest);
  json_decref(r);
  /* The settings stay with the run; without a teacher they do nothing. */
  succeed("finetune taught --data synthetic:narrow --out untaught --quiet");
}

/* A file goes over the model's own settings; a resumed run keeps what it said. */
static void test_config_of_a_finetuning(void **state) {
  (void)state;
  static const char recipe[] = "optimizer: {kind: sgd, weight_decay: 0}\ntraining: {epochs: 0.02}\n";
  static const char other[] = "optimizer: {kind: sgd, weight_decay: 0.5}\ntraining: {epochs: 0.02}\n";
  static char settled[TEXT_SIZE];
  write_file("recipe.yaml", recipe, sizeof recipe - 1);
  write_file("other.yaml", other, sizeof other - 1);
  succeed("finetune pretrained --data synthetic:narrow --out recipe --quiet --config recipe.yaml --set "
          "optimizer.momentum=0.8");
  read_file("recipe/config.yaml", settled, sizeof settled);
  if (!strstr(settled, "kind: sgd") || !strstr(settled, "momentum: 0.8") || !strstr(settled, "width: 16"))
    fail_msg("recipe.yaml is not over the model's settings:\n%s", settled);
  succeed("finetune pretrained --data synthetic:narrow --out recipe --quiet --config recipe.yaml --resume --set "
          "optimizer.momentum=0.8");
  refuse("finetune pretrained --data synthetic:narrow --out recipe --quiet --config other.yaml --resume --set "
         "optimizer.momentum=0.8",
         2, "keeps its settings", "`weight_decay: 0.5`");
  refuse("finetune pretrained --data synthetic:narrow --out never --quiet --config there-is-none.yaml", 1,
         "there-is-none.yaml", "");
}

static void test_merge(void **state) {
  (void)state;
  char digest[32];
  digest_of("finetuned", digest);
  json_t *m = succeed_json(
      "merge finetuned --data synthetic:narrow --groups 2 --budget layer --calibration 64 --ranks --out merged");
  assert_string_equal(text(m, "method"), "m-smoe");
  assert_true(number(m, "parameters") < number(m, "parameters_before") && number(m, "bytes") > 0);
  for (size_t i = 0; i < 2; i++) {
    const json_t *groups = get(item(m, "layers", i), "groups");
    size_t members = 0;
    assert_int_equal(json_array_size(groups), 2);
    assert_true(number(item(m, "layers", i), "stable_rank") >= 1 &&
                number(item(m, "layers", i), "stable_rank_before") >= 1);
    for (size_t g = 0; g < 2; g++) members += json_array_size(get(json_array_get(groups, g), "experts"));
    assert_int_equal(members, 4);
  }
  json_decref(m);
  m = succeed_json("inspect merged");
  assert_true(number(item(m, "layers", 0), "experts") == 4 && number(item(m, "layers", 0), "stored_experts") == 2);
  assert_string_equal(text(item(m, "history", 2), "action"), "merge");
  assert_string_equal(text(item(m, "history", 2), "parent"), digest);
  json_decref(m);
  assert_true(is_there("merged/plan.json"));
  /* With the routers frozen after merging too, what routers did says nothing. */
  succeed("finetune merged --data synthetic:narrow --out recovered --quiet --teacher finetuned "
          "--set training.freeze=blocks.*.router");
  refuse("prune recovered --criterion router-norm-change --reference finetuned --drop 1 --out never", 1,
         "router was frozen", "in the finetune on");
  succeed("merge finetuned --data synthetic:narrow --ratio 0.25 --method zipit --out zipped.h5");
  assert_non_null(strstr(out, "groups:"));
}

static void test_inspect(void **state) {
  (void)state;
  json_t *m = succeed_json("inspect finetuned --parameters");
  assert_true(number(m, "task_classes") == 5);
  assert_true(number(m, "parameters") > number(m, "activated_parameters") && number(m, "activated_parameters") > 1000);
  assert_int_equal(json_array_size(get(m, "layers")), 2);
  for (size_t i = 0; i < 2; i++) {
    const json_t *layer = item(m, "layers", i);
    assert_string_equal(text(layer, "name"), i ? "blocks.1.moe" : "blocks.0.moe");
    assert_string_equal(text(layer, "kind"), i ? "mone" : "moe");
    assert_true(number(layer, "experts") == 4 && number(layer, "stored_experts") == 4);
  }
  assert_int_equal(json_array_size(get(m, "history")), 2);
  assert_string_equal(text(item(m, "history", 0), "action"), "pretrain");
  assert_string_equal(text(item(m, "history", 1), "action"), "finetune");
  char digest[32];
  digest_of("pretrained", digest);
  assert_string_equal(text(item(m, "history", 1), "parent"), digest);
  assert_true(json_array_size(get(m, "parameter_shapes")) > 10);
  json_decref(m);
  succeed("inspect finetuned");
  assert_non_null(strstr(out, "5 classes (synthetic:narrow)"));
}

static void test_measure(void **state) {
  (void)state;
  static const char *const files[] = {"measure.json", "experts.csv", "routing.csv", "sparsity.csv", "activations.csv"};
  json_t *m =
      succeed_json("measure finetuned --reference pretrained --data synthetic:narrow --limit 100 --out measured");
  for (size_t i = 0; i < 2; i++) {
    double share = 0;
    assert_int_equal(json_array_size(get(item(m, "layers", i), "experts")), 4);
    for (size_t e = 0; e < 4; e++) {
      const json_t *expert = item(item(m, "layers", i), "experts", e);
      const double change = number(expert, "router_norm") - number(expert, "reference_norm");
      assert_true(fabs(number(expert, "router_norm_change") - change) < 1e-6);
      share += number(expert, "share");
    }
    assert_true(fabs(share - 1) < 1e-9);
  }
  for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
    char path[64];
    snprintf(path, sizeof path, "measured/%s", files[i]);
    if (!is_there(path)) fail_msg("%s is missing", path);
  }
  json_t *kept = json_load_file("measured/measure.json", 0, NULL);
  assert_true(json_equal(kept, m));
  json_decref(kept);
  json_decref(m);
  json_decref(succeed_json("measure finetuned --reference pretrained"));
  succeed("measure finetuned --data synthetic:narrow --limit 10");
  assert_non_null(strstr(out, "blocks.1.moe"));
}

/* Each policy is trained a little and measured; what it does not have is null or 0, and nothing fails. */
static void test_routers(void **state) {
  (void)state;
  static const char *const policies[] = {"token_choice", "expert_choice", "soft", "even"};
  for (size_t p = 0; p < sizeof policies / sizeof policies[0]; p++) {
    char line[512];
    snprintf(line, sizeof line,
             PRETRAIN "--out routed --overwrite --set training.epochs=0.02 --set "
                      "model.moe.router.renormalise=false --set model.moe.router.balance_weight=0 --set "
                      "model.moe.router.policy=%s",
             policies[p]);
    succeed(line);
    json_t *m = succeed_json("measure routed --data synthetic --limit 50");
    for (size_t e = 0; e < 4; e++) {
      const json_t *expert = item(item(m, "layers", 0), "experts", e);
      assert_true(number(expert, "count") > 0 || strcmp(policies[p], "token_choice") == 0);
      assert_true(number(expert, "served") == number(expert, "count"));
      assert_true(json_is_real(get(expert, "router_norm")) || strcmp(policies[p], "even") == 0);
    }
    json_decref(m);
    succeed("measure routed --data synthetic --limit 50");
  }
}

static void test_inspect_settings(void **state) {
  (void)state;
  json_t *settings = succeed_json("inspect small.yaml --set model.classes=20"),
         *model = succeed_json("inspect pretrained");
  assert_true(number(settings, "parameters") == number(model, "parameters"));
  assert_true(number(settings, "flops_per_image") == number(model, "flops_per_image"));
  json_decref(settings);
  json_decref(model);
}

static void test_upcycle(void **state) {
  (void)state;
  succeed(PRETRAIN "--out dense --set model.layers=[dense]");
  json_t *u = succeed_json("upcycle dense --set model.layers=[dense,moe] --set model.moe.top_k=2 --out upcycled");
  assert_true(json_is_true(get(u, "keeps_function")));
  assert_true(number(u, "experts") == 4 && number(u, "mixture_layers") == 1);
  assert_true(number(u, "parameters") == parameters_of("upcycled"));
  json_decref(u);
  json_t *before = succeed_json("evaluate dense --data synthetic"),
         *after = succeed_json("evaluate upcycled --data synthetic");
  assert_true(number(before, "accuracy") == number(after, "accuracy"));
  assert_true(fabs(number(before, "loss") - number(after, "loss")) < 1e-5);
  json_decref(before);
  json_decref(after);
  json_t *m = succeed_json("inspect upcycled");
  assert_string_equal(text(item(m, "history", 1), "action"), "upcycle");
  char digest[32];
  digest_of("dense", digest);
  assert_string_equal(text(item(m, "history", 1), "parent"), digest);
  json_decref(m);
  succeed("finetune upcycled --data synthetic --out grown --quiet --set training.epochs=0.02");
  succeed("upcycle dense --set model.layers=[moe] --noise 0.1 --seed 3 --out upcycled.h5");
  assert_non_null(strstr(out, "does not compute quite"));
  static const refusal refusals[] = {
      {"upcycle dense --out new", 2, "no block would become a mixture", "model.layers"},
      {"upcycle dense --set model.layers=[moe] --set model.moe.hidden=5 --out new", 2, "model.moe.hidden is 5",
       "neurons"},
      {"upcycle dense --set model.layers=[moe] --out upcycled.h5", 2, "upcycled.h5 exists already", "--overwrite"},
      {"upcycle dense --set model.layers=[moe] --noise x --out new", 2, "--noise is \"x\"", "from 0"},
      {"upcycle pretrained --set model.layers=[moe] --out new", 2, "already",
       "only a model whose layers are all dense"},
  };
  REFUSE_ALL(refusals);
}

/* The file tells without the program what it costs. */
static void assert_counts(const char *path) {
  static const char *const names[] = {"parameters", "activated_parameters", "flops_per_image"};
  char line[512];
  snprintf(line, sizeof line, "inspect %s", path);
  json_t *m = succeed_json(line);
  const hid_t file = H5Fopen(path, H5F_ACC_RDONLY, H5P_DEFAULT);
  assert_true(file >= 0);
  for (int i = 0; i < 3; i++) {
    int64_t value = 0;
    const hid_t attribute = H5Aopen(file, names[i], H5P_DEFAULT);
    assert_true(attribute >= 0 && H5Aread(attribute, H5T_NATIVE_INT64, &value) >= 0);
    assert_true((double)value == number(m, names[i]));
    H5Aclose(attribute);
  }
  H5Fclose(file);
  json_decref(m);
}

static void test_counts_in_checkpoints(void **state) {
  (void)state;
  succeed("prune finetuned --criterion random --drop 2 --out counted.h5");
  assert_counts("finetuned/last.h5");
  assert_counts("finetuned/best.h5");
  assert_counts("counted.h5");
}

static void test_capacity_is_reported(void **state) {
  (void)state; /* 8 images of 64 tokens, 4 experts: 512 x 1.05 / 4 = 134.4, so 136 slots, 1.0625 times 128 */
  succeed("pretrain small.yaml --data synthetic --out limited --set training.epochs=0.01 --set "
          "model.moe.router.capacity=1.05 --set model.stem.pools=[2,2]");
  if (!strstr(err, "an expert serves 136 of each 512 tokens, 1.062 times an even share (1.05 asked for)"))
    fail_msg("%s", err);
}

static void test_trace(void **state) {
  (void)state;
  json_decref(succeed_json("measure finetuned --data synthetic:narrow --limit 300 --trace routes.h5"));
  json_t *plain = succeed_json("evaluate finetuned --data synthetic:narrow --limit 300");
  json_t *same = succeed_json("evaluate finetuned --data synthetic:narrow --limit 300 --replay routes.h5");
  json_t *other = succeed_json("evaluate finetuned/best.h5 --data synthetic:narrow --limit 200 --replay routes.h5");
  assert_true(number(plain, "loss") == number(same, "loss") && number(plain, "accuracy") == number(same, "accuracy"));
  assert_true(isfinite(number(other, "loss")));
  json_decref(plain);
  json_decref(same);
  json_decref(other);
  succeed(PRETRAIN
          "--out untraceable --set model.moe.router.policy=expert_choice --set model.moe.router.renormalise=false "
          "--set model.moe.router.balance_weight=0");
  static const refusal refusals[] = {
      {"evaluate finetuned --data synthetic:narrow --replay routes.h5", 1, "the trace has 300 images", "evaluate 300"},
      {"evaluate finetuned --data synthetic:narrow --limit 9 --split train --replay routes.h5", 1, "test split",
       "train split"},
      {"evaluate pretrained --data synthetic --limit 9 --replay routes.h5", 1, "synthetic:narrow", "recorded on"},
      {"evaluate finetuned --data synthetic:narrow --limit 9 --replay finetuned/last.h5", 1, "espalier checkpoint",
       "espalier routing trace"},
      {"evaluate finetuned --data synthetic:narrow --limit 9 --replay nowhere.h5", 1, "nowhere.h5", "routing trace"},
      {"measure finetuned --reference pretrained --trace t.h5", 2, "--trace", "--data"},
      {"measure untraceable --data synthetic --limit 9 --trace t.h5", 1, "expert_choice",
       "token_choice, hash and even"},
  };
  REFUSE_ALL(refusals);
  static char bytes[1 << 20];
  const size_t size = read_file("routes.h5", bytes, sizeof bytes);
  bytes[size / 2] ^= 1;
  write_file("damaged.h5", bytes, size);
  refuse("evaluate finetuned --data synthetic:narrow --limit 9 --replay damaged.h5", 1, "damaged.h5", "checksum");
}

/* ---- prune ---- */

static void check_pruned(const json_t *plan, const char *mode) {
  char line[512];
  snprintf(line, sizeof line, "inspect %s", text(plan, "checkpoint"));
  json_t *m = succeed_json(line);
  const bool removed = strcmp(mode, "remove") == 0;
  for (size_t i = 0; i < 2; i++) {
    assert_int_equal(json_array_size(get(item(plan, "layers", i), "dropped")), 2);
    assert_true(number(item(m, "layers", i), "experts") == (removed ? 2 : 4));
    assert_true(number(item(m, "layers", i), "stored_experts") == 2);
  }
  assert_string_equal(text(item(m, "history", 2), "action"), "prune");
  assert_string_equal(text(m, "digest"), text(plan, "digest"));
  assert_true(number(m, "parameters") == number(plan, "parameters"));
  assert_true(number(m, "parameters") < number(plan, "parameters_before"));
  json_decref(m);
  snprintf(line, sizeof line, "evaluate %s --data synthetic:narrow --limit 20", text(plan, "checkpoint"));
  json_decref(succeed_json(line));
}

static void test_prune(void **state) {
  (void)state;
  static const char *const criteria[] = {"router-norm-change", "router-norm-change-absolute", "router-difference-norm",
                                         "random"};
  static const char *const modes[] = {"zero", "remove", "mask"};
  const uint64_t pretrained = all_that_is_in("pretrained"), finetuned = all_that_is_in("finetuned");
  for (int c = 0; c < 4; c++)
    for (int m = 0; m < 3; m++) {
      char line[512];
      snprintf(line, sizeof line, "prune finetuned --criterion %s --mode %s %s %s --out pruned.%d.%d%s", criteria[c],
               modes[m], c < 3 ? "--reference pretrained" : "--seed 3", m ? "--drop 2" : "--ratio 0.5", c, m,
               c % 2 ? ".h5" : "");
      json_t *plan = succeed_json(line);
      check_pruned(plan, modes[m]);
      assert_string_equal(text(plan, "criterion"), criteria[c]);
      json_decref(plan);
    }
  assert_true(is_there("pruned.0.0/plan.json") && is_there("pruned.1.0.h5"));
  json_t *plan = json_load_file("pruned.0.0/plan.json", 0, NULL);
  assert_non_null(plan);
  json_decref(plan);
  assert_true(all_that_is_in("pretrained") == pretrained && all_that_is_in("finetuned") == finetuned);
}

/* Removing an expert's row and never choosing it are the same function; only the file differs. */
static void test_modes(void **state) {
  (void)state;
  double loss[2], bytes[2], whole;
  json_t *m = succeed_json("inspect finetuned/last.h5");
  whole = number(m, "bytes");
  json_decref(m);
  for (int i = 0; i < 2; i++) {
    char line[512];
    snprintf(line, sizeof line, "prune finetuned --criterion random --drop 3 --mode %s --out same.%d.h5",
             i ? "mask" : "remove", i);
    json_t *plan = succeed_json(line);
    bytes[i] = number(plan, "bytes");
    json_decref(plan);
    snprintf(line, sizeof line, "evaluate same.%d.h5 --data synthetic:narrow", i);
    json_t *e = succeed_json(line);
    loss[i] = number(e, "loss");
    json_decref(e);
  }
  assert_true(loss[0] == loss[1]);
  assert_true(bytes[0] <= bytes[1] && bytes[1] < whole);
}

static void test_random_pruning(void **state) {
  (void)state;
  char first[32] = "", digest[32];
  int different = 0;
  for (int seed = 0; seed < 6; seed++) {
    char line[512];
    snprintf(line, sizeof line, "prune finetuned --criterion random --drop 2 --out random.h5 --overwrite --seed %d",
             seed % 5);
    json_t *plan = succeed_json(line);
    snprintf(digest, sizeof digest, "%s", text(plan, "digest"));
    json_decref(plan);
    if (seed == 0) snprintf(first, sizeof first, "%s", digest);
    different += strcmp(first, digest) != 0;
  }
  assert_string_equal(first, digest); /* seed 0 again */
  assert_true(different > 0);
}

static void test_finetune_pruned(void **state) {
  (void)state;
  static const char *const modes[] = {"zero", "remove", "mask"};
  for (int m = 0; m < 3; m++) {
    char line[512], name[32];
    snprintf(line, sizeof line,
             "prune finetuned --criterion router-norm-change --reference pretrained --drop 1 --mode %s --out tune.%d",
             modes[m], m);
    succeed(line);
    snprintf(line, sizeof line, "finetune tune.%d --data synthetic:narrow --out tuned.%d --set training.epochs=0.05", m,
             m);
    json_t *r = succeed_json(line);
    assert_true(number(r, "step") == 4);
    json_decref(r);
    snprintf(name, sizeof name, "tune.%d", m);
    const double before = parameters_of(name);
    snprintf(name, sizeof name, "tuned.%d", m);
    assert_true(parameters_of(name) == before);
    /* What was finetuned after pruning can be pruned again. */
    snprintf(line, sizeof line,
             "prune tuned.%d --criterion router-norm-change --reference tune.%d --drop 1 --out twice.%d", m, m, m);
    succeed(line);
    snprintf(name, sizeof name, "twice.%d", m);
    assert_true(parameters_of(name) < before);
  }
}

/* ---- data ---- */

static void test_data(void **state) {
  (void)state;
  json_t *list = succeed_json("data list");
  assert_string_equal(text(item(list, "datasets", 0), "name"), "synthetic");
  json_decref(list);
  succeed("data list");
  assert_non_null(strstr(out, "cifar10\n"));
  json_t *info = succeed_json("data info synthetic");
  assert_true(number(info, "classes") == 20 && number(info, "train") == 19000 && number(info, "validation") == 1000 &&
              number(info, "test") == 2000);
  assert_int_equal(json_array_size(get(info, "shape")), 3);
  assert_int_equal(json_integer_value(item(info, "shape", 0)), 32);
  assert_int_equal(json_integer_value(item(info, "shape", 2)), 3);
  json_decref(info);
  succeed("data info synthetic:narrow");
  assert_non_null(strstr(out, "5 classes, 4750 training, 250 validation and 1000 test images of 32 x 32 x 3"));
}

static void test_preview(void **state) {
  (void)state;
  json_decref(succeed_json("data preview synthetic:narrow --out sheet.png --augment --split train --seed 3"));
  png_image image = {.version = PNG_IMAGE_VERSION};
  assert_true(png_image_begin_read_from_file(&image, "sheet.png"));
  assert_true(image.width >= 12 * 32 && image.height >= 5 * 32);
  png_image_free(&image);
  refuse("data preview synthetic --out missing/sheet.png", 1, "missing/sheet.png", "No such file");
  refuse("data preview synthetic --out sheet2.png --split all", 2, "--split is \"all\"", "test, validation or train");
  refuse("data preview synthetic", 2, "--out is missing", "sheet.png");
}

/* ---- interrupted runs ---- */

#define LONGER "--set training.epochs=0.4 --set training.evaluate_every=0.15 --set training.log_every=1 "

static void test_interrupts(void **state) {
  (void)state;
  char whole[32], digest[32];
  succeed(PRETRAIN LONGER "--out whole");
  digest_of("whole", whole);
  for (int i = 0; i < 3; i++) {
    if (i) remove_folder("stopped");
    const pid_t child = spawn(PRETRAIN LONGER "--out stopped", in_base("out"));
    wait_for("stopped/metrics.csv", 1500);
    kill(child, (int[]){SIGINT, SIGTERM, SIGHUP}[i]);
    assert_int_equal(finish(child), 1);
    if (!strstr(err, "stopped after step ") || !strstr(err, "of 119; continue with the same command and --resume"))
      fail_msg("%s", err);
    assert_true(is_there("stopped/last.h5") && !is_there("stopped/results.json"));
    succeed("inspect stopped");
    succeed(PRETRAIN LONGER "--out stopped --resume");
    digest_of("stopped", digest);
    assert_string_equal(digest, whole);
  }
}

/* No chance to write anything: the newest checkpoint counts. */
static void test_killed(void **state) {
  (void)state;
  char digest[32], whole[32];
  succeed(PRETRAIN LONGER "--out whole --overwrite");
  const pid_t child = spawn(PRETRAIN LONGER "--out killed --set training.checkpoint_minutes=0.000001", in_base("out"));
  wait_for("killed/last.h5", 1);
  wait_for("killed/metrics.csv", 1500);
  kill(child, SIGKILL);
  assert_int_equal(finish(child), -SIGKILL);
  succeed(PRETRAIN LONGER "--out killed --set training.checkpoint_minutes=0.000001 --resume");
  digest_of("whole", whole);
  digest_of("killed", digest);
  assert_string_equal(digest, whole);
  remove_folder("killed"); /* it may hold a temporary file */
}

static void test_resume(void **state) {
  (void)state;
  static const refusal refusals[] = {
      {PRETRAIN "--out pretrained --resume --set optimizer.learning_rate=0.1", 2, "keeps its settings",
       "`learning_rate: 0.1`"},
      {PRETRAIN "--out pretrained --resume --set model.width=32", 2, "keeps its settings", "`width: 16`"},
      {PRETRAIN "--out pretrained --resume --set training.freeze=stem.*", 2, "keeps its settings", "`freeze: "},
      {PRETRAIN "--out pretrained --resume --seed 2", 2, "keeps its settings", "`seed: 1`"},
      {"pretrain small.yaml --data synthetic:narrow --out pretrained --resume", 1, "was started on synthetic",
       "synthetic:narrow"},
      {"pretrain missing.yaml --data synthetic --out pretrained --resume", 1, "missing.yaml", "No such file"},
  };
  REFUSE_ALL(refusals);
  char before[32], after[32];
  digest_of("pretrained", before);
  const uint64_t finished = all_that_is_in("pretrained"); /* nothing is left to do, and nothing changes */
  succeed("pretrain small.yaml --data synthetic --out pretrained --resume");
  assert_non_null(strstr(err, "pretrained is finished: there is nothing to resume"));
  assert_true(all_that_is_in("pretrained") == finished);
  succeed(PRETRAIN "--out pretrained --resume");
  succeed("pretrain --data synthetic --out pretrained --resume --quiet");
  digest_of("pretrained", after);
  assert_string_equal(before, after);
}

#define CONSTANT \
  "pretrain small.yaml --data synthetic --set optimizer.schedule.kind=constant --set optimizer.schedule.warmup=0 "
#define EPOCHS "--set training.epochs="

/* And from the settings alone, as a run leaves them that was stopped before its first checkpoint. */
static void test_lengthened(void **state) {
  (void)state;
  char stretched[32], whole[32];
  assert_int_equal(mkdir("begun", 0777), 0);
  write_file("begun/config.yaml", "{}\n", 3);
  succeed(CONSTANT EPOCHS "0.06 --out begun --resume");
  assert_non_null(strstr(err, "the run in begun was stopped before its first checkpoint: it starts from step 0"));
  digest_of("begun", whole);
  succeed(CONSTANT EPOCHS "0.03 --out stretched");
  static const refusal refusals[] = {
      {CONSTANT EPOCHS "0.02 --out stretched --resume", 2, "training.epochs is 0.02", "lengthened, but not shortened"},
      {CONSTANT EPOCHS "0.06 --set training.batch=32 --out stretched --resume", 2, "keeps its settings", "`batch: 32`"},
  };
  REFUSE_ALL(refusals);
  succeed(CONSTANT EPOCHS "0.06 --out stretched --resume");
  assert_non_null(strstr(err, "lengthened from 0.03 to 0.06 epochs"));
  digest_of("stretched", stretched);
  assert_string_equal(stretched, whole);
  json_t *results = json_load_file("stretched/results.json", 0, NULL);
  assert_string_equal(text(results, "digest"), whole);
  json_decref(results);
  succeed("inspect stretched");
  assert_non_null(strstr(out, "; lengthened after step "));
  succeed("pretrain --data synthetic --out stretched --resume");
  assert_non_null(strstr(err, "stretched is finished: there is nothing to resume"));
}

/* Of a finetuning: whatever else is named is not what it came from. */
static void test_resumed_from_another_model(void **state) {
  (void)state;
  static const refusal refusals[] = {
      {"finetune again --data synthetic:narrow --out tuned --resume --quiet", 1, "tuned was started from the model",
       "again/last.h5 is the model"},
      {"finetune gone --data synthetic:narrow --out tuned --resume --quiet", 1, "gone", "name the run itself"},
  };
  succeed("finetune pretrained --data synthetic:narrow --out tuned --quiet");
  succeed(PRETRAIN "--seed 5 --out again --overwrite");
  REFUSE_ALL(refusals);
  succeed("finetune pretrained --data synthetic:narrow --out tuned --resume");
  succeed("finetune tuned --data synthetic:narrow --out tuned --resume");
  assert_non_null(strstr(err, "tuned is finished"));
}

#define DIVERGING                                                                                  \
  "--set optimizer.kind=sgd --set optimizer.learning_rate=1000 --set optimizer.clip_norm=0 --set " \
  "optimizer.schedule.warmup=0 --set model.layers=[dense] --set training.epochs=1 --set training.evaluate_every=1 "

static void test_overwrite(void **state) {
  (void)state;
  succeed(PRETRAIN "--out over");
  refuse(PRETRAIN "--out over", 2, "over already holds a run", "--overwrite");
  refuse("finetune pretrained --data synthetic:narrow --out over", 2, "over already holds a run", "--resume");
  /* A new run that fails leaves nothing of the old one that could be taken for its own. */
  assert_int_equal(run(PRETRAIN DIVERGING "--out over --overwrite"), 1);
  assert_false(is_there("over/best.h5") || is_there("over/last.h5") || is_there("over/results.json"));
  succeed(PRETRAIN "--out over --overwrite --seed 2");
  succeed("prune pretrained --criterion random --drop 1 --out over.h5");
  static const refusal refusals[] = {
      {"prune pretrained --criterion random --drop 1 --out over.h5", 2, "over.h5 exists already", "--overwrite"},
      {"prune pretrained --criterion random --drop 1 --out pretrained --overwrite", 2, "one of the inputs",
       "pretrained/last.h5"},
      {"prune finetuned --criterion router-norm-change --reference pretrained --drop 1 --out pretrained/last.h5 "
       "--overwrite",
       2, "one of the inputs", "pretrained/last.h5"},
      {"finetune pretrained --data synthetic --out ./pretrained --overwrite", 2, "the model to be finetuned", "--out"},
  };
  REFUSE_ALL(refusals);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_runs),
      cmocka_unit_test(test_evaluate),
      cmocka_unit_test(test_inspect),
      cmocka_unit_test(test_merge),
      cmocka_unit_test(test_teacher),
      cmocka_unit_test(test_config_of_a_finetuning),
      cmocka_unit_test(test_measure),
      cmocka_unit_test(test_routers),
      cmocka_unit_test(test_inspect_settings),
      cmocka_unit_test(test_upcycle),
      cmocka_unit_test(test_trace),
      cmocka_unit_test(test_counts_in_checkpoints),
      cmocka_unit_test(test_capacity_is_reported),
      cmocka_unit_test(test_prune),
      cmocka_unit_test(test_modes),
      cmocka_unit_test(test_random_pruning),
      cmocka_unit_test(test_finetune_pruned),
      cmocka_unit_test(test_data),
      cmocka_unit_test(test_preview),
      cmocka_unit_test(test_interrupts),
      cmocka_unit_test(test_killed),
      cmocka_unit_test(test_resume),
      cmocka_unit_test(test_lengthened),
      cmocka_unit_test(test_resumed_from_another_model),
      cmocka_unit_test(test_overwrite),
  };
  return cmocka_run_group_tests_name("cli", tests, begin, end);
}
