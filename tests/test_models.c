/* label: short */
/* What must hold of whole models, in training too, whatever their numbers are. */
#include "testing.h"

#include <espalier/layers.h>
#include <espalier/memory.h>
#include <espalier/ops.h>
#include <espalier/optimizer.h>
#include <espalier/parallel.h>

enum { SIDE = 16, CHANNELS = 3, BATCH = 16, CLASSES = 10, PIXELS = SIDE * SIDE * CHANNELS };

static esp_model_config model_config(esp_stem_kind stem, esp_mixing_kind mixing) {
  return (esp_model_config){
      .image_height = SIDE,
      .image_width = SIDE,
      .image_channels = CHANNELS,
      .classes = CLASSES,
      .stem = {.kind = stem, .patch = 4, .channels = {8}, .channels_count = 1, .pools = {2, 2}, .pools_count = 2},
      .width = 32,
      .blocks = 3,
      .mixing = mixing,
      .heads = 2,
      .kernel = 3,
      .positions = true,
      .norm = ESP_NORM_LAYER,
      .feed_forward = {.activation = ESP_ACTIVATION_SWIGLU, .bias = true, .hidden = 48},
      .layers = {ESP_LAYER_MOE, ESP_LAYER_MONE, ESP_LAYER_DENSE},
      .layers_count = 3,
      .moe = {.experts = 4,
              .top_k = 2,
              .members = 1,
              .hidden = 24,
              .shared_hidden = 8,
              .neurons_kept = 0.5,
              .router = {.renormalise = true,
                         .capacity = ESP_UNLIMITED_CAPACITY,
                         .evaluation_capacity = ESP_UNLIMITED_CAPACITY,
                         .noise = 1,
                         .balance_weight = 0.01,
                         .z_weight = 0.001}}};
}

static esp_model_config vit_config(void) { return model_config(ESP_STEM_PATCH, ESP_MIXING_ATTENTION); }

typedef struct trainer {
  esp_model *model;
  esp_optimizer *optimizer;
  esp_tape *tape;
  esp_real *images;
  int32_t *labels;
  int64_t batch;
} trainer;

/* A model and `batch` random images with random labels. */
static trainer make_trainer(const esp_model_config *c, uint64_t seed, int64_t batch) {
  trainer t = {.tape = esp_tape_create(), .batch = batch};
  esp_optimizer_config optimizer = esp_optimizer_defaults;
  optimizer.learning_rate = 3e-3;
  if (esp_model_create(&t.model, c, NULL, seed) != ESP_OK) fail_msg("%s", esp_error_message());
  assert_int_equal(esp_optimizer_create(&t.optimizer, &optimizer, t.model->parameters), ESP_OK);
  t.images = esp_alloc((size_t)(batch * PIXELS), sizeof *t.images);
  t.labels = esp_alloc((size_t)batch, sizeof *t.labels);
  assert_true(t.images && t.labels);
  fill_normal(t.images, batch * PIXELS, 3);
  esp_random random = esp_random_stream(TESTING_SEED, ESP_PURPOSE_TEST, 4);
  for (int64_t i = 0; i < batch; i++) t.labels[i] = (int32_t)esp_random_below(&random, CLASSES);
  return t;
}

static void free_trainer(trainer *t) {
  esp_optimizer_free(t->optimizer);
  esp_model_free(t->model);
  esp_tape_free(t->tape);
  esp_free(t->images);
  esp_free(t->labels);
}

static esp_model_output run_model(const trainer *t, bool training, uint64_t step) {
  esp_tape_reset(t->tape, training);
  esp_tensor *x = esp_tape_tensor(t->tape, 4, (const int64_t[]){t->batch, SIDE, SIDE, CHANNELS});
  assert_non_null(x);
  memcpy(x->data, t->images, (size_t)(t->batch * PIXELS) * sizeof *x->data);
  const esp_model_output out =
      esp_model_forward(t->model, t->tape, x, &(esp_pass){.training = training, .seed = 11, .step = step});
  assert_int_equal(esp_tape_status(t->tape), ESP_OK);
  return out;
}

