/* Ops on images, channels-last. */
#include "ops_internal.h"
#include <espalier/op_helpers.h>

#include <string.h>

/* --- convolution: each output pixel is a row of patches (im2col) times the weights -----------------------
 * Images are treated a few at a time, so that their patches stay in the cache; backward makes the patches
 * again instead of keeping them. dW = dY^T patches, in ESP_PARTS parts of the batch;  dpatches = dY W, added
 * back to the pixels they came from. */

typedef struct convolution_attributes {
  int64_t stride, padding;
} convolution_attributes;

typedef struct convolution_shape {
  int64_t images, height, width, channels, out_height, out_width, out, kernel, stride, padding;
  int64_t patch;  /* elements of a patch */
  int64_t pixels; /* output pixels of an image */
} convolution_shape;

static convolution_shape convolution_shape_of(const esp_node *node) {
  const convolution_attributes *at = node->attributes;
  const int64_t *x = node->inputs[0]->shape, *w = node->inputs[1]->shape;
  convolution_shape s = {.images = x[0],
                         .height = x[1],
                         .width = x[2],
                         .channels = x[3],
                         .out = w[0],
                         .kernel = w[1],
                         .stride = at->stride,
                         .padding = at->padding};
  s.out_height = (s.height + 2 * s.padding - s.kernel) / s.stride + 1;
  s.out_width = (s.width + 2 * s.padding - s.kernel) / s.stride + 1;
  s.patch = s.kernel * s.kernel * s.channels;
  s.pixels = s.out_height * s.out_width;
  return s;
}

/* Every part of the batch has its own buffer for the patches of one image, and one for dW. */
static void convolution_prepare(esp_node *node) {
  const esp_tensor *x = node->inputs[0], *w = node->inputs[1];
  esp_require(node, x->rank == 4 && w->rank == 4 && w->shape[1] == w->shape[2] && w->shape[3] == x->shape[3],
              "needs x [N, H, W, C] and weight [out, kernel, kernel, C]");
  esp_require(node, !node->inputs[2] || esp_tensor_count(node->inputs[2]) == w->shape[0],
              "the bias needs one entry an output");
  const convolution_shape s = convolution_shape_of(node);
  esp_require(node, s.height + 2 * s.padding >= s.kernel && s.width + 2 * s.padding >= s.kernel,
              "the kernel is larger than the padded image");
  esp_set_output(node, 0, 4, (const int64_t[]){s.images, s.out_height, s.out_width, s.out});
  const size_t patches = (size_t)(ESP_PARTS * s.pixels * s.patch) * sizeof(esp_real);
  node->saved_bytes = patches;
  node->scratch_bytes = (size_t)(ESP_PARTS * s.out * (s.patch + 1)) * sizeof(esp_real);
  node->unread = ESP_UNREAD_OUTPUTS;
}

/* The part of a kernel's row that lies inside the image: columns [from, to) of the kernel at image column x0. */
static void clip(int64_t x0, int64_t kernel, int64_t width, int64_t *from, int64_t *to) {
  *from = x0 < 0 ? -x0 : 0;
  *to = x0 + kernel > width ? width - x0 : kernel;
}

static void make_patches(const convolution_shape *s, const esp_real *image, esp_real *patches) {
  const size_t pixel = (size_t)s->channels * sizeof(esp_real);
  for (int64_t oy = 0; oy < s->out_height; oy++)
    for (int64_t ox = 0; ox < s->out_width; ox++)
      for (int64_t ky = 0; ky < s->kernel; ky++) {
        const int64_t y = oy * s->stride - s->padding + ky, x0 = ox * s->stride - s->padding;
        esp_real *row = patches + (oy * s->out_width + ox) * s->patch + ky * s->kernel * s->channels;
        int64_t from = 0, to = 0;
        if (y >= 0 && y < s->height) clip(x0, s->kernel, s->width, &from, &to);
        if (from >= to) {
          memset(row, 0, (size_t)s->kernel * pixel);
          continue;
        }
        if (from > 0) memset(row, 0, (size_t)from * pixel);
        memcpy(row + from * s->channels, image + (y * s->width + x0 + from) * s->channels, (size_t)(to - from) * pixel);
        if (to < s->kernel) memset(row + to * s->channels, 0, (size_t)(s->kernel - to) * pixel);
      }
}

