/* label: short */
/* What the surgeon makes of plans: which weights are left, and what the pruned model computes. */
#include "test_measure_models.h"

#include <espalier/optimizer.h>
#include <espalier/prune.h>
#include <espalier/trainer.h>

enum { Z = ESP_TARGET_ZERO, M = ESP_TARGET_MASKED, R = ESP_TARGET_REMOVED };
enum { EXPERTS = 4, CHOICES = 2, WIDTH = 8, TOKENS = IMAGES * 16, LAYERS = 2, CLASSES = 5 };

static esp_model *model;

/* Every parameter random: neither head nor biases are zero. */
static int set_up(void **state) {
  (void)state;
  esp_model_config config = small_config();
  config.feed_forward.bias = true;
  model = make(&config, NULL, 1);
  fill_parameters(model->parameters, 0.4);
  fill_normal(pixels, IMAGES * PIXELS, 9);
  return 0;
}

static int tear_down(void **state) {
  (void)state;
  esp_alloc_fail_after(-1);
  esp_model_free(model);
  return 0;
}

/* --- operations --------------------------------------------------------------------------------------------------- */

#define TARGETS(...) \
  (const int32_t[EXPERTS]) { __VA_ARGS__ }

/* A plan with these targets; NULL leaves a layer as it is. */
static esp_plan *plan_for(const esp_model *of, const int32_t *first, const int32_t *second) {
  const int32_t *const targets[] = {first, second};
  esp_plan *plan;
  if (esp_plan_create(&plan, of, "by hand", ESP_PRUNE_ZERO) != ESP_OK) fail_msg("%s", esp_error_message());
  for (int i = 0; i < LAYERS; i++)
    if (targets[i]) memcpy(plan->layers[i].target, targets[i], (size_t)plan->layers[i].experts * sizeof(int32_t));
  return plan;
}

/* Whatever comes of it, the model stays as it is. */
static esp_status apply(esp_model **pruned, const esp_model *to, const esp_plan *plan) {
  const int64_t size = esp_parameters_size(to->parameters);
  esp_real *before = esp_alloc((size_t)size, sizeof *before);
  char digest[ESP_DIGEST_SIZE], after[ESP_DIGEST_SIZE];
  memcpy(before, esp_parameters_values(to->parameters), (size_t)size * sizeof *before);
  assert_int_equal(esp_model_digest(to, digest), ESP_OK);
  const esp_status status = esp_apply_plan(pruned, to, plan);
  assert_same_bits("the model that is pruned", esp_parameters_values(to->parameters), before, size);
  assert_int_equal(esp_model_digest(to, after), ESP_OK); /* layouts too */
  assert_string_equal(after, digest);
  esp_free(before);
  return status;
}

static esp_model *prune(const esp_model *of, const int32_t *first, const int32_t *second) {
  esp_plan *plan = plan_for(of, first, second);
  esp_model *pruned;
  if (apply(&pruned, of, plan) != ESP_OK) fail_msg("%s", esp_error_message());
  esp_plan_free(plan);
  return pruned;
}

static void assert_refused(const int32_t *targets, esp_status status, const char *text) {
  esp_plan *plan = plan_for(model, NULL, targets);
  esp_model *pruned = model;
  assert_int_equal(apply(&pruned, model, plan), status);
  assert_null(pruned);
  if (!strstr(esp_error_message(), text)) fail_msg("\"%s\" does not say \"%s\"", esp_error_message(), text);
  esp_plan_free(plan);
}

/* --- what models compute ------------------------------------------------------------------------------------------ */

/* One pass over all images; the records live in the tape's arena. */
typedef struct view {
  esp_tape *tape;
  esp_moe_record of[LAYERS];
  int count;
  const esp_tensor *logits;
} view;

/* What a record points at is there only while it is shown. */
static esp_tensor *copy_tensor(esp_tape *tape, const esp_tensor *tensor) {
  if (!tensor) return NULL;
  esp_tensor *copy = esp_tape_tensor(tape, tensor->rank, tensor->shape);
  assert_non_null(copy);
  memcpy(copy->data, tensor->data, (size_t)esp_tensor_count(copy) * sizeof *copy->data);
  return copy;
}

