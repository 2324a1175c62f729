/* label: medium */
/* The training loop: the same bits whether interrupted or not and for any number of threads, what stops it, what it
 * freezes, what it writes, and that a step allocates nothing after the first. */
#define SHARED_DATA "synthetic:narrow" /* 148 batches an epoch, evaluated after steps 4, 7 and 10 */
#include "testing.h"
#include "shared_data.h"

#include <espalier/core.h>
#include <espalier/train.h>

static const char *const small_settings[] = {"model.stem.kind=convolution",
                                             "model.stem.channels=[8]",
                                             "model.stem.pools=[4, 4]",
                                             "model.width=16",
                                             "model.blocks=2",
                                             "model.mixing=convolution",
                                             "model.kernel=3",
                                             "model.dropout=0.1",
                                             "model.layers=[moe, mone]",
                                             "model.moe.experts=4",
                                             "model.moe.top_k=2",
                                             "model.moe.hidden=8",
                                             "model.moe.router.noise=1",
                                             "model.moe.router.z_weight=0.001",
                                             "augmentation.crop_padding=2",
                                             "augmentation.mixup=0.2",
                                             "training.batch=32",
                                             "training.epochs=0.064",
                                             "training.evaluate_every=0.0225",
                                             "training.evaluate_examples=64",
                                             "training.log_every=1"};
enum {
  SETTING_COUNT = sizeof small_settings / sizeof small_settings[0],
  STEPS = 10,
  MOST_SETTINGS = 8,
  TEXT_SIZE = 1 << 19
};

/* A run as a program would hold it. */
typedef struct training {
  char folder[TESTING_PATH_SIZE];
  esp_run_config config;
  esp_model *model;
  esp_checkpoint_info info;
  const esp_model *teacher;
  const esp_checkpoint_info *teacher_info;
  esp_training_result result;
} training;

static void expect_ok(esp_status status) {
  if (status != ESP_OK) fail_msg("status %d: %s", status, esp_error_message());
}

static void expect_failure(esp_status got, esp_status expected, const char *words, const char *more_words) {
  if (got != expected) fail_msg("status %d, expected %d: %s", got, expected, esp_error_message());
  if (!strstr(esp_error_message(), words) || !strstr(esp_error_message(), more_words))
    fail_msg("the message lacks \"%s\" or \"%s\": %s", words, more_words, esp_error_message());
}

/* The small settings as if a file held them, overlaid by others (up to the first NULL), which may make them idle. */
static void settle(esp_run_config *config, const char *const settings[MOST_SETTINGS]) {
  char *text;
  size_t count = 0;
  while (count < MOST_SETTINGS && settings[count]) count++;
  expect_ok(esp_run_config_load(config, NULL, small_settings, SETTING_COUNT));
  expect_ok(esp_run_config_save(&text, config));
  expect_ok(esp_run_config_parse(config, "the small settings", text, settings, count));
  esp_free(text);
}

/* A new run with some settings besides the small ones. */
static void set_up(training *t, const char *const settings[MOST_SETTINGS]) {
  *t = (training){.model = NULL};
  make_folder(t->folder);
  settle(&t->config, settings);
  const esp_dataset_info *info = esp_dataset_info_of(data);
  esp_model_config *config = &t->config.model;
  config->image_height = info->height, config->image_width = info->width, config->image_channels = info->channels;
  config->classes = info->classes;
  expect_ok(esp_model_create(&t->model, config, NULL, t->config.training.seed));
  esp_dataset_normalisation(data, &t->info.normalisation);
  t->info.history_count = 1;
  snprintf(t->info.history[0].action, sizeof t->info.history[0].action, "pretrain");
}

#define SETTINGS(...) ((const char *const[MOST_SETTINGS]){__VA_ARGS__})

static void forget(training *t) {
  esp_model_free(t->model);
  esp_checkpoint_info_clear(&t->info);
  t->model = NULL;
}

static void tear_down(training *t) {
  forget(t);
  remove_folder(t->folder);
}

static const char *file_of(const training *t, const char *name) {
  static char path[TESTING_PATH_SIZE + 64];
  snprintf(path, sizeof path, "%s/%s", t->folder, name);
  return path;
}

static esp_status go(training *t, const char *resume_from, const volatile sig_atomic_t *stop) {
  const esp_training_job job = {.model = t->model,
                                .dataset = data,
                                .config = &t->config,
                                .folder = t->folder,
                                .info = &t->info,
                                .teacher = t->teacher,
                                .teacher_info = t->teacher_info,
                                .resume_from = resume_from,
                                .stop = stop,
                                .quiet = true};
  return esp_train(&job, &t->result);
}

static void load_last(training *t) {
  forget(t);
  expect_ok(esp_checkpoint_load(file_of(t, "last.h5"), &t->model, &t->info));
}

/* As another process would: all that is known of the run comes from its folder. */
static esp_status go_on(training *t, const volatile sig_atomic_t *stop) {
  load_last(t);
  char path[TESTING_PATH_SIZE + 64];
  snprintf(path, sizeof path, "%s", file_of(t, "last.h5"));
  return go(t, path, stop);
}

