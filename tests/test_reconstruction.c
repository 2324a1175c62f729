/* label: short */
/* Experts chosen by reconstruction, and the damage of one: against the real surgeon and a real pass. */
#include "test_calibration_models.h"

#include <espalier/layer_cache.h>
#include <espalier/prune.h>

enum { EXPERTS = 4, SUBSETS = 6 };

static const int subsets[SUBSETS][2] = {{0, 1}, {0, 2}, {0, 3}, {1, 2}, {1, 3}, {2, 3}};

/* --- by brute force ----------------------------------------------------------------------------------------------- */

static void fill(esp_layer_cache *cache, const esp_model *model, int layer) {
  *cache = (esp_layer_cache){.block = esp_model_moe(model, layer)->block};
  const esp_calibration c = calibration_on(data);
  if (esp_layer_cache_fill(cache, 1, model, &c) != ESP_OK) fail_msg("%s", esp_error_message());
}

static double distance(const esp_layer_cache *a, const esp_layer_cache *b, int width, bool batches) {
  double squares = 0, norms = 0;
  for (int i = 0; i < a->count; i++) {
    double sum = 0;
    for (int64_t j = 0; j < a->batches[i].tokens * width; j++)
      sum += pow((double)a->outputs[i][j] - (double)b->outputs[i][j], 2);
    squares += sum;
    norms += sqrt(sum);
  }
  return batches ? norms : sqrt(squares);
}

/* The layer's loss if the real surgeon drops two experts of it, and a real pass is made. */
static double brute_force(const esp_model *model, const esp_layer_cache *z, int layer, const int *drop,
                          esp_prune_mode mode, bool batches) {
  esp_plan *plan;
  esp_model *pruned;
  esp_layer_cache other;
  assert_int_equal(esp_plan_create(&plan, model, "by hand", mode), ESP_OK);
  for (int i = 0; i < 2; i++) esp_plan_drop(plan, layer, drop[i]);
  if (esp_apply_plan(&pruned, model, plan) != ESP_OK) fail_msg("%s", esp_error_message());
  fill(&other, pruned, layer);
  const double loss = distance(z, &other, model->config.width, batches);
  esp_layer_cache_clear(&other);
  esp_model_free(pruned);
  esp_plan_free(plan);
  return loss;
}

static esp_plan *choose(const esp_model *model, const char *name, esp_prune_mode mode, int drop,
                        esp_reconstruction_loss loss) {
  const esp_calibration c = calibration_on(data);
  const esp_criterion_inputs inputs = {.model = model, .calibration = &c, .loss = loss};
  const esp_criterion *criterion;
  esp_plan *plan;
  assert_int_equal(esp_criterion_find(&criterion, name), ESP_OK);
  if (esp_plan_make(&plan, criterion, &inputs, mode, &(esp_prune_budget){.drop = drop}) != ESP_OK)
    fail_msg("%s", esp_error_message());
  return plan;
}

static bool goes(const esp_plan *plan, int layer, int expert) { return plan->layers[layer].target[expert] < 0; }

static void assert_best_subset(const esp_model *model, esp_prune_mode mode, bool batches) {
  esp_plan *plan =
      choose(model, "reconstruction", mode, 2, batches ? ESP_RECONSTRUCTION_BATCH_NORMS : ESP_RECONSTRUCTION_ONE_NORM);
  for (int layer = 0; layer < plan->layer_count; layer++) {
    double losses[SUBSETS];
    int best = 0;
    esp_layer_cache z;
    fill(&z, model, layer);
    for (int i = 0; i < SUBSETS; i++) {
      losses[i] = brute_force(model, &z, layer, subsets[i], mode, batches);
      if (losses[i] < losses[best]) best = i;
    }
    esp_layer_cache_clear(&z);
    if (fabs(plan->layers[layer].loss - losses[best]) > 1e-4 * losses[best])
      fail_msg("loss %g, by brute force %g", plan->layers[layer].loss, losses[best]);
    for (int i = 0; i < 2; i++) assert_true(goes(plan, layer, subsets[best][i]));
    assert_int_equal(esp_plan_dropped(&plan->layers[layer]), 2);
    assert_false(plan->layers[layer].greedy);
  }
  esp_plan_free(plan);
}

/* --- the cache ---------------------------------------------------------------------------------------------------- */

