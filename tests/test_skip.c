/* label: medium */
/* Dynamic skipping: the rule, its calibration, its counters, and what it leaves alone. */
#include "testing.h"

#include <espalier/cost.h>
#include <espalier/evaluate.h>
#include <espalier/method.h>
#include <espalier/ops.h>
#include <espalier/skip.h>
#include <espalier/statistics.h>

enum { TOKENS = 10, EXPERTS = 4 };

typedef struct fixture {
  esp_dataset *dataset;
  esp_model *model;
  esp_checkpoint_info info;
} fixture;

static esp_model_config model_config(int k) {
  esp_model_config c = esp_model_defaults;
  c.image_height = c.image_width = 32;
  c.image_channels = 3;
  c.classes = 5;
  c.stem = (esp_stem_config){.kind = ESP_STEM_PATCH, .patch = 8};
  c.width = 16;
  c.blocks = 2;
  c.mixing = ESP_MIXING_NONE;
  c.layers[0] = ESP_LAYER_MOE;
  c.layers_count = 1;
  c.moe.experts = EXPERTS;
  c.moe.top_k = k;
  c.moe.hidden = 8;
  c.moe.router.renormalise = true;
  return c;
}

static int begin(void **state) {
  static fixture f;
  const esp_model_config config = model_config(2);
  if (esp_dataset_open(&f.dataset, "synthetic:narrow") != ESP_OK) return -1;
  esp_dataset_normalisation(f.dataset, &f.info.normalisation);
  if (esp_model_create(&f.model, &config, NULL, 3) != ESP_OK) return -1;
  for (int i = 0; i < 2; i++) fill_normal(esp_model_moe(f.model, i)->router->data, EXPERTS * 16, (uint64_t)i);
  fill_normal(f.model->head.weight->data, 5 * 16, 9); /* which would start with 0 */
  *state = &f;
  return 0;
}

static int end(void **state) {
  fixture *f = *state;
  esp_model_free(f->model);
  esp_dataset_close(f->dataset);
  return 0;
}

static esp_calibration sample(const fixture *f, int64_t images) {
  return (esp_calibration){
      .dataset = f->dataset, .normalisation = &f->info.normalisation, .split = ESP_TRAIN, .images = images, .seed = 7};
}

/* Routes logits [10, 4] with this beta; the tape is the caller's. */
static const esp_routing *route(esp_tape *tape, esp_real *logits, int k, double beta, bool training,
                                esp_tensor **gates) {
  static esp_router_config config;
  static esp_expert_layout layout;
  static esp_tensor z;
  config = (esp_router_config){.score = ESP_SCORE_SOFTMAX, .renormalise = true};
  esp_expert_layout_full(&layout, EXPERTS);
  layout.skip = beta;
  z = (esp_tensor){.data = logits, .shape = {TOKENS, EXPERTS}, .rank = 2};
  esp_route_request request = esp_plain_request(&config, &layout, k, TOKENS);
  request.training = training;
  esp_routed routed = {0};
  *gates = esp_route(tape, &z, &request, &routed);
  assert_non_null(*gates);
  return routed.routing;
}

/* A slot is skipped exactly where g_2 < beta g_1 of the gates without skipping; the first then has all the weight. */
static void the_rule_for_two(void **state) {
  (void)state;
  esp_real logits[TOKENS * EXPERTS];
  esp_tensor *plain, *gates;
  fill_normal(logits, TOKENS * EXPERTS, 11);
  static const double betas[] = {0, 0.3, 0.6, 1.01};
  for (int b = 0; b < 4; b++) {
    esp_tape *tape = esp_tape_create();
    const esp_routing *r = route(tape, logits, 2, betas[b], false, &gates);
    (void)route(tape, logits, 2, 0, false, &plain);
    int64_t skipped = 0;
    for (int t = 0; t < TOKENS; t++) {
      const bool skips = (double)plain->data[2 * t + 1] / (double)plain->data[2 * t] < betas[b];
      skipped += skips;
      assert_int_equal(r->row[2 * t + 1] < 0, skips);
      assert_true(r->row[2 * t] >= 0);
      assert_true(gates->data[2 * t] == (skips ? 1 : plain->data[2 * t]));
      assert_true(gates->data[2 * t + 1] == (skips ? 0 : plain->data[2 * t + 1]));
    }
    assert_int_equal(r->skipped, skipped);
    assert_int_equal(r->rows, 2 * TOKENS - skipped);
    if (b == 0) assert_int_equal(skipped, 0);
    if (b == 3) assert_int_equal(skipped, TOKENS);
    esp_tape_free(tape);
  }
}

