/* label: short */
/* Neurons are scored, cut out for good, and what is left computes what the masked original did. */
#define SHARED_DATA "synthetic:narrow"
#include "test_measure_models.h"
#include "shared_data.h"

#include <espalier/checkpoint.h>
#include <espalier/optimizer.h>
#include <espalier/prune.h>
#include <espalier/run_folder.h>
#include <espalier/trainer.h>

enum { EXPERTS = 4, HIDDEN = 20, KEPT = 5, COLUMNS = 8, LAYERS = 2, SIDE = 32, BATCH = 12, NUMBERS = SIDE * SIDE * 3 };

static esp_model *model;
static esp_normalisation normalisation;
static esp_calibration calibration;
static esp_real images[BATCH * NUMBERS];

/* Two mixture layers, an MoE and a MoNE that keeps 5 of 20 neurons. */
static int set_up(void **state) {
  (void)state;
  esp_model_config config = small_config();
  config.image_height = config.image_width = SIDE;
  config.stem.patch = 8;
  config.feed_forward.bias = true;
  model = make(&config, NULL, 1);
  fill_parameters(model->parameters, 0.4);
  esp_dataset_normalisation(data, &normalisation);
  calibration = (esp_calibration){data, &normalisation, ESP_TRAIN, 96, 1, 32};
  fill_normal(images, BATCH * NUMBERS, 9);
  return 0;
}

static int tear_down(void **state) {
  (void)state;
  esp_alloc_fail_after(-1);
  esp_model_free(model);
  return 0;
}

/* --- tools -------------------------------------------------------------------------------------------------------- */

static esp_status try_plan(esp_plan **plan, const esp_model *of, const char *name, esp_neuron_budget budget) {
  const esp_neuron_criterion *criterion;
  const esp_criterion_inputs inputs = {.model = of, .seed = 3, .calibration = &calibration};
  assert_int_equal(esp_neuron_criterion_find(&criterion, name), ESP_OK);
  return esp_neuron_plan_make(plan, criterion, &inputs, &budget);
}

static esp_plan *plan_of(const esp_model *of, const char *name, esp_neuron_budget budget) {
  esp_plan *plan;
  if (try_plan(&plan, of, name, budget) != ESP_OK) fail_msg("%s", esp_error_message());
  return plan;
}

static esp_model *apply(const esp_model *of, const esp_plan *plan) {
  esp_model *pruned;
  if (esp_apply_plan(&pruned, of, plan) != ESP_OK) fail_msg("%s", esp_error_message());
  return pruned;
}

static int left(const esp_plan *plan, int layer, int stored) {
  int64_t first;
  return esp_plan_neurons_left(&plan->layers[layer], stored, &first);
}

static bool stays(const esp_plan *plan, int layer, int stored, int neuron) {
  int64_t first;
  (void)esp_plan_neurons_left(&plan->layers[layer], stored, &first);
  return plan->layers[layer].neuron.stays[first + neuron];
}

/* Neuron `j` yields 0 whatever comes in, and no selection prefers it. */
static void silence(const esp_model *of, int layer, int stored, int j) {
  const esp_expert_weights w = esp_expert_weights_of(&esp_model_moe(of, layer)->bank, stored);
  memset(w.gate + j * COLUMNS, 0, COLUMNS * sizeof *w.gate);
  memset(w.up + j * COLUMNS, 0, COLUMNS * sizeof *w.up);
  w.gate_bias[j] = w.up_bias[j] = 0;
}

static esp_tensor *logits_of(const esp_model *of, esp_tape *tape) {
  esp_tape_reset(tape, false);
  esp_tensor x = {.data = images, .rank = 4, .shape = {BATCH, SIDE, SIDE, 3}};
  esp_tensor *logits = esp_model_forward(of, tape, &x, &(esp_pass){.training = false}).logits;
  assert_non_null(logits);
  return logits;
}

static void assert_same_outputs(const esp_model *a, const esp_model *b, double tolerance) {
  esp_tape *one = esp_tape_create(), *two = esp_tape_create();
  const esp_tensor *x = logits_of(a, one), *y = logits_of(b, two);
  double expected[BATCH * 5];
  assert_int_equal(esp_tensor_count(x), BATCH * 5);
  for (int i = 0; i < BATCH * 5; i++) expected[i] = (double)y->data[i];
  assert_close("logits", x->data, expected, BATCH * 5, tolerance, tolerance);
  esp_tape_free(one);
  esp_tape_free(two);
}

