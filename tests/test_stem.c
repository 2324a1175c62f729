/* label: short */
/* Batch norm and its averages, the stages of a convolution stem, and the whitening convolution before them. */
#include "testing.h"

#include <espalier/core.h>
#include <espalier/cost.h>
#include <espalier/train.h>

enum { ROWS = 300, WIDTH = 5, COMPONENTS = 4 };

/* --- batch norm -------------------------------------------------------------------------------------------- */

/* A norm over [ROWS, WIDTH], its gain and bias not the usual ones, columns far from 0 and of different spread. */
typedef struct subject {
  esp_parameters *parameters;
  esp_norm norm;
  esp_tape *tape;
  esp_tensor *x;
} subject;

static void fill_columns(esp_tensor *x, uint64_t stream) {
  fill_normal(x->data, esp_tensor_count(x), stream);
  for (int64_t i = 0; i < esp_tensor_count(x); i++) {
    const int column = (int)(i % WIDTH);
    x->data[i] = (esp_real)(1 << column) * x->data[i] + (esp_real)(100 * (column - 2));
  }
}

static subject make_subject(void) {
  subject s = {.parameters = esp_parameters_create(), .tape = esp_tape_create()};
  assert_int_equal(esp_norm_declare(&s.norm, s.parameters, "norm", ESP_NORM_BATCH, WIDTH), ESP_OK);
  assert_int_equal(esp_parameters_allocate(s.parameters, 1), ESP_OK);
  fill_normal(s.norm.gain->data, WIDTH, 1);
  fill_normal(s.norm.bias->data, WIDTH, 2);
  s.x = esp_tape_tensor(s.tape, 2, (const int64_t[]){ROWS, WIDTH});
  fill_columns(s.x, 3);
  return s;
}

static void free_subject(subject *s) {
  esp_tape_free(s->tape);
  esp_parameters_free(s->parameters);
}

static void column_moments(const esp_tensor *x, int column, double *mean, double *variance) {
  *mean = *variance = 0;
  for (int r = 0; r < ROWS; r++) *mean += (double)x->data[r * WIDTH + column] / ROWS;
  for (int r = 0; r < ROWS; r++) {
    const double d = (double)x->data[r * WIDTH + column] - *mean;
    *variance += d * d / ROWS;
  }
}

static void normalised(const subject *s, int column, double mean, double variance, double expected[ROWS * WIDTH]) {
  for (int r = 0; r < ROWS; r++)
    expected[r * WIDTH + column] =
        ((double)s->x->data[r * WIDTH + column] - mean) / sqrt(variance + 1e-5) * (double)s->norm.gain->data[column] +
        (double)s->norm.bias->data[column];
}

static void batch_norm_is_the_formula_and_keeps_averages(void **state) {
  (void)state;
  subject s = make_subject();
  double expected[ROWS * WIDTH], means[WIDTH], variances[WIDTH];
  const esp_tensor *y = esp_norm_forward(&s.norm, s.tape, s.x, true);
  for (int j = 0; j < WIDTH; j++) {
    column_moments(s.x, j, &means[j], &variances[j]);
    normalised(&s, j, means[j], variances[j], expected);
    means[j] *= 0.25; /* from 0, and 1 for the variance, a quarter of the way */
    variances[j] = 0.75 + 0.25 * variances[j] * ROWS / (ROWS - 1);
  }
  /* x - mean has the rounding of a float near 200, the smallest deviation is 1. */
  assert_close("training", y->data, expected, ROWS * WIDTH, 1e-5, 1e-4);
  esp_batch_norm_update(s.tape, 0.25);
  assert_close("mean", s.norm.mean->data, means, WIDTH, 1e-5, 1e-5);
  assert_close("variance", s.norm.variance->data, variances, WIDTH, 1e-4, 0);
  y = esp_norm_forward(&s.norm, s.tape, s.x, false);
  for (int j = 0; j < WIDTH; j++) normalised(&s, j, means[j], variances[j], expected);
  assert_close("evaluation", y->data, expected, ROWS * WIDTH, 1e-5, 1e-3);
  free_subject(&s);
}

