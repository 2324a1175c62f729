/* label: short */
/* A MoNE's experts by gathering the selected neurons, against the same by masking all of them. */
#include "testing.h"

#include <espalier/layers.h>
#include <espalier/parallel.h>

enum { EXPERTS = 4, MOST_ROWS = 90 };

/* Rows of each expert: one token in two experts, an expert without any, more rows than a tile. */
static const int64_t loads[][EXPERTS] = {
    {1, 0, 0, 0}, {0, 1, 0, 1}, {3, 0, 40, 2}, {0, 0, 0, MOST_ROWS}, {0, 33, 32, 0}};
enum { LOADS = sizeof loads / sizeof loads[0] };

typedef struct bank_case {
  int width, hidden;
  const int32_t *widths;
  esp_activation_kind activation;
  bool bias;
  bool whole_numbers; /* small ones, so that sums are exact and many magnitudes are equal */
} bank_case;

typedef struct bank_fixture {
  esp_parameters *parameters;
  esp_expert_bank bank;
  esp_tape *tape;
  esp_real x[MOST_ROWS * 300];
} bank_fixture;

static void fill(esp_real *values, int64_t count, uint64_t stream, bool whole_numbers) {
  fill_normal(values, count, stream);
  for (int64_t i = 0; whole_numbers && i < count; i++) values[i] = rintf(values[i]);
}

static void begin(bank_fixture *f, const bank_case *c) {
  const esp_feed_forward_config config = {.activation = c->activation, .bias = c->bias};
  f->parameters = esp_parameters_create();
  f->tape = esp_tape_create();
  assert_int_equal(ESP_OK, esp_expert_bank_declare(&f->bank, f->parameters, "bank",
                                                   &(esp_expert_bank_options){.experts = EXPERTS,
                                                                              .width = c->width,
                                                                              .hidden = c->hidden,
                                                                              .widths = c->widths,
                                                                              .config = &config,
                                                                              .residual_scale = 1}));
  assert_int_equal(ESP_OK, esp_parameters_allocate(f->parameters, 1));
  for (int64_t i = 0; i < esp_parameters_count(f->parameters); i++) {
    const esp_parameter *p = esp_parameters_at(f->parameters, i);
    if (c->whole_numbers || strstr(p->tensor.name, "bias"))
      fill(p->tensor.data, p->count, 100 + (uint64_t)i, c->whole_numbers);
  }
  fill(f->x, MOST_ROWS * c->width, 1, c->whole_numbers);
}

static void end(bank_fixture *f) {
  esp_parameters_free(f->parameters);
  esp_tape_free(f->tape);
}

static void sum_loads(const int64_t *load, int64_t *first_row) {
  first_row[0] = 0;
  for (int e = 0; e < EXPERTS; e++) first_row[e + 1] = first_row[e] + load[e];
}

static void compare(bank_fixture *f, const bank_case *c, const int64_t *load, int64_t kept) {
  static double expected[MOST_ROWS * 300];
  int64_t first_row[EXPERTS + 1];
  sum_loads(load, first_row);
  esp_tensor x = {.data = f->x, .rank = 2, .shape = {first_row[EXPERTS], c->width}};
  esp_tape_reset(f->tape, false);
  const esp_tensor *masked =
      esp_expert_bank_forward(&f->bank, f->tape, &x, first_row, &(esp_neuron_options){.kept = kept}, NULL);
  const esp_tensor *gathered = esp_expert_bank_gather(&f->bank, f->tape, &x, first_row, kept);
  assert_non_null(masked);
  assert_true(gathered && esp_same_shape(masked, gathered));
  for (int64_t i = 0; i < esp_tensor_count(masked); i++) expected[i] = (double)masked->data[i];
  char what[96];
  snprintf(what, sizeof what, "activation %d, width %d, %lld rows, %lld kept", (int)c->activation, c->width,
           (long long)first_row[EXPERTS], (long long)kept);
  assert_close(what, gathered->data, expected, esp_tensor_count(masked), 1e-5, 1e-5);
}