/* Returns the total loss. */
static esp_real train_step(trainer *t, uint64_t step) {
  const esp_model_output out = run_model(t, true, step);
  esp_tensor *task = esp_cross_entropy(t->tape, out.logits, &(esp_targets){.labels = t->labels});
  esp_tensor *loss = esp_total_loss(t->tape, task, &out.auxiliary);
  assert_int_equal(esp_tape_backward(t->tape, loss), ESP_OK);
  esp_optimizer_step(t->optimizer, 1, esp_gradient_norm(t->model->parameters));
  esp_model_update_router_biases(t->model, &out.auxiliary);
  esp_batch_norm_update(t->tape, 0.1);
  return loss->data[0];
}

static int count_correct(const trainer *t) {
  const esp_real *logits = run_model(t, false, 0).logits->data;
  int correct = 0;
  for (int64_t i = 0; i < t->batch; i++) {
    int32_t best;
    esp_top_k_of(logits + i * CLASSES, CLASSES, 1, &best);
    correct += best == t->labels[i];
  }
  return correct;
}

static const esp_activation_kind activations[] = {ESP_ACTIVATION_RELU, ESP_ACTIVATION_GELU, ESP_ACTIVATION_SWIGLU,
                                                  ESP_ACTIVATION_SQUARED_RELU, ESP_ACTIVATION_REGLU};
enum { ACTIVATIONS = sizeof activations / sizeof activations[0] };

static const struct {
  const char *name;
  esp_stem_kind stem;
  esp_mixing_kind mixing;
} architectures[] = {{"ViT", ESP_STEM_PATCH, ESP_MIXING_ATTENTION},
                     {"convolutions", ESP_STEM_CONVOLUTION, ESP_MIXING_CONVOLUTION},
                     {"MLP", ESP_STEM_FLATTEN, ESP_MIXING_NONE}};
enum { ARCHITECTURES = sizeof architectures / sizeof architectures[0] };

/* Parameters, optimiser state and losses of three steps. */
static void check_threads(const esp_model_config *c, const char *name) {
  trainer one = make_trainer(c, 1, BATCH), two = make_trainer(c, 1, BATCH);
  for (uint64_t step = 0; step < 3; step++) {
    esp_threads_set(1);
    const esp_real loss = train_step(&one, step);
    esp_threads_set(2);
    const esp_real same = train_step(&two, step);
    assert_same_bits(name, &loss, &same, 1);
  }
  const esp_parameters *a = one.model->parameters, *b = two.model->parameters;
  assert_same_bits(name, esp_parameters_values(a), esp_parameters_values(b), esp_parameters_size(a));
  const char *state;
  for (int i = 0; i < 2; i++)
    assert_same_bits(name, esp_optimizer_state(one.optimizer, i, &state), esp_optimizer_state(two.optimizer, i, &state),
                     esp_parameters_size(a));
  free_trainer(&one);
  free_trainer(&two);
}

static void threads_do_not_matter(void **state) {
  (void)state;
  const int threads = esp_threads();
  for (int i = 0; i < ARCHITECTURES; i++)
    for (int norm = 0; norm < 3; norm++)
      for (int j = 0; j < ACTIVATIONS; j++) {
        esp_model_config c = model_config(architectures[i].stem, architectures[i].mixing);
        c.norm = (esp_norm_kind)norm;
        c.stem.extra_convolutions = norm;
        c.stem.whitening = 3 * norm;
        c.feed_forward.activation = activations[j];
        c.dropout = 0.1;
        check_threads(&c, architectures[i].name);
      }
  esp_threads_set(threads);
}

