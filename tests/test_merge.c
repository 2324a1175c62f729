/* label: short */
/* Merging: dominant experts, groups, averages, and merged models as a whole. */
#include "test_measure_models.h"

#include <espalier/prune.h>

static void expect_ok(esp_status status) {
  if (status != ESP_OK) fail_msg("status %d: %s", status, esp_error_message());
}

static void expect_refusal(esp_status status, esp_status expected, const char *words) {
  assert_int_equal(status, expected);
  if (!strstr(esp_error_message(), words)) fail_msg("\"%s\" does not say \"%s\"", esp_error_message(), words);
}

/* --- grouping by hand ------------------------------------------------------------------------------------------- */

enum { E = 4 };

static double alike[3][E * E];

/* Three layers with these frequencies; every expert is most like the next one, then the one after it ... */
static void describe(esp_group_layer *layers, const double (*frequency)[E], int count) {
  for (int i = 0; i < count; i++) {
    layers[i] = (esp_group_layer){.scope = "blocks.0.moe", .experts = E, .members = 1, .similarity = alike[i]};
    for (int e = 0; e < E; e++) {
      layers[i].alive[e] = true;
      layers[i].frequency[e] = frequency[i][e];
      for (int d = 0; d < E; d++) alike[i][e * E + d] = (e - d + E) % E / 4.0;
    }
  }
}

static int groups_of(const esp_group_layer *layer) {
  int groups = 0;
  for (int e = 0; e < layer->experts; e++) groups += layer->dominant[e] == e;
  return groups;
}

static const double skewed_and_even[][E] = {{0.7, 0.1, 0.12, 0.08}, {0.24, 0.26, 0.27, 0.23}};

static void an_even_layer_keeps_more_than_a_skewed_one(void **state) {
  (void)state;
  esp_group_layer layers[2];
  describe(layers, skewed_and_even, 2);
  /* 1, 0.12, 0.1, 0.08 and 1, 0.26, 0.24, 0.23: of rank 4 is 0.23. */
  expect_ok(esp_choose_dominant(layers, 2, &(esp_group_budget){.groups = 2, .global = true}));
  assert_int_equal(groups_of(&layers[0]), 1);
  assert_int_equal(groups_of(&layers[1]), 3);
  assert_true(layers[0].dominant[0] == 0 && layers[1].dominant[3] == -1);
  expect_ok(esp_choose_dominant(layers, 2, &(esp_group_budget){.groups = 2}));
  assert_true(groups_of(&layers[0]) == 2 && groups_of(&layers[1]) == 2);
  assert_true(layers[0].dominant[2] == 2 && layers[1].dominant[1] == 1);
}

static void excluded_layers_keep_all_experts(void **state) {
  (void)state;
  esp_group_layer layers[2];
  describe(layers, skewed_and_even, 2);
  layers[0].excluded = true;
  for (int global = 0; global < 2; global++) {
    expect_ok(esp_choose_dominant(layers, 2, &(esp_group_budget){.ratio = 0.5, .global = global}));
    assert_int_equal(groups_of(&layers[0]), E);
    assert_int_equal(groups_of(&layers[1]), 2);
    expect_ok(esp_join_groups(layers, 2, &(esp_group_budget){.ratio = 0.5}));
    for (int e = 0; e < E; e++) assert_int_equal(layers[0].dominant[e], e);
  }
}

static void ties_at_the_threshold_yield_fewer_groups(void **state) {
  (void)state;
  static const double tied[][E] = {{0.4, 0.2, 0.2, 0.2}, {0.4, 0.2, 0.2, 0.2}};
  esp_group_layer layers[2];
  describe(layers, tied, 2);
  expect_ok(esp_choose_dominant(layers, 2, &(esp_group_budget){.groups = 3, .global = true}));
  assert_true(groups_of(&layers[0]) == 1 && groups_of(&layers[1]) == 1);
  expect_ok(esp_choose_dominant(layers, 2, &(esp_group_budget){.groups = 3}));
  assert_true(layers[0].dominant[2] == 2 && layers[0].dominant[3] == -1); /* each layer by itself: the lower index */
  expect_ok(esp_choose_dominant(layers, 2, &(esp_group_budget){.groups = 4, .global = true}));
  assert_true(groups_of(&layers[0]) == E && groups_of(&layers[1]) == E);
}

