/* label: medium */
/* Leaving out neurons of a trained model: filters in the forward pass, and the study made of them. */
#include "test_trained_model.h"

#include <espalier/parallel.h>

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

/* --- the study on a trained model ------------------------------------------------------------------------ */

static const char settings[] = TRAINED_SETTINGS("moe, mone", "experts: 4, top_k: 2, hidden: 16, neurons_kept: 0.5");

static double mean_loss(const esp_sparsify_point *points, int order) {
  double sum = 0;
  for (int i = 0; i < ESP_SPARSIFY_SHARES; i++) sum += points[order * ESP_SPARSIFY_SHARES + i].loss;
  return sum / ESP_SPARSIFY_SHARES;
}

/* Nothing left out: the bits of an evaluation without a filter. */
static void check_nothing_left_out(const trained *t, const esp_sparsify_options *options,
                                   const esp_sparsify_point *point) {
  esp_evaluation plain;
  assert_int_equal(esp_evaluate(t->model, t->dataset, &t->normalisation, &options->evaluation, &plain), ESP_OK);
  assert_memory_equal(&plain.loss, &point->loss, sizeof plain.loss);
  assert_memory_equal(&plain.accuracy, &point->accuracy, sizeof plain.accuracy);
  assert_true(point->active == 1);
}

static void check_curves(const esp_sparsify_point *points) {
  const esp_sparsify_point *smallest = points, *last = &points[ESP_SPARSIFY_SHARES - 1];
  for (int i = 1; i < ESP_SPARSIFY_SHARES; i++) {
    assert_true(smallest[i].active <= smallest[i - 1].active);
    /* Half of 16 neurons are 8, of 8 they are 4: rounding is at most half a neuron of 8. */
    assert_true(fabs(smallest[i].active - (1 - smallest[i].share)) <= 0.5 / 8 + 1e-9);
  }
  assert_true(last->loss > smallest[0].loss && smallest[9].loss > smallest[0].loss);
  assert_true(smallest[3].loss < last->loss && smallest[6].loss < last->loss);
  const double least = mean_loss(points, ESP_SPARSIFY_SMALLEST);
  const double largest = mean_loss(points, ESP_SPARSIFY_LARGEST), random = mean_loss(points, ESP_SPARSIFY_RANDOM);
  if (!(least < random && random < largest))
    fail_msg("mean losses: smallest %g, random %g, largest %g", least, random, largest);
  assert_true(mean_loss(points, ESP_SPARSIFY_CONTRIBUTION) < random);
}

static void sparsification_of_a_trained_model(void **state) {
  (void)state;
  trained t = train_quickly(settings, "synthetic:narrow");
  const esp_sparsify_options options = {
      .evaluation = {.split = ESP_TEST, .limit = 500}, .seed = 3, .first_layer = 1, .end_layer = 2};
  const int64_t count = esp_sparsify_count(&options);
  assert_int_equal(count, 2 * ESP_SPARSIFY_ORDERS * ESP_SPARSIFY_SHARES);
  esp_sparsify_point *points = esp_alloc((size_t)count, sizeof *points),
                     *again = esp_alloc((size_t)count, sizeof *again);
  esp_threads_set(2);
  assert_int_equal(esp_sparsify(t.model, t.dataset, &t.normalisation, &options, points), ESP_OK);
  check_nothing_left_out(&t, &options, &points[0]);
  check_curves(points);
  const esp_sparsify_point *alone = &points[ESP_SPARSIFY_ORDERS * ESP_SPARSIFY_SHARES];
  assert_true(alone[0].layer == 1 && alone[0].loss == points[0].loss);
  assert_true(mean_loss(alone, ESP_SPARSIFY_LARGEST) < mean_loss(points, ESP_SPARSIFY_LARGEST));
  esp_threads_set(1);
  assert_int_equal(esp_sparsify(t.model, t.dataset, &t.normalisation, &options, again), ESP_OK);
  for (int64_t i = 0; i < count; i++)
    assert_true(points[i].loss == again[i].loss && points[i].active == again[i].active);
  esp_free(points);
  esp_free(again);
  esp_model_free(t.model);
  esp_dataset_close(t.dataset);
}

/* Whichever of the last allocations fails, among them the filter's, no point is told that was not sparsified. */
static void lack_of_memory_is_a_status(void **state) {
  (void)state;
  esp_model_config config = small_config();
  config.image_height = config.image_width = 32;
  esp_model *model = make(&config, NULL, 3);
  fill_parameters(model->parameters, 0.4);
  esp_dataset *dataset;
  assert_int_equal(esp_dataset_open(&dataset, "synthetic:narrow"), ESP_OK);
  esp_normalisation normalisation;
  esp_dataset_normalisation(dataset, &normalisation);
  const esp_sparsify_options options = {
      .evaluation = {.split = ESP_TEST, .limit = 5}, .seed = 3, .first_layer = 0, .end_layer = 0};
  esp_sparsify_point expected[ESP_SPARSIFY_ORDERS * ESP_SPARSIFY_SHARES], points[sizeof expected / sizeof *expected];
  assert_int_equal(esp_sparsify(model, dataset, &normalisation, &options, expected), ESP_OK);
  const uint64_t before = esp_allocation_count();
  assert_int_equal(esp_sparsify(model, dataset, &normalisation, &options, points), ESP_OK);
  const int64_t all = (int64_t)(esp_allocation_count() - before);
  for (int64_t calls = all - 1; calls > all - 8; calls--) {
    esp_alloc_fail_after(calls);
    const esp_status status = esp_sparsify(model, dataset, &normalisation, &options, points);
    esp_alloc_fail_after(-1);
    assert_int_equal(status, ESP_ERR_MEMORY);
  }
  assert_int_equal(esp_sparsify(model, dataset, &normalisation, &options, points), ESP_OK);
  assert_true(points[5].loss == expected[5].loss);
  esp_dataset_close(dataset);
  esp_model_free(model);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_filters),
                                     cmocka_unit_test(sparsification_of_a_trained_model),
                                     cmocka_unit_test(lack_of_memory_is_a_status)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