static esp_model *copy_of(const esp_model *of) {
  esp_model *copy = make(&of->config, NULL, 1);
  assert_int_equal(esp_model_copy_parameters(copy, of, ""), ESP_OK);
  return copy;
}

/* --- what is found ------------------------------------------------------------------------------------------------ */

static const int dead[EXPERTS][3] = {{0, 7, 19}, {1, 2, 3}, {4, 11, 12}, {17, 18, 19}};

static void planted_dead_neurons_are_cut_and_nothing_changes(void **state) {
  (void)state;
  const struct {
    const char *name;
    esp_neuron_budget budget;
    int layers; /* in which they are found */
  } cases[] = {{"neuron-activation", {.ratio = 0.15}, 2},
               {"neuron-contribution", {.ratio = 0.15}, 2},
               {"neuron-contribution", {.ratio = 0.15, .by_layer = true}, 2},
               {"neuron-frequency", {.below = 1e-9}, 1}};
  for (int i = 0; i < LAYERS; i++)
    for (int s = 0; s < EXPERTS; s++)
      for (int n = 0; n < 3; n++) silence(model, i, s, dead[s][n]);
  for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
    esp_plan *plan = plan_of(model, cases[c].name, cases[c].budget);
    for (int i = LAYERS - cases[c].layers; i < LAYERS; i++)
      for (int s = 0; s < EXPERTS; s++)
        for (int n = 0; n < 3; n++) assert_false(stays(plan, i, s, dead[s][n]));
    if (c < 3) assert_int_equal(esp_plan_neurons_cut(&plan->layers[0]), 12);
    esp_model *pruned = apply(model, plan);
    assert_same_outputs(pruned, model, 1e-5);
    esp_model_free(pruned);
    esp_plan_free(plan);
  }
}

/* Frequency says nothing of an MoE, so that it stays as it is. */
static void frequency_leaves_layers_without_selection(void **state) {
  (void)state;
  esp_plan *plan = plan_of(model, "neuron-frequency", (esp_neuron_budget){.ratio = 0.5});
  assert_int_equal(esp_plan_neurons_cut(&plan->layers[0]), 0);
  assert_int_equal(esp_plan_neurons_cut(&plan->layers[1]), EXPERTS * HIDDEN / 2);
  double sum = 0; /* each row selects 5 neurons */
  for (int j = 0; j < HIDDEN; j++) sum += plan->layers[1].neuron.score[j];
  assert_near(sum, KEPT);
  esp_plan_free(plan);
}

/* By hand: mean |h| and mean |h| x |down| over the rows of each expert. */
static double sums[2][LAYERS][EXPERTS * HIDDEN];
static int64_t rows[LAYERS][EXPERTS];

static void add_by_hand(void *context, const esp_moe_record *record) {
  (void)context;
  const int layer = record->layer->block - 1;
  for (int e = 0; e < EXPERTS; e++)
    for (int64_t r = record->routing->first_row[e]; r < record->routing->first_row[e + 1]; r++) {
      rows[layer][e]++;
      for (int j = 0; j < HIDDEN; j++) {
        const esp_real *down = record->layer->bank.down->data + (e * HIDDEN + j) * COLUMNS;
        double norm = 0;
        for (int i = 0; i < COLUMNS; i++) norm += (double)down[i] * (double)down[i];
        sums[0][layer][e * HIDDEN + j] += fabs((double)record->experts.activation->data[r * HIDDEN + j]);
        sums[1][layer][e * HIDDEN + j] += fabs((double)record->experts.selected->data[r * HIDDEN + j]) * sqrt(norm);
      }
    }
}