static void every_group_has_one_dominant_member(void **state) {
  (void)state;
  esp_group_layer layers[2];
  describe(layers, skewed_and_even, 2);
  for (int groups = 1; groups <= E; groups++) {
    const esp_group_budget budget = {.groups = groups, .global = true};
    expect_ok(esp_choose_dominant(layers, 2, &budget));
    expect_ok(esp_join_groups(layers, 2, &budget));
    assert_int_equal(groups_of(&layers[0]) + groups_of(&layers[1]), 2 * groups); /* no ties: the budget */
    for (int i = 0; i < 2; i++)
      for (int e = 0; e < E; e++) {
        const int32_t d = layers[i].dominant[e];
        assert_true(d >= 0 && layers[i].dominant[d] == d);
        for (int other = 0; other < E; other++) /* the most like of the dominant ones */
          if (e != d && layers[i].dominant[other] == other) assert_true(alike[i][e * E + other] <= alike[i][e * E + d]);
      }
  }
}

static void members_and_capacities_bound_groups(void **state) {
  (void)state;
  esp_group_layer layer[1];
  describe(layer, skewed_and_even, 1);
  layer->members = 2;
  esp_group_budget budget = {.groups = 2};
  expect_ok(esp_choose_dominant(layer, 1, &budget));
  expect_ok(esp_join_groups(layer, 1, &budget));
  assert_memory_equal(layer->dominant, ((const int32_t[]){0, 0, 2, 2}), E * sizeof(int32_t));
  expect_refusal(esp_choose_dominant(layer, 1, &(esp_group_budget){.groups = 3}), ESP_ERR_USAGE, "multiple of 2");
  layer->members = 1;
  for (int e = 0; e < E; e++) alike[0][e * E] = 1; /* all are most like expert 0 */
  budget.capacity = 2;
  expect_ok(esp_choose_dominant(layer, 1, &budget));
  expect_ok(esp_join_groups(layer, 1, &budget));
  assert_memory_equal(layer->dominant, ((const int32_t[]){0, 0, 2, 2}), E * sizeof(int32_t));
  budget.capacity = 1;
  expect_ok(esp_choose_dominant(layer, 1, &budget));
  expect_refusal(esp_join_groups(layer, 1, &budget), ESP_ERR_USAGE, "no room for expert 1");
}

static void budgets_that_cannot_be_are_refused(void **state) {
  (void)state;
  esp_group_layer layers[2];
  describe(layers, skewed_and_even, 2);
  expect_refusal(esp_choose_dominant(layers, 2, &(esp_group_budget){.ratio = 1}), ESP_ERR_USAGE, "ratio");
  expect_refusal(esp_choose_dominant(layers, 2, &(esp_group_budget){.groups = 5}), ESP_ERR_USAGE, "4 experts");
  layers[0].frequency[0] = 1; /* as if it took all tokens, and another one too: both count as 1 */
  layers[0].frequency[1] = 1;
  expect_refusal(esp_choose_dominant(layers, 2, &(esp_group_budget){.groups = 1, .global = true}), ESP_ERR_USAGE,
                 "every layer needs at least one");
}

/* --- models ------------------------------------------------------------------------------------------------------ */

static esp_dataset *data;
static esp_normalisation normalisation;
static esp_calibration calibration;
static esp_model *model;

/* All parameters random, for the images of the data. */
static esp_model *speaking(int members) {
  const esp_dataset_info *info = esp_dataset_info_of(data);
  esp_model_config config = small_config();
  config.image_height = info->height;
  config.image_width = info->width;
  config.image_channels = info->channels;
  config.classes = info->classes;
  config.stem.patch = 8;
  config.feed_forward.bias = true;
  config.moe.experts = 8;
  config.moe.members = members;
  esp_model *made = make(&config, NULL, 1);
  fill_parameters(made->parameters, 0.4);
  return made;
}

