/* label: short */
/* Compression of experts to U V + S: decomposition, importance and pruning of rows, what is left, its files and its
 * costs. */
#define SHARED_DATA "synthetic:narrow" /* 148 batches an epoch */
#include "testing.h"
#include "shared_data.h"

#include <espalier/core.h>
#include <espalier/layers.h>
#include <espalier/measure.h>
#include <espalier/prune.h>
#include <espalier/train.h>

static const char *const small_settings[] = {"model.stem.patch=8",
                                             "model.width=16",
                                             "model.blocks=3",
                                             "model.mixing=none",
                                             "model.layers=[moe, dense, mone]",
                                             "model.feed_forward.bias=true",
                                             "model.moe.experts=4",
                                             "model.moe.top_k=2",
                                             "model.moe.hidden=12",
                                             "model.moe.neurons_kept=0.5",
                                             "training.batch=32",
                                             "training.epochs=0.2",
                                             "training.evaluate_every=10",
                                             "training.evaluate_examples=64",
                                             "compression.rank=3"};
enum { SETTING_COUNT = sizeof small_settings / sizeof small_settings[0], MOST_SETTINGS = 4 };

static esp_run_config config;
static esp_model *model;
static esp_checkpoint_info info;
static char folder[TESTING_PATH_SIZE];

static void expect_ok(esp_status status) {
  if (status != ESP_OK) fail_msg("status %d: %s", status, esp_error_message());
}

static void expect_failure(esp_status got, esp_status expected, const char *words) {
  if (got != expected) fail_msg("status %d, expected %d: %s", got, expected, esp_error_message());
  if (!strstr(esp_error_message(), words)) fail_msg("the message lacks \"%s\": %s", words, esp_error_message());
}

#define SETTINGS(...) ((const char *const[MOST_SETTINGS]){__VA_ARGS__})

/* Every parameter random: neither head nor biases are zero. */
static esp_model *make(const char *const settings[MOST_SETTINGS], const esp_expert_layout *layouts) {
  const char *all[SETTING_COUNT + MOST_SETTINGS];
  size_t count = SETTING_COUNT;
  memcpy(all, small_settings, sizeof small_settings);
  for (int i = 0; i < MOST_SETTINGS && settings[i]; i++) all[count++] = settings[i];
  expect_ok(esp_run_config_load(&config, NULL, all, count));
  const esp_dataset_info *of = esp_dataset_info_of(data);
  config.model.image_height = of->height, config.model.image_width = of->width;
  config.model.image_channels = of->channels, config.model.classes = of->classes;
  esp_model *made;
  expect_ok(esp_model_create(&made, &config.model, layouts, 1));
  fill_parameters(made->parameters, 0.2);
  return made;
}

static int set_up(void **state) {
  (void)state;
  make_folder(folder);
  model = make(SETTINGS(NULL), NULL);
  info = (esp_checkpoint_info){.history_count = 1, .history = {{.action = "compress"}}};
  esp_dataset_normalisation(data, &info.normalisation);
  return 0;
}

static int tear_down(void **state) {
  (void)state;
  esp_model_free(model);
  esp_checkpoint_info_clear(&info);
  remove_folder(folder);
  return 0;
}

static const char *in_folder(const char *name) {
  static char paths[2][TESTING_PATH_SIZE + 64];
  static int next;
  char *path = paths[next = !next];
  snprintf(path, sizeof paths[0], "%s/%s", folder, name);
  return path;
}

static esp_model *factor(const esp_model *of) {
  esp_model *factored;
  expect_ok(esp_factor_experts(&factored, of, &config.compression));
  return factored;
}

/* --- what models compute --- */

enum { IMAGES = 5 };

static void compute(const esp_model *of, double logits[IMAGES * 32]) {
  static esp_real pixels[IMAGES * 64 * 64 * 3];
  esp_tape *tape = esp_tape_create();
  const esp_model_config *c = &of->config;
  fill_normal(pixels, (int64_t)IMAGES * c->image_height * c->image_width * c->image_channels, 5);
  esp_tensor images = {
      .data = pixels, .rank = 4, .shape = {IMAGES, c->image_height, c->image_width, c->image_channels}};
  esp_tape_reset(tape, false);
  const esp_tensor *y = esp_model_forward(of, tape, &images, &(esp_pass){.training = false}).logits;
  assert_non_null(y);
  assert_true(c->classes <= 32);
  for (int64_t i = 0; i < esp_tensor_count(y); i++) logits[i] = (double)y->data[i];
  esp_tape_free(tape);
}