static size_t read_file(const char *path, char text[TEXT_SIZE]) {
  FILE *file = fopen(path, "rb");
  if (!file) fail_msg("%s cannot be read", path);
  const size_t size = fread(text, 1, TEXT_SIZE - 1, file);
  fclose(file);
  assert_true(size < TEXT_SIZE - 1);
  text[size] = '\0';
  return size;
}

/* The file without its columns images_per_second and seconds. */
static void read_metrics(const training *t, char text[TEXT_SIZE]) {
  const size_t size = read_file(file_of(t, "metrics.csv"), text);
  size_t kept = 0;
  int column = 1;
  for (size_t i = 0; i < size; i++) {
    if ((column != 24 && column != 25) || text[i] == '\n') text[kept++] = text[i];
    column = text[i] == '\n' ? 1 : column + (text[i] == ',');
  }
  text[kept] = '\0';
}

static void assert_same_optimizers(training *a, training *b) {
  esp_optimizer *one, *two;
  expect_ok(esp_optimizer_create(&one, &a->config.optimizer, a->model->parameters));
  expect_ok(esp_optimizer_create(&two, &b->config.optimizer, b->model->parameters));
  expect_ok(esp_checkpoint_load_optimizer(file_of(a, "last.h5"), one));
  expect_ok(esp_checkpoint_load_optimizer(file_of(b, "last.h5"), two));
  assert_int_equal(esp_optimizer_steps(one), STEPS);
  assert_int_equal(esp_optimizer_steps(two), STEPS);
  const char *name;
  for (int i = 0; esp_optimizer_state(one, i, &name); i++)
    assert_same_bits(name, esp_optimizer_state(one, i, &name), esp_optimizer_state(two, i, &name),
                     esp_parameters_size(a->model->parameters));
  esp_optimizer_free(one);
  esp_optimizer_free(two);
}

/* What is known of the routers, wherever it was stopped in between. */
static void assert_same_routing(const training *a, const training *b) {
  static char one[TEXT_SIZE], two[TEXT_SIZE];
  static const char *const names[] = {"routing.csv", "coactivation.csv", "specialisation.csv", "alarms.csv"};
  for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
    read_file(file_of(a, names[i]), one);
    read_file(file_of(b, names[i]), two);
    assert_string_equal(one, two);
    assert_true(i == 3 || strstr(one, "\n10,")); /* the evaluation at the end */
  }
}

static void assert_same_runs(training *a, training *b) {
  static char one[TEXT_SIZE], two[TEXT_SIZE];
  assert_same_bits("parameters", esp_parameters_values(a->model->parameters),
                   esp_parameters_values(b->model->parameters), esp_parameters_size(a->model->parameters));
  assert_same_optimizers(a, b);
  assert_string_equal(a->info.digest, b->info.digest);
  assert_int_equal(a->info.progress.step, b->info.progress.step);
  assert_int_equal(a->info.progress.best_step, b->info.progress.best_step);
  assert_true(a->info.progress.best_accuracy == b->info.progress.best_accuracy);
  assert_int_equal(a->info.history[0].steps, b->info.history[0].steps);
  assert_true(a->result.final.accuracy == b->result.final.accuracy && a->result.final.loss == b->result.final.loss);
  read_metrics(a, one);
  read_metrics(b, two);
  assert_string_equal(one, two);
  assert_same_routing(a, b);
}

static const volatile sig_atomic_t at_once = 1;

/* Stopped and resumed after each of its steps, the end included. */
static void test_resumed_after_each_step(void **state) {
  (void)state;
  training whole, pieces;
  set_up(&whole, SETTINGS(NULL));
  expect_ok(go(&whole, NULL, NULL));
  assert_int_equal(whole.result.steps, STEPS);
  set_up(&pieces, SETTINGS(NULL));
  expect_failure(go(&pieces, NULL, &at_once), ESP_ERR_INTERRUPTED, "stopped after step 1 of 10", "");
  for (int step = 2; step <= STEPS; step++) {
    expect_failure(go_on(&pieces, &at_once), ESP_ERR_INTERRUPTED, "stopped after step", "");
    assert_int_equal(pieces.info.progress.step, step);
  }
  expect_ok(go_on(&pieces, &at_once));
  assert_same_runs(&whole, &pieces);
  expect_ok(go_on(&pieces, NULL)); /* as if it had died when all was done but said */
  assert_same_routing(&whole, &pieces);
  tear_down(&whole);
  tear_down(&pieces);
}

/* With SGD and rows of the metrics that end where it was stopped; the file has since got rows of a later state. */
static void test_resumed_once(void **state) {
  (void)state;
  training whole, resumed;
  const char *const *const settings =
      SETTINGS("optimizer.kind=sgd", "optimizer.learning_rate=0.1", "training.compression=0");
  set_up(&whole, settings);
  expect_ok(go(&whole, NULL, NULL));
  set_up(&resumed, settings);
  for (int step = 1; step <= 3; step++)
    expect_failure(step == 1 ? go(&resumed, NULL, &at_once) : go_on(&resumed, &at_once), ESP_ERR_INTERRUPTED, "", "");
  FILE *file = fopen(file_of(&resumed, "metrics.csv"), "a");
  assert_non_null(file);
  fputs("4,0.0256,train,9,9,9,9,9,9,9,9,9,9,9,9\n5,0.03", file);
  fclose(file);
  expect_ok(go_on(&resumed, NULL));
  assert_same_runs(&whole, &resumed);
  tear_down(&whole);
  tear_down(&resumed);
}