static int open_all(void **state) {
  (void)state;
  if (esp_dataset_open(&data, "synthetic:narrow") != ESP_OK) return -1;
  esp_dataset_normalisation(data, &normalisation);
  calibration = (esp_calibration){
      .dataset = data, .normalisation = &normalisation, .split = ESP_TRAIN, .images = 48, .seed = 3, .batch = 16};
  model = speaking(1);
  return 0;
}

static int close_all(void **state) {
  (void)state;
  esp_model_free(model);
  esp_dataset_close(data);
  return 0;
}

static esp_merge_options options_of(const char *method, int groups) {
  esp_merge_options options = {.budget = {.groups = groups}};
  expect_ok(esp_merge_method_find(&options.method, method));
  return options;
}

static esp_model *merge(const esp_model *of, const esp_merge_options *options, esp_plan **plan) {
  esp_model *merged;
  esp_plan *made;
  expect_ok(esp_merge_plan(&made, of, &calibration, options));
  expect_ok(esp_apply_plan(&merged, of, made));
  if (plan) *plan = made;
  else esp_plan_free(made);
  return merged;
}

/* Logits of a few test images. */
static esp_tensor *answers(const esp_model *of, esp_tape *tape) {
  const esp_model_config *c = &of->config;
  const int64_t pixel_count = (int64_t)c->image_height * c->image_width * c->image_channels;
  esp_tape_reset(tape, false);
  esp_tensor *images =
      esp_tape_tensor(tape, 4, (const int64_t[]){8, c->image_height, c->image_width, c->image_channels});
  for (int i = 0; i < 8; i++) esp_dataset_image(data, ESP_TEST, i, images->data + i * pixel_count);
  esp_tensor *logits = esp_model_forward(of, tape, images, &(esp_pass){.training = false}).logits;
  assert_non_null(logits);
  return logits;
}

static double difference(const esp_model *a, const esp_model *b) {
  esp_tape *one = esp_tape_create(), *two = esp_tape_create();
  const esp_tensor *x = answers(a, one), *y = answers(b, two);
  double most = 0;
  for (int64_t i = 0; i < esp_tensor_count(x); i++) most = fmax(most, fabs((double)(x->data[i] - y->data[i])));
  esp_tape_free(one);
  esp_tape_free(two);
  return most;
}

static void copy_slice(const esp_tensor *tensor, int from, int to) {
  const int64_t size = esp_tensor_count(tensor) / tensor->shape[0];
  memcpy(tensor->data + to * size, tensor->data + from * size, (size_t)size * sizeof *tensor->data);
}

static void copy_expert(const esp_moe *moe, int from, int to) {
  copy_slice(moe->bank.up, from, to);
  copy_slice(moe->bank.up_bias, from, to);
  copy_slice(moe->bank.down, from, to);
  copy_slice(moe->bank.down_bias, from, to);
}

/* Exchanges two neurons of an expert, which changes nothing it computes. */
static void swap_rows(const esp_tensor *tensor, int expert, int neurons, int a, int b) {
  const int64_t size = esp_tensor_count(tensor) / tensor->shape[0], columns = tensor->rank == 3 ? tensor->shape[2] : 1;
  for (int64_t half = 0; half < tensor->shape[1] / neurons; half++)
    for (int64_t j = 0; j < columns; j++) {
      esp_real *x = tensor->data + expert * size + (half * neurons + a) * columns + j;
      esp_real *y = tensor->data + expert * size + (half * neurons + b) * columns + j;
      const esp_real kept = *x;
      *x = *y, *y = kept;
    }
}

static void swap_neurons(const esp_moe *moe, int expert, int a, int b) {
  swap_rows(moe->bank.up, expert, moe->bank.hidden, a, b);
  swap_rows(moe->bank.up_bias, expert, moe->bank.hidden, a, b);
  swap_rows(moe->bank.down, expert, moe->bank.hidden, a, b);
}

/* Experts 2 i and 2 i + 1 alike: the same router row, nearly, the same weights, neurons in another order. */
static esp_model *planted(bool shuffled) {
  esp_model *made = speaking(1);
  for (int i = 0; i < 2; i++) {
    const esp_moe *moe = esp_model_moe(made, i);
    for (int e = 0; e < 8; e += 2) {
      copy_slice(moe->router, e, e + 1);
      moe->router->data[(e + 1) * moe->bank.width] += (esp_real)1e-3;
      copy_expert(moe, e, e + 1);
      for (int n = 0; shuffled && n < 19; n += 2 + e / 2) swap_neurons(moe, e + 1, n, n + 1);
    }
  }
  return made;
}