static void assert_same_function(const esp_model *a, const esp_model *b, double tolerance) {
  double one[IMAGES * 32], two[IMAGES * 32];
  compute(a, one);
  compute(b, two);
  for (int i = 0; i < IMAGES * a->config.classes; i++)
    if (!(fabs(one[i] - two[i]) <= tolerance * (1 + fabs(one[i])))) fail_msg("[%d] is %g and %g", i, one[i], two[i]);
}

/* --- decomposition --- */

static void stable_rank_of_rank_one_is_1_and_of_the_identity_n(void **state) {
  (void)state;
  enum { ROWS = 7, COLUMNS = 4 };
  esp_svd svd;
  expect_ok(esp_svd_create(&svd, ROWS, COLUMNS));
  for (int i = 0; i < ROWS; i++)
    for (int j = 0; j < COLUMNS; j++) svd.matrix[i * COLUMNS + j] = (i + 1) * (j - 1.5);
  expect_ok(esp_svd_run(&svd));
  assert_true(fabs(esp_stable_rank(svd.sigma, svd.n) - 1) < 1e-12);
  for (int i = 0; i < ROWS; i++)
    for (int j = 0; j < COLUMNS; j++) svd.matrix[i * COLUMNS + j] = i == j;
  expect_ok(esp_svd_run(&svd));
  assert_true(fabs(esp_stable_rank(svd.sigma, svd.n) - COLUMNS) < 1e-12);
  memset(svd.matrix, 0, ROWS * COLUMNS * sizeof *svd.matrix);
  expect_ok(esp_svd_run(&svd));
  assert_true(esp_stable_rank(svd.sigma, svd.n) == 0);
  svd.matrix[3] = NAN;
  expect_failure(esp_svd_run(&svd), ESP_ERR_NOT_FINITE, "7 x 4");
  esp_svd_free(&svd);
}

/* Wide, tall and square: the transposition between C and Fortran is right. */
static void singular_vectors_give_the_matrix_back(void **state) {
  (void)state;
  const int shapes[][2] = {{3, 8}, {8, 3}, {5, 5}, {1, 4}};
  for (int c = 0; c < 4; c++) {
    const int rows = shapes[c][0], columns = shapes[c][1];
    esp_real values[64];
    esp_svd svd;
    fill_normal(values, rows * columns, (uint64_t)c);
    expect_ok(esp_svd_create(&svd, rows, columns));
    for (int i = 0; i < rows * columns; i++) svd.matrix[i] = (double)values[i];
    expect_ok(esp_svd_run(&svd));
    for (int i = 0; i < rows; i++)
      for (int j = 0; j < columns; j++) {
        double sum = 0;
        for (int k = 0; k < svd.n; k++) sum += svd.left[i * svd.n + k] * svd.sigma[k] * svd.right[k * columns + j];
        assert_true(fabs(sum - (double)values[i * columns + j]) < 1e-12);
      }
    for (int k = 1; k < svd.n; k++) assert_true(svd.sigma[k] <= svd.sigma[k - 1]);
    esp_svd_free(&svd);
  }
}

static void u_v_plus_s_is_w(void **state) {
  (void)state;
  esp_model *factored = factor(model);
  for (int l = 0; l < esp_model_moe_count(model); l++) {
    const esp_expert_bank *before = &esp_model_moe(model, l)->bank, *after = &esp_model_moe(factored, l)->bank;
    assert_null(after->up);
    for (int e = 0; e < before->experts; e++)
      for (int i = 0; i < esp_expert_matrix_count(before); i++) {
        const esp_expert_matrix m = esp_expert_matrix_at(before, e, i);
        double w[16 * 16], product[16 * 16];
        assert_true(m.out * m.in <= 256);
        esp_expert_matrix_read(before, e, &m, w);
        esp_expert_matrix_read(after, e, &m, product);
        for (int64_t n = 0; n < m.out * m.in; n++) assert_true(fabs(w[n] - product[n]) < 1e-6);
        assert_int_equal(esp_expert_matrix_sparse_rows(after, e, &m), m.out);
      }
  }
  esp_model_free(factored);
}

/* With SwiGLU and two matrices, with biases, in an MoE and a MoNE. */
static void factoring_keeps_the_function(void **state) {
  (void)state;
  const char *const activations[] = {"model.feed_forward.activation=swiglu", "model.feed_forward.activation=relu",
                                     "model.feed_forward.activation=gelu"};
  for (int i = 0; i < 3; i++) {
    esp_model *dense = make(SETTINGS(activations[i]), NULL), *factored = factor(dense);
    assert_same_function(dense, factored, 1e-5);
    esp_model_free(factored);
    esp_model_free(dense);
  }
}