static void steps_after_the_first_allocate_nothing(void **state) {
  (void)state;
  for (int i = 0; i < ARCHITECTURES; i++) {
    const esp_model_config c = model_config(architectures[i].stem, architectures[i].mixing);
    trainer t = make_trainer(&c, 1, BATCH);
    train_step(&t, 0);
    const uint64_t allocations = esp_allocation_count();
    for (uint64_t step = 1; step < 4; step++) train_step(&t, step);
    assert_int_equal(esp_allocation_count(), allocations);
    free_trainer(&t);
  }
}

static void random_images_are_learnt_by_heart(void **state) {
  (void)state;
  for (int i = 0; i < ARCHITECTURES; i++) {
    const esp_model_config c = model_config(architectures[i].stem, architectures[i].mixing);
    trainer t = make_trainer(&c, 1, 64);
    uint64_t step = 0;
    while (step < 300 && (step % 10 || count_correct(&t) < 64)) train_step(&t, step++);
    if (count_correct(&t) < 64) fail_msg("%s: %d of 64 after 300 steps", architectures[i].name, count_correct(&t));
    print_message("%s: 64 of 64 after %d steps\n", architectures[i].name, (int)step);
    free_trainer(&t);
  }
}

static void evaluating_twice_gives_the_same_bits(void **state) {
  (void)state;
  esp_model_config c = vit_config();
  c.dropout = 0.3;
  trainer t = make_trainer(&c, 1, BATCH);
  train_step(&t, 0); /* the head starts at zero: before it all logits are */
  esp_real first[BATCH * CLASSES];
  memcpy(first, run_model(&t, false, 0).logits->data, sizeof first);
  assert_same_bits("logits", run_model(&t, false, 1).logits->data, first, BATCH * CLASSES);
  assert_memory_not_equal(run_model(&t, true, 1).logits->data, first, sizeof first);
  free_trainer(&t);
}

/* The difference of the first token's noises of the first two experts, for each mixture layer in turn. */
typedef struct noises {
  int count;
  double difference[8];
} noises;

static void note_noise(void *context, const esp_moe_record *r) {
  noises *n = context;
  const esp_real *scores = r->scores->data, *logits = r->logits->data;
  n->difference[n->count++] = log((double)scores[0] / (double)scores[1]) - ((double)logits[0] - (double)logits[1]);
}

static void each_layer_and_step_has_its_own_noise(void **state) {
  (void)state;
  const esp_model_config c = vit_config();
  trainer t = make_trainer(&c, 1, BATCH);
  noises n = {.count = 0};
  const esp_observer observer = {note_noise, &n};
  const esp_pass passes[] = {{.training = true, .seed = 11, .step = 0, .observer = &observer},
                             {.training = true, .seed = 11, .step = 1, .observer = &observer},
                             {.training = true, .seed = 12, .step = 0, .observer = &observer}};
  for (int i = 0; i < 3; i++) {
    esp_tape_reset(t.tape, false);
    esp_tensor *x = esp_tape_tensor(t.tape, 4, (const int64_t[]){1, SIDE, SIDE, CHANNELS});
    memcpy(x->data, t.images, PIXELS * sizeof *x->data);
    esp_model_forward(t.model, t.tape, x, &passes[i]);
  }
  assert_int_equal(n.count, 6);
  for (int i = 0; i < 6; i++)
    for (int j = 0; j < i; j++) assert_true(fabs(n.difference[i] - n.difference[j]) > 1e-4);
  free_trainer(&t);
}

static int64_t equal_experts(const esp_parameter *p) {
  const int64_t size = p->count / p->tensor.shape[0];
  int64_t equal = 0;
  for (int64_t e = 1; e < p->tensor.shape[0]; e++)
    equal += memcmp(p->tensor.data, p->tensor.data + e * size, (size_t)size * sizeof(esp_real)) == 0;
  return equal;
}