/* Frozen, it is in training what it is in evaluation, and its averages stay. */
static void a_frozen_batch_norm_stays_what_it_is(void **state) {
  (void)state;
  subject s = make_subject();
  esp_real before[WIDTH];
  memcpy(before, s.norm.mean->data, sizeof before);
  assert_int_equal(esp_parameters_freeze(s.parameters, "norm.*"), ESP_OK);
  s.x->requires_grad = true;
  const esp_tensor *training = esp_norm_forward(&s.norm, s.tape, s.x, true);
  const esp_tensor *evaluation = esp_norm_forward(&s.norm, s.tape, s.x, false);
  assert_same_bits("frozen", training->data, evaluation->data, ROWS * WIDTH);
  esp_batch_norm_update(s.tape, 0.5);
  assert_same_bits("mean", s.norm.mean->data, before, WIDTH);
  free_subject(&s);
}

/* --- whitening --------------------------------------------------------------------------------------------- */

static esp_model_config stem_config(int whitening, int extra) {
  esp_model_config c = esp_model_defaults;
  c.stem = (esp_stem_config){.kind = ESP_STEM_CONVOLUTION,
                             .channels = {6},
                             .channels_count = 1,
                             .pools = {2, 2},
                             .pools_count = 2,
                             .extra_convolutions = extra,
                             .whitening = whitening};
  c.norm = ESP_NORM_BATCH;
  c.width = 8;
  c.blocks = 1;
  c.mixing = ESP_MIXING_CONVOLUTION;
  c.kernel = 3;
  c.feed_forward.hidden = c.moe.hidden = 8;
  return c;
}

static esp_dataset *data;
static esp_normalisation normalisation;

static int open_data(void **state) {
  (void)state;
  if (esp_dataset_open(&data, "synthetic:narrow") != ESP_OK) return -1;
  esp_dataset_normalisation(data, &normalisation);
  return 0;
}

static int close_data(void **state) {
  (void)state;
  esp_dataset_close(data);
  return 0;
}

static esp_model *model_for_data(const esp_model_config *of) {
  const esp_dataset_info *info = esp_dataset_info_of(data);
  esp_model_config c = *of;
  esp_model *model;
  c.image_height = info->height;
  c.image_width = info->width;
  c.image_channels = info->channels;
  c.classes = info->classes;
  if (esp_model_create(&model, &c, NULL, 1) != ESP_OK) fail_msg("%s", esp_error_message());
  return model;
}

/* Second moments of the first components' outputs over all inner pixels of many training images, the mean taken off. */
static void output_covariance(const esp_model *model, double covariance[COMPONENTS * COMPONENTS]) {
  enum { SAMPLE = 2000 };
  esp_tape *tape = esp_tape_create();
  double sums[COMPONENTS] = {0}, count = 0;
  const esp_model_config *c = &model->config;
  memset(covariance, 0, sizeof(double[COMPONENTS * COMPONENTS]));
  for (int i = 0; i < SAMPLE; i++) {
    esp_tape_reset(tape, false);
    esp_tensor *x = esp_tape_tensor(tape, 4, (const int64_t[]){1, c->image_height, c->image_width, c->image_channels});
    esp_augment_image(data, ESP_TRAIN, i, &(esp_augment_options){.normalisation = &normalisation, .seed = 1}, x->data);
    const esp_tensor *y = esp_convolution(tape, x, model->stem.whitening, NULL, 1, 0);
    for (int64_t p = 0; p < y->shape[1] * y->shape[2]; p++, count++)
      for (int a = 0; a < COMPONENTS; a++) {
        const esp_real *v = y->data + p * y->shape[3];
        sums[a] += (double)v[a];
        for (int b = 0; b < COMPONENTS; b++) covariance[a * COMPONENTS + b] += (double)v[a] * (double)v[b];
      }
  }
  for (int a = 0; a < COMPONENTS; a++)
    for (int b = 0; b < COMPONENTS; b++)
      covariance[a * COMPONENTS + b] = covariance[a * COMPONENTS + b] / count - sums[a] * sums[b] / count / count;
  esp_tape_free(tape);
}