static void cached_outputs_are_the_layer_of_cached_inputs(void **state) {
  (void)state;
  const esp_model_config config = calibration_config();
  esp_model *model = random_model(&config);
  esp_tape *tape = esp_tape_create();
  for (int layer = 0; layer < 2; layer++) {
    esp_layer_cache cache;
    fill(&cache, model, layer);
    const esp_moe *moe = esp_model_moe(model, layer);
    assert_int_equal(cache.count, 2);
    for (int b = 0; b < cache.count; b++) {
      const esp_layer_batch *batch = &cache.batches[b];
      const size_t size = (size_t)(batch->tokens * config.width);
      esp_real *experts = esp_alloc(EXPERTS * size, sizeof *experts), *shared = esp_alloc(size, sizeof *shared),
               *y = esp_alloc(size, sizeof *y);
      double norm = 0;
      assert_int_equal(batch->tokens, 4 * 16);
      assert_int_equal(esp_run_every_expert(moe, tape, batch, experts), ESP_OK);
      assert_int_equal(esp_run_shared_expert(moe, tape, batch, shared), ESP_OK);
      assert_int_equal(esp_recombine(moe, tape, batch,
                                     &(esp_recombination){.layout = &moe->layout, .experts = experts, .shared = shared},
                                     y),
                       ESP_OK);
      for (size_t i = 0; i < size; i++) norm += (double)cache.outputs[b][i] * (double)cache.outputs[b][i];
      assert_true(sqrt(esp_squared_distance(y, cache.outputs[b], (int64_t)size)) < 1e-6 * sqrt(norm));
      esp_free(experts);
      esp_free(shared);
      esp_free(y);
    }
    esp_layer_cache_clear(&cache);
  }
  esp_tape_free(tape);
  esp_model_free(model);
}

static void too_much_to_keep_is_refused_with_its_bytes(void **state) {
  (void)state;
  esp_model_config config = calibration_config();
  config.stem.patch = 2;
  esp_model *model = random_model(&config);
  esp_calibration c = calibration_on(data);
  c.images = 19000; /* of 256 tokens */
  const esp_criterion_inputs inputs = {.model = model, .calibration = &c};
  const esp_criterion *criterion;
  esp_plan *plan;
  assert_int_equal(esp_criterion_find(&criterion, "reconstruction"), ESP_OK);
  assert_int_equal(esp_plan_make(&plan, criterion, &inputs, ESP_PRUNE_REMOVE, &(esp_prune_budget){.drop = 2}),
                   ESP_ERR_USAGE);
  assert_non_null(strstr(esp_error_message(), "4864000 tokens of 19000 images"));
  assert_non_null(strstr(esp_error_message(), "calibrate on at most 4096 images"));
  assert_null(plan);
  esp_model_free(model);
}

/* --- subsets ------------------------------------------------------------------------------------------------------ */

static void the_best_subset_is_that_of_brute_force(void **state) {
  (void)state;
  esp_model_config configs[5];
  for (int i = 0; i < 5; i++) configs[i] = calibration_config();
  configs[1].moe.router.renormalise = false;
  configs[1].moe.router.score = ESP_SCORE_SIGMOID;
  configs[2].moe.router.capacity = configs[2].moe.router.evaluation_capacity = 0.8;
  configs[3].moe.router.score_selected_only = true;
  configs[3].moe.shared_hidden = 0;
  configs[4].moe.router.policy = ESP_ROUTER_EXPERT_CHOICE;
  configs[4].moe.router.renormalise = false;
  for (int i = 0; i < 5; i++) {
    esp_model *model = random_model(&configs[i]);
    assert_best_subset(model, ESP_PRUNE_REMOVE, false);
    if (i < 2) assert_best_subset(model, ESP_PRUNE_ZERO, i == 1);
    if (i < 2) assert_best_subset(model, ESP_PRUNE_MASK, i == 0);
    esp_model_free(model);
  }
}

static void silence(const esp_model *model, int layer, int expert) {
  const esp_expert_weights w = esp_expert_weights_of(&esp_model_moe(model, layer)->bank, expert);
  memset(w.down, 0, (size_t)(w.neurons * model->config.width) * sizeof *w.down);
}

static void experts_that_yield_nothing_go(void **state) {
  (void)state;
  const esp_model_config config = calibration_config();
  esp_model *model = random_model(&config);
  for (int layer = 0; layer < 2; layer++) {
    silence(model, layer, 1 - layer);
    silence(model, layer, 3);
  }
  const char *const names[] = {"reconstruction", "reconstruction-progressive", "reconstruction-greedy"};
  for (int i = 0; i < 3; i++) {
    esp_plan *plan = choose(model, names[i], ESP_PRUNE_ZERO, 2, ESP_RECONSTRUCTION_ONE_NORM);
    for (int layer = 0; layer < 2; layer++) {
      assert_true(goes(plan, layer, 1 - layer) && goes(plan, layer, 3));
      assert_true(plan->layers[layer].score[3] < 1e-5 && plan->layers[layer].score[2] > 1e-2);
      assert_true(plan->layers[layer].greedy == (i == 2));
    }
    esp_plan_free(plan);
  }
  esp_model_free(model);
}

