/* label: short */
/* Routers: token choice with its settings and capacities, expert choice, Soft MoE, hash, even, the selection bias. */
#include "testing.h"

#include <espalier/layers.h>
#include <espalier/ops.h>

enum { EXPERTS = 8, TOKENS = 96, WIDTH = 16 };

typedef struct fixture {
  esp_tape *tape;
  esp_expert_layout layout;
  esp_router_config config;
  esp_route_request request;
  esp_tensor *logits;
  esp_routed routed;
} fixture;

static void set_up(fixture *f, int experts, int k, int64_t tokens) {
  *f = (fixture){.tape = esp_tape_create()};
  assert_non_null(f->tape);
  esp_expert_layout_full(&f->layout, experts);
  f->request = esp_plain_request(&f->config, &f->layout, k, tokens);
  f->logits = esp_tape_tensor(f->tape, 2, (const int64_t[]){tokens, experts});
  assert_non_null(f->logits);
  fill_normal(f->logits->data, tokens * experts, 5);
}

static void run_token_choice(fixture *f) { assert_non_null(esp_route(f->tape, f->logits, &f->request, &f->routed)); }

static void tear_down(fixture *f) { esp_tape_free(f->tape); }

static double gate(const fixture *f, int64_t slot) { return (double)f->routed.gates->data[slot]; }

/* --- row 1 ------------------------------------------------------------------------------------------------ */

static void orders_of_softmax_and_top_k_agree(void **state) {
  (void)state;
  fixture after, before;
  set_up(&after, EXPERTS, 3, TOKENS);
  set_up(&before, EXPERTS, 3, TOKENS);
  after.config.renormalise = true;
  before.config.score_selected_only = true;
  run_token_choice(&after);
  run_token_choice(&before);
  for (int64_t i = 0; i < 3 * TOKENS; i++) {
    assert_int_equal(after.routed.routing->choice[i], before.routed.routing->choice[i]);
    assert_true(fabs(gate(&after, i) - gate(&before, i)) < 1e-6);
  }
  tear_down(&after);
  tear_down(&before);
}

static void raw_gates_sum_to_less_than_one(void **state) {
  (void)state;
  fixture f;
  set_up(&f, EXPERTS, 3, TOKENS);
  run_token_choice(&f);
  for (int64_t t = 0; t < TOKENS; t++) assert_true(gate(&f, 3 * t) + gate(&f, 3 * t + 1) + gate(&f, 3 * t + 2) < 1);
  tear_down(&f);
}

static void sigmoid_gates_are_the_logits_own(void **state) {
  (void)state;
  fixture f;
  set_up(&f, EXPERTS, 2, TOKENS);
  f.config.score = ESP_SCORE_SIGMOID;
  run_token_choice(&f);
  for (int64_t i = 0; i < 2 * TOKENS; i++) {
    const double z = (double)f.logits->data[i / 2 * EXPERTS + f.routed.routing->choice[i]];
    assert_true(fabs(gate(&f, i) - 1 / (1 + exp(-z))) < 1e-6);
  }
  tear_down(&f);
}

/* --- row 2 ------------------------------------------------------------------------------------------------ */

static void equal_logits_go_to_the_first_experts(void **state) {
  (void)state;
  fixture f;
  set_up(&f, EXPERTS, 3, TOKENS);
  for (int64_t i = 0; i < TOKENS * EXPERTS; i++) f.logits->data[i] = 1;
  run_token_choice(&f);
  for (int64_t i = 0; i < 3 * TOKENS; i++) assert_int_equal(f.routed.routing->choice[i], i % 3);
  tear_down(&f);
}

/* --- row 4 ------------------------------------------------------------------------------------------------ */

static void capacities_of_v_moe(void **state) {
  (void)state;
  assert_int_equal(esp_expert_capacity(520, 2, 1.05, 8), 140);
  assert_int_equal(esp_expert_capacity(520, 2, 1.5, 8), 196);
  assert_int_equal(esp_expert_capacity(520, 2, ESP_UNLIMITED_CAPACITY, 8), 1040);
}