static void identical_experts_grow_apart(void **state) {
  (void)state;
  for (int identical = 0; identical < 2; identical++) {
    esp_model_config c = vit_config();
    c.moe.identical_experts = identical;
    trainer t = make_trainer(&c, 1, BATCH);
    const esp_parameter *up = esp_parameters_find(t.model->parameters, "blocks.0.moe.experts.gate_up");
    const esp_parameter *down = esp_parameters_find(t.model->parameters, "blocks.1.moe.experts.down");
    assert_true(up && down);
    assert_int_equal(equal_experts(up), identical ? c.moe.experts - 1 : 0);
    assert_int_equal(equal_experts(down), identical ? c.moe.experts - 1 : 0);
    for (uint64_t step = 0; step < 10; step++) train_step(&t, step);
    assert_int_equal(equal_experts(up), 0);
    assert_int_equal(equal_experts(down), 0);
    free_trainer(&t);
  }
}

/* Trains with `patterns` frozen; frozen parameters must keep their bits and all others must move. */
static void check_freezing(const esp_model_config *c, const char *patterns, int64_t frozen) {
  trainer t = make_trainer(c, 1, BATCH), fresh = make_trainer(c, 1, BATCH);
  int64_t found = 0;
  assert_int_equal(esp_parameters_freeze(t.model->parameters, patterns), ESP_OK);
  for (uint64_t step = 0; step < 3; step++) train_step(&t, step);
  for (int64_t i = 0; i < esp_parameters_count(t.model->parameters); i++) {
    const esp_parameter *p = esp_parameters_at(t.model->parameters, i);
    const esp_parameter *q = esp_parameters_at(fresh.model->parameters, i);
    const bool same = memcmp(p->tensor.data, q->tensor.data, (size_t)p->count * sizeof(esp_real)) == 0;
    if (same != p->tensor.frozen) fail_msg("%s %s", p->tensor.name, same ? "did not learn" : "is frozen and moved");
    found += p->tensor.frozen;
  }
  assert_int_equal(found, frozen);
  free_trainer(&t);
  free_trainer(&fresh);
}

static void frozen_parameters_stay(void **state) {
  (void)state;
  const esp_model_config c = vit_config();
  check_freezing(&c, "", 0);
  check_freezing(&c, "stem.*,blocks.*.router", 3 + 2);
  check_freezing(&c, "blocks.*.experts.*,head.bias", 2 * 4 + 1);
}

/* Selection biases and running averages move without gradients, and stay all the same. */
static void frozen_state_stays(void **state) {
  (void)state;
  esp_model_config c = vit_config();
  c.norm = ESP_NORM_BATCH;
  c.moe.router.bias_rate = 0.01;
  check_freezing(&c, "", 0);
  check_freezing(&c, "*.router_bias", 2);
  check_freezing(&c, "*.mean,*.variance", 2 * (2 * c.blocks + 1));
  check_freezing(&c, "blocks.0.*router*,norm.mean", 2 + 1);
}

static void a_frozen_model_stays(void **state) {
  (void)state;
  const esp_model_config c = vit_config();
  trainer t = make_trainer(&c, 1, BATCH), fresh = make_trainer(&c, 1, BATCH);
  assert_int_equal(esp_parameters_freeze(t.model->parameters, "*"), ESP_OK);
  train_step(&t, 0);
  assert_same_bits("values", esp_parameters_values(t.model->parameters), esp_parameters_values(fresh.model->parameters),
                   esp_parameters_size(t.model->parameters));
  free_trainer(&t);
  free_trainer(&fresh);
}

/* How many parameters of `a` are in `b` with the same shape; these must start alike. */
static int64_t common_start(const esp_model *a, const esp_model *b) {
  int64_t common = 0;
  for (int64_t i = 0; i < esp_parameters_count(a->parameters); i++) {
    const esp_parameter *p = esp_parameters_at(a->parameters, i);
    const esp_parameter *q = esp_parameters_find(b->parameters, p->tensor.name);
    if (!q || !esp_same_shape(&p->tensor, &q->tensor)) continue;
    assert_same_bits(p->tensor.name, p->tensor.data, q->tensor.data, p->count);
    common++;
  }
  return common;
}

