/* label: short */
/* The values of the ops, in float, against plain loops in double. */
#include "op_fixture.h"

#include <espalier/vector_math.h>

/* --- products -------------------------------------------------------------------------------------------- */

typedef struct product {
  int64_t batch, m, n, k;
} product;

static double *matmul_reference(product p, const esp_tensor *a, bool ta, const esp_tensor *b, bool tb) {
  double *c = doubles(p.batch * p.m * p.n);
  for (int64_t i = 0; i < p.batch; i++)
    for (int64_t r = 0; r < p.m; r++)
      for (int64_t s = 0; s < p.n; s++)
        for (int64_t t = 0; t < p.k; t++)
          c[(i * p.m + r) * p.n + s] += at(a, i * p.m * p.k + (ta ? t * p.m + r : r * p.k + t)) *
                                        at(b, i * p.k * p.n + (tb ? s * p.k + t : t * p.n + s));
  return c;
}

static void check_matmul(product p, int rank, bool ta, bool tb) {
  const int64_t a_shape[] = {p.batch / 2, 2, ta ? p.k : p.m, ta ? p.m : p.k};
  const int64_t b_shape[] = {p.batch / 2, 2, tb ? p.n : p.k, tb ? p.k : p.n};
  esp_tensor *a = normal(rank, a_shape + 4 - rank), *b = normal(rank, b_shape + 4 - rank);
  const esp_tensor *c = esp_matmul(tape, a, ta, b, tb);
  const int64_t c_shape[] = {p.batch / 2, 2, p.m, p.n};
  assert_shape(c, rank, c_shape + 4 - rank);
  const double *expected = matmul_reference(p, a, ta, b, tb);
  assert_close("matmul", c->data, expected, p.batch * p.m * p.n, 1e-5, 2e-6 * (double)p.k);
}

static void matmul_multiplies(void **state) {
  (void)state;
  const product shapes[] = {{1, 1, 1, 1},  {1, 3, 5, 7},      {1, 17, 1, 33},
                            {1, 1, 19, 2}, {1, 131, 150, 67}, {1, 301, 5, 700}};
  for (int transposes = 0; transposes < 4; transposes++) {
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++)
      check_matmul(shapes[i], 2, transposes & 1, transposes & 2);
    check_matmul((product){2, 5, 3, 4}, 3, transposes & 1, transposes & 2);
    check_matmul((product){6, 5, 9, 13}, 4, transposes & 1, transposes & 2);
    check_matmul((product){4, 110, 90, 105}, 4, transposes & 1, transposes & 2);
  }
}

static void check_linear_map(int64_t rows, int64_t in, int64_t out, bool with_bias) {
  esp_tensor *x = normal(SHAPE(rows, in)), *weight = normal(SHAPE(out, in)), *bias = normal(SHAPE(out));
  const esp_tensor *y = esp_linear_map(tape, x, weight, with_bias ? bias : NULL);
  assert_shape(y, SHAPE(rows, out));
  double *expected = matmul_reference((product){1, rows, out, in}, x, false, weight, true);
  for (int64_t i = 0; with_bias && i < rows * out; i++) expected[i] += at(bias, i % out);
  assert_close("linear map", y->data, expected, rows * out, 1e-5, 2e-6 * (double)in);
}

static void linear_map_maps(void **state) {
  (void)state;
  for (int bias = 0; bias < 2; bias++) {
    check_linear_map(1, 1, 1, bias);
    check_linear_map(7, 13, 3, bias);
    check_linear_map(2100, 5, 11, bias); /* the bias in several ranges of rows */
    check_linear_map(0, 5, 11, bias);    /* an expert without tokens */
  }
  esp_tensor *x = normal(SHAPE(2, 3, 5)), *weight = normal(SHAPE(4, 5));
  assert_shape(esp_linear_map(tape, x, weight, NULL), SHAPE(2, 3, 4));
}

/* --- elementwise ----------------------------------------------------------------------------------------- */

