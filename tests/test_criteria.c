/* label: short */
/* Criteria by calibration as a whole: names, passes, baselines, overlap, and that the data's domain matters. */
#include "test_calibration_models.h"

#include <espalier/evaluate.h>
#include <espalier/layer_cache.h>
#include <espalier/prune.h>

#include <jansson.h>

enum { EXPERTS = 4 };

static const esp_criterion *find(const char *name) {
  const esp_criterion *criterion;
  if (esp_criterion_find(&criterion, name) != ESP_OK) fail_msg("%s", esp_error_message());
  return criterion;
}

static esp_plan *plan_of(const esp_model *model, const char *name, const esp_calibration *c, uint64_t seed, int drop) {
  const esp_criterion_inputs inputs = {.model = model, .calibration = c, .seed = seed};
  esp_plan *plan;
  if (esp_plan_make(&plan, find(name), &inputs, ESP_PRUNE_REMOVE, &(esp_prune_budget){.drop = drop}) != ESP_OK)
    fail_msg("%s: %s", name, esp_error_message());
  return plan;
}

static esp_expert_scores *pass(const esp_model *model, const esp_calibration *c) {
  esp_expert_scores *scores;
  assert_int_equal(esp_expert_scores_create(&scores, model, ESP_GATES_NORMALISED), ESP_OK);
  const esp_observer observer = esp_expert_scores_observer(scores);
  if (esp_calibration_pass(model, c, &observer) != ESP_OK) fail_msg("%s", esp_error_message());
  return scores;
}

/* --- names -------------------------------------------------------------------------------------------------------- */

static void variants_are_found_by_their_exponents(void **state) {
  (void)state;
  const esp_criterion *list, *none = NULL;
  assert_int_equal(esp_criterion_family(&list), 17);
  for (int i = 0; i < 17; i++) {
    char name[32];
    assert_ptr_equal(find(list[i].name), &list[i]);
    snprintf(name, sizeof name, "family:%d,%d,%d", list[i].b, list[i].alpha, list[i].beta);
    assert_ptr_equal(find(name), &list[i]);
    assert_false(list[i].b == 1 && list[i].alpha == 0 && list[i].beta == 0);
  }
  assert_int_equal(esp_criterion_find(&none, "S(1,0,0)"), ESP_ERR_USAGE);
  assert_non_null(strstr(esp_error_message(), "N / N = 1 for every expert"));
  const char *const wrong[] = {"S(2,0,0)", "S(0,3,0)", "family:0,0,-1"};
  for (int i = 0; i < 3; i++) {
    assert_int_equal(esp_criterion_find(&none, wrong[i]), ESP_ERR_USAGE);
    assert_non_null(strstr(esp_error_message(), "alpha and beta 0, 1 or 2"));
  }
  assert_null(none);
}

static void names_are_variants(void **state) {
  (void)state;
  const struct {
    const char *name, *variant;
  } same[] = {{"frequency", "S(0,0,0)"},
              {"seer", "S(0,1,0)"},
              {"ean", "S(0,0,1)"},
              {"reap", "S(1,1,1)"},
              {"man", "S(1,0,1)"},
              {"msan", "S(1,0,2)"},
              {"gate-weighted-ean", "S(0,1,1)"},
              {"squared-gate-energy", "S(0,2,2)"}};
  const esp_model_config config = calibration_config();
  esp_model *model = random_model(&config);
  const esp_calibration c = calibration_on(data);
  for (size_t i = 0; i < sizeof same / sizeof same[0]; i++) {
    esp_plan *a = plan_of(model, same[i].name, &c, 0, 1), *b = plan_of(model, same[i].variant, &c, 0, 1);
    for (int layer = 0; layer < 2; layer++)
      for (int e = 0; e < EXPERTS; e++) assert_true(a->layers[layer].score[e] == b->layers[layer].score[e]);
    esp_plan_free(a);
    esp_plan_free(b);
  }
  esp_model_free(model);
}

/* --- samples ------------------------------------------------------------------------------------------------------ */

static void samples_depend_on_the_seed_and_repeat_exactly(void **state) {
  (void)state;
  const esp_model_config config = calibration_config();
  esp_model *model = random_model(&config);
  esp_calibration c = calibration_on(data);
  esp_plan *a = plan_of(model, "ean", &c, 0, 0), *b = plan_of(model, "ean", &c, 1, 0);
  c.seed = 4;
  esp_plan *other = plan_of(model, "ean", &c, 0, 0);
  assert_memory_equal(a->layers[0].score, b->layers[0].score, EXPERTS * sizeof(double));
  assert_memory_not_equal(a->layers[0].score, other->layers[0].score, EXPERTS * sizeof(double));
  assert_string_equal(a->data.name, "synthetic");
  assert_int_equal(a->data.images, 8);
  assert_true(a->data.seed == 3 && *a->data.digest);
  esp_plan_free(a);
  esp_plan_free(b);
  esp_plan_free(other);
  esp_model_free(model);
}