static void scores_are_the_formulas(void **state) {
  (void)state;
  const char *const names[] = {"neuron-activation", "neuron-contribution"};
  const esp_observer observer = {add_by_hand, NULL};
  memset(sums, 0, sizeof sums);
  memset(rows, 0, sizeof rows);
  assert_int_equal(esp_calibration_pass(model, &calibration, &observer), ESP_OK);
  for (int c = 0; c < 2; c++) {
    esp_plan *plan = plan_of(model, names[c], (esp_neuron_budget){.ratio = 0.25});
    for (int i = 0; i < LAYERS; i++)
      for (int j = 0; j < EXPERTS * HIDDEN; j++)
        assert_near(plan->layers[i].neuron.score[j], sums[c][i][j] / (double)rows[i][j / HIDDEN]);
    esp_plan_free(plan);
  }
  esp_plan *plan = plan_of(model, "neuron-weight-norm", (esp_neuron_budget){.ratio = 0.25});
  const esp_expert_weights w = esp_expert_weights_of(&esp_model_moe(model, 1)->bank, 2);
  double squares = 0;
  for (int i = 3 * COLUMNS; i < 4 * COLUMNS; i++)
    squares += (double)w.gate[i] * (double)w.gate[i] + (double)w.up[i] * (double)w.up[i] +
               (double)w.down[i] * (double)w.down[i];
  assert_near(plan->layers[1].neuron.score[2 * HIDDEN + 3], sqrt(squares));
  esp_plan_free(plan);
}

/* --- budgets ------------------------------------------------------------------------------------------------------ */

static void budgets(void **state) {
  (void)state;
  esp_plan *plan = plan_of(model, "neuron-random", (esp_neuron_budget){.ratio = 0.3, .exclude = "blocks.1.*"});
  assert_int_equal(esp_plan_neurons_cut(&plan->layers[0]), 0);
  for (int s = 0; s < EXPERTS; s++) assert_int_equal(left(plan, 1, s), 14);
  esp_plan_free(plan);
  plan = plan_of(model, "neuron-random", (esp_neuron_budget){.ratio = 0.7, .by_layer = true});
  for (int i = 0; i < LAYERS; i++) {
    assert_int_equal(esp_plan_neurons_cut(&plan->layers[i]), 56);
    double highest_cut = 0, lowest_kept = 1;
    for (int s = 0; s < EXPERTS; s++) {
      assert_true(left(plan, i, s) >= (i == 0 ? 1 : KEPT));
      for (int j = 0; j < HIDDEN; j++) {
        const double score = plan->layers[i].neuron.score[s * HIDDEN + j];
        if (!stays(plan, i, s, j)) highest_cut = score > highest_cut ? score : highest_cut;
        else if (left(plan, i, s) > (i == 0 ? 1 : KEPT)) lowest_kept = score < lowest_kept ? score : lowest_kept;
      }
    }
    assert_true(highest_cut < lowest_kept); /* but for those that must stay */
  }
  esp_plan_free(plan);
  plan = plan_of(model, "neuron-frequency", (esp_neuron_budget){.below = 1});
  for (int s = 0; s < EXPERTS; s++) assert_int_equal(left(plan, 1, s), KEPT); /* the most frequent ones */
  esp_plan_free(plan);
}

/* Equal scores: the higher index goes first. */
static void ties_favour_the_lower_index(void **state) {
  (void)state;
  for (int s = 0; s < EXPERTS; s++)
    for (int j = 0; j < HIDDEN; j++) silence(model, 0, s, j);
  esp_plan *plan = plan_of(model, "neuron-activation", (esp_neuron_budget){.ratio = 0.75});
  for (int s = 0; s < EXPERTS; s++)
    for (int j = 0; j < HIDDEN; j++) assert_int_equal(stays(plan, 0, s, j), j < 5);
  esp_plan_free(plan);
}

static void assert_refused(const char *name, esp_neuron_budget budget, esp_status status, const char *text) {
  esp_plan *plan = (esp_plan *)model;
  assert_int_equal(try_plan(&plan, model, name, budget), status);
  assert_null(plan);
  if (!strstr(esp_error_message(), text)) fail_msg("\"%s\" does not say \"%s\"", esp_error_message(), text);
}