static void add_and_multiply_repeat_the_second(void **state) {
  (void)state;
  const struct {
    int a_rank, b_rank;
    int64_t a_shape[4], b_shape[4];
  } cases[] = {{1, 1, {5}, {5}},       {3, 2, {4, 3, 5}, {3, 5}},
               {3, 1, {4, 3, 5}, {5}}, {2, 1, {700, 41}, {41}}, /* ranges that begin within a repeat */
               {2, 1, {9, 1}, {1}},    {4, 4, {2, 3, 1, 5}, {2, 3, 1, 5}}};
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    esp_tensor *a = normal(cases[i].a_rank, cases[i].a_shape), *b = normal(cases[i].b_rank, cases[i].b_shape);
    const int64_t count = esp_tensor_count(a), period = esp_tensor_count(b);
    const esp_tensor *sum = esp_add(tape, a, b), *times = esp_multiply(tape, a, b);
    assert_shape(sum, cases[i].a_rank, cases[i].a_shape);
    assert_shape(times, cases[i].a_rank, cases[i].a_shape);
    double *expected = doubles(count);
    for (int64_t j = 0; j < count; j++) expected[j] = at(a, j) + at(b, j % period);
    assert_close("add", sum->data, expected, count, 1e-7, 1e-7);
    for (int64_t j = 0; j < count; j++) expected[j] = at(a, j) * at(b, j % period);
    assert_close("multiply", times->data, expected, count, 1e-7, 0);
  }
}

static void scale_scales(void **state) {
  (void)state;
  esp_tensor *x = normal(SHAPE(3, 7));
  double *expected = doubles(21);
  for (int64_t i = 0; i < 21; i++) expected[i] = -0.3 * at(x, i);
  assert_close("scale", esp_scale(tape, x, -0.3)->data, expected, 21, 2e-7, 0);
}

static double silu_of(double x) { return x / (1 + exp(-x)); }
static double relu_of(double x) { return isnan(x) ? x : fmax(x, 0); }
static double gelu_of(double x) { return 0.5 * x * erfc(-x / sqrt(2)); }
static double gelu_tanh_of(double x) {
  const double z = sqrt(2 / acos(-1)) * (x + 0.044715 * x * x * x);
  return x / (1 + exp(-2 * z)); /* (1 + tanh z) / 2 = 1 / (1 + e^-2z), without cancellation */
}

/* From -100 to 100, dense around 0, and what is not finite. */
static esp_tensor *activation_inputs(void) {
  enum { COUNT = 40001 };
  esp_tensor *x = esp_tape_tensor(tape, SHAPE(COUNT + 4));
  assert_non_null(x);
  for (int64_t i = 0; i < COUNT; i++) {
    const double u = (double)i / (COUNT / 2) - 1;
    x->data[i] = (esp_real)(5 * u + 95 * u * u * u * u * u);
  }
  const esp_real special[] = {NAN, -0.0f, 1e30f, -1e30f};
  memcpy(x->data + COUNT, special, sizeof special);
  return x;
}

typedef esp_tensor *activation(esp_tape *, esp_tensor *);

static void check_activation(const char *name, activation *op, double (*reference)(double), double rtol, double atol) {
  esp_tensor *x = activation_inputs();
  const int64_t count = esp_tensor_count(x);
  double *expected = doubles(count);
  for (int64_t i = 0; i < count; i++) expected[i] = reference(at(x, i));
  assert_close(name, op(tape, x)->data, expected, count, rtol, atol);
}

static void activations_are_accurate(void **state) {
  (void)state;
  check_activation("relu", esp_relu, relu_of, 0, 0);
  check_activation("silu", esp_silu, silu_of, 1e-6, 1e-7);
  check_activation("gelu", esp_gelu, gelu_of, 1e-6, 1e-6);
  check_activation("gelu tanh", esp_gelu_tanh, gelu_tanh_of, 1e-6, 1e-6);
}

static void exp_is_good_to_the_last_place(void **state) {
  (void)state;
  double worst = 0;
  for (double x = -87.2; x < 88.3; x += 0.00131) {
    const double expected = exp((double)(float)x);
    worst = fmax(worst, fabs((double)esp_exp((float)x) - expected) / expected);
  }
  print_message("  e^x: worst relative error %.2e\n", worst);
  assert_true(worst < 1.3e-7);
  assert_true(isnan(esp_exp(NAN)));
  assert_true(esp_exp(0) == 1);
  assert_true(esp_exp(-1e30f) < 1.3e-38f && esp_exp(-1e30f) >= 0);
  assert_true(esp_exp(1e30f) > 2.3e38f);
}