static void excluded_layers_stay(void **state) {
  (void)state;
  strcpy(config.compression.exclude, "blocks.0.*");
  esp_model *factored = factor(model);
  assert_int_equal(esp_model_moe(factored, 0)->bank.rank, 0);
  assert_int_equal(esp_model_moe(factored, 1)->bank.rank, 3);
  assert_same_function(model, factored, 1e-5);
  esp_model *again;
  strcpy(config.compression.exclude, "");
  expect_failure(esp_factor_experts(&again, factored, &config.compression), ESP_ERR_MISMATCH, "factored already");
  esp_model_free(factored);
  strcpy(config.compression.exclude, "blocks.1.*");
  expect_failure(esp_factor_experts(&again, model, &config.compression), ESP_ERR_CONFIG, "no mixture layer matches");
  strcpy(config.compression.exclude, "blocks.*");
  expect_failure(esp_factor_experts(&again, model, &config.compression), ESP_ERR_CONFIG, "leaves no layer");
  strcpy(config.compression.exclude, "");
  config.compression.rank = 13;
  expect_failure(esp_factor_experts(&again, model, &config.compression), ESP_ERR_CONFIG, "at most 12");
  assert_null(again);
}

/* Merged experts are stored, and factored, once; a zero expert stays one. */
static void merged_experts_are_factored(void **state) {
  (void)state;
  esp_expert_layout layouts[3];
  for (int i = 0; i < 3; i++) esp_expert_layout_full(&layouts[i], 4);
  layouts[0].stored = 2;
  memcpy(layouts[0].index, (const int32_t[]){0, 1, 0, ESP_EXPERT_ZERO}, 4 * sizeof(int32_t));
  esp_model *merged = make(SETTINGS(NULL), layouts), *factored = factor(merged);
  assert_int_equal(esp_model_moe(factored, 0)->bank.factors[0].u->shape[0], 2);
  assert_same_function(merged, factored, 1e-5);
  esp_model_free(factored);
  esp_model_free(merged);
}

/* --- pruning of rows --- */

static void schedule_starts_at_1_and_ends_at_a_tenth(void **state) {
  (void)state;
  const esp_compression_config *c = &esp_compression_defaults;
  assert_true(esp_compression_share(c, 1, 10000) == 1);
  assert_true(esp_compression_share(c, 400, 10000) == 1);
  assert_true(esp_compression_share(c, 401, 10000) < 1);
  assert_true(fabs(esp_compression_share(c, 400 + 4000, 10000) - (0.1 + 0.9 * 0.125)) < 1e-12); /* half way */
  assert_true(fabs(esp_compression_share(c, 8399, 10000) - 0.1) < 1e-9);
  assert_true(esp_compression_share(c, 8400, 10000) == 0.1);
  assert_true(esp_compression_share(c, 10000, 10000) == 0.1);
  for (int64_t t = 2; t <= 10000; t++)
    assert_true(esp_compression_share(c, t, 10000) <= esp_compression_share(c, t - 1, 10000));
}

static void settings_out_of_range_are_refused(void **state) {
  (void)state;
  const char *const wrong[][2] = {{"compression.keep=1.5", "compression.keep is 1.5"},
                                  {"compression.rank=0", "compression.rank is 0"},
                                  {"compression.beta=1", "compression.beta is 1"},
                                  {"compression.start=0.9", "below 1"}};
  for (int i = 0; i < 4; i++)
    expect_failure(esp_run_config_load(&config, NULL, &wrong[i][0], 1), ESP_ERR_CONFIG, wrong[i][1]);
}

/* Sets s and its gradient in each row to numbers whose product is the wanted importance. */
static void want_importance(const esp_factors *f, double (*of)(int64_t row)) {
  const int64_t columns = esp_tensor_columns(f->s);
  for (int64_t r = 0; r < f->s->shape[0]; r++)
    for (int64_t i = 0; i < columns; i++) {
      f->s->data[r * columns + i] = (esp_real)(i % 2 ? 0.5 : -0.5);
      f->s->grad[r * columns + i] = (esp_real)(2 * of(r));
    }
}

static double growing(int64_t row) { return 1 + (double)row; }