static void compare_all(const bank_case *c) {
  static bank_fixture f;
  const int64_t kept[] = {1, 7, c->hidden / 2, c->hidden - 1};
  begin(&f, c);
  for (int l = 0; l < LOADS; l++)
    for (int k = 0; k < 4; k++) compare(&f, c, loads[l], kept[k]);
  end(&f);
}

static void gathered_experts_equal_masked_ones(void **state) {
  (void)state;
  static const esp_activation_kind kinds[] = {ESP_ACTIVATION_SWIGLU, ESP_ACTIVATION_GLU,  ESP_ACTIVATION_GEGLU,
                                              ESP_ACTIVATION_RELU,   ESP_ACTIVATION_GELU, ESP_ACTIVATION_SQUARED_REGLU};
  for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++)
    for (int bias = 0; bias < 2; bias++)
      compare_all(&(bank_case){.width = 33, .hidden = 45, .activation = kinds[i], .bias = bias});
}

/* So wide that the neurons go through in blocks, and that those of few rows are shared out. */
static void blocks_and_parts_of_wide_experts(void **state) {
  (void)state;
  compare_all(&(bank_case){.width = 300, .hidden = 500, .activation = ESP_ACTIVATION_SWIGLU, .bias = true});
}

static void ties_go_to_the_lower_index_in_both(void **state) {
  (void)state;
  compare_all(
      &(bank_case){.width = 5, .hidden = 45, .activation = ESP_ACTIVATION_REGLU, .bias = true, .whole_numbers = true});
  compare_all(&(bank_case){.width = 5, .hidden = 45, .activation = ESP_ACTIVATION_RELU, .whole_numbers = true});
}

static void experts_of_different_widths(void **state) {
  (void)state;
  static const int32_t widths[EXPERTS] = {9, 45, 3, 20};
  compare_all(
      &(bank_case){.width = 17, .hidden = 45, .widths = widths, .activation = ESP_ACTIVATION_SWIGLU, .bias = true});
}

static void test_bits_do_not_depend_on_threads(void **state) {
  (void)state;
  static bank_fixture f;
  static esp_real one[MOST_ROWS * 300];
  const bank_case c = {.width = 300, .hidden = 500, .activation = ESP_ACTIVATION_SWIGLU, .bias = true};
  begin(&f, &c);
  for (int l = 0; l < LOADS; l++)
    for (int threads = 1; threads <= 2; threads++) {
      int64_t first_row[EXPERTS + 1];
      sum_loads(loads[l], first_row);
      esp_tensor x = {.data = f.x, .rank = 2, .shape = {first_row[EXPERTS], c.width}};
      esp_threads_set(threads);
      esp_tape_reset(f.tape, false);
      const esp_tensor *y = esp_expert_bank_gather(&f.bank, f.tape, &x, first_row, 150);
      if (threads == 1) memcpy(one, y->data, (size_t)esp_tensor_count(y) * sizeof *one);
      else assert_same_bits("threads", one, y->data, esp_tensor_count(y));
    }
  esp_threads_set(0);
  end(&f);
}

/* --- which way is taken ------------------------------------------------------------------------------------------- */

static void test_the_rule(void **state) {
  (void)state;
  assert_true(esp_gathering_pays(1, 1024, 256, 512, true));
  assert_true(esp_gathering_pays(1000, 1024, 64, 128, true));
  assert_false(esp_gathering_pays(1000, 1024, 256, 512, true));
  assert_false(esp_gathering_pays(1, 1024, 256, 1000, true));
  /* Never with more neurons, or more rows, where it does not with fewer. */
  static const int64_t widths[] = {64, 128, 256, 512, 1024};
  for (int w = 0; w < 5; w++)
    for (int64_t kept = 2; kept <= 256; kept++)
      for (int rows = 1; rows < 64; rows++)
        for (int gated = 0; gated < 2; gated++) {
          if (!esp_gathering_pays(rows, 256, widths[w], kept, gated)) continue;
          assert_true(esp_gathering_pays(rows, 256, widths[w], kept - 1, gated));
          assert_true(rows == 1 || esp_gathering_pays(rows - 1, 256, widths[w], kept, gated));
        }
}