static double erf_of(double x) { return (double)esp_erf((float)x, esp_exp((float)(-x * x))); }

/* The formula is good to 1.4e-7 in exact arithmetic; its rounding in float makes that 5.3e-7, near |x| = 0.05. */
static void erf_is_good_to_six_digits(void **state) {
  (void)state;
  double worst = 0;
  for (double x = -6; x < 6; x += 0.00017) worst = fmax(worst, fabs(erf_of((double)(float)x) - erf((double)(float)x)));
  print_message("  erf: worst absolute error %.2e\n", worst);
  assert_true(worst < 6e-7);
  assert_true(isnan(erf_of((double)NAN)));
  assert_true(erf_of(30) == 1 && erf_of(-30) == -1);
}

static void swiglu_gates(void **state) {
  (void)state;
  esp_tensor *x = normal(SHAPE(3, 5, 14));
  const esp_tensor *h = esp_swiglu(tape, x);
  assert_shape(h, SHAPE(3, 5, 7));
  double *expected = doubles(105);
  for (int64_t i = 0; i < 105; i++) expected[i] = silu_of(at(x, i / 7 * 14 + i % 7)) * at(x, i / 7 * 14 + 7 + i % 7);
  assert_close("swiglu", h->data, expected, 105, 1e-6, 1e-7);
}

static int64_t zeros_in(const esp_tensor *tensor) {
  int64_t zeros = 0;
  for (int64_t i = 0; i < esp_tensor_count(tensor); i++) zeros += tensor->data[i] == 0;
  return zeros;
}

static void dropout_drops_its_share(void **state) {
  (void)state;
  enum { COUNT = 50000 };
  esp_tensor *x = esp_tape_tensor(tape, SHAPE(COUNT));
  for (int i = 0; i < COUNT; i++) x->data[i] = 1;
  const esp_tensor *y = esp_dropout(tape, x, 0.25, 7, 3), *again = esp_dropout(tape, x, 0.25, 7, 3);
  assert_true(fabs((double)zeros_in(y) / COUNT - 0.25) < 5 * sqrt(0.25 * 0.75 / COUNT));
  for (int i = 0; i < COUNT; i++) assert_true(y->data[i] == 0 || fabs(at(y, i) - 1 / 0.75) < 1e-6);
  assert_same_bits("the same key", y->data, again->data, COUNT);
  const esp_tensor *other[] = {esp_dropout(tape, x, 0.25, 7, 4), esp_dropout(tape, x, 0.25, 8, 3)};
  for (int o = 0; o < 2; o++) {
    int64_t differ = 0;
    for (int i = 0; i < COUNT; i++) differ += y->data[i] != other[o]->data[i];
    assert_true(fabs((double)differ / COUNT - 2 * 0.25 * 0.75) < 0.015); /* as for independent masks */
  }
  assert_ptr_equal(esp_dropout(tape, x, 0, 7, 3), x);
}

/* --- softmax and losses ---------------------------------------------------------------------------------- */

static double log_sum_exp(const esp_tensor *x, int64_t row, int64_t columns) {
  double most = -HUGE_VAL, sum = 0;
  for (int64_t j = 0; j < columns; j++) most = fmax(most, at(x, row * columns + j));
  for (int64_t j = 0; j < columns; j++) sum += exp(at(x, row * columns + j) - most);
  return most + log(sum);
}

static void check_softmax(esp_tensor *x) {
  const int64_t count = esp_tensor_count(x), columns = esp_tensor_columns(x);
  double *expected = doubles(count);
  for (int64_t i = 0; i < count; i++) expected[i] = at(x, i) - log_sum_exp(x, i / columns, columns);
  assert_close("log softmax", esp_log_softmax(tape, x)->data, expected, count, 1e-6, 1e-6);
  for (int64_t i = 0; i < count; i++) expected[i] = exp(expected[i]);
  assert_close("softmax", esp_softmax(tape, x)->data, expected, count, 2e-6, 1e-37);
}