static void keep_record(void *context, const esp_moe_record *record) {
  view *v = context;
  assert_true(v->count < LAYERS);
  esp_moe_record *kept = &v->of[v->count++];
  *kept = *record;
  const esp_tensor **shown[] = {&kept->input, &kept->output, &kept->logits, &kept->scores, &kept->gates};
  for (size_t i = 0; i < sizeof shown / sizeof shown[0]; i++) *shown[i] = copy_tensor(v->tape, *shown[i]);
  kept->experts.output = copy_tensor(v->tape, record->experts.output);
}

static view see(const esp_model *of) {
  view v = {.tape = esp_tape_create()};
  const esp_observer observer = {keep_record, &v};
  esp_tensor images = {.data = pixels, .rank = 4, .shape = {IMAGES, 8, 8, 3}};
  esp_tape_reset(v.tape, false);
  v.logits = esp_model_forward(of, v.tape, &images, &(esp_pass){.observer = &observer}).logits;
  assert_non_null(v.logits);
  assert_int_equal(v.count, LAYERS);
  return v;
}

static void assert_near_all(const char *what, const esp_tensor *a, const esp_tensor *b, double tolerance) {
  const int64_t count = esp_tensor_count(a);
  assert_true(esp_same_shape(a, b));
  double *expected = esp_alloc((size_t)count, sizeof *expected);
  for (int64_t i = 0; i < count; i++) expected[i] = (double)b->data[i];
  assert_close(what, a->data, expected, count, tolerance, tolerance);
  esp_free(expected);
}

/* Outputs of both mixture layers and of the whole. */
static void assert_same_function(const esp_model *a, const esp_model *b, double tolerance) {
  const view one = see(a), two = see(b);
  for (int i = 0; i < LAYERS; i++)
    assert_near_all(one.of[i].layer->scope, one.of[i].output, two.of[i].output, tolerance);
  assert_near_all("logits", one.logits, two.logits, tolerance);
  esp_tape_free(one.tape);
  esp_tape_free(two.tape);
}

static void assert_same_models(const esp_model *a, const esp_model *b) {
  char digest[ESP_DIGEST_SIZE], other[ESP_DIGEST_SIZE];
  assert_int_equal(esp_model_digest(a, digest), ESP_OK);
  assert_int_equal(esp_model_digest(b, other), ESP_OK);
  assert_string_equal(digest, other);
  for (int i = 0; i < LAYERS; i++)
    assert_memory_equal(&esp_model_moe(a, i)->layout, &esp_model_moe(b, i)->layout, sizeof(esp_expert_layout));
  assert_int_equal(esp_parameters_size(a->parameters), esp_parameters_size(b->parameters));
  assert_same_bits("parameters", esp_parameters_values(a->parameters), esp_parameters_values(b->parameters),
                   esp_parameters_size(a->parameters));
}

/* --- mode zero ---------------------------------------------------------------------------------------------------- */

/* y minus what the dropped experts gave to each token. */
static void check_outputs(const esp_moe_record *whole, const esp_moe_record *pruned, const int32_t *targets) {
  int64_t lost = 0;
  for (int64_t t = 0; t < TOKENS; t++) {
    double y[WIDTH];
    for (int i = 0; i < WIDTH; i++) y[i] = (double)whole->output->data[t * WIDTH + i];
    for (int64_t slot = CHOICES * t; slot < CHOICES * (t + 1); slot++) {
      if (targets[whole->routing->choice[slot]] >= 0) continue;
      const esp_real *row = whole->experts.output->data + whole->routing->row[slot] * WIDTH;
      for (int i = 0; i < WIDTH; i++) y[i] -= (double)whole->gates->data[slot] * (double)row[i];
      lost++;
    }
    assert_close("output", pruned->output->data + t * WIDTH, y, WIDTH, 1e-6, 2e-6);
  }
  assert_true(lost > 0);
  assert_int_equal(pruned->routing->rows, CHOICES * TOKENS - lost);
}

