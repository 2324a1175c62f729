/* label: short */
/* Plans, budgets and criteria. What the surgeon makes of a plan is in test_surgeon.c. */
#include "test_measure_models.h"

#include <espalier/prune.h>

#include <jansson.h>

static esp_plan *make_plan(const esp_model *model, const char *criterion, esp_prune_mode mode) {
  esp_plan *plan;
  if (esp_plan_create(&plan, model, criterion, mode) != ESP_OK) fail_msg("%s", esp_error_message());
  return plan;
}

static void set_scores(esp_layer_plan *layer, const double *scores) {
  memcpy(layer->score, scores, (size_t)layer->experts * sizeof *scores);
}

/* An untouched model, and a plan for it with these scores in both layers. */
static esp_model *model;
static esp_plan *plan;

static void scored(esp_prune_mode mode, double a, double b, double c, double d) {
  esp_plan_free(plan);
  plan = make_plan(model, "by hand", mode);
  for (int i = 0; i < plan->layer_count; i++) set_scores(&plan->layers[i], (const double[]){a, b, c, d});
}

static int set_up(void **state) {
  (void)state;
  const esp_model_config config = small_config();
  model = make(&config, NULL, 1);
  plan = NULL;
  return 0;
}

static int tear_down(void **state) {
  (void)state;
  esp_plan_free(plan);
  esp_model_free(model);
  return 0;
}

static esp_status drop(int count, double ratio) {
  return esp_plan_drop_lowest(plan, model, &(esp_prune_budget){.drop = count, .ratio = ratio});
}

/* In every layer. */
static void assert_targets(int32_t a, int32_t b, int32_t c, int32_t d) {
  const int32_t expected[] = {a, b, c, d};
  for (int i = 0; i < plan->layer_count; i++)
    for (int e = 0; e < 4; e++)
      if (plan->layers[i].target[e] != expected[e])
        fail_msg("%s: expert %d goes to %d, not %d", plan->layers[i].scope, e, (int)plan->layers[i].target[e],
                 (int)expected[e]);
}

static void assert_says(esp_status status, esp_status expected, const char *text) {
  assert_int_equal(status, expected);
  if (!strstr(esp_error_message(), text)) fail_msg("\"%s\" does not say \"%s\"", esp_error_message(), text);
}

enum { Z = ESP_TARGET_ZERO, M = ESP_TARGET_MASKED, R = ESP_TARGET_REMOVED };

/* --- plans -------------------------------------------------------------------------------------------------------- */

static void a_new_plan_keeps_every_expert(void **state) {
  (void)state;
  char digest[ESP_DIGEST_SIZE];
  plan = make_plan(model, "none", ESP_PRUNE_MASK);
  assert_int_equal(esp_model_digest(model, digest), ESP_OK);
  assert_string_equal(plan->model_digest, digest);
  assert_string_equal(plan->criterion, "none");
  assert_int_equal(plan->mode, ESP_PRUNE_MASK);
  assert_int_equal(plan->layer_count, 2);
  assert_string_equal(plan->layers[0].scope, "blocks.1.moe");
  assert_string_equal(plan->layers[1].scope, "blocks.2.moe");
  assert_int_equal(plan->layers[0].experts, 4);
  assert_targets(0, 1, 2, 3);
  assert_int_equal(esp_plan_dropped(&plan->layers[1]), 0);
}

static void plans_need_mixture_layers(void **state) {
  (void)state;
  esp_model_config config = small_config();
  config.layers_count = 1;
  esp_model *dense = make(&config, NULL, 1);
  assert_says(esp_plan_create(&plan, dense, "random", ESP_PRUNE_ZERO), ESP_ERR_MISMATCH, "no mixture layers");
  assert_null(plan);
  esp_model_free(dense);
}

static void check_json_layer(const json_t *json, const esp_layer_plan *layer) {
  assert_string_equal(json_string_value(json_object_get(json, "name")), layer->scope);
  assert_int_equal(json_integer_value(json_object_get(json, "dropped")), esp_plan_dropped(layer));
  const json_t *experts = json_object_get(json, "experts");
  assert_int_equal(json_array_size(experts), layer->experts);
  for (int e = 0; e < layer->experts; e++) {
    const json_t *expert = json_array_get(experts, (size_t)e);
    assert_int_equal(json_integer_value(json_object_get(expert, "expert")), e);
    assert_int_equal(json_integer_value(json_object_get(expert, "target")), layer->target[e]);
    assert_true(json_real_value(json_object_get(expert, "score")) == layer->score[e]);
  }
}