/* Other images than it was computed from: a tenth of the variance for that. */
static void whitened_patches_have_unit_covariance(void **state) {
  (void)state;
  const esp_model_config c = stem_config(COMPONENTS, 0);
  esp_model *model = model_for_data(&c);
  double covariance[COMPONENTS * COMPONENTS];
  assert_int_equal(esp_whiten(model, data, &normalisation, 7), ESP_OK);
  output_covariance(model, covariance);
  for (int a = 0; a < COMPONENTS; a++)
    for (int b = 0; b < COMPONENTS; b++) {
      const float expected = a == b ? 1 : 0;
      assert_float_equal(covariance[a * COMPONENTS + b], expected, 0.1);
    }
  const esp_real *w = model->stem.whitening->data;
  const int64_t half = esp_tensor_count(model->stem.whitening) / 2;
  for (int64_t i = 0; i < half; i++) assert_true(w[half + i] == -w[i]);
  esp_model_free(model);
}

static void whitening_is_done_once_and_keyed_by_the_seed(void **state) {
  (void)state;
  const esp_model_config c = stem_config(COMPONENTS, 0);
  esp_model *a = model_for_data(&c), *b = model_for_data(&c);
  const int64_t count = esp_tensor_count(a->stem.whitening);
  assert_int_equal(esp_whiten(a, data, &normalisation, 7), ESP_OK);
  assert_int_equal(esp_whiten(b, data, &normalisation, 7), ESP_OK);
  assert_same_bits("the same seed", a->stem.whitening->data, b->stem.whitening->data, count);
  assert_int_equal(esp_whiten(b, data, &normalisation, 8), ESP_OK);
  assert_same_bits("done before", a->stem.whitening->data, b->stem.whitening->data, count);
  memset(b->stem.whitening->data, 0, (size_t)count * sizeof(esp_real));
  assert_int_equal(esp_whiten(b, data, &normalisation, 8), ESP_OK);
  assert_true(memcmp(a->stem.whitening->data, b->stem.whitening->data, (size_t)count * sizeof(esp_real)) != 0);
  esp_model_free(a);
  esp_model_free(b);
}

/* --- stages ------------------------------------------------------------------------------------------------ */

static void convolutions_of_a_stage_are_named_and_counted(void **state) {
  (void)state;
  const esp_model_config c = stem_config(COMPONENTS, 1);
  esp_model *model = model_for_data(&c);
  esp_model_cost cost;
  int64_t counted = 0;
  for (int64_t i = 0; i < esp_parameters_count(model->parameters); i++) {
    const esp_parameter *p = esp_parameters_at(model->parameters, i);
    const bool average = p->kind == ESP_KIND_STATE && strcmp(p->tensor.name, "stem.whitening.weight") != 0;
    counted += average ? 0 : p->count;
  }
  esp_model_cost_of(model, &cost);
  assert_int_equal(cost.parameters, counted);
  const esp_parameter *extra = esp_parameters_find(model->parameters, "stem.0.1.weight");
  assert_non_null(extra);
  assert_int_equal(extra->tensor.shape[3], 6);
  assert_non_null(esp_parameters_find(model->parameters, "stem.1.1.norm.variance"));
  assert_null(esp_parameters_find(model->parameters, "stem.0.bias")); /* the norm would take it away */
  esp_model_free(model);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(batch_norm_is_the_formula_and_keeps_averages),
      cmocka_unit_test(a_frozen_batch_norm_stays_what_it_is),
      cmocka_unit_test(whitened_patches_have_unit_covariance),
      cmocka_unit_test(whitening_is_done_once_and_keyed_by_the_seed),
      cmocka_unit_test(convolutions_of_a_stage_are_named_and_counted),
  };
  return cmocka_run_group_tests(tests, open_data, close_data);
}