/* Stopped after the last checkpoint, before anybody knew. */
static void test_resumed_at_the_end(void **state) {
  (void)state;
  static char before[TEXT_SIZE], after[TEXT_SIZE];
  training t;
  set_up(&t, SETTINGS(NULL));
  expect_ok(go(&t, NULL, NULL));
  read_file(file_of(&t, "metrics.csv"), before);
  expect_ok(go_on(&t, NULL));
  read_file(file_of(&t, "metrics.csv"), after);
  assert_string_equal(before, after);
  assert_int_equal(t.result.final.examples, 1000);
  tear_down(&t);
}

/* With running averages, weights from the data and flips by epoch. */
static void test_resumed_with_state(void **state) {
  (void)state;
  training whole, resumed;
  const char *const *const settings =
      SETTINGS("model.norm=batch", "model.stem.whitening=5", "model.stem.extra_convolutions=1",
               "augmentation.reflect=true", "augmentation.flip=true", "augmentation.alternate=true");
  set_up(&whole, settings);
  expect_ok(go(&whole, NULL, NULL));
  assert_true(whole.model->stem.stages[1].convolutions[1].norm.mean->data[0] != 0);
  set_up(&resumed, settings);
  expect_failure(go(&resumed, NULL, &at_once), ESP_ERR_INTERRUPTED, "", "");
  expect_ok(go_on(&resumed, NULL));
  assert_same_runs(&whole, &resumed);
  tear_down(&whole);
  tear_down(&resumed);
}

static void test_resumed_with_other_settings(void **state) {
  (void)state;
  training t;
  set_up(&t, SETTINGS(NULL));
  expect_failure(go(&t, NULL, &at_once), ESP_ERR_INTERRUPTED, "", "");
  t.config.training.seed = 7;
  expect_failure(go_on(&t, NULL), ESP_ERR_CONFIG, "started with seed 1, not 7", "keeps its settings");
  t.config.training.seed = 1;
  t.config.training.epochs = 0.05;
  expect_failure(go_on(&t, NULL), ESP_ERR_CONFIG, "planned for 10 steps and has done 1", "but not shortened");
  t.config.optimizer.kind = ESP_OPTIMIZER_SGD;
  expect_failure(go_on(&t, NULL), ESP_ERR_MISMATCH, "last.h5", "");
  tear_down(&t);
}

/* At its end, and once more half way: as if it had been as long from the start, optimiser and best model included. */
static void test_lengthened(void **state) {
  (void)state;
  training whole, grown;
  const char *const *const settings =
      SETTINGS("optimizer.schedule.kind=constant", "optimizer.schedule.warmup=0", "training.evaluate_examples=0");
  set_up(&whole, settings);
  expect_ok(go(&whole, NULL, NULL));
  set_up(&grown, settings);
  grown.config.training.epochs = 4.0 / 148;
  expect_ok(go(&grown, NULL, NULL));
  assert_int_equal(grown.result.steps, 4);
  grown.config.training.epochs = 7.0 / 148;
  expect_failure(go_on(&grown, &at_once), ESP_ERR_INTERRUPTED, "stopped after step 5 of 7", "");
  grown.config.training.epochs = whole.config.training.epochs;
  expect_ok(go_on(&grown, NULL));
  assert_same_bits("parameters", esp_parameters_values(whole.model->parameters),
                   esp_parameters_values(grown.model->parameters), esp_parameters_size(whole.model->parameters));
  assert_same_optimizers(&whole, &grown);
  assert_int_equal(whole.info.progress.best_step, grown.info.progress.best_step);
  assert_true(whole.info.progress.best_accuracy == grown.info.progress.best_accuracy);
  assert_true(whole.result.final.loss == grown.result.final.loss);
  assert_int_equal(grown.info.history[0].steps, STEPS);
  assert_string_equal(grown.info.history[0].detail,
                      "; lengthened after step 4 from 4 to 7 steps; lengthened after step 5 "
                      "from 7 to 10 steps");
  tear_down(&whole);
  tear_down(&grown);
}