static void json_says_it_all(void **state) {
  (void)state;
  scored(ESP_PRUNE_REMOVE, 0.1, -3, 1.0 / 3, 1e-300);
  assert_int_equal(drop(1, 0), ESP_OK);
  char *text;
  assert_int_equal(esp_plan_json(&text, plan), ESP_OK);
  json_t *json = json_loads(text, 0, NULL);
  assert_non_null(json);
  assert_string_equal(json_string_value(json_object_get(json, "model_digest")), plan->model_digest);
  assert_string_equal(json_string_value(json_object_get(json, "criterion")), "by hand");
  assert_string_equal(json_string_value(json_object_get(json, "mode")), "remove");
  const json_t *layers = json_object_get(json, "layers");
  assert_int_equal(json_array_size(layers), 2);
  for (int i = 0; i < 2; i++) check_json_layer(json_array_get(layers, (size_t)i), &plan->layers[i]);
  json_decref(json);
  esp_free(text);
}

static void modes_have_names(void **state) {
  (void)state;
  const esp_prune_mode modes[] = {ESP_PRUNE_ZERO, ESP_PRUNE_REMOVE, ESP_PRUNE_MASK};
  for (size_t i = 0; i < 3; i++) {
    esp_prune_mode mode = modes[(i + 1) % 3];
    assert_int_equal(esp_prune_mode_parse(&mode, esp_prune_mode_name(modes[i])), ESP_OK);
    assert_int_equal(mode, modes[i]);
  }
  esp_prune_mode mode;
  assert_says(esp_prune_mode_parse(&mode, "elsewhere"), ESP_ERR_USAGE,
              "there is no mode \"elsewhere\"; there are zero, remove and mask");
}

/* --- budgets ------------------------------------------------------------------------------------------------------ */

static void the_lowest_scores_go(void **state) {
  (void)state;
  scored(ESP_PRUNE_ZERO, 3, -1, 2, 0);
  assert_int_equal(drop(2, 0), ESP_OK);
  assert_targets(0, Z, 2, Z);
  assert_int_equal(esp_plan_dropped(&plan->layers[0]), 2);
  scored(ESP_PRUNE_REMOVE, 3, -1, 2, 0);
  assert_int_equal(drop(1, 0), ESP_OK);
  assert_targets(0, R, 2, 3);
  scored(ESP_PRUNE_MASK, 3, 7, 2, 0);
  assert_int_equal(drop(2, 0), ESP_OK);
  assert_targets(0, 1, M, M);
  scored(ESP_PRUNE_ZERO, 3, -1, 2, 0);
  assert_int_equal(drop(0, 0), ESP_OK);
  assert_targets(0, 1, 2, 3);
}

static void of_equal_scores_the_lower_index_stays(void **state) {
  (void)state;
  scored(ESP_PRUNE_ZERO, 0, 0, 0, 0);
  assert_int_equal(drop(2, 0), ESP_OK);
  assert_targets(0, 1, Z, Z);
  scored(ESP_PRUNE_ZERO, 1, 1, 2, 1);
  assert_int_equal(drop(2, 0), ESP_OK);
  assert_targets(0, Z, 2, Z);
}

static void layers_are_ranked_by_themselves(void **state) {
  (void)state;
  scored(ESP_PRUNE_ZERO, 10, 11, 12, 13);
  set_scores(&plan->layers[1], (const double[]){4, 3, 2, 1});
  assert_int_equal(drop(1, 0), ESP_OK);
  assert_int_equal(plan->layers[0].target[0], Z);
  assert_int_equal(plan->layers[1].target[3], Z);
  for (int i = 0; i < 2; i++) assert_int_equal(esp_plan_dropped(&plan->layers[i]), 1);
}

static void ratios_are_rounded_down(void **state) {
  (void)state;
  const struct {
    double ratio;
    int dropped;
  } cases[] = {{0, 0}, {0.24, 0}, {0.25, 1}, {0.37, 1}, {0.49, 1}, {0.5, 2}, {0.74, 2}, {0.75, 3}, {0.87, 3}};
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    scored(ESP_PRUNE_ZERO, 1, 2, 3, 4);
    assert_int_equal(drop(-1, cases[i].ratio), ESP_OK);
    for (int l = 0; l < 2; l++)
      if (esp_plan_dropped(&plan->layers[l]) != cases[i].dropped)
        fail_msg("ratio %g drops %d", cases[i].ratio, esp_plan_dropped(&plan->layers[l]));
  }
  const double impossible[] = {-0.1, 1, 1.5, (double)NAN};
  for (size_t i = 0; i < sizeof impossible / sizeof impossible[0]; i++)
    assert_says(drop(-1, impossible[i]), ESP_ERR_USAGE, "must lie in [0, 1)");
}