static void models_start_alike_where_they_agree(void **state) {
  (void)state;
  const esp_model_config c = vit_config();
  esp_model_config dense = c;
  dense.layers[0] = dense.layers[1] = ESP_LAYER_DENSE;
  esp_model *a, *same, *other, *changed;
  assert_int_equal(esp_model_create(&a, &c, NULL, 1), ESP_OK);
  assert_int_equal(esp_model_create(&same, &c, NULL, 1), ESP_OK);
  assert_int_equal(esp_model_create(&other, &c, NULL, 2), ESP_OK);
  assert_int_equal(esp_model_create(&changed, &dense, NULL, 1), ESP_OK);
  const int64_t size = esp_parameters_size(a->parameters);
  assert_same_bits("same seed", esp_parameters_values(a->parameters), esp_parameters_values(same->parameters), size);
  for (int64_t i = 0; i < esp_parameters_count(a->parameters); i++) {
    const esp_parameter *p = esp_parameters_at(a->parameters, i), *q = esp_parameters_at(other->parameters, i);
    const bool same_bits = memcmp(p->tensor.data, q->tensor.data, (size_t)p->count * sizeof(esp_real)) == 0;
    assert_int_equal(same_bits, p->deviation <= 0);
  }
  /* stem 3, three mixings of 6, the dense block's norm 2 and 4, the last norm 2, the head 2 */
  assert_int_equal(common_start(a, changed), 3 + 3 * 6 + 6 + 4);
  esp_model *const models[] = {a, same, other, changed};
  for (size_t i = 0; i < sizeof models / sizeof models[0]; i++) esp_model_free(models[i]);
}

/* Scopes and shapes do not tell a MoNE from an MoE, so comparisons of the two begin at the same point. */
static void moe_and_mone_start_alike(void **state) {
  (void)state;
  esp_model_config c = vit_config();
  esp_model *models[2];
  for (int i = 0; i < 2; i++) {
    c.layers[0] = i ? ESP_LAYER_MONE : ESP_LAYER_MOE;
    c.layers_count = 1;
    assert_int_equal(esp_model_create(&models[i], &c, NULL, 1), ESP_OK);
    assert_int_equal(esp_model_moe_count(models[i]), 3);
    assert_string_equal(esp_model_moe(models[i], 1)->scope, "blocks.1.moe");
  }
  const int64_t count = esp_parameters_count(models[0]->parameters);
  assert_int_equal(esp_parameters_count(models[1]->parameters), count);
  assert_int_equal(common_start(models[0], models[1]), count);
  for (int i = 0; i < 2; i++) esp_model_free(models[i]);
}

/* Entries count mixtures, not blocks, and begin anew where they end. */
static void neurons_kept_per_layer(void **state) {
  (void)state;
  esp_model_config c = vit_config();
  const esp_layer_kind kinds[] = {ESP_LAYER_MONE, ESP_LAYER_DENSE, ESP_LAYER_MOE, ESP_LAYER_MONE, ESP_LAYER_MONE};
  memcpy(c.layers, kinds, sizeof kinds);
  c.layers_count = 5;
  c.blocks = 5;
  c.moe.hidden = 30;
  c.moe.neurons_kept_per_layer_count = 3;
  memcpy(c.moe.neurons_kept_per_layer, ((const double[]){7, 0.5, 0.34}), 3 * sizeof(double));
  const int expected[] = {7, 30, 30, 11, 7};
  esp_model *model;
  assert_int_equal(esp_model_create(&model, &c, NULL, 1), ESP_OK);
  for (int i = 0; i < 5; i++) assert_int_equal(esp_neurons_kept(&c, i), expected[i]);
  for (int i = 0; i < 5; i++)
    if (i != 1) assert_int_equal(model->blocks[i].moe.neurons_kept, expected[i]);
  esp_model_free(model);
  char *text;
  esp_model_config back;
  assert_int_equal(esp_model_config_save(&text, &c), ESP_OK);
  assert_int_equal(esp_model_config_load(&back, "settings", text), ESP_OK);
  for (int i = 0; i < 5; i++) assert_int_equal(esp_neurons_kept(&back, i), expected[i]);
  esp_free(text);
}

