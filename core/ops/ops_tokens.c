/* Ops on tokens [N, T, C] and on rows. */
#include "ops_internal.h"
#include <espalier/op_helpers.h>

#include <string.h>

/* --- attention (Vaswani et al., arXiv 1706.03762) -------------------------------------------------------------
 * per image and head, with D columns a head:  P = softmax(Q K^T / sqrt(D)),  Y = P V.
 * dV = P^T dY;  dP = dY V^T;  dS = P (dP - rowsum(dP P)) / sqrt(D);  dQ = dS K;  dK = dS^T Q.
 * Q, K and V are read in place out of the rows of qkv. */

typedef struct attention_attributes {
  int64_t heads;
} attention_attributes;

typedef struct attention_shape {
  int64_t images, tokens, width, heads, head_width;
  esp_real scale;
} attention_shape;

static attention_shape attention_shape_of(const esp_node *node) {
  const esp_tensor *qkv = node->inputs[0];
  attention_shape s = {.images = qkv->shape[0],
                       .tokens = qkv->shape[1],
                       .width = qkv->shape[2] / 3,
                       .heads = ((const attention_attributes *)node->attributes)->heads};
  s.head_width = s.width / s.heads;
  s.scale = 1 / esp_sqrt((esp_real)s.head_width);
  return s;
}

static void attention_prepare(esp_node *node) {
  const esp_tensor *qkv = node->inputs[0];
  const int64_t heads = ((const attention_attributes *)node->attributes)->heads;
  esp_require(node, qkv->rank == 3 && heads > 0 && qkv->shape[2] % (3 * heads) == 0, "needs [N, T, 3 x heads x width]");
  const attention_shape s = attention_shape_of(node);
  esp_set_output(node, 0, 3, (const int64_t[]){s.images, s.tokens, s.width});
  const size_t square = (size_t)(s.tokens * s.tokens) * sizeof(esp_real);
  node->saved_bytes = (size_t)(s.images * s.heads) * square;
  node->scratch_bytes = ESP_PARTS * square;
  node->unread = ESP_UNREAD_OUTPUTS;
}

/* Works on each of the rows of scores [rows, t]. */
ESP_HOT static void scaled_softmax(esp_real *restrict scores, int64_t rows, int64_t t, esp_real scale) {
  for (const esp_real *end = scores + rows * t; scores < end; scores += t) {
    const esp_real most = esp_largest(scores, t);
    esp_real sum = 0;
    ESP_SUMS(sum)
    for (int64_t j = 0; j < t; j++) sum += scores[j] = esp_exp(scale * (scores[j] - most));
    const esp_real inverse = 1 / sum;
    for (int64_t j = 0; j < t; j++) scores[j] *= inverse;
  }
}

/* dS from P and dP, in place of dP. */
ESP_HOT static void scaled_softmax_gradient(const esp_real *restrict p, esp_real *restrict dp, int64_t t,
                                            esp_real scale) {
  for (const esp_real *end = p + t * t; p < end; p += t, dp += t) {
    esp_real dot = 0;
    ESP_SUMS(dot)
    for (int64_t j = 0; j < t; j++) dot += dp[j] * p[j];
    for (int64_t j = 0; j < t; j++) dp[j] = scale * p[j] * (dp[j] - dot);
  }
}

/* What some queries of an image see, in one head. */
static void attend_some(const esp_node *node, const attention_shape *s, int64_t image, int64_t head, int64_t first,
                        int64_t count) {
  const int64_t t = s->tokens, row = 3 * s->width, column = head * s->head_width;
  const esp_real *qkv = node->inputs[0]->data + image * t * row + column;
  esp_real *p = (esp_real *)node->saved + ((image * s->heads + head) * t + first) * t;
  esp_real *y = node->outputs[0]->data + (image * t + first) * s->width + column;
  esp_gemm_here(&(esp_gemm){.transpose_b = true,
                            .m = count,
                            .n = t,
                            .k = s->head_width,
                            .a = qkv + first * row,
                            .lda = row,
                            .b = qkv + s->width,
                            .ldb = row,
                            .c = p,
                            .ldc = t,
                            .alpha = 1});
  scaled_softmax(p, count, t, s->scale);
  esp_gemm_here(&(esp_gemm){.m = count,
                            .n = s->head_width,
                            .k = t,
                            .a = p,
                            .lda = t,
                            .b = qkv + 2 * s->width,
                            .ldb = row,
                            .c = y,
                            .ldc = s->width,
                            .alpha = 1});
}