/* The last accuracy was that of all images: on the way the best one competes with others of as many as they look at. */
static void test_the_best_before_a_lengthening(void **state) {
  (void)state;
  training t;
  esp_evaluation part;
  set_up(&t, SETTINGS("training.epochs=0.0337"));
  expect_ok(go(&t, NULL, NULL));
  const esp_progress ended = t.info.progress;
  const esp_evaluation_options options = {.split = ESP_VALIDATION, .limit = 64};
  esp_trained best;
  expect_ok(esp_trained_load(&best, file_of(&t, "best.h5")));
  expect_ok(esp_evaluate(best.model, data, &t.info.normalisation, &options, &part));
  esp_trained_clear(&best);
  t.config.training.epochs = 0.064;
  t.config.training.evaluate_every = 9;
  expect_failure(go_on(&t, &at_once), ESP_ERR_INTERRUPTED, "stopped after step 6 of 10", "");
  assert_true(part.accuracy != ended.best_accuracy && t.info.progress.best_accuracy == part.accuracy);
  assert_int_equal(t.info.progress.best_step, ended.best_step);
  tear_down(&t);
}

static void test_threads(void **state) {
  (void)state;
  training one, two;
  set_up(&one, SETTINGS("model.mixing=attention", "model.heads=4"));
  set_up(&two, SETTINGS("model.mixing=attention", "model.heads=4"));
  esp_threads_set(1);
  expect_ok(go(&one, NULL, NULL));
  esp_threads_set(2);
  expect_ok(go(&two, NULL, NULL));
  esp_threads_set(0);
  assert_same_runs(&one, &two);
  tear_down(&one);
  tear_down(&two);
}

/* ---- bf16 ---- */

static void skip_without_bf16(void) {
  if (esp_precision_check(ESP_BF16) == ESP_OK) return;
  print_message("not tested here: %s\n", esp_error_message());
  skip();
}

/* Interrupted with two threads and not with one. */
static void test_bf16_runs_keep_their_bits(void **state) {
  (void)state;
  skip_without_bf16();
  training whole, resumed, other;
  set_up(&whole, SETTINGS("training.precision=bf16", "model.mixing=attention", "model.heads=4"));
  set_up(&resumed, SETTINGS("training.precision=bf16", "model.mixing=attention", "model.heads=4"));
  set_up(&other, SETTINGS("model.mixing=attention", "model.heads=4"));
  esp_threads_set(1);
  expect_ok(go(&whole, NULL, NULL));
  expect_ok(go(&other, NULL, NULL));
  esp_threads_set(2);
  expect_failure(go(&resumed, NULL, &at_once), ESP_ERR_INTERRUPTED, "", "");
  expect_ok(go_on(&resumed, NULL));
  esp_threads_set(0);
  assert_same_runs(&whole, &resumed);
  const int64_t size = esp_parameters_size(whole.model->parameters);
  const esp_real *values = esp_parameters_values(whole.model->parameters);
  assert_memory_not_equal(values, esp_parameters_values(other.model->parameters), (size_t)size * sizeof *values);
  tear_down(&whole);
  tear_down(&resumed);
  tear_down(&other);
}

/* The first gradient of a run. */
static void take_gradient(training *t, esp_precision precision) {
  esp_optimizer *optimizer;
  esp_loader *loader;
  const esp_batch *batch;
  esp_step_result result;
  set_up(t, SETTINGS("model.mixing=attention", "model.heads=4", "augmentation.mixup=0", "optimizer.clip_norm=0"));
  const esp_loader_options options = {.batch = 32, .normalisation = t->info.normalisation, .seed = 1};
  expect_ok(esp_optimizer_create(&optimizer, &t->config.optimizer, t->model->parameters));
  expect_ok(esp_loader_create(&loader, data, ESP_TRAIN, &options, 0));
  expect_ok(esp_loader_next(loader, &batch));
  esp_tape *tape = esp_tape_create();
  esp_tape_set_precision(tape, precision);
  const esp_pass pass = {.training = true, .seed = 1};
  expect_ok(esp_training_step(t->model, optimizer, tape, batch,
                              &(esp_step_options){.pass = pass, .label_smoothing = 0.1, .learning_rate_multiplier = 1},
                              &result));
  int maps = 0;
  for (int64_t i = 0; i < esp_tape_node_count(tape); i++) {
    const esp_node *node = esp_tape_node(tape, i);
    const bool routes = node->input_count > 1 && node->inputs[1] == esp_model_moe(t->model, 0)->router;
    if (routes) assert_int_equal(node->precision, ESP_FP32);
    maps += routes;
  }
  assert_int_equal(maps, 1);
  esp_tape_free(tape);
  esp_loader_close(loader);
  esp_optimizer_free(optimizer);
}

/* A factor is off by 2^-9 at most, the gradient by that times the root of the number of layers, and a token in a
 * hundred may choose another expert: a few percent. */
static void test_bf16_gradients_point_where_those_of_fp32_do(void **state) {
  (void)state;
  skip_without_bf16();
  training exact, rounded;
  double both = 0, squares = 0, rounded_squares = 0;
  take_gradient(&exact, ESP_FP32);
  take_gradient(&rounded, ESP_BF16);
  const esp_real *g = esp_parameters_gradients(exact.model->parameters);
  const esp_real *h = esp_parameters_gradients(rounded.model->parameters);
  for (int64_t i = 0; i < esp_parameters_size(exact.model->parameters); i++) {
    both += (double)g[i] * (double)h[i];
    squares += (double)g[i] * (double)g[i];
    rounded_squares += (double)h[i] * (double)h[i];
  }
  assert_true(both / sqrt(squares * rounded_squares) > 0.98);
  assert_true(both != squares); /* something is rounded */
  tear_down(&exact);
  tear_down(&rounded);
}