static double shrinking(int64_t row) { return 1000 - (double)row; }

static double alike(int64_t row) { return row >= 0; }

static void importances_are_averaged_with_a_lag_of_one_step(void **state) {
  (void)state;
  esp_model *factored = factor(model);
  esp_row_pruning *pruning;
  expect_ok(esp_row_pruning_create(&pruning, factored));
  const esp_factors *f = &esp_model_moe(factored, 0)->bank.factors[ESP_SIDE_UP];
  want_importance(f, growing);
  esp_row_pruning_step(pruning, 0.85, 1);
  assert_true(f->importance->data[4] == 0); /* the first step's value comes with the second */
  want_importance(f, shrinking);
  esp_row_pruning_step(pruning, 0.85, 1);
  assert_true(fabs((double)f->importance->data[4] - 0.15 * 5) < 1e-5);
  esp_row_pruning_step(pruning, 0.85, 1);
  assert_true(fabs((double)f->importance->data[4] - (0.85 * 0.15 * 5 + 0.15 * 996)) < 1e-3);
  assert_int_equal(esp_row_pruning_left(pruning), esp_row_pruning_elements(pruning));
  esp_row_pruning_free(pruning);
  esp_model_free(factored);
}

/* One threshold over all matrices, by elements; of equal rows the last ones go; a row that moves again comes back. */
static void the_least_important_rows_go_and_can_come_back(void **state) {
  (void)state;
  strcpy(config.compression.exclude, "blocks.2.*");
  esp_model *factored = factor(model);
  esp_row_pruning *pruning;
  expect_ok(esp_row_pruning_create(&pruning, factored));
  const esp_factors *up = &esp_model_moe(factored, 0)->bank.factors[ESP_SIDE_UP];
  const esp_factors *down = &esp_model_moe(factored, 0)->bank.factors[ESP_SIDE_DOWN];
  const int64_t ups = up->s->shape[0], downs = down->s->shape[0];
  assert_int_equal(esp_row_pruning_elements(pruning), ups * 16 + downs * 12);
  want_importance(up, alike);
  want_importance(down, shrinking);
  esp_row_pruning_step(pruning, 0, 1);
  esp_row_pruning_step(pruning, 0, 1 - 10.5 * 16 / (double)(ups * 16 + downs * 12));
  for (int64_t r = 0; r < ups; r++) assert_int_equal(esp_sparse_row_is_zero(up, r), r >= ups - 10);
  for (int64_t r = 0; r < downs; r++) assert_false(esp_sparse_row_is_zero(down, r));
  want_importance(up, shrinking); /* the optimiser moved the rows; their gradients are large now */
  esp_row_pruning_step(pruning, 0, 1 - 10.5 * 16 / (double)(ups * 16 + downs * 12));
  esp_row_pruning_step(pruning, 0, 1 - 10.5 * 16 / (double)(ups * 16 + downs * 12));
  want_importance(up, alike);
  want_importance(down, alike);
  esp_row_pruning_step(pruning, 0, 1);
  assert_int_equal(esp_row_pruning_left(pruning), esp_row_pruning_elements(pruning));
  esp_row_pruning_step(pruning, 0, 0);
  assert_int_equal(esp_row_pruning_left(pruning), 0);
  esp_row_pruning_free(pruning);
  esp_model_free(factored);
}

/* Rows that are frozen are neither weighed nor pruned, nor counted among those that may go. */
static void frozen_rows_stay(void **state) {
  (void)state;
  esp_model *factored = factor(model);
  esp_row_pruning *all, *pruning;
  const esp_factors *up = &esp_model_moe(factored, 0)->bank.factors[ESP_SIDE_UP];
  const esp_factors *down = &esp_model_moe(factored, 0)->bank.factors[ESP_SIDE_DOWN];
  expect_ok(esp_row_pruning_create(&all, factored));
  expect_ok(esp_parameters_freeze(factored->parameters, up->s->name));
  expect_ok(esp_row_pruning_create(&pruning, factored));
  assert_int_equal(esp_row_pruning_elements(all) - esp_row_pruning_elements(pruning), esp_tensor_count(up->s));
  want_importance(up, shrinking);
  want_importance(down, shrinking);
  esp_row_pruning_step(pruning, 0, 1);
  esp_row_pruning_step(pruning, 0, 0);
  assert_int_equal(esp_row_pruning_left(pruning), 0);
  for (int64_t r = 0; r < up->s->shape[0]; r++) {
    assert_false(esp_sparse_row_is_zero(up, r));
    assert_true(up->importance->data[r] == 0);
  }
  esp_row_pruning_free(all);
  esp_row_pruning_free(pruning);
  esp_model_free(factored);
}