/* Six tokens, two experts, k = 2: capacity 6 x 2 x 0.6 / 2 = 3.6, rounded up to 4. First choices: tokens 0 to 4 expert
 * 0, token 5 expert 1. Expert 0 serves 0 to 3; expert 1 serves 5 first and then the second choices of 0, 1 and 2. */
static void first_choices_go_before_second_ones(void **state) {
  (void)state;
  fixture f;
  set_up(&f, 2, 2, 6);
  f.config.capacity = f.config.evaluation_capacity = 0.6;
  for (int t = 0; t < 6; t++) {
    f.logits->data[2 * t] = (esp_real)(t < 5);
    f.logits->data[2 * t + 1] = (esp_real)(t == 5);
  }
  run_token_choice(&f);
  const esp_routing *r = f.routed.routing;
  static const bool served[] = {true, true, true, true, true, true, true, false, false, false, true, false};
  for (int i = 0; i < 12; i++) assert_int_equal(r->row[i] >= 0, served[i]);
  assert_int_equal(r->wanted[0], 6);
  assert_int_equal(r->served[0], 4);
  assert_int_equal(r->served[1], 4);
  assert_int_equal(r->rows, 8);
  tear_down(&f);
}

/* Rows of ones: a token's output is the sum of the gates that were served. */
static void overflow_contributes_exactly_nothing(void **state) {
  (void)state;
  fixture f;
  set_up(&f, EXPERTS, 2, TOKENS);
  f.config.evaluation_capacity = 0.5;
  run_token_choice(&f);
  const esp_routing *r = f.routed.routing;
  esp_tensor *rows = esp_tape_tensor(f.tape, 2, (const int64_t[]){r->rows, 1});
  for (int64_t i = 0; i < r->rows; i++) rows->data[i] = 1;
  const esp_tensor *y = esp_combine(f.tape, rows, f.routed.gates, r);
  int unserved = 0;
  for (int64_t t = 0; t < TOKENS; t++) {
    esp_real sum = 0;
    for (int64_t i = 2 * t; i < 2 * t + 2; i++) {
      unserved += r->row[i] < 0;
      if (r->row[i] >= 0) sum += f.routed.gates->data[i];
    }
    assert_true(y->data[t] == sum);
  }
  assert_int_equal(unserved, 2 * TOKENS - r->rows);
  assert_true(unserved >= TOKENS - 4 * EXPERTS);
  tear_down(&f);
}

/* Three images of 32 tokens in groups of two: capacities hold in each group by itself. */
static void groups_have_their_own_capacity(void **state) {
  (void)state;
  fixture f;
  set_up(&f, EXPERTS, 1, TOKENS);
  f.request.images = 3;
  f.config.group_images = 2;
  f.config.evaluation_capacity = 1;
  for (int64_t t = 0; t < TOKENS; t++) f.logits->data[t * EXPERTS + 3] = 100;
  run_token_choice(&f);
  for (int64_t t = 0; t < TOKENS; t++)
    assert_int_equal(f.routed.routing->row[t] >= 0, t < 8 || (t >= 64 && t < 68)); /* 64 / 8 and 32 / 8 */
  tear_down(&f);
}

/* --- row 5 ------------------------------------------------------------------------------------------------ */

static void batch_priority_keeps_the_surest_tokens(void **state) {
  (void)state;
  fixture f;
  set_up(&f, 1, 1, 64);
  f.config.score = ESP_SCORE_SIGMOID;
  f.config.evaluation_capacity = 0.5;
  f.config.batch_priority = true;
  run_token_choice(&f);
  esp_real kept = 2, lost = -1;
  for (int64_t t = 0; t < 64; t++) {
    const esp_real g = f.routed.gates->data[t];
    if (f.routed.routing->row[t] >= 0) kept = g < kept ? g : kept;
    else lost = g > lost ? g : lost;
  }
  assert_int_equal(f.routed.routing->rows, 32);
  assert_true(kept > lost);
  tear_down(&f);
}

/* --- row 6 ------------------------------------------------------------------------------------------------ */