static void refusals(void **state) {
  (void)state;
  assert_refused("neuron-random", (esp_neuron_budget){.ratio = 0.8}, ESP_ERR_USAGE,
                 "cutting 16 would leave 4, but each token uses 5");
  assert_refused("neuron-random", (esp_neuron_budget){.ratio = 0.8, .by_layer = true}, ESP_ERR_USAGE,
                 "64 of the 80 neurons of its experts are to go, but only 60 can");
  assert_refused("neuron-random", (esp_neuron_budget){.ratio = 1}, ESP_ERR_USAGE, "must lie in [0, 1)");
  assert_refused("neuron-random", (esp_neuron_budget){.ratio = (double)NAN}, ESP_ERR_USAGE, "must lie in [0, 1)");
  assert_refused("neuron-random", (esp_neuron_budget){.below = 0.1}, ESP_ERR_USAGE, "use neuron-frequency");
  assert_refused("neuron-frequency", (esp_neuron_budget){.below = 1.5}, ESP_ERR_USAGE, "(0, 1]");
  const esp_neuron_criterion *criterion;
  assert_int_equal(esp_neuron_criterion_find(&criterion, "neuron-frequencies"), ESP_ERR_USAGE);
  assert_non_null(strstr(esp_error_message(), "did you mean \"neuron-frequency\"?"));
  esp_model_moe(model, 1)->neurons_kept = HIDDEN;
  assert_refused("neuron-frequency", (esp_neuron_budget){.ratio = 0.5}, ESP_ERR_MISMATCH,
                 "no layer of the model selects");
}

/* --- the surgeon -------------------------------------------------------------------------------------------------- */

static void a_pruned_model_is_the_masked_one(void **state) {
  (void)state;
  esp_plan *plan = plan_of(model, "neuron-random", (esp_neuron_budget){.ratio = 0.45, .by_layer = true});
  esp_model *masked = copy_of(model), *pruned = apply(model, plan);
  for (int i = 0; i < LAYERS; i++)
    for (int s = 0; s < EXPERTS; s++)
      for (int j = 0; j < HIDDEN; j++)
        if (!stays(plan, i, s, j)) silence(masked, i, s, j);
  assert_same_outputs(pruned, masked, 1e-5);
  assert_non_null(esp_model_moe(pruned, 0)->bank.widths);
  esp_model_free(masked);
  esp_model_free(pruned);
  esp_plan_free(plan);
}

/* Neurons first, then an expert: the widths go with the experts. And what is uniform again is a uniform bank. */
static void experts_of_a_ragged_model_are_pruned(void **state) {
  (void)state;
  esp_plan *cut = plan_of(model, "neuron-random", (esp_neuron_budget){.ratio = 0.2, .by_layer = true});
  esp_model *ragged = apply(model, cut), *copy = apply(model, cut);
  const esp_moe *before = esp_model_moe(ragged, 0);
  esp_plan *drop, *all_but_one;
  assert_int_equal(esp_plan_create(&drop, ragged, "by hand", ESP_PRUNE_ZERO), ESP_OK);
  drop->layers[0].target[1] = ESP_TARGET_ZERO;
  drop->layers[1].target[3] = ESP_TARGET_ZERO;
  esp_model *pruned = apply(ragged, drop);
  const esp_moe *after = esp_model_moe(pruned, 0);
  for (int s = 0; s < 3; s++)
    assert_int_equal(esp_expert_width(&after->bank, s), esp_expert_width(&before->bank, s + (s > 0)));
  for (int i = 0; i < LAYERS; i++) { /* a zero expert's down rows and bias are 0 */
    const esp_expert_weights w = esp_expert_weights_of(&esp_model_moe(copy, i)->bank, i == 0 ? 1 : 3);
    memset(w.down, 0, (size_t)(w.neurons * COLUMNS) * sizeof *w.down);
    memset(w.down_bias, 0, COLUMNS * sizeof *w.down_bias);
  }
  assert_same_outputs(pruned, copy, 1e-5);
  assert_int_equal(esp_plan_create(&all_but_one, ragged, "by hand", ESP_PRUNE_ZERO), ESP_OK);
  for (int e = 1; e < EXPERTS; e++) all_but_one->layers[0].target[e] = ESP_TARGET_ZERO;
  esp_model *single = apply(ragged, all_but_one);
  assert_null(esp_model_moe(single, 0)->bank.widths);
  assert_int_equal(esp_model_moe(single, 0)->bank.up->rank, 3);
  esp_plan *const plans[] = {cut, drop, all_but_one};
  esp_model *const models[] = {ragged, copy, pruned, single};
  for (int i = 0; i < 3; i++) esp_plan_free(plans[i]);
  for (int i = 0; i < 4; i++) esp_model_free(models[i]);
}