/* With 4 experts and 2 choices. */
static void too_few_survivors_are_refused(void **state) {
  (void)state;
  const esp_prune_mode modes[] = {ESP_PRUNE_REMOVE, ESP_PRUNE_MASK};
  for (int i = 0; i < 2; i++) {
    scored(modes[i], 1, 2, 3, 4);
    assert_says(drop(3, 0), ESP_ERR_USAGE, "blocks.1.moe has 4 experts; dropping 3 would leave 1");
    assert_non_null(strstr(esp_error_message(), "needs at least 2 (the router's top_k)"));
    assert_says(drop(-1, 0.75), ESP_ERR_USAGE, "dropping 3 would leave 1");
    assert_int_equal(drop(2, 0), ESP_OK);
  }
  scored(ESP_PRUNE_ZERO, 1, 2, 3, 4);
  assert_says(drop(4, 0), ESP_ERR_USAGE, "would leave 0, but mode zero needs at least 1");
  assert_says(drop(ESP_MAX_EXPERTS, 0), ESP_ERR_USAGE, "dropping 1024");
  assert_targets(0, 1, 2, 3); /* a refused budget changes nothing */
  assert_int_equal(drop(3, 0), ESP_OK);
  assert_targets(Z, Z, Z, 3);
}

/* Budgets count the experts that still have weights. */
static void what_was_dropped_before_stays_dropped(void **state) {
  (void)state;
  const esp_model_config config = small_config();
  esp_model *pruned = make(&config, pruned_layouts(ESP_EXPERT_MASKED, 1, -1), 1);
  plan = make_plan(pruned, "by hand", ESP_PRUNE_ZERO);
  assert_targets(0, M, 2, 3);
  for (int i = 0; i < 2; i++) set_scores(&plan->layers[i], (const double[]){3, -9, 1, 2});
  assert_int_equal(esp_plan_drop_lowest(plan, pruned, &(esp_prune_budget){.drop = -1, .ratio = 0.5}), ESP_OK);
  assert_targets(0, M, Z, 3);
  assert_int_equal(esp_plan_dropped(&plan->layers[0]), 2);
  assert_says(esp_plan_drop_lowest(plan, pruned, &(esp_prune_budget){.drop = 2}), ESP_ERR_USAGE, "has 2 experts");
  esp_model_free(pruned);
}

static void set_both(const double *first, const double *second, esp_prune_mode mode) {
  scored(mode, 0, 0, 0, 0);
  set_scores(&plan->layers[0], first);
  set_scores(&plan->layers[1], second);
}

static esp_status drop_globally(int count, double ratio, int least) {
  return esp_plan_drop_lowest(plan, model,
                              &(esp_prune_budget){.drop = count, .ratio = ratio, .global = true, .floor = least});
}

static void a_global_budget_takes_the_lowest_of_all(void **state) {
  (void)state;
  const double low[] = {1, 2, 3, 4}, high[] = {5, 6, 7, 1.5};
  set_both(low, high, ESP_PRUNE_ZERO);
  assert_int_equal(drop_globally(-1, 0.5, 0), ESP_OK); /* 4 of 8: 1, 1.5, 2, 3 */
  assert_int_equal(esp_plan_dropped(&plan->layers[0]), 3);
  assert_int_equal(plan->layers[1].target[3], Z);
  assert_int_equal(esp_plan_dropped(&plan->layers[1]), 1);
  set_both(low, high, ESP_PRUNE_REMOVE); /* top_k 2 stay in each, so 5 goes instead of 3 */
  assert_int_equal(drop_globally(2, 0, 0), ESP_OK);
  for (int i = 0; i < 2; i++) assert_int_equal(esp_plan_dropped(&plan->layers[i]), 2);
  assert_int_equal(plan->layers[1].target[0], R);
  set_both(low, high, ESP_PRUNE_ZERO);
  assert_int_equal(drop_globally(1, 0, 3), ESP_OK);
  for (int i = 0; i < 2; i++) assert_int_equal(esp_plan_dropped(&plan->layers[i]), 1);
  set_both(low, high, ESP_PRUNE_REMOVE);
  assert_says(drop_globally(3, 0, 0), ESP_ERR_USAGE, "6 of 8 experts in 2 layers are to go, but only 4 can");
  for (int i = 0; i < 2; i++) assert_int_equal(esp_plan_dropped(&plan->layers[i]), 0);
  set_both(low, low, ESP_PRUNE_ZERO); /* of equal scores the later layer's goes first */
  assert_int_equal(drop_globally(-1, 0.125, 0), ESP_OK);
  assert_int_equal(plan->layers[1].target[0], Z);
}

