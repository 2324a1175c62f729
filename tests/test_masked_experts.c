/* label: short */
/* A masked expert is one that is not there: with its router row removed instead, a model computes the same function,
 * the same losses and gradients, in training and otherwise, also where experts have a capacity, noise and loads. */
#include "test_measure_models.h"

#include <espalier/ops.h>
#include <espalier/prune.h>

enum { EXPERTS = 8, LAYERS = 2, CLASSES = 5 };

static const struct {
  const char *name;
  esp_router_config router;
  int members;
} routers[] = {
    {"plain", {.balance_weight = 1, .z_weight = 1, .entropy_weight = 0.1}, 1},
    {"capacity", {.capacity = 0.8, .evaluation_capacity = 0.8, .group_images = 2, .balance_weight = 1}, 1},
    {"batch priority", {.capacity = 0.7, .evaluation_capacity = 0.7, .batch_priority = true, .group_images = 3}, 1},
    {"noise and load", {.noise = 1, .load_weight = 1, .importance_weight = 1, .group_images = 2}, 1},
    {"sigmoid", {.score = ESP_SCORE_SIGMOID, .noise = 0.5, .capacity = 0.8, .evaluation_capacity = 0.9}, 1},
    {"expert choice", {.policy = ESP_ROUTER_EXPERT_CHOICE, .noise = 1, .group_images = 2}, 1},
    {"E3",
     {.capacity = 0.8,
      .evaluation_capacity = 0.8,
      .group_images = 2,
      .noise = 1,
      .load_weight = 1,
      .importance_weight = 1,
      .balance_weight = 1},
     2},
};

enum { ROUTERS = sizeof routers / sizeof routers[0] };

static esp_model *make_with(int router) {
  esp_model_config config = small_config();
  config.moe.experts = EXPERTS;
  config.moe.members = routers[router].members;
  config.moe.router = routers[router].router;
  if (!(config.moe.router.capacity > 0)) config.moe.router.capacity = ESP_UNLIMITED_CAPACITY;
  if (!(config.moe.router.evaluation_capacity > 0)) config.moe.router.evaluation_capacity = ESP_UNLIMITED_CAPACITY;
  esp_model *model = make(&config, NULL, 1);
  fill_parameters(model->parameters, 0.4);
  return model;
}

/* Without experts 1, 4 and 6 in the first mixture and 0, 2 and 7 in the second; of two members each loses as many. */
static esp_model *prune(const esp_model *model, int router, int32_t how) {
  static const int gone[LAYERS][4] = {{1, 4, 6, 3}, {0, 5, 7, 2}};
  esp_plan *plan;
  esp_model *pruned;
  if (esp_plan_create(&plan, model, "by hand", ESP_PRUNE_REMOVE) != ESP_OK) fail_msg("%s", esp_error_message());
  for (int i = 0; i < LAYERS; i++)
    for (int j = 0; j < 2 + routers[router].members; j++) plan->layers[i].target[gone[i][j]] = how;
  if (esp_apply_plan(&pruned, model, plan) != ESP_OK) fail_msg("%s", esp_error_message());
  esp_plan_free(plan);
  return pruned;
}

typedef struct seen {
  double logits[2 * IMAGES * CLASSES], losses[ESP_MAX_BLOCKS * ESP_LOSS_KINDS], norm;
  int count, loss_count;
} seen;

/* The norm of the gradients of all but the router, whose rows differ, and of the router's. */
static double gradient_norm(const esp_model *model) {
  double sum = 0;
  for (int64_t i = 0; i < esp_parameters_count(model->parameters); i++) {
    const esp_parameter *p = esp_parameters_at(model->parameters, i);
    for (int64_t j = 0; p->tensor.grad_written && j < p->count; j++)
      sum += (double)p->tensor.grad[j] * (double)p->tensor.grad[j];
    esp_parameters_at(model->parameters, i)->tensor.grad_written = false;
  }
  return sqrt(sum);
}

static seen look_at(const esp_model *model, bool training) {
  seen s = {.count = 0};
  esp_tape *tape = esp_tape_create();
  esp_tape_reset(tape, true);
  esp_tensor images = {.data = pixels, .rank = 4, .shape = {IMAGES, 8, 8, 3}};
  const esp_pass pass = {.training = training, .seed = 3, .step = 2};
  const esp_model_output output = esp_model_forward(model, tape, &images, &pass);
  assert_non_null(output.logits);
  s.count = (int)esp_tensor_count(output.logits);
  for (int i = 0; i < s.count; i++) s.logits[i] = (double)output.logits->data[i];
  s.loss_count = output.auxiliary.count;
  for (int i = 0; i < s.loss_count; i++) s.losses[i] = (double)output.auxiliary.loss[i].raw->data[0];
  static const int32_t labels[2 * IMAGES] = {0, 1, 2, 3, 4, 0, 0, 1, 2, 3, 4, 0};
  esp_tensor *task = esp_cross_entropy(tape, output.logits, &(esp_targets){.labels = labels});
  assert_int_equal(esp_tape_backward(tape, esp_total_loss(tape, task, &output.auxiliary)), ESP_OK);
  s.norm = gradient_norm(model);
  esp_tape_free(tape);
  return s;
}