static void softmax_sums_to_one(void **state) {
  (void)state;
  check_softmax(normal(SHAPE(3, 1)));
  check_softmax(normal(SHAPE(2, 3, 7)));
  check_softmax(normal(SHAPE(700, 37)));
  esp_tensor *large = normal(SHAPE(4, 33));
  for (int64_t i = 0; i < 33; i++) large->data[i] = large->data[i] * 10 + 3e4f;
  for (int64_t i = 33; i < 66; i++) large->data[i] = large->data[i] * 10 - 3e4f;
  for (int64_t i = 66; i < 99; i++) large->data[i] *= 1e30f;
  large->data[66] = 3e38f; /* the differences overflow unless the largest goes first */
  const esp_tensor *y = esp_softmax(tape, large);
  for (int64_t r = 0; r < 4; r++) {
    double sum = 0;
    for (int64_t j = 0; j < 33; j++) sum += at(y, r * 33 + j);
    assert_true(fabs(sum - 1) < 1e-6);
  }
  large->data[66] = 1e30f;
  const esp_real bad[] = {1, NAN, 2};
  const double expected[] = {(double)NAN, (double)NAN, (double)NAN};
  assert_close("softmax of not-a-number", esp_softmax(tape, holding(bad, SHAPE(1, 3)))->data, expected, 3, 0, 0);
}

static double cross_entropy_reference(const esp_tensor *logits, const esp_targets *targets) {
  const int64_t rows = logits->shape[0], classes = logits->shape[1];
  double loss = 0;
  for (int64_t r = 0; r < rows; r++)
    for (int64_t j = 0; j < classes; j++) {
      const double mix = targets->mix ? (double)targets->mix[r] : 1;
      double target = j == targets->labels[r] ? mix : 0;
      if (targets->mixed_labels && j == targets->mixed_labels[r]) target += 1 - mix;
      target = (1 - targets->smoothing) * target + targets->smoothing / (double)classes;
      loss -= target * (at(logits, r * classes + j) - log_sum_exp(logits, r, classes)) / (double)rows;
    }
  return loss;
}

static void cross_entropy_is_the_mean_over_rows(void **state) {
  (void)state;
  const int32_t labels[] = {0, 9, 4, 4, 2}, others[] = {1, 9, 0, 3, 2};
  const float mix[] = {0.3f, 0.5f, 1, 0, 0.75f};
  const esp_targets cases[] = {
      {labels, NULL, NULL, 0}, {labels, NULL, NULL, 0.1}, {labels, others, mix, 0}, {labels, others, mix, 0.2}};
  esp_tensor *logits = normal(SHAPE(5, 10)), *large = normal(SHAPE(5, 10));
  for (int64_t i = 0; i < 50; i++) large->data[i] *= 300;
  for (int i = 0; i < 4; i++) {
    double expected = cross_entropy_reference(logits, &cases[i]);
    assert_close("cross-entropy", esp_cross_entropy(tape, logits, &cases[i])->data, &expected, 1, 1e-6, 0);
    expected = cross_entropy_reference(large, &cases[i]);
    assert_close("with large logits", esp_cross_entropy(tape, large, &cases[i])->data, &expected, 1, 1e-6, 0);
  }
}

/* --- normalisation --------------------------------------------------------------------------------------- */

static void norm_reference(const esp_tensor *x, const esp_tensor *gain, const esp_tensor *bias, double epsilon,
                           double *y) {
  const int64_t columns = esp_tensor_columns(x);
  for (int64_t r = 0; r < esp_tensor_rows(x); r++) {
    double mean = 0, squares = 0;
    for (int64_t j = 0; bias && j < columns; j++) mean += at(x, r * columns + j) / (double)columns;
    for (int64_t j = 0; j < columns; j++) squares += pow(at(x, r * columns + j) - mean, 2) / (double)columns;
    for (int64_t j = 0; j < columns; j++)
      y[r * columns + j] =
          (at(x, r * columns + j) - mean) / sqrt(squares + epsilon) * at(gain, j) + (bias ? at(bias, j) : 0);
  }
}

