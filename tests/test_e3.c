/* label: short */
/* The efficient ensemble of experts, E3 (arXiv 2110.03360). */
#include "testing.h"

#include <espalier/layers.h>
#include <espalier/memory.h>
#include <espalier/ops.h>
#include <espalier/optimizer.h>
#include <espalier/parallel.h>

enum { BATCH = 6, SIDE = 8, PIXELS = SIDE * SIDE * 3, CLASSES = 5, EXPERTS = 8, TOKENS = 16 };

/* A dense block, then two mixtures; V-MoE's gates, noise, capacity and losses. */
static esp_model_config e3_config(int members) {
  esp_model_config c = esp_model_defaults;
  c.image_height = c.image_width = SIDE;
  c.image_channels = 3;
  c.classes = CLASSES;
  c.stem.patch = 2;
  c.width = 16;
  c.blocks = 3;
  c.heads = 2;
  c.layers[0] = ESP_LAYER_DENSE;
  c.layers[1] = c.layers[2] = ESP_LAYER_MOE;
  c.layers_count = 3;
  c.moe.experts = EXPERTS;
  c.moe.top_k = 1;
  c.moe.members = members;
  c.moe.hidden = 12;
  c.moe.router.renormalise = false;
  c.moe.router.noise = 1;
  c.moe.router.capacity = 1.05;
  c.moe.router.evaluation_capacity = 1.5;
  c.moe.router.importance_weight = c.moe.router.load_weight = 0.005;
  c.moe.router.balance_weight = 0;
  return c;
}

typedef struct setup {
  esp_model *model;
  esp_optimizer *optimizer;
  esp_tape *tape;
  esp_real pixels[BATCH * PIXELS];
  int32_t labels[BATCH];
} setup;

static setup *set_up(const esp_model_config *config) {
  setup *s = esp_alloc(1, sizeof *s);
  assert_non_null(s);
  s->tape = esp_tape_create();
  if (esp_model_create(&s->model, config, NULL, 3) != ESP_OK) fail_msg("%s", esp_error_message());
  assert_int_equal(esp_optimizer_create(&s->optimizer, &esp_optimizer_defaults, s->model->parameters), ESP_OK);
  fill_normal(s->model->head.weight->data, esp_tensor_count(s->model->head.weight), 8);
  fill_normal(s->pixels, BATCH * PIXELS, 1);
  for (int i = 0; i < BATCH; i++) s->labels[i] = i % CLASSES;
  return s;
}

static void tear_down(setup *s) {
  esp_optimizer_free(s->optimizer);
  esp_model_free(s->model);
  esp_tape_free(s->tape);
  esp_free(s);
}

static esp_model_output run(setup *s, esp_pass pass) {
  esp_tape_reset(s->tape, pass.training);
  esp_tensor *images = esp_tape_take(s->tape, sizeof *images);
  assert_non_null(images);
  *images = (esp_tensor){.data = s->pixels, .rank = 4, .shape = {BATCH, SIDE, SIDE, 3}};
  const esp_model_output output = esp_model_forward(s->model, s->tape, images, &pass);
  assert_int_equal(esp_tape_status(s->tape), ESP_OK);
  return output;
}

/* Each member is trained on the labels, repeated. */
static esp_real train_step(setup *s, uint64_t step) {
  const esp_model_output output = run(s, (esp_pass){.training = true, .seed = 5, .step = step});
  int32_t labels[EXPERTS * BATCH];
  for (int m = 0; m < output.members; m++) memcpy(labels + m * BATCH, s->labels, sizeof s->labels);
  esp_tensor *task = esp_cross_entropy(s->tape, output.logits, &(esp_targets){.labels = labels});
  esp_tensor *loss = esp_total_loss(s->tape, task, &output.auxiliary);
  assert_int_equal(esp_tape_backward(s->tape, loss), ESP_OK);
  esp_optimizer_step(s->optimizer, 1, esp_gradient_norm(s->model->parameters));
  return loss->data[0];
}