static void excluded_layers_keep_all_and_floors_hold(void **state) {
  (void)state;
  scored(ESP_PRUNE_ZERO, 4, 3, 2, 1);
  esp_prune_budget budget = {.drop = 2, .exclude = "blocks.2.*"};
  assert_int_equal(esp_plan_drop_lowest(plan, model, &budget), ESP_OK);
  assert_int_equal(esp_plan_dropped(&plan->layers[0]), 2);
  assert_int_equal(esp_plan_dropped(&plan->layers[1]), 0);
  scored(ESP_PRUNE_ZERO, 4, 3, 2, 1);
  budget.global = true;
  budget.exclude = "*.1.moe";
  assert_int_equal(esp_plan_drop_lowest(plan, model, &budget), ESP_OK);
  assert_int_equal(esp_plan_dropped(&plan->layers[0]), 0);
  assert_int_equal(esp_plan_dropped(&plan->layers[1]), 2);
  budget.exclude = "blocks.7.*";
  assert_says(esp_plan_drop_lowest(plan, model, &budget), ESP_ERR_USAGE, "excludes none of the mixture layers");
  budget.exclude = "blocks.*";
  assert_says(esp_plan_drop_lowest(plan, model, &budget), ESP_ERR_USAGE, "excludes all 2 mixture layers");
  scored(ESP_PRUNE_ZERO, 4, 3, 2, 1);
  budget = (esp_prune_budget){.drop = 2, .floor = 3};
  assert_says(esp_plan_drop_lowest(plan, model, &budget), ESP_ERR_USAGE, "would leave 2, but the floor is 3");
}

/* Members have experts 0, 1 and 2, 3. */
static void members_of_an_ensemble_lose_as_many(void **state) {
  (void)state;
  esp_model_config config = small_config();
  config.moe.members = 2;
  config.moe.top_k = 1;
  esp_model *ensemble = make(&config, NULL, 1);
  plan = make_plan(ensemble, "by hand", ESP_PRUNE_REMOVE);
  for (int i = 0; i < 2; i++) set_scores(&plan->layers[i], (const double[]){1, 2, 4, 3});
  assert_says(esp_plan_drop_lowest(plan, ensemble, &(esp_prune_budget){.drop = 1}), ESP_ERR_USAGE, "a multiple of 2");
  assert_says(esp_plan_drop_lowest(plan, ensemble, &(esp_prune_budget){.drop = 2, .global = true}), ESP_ERR_USAGE,
              "do not go together");
  assert_says(esp_plan_drop_lowest(plan, ensemble, &(esp_prune_budget){.drop = 4}), ESP_ERR_USAGE, "would leave 0");
  assert_int_equal(esp_plan_drop_lowest(plan, ensemble, &(esp_prune_budget){.drop = -1, .ratio = 0.5}), ESP_OK);
  assert_targets(R, 1, 2, R);
  esp_model_free(ensemble);
}

/* --- criteria ----------------------------------------------------------------------------------------------------- */

/* A finetuned model and the pretrained one it came from, their histories, and what a criterion says of them. */
typedef struct pair {
  esp_model *now, *before;
  esp_checkpoint_info info, reference_info;
} pair;

static pair make_pair(void) {
  const esp_model_config config = small_config();
  pair p = {.now = make(&config, NULL, 1), .before = make(&config, NULL, 1)};
  p.reference_info.history_count = 1;
  p.reference_info.history[0] = (esp_history_entry){.action = "pretrain", .detail = "all", .frozen = "*.router"};
  p.info = p.reference_info;
  p.info.history[p.info.history_count++] = (esp_history_entry){.action = "finetune", .detail = "half"};
  return p;
}