/* --- settings that cannot be a model ------------------------------------------------------------------------------ */

static void assert_refused(const esp_model_config *c, const char *key) {
  esp_model *model;
  assert_int_equal(esp_model_create(&model, c, NULL, 1), ESP_ERR_CONFIG);
  assert_null(model);
  if (!strstr(esp_error_message(), key)) fail_msg("the message does not name %s: %s", key, esp_error_message());
}

#define REFUSES(key, change)           \
  do {                                 \
    esp_model_config c = vit_config(); \
    change;                            \
    assert_refused(&c, key);           \
  } while (0)

static void impossible_models_are_refused(void **state) {
  (void)state;
  REFUSES("classes", c.classes = 0);
  REFUSES("width", c.width = -1);
  REFUSES("heads", c.heads = 5);
  REFUSES("heads", c.heads = 0);
  REFUSES("blocks", c.blocks = ESP_MAX_BLOCKS + 1);
  REFUSES("layers", c.layers_count = 0);
  REFUSES("dropout", c.dropout = 1);
  REFUSES("dropout", c.dropout = (double)NAN);
  REFUSES("top_k", c.moe.top_k = c.moe.experts + 1);
  REFUSES("experts", c.moe.experts = ESP_MAX_EXPERTS + 1);
  REFUSES("neurons_kept", c.moe.neurons_kept = 0);
  REFUSES("neurons_kept", c.moe.neurons_kept = (double)NAN);
  const double entries[] = {0, -1, 1.5, NAN, INFINITY, vit_config().moe.hidden + 1};
  for (size_t i = 0; i < sizeof entries / sizeof entries[0]; i++)
    REFUSES("entry 2 of model.moe.neurons_kept_per_layer", c.moe.neurons_kept_per_layer_count = 2;
            c.moe.neurons_kept_per_layer[0] = 1; c.moe.neurons_kept_per_layer[1] = entries[i]);
  REFUSES("shared_hidden", c.moe.shared_hidden = -1);
  REFUSES("balance_weight", c.moe.router.balance_weight = -1);
  REFUSES("noise", c.moe.router.noise = (double)NAN);
  REFUSES("z_weight", c.moe.router.z_weight = (double)INFINITY);
  REFUSES("stem", c.stem.patch = 5);
  REFUSES("kernel", (c.mixing = ESP_MIXING_CONVOLUTION, c.kernel = 4));
  REFUSES("pools", (c.stem.kind = ESP_STEM_CONVOLUTION, c.stem.pools_count = 1));
  REFUSES("extra_convolutions", (c.stem.kind = ESP_STEM_CONVOLUTION, c.stem.extra_convolutions = 4));
  REFUSES("whitening", (c.stem.kind = ESP_STEM_CONVOLUTION, c.stem.whitening = 28));
  REFUSES("whitening", (c.stem.kind = ESP_STEM_CONVOLUTION, c.stem.whitening = -1));
  REFUSES("pools", (c.stem.kind = ESP_STEM_CONVOLUTION, c.stem.pools[0] = c.stem.pools[1] = 1 << 20));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(threads_do_not_matter),
      cmocka_unit_test(steps_after_the_first_allocate_nothing),
      cmocka_unit_test(random_images_are_learnt_by_heart),
      cmocka_unit_test(evaluating_twice_gives_the_same_bits),
      cmocka_unit_test(each_layer_and_step_has_its_own_noise),
      cmocka_unit_test(identical_experts_grow_apart),
      cmocka_unit_test(frozen_parameters_stay),
      cmocka_unit_test(frozen_state_stays),
      cmocka_unit_test(a_frozen_model_stays),
      cmocka_unit_test(models_start_alike_where_they_agree),
      cmocka_unit_test(moe_and_mone_start_alike),
      cmocka_unit_test(neurons_kept_per_layer),
      cmocka_unit_test(impossible_models_are_refused),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