static void each_expert_takes_the_same_number(void **state) {
  (void)state;
  fixture f;
  set_up(&f, EXPERTS, 2, TOKENS);
  f.request.images = 3;
  f.config.group_images = 1;
  f.layout.index[2] = ESP_EXPERT_MASKED;
  f.layout.index[7] = 2;
  f.layout.stored = 7;
  assert_non_null(esp_route_experts(f.tape, f.logits, &f.request, &f.routed));
  const esp_routing *r = f.routed.routing;
  for (int e = 0; e < EXPERTS; e++) assert_int_equal(r->wanted[e], e == 2 ? 0 : 3 * 8); /* 32 x 2 / 8 of each image */
  for (int64_t i = 0; i < r->slots; i++) {
    const int64_t t = r->token[i];
    assert_true(i >= r->first_slot[t] && i < r->first_slot[t + 1]);
    int better = 0;
    for (int64_t s = t / 32 * 32; s < (t / 32 + 1) * 32; s++)
      better += f.routed.scores->data[s * EXPERTS + r->choice[i]] > f.routed.scores->data[t * EXPERTS + r->choice[i]];
    assert_true(better < 8);
  }
  tear_down(&f);
}

static void gates_over_the_chosen_tokens_sum_to_one(void **state) {
  (void)state;
  fixture f;
  set_up(&f, EXPERTS, 2, TOKENS);
  f.config.score_selected_only = true;
  assert_non_null(esp_route_experts(f.tape, f.logits, &f.request, &f.routed));
  double sums[EXPERTS] = {0};
  for (int64_t i = 0; i < f.routed.routing->slots; i++) sums[f.routed.routing->choice[i]] += gate(&f, i);
  for (int e = 0; e < EXPERTS; e++) assert_true(fabs(sums[e] - 1) < 1e-5);
  tear_down(&f);
}

/* --- layers ----------------------------------------------------------------------------------------------- */

typedef struct layer {
  esp_parameters *parameters;
  esp_moe moe;
  esp_tape *tape;
  esp_tensor *x, *y;
  esp_moe_record record;
  esp_auxiliary_losses losses;
} layer;

static void keep_record(void *context, const esp_moe_record *record) { ((layer *)context)->record = *record; }

static esp_model_config layer_config(esp_router_kind policy) {
  esp_model_config c = esp_model_defaults;
  c.image_height = c.image_width = 16;
  c.image_channels = 3;
  c.classes = 10;
  c.width = WIDTH;
  c.heads = 2;
  c.layers[0] = ESP_LAYER_MOE;
  c.layers_count = 1;
  c.moe.hidden = 12;
  c.moe.top_k = 1;
  c.moe.router = (esp_router_config){.policy = policy,
                                     .group_images = 2,
                                     .temperature = 0.1,
                                     .capacity = ESP_UNLIMITED_CAPACITY,
                                     .evaluation_capacity = ESP_UNLIMITED_CAPACITY};
  return c;
}

static void make_layer(layer *l, const esp_model_config *c, const esp_expert_layout *layout) {
  *l = (layer){.parameters = esp_parameters_create(), .tape = esp_tape_create()};
  assert_int_equal(esp_model_config_check(c), ESP_OK);
  assert_int_equal(esp_moe_declare(&l->moe, l->parameters, "moe",
                                   &(esp_moe_options){.config = c, .layout = layout, .residual_scale = 1}),
                   ESP_OK);
  assert_int_equal(esp_parameters_allocate(l->parameters, 3), ESP_OK);
}

/* Six images of 16 tokens. */
static void run_layer(layer *l, bool training) {
  const esp_observer observer = {keep_record, l};
  esp_tape_reset(l->tape, true);
  l->x = esp_tape_tensor(l->tape, 3, (const int64_t[]){6, 16, WIDTH});
  fill_normal(l->x->data, esp_tensor_count(l->x), 8);
  l->losses.count = 0;
  l->y = esp_moe_forward(&l->moe, l->tape, l->x, &(esp_pass){.training = training, .observer = &observer}, &l->losses);
  assert_non_null(l->y);
}

static void free_layer(layer *l) {
  esp_parameters_free(l->parameters);
  esp_tape_free(l->tape);
}