/* One layer at a time, so that its input stays the same. */
static void zeroed_experts_only_lack_their_output(void **state) {
  (void)state;
  const int32_t *targets = TARGETS(Z, 1, Z, 3);
  for (int i = 0; i < LAYERS; i++) {
    esp_model *pruned = prune(model, i ? NULL : targets, i ? targets : NULL);
    const esp_moe *was = esp_model_moe(model, i), *is = esp_model_moe(pruned, i);
    assert_int_equal(is->layout.experts, EXPERTS);
    assert_int_equal(is->layout.stored, 2);
    assert_same_bits("router", was->router->data, is->router->data, EXPERTS * WIDTH);
    const view whole = see(model), less = see(pruned);
    assert_same_bits("input", whole.of[i].input->data, less.of[i].input->data, TOKENS * WIDTH);
    assert_same_bits("logits", whole.of[i].logits->data, less.of[i].logits->data, TOKENS * EXPERTS);
    assert_same_bits("gates", whole.of[i].gates->data, less.of[i].gates->data, TOKENS * CHOICES);
    check_outputs(&whole.of[i], &less.of[i], targets);
    esp_tape_free(whole.tape);
    esp_tape_free(less.tape);
    esp_model_free(pruned);
  }
}

static void keeping_all_is_a_copy(void **state) {
  (void)state;
  esp_model *copy = prune(model, NULL, NULL);
  assert_same_models(copy, model);
  esp_model_free(copy);
}

/* --- modes remove and mask ---------------------------------------------------------------------------------------- */

static void removing_is_masking(void **state) {
  (void)state;
  const int32_t removals[][EXPERTS] = {{R, 1, 2, 3}, {0, 1, R, 3}, {0, R, R, 3}, {0, 1, 2, R}};
  enum { CASES = sizeof removals / sizeof removals[0] };
  for (int i = 0; i < CASES; i++) {
    int32_t masks[CASES][EXPERTS];
    for (int c = 0; c < CASES; c++)
      for (int e = 0; e < EXPERTS; e++) masks[c][e] = removals[c][e] == R ? M : e;
    const int next = (i + 1) % CASES;
    esp_model *removed = prune(model, removals[i], removals[next]), *masked = prune(model, masks[i], masks[next]);
    assert_same_function(removed, masked, 1e-6);
    esp_model_free(removed);
    esp_model_free(masked);
  }
}

/* --- sizes -------------------------------------------------------------------------------------------------------- */

static int64_t count_parameters(const esp_model *of) {
  int64_t count = 0;
  for (int64_t i = 0; i < esp_parameters_count(of->parameters); i++)
    count += esp_parameters_at(of->parameters, i)->count;
  return count;
}

/* An expert is a SwiGLU with biases and 20 neurons. */
enum { EXPERT_SIZE = 3 * 20 * WIDTH + 2 * 20 + WIDTH };

static void the_model_shrinks_by_what_is_dropped(void **state) {
  (void)state;
  const struct {
    int32_t first[EXPERTS], second[EXPERTS];
    int experts, rows; /* that go, in both layers */
  } cases[] = {{{0, 1, Z, 3}, {0, 1, 2, 3}, 1, 0}, {{Z, 1, Z, Z}, {Z, 1, Z, 3}, 5, 0},
               {{0, M, 2, 3}, {0, M, M, 3}, 3, 0}, {{R, 1, 2, 3}, {0, R, R, 3}, 3, 3},
               {{1, 1, 2, 2}, {0, 0, 0, 0}, 5, 0}, {{0, 1, R, 3}, {Z, M, 2, 2}, 4, 1},
               {{1, Z, 2, R}, {0, 1, 2, 3}, 2, 1}};
  assert_int_equal(model->config.feed_forward.activation, ESP_ACTIVATION_SWIGLU);
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    esp_model *pruned = prune(model, cases[i].first, cases[i].second);
    const int64_t less = count_parameters(model) - count_parameters(pruned);
    if (less != cases[i].experts * EXPERT_SIZE + cases[i].rows * WIDTH)
      fail_msg("case %zu is smaller by %lld parameters", i, (long long)less);
    esp_model_free(pruned);
  }
}