static void expect_near(const char *name, const char *what, const double *a, const double *b, int count) {
  for (int i = 0; i < count; i++)
    if (!(fabs(a[i] - b[i]) <= 1e-5 * (1 + fabs(b[i]))))
      fail_msg("%s: %s %d is %.9g with masked experts and %.9g with removed ones", name, what, i, a[i], b[i]);
}

static void a_masked_expert_counts_as_a_removed_one(void **state) {
  (void)state;
  fill_normal(pixels, IMAGES * PIXELS, 9);
  for (int router = 0; router < ROUTERS; router++) {
    if (routers[router].members > 1) continue; /* whose experts can only be masked: below */
    esp_model *model = make_with(router), *masked = prune(model, router, ESP_TARGET_MASKED);
    esp_model *removed = prune(model, router, ESP_TARGET_REMOVED);
    for (int training = 0; training < 2; training++) {
      const seen one = look_at(masked, training), two = look_at(removed, training);
      assert_int_equal(one.loss_count, two.loss_count);
      expect_near(routers[router].name, "logit", one.logits, two.logits, one.count);
      expect_near(routers[router].name, "loss", one.losses, two.losses, one.loss_count);
      expect_near(routers[router].name, "gradient", &one.norm, &two.norm, 1);
    }
    esp_model_free(model);
    esp_model_free(masked);
    esp_model_free(removed);
  }
}

/* The members of an E3 with `experts` experts, of which `gone` are masked. */
static void route_members(esp_tape *tape, int experts, const int *gone, int gone_count, esp_routed *routed,
                          double losses[2]) {
  enum { TOKENS = 64, WHOLE = 8 };
  const esp_router_config config = {
      .noise = 1, .load_weight = 1, .capacity = 0.8, .evaluation_capacity = 0.8, .group_images = 4};
  esp_expert_layout *layout = esp_tape_take(tape, sizeof *layout);
  esp_expert_layout_full(layout, experts);
  static const int kept[] = {0, 2, 5, 6}; /* of the whole eight */
  esp_tensor *logits = esp_tape_tensor(tape, 2, (const int64_t[]){TOKENS, experts});
  esp_real whole[TOKENS * WHOLE];
  fill_normal(whole, TOKENS * WHOLE, 4);
  for (int i = 0; i < TOKENS * experts; i++) {
    const int e = experts == WHOLE ? i % experts : kept[i % experts];
    logits->data[i] = whole[i / experts * WHOLE + e];
  }
  for (int i = 0; i < gone_count; i++) layout->index[gone[i]] = ESP_EXPERT_MASKED;
  esp_route_request request = esp_plain_request(&config, layout, 1, TOKENS);
  request.members = 2;
  request.images = 16;
  request.training = true;
  request.seed = 8;
  *routed = (esp_routed){0};
  assert_non_null(esp_route(tape, logits, &request, routed));
  losses[0] = (double)esp_load_loss(tape, logits, routed->noisy, &request)->data[0];
  losses[1] = (double)esp_importance_loss(tape, logits, &request)->data[0];
}

/* Experts 1 and 3 of the first member and 4 and 7 of the second are masked, or were never there. */
static void members_with_masked_experts_are_smaller_members(void **state) {
  (void)state;
  esp_tape *tape = esp_tape_create();
  esp_tape_reset(tape, true);
  static const int gone[] = {1, 3, 4, 7}, kept[] = {0, 2, 5, 6};
  esp_routed masked, small;
  double one[2], two[2];
  route_members(tape, 8, gone, 4, &masked, one);
  route_members(tape, 4, NULL, 0, &small, two);
  expect_near("E3", "loss", one, two, 2);
  int left_out = 0;
  for (int64_t i = 0; i < small.routing->slots; i++) {
    assert_int_equal(masked.routing->choice[i], kept[small.routing->choice[i]]);
    assert_int_equal(masked.routing->row[i] < 0, small.routing->row[i] < 0);
    assert_true(masked.gates->data[i] == small.gates->data[i]);
    left_out += small.routing->row[i] < 0;
  }
  assert_in_range(left_out, 1, small.routing->slots - 1);
  esp_tape_free(tape);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(a_masked_expert_counts_as_a_removed_one),
      cmocka_unit_test(members_with_masked_experts_are_smaller_members),
  };
  return cmocka_run_group_tests_name("masked experts", tests, NULL, NULL);
}