/* What is left of S in all layers, in elements. */
static int64_t elements_left(const esp_model *of, int64_t *all) {
  int64_t left = 0;
  *all = 0;
  for (int l = 0; l < esp_model_moe_count(of); l++) {
    const esp_moe *moe = esp_model_moe(of, l);
    for (int side = 0; side < ESP_SIDES; side++) {
      const int64_t columns = esp_factors_columns(&moe->bank, side);
      *all += moe->bank.experts * esp_factors_rows(&moe->bank, side) * columns;
      left += esp_first_sparse_row(&moe->bank.factors[side], moe->bank.experts) * columns;
    }
  }
  return left;
}

static void assert_a_tenth_is_left(const esp_model *compact) {
  int64_t all;
  const int64_t left = elements_left(compact, &all);
  if (!((double)left >= 0.1 * (double)all - 1e-6 && (double)left < 0.1 * (double)all + 16))
    fail_msg("%lld of %lld elements are left", (long long)left, (long long)all);
}

static esp_training_job job_of(esp_model *of) {
  return (esp_training_job){
      .model = of, .dataset = data, .config = &config, .folder = folder, .info = &info, .quiet = true};
}

static void a_tenth_of_the_elements_is_left_after_training(void **state) {
  (void)state;
  esp_model *compact;
  esp_training_result result;
  const esp_training_job job = job_of(model);
  char before[ESP_DIGEST_SIZE], after[ESP_DIGEST_SIZE];
  expect_ok(esp_model_digest(model, before));
  expect_ok(esp_compress(&compact, &job, &result));
  expect_ok(esp_model_digest(model, after));
  assert_string_equal(before, after);
  assert_int_equal(result.step, 30);
  assert_a_tenth_is_left(compact);
  esp_evaluation evaluation;
  const esp_evaluation_options options = {.split = ESP_TEST};
  expect_ok(esp_evaluate(compact, data, &info.normalisation, &options, &evaluation));
  assert_true(fabs(evaluation.loss - result.final.loss) < 1e-5); /* the same function */
  esp_model_free(compact);
}

static void a_tenth_of_the_elements_is_left_without_training(void **state) {
  (void)state;
  esp_model *compact, *factored = factor(model);
  const esp_zero_shot_options options = {.samples = 64, .batch = 8, .seed = 3};
  expect_ok(esp_compress_zero_shot(&compact, model, data, &info.normalisation, &config.compression, &options));
  assert_a_tenth_is_left(compact);
  const esp_factors *was = &esp_model_moe(factored, 0)->bank.factors[0],
                    *is = &esp_model_moe(compact, 0)->bank.factors[0];
  assert_same_bits("u", was->u->data, is->u->data, esp_tensor_count(is->u));
  for (int64_t n = 0; n < is->counts[0]; n++) /* rows of the first expert: unchanged, in their order */
    assert_same_bits("row", is->s->data + n * 16, was->s->data + (int64_t)is->rows->data[n] * 16, 16);
  esp_model *again;
  expect_ok(esp_compress_zero_shot(&again, model, data, &info.normalisation, &config.compression, &options));
  assert_same_bits("twice", esp_parameters_values(again->parameters), esp_parameters_values(compact->parameters),
                   esp_parameters_size(compact->parameters));
  esp_model_free(again);
  esp_model_free(factored);
  esp_model_free(compact);
}

static const volatile sig_atomic_t at_once = 1;

/* Interrupted in the middle of pruning: importances are in the checkpoint. */
static void a_resumed_compression_has_the_same_bits(void **state) {
  (void)state;
  esp_training_result result;
  esp_model *whole = factor(model), *pieces = factor(model);
  esp_training_job job = job_of(whole);
  config.training.epochs = 0.064; /* 10 steps */
  expect_ok(esp_train(&job, &result));
  job.model = pieces;
  job.stop = &at_once;
  expect_failure(esp_train(&job, &result), ESP_ERR_INTERRUPTED, "step 1 of 10");
  for (int step = 2; step <= 11; step++) {
    esp_model_free(pieces);
    esp_checkpoint_info_clear(&info);
    expect_ok(esp_checkpoint_load(in_folder("last.h5"), &pieces, &info));
    job.model = pieces;
    job.resume_from = in_folder("last.h5");
    assert_int_equal(esp_train(&job, &result), step <= 10 ? ESP_ERR_INTERRUPTED : ESP_OK);
  }
  assert_same_bits("parameters", esp_parameters_values(whole->parameters), esp_parameters_values(pieces->parameters),
                   esp_parameters_size(whole->parameters));
  esp_model_free(whole);
  esp_model_free(pieces);
}

