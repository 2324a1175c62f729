/* label: short */
/* The values of the ops on images, in float, against plain loops in double. */
#include "op_fixture.h"

/* Has to be the first test of its process: products of matrices set OpenBLAS to one thread, and before any has run
 * a convolution must do without its threads as well. */
static void earlier_products_do_not_change_a_convolution(void **state) {
  (void)state;
  esp_tensor *x = normal(SHAPE(1, 64, 64, 16)), *weight = normal(SHAPE(96, 3, 3, 16));
  const esp_tensor *before = esp_convolution(tape, x, weight, NULL, 1, 1);
  esp_matmul(tape, normal(SHAPE(2, 2)), false, normal(SHAPE(2, 2)), false);
  const esp_tensor *after = esp_convolution(tape, x, weight, NULL, 1, 1);
  assert_same_bits("convolution", before->data, after->data, esp_tensor_count(before));
}

typedef struct convolution {
  int64_t images, height, width, channels, out, kernel, stride, padding;
} convolution;

/* x at pixel (row, column) of image n, 0 outside. */
static double pixel(const esp_tensor *x, int64_t n, int64_t row, int64_t column, int64_t channel) {
  const int64_t *s = x->shape;
  if (row < 0 || row >= s[1] || column < 0 || column >= s[2]) return 0;
  return at(x, ((n * s[1] + row) * s[2] + column) * s[3] + channel);
}

/* One output without the bias. */
static double window_sum(const convolution *p, const esp_tensor *x, const esp_tensor *weight, int64_t n, int64_t oy,
                         int64_t ox, int64_t out) {
  double sum = 0;
  for (int64_t ky = 0; ky < p->kernel; ky++)
    for (int64_t kx = 0; kx < p->kernel; kx++)
      for (int64_t c = 0; c < p->channels; c++)
        sum += pixel(x, n, oy * p->stride - p->padding + ky, ox * p->stride - p->padding + kx, c) *
               at(weight, ((out * p->kernel + ky) * p->kernel + kx) * p->channels + c);
  return sum;
}

static void check_convolution(convolution p, bool with_bias) {
  esp_tensor *x = normal(SHAPE(p.images, p.height, p.width, p.channels)), *bias = normal(SHAPE(p.out));
  esp_tensor *weight = normal(SHAPE(p.out, p.kernel, p.kernel, p.channels));
  const int64_t height = (p.height + 2 * p.padding - p.kernel) / p.stride + 1;
  const int64_t width = (p.width + 2 * p.padding - p.kernel) / p.stride + 1, count = p.images * height * width * p.out;
  const esp_tensor *y = esp_convolution(tape, x, weight, with_bias ? bias : NULL, p.stride, p.padding);
  assert_shape(y, SHAPE(p.images, height, width, p.out));
  double *expected = doubles(count);
  for (int64_t i = 0; i < count; i++) {
    const int64_t place = i / p.out, n = place / (height * width), oy = place / width % height, ox = place % width;
    expected[i] = window_sum(&p, x, weight, n, oy, ox, i % p.out) + (with_bias ? at(bias, i % p.out) : 0);
  }
  assert_close("convolution", y->data, expected, count, 1e-5, 2e-5);
}

static void convolution_convolves(void **state) {
  (void)state;
  const convolution cases[] = {{1, 1, 1, 1, 1, 1, 1, 0},   {2, 5, 7, 3, 4, 3, 1, 1}, {2, 5, 7, 3, 4, 3, 2, 1},
                               {19, 8, 8, 3, 5, 4, 4, 0},  {2, 7, 6, 2, 3, 5, 3, 2}, {1, 2, 3, 2, 2, 5, 1, 3},
                               {3, 9, 8, 17, 33, 3, 1, 0}, {2, 6, 6, 4, 3, 1, 2, 0}};
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
    for (int bias = 0; bias < 2; bias++) check_convolution(cases[i], bias);
}

static void check_depthwise(int64_t height, int64_t width, int64_t channels, int64_t kernel, bool with_bias) {
  esp_tensor *x = normal(SHAPE(3, height, width, channels)), *bias = normal(SHAPE(channels));
  esp_tensor *weight = normal(SHAPE(kernel, kernel, channels));
  const esp_tensor *y = esp_depthwise_convolution(tape, x, weight, with_bias ? bias : NULL);
  assert_shape(y, SHAPE(3, height, width, channels));
  double *expected = doubles(esp_tensor_count(x));
  for (int64_t i = 0; i < esp_tensor_count(x); i++) {
    const int64_t c = i % channels, column = i / channels % width, row = i / channels / width % height;
    expected[i] = with_bias ? at(bias, c) : 0;
    for (int64_t o = 0; o < kernel * kernel; o++)
      expected[i] +=
          at(weight, o * channels + c) *
          pixel(x, i / (height * width * channels), row + o / kernel - kernel / 2, column + o % kernel - kernel / 2, c);
  }
  assert_close("depthwise convolution", y->data, expected, esp_tensor_count(x), 1e-5, 1e-5);
}

static void depthwise_convolution_convolves(void **state) {
  (void)state;
  for (int64_t kernel = 1; kernel <= 7; kernel += 2)
    for (int bias = 0; bias < 2; bias++) {
      check_depthwise(6, 9, 5, kernel, bias);
      check_depthwise(2, 1, 33, kernel, bias); /* smaller than the kernel */
    }
}

static void check_pools(int64_t height, int64_t width, int64_t channels, int64_t size) {
  esp_tensor *x = normal(SHAPE(3, height, width, channels));
  const int64_t h = height / size, w = width / size, count = 3 * h * w * channels;
  double *most = doubles(count), *mean = doubles(count);
  for (int64_t i = 0; i < count; i++) {
    const int64_t c = i % channels, column = i / channels % w * size, row = i / channels / w % h * size;
    most[i] = -HUGE_VAL;
    for (int64_t o = 0; o < size * size; o++) {
      const double value = pixel(x, i / (h * w * channels), row + o / size, column + o % size, c);
      most[i] = fmax(most[i], value);
      mean[i] += value / (double)(size * size);
    }
  }
  assert_shape(esp_max_pool(tape, x, size), SHAPE(3, h, w, channels));
  assert_close("max pool", esp_max_pool(tape, x, size)->data, most, count, 0, 0);
  assert_close("mean pool", esp_mean_pool(tape, x, size)->data, mean, count, 1e-6, 1e-6);
}

static void pools_pool(void **state) {
  (void)state;
  check_pools(1, 1, 1, 1);
  check_pools(4, 6, 5, 2);
  check_pools(9, 3, 17, 3);
  check_pools(8, 8, 3, 8);
}

static void equal_pixels_give_the_gradient_to_the_first(void **state) {
  (void)state;
  esp_tensor *x = esp_scale(tape, normal(SHAPE(1, 2, 2, 1)), 0);
  x->requires_grad = true;
  esp_tensor *y = esp_max_pool(tape, x, 2);
  assert_int_equal(esp_tape_backward(tape, y), ESP_OK);
  const double expected[] = {1, 0, 0, 0};
  assert_close("max pool's gradient", x->grad, expected, 4, 0, 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      TEST(earlier_products_do_not_change_a_convolution),
      TEST(convolution_convolves),
      TEST(depthwise_convolution_convolves),
      TEST(pools_pool),
      TEST(equal_pixels_give_the_gradient_to_the_first),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