/* The general rule, sum of the tail < b / (1 + b) of all, keeps the smallest number of choices; with two it is the
 * simple one. */
static void the_rule_for_more(void **state) {
  (void)state;
  esp_real logits[TOKENS * EXPERTS];
  esp_tensor *plain, *gates;
  fill_normal(logits, TOKENS * EXPERTS, 12);
  for (int k = 2; k <= 4; k++) {
    const double beta = 0.4, share = beta / (1 + beta);
    esp_tape *tape = esp_tape_create();
    const esp_routing *r = route(tape, logits, k, beta, false, &gates);
    (void)route(tape, logits, k, 0, false, &plain);
    for (int t = 0; t < TOKENS; t++) {
      int kept = 1;
      for (; kept < k; kept++) {
        double tail = 0;
        for (int i = kept; i < k; i++) tail += (double)plain->data[k * t + i];
        if (tail < share) break; /* of gates that sum to 1 */
      }
      double sum = 0;
      for (int i = 0; i < k; i++) {
        assert_int_equal(r->row[k * t + i] >= 0, i < kept);
        sum += (double)gates->data[k * t + i];
      }
      assert_true(fabs(sum - 1) < 1e-6);
    }
    esp_tape_free(tape);
  }
}

static void training_does_not_skip(void **state) {
  (void)state;
  esp_real logits[TOKENS * EXPERTS];
  esp_tensor *gates;
  fill_normal(logits, TOKENS * EXPERTS, 13);
  esp_tape *tape = esp_tape_create();
  assert_int_equal(route(tape, logits, 2, 2, true, &gates)->skipped, 0);
  esp_tape_free(tape);
}

typedef struct skip_count {
  int64_t skipped[2], tokens[2], calls;
} skip_count;

static void count(void *context, const esp_moe_record *record) {
  skip_count *c = context;
  c->skipped[record->layer->block] += record->routing->skipped;
  c->tokens[record->layer->block] += record->routing->tokens;
  for (int64_t i = 0; i < record->routing->slots; i++) c->calls += record->routing->row[i] >= 0;
}

/* beta is the median over the tokens of a layer, so half of them are below it on the calibration images. A later layer
 * sees other inputs once the first one skips, so each is looked at with the others' skipping off. */
static void half_is_skipped_where_it_was_calibrated(void **state) {
  const fixture *f = *state;
  const esp_calibration calibration = sample(f, 200);
  double beta[ESP_MAX_BLOCKS];
  assert_int_equal(esp_skip_calibrate(f->model, &calibration, beta), ESP_OK);
  for (int layer = 0; layer < 2; layer++) {
    double one[2] = {0};
    one[layer] = beta[layer];
    esp_model *skipping;
    skip_count c = {{0}, {0}, 0};
    const esp_observer observer = {count, &c};
    assert_int_equal(esp_skip_apply(&skipping, f->model, one), ESP_OK);
    assert_int_equal(esp_calibration_pass(skipping, &calibration, &observer), ESP_OK);
    const double rate = (double)c.skipped[layer] / (double)c.tokens[layer];
    if (!(rate > 0.49 && rate < 0.51)) fail_msg("layer %d: %g of the tokens skip", layer, rate);
    assert_int_equal(c.skipped[1 - layer], 0);
    esp_model_free(skipping);
  }
}

static void forward(const esp_model *model, esp_real *images, esp_real logits[5]) {
  esp_tape *tape = esp_tape_create();
  esp_tensor x = {.data = images, .shape = {1, 32, 32, 3}, .rank = 4};
  const esp_pass pass = {.training = false};
  esp_tape_reset(tape, false);
  const esp_model_output output = esp_model_forward(model, tape, &x, &pass);
  assert_non_null(output.logits);
  memcpy(logits, output.logits->data, 5 * sizeof *logits);
  esp_tape_free(tape);
}