/* A model whose experts are all alike: every subset costs the same, nothing, so that the first ones go. */
static void of_equal_subsets_the_first_goes(void **state) {
  (void)state;
  const esp_model_config config = calibration_config();
  esp_model *model = random_model(&config);
  for (int layer = 0; layer < 2; layer++)
    for (int e = 0; e < EXPERTS; e++) silence(model, layer, e);
  esp_plan *plan = choose(model, "reconstruction", ESP_PRUNE_REMOVE, 2, ESP_RECONSTRUCTION_ONE_NORM);
  for (int layer = 0; layer < 2; layer++) assert_true(goes(plan, layer, 0) && goes(plan, layer, 1));
  esp_plan_free(plan);
  esp_model_free(model);
}

static void greedy_is_exact_for_one_and_never_better_for_two(void **state) {
  (void)state;
  const esp_model_config config = calibration_config();
  esp_model *model = random_model(&config);
  for (int drop = 1; drop <= 2; drop++) {
    esp_plan *all = choose(model, "reconstruction", ESP_PRUNE_REMOVE, drop, ESP_RECONSTRUCTION_ONE_NORM);
    esp_plan *greedy = choose(model, "reconstruction-greedy", ESP_PRUNE_REMOVE, drop, ESP_RECONSTRUCTION_ONE_NORM);
    for (int layer = 0; layer < 2; layer++) {
      assert_true(greedy->layers[layer].loss >= all->layers[layer].loss);
      assert_int_equal(esp_plan_dropped(&greedy->layers[layer]), drop);
      if (drop == 1) assert_true(greedy->layers[layer].loss == all->layers[layer].loss);
    }
    esp_plan_free(all);
    esp_plan_free(greedy);
  }
  esp_model_free(model);
}

/* --- the order of layers ------------------------------------------------------------------------------------------ */

static void with_one_layer_both_orders_agree(void **state) {
  (void)state;
  esp_model_config config = calibration_config();
  config.blocks = 2;
  esp_model *model = random_model(&config);
  esp_plan *a = choose(model, "reconstruction", ESP_PRUNE_REMOVE, 2, ESP_RECONSTRUCTION_ONE_NORM);
  esp_plan *b = choose(model, "reconstruction-progressive", ESP_PRUNE_REMOVE, 2, ESP_RECONSTRUCTION_ONE_NORM);
  assert_int_equal(a->layer_count, 1);
  assert_memory_equal(a->layers[0].target, b->layers[0].target, EXPERTS * sizeof(int32_t));
  assert_true(a->layers[0].loss == b->layers[0].loss && a->layers[0].loss > 0);
  esp_plan_free(a);
  esp_plan_free(b);
  esp_model_free(model);
}

/* X of the second layer comes of the pruned first one, Z of the unpruned model: its loss is the distance between the
 * whole pruned model and the unpruned one at that layer. */
static void progressive_sees_what_comes_of_earlier_pruning(void **state) {
  (void)state;
  const esp_model_config config = calibration_config();
  esp_model *model = random_model(&config), *pruned;
  esp_plan *a = choose(model, "reconstruction", ESP_PRUNE_REMOVE, 2, ESP_RECONSTRUCTION_ONE_NORM);
  esp_plan *b = choose(model, "reconstruction-progressive", ESP_PRUNE_REMOVE, 2, ESP_RECONSTRUCTION_ONE_NORM);
  assert_true(a->layers[0].loss == b->layers[0].loss);
  assert_true(fabs(a->layers[1].loss - b->layers[1].loss) > 1e-3 * a->layers[1].loss);
  esp_layer_cache z, other;
  assert_int_equal(esp_apply_plan(&pruned, model, b), ESP_OK);
  fill(&z, model, 1);
  fill(&other, pruned, 1);
  const double expected = distance(&z, &other, config.width, false);
  assert_true(fabs(b->layers[1].loss - expected) < 1e-4 * expected);
  esp_layer_cache_clear(&z);
  esp_layer_cache_clear(&other);
  esp_model_free(pruned);
  esp_plan_free(a);
  esp_plan_free(b);
  esp_model_free(model);
}

/* --- members, refusals -------------------------------------------------------------------------------------------- */