static void planted_duplicate_router_rows_group_together(void **state) {
  (void)state;
  static const esp_similarity_kind kinds[] = {ESP_SIMILARITY_ROUTER_LOGITS, ESP_SIMILARITY_ROUTER_WEIGHTS};
  esp_model *made = planted(false);
  for (int k = 0; k < 2; k++) {
    esp_merge_options options = options_of("m-smoe", 7);
    options.similarity = kinds[k];
    options.budget.global = false;
    for (options.budget.groups = 4; options.budget.groups < 8; options.budget.groups++) {
      esp_plan *plan;
      expect_ok(esp_merge_plan(&plan, made, &calibration, &options));
      for (int i = 0; i < plan->layer_count; i++)
        for (int e = 0; e < 8; e++) { /* whoever's twin is dominant joins it */
          const int32_t *target = plan->layers[i].target;
          if (target[e] != e && target[e ^ 1] == (e ^ 1)) assert_int_equal(target[e], e ^ 1);
          assert_int_equal(esp_plan_groups(&plan->layers[i]), options.budget.groups);
        }
      esp_plan_free(plan);
    }
  }
  esp_model_free(made);
}

/* By hand: twins share; `weight` is that of the first of two. */
static esp_model *merge_twins(const esp_model *of, double weight) {
  esp_plan *plan;
  esp_model *merged;
  expect_ok(esp_plan_create(&plan, of, "twins", ESP_PRUNE_ZERO));
  for (int i = 0; i < plan->layer_count; i++) {
    plan->layers[i].averaged = true;
    for (int e = 0; e < 8; e++) {
      plan->layers[i].target[e] = e & ~1;
      plan->layers[i].weight[e] = e % 2 ? 1 - weight : weight;
    }
  }
  expect_ok(esp_apply_plan(&merged, of, plan));
  esp_plan_free(plan);
  return merged;
}

/* Tokens whose two choices are twins are among those: both gated outputs are summed. */
static void merging_identical_experts_changes_nothing(void **state) {
  (void)state;
  esp_model *made = planted(false), *merged = merge_twins(made, 0.3);
  assert_int_equal(esp_model_moe(merged, 0)->layout.stored, 4);
  assert_true(difference(made, merged) < 1e-5);
  esp_model_free(merged);
  esp_model_free(made);
}

static void a_token_that_hits_an_expert_twice_sums_both(void **state) {
  (void)state;
  esp_model *made = planted(false);
  /* With one group both choices of every token are the same stored expert. */
  const esp_merge_options options = options_of("plain-average", 1);
  esp_model *merged = merge(made, &options, NULL), *pruned;
  assert_int_equal(esp_model_moe(merged, 0)->layout.stored, 1);
  esp_plan *plan; /* the same by hand: all experts have the average's weights, none is shared */
  expect_ok(esp_plan_create(&plan, made, "none", ESP_PRUNE_ZERO));
  expect_ok(esp_apply_plan(&pruned, made, plan));
  for (int i = 0; i < 2; i++) {
    const esp_expert_bank *one = &esp_model_moe(merged, i)->bank, *all = &esp_model_moe(pruned, i)->bank;
    const esp_tensor *from[] = {one->up, one->up_bias, one->down, one->down_bias};
    const esp_tensor *to[] = {all->up, all->up_bias, all->down, all->down_bias};
    for (int t = 0; t < 4; t++)
      for (int e = 0; e < 8; e++)
        memcpy(to[t]->data + e * esp_tensor_count(from[t]), from[t]->data,
               (size_t)esp_tensor_count(from[t]) * sizeof(esp_real));
  }
  assert_true(difference(merged, pruned) < 1e-5);
  esp_plan_free(plan);
  esp_model_free(pruned);
  esp_model_free(merged);
  esp_model_free(made);
}