/* ---- numbers that are not finite ---- */

static void test_diverged(void **state) {
  (void)state;
  training t;
  set_up(&t, SETTINGS("optimizer.kind=sgd", "optimizer.learning_rate=1000", "optimizer.clip_norm=0",
                      "optimizer.schedule.warmup=0", "model.layers=[dense]", "training.epochs=1",
                      "training.evaluate_every=1"));
  expect_failure(go(&t, NULL, NULL), ESP_ERR_NOT_FINITE, "step ", "There is no checkpoint yet");
  if (!strstr(esp_error_message(), "the first op") || !strstr(esp_error_message(), "optimizer.learning_rate"))
    fail_msg("%s", esp_error_message());
  assert_false(esp_file_exists(file_of(&t, "last.h5")));
  tear_down(&t);
}

/* What the newest checkpoint holds stays; the message names step, op and place. */
static void test_poisoned(void **state) {
  (void)state;
  static char before[TEXT_SIZE], after[TEXT_SIZE];
  static const char *const poisoned[][2] = {{"blocks.1.moe.router", "is linear map in blocks.1.moe"},
                                            {"blocks.0.mixing.norm.gain", "is layer norm in blocks.0.mixing"},
                                            {"head.bias", "is linear map in head"}};
  training t;
  set_up(&t, SETTINGS("model.mixing=attention", "model.heads=4"));
  expect_failure(go(&t, NULL, &at_once), ESP_ERR_INTERRUPTED, "", "");
  const size_t size = read_file(file_of(&t, "last.h5"), before);
  for (size_t p = 0; p < sizeof poisoned / sizeof poisoned[0]; p++) {
    load_last(&t);
    int matches = 0;
    for (int64_t i = 0; i < esp_parameters_count(t.model->parameters); i++) {
      const esp_parameter *parameter = esp_parameters_at(t.model->parameters, i);
      if (!esp_name_matches(poisoned[p][0], parameter->tensor.name)) continue;
      parameter->tensor.data[0] = NAN;
      matches++;
    }
    assert_true(matches > 0);
    char path[TESTING_PATH_SIZE + 64];
    snprintf(path, sizeof path, "%s", file_of(&t, "last.h5"));
    expect_failure(go(&t, path, NULL), ESP_ERR_NOT_FINITE, "step 2: the loss is not finite", poisoned[p][1]);
    if (!strstr(esp_error_message(), "last.h5 holds the state after step 1")) fail_msg("%s", esp_error_message());
    assert_int_equal(read_file(file_of(&t, "last.h5"), after), size);
    assert_memory_equal(before, after, size);
  }
  expect_ok(go_on(&t, NULL));
  tear_down(&t);
}

/* The last update leads out of the finite numbers: no step notices, the evaluation does. */
static void test_poisoned_at_the_end(void **state) {
  (void)state;
  training t;
  set_up(&t, SETTINGS("training.epochs=0"));
  esp_parameters_find(t.model->parameters, "head.weight")->tensor.data[0] = NAN;
  expect_failure(go(&t, NULL, NULL), ESP_ERR_NOT_FINITE, "evaluating after step 0",
                 "the loss over 250 images is not finite");
  assert_false(esp_file_exists(file_of(&t, "last.h5")));
  tear_down(&t);
}

/* ---- freezing ---- */

static void frozen_tensors_stay_bit_identical(void **state) {
  (void)state;
  static const char patterns[] = "stem.*,blocks.*.router";
  training t;
  esp_model *fresh;
  set_up(&t, SETTINGS("training.freeze='stem.*,blocks.*.router'"));
  expect_ok(esp_model_create(&fresh, &t.config.model, NULL, t.config.training.seed));
  expect_ok(go(&t, NULL, NULL));
  int frozen = 0;
  for (int64_t i = 0; i < esp_parameters_count(fresh->parameters); i++) {
    const esp_parameter *before = esp_parameters_at(fresh->parameters, i),
                        *after = esp_parameters_at(t.model->parameters, i);
    const bool same = memcmp(before->tensor.data, after->tensor.data, (size_t)before->count * sizeof(esp_real)) == 0;
    const bool expected = esp_name_matches(patterns, before->tensor.name);
    frozen += expected;
    if (same != expected) fail_msg("%s %s", before->tensor.name, same ? "did not move" : "moved although frozen");
  }
  assert_true(frozen > 3);
  esp_model_free(fresh);
  tear_down(&t);
}

static void taught_by(training *t, const training *teacher) {
  t->teacher = teacher->model;
  t->teacher_info = &teacher->info;
}