/* With few images queries are dealt out, too: whatever the threads are, for products of fewer rows may add in another
 * order. */
enum { FEW_IMAGES = 16, QUERIES = 32 };

static int64_t queries_at_once(const attention_shape *s) { return s->images < FEW_IMAGES ? QUERIES : s->tokens; }

static int64_t query_blocks(const attention_shape *s) {
  return (s->tokens + queries_at_once(s) - 1) / queries_at_once(s);
}

/* Item i: block i % blocks of the queries of an image, in all heads. */
static void attend(void *context, int64_t begin, int64_t end) {
  const esp_node *node = context;
  const attention_shape s = attention_shape_of(node);
  const int64_t blocks = query_blocks(&s), most = queries_at_once(&s);
  for (int64_t i = begin; i < end; i++) {
    const int64_t first = i % blocks * most, count = s.tokens - first < most ? s.tokens - first : most;
    for (int64_t head = 0; head < s.heads; head++) attend_some(node, &s, i / blocks, head, first, count);
  }
}

static void attention_forward(esp_node *node) {
  const attention_shape s = attention_shape_of(node);
  esp_parallel_rows(s.images * query_blocks(&s), queries_at_once(&s) * s.width, attend, node);
}

typedef struct attention_gradient {
  const esp_node *node;
  esp_real *dqkv;
  esp_real beta;
} attention_gradient;

/* A head of an image: where its rows begin. Those of q, k, v and their gradients are 3 width apart, those of dy
 * width. */
typedef struct attention_head {
  const esp_real *q, *k, *v, *p, *dy;
  esp_real *dq, *dk, *dv;
  int64_t row;
} attention_head;

static attention_head head_at(const attention_gradient *g, const attention_shape *s, int64_t i) {
  const int64_t t = s->tokens, row = 3 * s->width, image = i / s->heads, head = i % s->heads * s->head_width;
  const esp_real *q = g->node->inputs[0]->data + image * t * row + head;
  esp_real *dq = g->dqkv + image * t * row + head;
  return (attention_head){.q = q,
                          .k = q + s->width,
                          .v = q + 2 * s->width,
                          .p = (const esp_real *)g->node->saved + i * t * t,
                          .dy = g->node->outputs[0]->grad + image * t * s->width + head,
                          .dq = dq,
                          .dk = dq + s->width,
                          .dv = dq + 2 * s->width,
                          .row = row};
}

/* c [t, d] = op(a) b, or added to it; a is the square p or ds. */
static void weigh_rows(const attention_gradient *g, const attention_shape *s, esp_gemm product) {
  product.m = product.k = product.lda = s->tokens;
  product.n = s->head_width;
  product.ldc = 3 * s->width;
  product.alpha = 1;
  product.beta = g->beta;
  esp_gemm_here(&product);
}

/* ds: room for one head's square, which stays in the cache. */
static void attend_back(const attention_gradient *g, const attention_shape *s, int64_t i, esp_real *ds) {
  const attention_head h = head_at(g, s, i);
  const int64_t t = s->tokens;
  weigh_rows(g, s, (esp_gemm){.transpose_a = true, .a = h.p, .b = h.dy, .ldb = s->width, .c = h.dv});
  esp_gemm_here(&(esp_gemm){.transpose_b = true,
                            .m = t,
                            .n = t,
                            .k = s->head_width,
                            .a = h.dy,
                            .lda = s->width,
                            .b = h.v,
                            .ldb = h.row,
                            .c = ds,
                            .ldc = t,
                            .alpha = 1});
  scaled_softmax_gradient(h.p, ds, t, s->scale);
  weigh_rows(g, s, (esp_gemm){.a = ds, .b = h.k, .ldb = h.row, .c = h.dq});
  weigh_rows(g, s, (esp_gemm){.transpose_a = true, .a = ds, .b = h.q, .ldb = h.row, .c = h.dk});
}