static void free_pair(pair *p) {
  esp_model_free(p->now);
  esp_model_free(p->before);
}

static const esp_criterion *find(const char *name) {
  const esp_criterion *criterion;
  if (esp_criterion_find(&criterion, name) != ESP_OK) fail_msg("%s", esp_error_message());
  return criterion;
}

/* Makes `plan` anew. */
static esp_status score(const pair *p, const char *criterion, uint64_t seed) {
  const esp_criterion_inputs inputs = {.model = p->now,
                                       .info = &p->info,
                                       .reference = p->before,
                                       .reference_info = p->before ? &p->reference_info : NULL,
                                       .seed = seed};
  esp_plan_free(plan);
  return esp_plan_make(&plan, find(criterion), &inputs, ESP_PRUNE_ZERO, &(esp_prune_budget){.drop = 0});
}

/* The first two elements of a router's row; the others become 0. */
static void set_row(const esp_model *of, int layer, int expert, const double *values) {
  esp_real *row = esp_model_moe(of, layer)->router->data + expert * of->config.width;
  memset(row, 0, (size_t)of->config.width * sizeof *row);
  for (int j = 0; j < 2; j++) row[j] = (esp_real)values[j];
}

/* Now and before, in both layers: shrinks from 10 to 5, turns, stays, grows from 5 to 13. */
static void set_known_rows(const pair *p) {
  const double rows[4][4] = {{3, 4, 6, 8}, {0, 2, 2, 0}, {1, 0, 1, 0}, {5, 12, 3, 4}};
  for (int layer = 0; layer < 2; layer++)
    for (int e = 0; e < 4; e++) {
      set_row(p->now, layer, e, rows[e]);
      set_row(p->before, layer, e, rows[e] + 2);
    }
}

static void known_rows_have_known_scores(void **state) {
  (void)state;
  const struct {
    const char *name;
    double scores[4];
    int goes;
  } cases[] = {{"router-norm-change", {-5, 0, 0, 8}, 0},
               {"router-norm-change-absolute", {5, 0, 0, 8}, 2},
               {"router-difference-norm", {5, 2.8284271247461903, 0, 8.246211251235321}, 2}};
  pair p = make_pair();
  set_known_rows(&p);
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    if (score(&p, cases[i].name, 0) != ESP_OK) fail_msg("%s", esp_error_message());
    for (int layer = 0; layer < 2; layer++)
      for (int e = 0; e < 4; e++) assert_near(plan->layers[layer].score[e], cases[i].scores[e]);
    assert_int_equal(esp_plan_drop_lowest(plan, p.now, &(esp_prune_budget){.drop = 1}), ESP_OK);
    for (int e = 0; e < 4; e++) assert_int_equal(plan->layers[0].target[e], e == cases[i].goes ? Z : e);
  }
  free_pair(&p);
}

static void frozen_routers_are_refused(void **state) {
  (void)state;
  const char *const changing[] = {"router-norm-change", "router-norm-change-absolute", "router-difference-norm"};
  pair p = make_pair();
  set_known_rows(&p);
  esp_history_entry *finetune = &p.info.history[1];
  snprintf(finetune->frozen, sizeof finetune->frozen, "stem.*,blocks.2.*");
  for (int i = 0; i < 3; i++)
    assert_says(score(&p, changing[i], 0), ESP_ERR_MISMATCH,
                "blocks.2.moe.router was frozen (training.freeze=\"stem.*,blocks.2.*\") in the finetune on half");
  snprintf(finetune->frozen, sizeof finetune->frozen, "stem.*,blocks.*.experts.*");
  assert_int_equal(score(&p, changing[0], 0), ESP_OK);
  snprintf(finetune->frozen, sizeof finetune->frozen, "*");
  assert_int_equal(score(&p, "random", 0), ESP_OK);
  free_pair(&p);
}

static void unmoved_routers_are_refused(void **state) {
  (void)state;
  pair p = make_pair();
  assert_says(score(&p, "router-norm-change", 0), ESP_ERR_MISMATCH, "no router differs from the reference's");
  set_row(p.now, 1, 3, (const double[]){1, 1});
  assert_int_equal(score(&p, "router-norm-change", 0), ESP_OK);
  free_pair(&p);
}