static void check_norms(int64_t rows, int64_t columns, double shift) {
  esp_tensor *x = normal(SHAPE(rows, columns)), *gain = normal(SHAPE(columns)), *bias = normal(SHAPE(columns));
  for (int64_t i = 0; i < rows * columns; i++) x->data[i] += (esp_real)shift;
  double *expected = doubles(rows * columns);
  norm_reference(x, gain, bias, 1e-5, expected);
  assert_close("layer norm", esp_layer_norm(tape, x, gain, bias, 1e-5)->data, expected, rows * columns, 1e-5,
               2e-6 * (1 + fabs(shift)));
  norm_reference(x, gain, NULL, 1e-5, expected);
  assert_close("RMS norm", esp_rms_norm(tape, x, gain, 1e-5)->data, expected, rows * columns, 2e-6, 1e-7);
}

static void norms_normalise(void **state) {
  (void)state;
  check_norms(1, 1, 0);
  check_norms(5, 7, 0);
  check_norms(150, 129, 0);
  check_norms(5, 64, 1000); /* a mean far larger than the deviation */
  esp_tensor *zero = esp_scale(tape, normal(SHAPE(2, 6)), 0), *gain = normal(SHAPE(6));
  const double expected[12] = {0};
  assert_close("RMS norm of zeros", esp_rms_norm(tape, zero, gain, 1e-5)->data, expected, 12, 0, 0);
}

/* --- shapes that do not fit ------------------------------------------------------------------------------ */

static void multiply_misfits(void *c) {
  (void)c;
  esp_matmul(tape, normal(SHAPE(2, 3)), false, normal(SHAPE(4, 5)), false);
}
static void add_misfits(void *c) {
  (void)c;
  esp_add(tape, normal(SHAPE(2, 3)), normal(SHAPE(2)));
}
static void kernel_too_large(void *c) {
  (void)c;
  esp_convolution(tape, normal(SHAPE(1, 3, 3, 1)), normal(SHAPE(1, 5, 5, 1)), NULL, 1, 0);
}
static void kernel_just_too_large(void *c) {
  (void)c;
  esp_convolution(tape, normal(SHAPE(1, 2, 2, 1)), normal(SHAPE(1, 3, 3, 1)), NULL, 2, 0);
}
static void bias_too_short(void *c) {
  (void)c;
  esp_convolution(tape, normal(SHAPE(1, 3, 3, 1)), normal(SHAPE(2, 3, 3, 1)), normal(SHAPE(1)), 1, 0);
}
static void depthwise_bias_too_short(void *c) {
  (void)c;
  esp_depthwise_convolution(tape, normal(SHAPE(1, 3, 3, 2)), normal(SHAPE(3, 3, 2)), normal(SHAPE(1)));
}
static void pool_misfits(void *c) {
  (void)c;
  esp_max_pool(tape, normal(SHAPE(1, 3, 3, 1)), 2);
}
static void row_missing(void *c) {
  (void)c;
  esp_gather_rows(tape, normal(SHAPE(2, 3)), (const int32_t[]){2}, 1);
}
static void k_too_large(void *c) {
  (void)c;
  esp_top_k(tape, normal(SHAPE(2, 3)), 4, NULL);
}
static void label_too_large(void *c) {
  (void)c;
  esp_cross_entropy(tape, normal(SHAPE(1, 3)), &(esp_targets){.labels = (const int32_t[]){3}});
}
static void mixed_label_too_large(void *c) {
  (void)c;
  const esp_targets t = {(const int32_t[]){0}, (const int32_t[]){3}, (const float[]){0.5f}, 0};
  esp_cross_entropy(tape, normal(SHAPE(1, 3)), &t);
}