static void the_surgeon_refuses_what_cannot_be(void **state) {
  (void)state;
  esp_model *pruned;
  esp_plan *plan = plan_of(model, "neuron-random", (esp_neuron_budget){.ratio = 0.1});
  memset(plan->layers[0].neuron.stays + HIDDEN, false, HIDDEN * sizeof(bool));
  assert_int_equal(esp_apply_plan(&pruned, model, plan), ESP_ERR_MISMATCH);
  assert_non_null(strstr(esp_error_message(), "no neuron of stored expert 1 of blocks.1.moe"));
  plan->layers[0].neuron.width[1]--;
  assert_int_equal(esp_apply_plan(&pruned, model, plan), ESP_ERR_MISMATCH);
  assert_non_null(strstr(esp_error_message(), "speaks of 19 neurons in stored expert 1"));
  esp_plan_free(plan);
}

/* --- row 19 ------------------------------------------------------------------------------------------------------- */

static int64_t file_bytes(const char *path) {
  struct stat found;
  assert_int_equal(stat(path, &found), 0);
  return found.st_size;
}

static int64_t parameters_of(const esp_model *of) {
  esp_model_cost cost;
  esp_model_cost_of(of, &cost);
  return cost.parameters;
}

/* Layers with different numbers of experts, and experts of different widths: the file shrinks by what is gone, and what
 * is read again has the same bits. Sizes are compared between models of 384 and 192 neurons, whose numbers outweigh
 * HDF5's own structures (an entry a chunk). */
static void physical_shrink_of_non_uniform_layers(void **state) {
  (void)state;
  char folder[TESTING_PATH_SIZE], before[TESTING_PATH_SIZE + 16], after[TESTING_PATH_SIZE + 16];
  esp_model_config config = model->config;
  config.moe.hidden = 384;
  config.width = 64;
  esp_model *large = make(&config, NULL, 1);
  esp_plan *plan = plan_of(large, "neuron-random", (esp_neuron_budget){.ratio = 0.5, .by_layer = true});
  plan->layers[0].target[2] = ESP_TARGET_ZERO;
  esp_model *pruned = apply(large, plan), *read;
  esp_checkpoint_info info = {.data_name = "synthetic"};
  make_folder(folder);
  snprintf(before, sizeof before, "%s/before.h5", folder);
  snprintf(after, sizeof after, "%s/after.h5", folder);
  assert_int_equal(esp_checkpoint_save(before, large, NULL, &info, 0), ESP_OK);
  assert_int_equal(esp_checkpoint_save(after, pruned, NULL, &info, 0), ESP_OK);
  const int64_t gone = 4 * (parameters_of(large) - parameters_of(pruned)),
                saved = file_bytes(before) - file_bytes(after);
  print_message("%lld bytes of parameters are gone, the file is %lld smaller\n", (long long)gone, (long long)saved);
  assert_true(gone > 500000 && llabs(saved - gone) < 2048);
  esp_checkpoint_info_clear(&info);
  assert_int_equal(esp_checkpoint_load(after, &read, &info), ESP_OK);
  assert_int_equal(esp_model_moe(read, 0)->layout.stored, 3);
  assert_int_equal(esp_model_moe(read, 1)->layout.stored, 4);
  assert_memory_equal(&esp_model_moe(read, 0)->layout, &esp_model_moe(pruned, 0)->layout, sizeof(esp_expert_layout));
  assert_same_outputs(read, pruned, 0);
  esp_checkpoint_info_clear(&info);
  remove_folder(folder);
  esp_plan_free(plan);
  esp_model_free(large);
  esp_model_free(pruned);
  esp_model_free(read);
}