/* A run with a teacher is resumed with the same bits, and with that teacher only. */
static void test_resumed_with_a_teacher(void **state) {
  (void)state;
  training teacher, whole, pieces;
  set_up(&teacher, SETTINGS("training.epochs=0.02", "training.seed=5"));
  expect_ok(go(&teacher, NULL, NULL));
  set_up(&whole, SETTINGS("distillation.weight=2", "distillation.squared=true"));
  taught_by(&whole, &teacher);
  expect_ok(go(&whole, NULL, NULL));
  assert_true(whole.result.distillation > 0);
  assert_string_equal(whole.info.history[0].reference, teacher.info.digest);
  set_up(&pieces, SETTINGS("distillation.weight=2", "distillation.squared=true"));
  taught_by(&pieces, &teacher);
  expect_failure(go(&pieces, NULL, &at_once), ESP_ERR_INTERRUPTED, "stopped after step 1 of 10", "");
  pieces.teacher = NULL;
  expect_failure(go_on(&pieces, NULL), ESP_ERR_MISMATCH, "no teacher", teacher.info.digest);
  taught_by(&pieces, &whole);
  expect_failure(go_on(&pieces, NULL), ESP_ERR_MISMATCH, whole.info.digest, teacher.info.digest);
  taught_by(&pieces, &teacher);
  expect_ok(go_on(&pieces, NULL));
  assert_same_runs(&whole, &pieces);
  tear_down(&whole);
  tear_down(&pieces);
  tear_down(&teacher);
}

static void test_freeze_nothing(void **state) {
  (void)state;
  training t;
  set_up(&t, SETTINGS("training.freeze='blocks.*.ruoter'"));
  expect_failure(go(&t, NULL, NULL), ESP_ERR_CONFIG, "blocks.*.ruoter", "");
  assert_false(esp_file_exists(file_of(&t, "metrics.csv")));
  tear_down(&t);
}

/* ---- metrics ---- */

enum { COLUMNS = 27 };

/* Splits a line of the file, which it changes, into cells. Returns the next line. */
static char *next_line(char *line, char *cells[COLUMNS]) {
  int count = 0;
  char *cell = line;
  while (*line && *line != '\n') {
    if (*line == ',') {
      *line = '\0';
      if (count < COLUMNS) cells[count] = cell;
      count++;
      cell = line + 1;
    }
    line++;
  }
  assert_int_equal(count, COLUMNS - 1);
  assert_int_equal(*line, '\n');
  *line = '\0';
  cells[count] = cell;
  return line + 1;
}

static void check_training_row(char *const cells[COLUMNS], int step) {
  assert_int_equal(strtol(cells[0], NULL, 10), step);
  for (int c = 3; c < COLUMNS; c++) {
    const bool computed =
        c < 7 || c == 11 || c == 12 || c > 18; /* importance, load and entropy have weight 0; no MoNE, no teacher */
    if (!*cells[c] == computed) fail_msg("step %d: column %d is %s", step, c + 1, computed ? "empty" : cells[c]);
  }
  const double loss = strtod(cells[3], NULL), task = strtod(cells[4], NULL), balance = strtod(cells[5], NULL);
  const double weighted = strtod(cells[6], NULL), z = strtod(cells[12], NULL), rate = strtod(cells[21], NULL);
  assert_true(fabs(loss - task - weighted - z) < 1e-4);
  assert_true(fabs(weighted - 0.01 * balance) < 1e-5 && balance > 1.9); /* two layers, each at least about 1 */
  assert_true(rate >= 0 && rate <= 1e-3);
  for (int c = 25; c < COLUMNS; c++) assert_true(strtod(cells[c], NULL) >= 1 && strtod(cells[c], NULL) <= 4);
}

/* The row of an evaluation of so many images. */
static void check_evaluation_row(char *const cells[COLUMNS], int step, int images) {
  static const int empty[] = {5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 21, 22, 25, 26};
  assert_int_equal(strtol(cells[20], NULL, 10), images);
  assert_int_equal(strtol(cells[0], NULL, 10), step);
  for (size_t i = 0; i < sizeof empty / sizeof empty[0]; i++) assert_string_equal(cells[empty[i]], "");
  assert_true(strtod(cells[3], NULL) > 0 && strtod(cells[19], NULL) <= 1);
}

static void test_metrics(void **state) {
  (void)state;
  static char text[TEXT_SIZE];
  static const char header[] =
      "step,epoch,split,loss,task_loss,balance_raw,balance_weighted,importance_raw,importance_weighted,"
      "load_raw,load_weighted,z_raw,z_weighted,entropy_raw,entropy_weighted,neuron_balance_raw,neuron_balance_weighted,"
      "distillation_raw,distillation_weighted,accuracy,images,learning_rate,gradient_norm,images_per_second,seconds,"
      "imbalance.blocks.0,imbalance.blocks.1\n";
  training t;
  set_up(&t, SETTINGS("training.log_every=5"));
  expect_ok(go(&t, NULL, NULL));
  read_file(file_of(&t, "metrics.csv"), text);
  assert_memory_equal(text, header, strlen(header));
  /* An evaluation ends the row before it, so that a row never mixes steps from before and after. */
  static const struct {
    int step;
    const char *split;
    int images; /* of an evaluation */
  } rows[] = {{4, "train", 0},       {4, "validation", 64}, {5, "train", 0},         {7, "train", 0},
              {7, "validation", 64}, {10, "train", 0},      {10, "validation", 250}, {10, "test", 1000}};
  char *cells[COLUMNS], *line = text + strlen(header);
  double seconds = 0;
  for (size_t r = 0; r < sizeof rows / sizeof rows[0]; r++) {
    line = next_line(line, cells);
    assert_string_equal(cells[2], rows[r].split);
    if (rows[r].images) check_evaluation_row(cells, rows[r].step, rows[r].images);
    else check_training_row(cells, rows[r].step);
    assert_true(strtod(cells[24], NULL) >= seconds);
    seconds = strtod(cells[24], NULL);
  }
  assert_string_equal(line, "");
  assert_true(strtod(cells[19], NULL) == t.result.final.accuracy);
  assert_int_equal(t.result.final.examples, 1000);
  tear_down(&t);
}