ESP_HOT static void add_patches(const convolution_shape *s, const esp_real *patches, esp_real *image) {
  for (int64_t oy = 0; oy < s->out_height; oy++)
    for (int64_t ox = 0; ox < s->out_width; ox++)
      for (int64_t ky = 0; ky < s->kernel; ky++) {
        const int64_t y = oy * s->stride - s->padding + ky, x0 = ox * s->stride - s->padding;
        if (y < 0 || y >= s->height) continue;
        int64_t from, to;
        clip(x0, s->kernel, s->width, &from, &to);
        const esp_real *restrict row = patches + (oy * s->out_width + ox) * s->patch + ky * s->kernel * s->channels;
        esp_real *restrict pixels = image + (y * s->width + x0) * s->channels;
        for (int64_t j = from * s->channels; j < to * s->channels; j++) pixels[j] += row[j];
      }
}

static void convolve_parts(void *context, int64_t begin, int64_t end) {
  const esp_node *node = context;
  const convolution_shape s = convolution_shape_of(node);
  for (int64_t part = begin; part < end; part++) {
    esp_real *patches = (esp_real *)node->saved + part * s.pixels * s.patch;
    for (int64_t i = esp_part_begin(s.images, part); i < esp_part_begin(s.images, part + 1); i++) {
      esp_real *y = node->outputs[0]->data + i * s.pixels * s.out;
      make_patches(&s, node->inputs[0]->data + i * s.height * s.width * s.channels, patches);
      esp_gemm_here(&(esp_gemm){.transpose_b = true,
                                .m = s.pixels,
                                .n = s.out,
                                .k = s.patch,
                                .a = patches,
                                .lda = s.patch,
                                .b = node->inputs[1]->data,
                                .ldb = s.patch,
                                .c = y,
                                .ldc = s.out,
                                .alpha = 1,
                                .bias = node->inputs[2] ? node->inputs[2]->data : NULL,
                                .precision = node->precision});
    }
  }
}

static void convolution_forward(esp_node *node) { esp_parallel_for_uneven(ESP_PARTS, 1, convolve_parts, node); }

typedef struct convolution_gradient {
  const esp_node *node;
  esp_real *dx, *weight_parts;
  bool accumulate;
} convolution_gradient;

static void convolution_gradient_of_image(const convolution_gradient *g, const convolution_shape *s, int64_t image,
                                          esp_real *patches, esp_real *dweight, bool first) {
  const int64_t size = s->height * s->width * s->channels;
  const esp_real *dy = g->node->outputs[0]->grad + image * s->pixels * s->out;
  if (dweight) {
    make_patches(s, g->node->inputs[0]->data + image * size, patches);
    esp_gemm_here(&(esp_gemm){.transpose_a = true,
                              .m = s->out,
                              .n = s->patch,
                              .k = s->pixels,
                              .a = dy,
                              .lda = s->out,
                              .b = patches,
                              .ldb = s->patch,
                              .c = dweight,
                              .ldc = s->patch,
                              .alpha = 1,
                              .beta = !first,
                              .precision = g->node->precision});
  }
  if (!g->dx) return;
  if (!g->accumulate) memset(g->dx + image * size, 0, (size_t)size * sizeof(esp_real));
  esp_gemm_here(&(esp_gemm){.m = s->pixels,
                            .n = s->patch,
                            .k = s->out,
                            .a = dy,
                            .lda = s->out,
                            .b = g->node->inputs[1]->data,
                            .ldb = s->patch,
                            .c = patches,
                            .ldc = s->patch,
                            .alpha = 1,
                            .precision = g->node->precision});
  add_patches(s, patches, g->dx + image * size);
}

static void convolution_gradient_parts(void *context, int64_t begin, int64_t end) {
  const convolution_gradient *g = context;
  const convolution_shape s = convolution_shape_of(g->node);
  for (int64_t part = begin; part < end; part++) {
    esp_real *patches = (esp_real *)g->node->saved + part * s.pixels * s.patch;
    esp_real *dweight = g->weight_parts ? g->weight_parts + part * s.out * s.patch : NULL;
    const int64_t first = esp_part_begin(s.images, part), last = esp_part_begin(s.images, part + 1);
    if (dweight && first == last) memset(dweight, 0, (size_t)(s.out * s.patch) * sizeof *dweight);
    for (int64_t i = first; i < last; i++) convolution_gradient_of_image(g, &s, i, patches, dweight, i == first);
  }
}