/* The double loop over tokens and slots of arXiv 2308.00951, section 2.1, with the experts' own results. */
static void soft_moe_is_its_formula(void **state) {
  (void)state;
  const esp_model_config c = layer_config(ESP_ROUTER_SOFT);
  layer l;
  make_layer(&l, &c, NULL);
  run_layer(&l, true);
  enum { SLOTS = 2 * EXPERTS };
  assert_int_equal(esp_tensor_count(l.moe.router), SLOTS * WIDTH);
  assert_int_equal(l.record.routing->rows, 6 * SLOTS);
  for (int n = 0; n < 6; n++) {
    double weights[16][SLOTS];
    for (int t = 0; t < 16; t++)
      for (int s = 0; s < SLOTS; s++) {
        weights[t][s] = 0;
        for (int j = 0; j < WIDTH; j++)
          weights[t][s] += (double)l.x->data[(n * 16 + t) * WIDTH + j] * (double)l.moe.router->data[s * WIDTH + j];
      }
    for (int t = 0; t < 16; t++)
      for (int j = 0; j < WIDTH; j++) {
        double sum = 0, y = 0;
        for (int s = 0; s < SLOTS; s++) sum += exp(weights[t][s]);
        for (int s = 0; s < SLOTS; s++) {
          const int32_t row = l.record.routing->row[n * SLOTS + s];
          y += exp(weights[t][s]) / sum * (double)l.record.experts.output->data[row * WIDTH + j];
        }
        assert_true(fabs(y - (double)l.y->data[(n * 16 + t) * WIDTH + j]) < 1e-5);
      }
  }
  free_layer(&l);
}

/* The gate of a slot is its weight summed over the tokens: an image's gates add up to its tokens. */
static void soft_moe_serves_every_slot(void **state) {
  (void)state;
  const esp_model_config c = layer_config(ESP_ROUTER_SOFT);
  layer l;
  make_layer(&l, &c, NULL);
  run_layer(&l, false);
  double gates = 0;
  for (int64_t i = 0; i < l.record.routing->slots; i++) gates += (double)l.record.gates->data[i];
  assert_true(fabs(gates - 6 * 16) < 1e-3);
  for (int e = 0; e < EXPERTS; e++) assert_int_equal(l.record.routing->served[e], 6 * 2);
  free_layer(&l);
}

static void hash_depends_on_the_position_only(void **state) {
  (void)state;
  const esp_model_config c = layer_config(ESP_ROUTER_HASH);
  layer l;
  make_layer(&l, &c, NULL);
  run_layer(&l, true);
  assert_null(l.moe.router);
  const esp_routing *r = l.record.routing;
  for (int64_t t = 0; t < r->tokens; t++) {
    assert_int_equal(r->choice[t], r->choice[t % 16]);
    assert_true(l.record.gates->data[t] == 1);
  }
  for (int e = 0; e < EXPERTS; e++) assert_int_equal(r->wanted[e], 6 * 2);
  free_layer(&l);
}

/* What is left of a hash layer keeps its positions; those of the removed expert go to the next one. */
static void hash_survives_the_removal_of_an_expert(void **state) {
  (void)state;
  const esp_model_config c = layer_config(ESP_ROUTER_HASH);
  layer whole, pruned;
  esp_expert_layout layout = {.experts = EXPERTS - 1, .stored = EXPERTS - 1};
  for (int i = 0; i < EXPERTS - 1; i++) {
    layout.index[i] = i;
    layout.original_ids[i] = i < 3 ? i : i + 1;
  }
  make_layer(&whole, &c, NULL);
  make_layer(&pruned, &c, &layout);
  run_layer(&whole, false);
  run_layer(&pruned, false);
  for (int64_t t = 0; t < whole.record.routing->tokens; t++) {
    const int32_t was = whole.record.routing->choice[t];
    const int32_t is = layout.original_ids[pruned.record.routing->choice[t]];
    assert_int_equal(is, was == 3 ? 4 : was);
  }
  free_layer(&whole);
  free_layer(&pruned);
}