/* --- merging ------------------------------------------------------------------------------------------------------ */

/* Merged experts' tokens lie in one group, in another order, which BLAS may round differently. */
static const double merging_tolerance = 5e-6;

/* Overwrites expert `to` with expert `from`, but for the router's rows. */
static void copy_expert(const esp_moe *moe, int64_t from, int64_t to) {
  const esp_tensor *const parts[] = {moe->bank.up, moe->bank.up_bias, moe->bank.down, moe->bank.down_bias};
  for (int i = 0; i < 4; i++) {
    const int64_t size = esp_tensor_count(parts[i]) / EXPERTS;
    memcpy(parts[i]->data + to * size, parts[i]->data + from * size, (size_t)size * sizeof(esp_real));
  }
}

static void merged_experts_share_weights(void **state) {
  (void)state;
  esp_model *merged = prune(model, TARGETS(0, 3, 3, 3), TARGETS(1, 1, 2, 1));
  const esp_expert_layout *layout = &esp_model_moe(merged, 0)->layout;
  assert_int_equal(layout->stored, 2);
  assert_memory_equal(layout->index, TARGETS(0, 1, 1, 1), EXPERTS * sizeof(int32_t));
  assert_memory_equal(esp_model_moe(merged, 1)->layout.index, TARGETS(0, 0, 1, 0), EXPERTS * sizeof(int32_t));
  copy_expert(esp_model_moe(model, 0), 3, 1); /* the same, done to the whole model */
  copy_expert(esp_model_moe(model, 0), 3, 2);
  copy_expert(esp_model_moe(model, 1), 1, 0);
  copy_expert(esp_model_moe(model, 1), 1, 3);
  assert_same_function(merged, model, merging_tolerance);
  esp_model_free(merged);
}

static void merging_identical_experts_changes_nothing(void **state) {
  (void)state;
  for (int i = 0; i < LAYERS; i++) {
    copy_expert(esp_model_moe(model, i), 0, 2);
    copy_expert(esp_model_moe(model, i), 1, 3);
  }
  esp_model *merged = prune(model, TARGETS(0, 1, 0, 1), TARGETS(2, 3, 2, 3));
  assert_int_equal(esp_model_moe(merged, 0)->layout.stored, 2);
  assert_int_equal(esp_model_moe(merged, 1)->layout.stored, 2);
  assert_same_function(merged, model, merging_tolerance);
  esp_model_free(merged);
}

/* --- pruned models again ------------------------------------------------------------------------------------------ */

static void uneven_layers_survive_a_checkpoint(void **state) {
  (void)state;
  esp_model *pruned = prune(model, TARGETS(0, R, 2, 3), TARGETS(2, Z, 2, M));
  char folder[TESTING_PATH_SIZE], path[TESTING_PATH_SIZE + 16];
  esp_checkpoint_info info = {.data_name = "none", .history_count = 0}, read;
  make_folder(folder);
  snprintf(path, sizeof path, "%s/pruned.h5", folder);
  if (esp_checkpoint_save(path, pruned, NULL, &info, 1) != ESP_OK) fail_msg("%s", esp_error_message());
  esp_model *loaded;
  if (esp_checkpoint_load(path, &loaded, &read) != ESP_OK) fail_msg("%s", esp_error_message());
  assert_same_models(loaded, pruned);
  const view one = see(pruned), two = see(loaded);
  assert_same_bits("logits", one.logits->data, two.logits->data, IMAGES * CLASSES);
  esp_tape_free(one.tape);
  esp_tape_free(two.tape);
  esp_checkpoint_info_clear(&read);
  remove_folder(folder);
  esp_model_free(loaded);
  esp_model_free(pruned);
}