static void convolution_backward(esp_node *node) {
  const convolution_shape s = convolution_shape_of(node);
  esp_real *parts = node->scratch;
  convolution_gradient g = {.node = node};
  bool add_weight = false, add_bias;
  esp_real *dweight = esp_grad(node->inputs[1], &add_weight);
  g.dx = esp_grad(node->inputs[0], &g.accumulate);
  g.weight_parts = dweight ? parts : NULL;
  esp_parallel_for_uneven(ESP_PARTS, 1, convolution_gradient_parts, &g);
  if (dweight) esp_add_parts(parts, s.out * s.patch, dweight, add_weight);
  esp_real *dbias = esp_grad(node->inputs[2], &add_bias);
  if (dbias)
    esp_column_sums(node->outputs[0]->grad, s.images * s.pixels, s.out, dbias, add_bias,
                    parts + ESP_PARTS * s.out * s.patch);
}

static esp_cost convolution_cost(const esp_node *node) {
  return esp_cost_elementwise(node, 2.0 * (double)convolution_shape_of(node).patch);
}

const esp_op esp_op_convolution = {"convolution",        convolution_prepare, convolution_forward,
                                   convolution_backward, convolution_cost,    {1e-4, 1e-7, NULL}};

esp_tensor *esp_convolution(esp_tape *tape, esp_tensor *x, esp_tensor *weight, esp_tensor *bias, int64_t stride,
                            int64_t padding) {
  return esp_tape_apply(tape, &esp_op_convolution, (esp_tensor *[]){x, weight, bias}, 3,
                        &(convolution_attributes){stride, padding}, sizeof(convolution_attributes));
}

/* --- depthwise convolution: y[p, c] = bias[c] + sum over offsets o of w[o, c] x[p + o, c] -------------------
 * dx[q, c] = sum_o w[o, c] dy[q - o, c];  dw[o, c] = sum_p dy[p, c] x[p + o, c];  dbias = column sums. */

typedef struct depthwise_shape {
  int64_t images, height, width, channels, kernel, half, size;
} depthwise_shape;

static depthwise_shape depthwise_shape_of(const esp_node *node) {
  const int64_t *x = node->inputs[0]->shape, kernel = node->inputs[1]->shape[0];
  return (depthwise_shape){x[0], x[1], x[2], x[3], kernel, kernel / 2, x[1] * x[2] * x[3]};
}

static void depthwise_prepare(esp_node *node) {
  const esp_tensor *x = node->inputs[0], *w = node->inputs[1];
  esp_require(node,
              x->rank == 4 && w->rank == 3 && w->shape[0] == w->shape[1] && w->shape[0] % 2 == 1 &&
                  w->shape[2] == x->shape[3],
              "needs x [N, H, W, C] and weight [kernel, kernel, C] with an odd kernel");
  esp_require(node, !node->inputs[2] || esp_tensor_count(node->inputs[2]) == x->shape[3],
              "the bias needs one entry a channel");
  esp_set_output_same(node);
  const depthwise_shape s = depthwise_shape_of(node);
  node->scratch_bytes = (size_t)(ESP_PARTS * s.channels * (s.kernel * s.kernel + 1)) * sizeof(esp_real);
  node->unread = ESP_UNREAD_OUTPUTS;
}

/* y[p] += w[o] x[p + o] for all pixels p of an image and offsets o; with `flipped`, w[-o]: the transposed map. */
ESP_HOT static void depthwise_image(const depthwise_shape *s, const esp_real *x, const esp_real *weight, bool flipped,
                                    esp_real *y) {
  const int64_t c = s->channels, k = s->kernel;
  for (int64_t row = 0; row < s->height; row++)
    for (int64_t column = 0; column < s->width; column++) {
      esp_real *restrict out = y + (row * s->width + column) * c;
      for (int64_t ky = 0; ky < k; ky++) {
        const int64_t in_row = row + ky - s->half;
        if (in_row < 0 || in_row >= s->height) continue;
        int64_t from, to;
        clip(column - s->half, k, s->width, &from, &to);
        for (int64_t kx = from; kx < to; kx++) {
          const int64_t offset = ky * k + kx;
          const esp_real *restrict w = weight + (flipped ? k * k - 1 - offset : offset) * c;
          const esp_real *restrict in = x + (in_row * s->width + column + kx - s->half) * c;
          for (int64_t j = 0; j < c; j++) out[j] += w[j] * in[j];
        }
      }
    }
}