static void even_assignment_is_even(void **state) {
  (void)state;
  esp_model_config c = layer_config(ESP_ROUTER_EVEN);
  c.moe.top_k = 2;
  layer l;
  make_layer(&l, &c, NULL);
  run_layer(&l, true);
  for (int e = 0; e < EXPERTS; e++) assert_int_equal(l.record.routing->wanted[e], 6 * 16 * 2 / EXPERTS);
  const esp_routing *r = l.record.routing;
  for (int64_t i = 0; i < r->slots; i++)
    assert_true(l.record.gates->data[i] == l.record.scores->data[r->token[i] * EXPERTS + r->choice[i]]);
  free_layer(&l);
}

/* The bias moves the choice, and not the gate. */
static void selection_bias_changes_choices_and_not_gates(void **state) {
  (void)state;
  fixture f;
  set_up(&f, EXPERTS, 1, TOKENS);
  esp_real bias[EXPERTS] = {0};
  bias[5] = 10;
  f.config.score = ESP_SCORE_SIGMOID;
  f.request.bias = bias;
  run_token_choice(&f);
  for (int64_t t = 0; t < TOKENS; t++) {
    assert_int_equal(f.routed.routing->choice[t], 5);
    assert_true(f.routed.gates->data[t] == f.routed.scores->data[t * EXPERTS + 5]);
  }
  tear_down(&f);
}

/* Logits that all prefer two experts: updates of the bias alone even the load out. */
static void selection_bias_evens_out_the_load(void **state) {
  (void)state;
  fixture f;
  set_up(&f, EXPERTS, 1, 64 * EXPERTS);
  esp_real bias[EXPERTS] = {0};
  for (int64_t t = 0; t < f.request.tokens; t++) f.logits->data[t * EXPERTS] += 3;
  f.config.score = ESP_SCORE_SIGMOID;
  f.request.bias = bias;
  run_token_choice(&f);
  const int64_t before = f.routed.routing->wanted[0];
  for (int step = 0; step < 400; step++) {
    run_token_choice(&f);
    esp_router_bias_update(bias, f.routed.routing, &f.layout, 0.002);
  }
  run_token_choice(&f);
  assert_true(before > 4 * 64);
  for (int e = 0; e < EXPERTS; e++) {
    assert_true(f.routed.routing->wanted[e] > 64 * 3 / 4);
    assert_true(f.routed.routing->wanted[e] < 64 * 5 / 4);
  }
  tear_down(&f);
}

/* Longer tokens and router vectors change nothing but rounding. */
static void cosine_logits_do_not_depend_on_lengths(void **state) {
  (void)state;
  esp_model_config c = layer_config(ESP_ROUTER_TOKEN_CHOICE);
  c.moe.router.cosine = true;
  layer l;
  make_layer(&l, &c, NULL);
  run_layer(&l, false);
  esp_real before[96 * EXPERTS];
  memcpy(before, l.record.logits->data, sizeof before);
  for (int64_t i = 0; i < esp_tensor_count(l.moe.router); i++) l.moe.router->data[i] *= 3;
  run_layer(&l, false);
  for (int i = 0; i < 96 * EXPERTS; i++) {
    assert_true(fabs((double)(before[i] - l.record.logits->data[i])) < 1e-4);
    assert_true(fabs((double)before[i]) < 10.001);
  }
  free_layer(&l);
}

/* --- refusals --------------------------------------------------------------------------------------------- */

#define REFUSES(text, policy_kind, change)                        \
  do {                                                            \
    esp_model_config c = layer_config(policy_kind);               \
    change;                                                       \
    assert_int_equal(esp_model_config_check(&c), ESP_ERR_CONFIG); \
    assert_non_null(strstr(esp_error_message(), text));           \
  } while (0)