static void members_lose_as_many_each(void **state) {
  (void)state;
  esp_model_config config = calibration_config();
  config.moe.members = 2;
  config.moe.top_k = 1;
  esp_model *model = random_model(&config);
  esp_plan *plan = choose(model, "reconstruction", ESP_PRUNE_REMOVE, 2, ESP_RECONSTRUCTION_ONE_NORM);
  for (int layer = 0; layer < 2; layer++) {
    double least = INFINITY;
    esp_layer_cache z;
    fill(&z, model, layer);
    for (int i = 1; i < 5; i++) { /* the subsets with one of each member */
      const double loss = brute_force(model, &z, layer, subsets[i], ESP_PRUNE_REMOVE, false);
      least = loss < least ? loss : least;
    }
    esp_layer_cache_clear(&z);
    for (int m = 0; m < 2; m++) assert_int_equal(goes(plan, layer, 2 * m) + goes(plan, layer, 2 * m + 1), 1);
    assert_true(fabs(plan->layers[layer].loss - least) < 1e-4 * least);
  }
  esp_plan_free(plan);
  esp_model_free(model);
}

static void what_cannot_be_recombined_is_refused(void **state) {
  (void)state;
  esp_model_config config = calibration_config();
  config.moe.router.policy = ESP_ROUTER_SOFT;
  esp_model *model = random_model(&config);
  const esp_calibration c = calibration_on(data);
  const esp_criterion_inputs inputs = {.model = model, .calibration = &c};
  const char *const names[] = {"reconstruction", "damage", "importance"};
  for (int i = 0; i < 3; i++) {
    const esp_criterion *criterion;
    esp_plan *plan;
    assert_int_equal(esp_criterion_find(&criterion, names[i]), ESP_OK);
    assert_int_equal(esp_plan_make(&plan, criterion, &inputs, ESP_PRUNE_REMOVE, &(esp_prune_budget){.drop = 1}),
                     ESP_ERR_MISMATCH);
    assert_non_null(strstr(esp_error_message(), "router policy soft"));
  }
  esp_model_free(model);
}

/* --- damage ------------------------------------------------------------------------------------------------------- */

/* Sum over tokens of the norm of what changes if the surgeon removes the expert; tokens that were not routed to it do
 * not change. */
static double brute_damage(const esp_model *model, int layer, int expert) {
  esp_plan *plan;
  esp_model *pruned;
  esp_layer_cache y, without;
  assert_int_equal(esp_plan_create(&plan, model, "by hand", ESP_PRUNE_REMOVE), ESP_OK);
  esp_plan_drop(plan, layer, expert);
  assert_int_equal(esp_apply_plan(&pruned, model, plan), ESP_OK);
  fill(&y, model, layer);
  fill(&without, pruned, layer);
  const int width = model->config.width;
  double sum = 0;
  for (int b = 0; b < y.count; b++)
    for (int64_t t = 0; t < y.batches[b].tokens; t++) {
      double squares = 0;
      for (int c = 0; c < width; c++)
        squares += pow((double)y.outputs[b][t * width + c] - (double)without.outputs[b][t * width + c], 2);
      sum += sqrt(squares);
    }
  esp_layer_cache_clear(&y);
  esp_layer_cache_clear(&without);
  esp_model_free(pruned);
  esp_plan_free(plan);
  return sum;
}

static void damage_is_what_the_surgeon_does(void **state) {
  (void)state;
  esp_model_config config = calibration_config();
  config.moe.router.bias_rate = 0.1; /* for a selection bias */
  esp_model *model = random_model(&config);
  for (int layer = 0; layer < 2; layer++) {
    esp_real *bias = esp_model_moe(model, layer)->router_bias->data;
    for (int e = 0; e < EXPERTS; e++) bias[e] = e == 2 ? -10 : 0; /* expert 2 is never routed to */
  }
  esp_plan *plan = choose(model, "damage", ESP_PRUNE_REMOVE, 1, ESP_RECONSTRUCTION_ONE_NORM);
  for (int layer = 0; layer < 2; layer++)
    for (int e = 0; e < EXPERTS; e++) {
      const double damage = plan->layers[layer].score[e], expected = brute_damage(model, layer, e);
      if (e == 2) assert_true(damage == 0 && goes(plan, layer, e));
      else if (damage <= 0 || fabs(damage - expected) > 1e-4 * expected)
        fail_msg("expert %d: damage %g, the surgeon's %g", e, damage, expected);
    }
  esp_plan_free(plan);
  esp_model_free(model);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, open_data, close_data)

int main(void) {
  const struct CMUnitTest tests[] = {
      TEST(cached_outputs_are_the_layer_of_cached_inputs),
      TEST(too_much_to_keep_is_refused_with_its_bytes),
      TEST(the_best_subset_is_that_of_brute_force),
      TEST(experts_that_yield_nothing_go),
      TEST(of_equal_subsets_the_first_goes),
      TEST(greedy_is_exact_for_one_and_never_better_for_two),
      TEST(with_one_layer_both_orders_agree),
      TEST(progressive_sees_what_comes_of_earlier_pruning),
      TEST(members_lose_as_many_each),
      TEST(what_cannot_be_recombined_is_refused),
      TEST(damage_is_what_the_surgeon_does),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