/* Expert 1, then expert 3 of what is left, is both at once. */
static void pruning_can_go_on(void **state) {
  (void)state;
  const int32_t how[] = {Z, M, R};
  for (int i = 0; i < 3; i++) {
    const int32_t first[] = {0, how[i], 2, 3}, both[] = {0, how[i], 2, how[i]}, rest[] = {0, 1, how[i]};
    const int32_t *then = how[i] == R ? rest : both; /* removed rows do not count any more */
    esp_model *once = prune(model, first, first), *twice = prune(once, then, then);
    esp_model *at_once = prune(model, both, both);
    assert_same_models(twice, at_once);
    if (how[i] == R)
      assert_memory_equal(esp_model_moe(twice, 1)->layout.original_ids, ((int32_t[]){0, 2}), 2 * sizeof(int32_t));
    esp_model_free(once);
    esp_model_free(twice);
    esp_model_free(at_once);
  }
}

/* The row of a zero expert can go later, and a merged expert leaves the other its weights. */
static void modes_can_follow_one_another(void **state) {
  (void)state;
  esp_model *zeroed = prune(model, TARGETS(0, Z, 2, 3), TARGETS(0, 1, 1, 3));
  esp_model *removed = prune(zeroed, TARGETS(0, R, 2, 3), TARGETS(0, R, 2, 3));
  esp_model *at_once = prune(model, TARGETS(0, R, 2, 3), TARGETS(0, R, 1, 3));
  assert_same_models(removed, at_once);
  assert_int_equal(esp_model_moe(removed, 1)->layout.stored, 3);
  esp_model_free(zeroed);
  esp_model_free(removed);
  esp_model_free(at_once);
}

/* --- plans that cannot be carried out ----------------------------------------------------------------------------- */

static void plans_of_other_models_are_refused(void **state) {
  (void)state;
  esp_plan *plan = plan_for(model, TARGETS(0, Z, 2, 3), NULL);
  esp_model *other = prune(model, NULL, NULL), *pruned = model;
  esp_real *number = esp_model_moe(other, 1)->bank.down->data;
  *number = -*number; /* one bit */
  assert_int_equal(apply(&pruned, other, plan), ESP_ERR_MISMATCH);
  assert_null(pruned);
  assert_non_null(strstr(esp_error_message(), "the plan was made for the model "));
  assert_non_null(strstr(esp_error_message(), plan->model_digest));
  *number = -*number;
  assert_int_equal(apply(&pruned, other, plan), ESP_OK);
  esp_model_free(pruned);
  snprintf(plan->layers[1].scope, sizeof plan->layers[1].scope, "blocks.7.moe");
  assert_int_equal(apply(&pruned, model, plan), ESP_ERR_MISMATCH);
  assert_non_null(strstr(esp_error_message(), "speaks of blocks.7.moe with 4 experts"));
  esp_plan_free(plan);
  esp_model_free(other);
}

static void impossible_plans_are_refused(void **state) {
  (void)state;
  assert_refused(TARGETS(0, 4, 2, 3), ESP_ERR_MISMATCH, "sends expert 1 of blocks.2.moe to expert 4");
  assert_refused(TARGETS(0, 1, 2, -4), ESP_ERR_MISMATCH, "sends expert 3 of blocks.2.moe to expert -4");
  assert_refused(TARGETS(0, 1, INT32_MAX, 3), ESP_ERR_MISMATCH, "which has no weights");
  assert_refused(TARGETS(Z, Z, Z, Z), ESP_ERR_CONFIG, "no stored expert");
  assert_refused(TARGETS(R, R, R, R), ESP_ERR_CONFIG, "no stored expert");
  assert_refused(TARGETS(R, R, 2, R), ESP_ERR_CONFIG, "can route to 1 of its 1 experts");
  assert_refused(TARGETS(0, M, M, M), ESP_ERR_CONFIG, "can route to 1 of its 4 experts");
  esp_model *pruned = prune(model, NULL, TARGETS(0, Z, 2, 3)), *none = pruned;
  esp_plan *plan = plan_for(pruned, NULL, TARGETS(1, Z, 2, 3));
  assert_int_equal(apply(&none, pruned, plan), ESP_ERR_MISMATCH);
  assert_non_null(strstr(esp_error_message(), "sends expert 0 of blocks.2.moe to expert 1, which has no weights"));
  esp_plan_free(plan);
  esp_model_free(pruned);
}