static void count_records(void *context, const esp_moe_record *record) {
  assert_non_null(record->experts.selected); /* all that is promised to observers is there */
  ++*(int *)context;
}

static const esp_real *run_layer(const esp_model *model, esp_tape *tape, bool record, const esp_pass *pass) {
  static esp_auxiliary_losses losses;
  static esp_real input[3 * 24];
  fill_normal(input, 3 * 24, 7);
  esp_tape_reset(tape, record);
  losses.count = 0;
  esp_tensor x = {.data = input, .rank = 3, .shape = {1, 3, 24}};
  const esp_tensor *y = esp_moe_forward(esp_model_moe(model, 0), tape, &x, pass, &losses);
  assert_non_null(y);
  return y->data;
}

/* Neuron 3 of every expert, whose gate is 0 and which is never selected, has not-a-number in down: only a path that
 * does not touch it stays finite. */
static void poison(esp_model *model) {
  const esp_moe *moe = esp_model_moe(model, 0);
  for (int e = 0; e < moe->bank.experts; e++) {
    const esp_expert_weights w = esp_expert_weights_of(&moe->bank, e);
    for (int i = 0; i < moe->bank.width; i++)
      w.gate[3 * moe->bank.width + i] = 0, w.down[3 * moe->bank.width + i] = NAN;
  }
}

static bool gathers(const esp_model *model, esp_tape *tape, bool record, const esp_pass *pass) {
  const esp_real *y = run_layer(model, tape, record, pass);
  int finite = 0;
  for (int i = 0; i < 3 * 24; i++) finite += isfinite(y[i]) != 0;
  assert_true(finite == 0 || finite == 3 * 24);
  return finite > 0;
}

static void test_the_path_of_a_pass(void **state) {
  (void)state;
  esp_model_config c = esp_model_defaults;
  c.image_height = c.image_width = 8, c.image_channels = 3, c.classes = 10;
  c.width = 24, c.heads = 4, c.blocks = 1, c.layers[0] = ESP_LAYER_MONE, c.layers_count = 1;
  c.moe.hidden = 160, c.moe.neurons_kept = 0.1;
  esp_model *model;
  esp_tape *tape = esp_tape_create();
  assert_int_equal(ESP_OK, esp_model_create(&model, &c, NULL, 1));
  poison(model);
  int records = 0;
  const esp_observer observer = {count_records, &records};
  assert_true(gathers(model, tape, false, &(esp_pass){.neurons = ESP_NEURONS_GATHERED}));
  assert_true(gathers(model, tape, false, &(esp_pass){.neurons = ESP_NEURONS_BY_RULE}));
  assert_false(gathers(model, tape, false, &(esp_pass){.neurons = ESP_NEURONS_MASKED}));
  assert_false(gathers(model, tape, true, &(esp_pass){.neurons = ESP_NEURONS_GATHERED}));
  assert_false(gathers(model, tape, false, &(esp_pass){.neurons = ESP_NEURONS_GATHERED, .observer = &observer}));
  assert_int_equal(records, 1);
  esp_model_free(model);
  esp_tape_free(tape);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(gathered_experts_equal_masked_ones),
      cmocka_unit_test(blocks_and_parts_of_wide_experts),
      cmocka_unit_test(ties_go_to_the_lower_index_in_both),
      cmocka_unit_test(experts_of_different_widths),
      cmocka_unit_test(test_bits_do_not_depend_on_threads),
      cmocka_unit_test(test_the_rule),
      cmocka_unit_test(test_the_path_of_a_pass),
  };
  return cmocka_run_group_tests_name("gathered experts", tests, NULL, NULL);
}