static void equal_bits_for_any_number_of_threads(void **state) {
  (void)state;
  esp_model *compact[2];
  const esp_zero_shot_options options = {.samples = 64, .batch = 8, .seed = 3};
  for (int i = 0; i < 2; i++) {
    esp_threads_set(1 + 2 * i);
    expect_ok(esp_compress_zero_shot(&compact[i], model, data, &info.normalisation, &config.compression, &options));
  }
  esp_threads_set(0);
  assert_int_equal(esp_parameters_size(compact[0]->parameters), esp_parameters_size(compact[1]->parameters));
  assert_same_bits("threads", esp_parameters_values(compact[0]->parameters),
                   esp_parameters_values(compact[1]->parameters), esp_parameters_size(compact[0]->parameters));
  esp_model_free(compact[0]);
  esp_model_free(compact[1]);
}

/* --- what is left --- */

/* Sets rows of S to 0: of layer 0 all but every third, of layer 1 all. */
static esp_model *prune_by_hand(void) {
  esp_model *factored = factor(model), *compact;
  for (int l = 0; l < 2; l++)
    for (int side = 0; side < ESP_SIDES; side++) {
      const esp_factors *f = &esp_model_moe(factored, l)->bank.factors[side];
      const int64_t columns = esp_tensor_columns(f->s);
      for (int64_t r = 0; r < f->s->shape[0]; r++)
        if (l == 1 || r % 3) memset(f->s->data + r * columns, 0, (size_t)columns * sizeof(esp_real));
    }
  expect_ok(esp_remove_zero_rows(&compact, factored));
  assert_same_function(factored, compact, 1e-6);
  esp_model *again;
  expect_failure(esp_remove_zero_rows(&again, compact), ESP_ERR_MISMATCH, "no rows to remove");
  esp_model_free(factored);
  return compact;
}

static long long size_of(const char *path) {
  struct stat found;
  assert_int_equal(stat(path, &found), 0);
  return (long long)found.st_size;
}

/* Every number that is stored but those of the rows. */
static int64_t stored_numbers(const esp_model *of) {
  int64_t sum = 0;
  for (int64_t i = 0; i < esp_parameters_count(of->parameters); i++) {
    const esp_parameter *p = esp_parameters_at(of->parameters, i);
    if (p->kind != ESP_KIND_STATE) sum += p->count;
  }
  return sum;
}

static void removed_rows_are_gone_from_memory_and_disk(void **state) {
  (void)state;
  esp_model *factored = factor(model), *compact = prune_by_hand(), *loaded;
  esp_checkpoint_info found;
  esp_model_cost cost;
  esp_model_cost_of(compact, &cost);
  assert_int_equal(cost.parameters, stored_numbers(compact) - 2 * 16 - 2 * 12 + 2 * (16 + 12) - 16 - 12);
  expect_ok(esp_checkpoint_save(in_folder("whole.h5"), factored, NULL, &info, 0));
  expect_ok(esp_checkpoint_save(in_folder("compact.h5"), compact, NULL, &info, 0));
  assert_true(size_of(in_folder("compact.h5")) < size_of(in_folder("whole.h5")));
  expect_ok(esp_checkpoint_load(in_folder("compact.h5"), &loaded, &found));
  assert_int_equal(esp_parameters_size(loaded->parameters), esp_parameters_size(compact->parameters));
  assert_same_bits("parameters", esp_parameters_values(loaded->parameters), esp_parameters_values(compact->parameters),
                   esp_parameters_size(compact->parameters));
  assert_same_function(loaded, compact, 0);
  esp_checkpoint_info_clear(&found);
  esp_model_free(loaded);
  esp_model_free(compact);
  esp_model_free(factored);
}