static void attend_back_parts(void *context, int64_t begin, int64_t end) {
  const attention_gradient *g = context;
  const attention_shape s = attention_shape_of(g->node);
  const int64_t count = s.images * s.heads;
  for (int64_t part = begin; part < end; part++) {
    esp_real *ds = (esp_real *)g->node->scratch + part * s.tokens * s.tokens;
    for (int64_t i = esp_part_begin(count, part); i < esp_part_begin(count, part + 1); i++) attend_back(g, &s, i, ds);
  }
}

static void attention_backward(esp_node *node) {
  bool add;
  attention_gradient g = {.node = node, .dqkv = esp_grad(node->inputs[0], &add)};
  g.beta = add;
  esp_parallel_for(ESP_PARTS, 1, attend_back_parts, &g);
}

static esp_cost attention_cost(const esp_node *node) {
  const attention_shape s = attention_shape_of(node);
  return esp_cost_elementwise(node, 4.0 * (double)s.tokens + 5.0 * (double)s.tokens / (double)s.head_width);
}

const esp_op esp_op_attention = {"attention",        attention_prepare, attention_forward,
                                 attention_backward, attention_cost,    {1e-5, 1e-7, NULL}};

esp_tensor *esp_attention(esp_tape *tape, esp_tensor *qkv, int64_t heads) {
  return esp_tape_apply(tape, &esp_op_attention, &qkv, 1, &(attention_attributes){heads}, sizeof(attention_attributes));
}

/* --- mean over tokens: y[n, c] = 1/T sum_t x[n, t, c] ------------------------------------------------------- */

static void mean_tokens_prepare(esp_node *node) {
  const esp_tensor *x = node->inputs[0];
  esp_require(node, x->rank == 3, "needs [N, T, C]");
  esp_set_output(node, 0, 2, (const int64_t[]){x->shape[0], x->shape[2]});
  node->unread = ESP_UNREAD_INPUT(0) | ESP_UNREAD_OUTPUTS;
}

ESP_HOT static void mean_tokens_images(void *context, int64_t begin, int64_t end) {
  const esp_node *node = context;
  const int64_t tokens = node->inputs[0]->shape[1], columns = node->inputs[0]->shape[2];
  const esp_real share = 1 / (esp_real)tokens;
  for (int64_t n = begin; n < end; n++) {
    const esp_real *restrict x = node->inputs[0]->data + n * tokens * columns;
    esp_real *restrict y = node->outputs[0]->data + n * columns;
    memset(y, 0, (size_t)columns * sizeof *y);
    for (int64_t t = 0; t < tokens; t++)
      for (int64_t j = 0; j < columns; j++) y[j] += share * x[t * columns + j];
  }
}

static int64_t image_elements(const esp_node *node) { return node->inputs[0]->shape[1] * node->inputs[0]->shape[2]; }

static void mean_tokens_forward(esp_node *node) {
  esp_parallel_rows(node->inputs[0]->shape[0], image_elements(node), mean_tokens_images, node);
}

typedef struct mean_gradient {
  const esp_node *node;
  esp_real *dx;
  bool accumulate;
} mean_gradient;

ESP_HOT static void mean_tokens_gradient_images(void *context, int64_t begin, int64_t end) {
  const mean_gradient *g = context;
  const int64_t tokens = g->node->inputs[0]->shape[1], columns = g->node->inputs[0]->shape[2];
  const esp_real share = 1 / (esp_real)tokens;
  for (int64_t row = begin * tokens; row < end * tokens; row++) {
    const esp_real *restrict dy = g->node->outputs[0]->grad + row / tokens * columns;
    esp_real *restrict dx = g->dx + row * columns;
    for (int64_t j = 0; j < columns; j++) dx[j] = (g->accumulate ? dx[j] : 0) + share * dy[j];
  }
}