static void shapes_that_do_not_fit_panic(void **state) {
  (void)state;
  esp_tape_scope(tape, "blocks.3.ffn");
  assert_panics(multiply_misfits, NULL,
                "op matmul in \"blocks.3.ffn\": the inner dimensions differ; inputs: [2, 3] [4, 5]");
  assert_panics(add_misfits, NULL, "op add");
  assert_panics(kernel_too_large, NULL, "larger than the padded image");
  assert_panics(kernel_just_too_large, NULL, "larger than the padded image");
  assert_panics(bias_too_short, NULL, "bias");
  assert_panics(depthwise_bias_too_short, NULL, "bias");
  assert_panics(pool_misfits, NULL, "divisible");
  assert_panics(row_missing, NULL, "does not exist");
  assert_panics(k_too_large, NULL, "op top-k");
  assert_panics(label_too_large, NULL, "label");
  assert_panics(mixed_label_too_large, NULL, "label");
}

/* --- tokens ---------------------------------------------------------------------------------------------- */

static void attend_reference(const esp_tensor *qkv, int64_t heads, int64_t n, int64_t head, double *y) {
  const int64_t tokens = qkv->shape[1], width = qkv->shape[2] / 3, d = width / heads;
  const int64_t q = n * tokens * 3 * width + head * d, k = q + width, v = k + width;
  for (int64_t t = 0; t < tokens; t++) {
    double *weights = doubles(tokens), sum = 0;
    for (int64_t s = 0; s < tokens; s++) {
      double score = 0;
      for (int64_t j = 0; j < d; j++) score += at(qkv, q + t * 3 * width + j) * at(qkv, k + s * 3 * width + j);
      sum += weights[s] = exp(score / sqrt((double)d));
    }
    for (int64_t s = 0; s < tokens; s++)
      for (int64_t j = 0; j < d; j++)
        y[(n * tokens + t) * width + head * d + j] += weights[s] / sum * at(qkv, v + s * 3 * width + j);
  }
}

static void check_attention(int64_t images, int64_t tokens, int64_t width, int64_t heads) {
  esp_tensor *qkv = normal(SHAPE(images, tokens, 3 * width));
  double *expected = doubles(images * tokens * width);
  for (int64_t n = 0; n < images; n++)
    for (int64_t head = 0; head < heads; head++) attend_reference(qkv, heads, n, head, expected);
  const esp_tensor *y = esp_attention(tape, qkv, heads);
  assert_shape(y, SHAPE(images, tokens, width));
  assert_close("attention", y->data, expected, images * tokens * width, 1e-5, 2e-6);
}

static void attention_attends(void **state) {
  (void)state;
  check_attention(1, 1, 1, 1);
  check_attention(2, 5, 6, 1);
  check_attention(3, 7, 12, 4);
  check_attention(5, 65, 48, 3);
}

static void means_are_means(void **state) {
  (void)state;
  esp_tensor *x = normal(SHAPE(3, 7, 5));
  double *expected = doubles(15), mean = 0;
  for (int64_t i = 0; i < 105; i++) {
    expected[i / 35 * 5 + i % 5] += at(x, i) / 7;
    mean += at(x, i) / 105;
  }
  const esp_tensor *tokens = esp_mean_tokens(tape, x);
  assert_shape(tokens, SHAPE(3, 5));
  assert_close("mean over tokens", tokens->data, expected, 15, 1e-6, 1e-7);
  assert_close("mean", esp_mean(tape, x)->data, &mean, 1, 1e-6, 1e-8);
  esp_tensor *many = esp_tape_tensor(tape, SHAPE(1000003));
  for (int64_t i = 0; i < 1000003; i++) many->data[i] = 0.1f;
  const double tenth = (double)0.1f;
  assert_close("the mean of a million", esp_mean(tape, many)->data, &tenth, 1, 1e-7, 0);
}

static void reshape_keeps_the_data(void **state) {
  (void)state;
  esp_tensor *x = normal(SHAPE(3, 4, 5));
  const esp_tensor *y = esp_reshape(tape, x, SHAPE(12, 5));
  assert_shape(y, SHAPE(12, 5));
  assert_same_bits("reshape", y->data, x->data, 60);
}

/* --- rows ------------------------------------------------------------------------------------------------ */