/* dw[o] += dy[p] x[p + o]. */
ESP_HOT static void depthwise_weight_gradient(const depthwise_shape *s, const esp_real *x, const esp_real *dy,
                                              esp_real *dw) {
  const int64_t c = s->channels, k = s->kernel;
  for (int64_t row = 0; row < s->height; row++)
    for (int64_t column = 0; column < s->width; column++) {
      const esp_real *restrict d = dy + (row * s->width + column) * c;
      for (int64_t ky = 0; ky < k; ky++) {
        const int64_t in_row = row + ky - s->half;
        if (in_row < 0 || in_row >= s->height) continue;
        int64_t from, to;
        clip(column - s->half, k, s->width, &from, &to);
        for (int64_t kx = from; kx < to; kx++) {
          esp_real *restrict w = dw + (ky * k + kx) * c;
          const esp_real *restrict in = x + (in_row * s->width + column + kx - s->half) * c;
          for (int64_t j = 0; j < c; j++) w[j] += d[j] * in[j];
        }
      }
    }
}

static void depthwise_images(void *context, int64_t begin, int64_t end) {
  const esp_node *node = context;
  const depthwise_shape s = depthwise_shape_of(node);
  for (int64_t i = begin; i < end; i++) {
    esp_real *y = node->outputs[0]->data + i * s.size;
    if (!node->inputs[2]) memset(y, 0, (size_t)s.size * sizeof *y);
    else
      for (int64_t p = 0; p < s.height * s.width; p++)
        memcpy(y + p * s.channels, node->inputs[2]->data, (size_t)s.channels * sizeof *y);
    depthwise_image(&s, node->inputs[0]->data + i * s.size, node->inputs[1]->data, false, y);
  }
}

static void depthwise_forward(esp_node *node) {
  esp_parallel_for(node->inputs[0]->shape[0], 1, depthwise_images, node);
}

static void depthwise_gradient_parts(void *context, int64_t begin, int64_t end) {
  const convolution_gradient *g = context;
  const depthwise_shape s = depthwise_shape_of(g->node);
  const int64_t weights = s.kernel * s.kernel * s.channels;
  for (int64_t part = begin; part < end; part++) {
    esp_real *dweight = g->weight_parts ? g->weight_parts + part * weights : NULL;
    if (dweight) memset(dweight, 0, (size_t)weights * sizeof *dweight);
    for (int64_t i = esp_part_begin(s.images, part); i < esp_part_begin(s.images, part + 1); i++) {
      const esp_real *dy = g->node->outputs[0]->grad + i * s.size;
      if (dweight) depthwise_weight_gradient(&s, g->node->inputs[0]->data + i * s.size, dy, dweight);
      if (!g->dx) continue;
      if (!g->accumulate) memset(g->dx + i * s.size, 0, (size_t)s.size * sizeof(esp_real));
      depthwise_image(&s, dy, g->node->inputs[1]->data, true, g->dx + i * s.size);
    }
  }
}

static void depthwise_backward(esp_node *node) {
  const depthwise_shape s = depthwise_shape_of(node);
  const int64_t weights = s.kernel * s.kernel * s.channels;
  esp_real *parts = node->scratch;
  convolution_gradient g = {.node = node};
  bool add_weight = false, add_bias;
  esp_real *dweight = esp_grad(node->inputs[1], &add_weight);
  g.dx = esp_grad(node->inputs[0], &g.accumulate);
  g.weight_parts = dweight ? parts : NULL;
  esp_parallel_for(ESP_PARTS, 1, depthwise_gradient_parts, &g);
  if (dweight) esp_add_parts(parts, weights, dweight, add_weight);
  esp_real *dbias = esp_grad(node->inputs[2], &add_bias);
  if (dbias)
    esp_column_sums(node->outputs[0]->grad, s.images * s.height * s.width, s.channels, dbias, add_bias,
                    parts + ESP_PARTS * weights);
}