static void ragged_models_can_be_finetuned(void **state) {
  (void)state;
  int32_t labels[BATCH] = {0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1};
  float mix[BATCH];
  for (int i = 0; i < BATCH; i++) mix[i] = 1;
  const esp_batch batch = {.count = BATCH, .images = images, .labels = labels, .mixed_labels = labels, .mix = mix};
  esp_plan *plan = plan_of(model, "neuron-contribution", (esp_neuron_budget){.ratio = 0.5, .by_layer = true});
  esp_model *pruned = apply(model, plan);
  esp_optimizer_config config = esp_optimizer_defaults;
  config.learning_rate = 1e-3;
  esp_optimizer *optimizer;
  esp_tape *tape = esp_tape_create();
  assert_int_equal(esp_optimizer_create(&optimizer, &config, pruned->parameters), ESP_OK);
  esp_step_result first, last;
  const esp_pass pass = {.training = true, .seed = 1};
  assert_int_equal(esp_training_step(pruned, optimizer, tape, &batch,
                                     &(esp_step_options){.pass = pass, .learning_rate_multiplier = 1}, &first),
                   ESP_OK);
  for (int i = 0; i < 5; i++)
    assert_int_equal(esp_training_step(pruned, optimizer, tape, &batch,
                                       &(esp_step_options){.pass = pass, .learning_rate_multiplier = 1}, &last),
                     ESP_OK);
  if (!(last.loss < first.loss)) fail_msg("the loss goes from %g to %g", first.loss, last.loss);
  esp_tape_free(tape);
  esp_optimizer_free(optimizer);
  esp_model_free(pruned);
  esp_plan_free(plan);
}

/* --- as text ------------------------------------------------------------------------------------------------------ */

static void plans_say_which_neurons_stay(void **state) {
  (void)state;
  char *text;
  esp_plan *plan = plan_of(model, "neuron-random", (esp_neuron_budget){.ratio = 0});
  const int cut[] = {0, 5, 6, 19};
  for (int i = 0; i < 4; i++) plan->layers[0].neuron.stays[HIDDEN + cut[i]] = false;
  assert_int_equal(esp_plan_json(&text, plan), ESP_OK);
  assert_non_null(strstr(text, "\"stay\": \"0-19\""));
  assert_non_null(strstr(text, "\"stay\": \"1-4 7-18\""));
  char folder[TESTING_PATH_SIZE], path[TESTING_PATH_SIZE + 16];
  make_folder(folder);
  snprintf(path, sizeof path, "%s/plan.json", folder);
  esp_plan *read;
  assert_int_equal(esp_file_write(path, text), ESP_OK);
  assert_int_equal(esp_plan_load(&read, path), ESP_OK);
  for (int i = 0; i < LAYERS; i++)
    assert_memory_equal(read->layers[i].neuron.stays, plan->layers[i].neuron.stays, EXPERTS * HIDDEN * sizeof(bool));
  const char *const wrong[] = {"1-4 7-20", "1-4 4-18", "4-1 7-18", "1-4x7-18"}; /* of 20 neurons */
  for (int i = 0; i < 4; i++) {
    esp_plan *none;
    memcpy(strstr(text, i ? wrong[i - 1] : "1-4 7-18"), wrong[i], 8);
    assert_int_equal(esp_file_write(path, text), ESP_OK);
    assert_int_equal(esp_plan_load(&none, path), ESP_ERR_FORMAT);
    assert_null(none);
  }
  remove_folder(folder);
  esp_free(text);
  esp_plan_free(read);
  esp_plan_free(plan);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void) {
  const struct CMUnitTest tests[] = {TEST(planted_dead_neurons_are_cut_and_nothing_changes),
                                     TEST(frequency_leaves_layers_without_selection),
                                     TEST(scores_are_the_formulas),
                                     TEST(budgets),
                                     TEST(ties_favour_the_lower_index),
                                     TEST(refusals),
                                     TEST(a_pruned_model_is_the_masked_one),
                                     TEST(experts_of_a_ragged_model_are_pruned),
                                     TEST(the_surgeon_refuses_what_cannot_be),
                                     TEST(physical_shrink_of_non_uniform_layers),
                                     TEST(ragged_models_can_be_finetuned),
                                     TEST(plans_say_which_neurons_stay)};
  return cmocka_run_group_tests(tests, open_data, close_data);
}