static void data_of_another_shape_are_refused(void **state) {
  (void)state;
  esp_model_config config = calibration_config();
  config.image_height = config.image_width = 16;
  esp_model *model = random_model(&config);
  const esp_calibration c = calibration_on(data);
  const esp_criterion_inputs inputs = {.model = model, .calibration = &c};
  esp_plan *plan;
  assert_int_equal(esp_plan_make(&plan, find("man"), &inputs, ESP_PRUNE_REMOVE, &(esp_prune_budget){.drop = 1}),
                   ESP_ERR_MISMATCH);
  assert_non_null(strstr(esp_error_message(), "calibration data: the model takes images of 16 x 16 x 3"));
  assert_null(plan);
  esp_model_free(model);
}

/* --- baselines ---------------------------------------------------------------------------------------------------- */

static void frequency_drops_the_fewest_counts(void **state) {
  (void)state;
  const esp_model_config config = calibration_config();
  esp_model *model = random_model(&config);
  const esp_calibration c = calibration_on(data);
  esp_expert_scores *scores = pass(model, &c);
  esp_plan *plan = plan_of(model, "frequency", &c, 0, 2);
  for (int layer = 0; layer < 2; layer++)
    for (int a = 0; a < EXPERTS; a++)
      for (int b = 0; b < EXPERTS; b++) {
        esp_expert_sums gone, kept;
        esp_expert_scores_expert(scores, layer, a, &gone);
        esp_expert_scores_expert(scores, layer, b, &kept);
        if (plan->layers[layer].target[a] < 0 && plan->layers[layer].target[b] >= 0)
          assert_true(gone.count < kept.count || (gone.count == kept.count && a > b));
      }
  esp_plan_free(plan);
  esp_expert_scores_free(scores);
  esp_model_free(model);
}

static void equal_seeds_give_equal_masks(void **state) {
  (void)state;
  const esp_model_config config = calibration_config();
  esp_model *model = random_model(&config);
  int differing = 0;
  for (uint64_t seed = 0; seed < 10; seed++) {
    esp_plan *a = plan_of(model, "random", NULL, seed, 2), *b = plan_of(model, "random", NULL, seed, 2);
    esp_plan *next = plan_of(model, "random", NULL, seed + 1, 2);
    for (int layer = 0; layer < 2; layer++) {
      assert_memory_equal(a->layers[layer].target, b->layers[layer].target, EXPERTS * sizeof(int32_t));
      differing += memcmp(a->layers[layer].target, next->layers[layer].target, EXPERTS * sizeof(int32_t)) != 0;
    }
    esp_plan_free(a);
    esp_plan_free(b);
    esp_plan_free(next);
  }
  assert_true(differing > 10);
  esp_model_free(model);
}

/* --- overlap ------------------------------------------------------------------------------------------------------ */

static void equal_sets_overlap_wholly_and_random_ones_by_the_ratio(void **state) {
  (void)state;
  enum { PLANS = 40 };
  esp_model_config config = calibration_config();
  config.moe.experts = 8;
  esp_model *model = random_model(&config);
  const esp_calibration c = calibration_on(data);
  esp_plan *man = plan_of(model, "man", &c, 0, 2), *again = plan_of(model, "man", &c, 0, 2), *random[PLANS];
  double overlap;
  assert_int_equal(esp_mean_overlap((const esp_plan *const[]){man, again}, 2, model, &overlap), ESP_OK);
  assert_true(overlap == 1);
  for (int i = 0; i < PLANS; i++) random[i] = plan_of(model, "random", NULL, (uint64_t)i, 2);
  assert_int_equal(esp_mean_overlap((const esp_plan *const *)random, PLANS, model, &overlap), ESP_OK);
  /* A pair's share has a deviation of 0.27 and 40 plans of 2 layers are 80 independent ones at least: 4 x 0.03. */
  assert_true(fabs(overlap - 0.25) < 0.12);
  for (int i = 0; i < PLANS; i++) esp_plan_free(random[i]);
  esp_plan_free(man);
  esp_plan_free(again);
  esp_model_free(model);
}

/* --- plans in files ----------------------------------------------------------------------------------------------- */