static void senseless_settings_are_refused(void **state) {
  (void)state;
  REFUSES("top_k", ESP_ROUTER_TOKEN_CHOICE, c.moe.top_k = 9);
  REFUSES("no expert could serve", ESP_ROUTER_TOKEN_CHOICE, c.moe.router.capacity = 0);
  REFUSES("capacity", ESP_ROUTER_TOKEN_CHOICE, c.moe.router.capacity = -2);
  REFUSES("capacity", ESP_ROUTER_TOKEN_CHOICE, c.moe.router.evaluation_capacity = (double)NAN);
  REFUSES("members", ESP_ROUTER_TOKEN_CHOICE, c.moe.members = 3);
  REFUSES("members", ESP_ROUTER_TOKEN_CHOICE, c.moe.members = 0);
  REFUSES("each of the 4 members", ESP_ROUTER_TOKEN_CHOICE, (c.moe.members = 4, c.moe.top_k = 3));
  REFUSES("batch_priority", ESP_ROUTER_TOKEN_CHOICE, c.moe.router.batch_priority = true);
  REFUSES("noise", ESP_ROUTER_TOKEN_CHOICE, c.moe.router.load_weight = 0.1);
  REFUSES("temperature", ESP_ROUTER_TOKEN_CHOICE, (c.moe.router.cosine = true, c.moe.router.temperature = 0));
  REFUSES("entropy_weight", ESP_ROUTER_TOKEN_CHOICE, c.moe.router.entropy_weight = (double)INFINITY);
  REFUSES("one hash", ESP_ROUTER_HASH, c.moe.top_k = 2);
  REFUSES("no logits", ESP_ROUTER_HASH, c.moe.router.noise = 1);
  REFUSES("members", ESP_ROUTER_HASH, c.moe.members = 2);
  REFUSES("renormalise", ESP_ROUTER_EXPERT_CHOICE, c.moe.router.renormalise = true);
  REFUSES("capacity", ESP_ROUTER_EXPERT_CHOICE, c.moe.router.capacity = 1);
  REFUSES("bias_rate", ESP_ROUTER_EXPERT_CHOICE, c.moe.router.bias_rate = 0.1);
  REFUSES("members", ESP_ROUTER_SOFT, c.moe.members = 2);
  REFUSES("slots", ESP_ROUTER_SOFT, c.moe.router.slots = -1);
  REFUSES("only with model.moe.router.policy soft", ESP_ROUTER_TOKEN_CHOICE, c.moe.router.slots = 3);
  REFUSES("softmax", ESP_ROUTER_SOFT, c.moe.router.score = ESP_SCORE_SIGMOID);
  REFUSES("load_weight", ESP_ROUTER_EVEN, c.moe.router.load_weight = 1);
}

/* The names that settings take stand beside the schema, the policies in a table of their own. */
static void settings_name_the_rows_of_the_table(void **state) {
  (void)state;
  for (int kind = 0; kind < ESP_ROUTERS; kind++) {
    const char *name = esp_router_policy_of((esp_router_kind)kind)->name;
    char text[100];
    (void)snprintf(text, sizeof text, "{layers: [moe], moe: {router: {policy: %s}}}", name);
    esp_model_config config;
    assert_int_equal(esp_model_config_load(&config, "names", text), ESP_OK);
    assert_int_equal(config.moe.router.policy, kind);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(settings_name_the_rows_of_the_table),
      cmocka_unit_test(orders_of_softmax_and_top_k_agree),
      cmocka_unit_test(raw_gates_sum_to_less_than_one),
      cmocka_unit_test(sigmoid_gates_are_the_logits_own),
      cmocka_unit_test(equal_logits_go_to_the_first_experts),
      cmocka_unit_test(capacities_of_v_moe),
      cmocka_unit_test(first_choices_go_before_second_ones),
      cmocka_unit_test(overflow_contributes_exactly_nothing),
      cmocka_unit_test(groups_have_their_own_capacity),
      cmocka_unit_test(batch_priority_keeps_the_surest_tokens),
      cmocka_unit_test(each_expert_takes_the_same_number),
      cmocka_unit_test(gates_over_the_chosen_tokens_sum_to_one),
      cmocka_unit_test(soft_moe_is_its_formula),
      cmocka_unit_test(soft_moe_serves_every_slot),
      cmocka_unit_test(hash_depends_on_the_position_only),
      cmocka_unit_test(hash_survives_the_removal_of_an_expert),
      cmocka_unit_test(even_assignment_is_even),
      cmocka_unit_test(selection_bias_changes_choices_and_not_gates),
      cmocka_unit_test(selection_bias_evens_out_the_load),
      cmocka_unit_test(cosine_logits_do_not_depend_on_lengths),
      cmocka_unit_test(senseless_settings_are_refused),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
