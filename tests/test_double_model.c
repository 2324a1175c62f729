/* label: short */
/* The gradients of whole models against central differences, in double precision: a random choice of elements of
 * every parameter. Where a selection of experts or neurons differs between the two sides of an element there is no
 * derivative to compare with; such elements are skipped, and must be few. */
#include "testing.h"

#include <espalier/layers.h>
#include <espalier/memory.h>
#include <espalier/ops.h>

enum { SIDE = 8, CHANNELS = 2, BATCH = 3, CLASSES = 5, ELEMENTS = 12, MOST_SLOTS = 4096 };
static const double step = 1e-5, tolerance = 1e-8;

static esp_model_config make_config(esp_layer_kind first, esp_layer_kind second, esp_activation_kind activation) {
  return (esp_model_config){
      .image_height = SIDE,
      .image_width = SIDE,
      .image_channels = CHANNELS,
      .classes = CLASSES,
      .stem =
          {.kind = ESP_STEM_PATCH, .patch = 4, .channels = {3}, .channels_count = 1, .pools = {2, 2}, .pools_count = 2},
      .width = 8,
      .blocks = 2,
      .mixing = ESP_MIXING_ATTENTION,
      .heads = 2,
      .kernel = 3,
      .positions = true,
      .feed_forward = {.activation = activation, .bias = true, .hidden = 6},
      .layers = {first, second},
      .layers_count = 2,
      .moe = {.experts = 4,
              .top_k = 2,
              .members = 1,
              .hidden = 6,
              .shared_hidden = 3,
              .neurons_kept = 0.5,
              .router = {.renormalise = true,
                         .capacity = ESP_UNLIMITED_CAPACITY,
                         .evaluation_capacity = ESP_UNLIMITED_CAPACITY,
                         .balance_weight = 0.3,
                         .z_weight = 0.2}}};
}

/* What the mixture layers selected in one forward pass, as a list of numbers. */
typedef struct selection {
  int count;
  int32_t entry[MOST_SLOTS];
} selection;

static void note(selection *s, int32_t entry) {
  assert_true(s->count < MOST_SLOTS);
  s->entry[s->count++] = entry;
}

static void note_selection(void *context, const esp_moe_record *record) {
  const int64_t slots = record->routing->tokens * record->routing->k;
  for (int64_t i = 0; i < slots; i++) note(context, record->routing->choice[i]);
  if (record->layer->kind != ESP_LAYER_MONE) return;
  for (int64_t i = 0; i < esp_tensor_count(record->experts.selected); i++)
    note(context, record->experts.selected->data[i] != 0);
}

typedef struct checker {
  esp_model *model;
  esp_tape *tape;
  selection *selection;
  int checked, skipped;
  double worst;
} checker;

static esp_tensor *run(checker *c, bool record) {
  const esp_observer observer = {note_selection, c->selection};
  static const int32_t labels[BATCH] = {3, 0, 4};
  c->selection->count = 0;
  esp_tape_reset(c->tape, record);
  esp_tensor *x = esp_tape_tensor(c->tape, 4, (const int64_t[]){BATCH, SIDE, SIDE, CHANNELS});
  fill_normal(x->data, esp_tensor_count(x), 1);
  const esp_pass pass = {.training = true, .seed = 5, .step = 9, .observer = &observer};
  const esp_model_output out = esp_model_forward(c->model, c->tape, x, &pass);
  esp_tensor *task = esp_cross_entropy(c->tape, out.logits, &(esp_targets){.labels = labels, .smoothing = 0.1});
  assert_int_equal(out.auxiliary.count, 2 * esp_model_moe_count(c->model));
  esp_tensor *loss = esp_total_loss(c->tape, task, &out.auxiliary);
  assert_int_equal(esp_tape_status(c->tape), ESP_OK);
  return loss;
}

/* The loss with `element` at `value`. */
static double loss_at(checker *c, esp_real *element, double value) {
  const double kept = *element;
  *element = value;
  const double loss = run(c, false)->data[0];
  *element = kept;
  return loss;
}

static void check_element(checker *c, const esp_parameter *p, int64_t i, const selection *usual) {
  esp_real *element = &p->tensor.data[i];
  const double above = loss_at(c, element, *element + step);
  bool same = memcmp(usual, c->selection, sizeof *usual) == 0;
  const double below = loss_at(c, element, *element - step);
  same = same && memcmp(usual, c->selection, sizeof *usual) == 0;
  if (!same) {
    c->skipped++;
    return;
  }
  const double numeric = (above - below) / (2 * step), analytic = p->tensor.grad[i];
  const double scale = fmax(1, fmax(fabs(numeric), fabs(analytic))), error = fabs(numeric - analytic) / scale;
  if (!(error <= tolerance))
    fail_msg("%s[%d]: the gradient is %.12g, the difference quotient %.12g", p->tensor.name, (int)i, analytic, numeric);
  c->worst = fmax(c->worst, error);
  c->checked++;
}