static void weights_of_1_and_0_return_the_first_expert(void **state) {
  (void)state;
  esp_model *merged = merge_twins(model, 1);
  for (int i = 0; i < 2; i++) {
    const esp_moe *old = esp_model_moe(model, i), *new = esp_model_moe(merged, i);
    const int64_t size = esp_tensor_count(new->bank.up) / 4;
    for (int g = 0; g < 4; g++)
      assert_same_bits("up", new->bank.up->data + g *size, old->bank.up->data + 2 * g * size, size);
    assert_same_bits("the router", new->router->data, old->router->data, esp_tensor_count(old->router));
    assert_int_equal(new->layout.experts, 8);
  }
  esp_model_free(merged);
}

static void the_parameter_count_is_that_of_the_groups(void **state) {
  (void)state;
  const esp_merge_options options = options_of("m-smoe", 3);
  esp_model *merged = merge(model, &options, NULL);
  esp_model_cost before, after;
  esp_model_cost_of(model, &before);
  esp_model_cost_of(merged, &after);
  const int64_t expert = 3 * 20 * 8 + 2 * 20 + 8;
  assert_int_equal(before.parameters - after.parameters, 2 * 5 * expert);
  assert_true(before.flops == after.flops); /* as many experts a token as before */
  esp_model_free(merged);
}

static void planted_permuted_copies_merge_without_change(void **state) {
  (void)state;
  static const char *const methods[] = {"m-smoe", "git-rebasin"};
  esp_model *made = planted(true);
  esp_plan *plan;
  for (int m = 0; m < 2; m++)
    for (int activations = 0; activations < 2; activations++) {
      esp_merge_options options = options_of(methods[m], 4);
      if (activations) options.method.align = ESP_ALIGN_ACTIVATIONS;
      /* Only expert 1 is a copy of expert 0, to which all are aligned; so make all copies of it. */
      for (int i = 0; i < 2; i++)
        for (int e = 2; e < 8; e++) {
          copy_expert(esp_model_moe(made, i), 0, e);
          for (int n = 0; n < 19; n += e) swap_neurons(esp_model_moe(made, i), e, n, n + 1);
        }
      esp_model *merged = merge(made, &options, &plan);
      if (difference(made, merged) > 1e-5) fail_msg("%s: logits differ by %g", methods[m], difference(made, merged));
      for (int i = 0; i < 2; i++) {
        const int32_t *place = plan->layers[i].place + 20; /* of expert 1 */
        for (int n = 0; n < 20; n += 2) assert_true(n > 18 || place[n] == n + 1);
      }
      esp_plan_free(plan);
      esp_model_free(merged);
    }
  /* Without alignment the average is another expert. */
  const esp_merge_options plain = options_of("plain-average", 4);
  esp_model *merged = merge(made, &plain, NULL);
  assert_true(difference(made, merged) > 1e-3);
  esp_model_free(merged);
  esp_model_free(made);
}

/* All methods, similarities and averages give working models of the size asked for, always the same. */
static void every_choice_works_and_repeats(void **state) {
  (void)state;
  const esp_merge_method *methods;
  const size_t count = esp_merge_method_list(&methods);
  for (size_t m = 0; m < count; m++)
    for (int kind = 0; kind < ESP_SIMILARITY_KINDS; kind++) {
      esp_merge_options options = options_of(methods[m].name, 3);
      options.similarity = (esp_similarity_kind)kind;
      if (m == 0) options.method.average = (esp_average_kind)(kind % 3);
      esp_model *merged = merge(model, &options, NULL), *again = merge(model, &options, NULL);
      assert_int_equal(esp_model_moe(merged, 1)->layout.stored, 3);
      assert_same_bits(methods[m].name, esp_parameters_values(merged->parameters),
                       esp_parameters_values(again->parameters), esp_parameters_size(merged->parameters));
      const double changed = difference(model, merged);
      assert_true(changed > 1e-6 && changed < 100);
      esp_model_free(merged);
      esp_model_free(again);
    }
}