static void plans_come_back_from_their_text(void **state) {
  (void)state;
  char path[TESTING_PATH_SIZE], folder[TESTING_PATH_SIZE], *text;
  const esp_model_config config = calibration_config();
  esp_model *model = random_model(&config);
  const esp_calibration c = calibration_on(data);
  esp_plan *plan = plan_of(model, "reap", &c, 5, 2), *read;
  make_folder(folder);
  snprintf(path, sizeof path, "%.400s/plan.json", folder);
  assert_int_equal(esp_plan_json(&text, plan), ESP_OK);
  FILE *file = fopen(path, "w");
  fputs(text, file);
  fclose(file);
  assert_int_equal(esp_plan_load(&read, path), ESP_OK);
  assert_string_equal(read->model_digest, plan->model_digest);
  assert_string_equal(read->formula, plan->formula);
  assert_true(read->mode == plan->mode && read->seed == 5 && read->data.images == 8);
  for (int i = 0; i < 2; i++) {
    assert_string_equal(read->layers[i].scope, plan->layers[i].scope);
    assert_memory_equal(read->layers[i].target, plan->layers[i].target, sizeof read->layers[i].target);
  }
  esp_plan_free(read);
  const char *const bad[] = {"", "[]", "{\"mode\": \"zero\"}",
                             ("{\"model_digest\": \"0\", \"mode\": \"zero\","
                              " \"layers\": [{\"name\": \"a\", \"experts\": [{\"expert\": 0, \"target\": 1}]}]}")};
  for (int i = 0; i < 4; i++) {
    file = fopen(path, "w");
    fputs(bad[i], file);
    fclose(file);
    assert_int_equal(esp_plan_load(&read, path), ESP_ERR_FORMAT);
    assert_null(read);
  }
  assert_int_equal(esp_plan_load(&read, folder), ESP_ERR_USAGE);
  esp_free(text);
  esp_plan_free(plan);
  esp_model_free(model);
  remove_folder(folder);
}

/* --- domains ------------------------------------------------------------------------------------------------------ */

/* CIFAR-10 files of images that are all reddish, or all bluish. */
static esp_dataset *open_domain(const char *folder, bool red) {
  enum { IMAGES_OF_FILE = 20, PLANE = 32 * 32 };
  static const char *const names[] = {"data_batch_1", "data_batch_2", "data_batch_3",
                                      "data_batch_4", "data_batch_5", "test_batch"};
  char path[2 * TESTING_PATH_SIZE], spec[2 * TESTING_PATH_SIZE];
  esp_random random = esp_random_stream(TESTING_SEED, ESP_PURPOSE_TEST, red);
  mkdir(folder, 0700);
  for (int f = 0; f < 6; f++) {
    snprintf(path, sizeof path, "%s/%s.bin", folder, names[f]);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    for (int i = 0; i < IMAGES_OF_FILE; i++) {
      fputc(i % 10, file);
      for (int channel = 0; channel < 3; channel++)
        for (int p = 0; p < PLANE; p++)
          fputc((int)esp_random_below(&random, 60) + ((channel == 0) == red && channel != 1 ? 190 : 5), file);
    }
    fclose(file);
  }
  snprintf(spec, sizeof spec, "cifar10:%s", folder);
  esp_dataset *opened;
  if (esp_dataset_open(&opened, spec) != ESP_OK) fail_msg("%s", esp_error_message());
  return opened;
}

/* The mean input of the layer over a domain. */
static void mean_input(const esp_model *model, const esp_calibration *c, double *mean) {
  esp_layer_cache cache = {.block = 0};
  int64_t tokens = 0;
  assert_int_equal(esp_layer_cache_fill(&cache, 1, model, c), ESP_OK);
  memset(mean, 0, (size_t)model->config.width * sizeof *mean);
  for (int b = 0; b < cache.count; b++, tokens += cache.batches[b - 1].tokens)
    for (int64_t i = 0; i < cache.batches[b].tokens * model->config.width; i++)
      mean[i % model->config.width] += (double)cache.batches[b].input[i];
  for (int i = 0; i < model->config.width; i++) mean[i] /= (double)tokens;
  esp_layer_cache_clear(&cache);
}

static double loss_on(const esp_model *model, const esp_dataset *of, const esp_normalisation *normalisation) {
  const esp_evaluation_options options = {.split = ESP_TEST};
  esp_evaluation evaluation;
  if (esp_evaluate(model, of, normalisation, &options, &evaluation) != ESP_OK) fail_msg("%s", esp_error_message());
  return evaluation.loss;
}