static void missing_references_are_refused(void **state) {
  (void)state;
  pair p = make_pair();
  set_known_rows(&p);
  esp_model_free(p.before);
  p.before = NULL;
  const esp_criterion *list;
  const size_t count = esp_criterion_list(&list);
  for (size_t i = 0; i < count; i++) {
    if (list[i].needs_reference) assert_says(score(&p, list[i].name, 0), ESP_ERR_USAGE, "no reference was given");
    else if (list[i].needs_data)
      assert_says(score(&p, list[i].name, 0), ESP_ERR_USAGE, "no calibration data were given");
    else assert_int_equal(score(&p, list[i].name, 0), ESP_OK);
  }
  free_pair(&p);
}

static void references_of_another_architecture_are_refused(void **state) {
  (void)state;
  pair p = make_pair();
  esp_model_config config = small_config();
  config.width = 16;
  esp_model_free(p.before);
  p.before = make(&config, NULL, 1);
  assert_says(score(&p, "router-norm-change", 0), ESP_ERR_MISMATCH, "16 (model.width)");
  free_pair(&p);
}

static void random_scores_depend_on_the_seed_and_the_layer(void **state) {
  (void)state;
  pair p = make_pair();
  double first[2][4];
  int differing = 0;
  assert_int_equal(score(&p, "random", 5), ESP_OK);
  for (int i = 0; i < 2; i++) memcpy(first[i], plan->layers[i].score, sizeof first[i]);
  assert_memory_not_equal(first[0], first[1], sizeof first[0]);
  assert_int_equal(score(&p, "random", 5), ESP_OK);
  for (int i = 0; i < 2; i++) assert_memory_equal(first[i], plan->layers[i].score, sizeof first[i]);
  assert_int_equal(esp_plan_drop_lowest(plan, p.now, &(esp_prune_budget){.drop = 2}), ESP_OK);
  esp_plan *kept = plan;
  for (uint64_t seed = 6; seed < 26; seed++) {
    plan = NULL;
    assert_int_equal(score(&p, "random", seed), ESP_OK);
    assert_int_equal(esp_plan_drop_lowest(plan, p.now, &(esp_prune_budget){.drop = 2}), ESP_OK);
    for (int i = 0; i < 2; i++)
      differing += memcmp(plan->layers[i].target, kept->layers[i].target, 4 * sizeof(int32_t)) != 0;
    esp_plan_free(plan);
  }
  plan = kept;
  assert_true(differing > 20); /* of 40; 5 of the 6 pairs are others */
  free_pair(&p);
}

static void criteria_are_found_by_name(void **state) {
  (void)state;
  const esp_criterion *list, *found = NULL;
  const size_t count = esp_criterion_list(&list);
  assert_true(count >= 4);
  for (size_t i = 0; i < count; i++) {
    assert_ptr_equal(find(list[i].name), &list[i]);
    assert_true(*list[i].formula && *list[i].source && !list[i].score == !!list[i].choose);
    assert_int_equal(list[i].needs_reference, strncmp(list[i].name, "router-", 7) == 0);
  }
  assert_says(esp_criterion_find(&found, "router-norm-chnage"), ESP_ERR_USAGE, "did you mean \"router-norm-change\"?");
  assert_says(esp_criterion_find(&found, "randm"), ESP_ERR_USAGE,
              "there is no criterion \"randm\"; did you mean \"random\"?");
  assert_says(esp_criterion_find(&found, "zzzzzzzzzzz"), ESP_ERR_USAGE, "; there are router-norm-change, ");
  assert_null(found);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void) {
  const struct CMUnitTest tests[] = {
      TEST(a_new_plan_keeps_every_expert),
      TEST(plans_need_mixture_layers),
      TEST(json_says_it_all),
      TEST(modes_have_names),
      TEST(the_lowest_scores_go),
      TEST(of_equal_scores_the_lower_index_stays),
      TEST(layers_are_ranked_by_themselves),
      TEST(ratios_are_rounded_down),
      TEST(too_few_survivors_are_refused),
      TEST(what_was_dropped_before_stays_dropped),
      TEST(a_global_budget_takes_the_lowest_of_all),
      TEST(excluded_layers_keep_all_and_floors_hold),
      TEST(members_of_an_ensemble_lose_as_many),
      TEST(known_rows_have_known_scores),
      TEST(frozen_routers_are_refused),
      TEST(unmoved_routers_are_refused),
      TEST(missing_references_are_refused),
      TEST(references_of_another_architecture_are_refused),
      TEST(random_scores_depend_on_the_seed_and_the_layer),
      TEST(criteria_are_found_by_name),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