static void mean_tokens_backward(esp_node *node) {
  mean_gradient g = {.node = node};
  g.dx = esp_grad(node->inputs[0], &g.accumulate);
  esp_parallel_rows(node->inputs[0]->shape[0], image_elements(node), mean_tokens_gradient_images, &g);
}

static esp_cost one_flop(const esp_node *node) {
  return (esp_cost){(double)esp_tensor_count(node->inputs[0]), 4.0 * (double)esp_tensor_count(node->inputs[0])};
}

const esp_op esp_op_mean_tokens = {"mean over tokens", mean_tokens_prepare, mean_tokens_forward, mean_tokens_backward,
                                   one_flop,           {1e-4, 1e-8, NULL}};

esp_tensor *esp_mean_tokens(esp_tape *tape, esp_tensor *x) {
  return esp_tape_apply(tape, &esp_op_mean_tokens, &x, 1, NULL, 0);
}

/* --- mean of everything ---------------------------------------------------------------------------------------- */

static double sum_range(void *context, int64_t begin, int64_t end) {
  const esp_real *x = context;
  double sum = 0;
  for (int64_t i = begin; i < end; i++) sum += (double)x[i];
  return sum;
}

static void mean_forward(esp_node *node) {
  const esp_tensor *x = node->inputs[0];
  const int64_t count = esp_tensor_count(x);
  node->outputs[0]->data[0] = (esp_real)(esp_parallel_sum(count, sum_range, x->data) / (double)count);
}

static void mean_backward(esp_node *node) {
  const int64_t count = esp_tensor_count(node->inputs[0]);
  const esp_real share = node->outputs[0]->grad[0] / (esp_real)count;
  bool add;
  esp_real *dx = esp_grad(node->inputs[0], &add);
  for (int64_t i = 0; i < count; i++) dx[i] = (add ? dx[i] : 0) + share;
}

const esp_op esp_op_mean = {"mean", esp_set_output_scalar, mean_forward, mean_backward, one_flop, {1e-4, 1e-8, NULL}};

esp_tensor *esp_mean(esp_tape *tape, esp_tensor *x) { return esp_tape_apply(tape, &esp_op_mean, &x, 1, NULL, 0); }

/* --- reshape: the same memory under another shape ------------------------------------------------------------- */

typedef struct reshape_attributes {
  int rank;
  int64_t shape[ESP_MAX_RANK];
} reshape_attributes;

static void reshape_prepare(esp_node *node) {
  const reshape_attributes *at = node->attributes;
  esp_set_output(node, 0, at->rank, at->shape);
  esp_require(node, esp_tensor_count(node->outputs[0]) == esp_tensor_count(node->inputs[0]), "the sizes differ");
  node->outputs[0]->data = node->inputs[0]->data;
  node->outputs[0]->view = true;
  node->unread = ESP_UNREAD_INPUT(0) | ESP_UNREAD_OUTPUTS;
  node->passes = ESP_PASSES(0);
}

static void reshape_forward(esp_node *node) { (void)node; }

static void reshape_backward(esp_node *node) {
  const int64_t count = esp_tensor_count(node->inputs[0]);
  const esp_real *dy = node->outputs[0]->grad;
  bool add;
  esp_real *dx = esp_grad(node->inputs[0], &add);
  if (add)
    for (int64_t i = 0; i < count; i++) dx[i] += dy[i];
  else memcpy(dx, dy, (size_t)count * sizeof *dx);
}

static esp_cost no_flops(const esp_node *node) { return esp_cost_elementwise(node, 0); }

const esp_op esp_op_reshape = {"reshape",        reshape_prepare, reshape_forward,
                               reshape_backward, no_flops,        {1e-4, 1e-8, NULL}};

esp_tensor *esp_reshape(esp_tape *tape, esp_tensor *x, int rank, const int64_t *shape) {
  reshape_attributes at = {.rank = rank};
  memcpy(at.shape, shape, (size_t)rank * sizeof *shape);
  return esp_tape_apply(tape, &esp_op_reshape, &x, 1, &at, sizeof at);
}