static void lists_of_rows_that_cannot_be_are_refused(void **state) {
  (void)state;
  const struct {
    int64_t at;
    esp_real number;
  } wrong[] = {{1, 0}, {1, 2.5f}, {7, 24}, {0, -1}, {3, NAN}};
  esp_model *loaded;
  esp_checkpoint_info found;
  for (int i = 0; i < 5; i++) {
    esp_model *compact = prune_by_hand();
    esp_model_moe(compact, 0)->bank.factors[0].rows->data[wrong[i].at] = wrong[i].number;
    expect_ok(esp_checkpoint_save(in_folder("wrong.h5"), compact, NULL, &info, 0));
    expect_failure(esp_checkpoint_load(in_folder("wrong.h5"), &loaded, &found), ESP_ERR_FORMAT, "gate_up_rows");
    esp_model_free(compact);
  }
}

static void layouts_that_cannot_be_are_refused(void **state) {
  (void)state;
  esp_expert_layout layouts[3];
  esp_model *made;
  for (int i = 0; i < 3; i++) esp_expert_layout_full(&layouts[i], 4);
  layouts[0].rank = 13;
  expect_failure(esp_model_create(&made, &config.model, layouts, 0), ESP_ERR_CONFIG, "rank 13; expected 1 to 12");
  layouts[0].rank = 3;
  layouts[0].sparse_rows[ESP_SIDE_UP][2] = 25;
  expect_failure(esp_model_create(&made, &config.model, layouts, 0), ESP_ERR_CONFIG, "25 sparse rows");
  layouts[0].sparse_rows[ESP_SIDE_UP][2] = 0;
  layouts[0].widths[1] = 5;
  expect_failure(esp_model_create(&made, &config.model, layouts, 0), ESP_ERR_CONFIG, "differ in width");
}

/* Experts of a compressed model can be dropped, and nothing else changes. */
static void experts_of_a_compressed_model_can_be_pruned(void **state) {
  (void)state;
  esp_model *compact = prune_by_hand(), *pruned, *masked;
  esp_plan *plan;
  for (int mode = 0; mode < 2; mode++) {
    expect_ok(esp_plan_create(&plan, compact, "by hand", ESP_PRUNE_REMOVE));
    for (int l = 0; l < 2; l++) plan->layers[l].target[1] = mode ? ESP_TARGET_MASKED : ESP_TARGET_REMOVED;
    expect_ok(esp_apply_plan(mode ? &masked : &pruned, compact, plan));
    esp_plan_free(plan);
  }
  assert_int_equal(esp_model_moe(pruned, 0)->bank.factors[0].u->shape[0], 3);
  assert_same_function(pruned, masked, 1e-6);
  const esp_expert_bank *was = &esp_model_moe(compact, 0)->bank, *is = &esp_model_moe(pruned, 0)->bank;
  const esp_expert_matrix m = esp_expert_matrix_at(was, 3, 2);
  double before[16 * 12], after[16 * 12];
  esp_expert_matrix_read(was, 3, &m, before);
  esp_expert_matrix_read(is, 2, &m, after);
  assert_memory_equal(before, after, sizeof before);
  esp_model_free(masked);
  esp_model_free(pruned);
  esp_model_free(compact);
}

static void stable_ranks_are_those_of_the_products(void **state) {
  (void)state;
  esp_model *factored = factor(model);
  esp_stable_ranks *before, *after;
  expect_ok(esp_stable_ranks_create(&before, model));
  expect_ok(esp_stable_ranks_create(&after, factored));
  assert_int_equal(before->count, 2 * 4 * 3);
  for (int64_t i = 0; i < before->count; i++) {
    assert_true(fabs(before->of[i].stable_rank - after->of[i].stable_rank) < 1e-4);
    assert_true(before->of[i].stable_rank > 1 && before->of[i].stable_rank <= 12);
    assert_int_equal(before->of[i].rank, 0);
    assert_int_equal(after->of[i].rank, 3);
  }
  esp_stable_ranks_free(before);
  esp_stable_ranks_free(after);
  esp_model_free(factored);
}

/* --- costs: the numbers of methods' table for Switch-base-32 --- */

enum { SWITCH_EXPERTS = 32 };

static esp_model_config switch_config(void) {
  esp_model_config c = esp_model_defaults;
  c.image_height = c.image_width = 32, c.image_channels = 3, c.classes = 10;
  c.width = 768;
  c.blocks = 12;
  c.heads = 12;
  c.feed_forward = (esp_feed_forward_config){.activation = ESP_ACTIVATION_RELU, .bias = false, .hidden = 3072};
  c.layers[0] = ESP_LAYER_MOE;
  c.layers_count = 1;
  c.moe = (esp_moe_config){.experts = SWITCH_EXPERTS,
                           .top_k = 1,
                           .members = 1,
                           .hidden = 3072,
                           .neurons_kept = 1,
                           .router = esp_model_defaults.moe.router};
  return c;
}