static void test_no_folder(void **state) {
  (void)state;
  training t;
  set_up(&t, SETTINGS(NULL));
  remove_folder(t.folder);
  expect_failure(go(&t, NULL, NULL), ESP_ERR_IO, "metrics.csv", "cannot be written");
  tear_down(&t);
}

/* ---- evaluation ---- */

static void test_evaluation(void **state) {
  (void)state;
  training t;
  esp_evaluation all, some, train;
  set_up(&t, SETTINGS(NULL));
  expect_failure(go(&t, NULL, &at_once), ESP_ERR_INTERRUPTED, "", ""); /* at step 0 every loss is log(classes) */
  const esp_normalisation *n = &t.info.normalisation;
  expect_ok(esp_evaluate(t.model, data, n, &(esp_evaluation_options){.split = ESP_TEST}, &all));
  expect_ok(esp_evaluate(t.model, data, n, &(esp_evaluation_options){.split = ESP_TEST, .limit = 100}, &some));
  expect_ok(esp_evaluate(t.model, data, n, &(esp_evaluation_options){.split = ESP_TRAIN, .limit = 100}, &train));
  assert_int_equal(all.examples, 1000);
  assert_int_equal(some.examples, 100);
  assert_true(train.loss != some.loss);
  esp_evaluation again;
  expect_ok(esp_evaluate(t.model, data, n, &(esp_evaluation_options){.split = ESP_TEST, .limit = 100}, &again));
  assert_true(again.accuracy == some.accuracy && fabs(again.loss - some.loss) < 1e-6);
  tear_down(&t);
}

/* Averages the logits of test image i and of its mirror image. */
static void mean_logits(const training *t, int64_t i, esp_real mean[ESP_MAX_EXPERTS]) {
  const esp_model_config *c = &t->config.model;
  const int64_t width = c->image_width, channels = c->image_channels;
  esp_tape *tape = esp_tape_create();
  for (int way = 0; way < 2; way++) {
    esp_tape_reset(tape, false);
    esp_tensor *x = esp_tape_tensor(tape, 4, (const int64_t[]){1, c->image_height, width, channels});
    esp_augment_image(data, ESP_TEST, i, &(esp_augment_options){.normalisation = &t->info.normalisation, .seed = 1},
                      x->data);
    for (int64_t p = 0; way && p < c->image_height * width / 2; p++)
      for (int64_t j = 0; j < channels; j++) {
        const int64_t row = p / (width / 2) * width, column = p % (width / 2);
        esp_real *left = &x->data[(row + column) * channels + j],
                 *right = &x->data[(row + width - 1 - column) * channels + j];
        const esp_real kept = *left;
        *left = *right;
        *right = kept;
      }
    const esp_model_output output = esp_model_forward(t->model, tape, x, &(esp_pass){.training = false});
    for (int j = 0; j < c->classes; j++) mean[j] = (way ? mean[j] : 0) + output.logits->data[j] / 2;
  }
  esp_tape_free(tape);
}

/* The mean of both logits, computed here by hand image by image, is what counts beside the plain result. */
static void test_evaluation_with_mirror_images(void **state) {
  (void)state;
  training t;
  esp_evaluation plain, both;
  set_up(&t, SETTINGS(NULL));
  expect_ok(go(&t, NULL, NULL));
  const esp_normalisation *n = &t.info.normalisation;
  int64_t places[100];
  const esp_evaluation_options options = {.split = ESP_TEST, .limit = 100, .places = places};
  esp_evaluation_options flipped = options;
  flipped.flip = true;
  expect_ok(esp_evaluate(t.model, data, n, &options, &plain));
  expect_ok(esp_evaluate(t.model, data, n, &flipped, &both));
  assert_true(both.accuracy == plain.accuracy && both.loss == plain.loss && plain.flip_loss == 0);
  double loss = 0, correct = 0;
  for (int i = 0; i < 100; i++) {
    esp_real mean[ESP_MAX_EXPERTS];
    mean_logits(&t, places[i], mean);
    const int32_t label = esp_dataset_label(data, ESP_TEST, places[i]);
    double sum = 0;
    int best = 0;
    for (int c = 0; c < t.config.model.classes; c++) {
      sum += exp((double)mean[c]);
      if (mean[c] > mean[best]) best = c;
    }
    loss += (log(sum) - (double)mean[label]) / 100;
    correct += best == label;
  }
  assert_true(fabs(both.flip_loss - loss) < 1e-4 && fabs(100 * both.flip_accuracy - correct) < 1e-6);
  tear_down(&t);
}