static esp_cost depthwise_cost(const esp_node *node) {
  const depthwise_shape s = depthwise_shape_of(node);
  return esp_cost_elementwise(node, 2.0 * (double)(s.kernel * s.kernel));
}

const esp_op esp_op_depthwise_convolution = {"depthwise convolution", depthwise_prepare, depthwise_forward,
                                             depthwise_backward,      depthwise_cost,    {1e-4, 1e-7, NULL}};

esp_tensor *esp_depthwise_convolution(esp_tape *tape, esp_tensor *x, esp_tensor *weight, esp_tensor *bias) {
  return esp_tape_apply(tape, &esp_op_depthwise_convolution, (esp_tensor *[]){x, weight, bias}, 3, NULL, 0);
}

/* --- pooling: the largest, or the mean, of windows without overlap ---------------------------------------- */

typedef struct pool_attributes {
  int64_t size;
} pool_attributes;

static void pool_prepare(esp_node *node) {
  const pool_attributes *at = node->attributes;
  const esp_tensor *x = node->inputs[0];
  esp_require(node, x->rank == 4 && at->size > 0 && x->shape[1] % at->size == 0 && x->shape[2] % at->size == 0,
              "needs [N, H, W, C] with H and W divisible by the window's size");
  esp_set_output(node, 0, 4,
                 (const int64_t[]){x->shape[0], x->shape[1] / at->size, x->shape[2] / at->size, x->shape[3]});
}

/* Offset in the input of the first pixel of output pixel (row, column) of image i, row counting over images. */
static int64_t window_start(const esp_node *node, int64_t row, int64_t column) {
  const esp_tensor *x = node->inputs[0], *y = node->outputs[0];
  const int64_t size = ((const pool_attributes *)node->attributes)->size;
  const int64_t image = row / y->shape[1], out_row = row % y->shape[1];
  return ((image * x->shape[1] + out_row * size) * x->shape[2] + column * size) * x->shape[3];
}

typedef void pool_window(const esp_node *node, int64_t start, int64_t out, esp_real *dx);

static void for_windows(const esp_node *node, int64_t begin, int64_t end, pool_window *body, esp_real *dx) {
  const esp_tensor *y = node->outputs[0];
  for (int64_t row = begin; row < end; row++)
    for (int64_t column = 0; column < y->shape[2]; column++)
      body(node, window_start(node, row, column), (row * y->shape[2] + column) * y->shape[3], dx);
}

typedef struct pool_gradient {
  const esp_node *node;
  pool_window *body;
  esp_real *dx;
} pool_gradient;

static void pool_rows(void *context, int64_t begin, int64_t end) {
  const pool_gradient *g = context;
  for_windows(g->node, begin, end, g->body, g->dx);
}

static void pool(esp_node *node, pool_window *body) {
  pool_gradient g = {node, body, NULL};
  esp_parallel_for(node->outputs[0]->shape[0] * node->outputs[0]->shape[1], 4, pool_rows, &g);
}

static void pool_back(esp_node *node, pool_window *body) {
  bool add;
  pool_gradient g = {node, body, esp_grad(node->inputs[0], &add)};
  if (!add) memset(g.dx, 0, (size_t)esp_tensor_count(node->inputs[0]) * sizeof *g.dx);
  esp_parallel_for(node->outputs[0]->shape[0] * node->outputs[0]->shape[1], 4, pool_rows, &g);
}

/* The loop over a window's pixels: `offset` is where a pixel lies from the window's start. */
#define FOR_WINDOW(node, offset)                                                                                    \
  for (int64_t size_ = ((const pool_attributes *)(node)->attributes)->size, p_ = 0, offset = 0; p_ < size_ * size_; \
       p_++, offset = (p_ / size_ * (node)->inputs[0]->shape[2] + p_ % size_) * (node)->inputs[0]->shape[3])

