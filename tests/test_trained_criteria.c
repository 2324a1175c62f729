/* label: medium */
/* What the papers say of criteria on trained models, on one that is trained here: the proxy of an expert's damage, and
 * how much what is dropped depends on the calibration data. */
#include "test_trained_model.h"

#include <espalier/prune.h>

enum { EXPERTS = 32, QUARTER = 8, LAYERS = 2, DOMAINS = 3, SIDE = 32, CALIBRATION_IMAGES = 600 };

static const char settings[] = TRAINED_SETTINGS("moe, moe", "experts: 32, top_k: 4, hidden: 8");

static trained t;
static char folder[TESTING_PATH_SIZE];
static esp_dataset *domains[DOMAINS];

/* --- domains: the training images of a third of the classes each -------------------------------------------------- */

static void write_image(FILE *file, int64_t index) {
  float image[SIDE * SIDE * 3];
  esp_dataset_image(t.dataset, ESP_TRAIN, index, image);
  fputc(0, file); /* the label, at which no calibration looks */
  for (int channel = 0; channel < 3; channel++)
    for (int p = 0; p < SIDE * SIDE; p++) fputc((int)lrintf(255 * image[3 * p + channel]), file);
}

/* Files in the form of CIFAR-10's. */
static esp_dataset *open_domain(int domain) {
  static const char *const names[] = {"data_batch_1", "data_batch_2", "data_batch_3",
                                      "data_batch_4", "data_batch_5", "test_batch"};
  const esp_dataset_info *data = esp_dataset_info_of(t.dataset);
  char path[2 * TESTING_PATH_SIZE], spec[2 * TESTING_PATH_SIZE];
  int64_t index = 0;
  snprintf(spec, sizeof spec, "cifar10:%s/%d", folder, domain);
  mkdir(strchr(spec, ':') + 1, 0700);
  for (int f = 0; f < 6; f++) {
    snprintf(path, sizeof path, "%s/%d/%s.bin", folder, domain, names[f]);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    for (int left = CALIBRATION_IMAGES / 5; left > 0; index++) {
      assert_true(index < data->count[ESP_TRAIN]);
      if (esp_dataset_label(t.dataset, ESP_TRAIN, index) * DOMAINS / data->classes != domain) continue;
      write_image(file, index);
      left--;
    }
    assert_int_equal(fclose(file), 0);
  }
  esp_dataset *opened;
  if (esp_dataset_open(&opened, spec) != ESP_OK) fail_msg("%s", esp_error_message());
  return opened;
}

static int set_up(void **state) {
  (void)state;
  t = train_quickly(settings, "synthetic");
  make_folder(folder);
  for (int d = 0; d < DOMAINS; d++) domains[d] = open_domain(d);
  return 0;
}

static int tear_down(void **state) {
  (void)state;
  for (int d = 0; d < DOMAINS; d++) esp_dataset_close(domains[d]);
  esp_model_free(t.model);
  esp_dataset_close(t.dataset);
  remove_folder(folder);
  return 0;
}

/* --- plans -------------------------------------------------------------------------------------------------------- */

static esp_calibration calibration_on(const esp_dataset *dataset) {
  return (esp_calibration){.dataset = dataset,
                           .normalisation = &t.normalisation,
                           .split = ESP_TRAIN,
                           .images = CALIBRATION_IMAGES,
                           .seed = 3};
}

/* The lowest quarter of each layer. `scores`: NULL, or a pass over the same images. */
static esp_plan *drop_quarter(const esp_criterion *criterion, const esp_calibration *c,
                              const esp_expert_scores *scores) {
  const esp_criterion_inputs inputs = {.model = t.model, .calibration = c, .scores = scores};
  esp_plan *plan;
  if (esp_plan_make(&plan, criterion, &inputs, ESP_PRUNE_REMOVE, &(esp_prune_budget){.drop = QUARTER}) != ESP_OK)
    fail_msg("%s: %s", criterion->name, esp_error_message());
  return plan;
}

static esp_plan *drop_by_name(const char *name, const esp_calibration *c) {
  const esp_criterion *criterion;
  assert_int_equal(esp_criterion_find(&criterion, name), ESP_OK);
  return drop_quarter(criterion, c, NULL);
}