static void check_model(const esp_model_config *config) {
  checker c = {.tape = esp_tape_create(), .selection = esp_alloc(1, sizeof(selection))};
  selection *usual = esp_alloc(1, sizeof *usual);
  assert_true(c.tape && c.selection && usual);
  if (esp_model_create(&c.model, config, NULL, 1) != ESP_OK) fail_msg("%s", esp_error_message());
  fill_parameters(c.model->parameters, 0.4);
  assert_int_equal(esp_tape_backward(c.tape, run(&c, true)), ESP_OK);
  *usual = *c.selection;
  for (int64_t i = 0; i < esp_parameters_count(c.model->parameters); i++) {
    const esp_parameter *p = esp_parameters_at(c.model->parameters, i);
    assert_true(p->tensor.grad_written == (p->kind != ESP_KIND_STATE));
  }
  esp_random random = esp_random_stream(TESTING_SEED, ESP_PURPOSE_TEST, 2);
  for (int64_t i = 0; i < esp_parameters_count(c.model->parameters); i++) {
    const esp_parameter *p = esp_parameters_at(c.model->parameters, i);
    const int before = c.checked;
    if (p->kind == ESP_KIND_STATE) continue;
    for (int n = 0; n < ELEMENTS; n++) check_element(&c, p, esp_random_below(&random, (uint32_t)p->count), usual);
    if (c.checked - before < ELEMENTS / 2) fail_msg("%s: too few elements could be checked", p->tensor.name);
  }
  print_message("%d elements checked, %d skipped, largest error %.1e\n", c.checked, c.skipped, c.worst);
  assert_true(c.skipped * 20 <= c.checked);
  esp_model_free(c.model);
  esp_tape_free(c.tape);
  esp_free(c.selection);
  esp_free(usual);
}

static void moe(void **state) {
  (void)state;
  const esp_model_config c = make_config(ESP_LAYER_MOE, ESP_LAYER_MOE, ESP_ACTIVATION_SWIGLU);
  check_model(&c);
}

static void mone(void **state) {
  (void)state;
  const esp_model_config c = make_config(ESP_LAYER_MONE, ESP_LAYER_MONE, ESP_ACTIVATION_SWIGLU);
  check_model(&c);
}

static void sigmoid_scores_with_noise_and_dropout(void **state) {
  (void)state;
  esp_model_config c = make_config(ESP_LAYER_MOE, ESP_LAYER_MONE, ESP_ACTIVATION_GELU);
  c.norm = ESP_NORM_RMS;
  c.dropout = 0.2;
  c.moe.router.score = ESP_SCORE_SIGMOID;
  c.moe.router.noise = 1;
  check_model(&c);
}

static void scores_of_the_selected_only(void **state) {
  (void)state;
  esp_model_config c = make_config(ESP_LAYER_MONE, ESP_LAYER_MOE, ESP_ACTIVATION_SWIGLU);
  c.stem.kind = ESP_STEM_CONVOLUTION;
  c.mixing = ESP_MIXING_CONVOLUTION;
  c.moe.router.score_selected_only = true;
  c.moe.router.renormalise = false;
  check_model(&c);
}

static void one_expert_a_token(void **state) {
  (void)state;
  esp_model_config c = make_config(ESP_LAYER_MOE, ESP_LAYER_MOE, ESP_ACTIVATION_GELU);
  c.moe.top_k = 1;
  c.moe.router.renormalise = false;
  check_model(&c);
}

static void batch_norms(void **state) {
  (void)state;
  esp_model_config c = make_config(ESP_LAYER_MOE, ESP_LAYER_MONE, ESP_ACTIVATION_GELU);
  c.stem.kind = ESP_STEM_CONVOLUTION;
  c.stem.extra_convolutions = 1;
  c.mixing = ESP_MIXING_CONVOLUTION;
  c.norm = ESP_NORM_BATCH;
  check_model(&c);
}

/* As on a processor without bf16. */
static void bf16_is_refused(void **state) {
  (void)state;
  assert_int_equal(esp_precision_check(ESP_FP32), ESP_OK);
  assert_int_equal(esp_precision_check(ESP_BF16), ESP_ERR_CONFIG);
  assert_non_null(strstr(esp_error_message(), "bf16 needs a processor with AVX-512 BF16"));
  assert_non_null(strstr(esp_error_message(), "Use fp32"));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(moe),
      cmocka_unit_test(mone),
      cmocka_unit_test(sigmoid_scores_with_noise_and_dropout),
      cmocka_unit_test(scores_of_the_selected_only),
      cmocka_unit_test(one_expert_a_token),
      cmocka_unit_test(batch_norms),
      cmocka_unit_test(bf16_is_refused),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