static void train_on(setup *s, int threads, int steps, esp_real *losses) {
  esp_threads_set(threads);
  for (int i = 0; i < steps; i++) losses[i] = train_step(s, (uint64_t)i);
  esp_threads_set(2);
}

/* V-MoE's layer, put together from the ops without the word member. */
static void run_v_moe(void *context, const esp_moe_record *record) {
  int *layers = context;
  const esp_moe *moe = record->layer;
  const int64_t tokens = record->input->shape[0];
  esp_tape *tape = esp_tape_create();
  assert_non_null(tape);
  esp_tape_reset(tape, false);
  esp_tensor input = {.data = record->input->data, .rank = 2, .shape = {tokens, record->input->shape[1]}};
  esp_route_request request = esp_plain_request(&moe->config.router, &moe->layout, moe->config.top_k, tokens);
  request.images = BATCH;
  esp_routed routed = {.routing = NULL};
  esp_tensor *gates = esp_route(tape, esp_linear_map(tape, &input, moe->router, NULL), &request, &routed);
  esp_tensor *rows = esp_dispatch(tape, &input, routed.routing);
  rows = esp_expert_bank_forward(&moe->bank, tape, rows, routed.routing->first_row, NULL, NULL);
  const esp_tensor *y = esp_combine(tape, rows, gates, routed.routing);
  assert_int_equal(esp_tape_status(tape), ESP_OK);
  assert_same_bits(moe->scope, record->output->data, y->data, esp_tensor_count(y));
  esp_tape_free(tape);
  ++*layers;
}

static void one_member_is_v_moe_bit_for_bit(void **state) {
  (void)state;
  const esp_model_config one = e3_config(1);
  setup *s = set_up(&one);
  int layers = 0;
  const esp_observer observer = {run_v_moe, &layers};
  const esp_model_output output = run(s, (esp_pass){.observer = &observer});
  assert_int_equal(layers, 2);
  assert_int_equal(output.members, 1);
  assert_int_equal(output.logits->shape[0], BATCH);                           /* nothing is repeated ... */
  assert_ptr_equal(esp_ensemble_prediction(s->tape, &output), output.logits); /* ... and nothing averaged */
  tear_down(s);
}

typedef struct checks {
  int layers, members;
  int64_t served;
} checks;

static void check_members(void *context, const esp_moe_record *record) {
  checks *c = context;
  const esp_routing *r = record->routing;
  const int64_t tokens = r->tokens / c->members;
  const int own = EXPERTS / c->members;
  assert_int_equal(r->tokens, c->members * BATCH * TOKENS);
  for (int64_t slot = 0; slot < r->slots; slot++) assert_int_equal(r->choice[slot] / own, r->token[slot] / tokens);
  for (int64_t t = 0; t < r->tokens; t++) { /* the gate matrix is block diagonal */
    double sum = 0;
    for (int e = 0; e < EXPERTS; e++) {
      const esp_real score = record->scores->data[t * EXPERTS + e];
      if (e / own != t / tokens) assert_true(score == 0);
      sum += (double)score;
    }
    assert_true(fabs(sum - 1) < 1e-5); /* softmax within the member */
  }
  for (int e = 0; e < EXPERTS; e++) c->served += r->served[e];
  c->layers++;
}

static void members_keep_to_their_own_experts(void **state) {
  (void)state;
  for (int members = 2; members <= 4; members *= 2) {
    const esp_model_config config = e3_config(members);
    setup *s = set_up(&config);
    for (int training = 0; training < 2; training++) {
      checks c = {.members = members};
      const esp_observer observer = {check_members, &c};
      run(s, (esp_pass){.training = training, .seed = 5, .observer = &observer});
      assert_int_equal(c.layers, 2);
      assert_true(c.served > 0);
    }
    tear_down(s);
  }
}