static double overlap_of(esp_plan *const *plans, int count) {
  double overlap;
  assert_int_equal(esp_mean_overlap((const esp_plan *const *)plans, count, t.model, &overlap), ESP_OK);
  return overlap;
}

/* The proxy leaves out what comes of rerouting, which weighs the more the fewer experts a token has: this model has 4
 * of 32, the ratio of the paper's OLMoE. Seen: 14 of 16 experts in common, 0.875; with top-2 of 16 experts, far from
 * the paper's models, 6 of 8, 0.75. */
static void damage_drops_what_the_gated_norm_drops(void **state) {
  (void)state;
  const esp_calibration c = calibration_on(t.dataset);
  esp_plan *damage = drop_by_name("damage", &c), *proxy = drop_by_name("S(0,1,1)", &c);
  const double overlap = overlap_of((esp_plan *const[]){damage, proxy}, 2);
  if (!(overlap > 0.8)) fail_msg("the overlap is %g", overlap);
  esp_plan_free(damage);
  esp_plan_free(proxy);
}

/* --- across calibration data -------------------------------------------------------------------------------------- */

/* The order of the sets does not matter, equal ones overlap wholly, and the mean counts experts: DOMAINS pairs of
 * LAYERS layers of QUARTER each. */
static double check_overlap(esp_plan *const plans[DOMAINS]) {
  const double overlap = overlap_of(plans, DOMAINS), experts = overlap * DOMAINS * LAYERS * QUARTER;
  assert_true(fabs(overlap - overlap_of((esp_plan *const[]){plans[2], plans[0], plans[1]}, DOMAINS)) < 1e-12);
  assert_true(overlap_of((esp_plan *const[]){plans[1], plans[1]}, 2) == 1);
  assert_true(fabs(experts - round(experts)) < 1e-9);
  return overlap;
}

/* Two random rankings drop QUARTER of EXPERTS experts each; the number of common ones has a variance of 8 x 1/4 x 3/4 x
 * 24/31, so that the mean of 6 pairs of sets, which are independent two by two, deviates from 1/4 by 0.055. */
static const double chance = 0.25 + 4 * 0.055;

/* The paper finds that b = 1 with alpha = 0 depends least on the data. That does not show on so small a model, and is
 * not asserted: here S(1,0,1) has 0.917, as high as any, but S(0,1,1), S(0,2,1) and S(0,2,2) have as much, and S(1,0,2)
 * has
 * 0.854; with top-2 of 16 experts S(1,0,2) has 0.833, as high as any, as have S(1,1,2), S(1,2,0) and S(1,2,2), and
 * S(1,0,1) has 0.708. Without norms (beta = 0) it is lowest here, 0.58 to 0.67. All are far above chance. */
static void overlap_of_all_variants_across_domains(void **state) {
  (void)state;
  const esp_criterion *family;
  const int variants = (int)esp_criterion_family(&family);
  esp_calibration c[DOMAINS];
  esp_expert_scores *scores[DOMAINS];
  for (int d = 0; d < DOMAINS; d++) {
    c[d] = calibration_on(domains[d]);
    assert_int_equal(esp_expert_scores_create(&scores[d], t.model, ESP_GATES_NORMALISED), ESP_OK);
    const esp_observer observer = esp_expert_scores_observer(scores[d]);
    assert_int_equal(esp_calibration_pass(t.model, &c[d], &observer), ESP_OK);
  }
  for (int v = 0; v < variants; v++) {
    esp_plan *plans[DOMAINS];
    for (int d = 0; d < DOMAINS; d++) plans[d] = drop_quarter(&family[v], &c[d], scores[d]);
    const double overlap = check_overlap(plans);
    if (overlap < chance || overlap > 1) fail_msg("%s: the overlap is %g", family[v].name, overlap);
    for (int d = 0; d < DOMAINS; d++) esp_plan_free(plans[d]);
  }
  for (int d = 0; d < DOMAINS; d++) esp_expert_scores_free(scores[d]);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(damage_drops_what_the_gated_norm_drops),
      cmocka_unit_test(overlap_of_all_variants_across_domains),
  };
  return cmocka_run_group_tests_name("criteria on a trained model", tests, set_up, tear_down);
}