static void members_of_an_ensemble_share_with_their_own_only(void **state) {
  (void)state;
  esp_model *ensemble = speaking(2);
  for (int global = 0; global < 2; global++) {
    esp_merge_options options = options_of("m-smoe", 4);
    options.budget.global = global;
    esp_plan *plan;
    esp_model *merged = merge(ensemble, &options, &plan);
    for (int i = 0; i < plan->layer_count; i++)
      for (int e = 0; e < 8; e++) assert_int_equal(plan->layers[i].target[e] / 4, e / 4);
    esp_tape *tape = esp_tape_create();
    assert_int_equal(esp_tensor_rows(answers(merged, tape)), 16);
    esp_tape_free(tape);
    esp_plan_free(plan);
    esp_model_free(merged);
  }
  esp_model_free(ensemble);
}

/* A merged model is merged again, and pruned. */
static void merged_models_can_be_merged_and_pruned(void **state) {
  (void)state;
  esp_merge_options options = options_of("m-smoe", 4);
  esp_model *first = merge(model, &options, NULL);
  options.budget.groups = 2;
  esp_model *second = merge(first, &options, NULL), *pruned;
  assert_int_equal(esp_model_moe(second, 0)->layout.stored, 2);
  assert_int_equal(esp_model_moe(second, 0)->layout.experts, 8);
  esp_plan *plan;
  expect_ok(esp_plan_create(&plan, second, "by hand", ESP_PRUNE_ZERO));
  esp_plan_drop(plan, 0, 3);
  expect_ok(esp_apply_plan(&pruned, second, plan));
  assert_int_equal(esp_model_moe(pruned, 0)->layout.index[3], ESP_EXPERT_ZERO);
  esp_plan_free(plan);
  options.budget.groups = 7;
  esp_model_free(first);
  first = merge(pruned, &options, NULL);
  assert_int_equal(esp_model_moe(first, 0)->layout.index[3], ESP_EXPERT_ZERO);
  esp_model_free(first);
  esp_model_free(pruned);
  esp_model_free(second);
}

static void plans_tell_all(void **state) {
  (void)state;
  const esp_merge_options options = options_of("m-smoe", 3);
  esp_plan *plan;
  char *text;
  expect_ok(esp_merge_plan(&plan, model, &calibration, &options));
  expect_ok(esp_plan_json(&text, plan));
  assert_non_null(strstr(text, "\"weight\": "));
  assert_non_null(
      strstr(text, "\"places\": \"0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19\"")); /* the reference */
  assert_non_null(strstr(text, "\"groups\": 3"));
  /* What was written is the plan: applied again it makes the same model. */
  char folder[TESTING_PATH_SIZE], path[TESTING_PATH_SIZE + 16];
  make_folder(folder);
  snprintf(path, sizeof path, "%s/plan.json", folder);
  FILE *file = fopen(path, "w");
  assert_true(file && fputs(text, file) >= 0 && fclose(file) == 0);
  esp_plan *again;
  esp_model *one, *two;
  expect_ok(esp_plan_load(&again, path));
  expect_ok(esp_apply_plan(&one, model, plan));
  expect_ok(esp_apply_plan(&two, model, again));
  assert_same_bits("parameters", esp_parameters_values(one->parameters), esp_parameters_values(two->parameters),
                   esp_parameters_size(one->parameters));
  esp_model_free(one);
  esp_model_free(two);
  esp_plan_free(again);
  remove_folder(folder);
  double sum = 0;
  for (int e = 0; e < 8; e++) sum += plan->layers[1].score[e];
  assert_near(sum, 1);
  esp_free(text);
  esp_plan_free(plan);
}