/* Experts 0 and 1 serve red images, 2 and 3 blue ones. */
static void matched_calibration_keeps_its_domain(void **state) {
  (void)state;
  char folder[TESTING_PATH_SIZE], path[TESTING_PATH_SIZE];
  esp_dataset *domains[2];
  make_folder(folder);
  for (int d = 0; d < 2; d++) {
    snprintf(path, sizeof path, "%.400s/%d", folder, d);
    domains[d] = open_domain(path, d == 0);
  }
  esp_model_config config = calibration_config();
  config.classes = 10;
  config.blocks = 1;
  config.layers[0] = ESP_LAYER_MOE;
  config.layers_count = 1;
  config.mixing = ESP_MIXING_NONE;
  config.positions = false;
  esp_model *model = random_model(&config);
  esp_normalisation normalisation = {.mean = {0.5f, 0.5f, 0.5f}, .deviation = {0.3f, 0.3f, 0.3f}};
  double mean[2][8];
  esp_calibration c[2];
  for (int d = 0; d < 2; d++) {
    c[d] = (esp_calibration){.dataset = domains[d], .normalisation = &normalisation, .split = ESP_TRAIN, .images = 40};
    mean_input(model, &c[d], mean[d]);
  }
  esp_real *router = esp_model_moe(model, 0)->router->data;
  for (int e = 0; e < EXPERTS; e++)
    for (int i = 0; i < 8; i++)
      router[e * 8 + i] = (esp_real)((e < 2 ? 1 : -1) * (mean[0][i] - mean[1][i]) + 0.02 * (e % 2) * i);
  const char *const criteria[] = {"frequency", "man", "gate-weighted-ean", "reconstruction"};
  for (int k = 0; k < 4; k++)
    for (int d = 0; d < 2; d++) {
      esp_plan *plan = plan_of(model, criteria[k], &c[d], 0, 2);
      esp_model *pruned;
      assert_int_equal(esp_apply_plan(&pruned, model, plan), ESP_OK);
      const double matched =
          fabs(loss_on(pruned, domains[d], &normalisation) - loss_on(model, domains[d], &normalisation));
      const double other =
          fabs(loss_on(pruned, domains[1 - d], &normalisation) - loss_on(model, domains[1 - d], &normalisation));
      if (matched > 1e-5 || other < 1e-2)
        fail_msg("%s: the loss changes by %g in the domain, by %g in the other", criteria[k], matched, other);
      assert_int_equal(plan->layers[0].unrouted, k < 3 ? 2 : 0);
      esp_model_free(pruned);
      esp_plan_free(plan);
    }
  esp_model_free(model);
  for (int d = 0; d < 2; d++) esp_dataset_close(domains[d]);
  remove_folder(folder);
}

/* With one expert a token whose gate is 1 by its form, only auxiliary losses can have moved the routers. */
static void norm_change_needs_gates_that_the_task_trains(void **state) {
  (void)state;
  for (int form = 0; form < 4; form++) {
    esp_model_config config = small_config();
    config.moe.top_k = form == 3 ? 2 : 1;
    config.moe.router.renormalise = form == 0 || form == 3;
    config.moe.router.score_selected_only = form == 1;
    const bool refused = form < 2;
    esp_model *before = make(&config, NULL, 1), *after = make(&config, NULL, 2);
    const esp_checkpoint_info info = {.history_count = 0};
    const esp_criterion_inputs inputs = {.model = after, .info = &info, .reference = before, .reference_info = &info};
    esp_plan *plan = NULL;
    const esp_status status =
        esp_plan_make(&plan, find("router-norm-change"), &inputs, ESP_PRUNE_ZERO, &(esp_prune_budget){.drop = 1});
    assert_int_equal(status, refused ? ESP_ERR_MISMATCH : ESP_OK);
    if (refused) assert_non_null(strstr(esp_error_message(), "the task gave it no gradient"));
    else assert_true(!*plan->note); /* nothing is known of how it was finetuned */
    esp_plan_free(plan);
    esp_model_free(before);
    esp_model_free(after);
  }
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, open_data, close_data)

int main(void) {
  const struct CMUnitTest tests[] = {
      TEST(norm_change_needs_gates_that_the_task_trains),
      TEST(variants_are_found_by_their_exponents),
      TEST(names_are_variants),
      TEST(samples_depend_on_the_seed_and_repeat_exactly),
      TEST(data_of_another_shape_are_refused),
      TEST(frequency_drops_the_fewest_counts),
      TEST(equal_seeds_give_equal_masks),
      TEST(equal_sets_overlap_wholly_and_random_ones_by_the_ratio),
      TEST(plans_come_back_from_their_text),
      TEST(matched_calibration_keeps_its_domain),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