/* Rows of S so that a tenth of all elements is left, spread over the experts. */
static void factor_layout(esp_expert_layout *layout, int *number) {
  layout->rank = 32;
  for (int s = 0; s < layout->stored; s++, ++*number) {
    layout->sparse_rows[ESP_SIDE_UP][s] = (*number + 1) * 3072 / 10 - *number * 3072 / 10;
    layout->sparse_rows[ESP_SIDE_DOWN][s] = (*number + 1) * 768 / 10 - *number * 768 / 10;
  }
}

static double experts_of(const esp_model_cost *cost) {
  double sum = 0;
  for (int i = 0; i < cost->layer_count; i++) sum += (double)cost->layers[i].parameters - SWITCH_EXPERTS * 768;
  return sum;
}

static void a_factored_expert_has_0_7176_million_parameters(void **state) {
  (void)state;
  const esp_model_config c = switch_config();
  esp_expert_layout layouts[12];
  esp_model_cost cost;
  int number = 0;
  for (int i = 0; i < 12; i++) {
    esp_expert_layout_full(&layouts[i], SWITCH_EXPERTS);
    factor_layout(&layouts[i], &number);
  }
  esp_config_cost(&c, layouts, &cost);
  const double expert = experts_of(&cost) / (12 * SWITCH_EXPERTS);
  assert_true(fabs(expert - 0.7176e6) < 50);
  assert_true(fabs(expert - (2 * 32 * (768 + 3072) + 0.1 * 2 * 768 * 3072)) < 20);
  assert_true(cost.layers[0].flops < 1.1 * 2 * 0.7176e6 * 256 && cost.layers[0].flops > 2 * 0.7176e6 * 1);
}

/* One layer of 32 experts as they were, 11 with 8 merged ones each (88), or with all 32 (352); 166.8 M besides. */
static void mc_smoe_has_381_and_c_smoe_570_million_parameters(void **state) {
  (void)state;
  const esp_model_config c = switch_config();
  const struct {
    bool merged, factored;
    double millions;
  } cases[] = {{true, false, 733}, {true, true, 381}, {false, true, 570}};
  for (int k = 0; k < 3; k++) {
    esp_expert_layout layouts[12];
    esp_model_cost cost;
    int number = 0;
    for (int i = 0; i < 12; i++) {
      esp_expert_layout_full(&layouts[i], SWITCH_EXPERTS);
      if (i == 0) continue;
      if (cases[k].merged) layouts[i].stored = 8;
      for (int e = 0; e < SWITCH_EXPERTS; e++) layouts[i].index[e] = e % layouts[i].stored;
      if (cases[k].factored) factor_layout(&layouts[i], &number);
    }
    esp_config_cost(&c, layouts, &cost);
    const double millions = 166.8 + 1e-6 * experts_of(&cost);
    if (fabs(millions - cases[k].millions) > 0.5) fail_msg("%g M, not %g M", millions, cases[k].millions);
  }
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void) {
  const struct CMUnitTest tests[] = {
      TEST(stable_rank_of_rank_one_is_1_and_of_the_identity_n),
      TEST(singular_vectors_give_the_matrix_back),
      TEST(u_v_plus_s_is_w),
      TEST(factoring_keeps_the_function),
      TEST(excluded_layers_stay),
      TEST(merged_experts_are_factored),
      TEST(schedule_starts_at_1_and_ends_at_a_tenth),
      TEST(settings_out_of_range_are_refused),
      TEST(importances_are_averaged_with_a_lag_of_one_step),
      TEST(the_least_important_rows_go_and_can_come_back),
      TEST(frozen_rows_stay),
      TEST(a_tenth_of_the_elements_is_left_after_training),
      TEST(a_tenth_of_the_elements_is_left_without_training),
      TEST(a_resumed_compression_has_the_same_bits),
      TEST(equal_bits_for_any_number_of_threads),
      TEST(removed_rows_are_gone_from_memory_and_disk),
      TEST(lists_of_rows_that_cannot_be_are_refused),
      TEST(layouts_that_cannot_be_are_refused),
      TEST(experts_of_a_compressed_model_can_be_pruned),
      TEST(stable_ranks_are_those_of_the_products),
      TEST(a_factored_expert_has_0_7176_million_parameters),
      TEST(mc_smoe_has_381_and_c_smoe_570_million_parameters),
  };
  return cmocka_run_group_tests(tests, open_data, close_data);
}