static void lack_of_memory_is_a_status(void **state) {
  (void)state;
  esp_plan *plan = plan_for(model, TARGETS(0, Z, 2, R), NULL);
  esp_status status = ESP_ERR_MEMORY;
  int64_t failures = 0;
  for (; status != ESP_OK; failures++) {
    esp_model *pruned = model;
    assert_true(failures < 1000);
    esp_alloc_fail_after(failures);
    status = esp_apply_plan(&pruned, model, plan);
    esp_alloc_fail_after(-1);
    if (status == ESP_OK) {
      esp_model_free(pruned);
      continue;
    }
    assert_int_equal(status, ESP_ERR_MEMORY);
    assert_null(pruned);
  }
  assert_true(failures > 5);
  esp_plan_free(plan);
}

/* --- training goes on --------------------------------------------------------------------------------------------- */

static void pruned_models_can_be_finetuned(void **state) {
  (void)state;
  int32_t labels[IMAGES] = {0, 1, 2, 3, 4, 0};
  float mix[IMAGES] = {1, 1, 1, 1, 1, 1};
  const esp_batch batch = {.count = IMAGES, .images = pixels, .labels = labels, .mixed_labels = labels, .mix = mix};
  const int32_t plans[][EXPERTS] = {{0, Z, 2, Z}, {0, M, 2, M}, {0, R, 2, R}, {0, 0, 2, Z}};
  for (size_t i = 0; i < sizeof plans / sizeof plans[0]; i++) {
    esp_model *pruned = prune(model, plans[i], plans[(i + 1) % 4]);
    esp_optimizer_config config = esp_optimizer_defaults;
    config.learning_rate = 1e-3;
    esp_optimizer *optimizer;
    esp_tape *tape = esp_tape_create();
    assert_int_equal(esp_optimizer_create(&optimizer, &config, pruned->parameters), ESP_OK);
    esp_step_result first, second;
    const esp_pass pass = {.training = true, .seed = 1};
    assert_int_equal(esp_training_step(pruned, optimizer, tape, &batch,
                                       &(esp_step_options){.pass = pass, .learning_rate_multiplier = 1}, &first),
                     ESP_OK);
    assert_int_equal(esp_training_step(pruned, optimizer, tape, &batch,
                                       &(esp_step_options){.pass = pass, .learning_rate_multiplier = 1}, &second),
                     ESP_OK);
    assert_true(isfinite(first.loss) && first.gradient_norm > 0);
    if (!(second.loss < first.loss)) fail_msg("the loss goes from %g to %g", first.loss, second.loss);
    esp_tape_free(tape);
    esp_optimizer_free(optimizer);
    esp_model_free(pruned);
  }
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void) {
  const struct CMUnitTest tests[] = {
      TEST(zeroed_experts_only_lack_their_output),
      TEST(keeping_all_is_a_copy),
      TEST(removing_is_masking),
      TEST(the_model_shrinks_by_what_is_dropped),
      TEST(merged_experts_share_weights),
      TEST(merging_identical_experts_changes_nothing),
      TEST(uneven_layers_survive_a_checkpoint),
      TEST(pruning_can_go_on),
      TEST(modes_can_follow_one_another),
      TEST(plans_of_other_models_are_refused),
      TEST(impossible_plans_are_refused),
      TEST(lack_of_memory_is_a_status),
      TEST(pruned_models_can_be_finetuned),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
