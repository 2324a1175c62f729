/* label: medium */
/* Leaving out neurons of a trained model: filters in the forward pass, and the study made of them. */
#include "test_measure_models.h"

typedef struct sight {
  int calls;
  bool silence;
} sight;

static void silence(void *context, const esp_expert_bank *bank, const int64_t *first_row, const esp_bank_trace *trace) {
  sight *s = context;
  s->calls++;
  assert_int_equal(first_row[bank->experts], esp_tensor_rows(trace->selected));
  assert_ptr_not_equal(trace->selected, trace->activation);
  if (s->silence) memset(trace->selected->data, 0, (size_t)esp_tensor_count(trace->selected) * sizeof(esp_real));
}

static void forward(const esp_model *model, esp_tape *tape, const esp_neuron_filter *filter, esp_real *logits) {
  esp_tape_reset(tape, false);
  esp_tensor images = {.data = pixels, .rank = 4, .shape = {IMAGES, 8, 8, 3}};
  const esp_model_output output = esp_model_forward(model, tape, &images, &(esp_pass){.filter = filter});
  memcpy(logits, output.logits->data, (size_t)esp_tensor_count(output.logits) * sizeof *logits);
}

/* One that changes nothing leaves the bits; one that silences is heard in its block only. */
static void test_filters(void **state) {
  (void)state;
  esp_model_config config = small_config();
  esp_model *model = make(&config, NULL, 3);
  fill_normal(model->head.weight->data, esp_tensor_count(model->head.weight), 5);
  fill_normal(pixels, IMAGES * PIXELS, 4);
  esp_tape *tape = esp_tape_create();
  esp_real plain[IMAGES * 5], other[IMAGES * 5], both[IMAGES * 5];
  forward(model, tape, NULL, plain);
  sight s = {0};
  esp_neuron_filter filter = {silence, &s, -1};
  forward(model, tape, &filter, other);
  assert_int_equal(s.calls, 2);
  assert_same_bits("logits", other, plain, IMAGES * 5);
  s.silence = true;
  forward(model, tape, &filter, both);
  filter.block = 2;
  forward(model, tape, &filter, other);
  assert_int_equal(s.calls, 5);
  assert_memory_not_equal(other, plain, sizeof plain);
  assert_memory_not_equal(other, both, sizeof plain);
  filter.block = 0; /* dense */
  forward(model, tape, &filter, other);
  assert_int_equal(s.calls, 5);
  assert_same_bits("logits", other, plain, IMAGES * 5);
  esp_tape_free(tape);
  esp_model_free(model);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_filters)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