static void rows_are_gathered_and_scattered(void **state) {
  (void)state;
  esp_tensor *x = normal(SHAPE(2, 3, 5));
  int32_t rows[] = {5, 0, 5, 2, 1, 5};
  const esp_tensor *gathered = esp_gather_rows(tape, x, rows, 6), *scattered = esp_scatter_rows(tape, x, rows, 7);
  memset(rows, 0, sizeof rows); /* they were copied */
  assert_shape(gathered, SHAPE(6, 5));
  assert_shape(scattered, SHAPE(7, 5));
  const int kept[] = {5, 0, 5, 2, 1, 5};
  double *picked = doubles(30), *sums = doubles(35);
  for (int64_t i = 0; i < 30; i++) {
    picked[i] = at(x, kept[i / 5] * 5 + i % 5);
    sums[kept[i / 5] * 5 + i % 5] += at(x, i);
  }
  assert_close("gather rows", gathered->data, picked, 30, 0, 0);
  assert_close("scatter rows", scattered->data, sums, 35, 1e-6, 1e-7);
  assert_shape(esp_gather_rows(tape, x, rows, 0), SHAPE(0, 5));
}

static void check_top_k(const esp_real *values, int64_t count, int64_t k, const int32_t *expected) {
  int32_t indices[16];
  esp_top_k_of(values, count, k, indices);
  for (int64_t i = 0; i < k; i++)
    if (indices[i] != expected[i])
      fail_msg("top-k: place %lld goes to column %d, not %d", (long long)i, indices[i], expected[i]);
}

static void ties_go_to_the_lower_column(void **state) {
  (void)state;
  const float inf = HUGE_VALF;
  check_top_k((const esp_real[]){1, 3, 2, 3, 3, 0}, 6, 4, (const int32_t[]){1, 3, 4, 2});
  check_top_k((const esp_real[]){2, 2, 2, 2}, 4, 2, (const int32_t[]){0, 1});
  check_top_k((const esp_real[]){NAN, 1, NAN, -inf}, 4, 3, (const int32_t[]){1, 3, 0});
  check_top_k((const esp_real[]){NAN, NAN, NAN}, 3, 2, (const int32_t[]){0, 1});
  check_top_k((const esp_real[]){-inf, inf, NAN, inf}, 4, 4, (const int32_t[]){1, 3, 0, 2});
  check_top_k((const esp_real[]){0.0f, -0.0f, 0.0f}, 3, 3, (const int32_t[]){0, 1, 2});
  check_top_k((const esp_real[]){5}, 1, 1, (const int32_t[]){0});
}

static void top_k_sorts_each_row(void **state) {
  (void)state;
  esp_tensor *x = normal(SHAPE(2, 50, 33));
  for (int64_t i = 0; i < 3300; i++) x->data[i] = rintf(x->data[i] * 4); /* plenty of ties */
  const int32_t *indices;
  const esp_tensor *y = esp_top_k(tape, x, 6, &indices);
  assert_shape(y, SHAPE(2, 50, 6));
  for (int64_t r = 0; r < 100; r++)
    for (int64_t i = 0; i < 6; i++) {
      const int64_t column = indices[r * 6 + i];
      int64_t before = 0; /* columns that come before this one */
      for (int64_t j = 0; j < 33; j++)
        before +=
            at(x, r * 33 + j) > at(x, r * 33 + column) || (at(x, r * 33 + j) == at(x, r * 33 + column) && j < column);
      assert_int_equal(before, i);
      assert_true(y->data[r * 6 + i] == x->data[r * 33 + column]);
    }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      TEST(matmul_multiplies),
      TEST(linear_map_maps),
      TEST(add_and_multiply_repeat_the_second),
      TEST(scale_scales),
      TEST(activations_are_accurate),
      TEST(exp_is_good_to_the_last_place),
      TEST(erf_is_good_to_six_digits),
      TEST(swiglu_gates),
      TEST(dropout_drops_its_share),
      TEST(softmax_sums_to_one),
      TEST(cross_entropy_is_the_mean_over_rows),
      TEST(norms_normalise),
      TEST(shapes_that_do_not_fit_panic),
      TEST(attention_attends),
      TEST(means_are_means),
      TEST(reshape_keeps_the_data),
      TEST(rows_are_gathered_and_scattered),
      TEST(ties_go_to_the_lower_column),
      TEST(top_k_sorts_each_row),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