static void test_evaluation_of_what_does_not_fit(void **state) {
  (void)state;
  training t;
  esp_evaluation e;
  esp_dataset *broad;
  esp_model *smaller;
  const esp_evaluation_options options = {.split = ESP_TEST};
  set_up(&t, SETTINGS(NULL));
  expect_ok(esp_dataset_open(&broad, "synthetic"));
  expect_failure(esp_evaluate(t.model, broad, &t.info.normalisation, &options, &e), ESP_ERR_MISMATCH,
                 "the model knows 5 classes", "has 20");
  t.config.model.image_height = t.config.model.image_width = 16;
  expect_ok(esp_model_create(&smaller, &t.config.model, NULL, 1));
  expect_failure(esp_evaluate(smaller, data, &t.info.normalisation, &options, &e), ESP_ERR_MISMATCH,
                 "images of 16 x 16 x 3", "32 x 32 x 3");
  esp_model_free(smaller);
  esp_dataset_close(broad);
  tear_down(&t);
}

/* ---- memory ---- */

static void test_no_allocation_after_the_first_step(void **state) {
  (void)state;
  training t;
  esp_optimizer *optimizer;
  esp_loader *loader;
  set_up(&t, SETTINGS(NULL));
  const esp_loader_options options = {.batch = 32,
                                      .shuffle = true,
                                      .augmentation = t.config.augmentation,
                                      .normalisation = t.info.normalisation,
                                      .seed = 1};
  expect_ok(esp_optimizer_create(&optimizer, &t.config.optimizer, t.model->parameters));
  expect_ok(esp_loader_create(&loader, data, ESP_TRAIN, &options, 0));
  esp_tape *tape = esp_tape_create();
  uint64_t after_first = 0;
  for (int step = 0; step < 20; step++) {
    const esp_batch *batch;
    esp_step_result result;
    expect_ok(esp_loader_next(loader, &batch));
    const esp_pass pass = {.training = true, .seed = 1, .step = (uint64_t)step};
    expect_ok(esp_training_step(
        t.model, optimizer, tape, batch,
        &(esp_step_options){.pass = pass, .label_smoothing = 0.1, .learning_rate_multiplier = 1}, &result));
    if (step == 0) after_first = esp_allocation_count();
    assert_int_equal(esp_allocation_count(), after_first);
  }
  esp_tape_free(tape);
  esp_loader_close(loader);
  esp_optimizer_free(optimizer);
  tear_down(&t);
}

/* Whichever allocation of a run fails: a status, no leak (the sanitizer looks), and no file by half. */
static void test_short_of_memory(void **state) {
  (void)state;
  training t;
  esp_status status = ESP_ERR_MEMORY;
  int calls = 0;
  for (; status != ESP_OK; calls += 7) {
    set_up(&t, SETTINGS("training.epochs=0.006", "training.evaluate_every=1", "model.moe.hidden=4"));
    esp_alloc_fail_after(calls);
    status = go(&t, NULL, NULL);
    esp_alloc_fail_after(-1);
    if (status != ESP_OK) assert_int_equal(status, ESP_ERR_MEMORY);
    if (esp_file_exists(file_of(&t, "last.h5"))) load_last(&t);
    tear_down(&t);
    assert_true(calls < 5000);
  }
  assert_true(calls > 20);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_resumed_after_each_step),
      cmocka_unit_test(test_resumed_once),
      cmocka_unit_test(test_resumed_with_state),
      cmocka_unit_test(test_resumed_at_the_end),
      cmocka_unit_test(test_resumed_with_other_settings),
      cmocka_unit_test(test_lengthened),
      cmocka_unit_test(test_the_best_before_a_lengthening),
      cmocka_unit_test(test_threads),
      cmocka_unit_test(test_bf16_runs_keep_their_bits),
      cmocka_unit_test(test_bf16_gradients_point_where_those_of_fp32_do),
      cmocka_unit_test(test_diverged),
      cmocka_unit_test(test_poisoned),
      cmocka_unit_test(test_poisoned_at_the_end),
      cmocka_unit_test(frozen_tensors_stay_bit_identical),
      cmocka_unit_test(test_resumed_with_a_teacher),
      cmocka_unit_test(test_freeze_nothing),
      cmocka_unit_test(test_metrics),
      cmocka_unit_test(test_no_folder),
      cmocka_unit_test(test_evaluation),
      cmocka_unit_test(test_evaluation_with_mirror_images),
      cmocka_unit_test(test_evaluation_of_what_does_not_fit),
      cmocka_unit_test(test_no_allocation_after_the_first_step),
      cmocka_unit_test(test_short_of_memory),
  };
  return cmocka_run_group_tests_name("trainer", tests, open_data, close_data);
}