static void bad_plans_and_options_are_refused(void **state) {
  (void)state;
  esp_plan *plan;
  esp_model *merged;
  expect_ok(esp_plan_create(&plan, model, "by hand", ESP_PRUNE_ZERO));
  esp_layer_plan *layer = &plan->layers[1];
  layer->averaged = true;
  for (int e = 0; e < 8; e++) layer->weight[e] = 1;
  layer->weight[4] = 0.5;
  expect_refusal(esp_apply_plan(&merged, model, plan), ESP_ERR_MISMATCH, "group 4 of blocks.2.moe sum to 0.5");
  assert_null(merged);
  layer->weight[4] = 1;
  layer->target[1] = 2, layer->target[2] = 3;
  expect_refusal(esp_apply_plan(&merged, model, plan), ESP_ERR_MISMATCH, "has another target");
  layer->target[1] = 1, layer->target[2] = 2;
  expect_ok(esp_plan_take_places(layer, 20));
  layer->place[25] = 20;
  expect_refusal(esp_apply_plan(&merged, model, plan), ESP_ERR_MISMATCH, "neuron 5 of expert 1 of blocks.2.moe at 20");
  esp_plan_free(plan);

  esp_merge_options options = options_of("reroute", 1);
  expect_refusal(esp_merge_plan(&plan, model, &calibration, &options), ESP_ERR_USAGE, "its router chooses 2");
  assert_null(plan);
  options = options_of("m-smoe", 3);
  options.exclude = "blocks.0.*";
  expect_refusal(esp_merge_plan(&plan, model, &calibration, &options), ESP_ERR_USAGE, "excludes none");
  options.exclude = "blocks.*";
  expect_refusal(esp_merge_plan(&plan, model, &calibration, &options), ESP_ERR_USAGE, "excludes all");
  expect_refusal(esp_merge_method_find(&options.method, "m-smeo"), ESP_ERR_USAGE, "did you mean \"m-smoe\"?");
  expect_refusal(esp_similarity_parse(&options.similarity, "router-logit"), ESP_ERR_USAGE, "router-logits");
}

/* As `espalier sweep` makes them. */
static void ways_to_merge_are_methods_of_a_sweep(void **state) {
  (void)state;
  esp_method method;
  esp_compressed made;
  const esp_method_inputs inputs = {.model = model, .calibration = &calibration, .seed = 1, .ratio = 0.5};
  expect_ok(esp_method_find(&method, "m-smoe"));
  assert_int_equal(method.kind, ESP_METHOD_MERGE);
  expect_ok(esp_method_make(&method, &inputs, &made));
  assert_int_equal(esp_model_moe(made.model, 0)->layout.stored + esp_model_moe(made.model, 1)->layout.stored, 8);
  assert_non_null(strstr(made.plan, "\"averaged\": true"));
  esp_compressed_clear(&made);
  expect_ok(esp_method_find(&method, "redirect"));
  const esp_method_inputs blind = {.model = model, .ratio = 0.5};
  expect_refusal(esp_method_make(&method, &blind, &made), ESP_ERR_USAGE, "no data were given");
}

static void layers_can_be_excluded(void **state) {
  (void)state;
  esp_merge_options options = options_of("m-smoe", 3);
  options.exclude = "blocks.1.*";
  options.budget.global = true;
  esp_model *merged = merge(model, &options, NULL);
  assert_int_equal(esp_model_moe(merged, 0)->layout.stored, 8);
  assert_int_equal(esp_model_moe(merged, 1)->layout.stored, 3);
  esp_model_free(merged);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(an_even_layer_keeps_more_than_a_skewed_one),
      cmocka_unit_test(excluded_layers_keep_all_experts),
      cmocka_unit_test(ties_at_the_threshold_yield_fewer_groups),
      cmocka_unit_test(every_group_has_one_dominant_member),
      cmocka_unit_test(members_and_capacities_bound_groups),
      cmocka_unit_test(budgets_that_cannot_be_are_refused),
      cmocka_unit_test(planted_duplicate_router_rows_group_together),
      cmocka_unit_test(merging_identical_experts_changes_nothing),
      cmocka_unit_test(a_token_that_hits_an_expert_twice_sums_both),
      cmocka_unit_test(weights_of_1_and_0_return_the_first_expert),
      cmocka_unit_test(the_parameter_count_is_that_of_the_groups),
      cmocka_unit_test(planted_permuted_copies_merge_without_change),
      cmocka_unit_test(every_choice_works_and_repeats),
      cmocka_unit_test(members_of_an_ensemble_share_with_their_own_only),
      cmocka_unit_test(merged_models_can_be_merged_and_pruned),
      cmocka_unit_test(plans_tell_all),
      cmocka_unit_test(bad_plans_and_options_are_refused),
      cmocka_unit_test(layers_can_be_excluded),
      cmocka_unit_test(ways_to_merge_are_methods_of_a_sweep),
  };
  return cmocka_run_group_tests(tests, open_all, close_all);
}