static void a_beta_of_0_changes_no_bit(void **state) {
  const fixture *f = *state;
  static esp_real images[32 * 32 * 3];
  static const double none[2] = {0}, all[2] = {2, 2};
  esp_real before[5], after[5], top_1[5];
  esp_model *same, *other;
  fill_normal(images, 32 * 32 * 3, 14);
  assert_int_equal(esp_skip_apply(&same, f->model, none), ESP_OK);
  assert_int_equal(esp_skip_apply(&other, f->model, all), ESP_OK);
  forward(f->model, images, before);
  forward(same, images, after);
  forward(other, images, top_1);
  assert_same_bits("logits", before, after, 5);
  assert_memory_not_equal(before, top_1, sizeof before);
  esp_model_free(same);
  esp_model_free(other);
}

/* After pruning, the counters of statistics are the executed calls, counted by hand; kept in the checkpoint. */
static void pruned_and_skipping_counts_its_calls(void **state) {
  const fixture *f = *state;
  const esp_calibration calibration = sample(f, 64);
  const esp_method_inputs inputs = {
      .model = f->model, .info = &f->info, .calibration = &calibration, .seed = 1, .ratio = 0.25};
  char folder[TESTING_PATH_SIZE], path[TESTING_PATH_SIZE + 16];
  esp_method method;
  esp_compressed made;
  assert_int_equal(esp_method_find(&method, "weight-norm+skip"), ESP_OK);
  assert_int_equal(esp_method_make(&method, &inputs, &made), ESP_OK);
  make_folder(folder);
  snprintf(path, sizeof path, "%s/skip.h5", folder);
  esp_checkpoint_info info = f->info;
  info.history_count = 0;
  snprintf(info.data_name, sizeof info.data_name, "synthetic:narrow");
  assert_int_equal(esp_checkpoint_save(path, made.model, NULL, &info, 1), ESP_OK);
  esp_model *model;
  assert_int_equal(esp_checkpoint_load(path, &model, &info), ESP_OK);
  esp_statistics *statistics;
  skip_count c = {{0}, {0}, 0};
  const esp_observer observer = {count, &c};
  assert_int_equal(esp_statistics_create(&statistics, model, 1), ESP_OK);
  const esp_observer watching = esp_statistics_observer(statistics);
  assert_int_equal(esp_calibration_pass(model, &calibration, &observer), ESP_OK);
  assert_int_equal(esp_calibration_pass(model, &calibration, &watching), ESP_OK);
  int64_t served = 0;
  double rows[ESP_MAX_BLOCKS] = {0};
  for (int i = 0; i < 2; i++) {
    esp_layer_statistics s;
    esp_statistics_layer(statistics, i, &s);
    assert_int_equal(s.experts, EXPERTS - 1);
    assert_true(model->blocks[i].moe.layout.skip == made.model->blocks[i].moe.layout.skip);
    assert_true(s.skipped > 0);
    assert_int_equal(s.skipped, c.skipped[i]);
    assert_int_equal(s.served + s.skipped, s.slots);
    served += s.served;
    rows[i] = (double)s.served / (double)s.tokens;
  }
  assert_int_equal(served, c.calls);
  esp_model_cost expected, measured;
  esp_model_cost_of(model, &expected);
  esp_model_cost_measured(model, rows, &measured);
  /* A skipped call saves 3 products of 8 x 16 multiply-adds; an image has 16 tokens. */
  const double saved = (double)(c.skipped[0] + c.skipped[1]) / 64 * 3 * 2 * 8 * 16;
  assert_true(fabs(expected.flops - measured.flops - saved) < 1e-6 * expected.flops);
  esp_statistics_free(statistics);
  esp_checkpoint_info_clear(&info);
  esp_model_free(model);
  esp_compressed_clear(&made);
  remove_folder(folder);
}

static void test_one_expert_a_token_is_refused(void **state) {
  (void)state;
  const esp_model_config config = model_config(1);
  esp_model *model;
  assert_int_equal(esp_model_create(&model, &config, NULL, 1), ESP_OK);
  assert_int_equal(esp_skip_check(model), ESP_ERR_MISMATCH);
  assert_non_null(strstr(esp_error_message(), "top_k 1"));
  esp_model_free(model);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(the_rule_for_two),
      cmocka_unit_test(the_rule_for_more),
      cmocka_unit_test(training_does_not_skip),
      cmocka_unit_test(half_is_skipped_where_it_was_calibrated),
      cmocka_unit_test(a_beta_of_0_changes_no_bit),
      cmocka_unit_test(pruned_and_skipping_counts_its_calls),
      cmocka_unit_test(test_one_expert_a_token_is_refused),
  };
  return cmocka_run_group_tests_name("skip", tests, begin, end);
}