ESP_HOT static void max_window(const esp_node *node, int64_t start, int64_t out, esp_real *unused) {
  (void)unused;
  const int64_t channels = node->inputs[0]->shape[3];
  esp_real *restrict y = node->outputs[0]->data + out;
  memcpy(y, node->inputs[0]->data + start, (size_t)channels * sizeof *y);
  FOR_WINDOW(node, offset) {
    const esp_real *restrict x = node->inputs[0]->data + start + offset;
    for (int64_t j = 0; j < channels; j++) y[j] = x[j] > y[j] || x[j] != x[j] ? x[j] : y[j]; /* keeps not-a-number */
  }
}

/* The first of equal pixels takes the gradient: `left` is what no pixel has taken yet, a few channels at a time. */
ESP_HOT static void max_window_gradient(const esp_node *node, int64_t start, int64_t out, esp_real *dx) {
  enum { CHANNELS = 64 };
  const int64_t channels = node->inputs[0]->shape[3];
  for (int64_t first = 0; first < channels; first += CHANNELS) {
    const int64_t count = channels - first < CHANNELS ? channels - first : CHANNELS;
    const esp_real *restrict y = node->outputs[0]->data + out + first;
    esp_real left[CHANNELS];
    memcpy(left, node->outputs[0]->grad + out + first, (size_t)count * sizeof *left);
    FOR_WINDOW(node, offset) {
      const esp_real *restrict x = node->inputs[0]->data + start + offset + first;
      esp_real *restrict d = dx + start + offset + first;
      for (int64_t j = 0; j < count; j++) {
        const esp_real taken = x[j] == y[j] ? left[j] : 0;
        d[j] += taken;
        left[j] = x[j] == y[j] ? 0 : left[j];
      }
    }
  }
}

ESP_HOT static void mean_window(const esp_node *node, int64_t start, int64_t out, esp_real *unused) {
  (void)unused;
  const int64_t channels = node->inputs[0]->shape[3], size = ((const pool_attributes *)node->attributes)->size;
  const esp_real share = 1 / (esp_real)(size * size);
  esp_real *restrict y = node->outputs[0]->data + out;
  memset(y, 0, (size_t)channels * sizeof *y);
  FOR_WINDOW(node, offset) {
    const esp_real *restrict x = node->inputs[0]->data + start + offset;
    for (int64_t j = 0; j < channels; j++) y[j] += share * x[j];
  }
}

ESP_HOT static void mean_window_gradient(const esp_node *node, int64_t start, int64_t out, esp_real *dx) {
  const int64_t channels = node->inputs[0]->shape[3], size = ((const pool_attributes *)node->attributes)->size;
  const esp_real share = 1 / (esp_real)(size * size);
  const esp_real *restrict dy = node->outputs[0]->grad + out;
  FOR_WINDOW(node, offset) {
    esp_real *restrict d = dx + start + offset;
    for (int64_t j = 0; j < channels; j++) d[j] += share * dy[j];
  }
}

static void max_pool_forward(esp_node *node) { pool(node, max_window); }
static void max_pool_backward(esp_node *node) { pool_back(node, max_window_gradient); }
static void mean_pool_forward(esp_node *node) { pool(node, mean_window); }
static void mean_pool_backward(esp_node *node) { pool_back(node, mean_window_gradient); }

static esp_cost pool_cost(const esp_node *node) {
  const int64_t size = ((const pool_attributes *)node->attributes)->size;
  return esp_cost_elementwise(node, (double)(size * size));
}

const esp_op esp_op_max_pool = {"max pool",       pool_prepare,
                                max_pool_forward, max_pool_backward,
                                pool_cost,        {1e-5, 1e-7, "two largest pixels of a window are equal"}};
const esp_op esp_op_mean_pool = {"mean pool",        pool_prepare, mean_pool_forward,
                                 mean_pool_backward, pool_cost,    {1e-4, 1e-8, NULL}};

esp_tensor *esp_max_pool(esp_tape *tape, esp_tensor *x, int64_t size) {
  return esp_tape_apply(tape, &esp_op_max_pool, &x, 1, &(pool_attributes){size}, sizeof(pool_attributes));
}

esp_tensor *esp_mean_pool(esp_tape *tape, esp_tensor *x, int64_t size) {
  return esp_tape_apply(tape, &esp_op_mean_pool, &x, 1, &(pool_attributes){size}, sizeof(pool_attributes));
}