/* Experts of member 1 are replaced: what member 0 says stays as it is. */
static void a_member_does_not_see_the_others_experts(void **state) {
  (void)state;
  const esp_model_config config = e3_config(2);
  setup *s = set_up(&config);
  esp_real before[2 * BATCH * CLASSES];
  memcpy(before, run(s, (esp_pass){.training = false}).logits->data, sizeof before);
  for (int i = 0; i < 2; i++) {
    const esp_moe *moe = esp_model_moe(s->model, i);
    const int64_t half = esp_tensor_count(moe->bank.down) / 2, rows = esp_tensor_count(moe->router) / 2;
    fill_normal(moe->bank.down->data + half, half, 77);
    fill_normal(moe->router->data + rows, rows, 78);
  }
  const esp_tensor *after = run(s, (esp_pass){.training = false}).logits;
  assert_same_bits("member 0", after->data, before, BATCH * CLASSES);
  double change = 0;
  for (int i = BATCH * CLASSES; i < 2 * BATCH * CLASSES; i++)
    change = fmax(change, fabs((double)(after->data[i] - before[i])));
  assert_true(change > 1e-3);
  tear_down(s);
}

static void the_prediction_is_the_mean_probability(void **state) {
  (void)state;
  const esp_model_config config = e3_config(4);
  setup *s = set_up(&config);
  const esp_model_output output = run(s, (esp_pass){.training = false});
  const esp_tensor *prediction = esp_ensemble_prediction(s->tape, &output);
  assert_int_equal(output.members, 4);
  double expected[BATCH * CLASSES] = {0};
  for (int m = 0; m < 4; m++)
    for (int i = 0; i < BATCH; i++) {
      const esp_real *z = output.logits->data + (m * BATCH + i) * CLASSES;
      double sum = 0;
      for (int c = 0; c < CLASSES; c++) sum += exp((double)z[c]);
      for (int c = 0; c < CLASSES; c++) expected[i * CLASSES + c] += exp((double)z[c]) / sum / 4;
    }
  for (int i = 0; i < BATCH * CLASSES; i++) expected[i] = log(expected[i]);
  assert_close("prediction", prediction->data, expected, BATCH * CLASSES, 1e-5, 1e-6);
  tear_down(s);
}

/* The stem and the first, dense block work once an image; the mixtures once a member. */
static void tokens_are_repeated_at_the_first_mixture(void **state) {
  (void)state;
  const esp_model_config config = e3_config(2);
  setup *s = set_up(&config);
  for (int i = 0; i < 2; i++) { /* members alike from there on */
    const esp_moe *moe = esp_model_moe(s->model, i);
    const esp_tensor *const tensors[] = {moe->router, moe->bank.up, moe->bank.down};
    for (int t = 0; t < 3; t++) {
      const int64_t half = esp_tensor_count(tensors[t]) / 2;
      memcpy(tensors[t]->data + half, tensors[t]->data, (size_t)half * sizeof(esp_real));
    }
  }
  const esp_tensor *logits = run(s, (esp_pass){.training = false}).logits;
  assert_int_equal(logits->shape[0], 2 * BATCH);
  assert_same_bits("members", logits->data, logits->data + BATCH * CLASSES, BATCH * CLASSES);
  tear_down(s);
}

static void an_ensemble_is_the_same_with_one_thread_and_two(void **state) {
  (void)state;
  const esp_model_config config = e3_config(2);
  setup *one = set_up(&config), *two = set_up(&config);
  esp_real losses[2][3];
  train_on(one, 1, 3, losses[0]);
  train_on(two, 2, 3, losses[1]);
  assert_same_bits("losses", losses[0], losses[1], 3);
  assert_same_bits("parameters", esp_parameters_values(one->model->parameters),
                   esp_parameters_values(two->model->parameters), esp_parameters_size(one->model->parameters));
  tear_down(one);
  tear_down(two);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(one_member_is_v_moe_bit_for_bit),
      cmocka_unit_test(members_keep_to_their_own_experts),
      cmocka_unit_test(a_member_does_not_see_the_others_experts),
      cmocka_unit_test(the_prediction_is_the_mean_probability),
      cmocka_unit_test(tokens_are_repeated_at_the_first_mixture),
      cmocka_unit_test(an_ensemble_is_the_same_with_one_thread_and_two),
  };
  return cmocka_run_group_tests_name("E3", tests, NULL, NULL);
}
