#include "op_examples.h"
#include "testing.h"

#include <espalier/router.h>
#include <espalier/ops.h>

/* --- what builders use ----------------------------------------------------------------------------------- */

typedef void fill_function(esp_real *values, int64_t count, uint64_t stream);

static void apart(esp_real *values, int64_t count, uint64_t stream) { fill_apart(values, count, 0.02, stream); }

/* On the first build a new leaf, later the one that was made then. Its gradient lies outside the step arena, as a
 * parameter's does. */
static esp_tensor *next_leaf(example *e, int rank, const int64_t *shape, bool requires_grad, fill_function *fill) {
  assert_true(e->next < EXAMPLE_MAX_LEAVES);
  esp_tensor *leaf = &e->leaves[e->next++];
  if (e->next <= e->leaf_count) return leaf;
  e->leaf_count = e->next;
  *leaf = (esp_tensor){.rank = rank, .requires_grad = requires_grad};
  memcpy(leaf->shape, shape, (size_t)rank * sizeof *shape);
  const int64_t count = esp_tensor_count(leaf);
  leaf->data = esp_alloc((size_t)count, sizeof *leaf->data);
  leaf->grad = esp_alloc((size_t)count, sizeof *leaf->grad);
  assert_non_null(leaf->data);
  assert_non_null(leaf->grad);
  fill(leaf->data, count, e->stream * EXAMPLE_MAX_LEAVES + (uint64_t)e->next);
  return leaf;
}

esp_tensor *example_normal(example *e, int rank, const int64_t *shape) {
  return next_leaf(e, rank, shape, true, fill_normal);
}

esp_tensor *example_apart(example *e, int rank, const int64_t *shape) { return next_leaf(e, rank, shape, true, apart); }

/* Weights as large as y has elements undo the mean, so that gradients are about 1. */
static void loss_weights(esp_real *values, int64_t count, uint64_t stream) {
  fill_normal(values, count, stream);
  for (int64_t i = 0; i < count; i++) values[i] *= (esp_real)count;
}

esp_tensor *example_loss(example *e, esp_tensor *y) {
  if (!y) return NULL;
  esp_tensor *weights = next_leaf(e, y->rank, y->shape, false, loss_weights);
  return esp_mean(e->tape, esp_multiply(e->tape, y, weights));
}

/* --- what tests use -------------------------------------------------------------------------------------- */

void example_create(example *e, const op_example *row) {
  *e = (example){.row = row, .stream = (uint64_t)(row - op_examples) + 1};
  e->tape = esp_tape_create();
  assert_non_null(e->tape);
  assert_non_null(example_build(e, 1));
}

void example_free(example *e) {
  esp_tape_free(e->tape);
  for (int i = 0; i < e->leaf_count; i++) {
    esp_free(e->leaves[i].data);
    esp_free(e->leaves[i].grad);
  }
}

esp_tensor *example_build(example *e, int times) {
  esp_tape_reset(e->tape, true);
  esp_tape_scope(e->tape, e->row->description);
  esp_tensor *loss = NULL;
  for (int i = 0; i < times; i++) {
    e->next = 0;
    esp_tensor *again = e->row->build(e);
    loss = i ? esp_add(e->tape, loss, again) : again;
  }
  return loss;
}

esp_status example_run(example *e, int times) {
  esp_tensor *loss = example_build(e, times);
  return loss ? esp_tape_backward(e->tape, loss) : esp_tape_status(e->tape);
}

const esp_node *example_node(const example *e) {
  for (int64_t i = 0; i < esp_tape_node_count(e->tape); i++)
    if (strcmp(esp_tape_node(e->tape, i)->op->name, e->row->op) == 0) return esp_tape_node(e->tape, i);
  return NULL;
}

/* --- products -------------------------------------------------------------------------------------------- */

static esp_tensor *matmul_plain(example *e) {
  esp_tensor *a = example_normal(e, SHAPE(3, 5)), *b = example_normal(e, SHAPE(5, 4));
  return example_loss(e, esp_matmul(e->tape, a, false, b, false));
}

static esp_tensor *matmul_a(example *e) {
  esp_tensor *a = example_normal(e, SHAPE(5, 3)), *b = example_normal(e, SHAPE(5, 4));
  return example_loss(e, esp_matmul(e->tape, a, true, b, false));
}

static esp_tensor *matmul_b_batch(example *e) {
  esp_tensor *a = example_normal(e, SHAPE(2, 3, 5)), *b = example_normal(e, SHAPE(2, 4, 5));
  return example_loss(e, esp_matmul(e->tape, a, false, b, true));
}

static esp_tensor *matmul_both_batch(example *e) {
  esp_tensor *a = example_normal(e, SHAPE(2, 2, 5, 3)), *b = example_normal(e, SHAPE(2, 2, 4, 5));
  return example_loss(e, esp_matmul(e->tape, a, true, b, true));
}

static esp_tensor *matmul_itself(example *e) {
  esp_tensor *a = example_normal(e, SHAPE(4, 3));
  return example_loss(e, esp_matmul(e->tape, a, false, a, true));
}

/* `count` rows of a small leaf as a matrix [height, width]: large products with few numbers to differentiate by. */
static esp_tensor *repeated_rows(example *e, int64_t count, int64_t height, int64_t width) {
  esp_tensor *leaf = example_normal(e, SHAPE(3, height * width / count));
  int32_t rows[1024];
  assert_true(count <= 1024);
  for (int i = 0; i < count; i++) rows[i] = i % 3;
  return esp_reshape(e->tape, esp_gather_rows(e->tape, leaf, rows, count), SHAPE(height, width));
}

static esp_tensor *matmul_tiled(example *e) {
  esp_tensor *a = repeated_rows(e, 1000, 200, 100), *b = repeated_rows(e, 500, 60, 100);
  return esp_scale(e->tape, example_loss(e, esp_matmul(e->tape, a, false, b, true)), 0.01);
}

static esp_tensor *linear_map(example *e) {
  esp_tensor *x = example_normal(e, SHAPE(2, 3, 4)), *weight = example_normal(e, SHAPE(5, 4));
  return example_loss(e, esp_linear_map(e->tape, x, weight, example_normal(e, SHAPE(5))));
}

static esp_tensor *linear_map_no_bias(example *e) {
  esp_tensor *x = example_normal(e, SHAPE(7, 4)), *weight = example_normal(e, SHAPE(3, 4));
  return example_loss(e, esp_linear_map(e->tape, x, weight, NULL));
}

/* --- elementwise ----------------------------------------------------------------------------------------- */

static esp_tensor *add(example *e) {
  esp_tensor *a = example_normal(e, SHAPE(3, 5)), *b = example_normal(e, SHAPE(3, 5));
  return example_loss(e, esp_add(e->tape, a, b));
}

static esp_tensor *add_repeated(example *e) {
  esp_tensor *a = example_normal(e, SHAPE(19, 2, 3)), *b = example_normal(e, SHAPE(2, 3));
  return example_loss(e, esp_add(e->tape, a, b));
}

static esp_tensor *add_itself(example *e) {
  esp_tensor *a = example_normal(e, SHAPE(7));
  return example_loss(e, esp_add(e->tape, a, a));
}

static esp_tensor *multiply(example *e) {
  esp_tensor *a = example_normal(e, SHAPE(3, 5)), *b = example_normal(e, SHAPE(3, 5));
  return example_loss(e, esp_multiply(e->tape, a, b));
}

static esp_tensor *multiply_repeated(example *e) {
  esp_tensor *a = example_normal(e, SHAPE(19, 2, 3)), *b = example_normal(e, SHAPE(3));
  return example_loss(e, esp_multiply(e->tape, a, b));
}

static esp_tensor *multiply_itself(example *e) {
  esp_tensor *a = example_normal(e, SHAPE(7));
  return example_loss(e, esp_multiply(e->tape, a, a));
}

static esp_tensor *scale(example *e) {
  return example_loss(e, esp_scale(e->tape, example_normal(e, SHAPE(4, 5)), -1.7));
}

static esp_tensor *relu(example *e) { return example_loss(e, esp_relu(e->tape, example_apart(e, SHAPE(9, 5)))); }

static esp_tensor *silu(example *e) { return example_loss(e, esp_silu(e->tape, example_normal(e, SHAPE(9, 5)))); }

static esp_tensor *gelu(example *e) { return example_loss(e, esp_gelu(e->tape, example_normal(e, SHAPE(9, 5)))); }

static esp_tensor *gelu_tanh(example *e) {
  return example_loss(e, esp_gelu_tanh(e->tape, example_normal(e, SHAPE(9, 5))));
}

static esp_tensor *squared_relu(example *e) {
  return example_loss(e, esp_squared_relu(e->tape, example_apart(e, SHAPE(9, 5))));
}

static esp_tensor *swiglu(example *e) {
  return example_loss(e, esp_swiglu(e->tape, example_normal(e, SHAPE(2, 3, 10))));
}

static const esp_gate_kind all_gates[] = {ESP_GATE_IDENTITY, ESP_GATE_RELU,    ESP_GATE_GELU,
                                          ESP_GATE_SILU,     ESP_GATE_SIGMOID, ESP_GATE_SQUARED_RELU};
enum { ALL_GATES = sizeof all_gates / sizeof all_gates[0] };

/* Two ops feed on the same rows, so that the second one adds to the first one's gradient. */
static esp_tensor *glu_of_each_gate(example *e) {
  esp_tensor *x = example_apart(e, SHAPE(3, 10)), *sum = example_loss(e, esp_glu(e->tape, x, all_gates[0]));
  for (int i = 1; i < ALL_GATES; i++)
    sum = esp_add(e->tape, sum, esp_scale(e->tape, example_loss(e, esp_glu(e->tape, x, all_gates[i])), 1 + i / 8.0));
  return sum;
}

static esp_tensor *dropout(example *e) {
  return example_loss(e, esp_dropout(e->tape, example_normal(e, SHAPE(8, 5)), 0.3, 11, 5));
}

/* --- softmax and losses ---------------------------------------------------------------------------------- */

static esp_tensor *softmax(example *e) {
  return example_loss(e, esp_softmax(e->tape, example_normal(e, SHAPE(2, 3, 7))));
}

static esp_tensor *log_softmax(example *e) {
  return example_loss(e, esp_log_softmax(e->tape, example_normal(e, SHAPE(2, 3, 7))));
}

static const int32_t labels[] = {0, 4, 2, 2, 1}, mixed_labels[] = {3, 4, 0, 1, 2};
static const float mix[] = {0.25f, 0.5f, 1, 0, 0.875f};

static esp_tensor *cross_entropy(example *e) {
  return esp_cross_entropy(e->tape, example_normal(e, SHAPE(5, 6)), &(esp_targets){.labels = labels});
}

static esp_tensor *cross_entropy_mixed(example *e) {
  const esp_targets targets = {labels, mixed_labels, mix, 0.1};
  return example_loss(e, esp_cross_entropy(e->tape, example_normal(e, SHAPE(5, 6)), &targets));
}

/* The teacher's logits are constants, so they are no leaf. */
static esp_tensor *distil(example *e, double temperature) {
  static esp_real teacher[30];
  static const esp_tensor constant = {.data = teacher, .rank = 2, .shape = {5, 6}};
  for (int i = 0; i < 30; i++) teacher[i] = (esp_real)((i * 7) % 11 - 5) / 3;
  return esp_distillation_loss(e->tape, example_normal(e, SHAPE(5, 6)), &constant, temperature);
}

static esp_tensor *distillation(example *e) { return distil(e, 1); }

static esp_tensor *distillation_softened(example *e) { return example_loss(e, distil(e, 2.5)); }

/* --- normalisation --------------------------------------------------------------------------------------- */

static esp_tensor *layer_norm(example *e) {
  esp_tensor *x = example_normal(e, SHAPE(2, 11, 7)), *gain = example_normal(e, SHAPE(7));
  return example_loss(e, esp_layer_norm(e->tape, x, gain, example_normal(e, SHAPE(7)), 1e-5));
}

static esp_tensor *rms_norm(example *e) {
  esp_tensor *x = example_normal(e, SHAPE(2, 11, 7)), *gain = example_normal(e, SHAPE(7));
  return example_loss(e, esp_rms_norm(e->tape, x, gain, 1e-5));
}

/* The batch's own statistics: the averages that are kept do not count, nor do they change. */
static esp_tensor *batch_norm(example *e) {
  static esp_real kept[7] = {1, 2, 3, 4, 5, 6, 7};
  static esp_tensor constant = {.data = kept, .rank = 1, .shape = {7}};
  esp_tensor *x = example_normal(e, SHAPE(3, 11, 7)), *gain = example_normal(e, SHAPE(7)),
             *bias = example_normal(e, SHAPE(7));
  return example_loss(
      e, esp_batch_norm(
             e->tape, x, gain, bias,
             &(esp_batch_norm_options){.mean = &constant, .variance = &constant, .epsilon = 1e-5, .training = true}));
}

static esp_tensor *batch_norm_fixed(example *e) {
  static esp_real mean[7] = {-1, 0, 1, 0.5, 0, 2, -3}, variance[7] = {1, 2, 0.5, 1, 4, 0.25, 1};
  static esp_tensor means = {.data = mean, .rank = 1, .shape = {7}},
                    variances = {.data = variance, .rank = 1, .shape = {7}};
  esp_tensor *x = example_normal(e, SHAPE(2, 5, 7)), *gain = example_normal(e, SHAPE(7)),
             *bias = example_normal(e, SHAPE(7));
  return example_loss(
      e, esp_batch_norm(e->tape, x, gain, bias,
                        &(esp_batch_norm_options){.mean = &means, .variance = &variances, .epsilon = 1e-5}));
}

/* --- images ---------------------------------------------------------------------------------------------- */

static esp_tensor *convolution(example *e) {
  esp_tensor *x = example_normal(e, SHAPE(2, 5, 4, 3)), *weight = example_normal(e, SHAPE(4, 3, 3, 3));
  return example_loss(e, esp_convolution(e->tape, x, weight, example_normal(e, SHAPE(4)), 1, 1));
}

static esp_tensor *convolution_strided(example *e) {
  esp_tensor *x = example_normal(e, SHAPE(3, 7, 6, 2)), *weight = example_normal(e, SHAPE(3, 3, 3, 2));
  return example_loss(e, esp_convolution(e->tape, x, weight, NULL, 2, 1));
}

static esp_tensor *convolution_patches(example *e) {
  esp_tensor *x = example_normal(e, SHAPE(17, 4, 4, 1)), *weight = example_normal(e, SHAPE(3, 2, 2, 1));
  return example_loss(e, esp_convolution(e->tape, x, weight, example_normal(e, SHAPE(3)), 2, 0));
}

static esp_tensor *depthwise(example *e) {
  esp_tensor *x = example_normal(e, SHAPE(2, 5, 4, 3)), *weight = example_normal(e, SHAPE(3, 3, 3));
  return example_loss(e, esp_depthwise_convolution(e->tape, x, weight, example_normal(e, SHAPE(3))));
}

static esp_tensor *depthwise_wide(example *e) {
  esp_tensor *x = example_normal(e, SHAPE(2, 3, 4, 2)), *weight = example_normal(e, SHAPE(7, 7, 2));
  return example_loss(e, esp_depthwise_convolution(e->tape, x, weight, NULL));
}

static esp_tensor *max_pool(example *e) {
  return example_loss(e, esp_max_pool(e->tape, example_apart(e, SHAPE(2, 4, 6, 3)), 2));
}

static esp_tensor *mean_pool(example *e) {
  return example_loss(e, esp_mean_pool(e->tape, example_normal(e, SHAPE(2, 6, 3, 2)), 3));
}

/* --- tokens ---------------------------------------------------------------------------------------------- */

static esp_tensor *attention(example *e) {
  return example_loss(e, esp_attention(e->tape, example_normal(e, SHAPE(3, 5, 18)), 2));
}

static esp_tensor *mean_tokens(example *e) {
  return example_loss(e, esp_mean_tokens(e->tape, example_normal(e, SHAPE(3, 5, 4))));
}

static esp_tensor *mean(example *e) { return esp_mean(e->tape, example_normal(e, SHAPE(3, 2, 4))); }

static esp_tensor *reshape(example *e) {
  return example_loss(e, esp_reshape(e->tape, example_normal(e, SHAPE(3, 2, 4)), SHAPE(4, 6)));
}

/* --- rows ------------------------------------------------------------------------------------------------ */

static const int32_t some_rows[] = {4, 0, 4, 2, 4, 1};

static esp_tensor *gather_rows(example *e) {
  return example_loss(e, esp_gather_rows(e->tape, example_normal(e, SHAPE(6, 3)), some_rows, 6));
}

static esp_tensor *scatter_rows(example *e) {
  return example_loss(e, esp_scatter_rows(e->tape, example_normal(e, SHAPE(2, 3, 4)), some_rows, 7));
}

static esp_tensor *top_k(example *e) {
  return example_loss(e, esp_top_k(e->tape, example_apart(e, SHAPE(2, 3, 7)), 3, NULL));
}

/* --- how ops meet ---------------------------------------------------------------------------------------- */

/* The gradient of x comes from three ops, that of the weight from two. */
static esp_tensor *residual(example *e) {
  esp_tensor *x = example_normal(e, SHAPE(5, 4)), *weight = example_normal(e, SHAPE(4, 4));
  esp_tensor *inner = esp_silu(e->tape, esp_linear_map(e->tape, x, weight, NULL));
  esp_tensor *y = esp_add(e->tape, esp_add(e->tape, x, inner), esp_linear_map(e->tape, x, weight, NULL));
  return example_loss(e, esp_add(e->tape, y, x));
}

/* A reshaped tensor shares its data with the original, but not its gradient. */
static esp_tensor *reshape_and_original(example *e) {
  esp_tensor *x = example_normal(e, SHAPE(2, 6)), *flat = esp_reshape(e->tape, x, SHAPE(12));
  return esp_add(e->tape, example_loss(e, flat), example_loss(e, esp_softmax(e->tape, x)));
}

/* More elements than one range of a parallel loop, in ops over elements ... */
static esp_tensor *many_elements(example *e) {
  esp_tensor *x = repeated_rows(e, 450, 450, 37), *factor = example_normal(e, SHAPE(37));
  esp_tensor *y = esp_dropout(e->tape, esp_multiply(e->tape, x, factor), 0.2, 3, 4);
  return esp_scale(e->tape, example_loss(e, esp_gelu(e->tape, y)), 0.01);
}

/* ... and over rows. */
static esp_tensor *many_rows(example *e) {
  esp_tensor *x = repeated_rows(e, 450, 450, 37), *gain = example_normal(e, SHAPE(37));
  esp_tensor *y = esp_softmax(e->tape, esp_rms_norm(e->tape, x, gain, 1e-3));
  return esp_scale(e->tape, example_loss(e, esp_log_softmax(e->tape, esp_scale(e->tape, y, 10))), 0.01);
}

/* --- mixtures -------------------------------------------------------------------------------------------- */

enum { Z = ESP_EXPERT_ZERO, M = ESP_EXPERT_MASKED };

static const esp_expert_layout layout = {
    .experts = 5, .stored = 3, .index = {0, Z, 1, M, 2}, .original_ids = {0, 1, 2, 3, 4}};
static const esp_expert_layout large_layout = {
    .experts = 7, .stored = 3, .index = {0, M, 1, Z, 2, 0, Z}, .original_ids = {0, 1, 2, 3, 4, 5, 6}};

/* What a router may have decided for 5 tokens with `layout`: zero experts are chosen, expert 2 is not. */
static const esp_routing routing = {
    .tokens = 5,
    .slots = 10,
    .k = 2,
    .experts = 5,
    .stored = 3,
    .rows = 8,
    .first_slot = (const int64_t[]){0, 2, 4, 6, 8, 10},
    .token = (const int32_t[]){0, 0, 1, 1, 2, 2, 3, 3, 4, 4},
    .choice = (const int32_t[]){0, 4, 4, 1, 0, 4, 1, 0, 4, 0},
    .row = (const int32_t[]){0, 4, 5, -1, 1, 6, -1, 2, 7, 3},
    .slot = (const int32_t[]){0, 4, 7, 9, 1, 2, 5, 8},
    .first_row = (const int64_t[]){0, 4, 4, 8},
    .wanted = (const int64_t[]){4, 2, 0, 0, 4},
    .served = (const int64_t[]){4, 2, 0, 0, 4},
};

/* The same with other numbers of slots: token 1 has none, token 3 three. */
static const esp_routing uneven_routing = {
    .tokens = 5,
    .slots = 8,
    .experts = 5,
    .stored = 3,
    .rows = 6,
    .first_slot = (const int64_t[]){0, 2, 2, 3, 6, 8},
    .token = (const int32_t[]){0, 0, 2, 3, 3, 3, 4, 4},
    .choice = (const int32_t[]){0, 4, 4, 0, 4, 1, 0, 1},
    .row = (const int32_t[]){0, 3, 4, 1, 5, -1, 2, -1},
    .slot = (const int32_t[]){0, 3, 6, 1, 2, 4},
    .first_row = (const int64_t[]){0, 3, 3, 6},
    .wanted = (const int64_t[]){3, 2, 0, 0, 3},
    .served = (const int64_t[]){3, 2, 0, 0, 3},
};

typedef esp_tensor *router(esp_tape *tape, esp_tensor *logits, const esp_route_request *request, esp_routed *routed);

/* Both outputs count: gates and scores. */
static esp_tensor *routed_loss(example *e, router *route_by, esp_tensor *logits, const esp_route_request *request) {
  esp_routed routed = {0};
  esp_tensor *gates = route_by(e->tape, logits, request, &routed);
  return esp_add(e->tape, example_loss(e, gates), example_loss(e, routed.scores));
}

static esp_route_request training_request(const esp_router_config *config, const esp_expert_layout *of, int k,
                                          const esp_tensor *logits) {
  esp_route_request request = esp_plain_request(config, of, k, logits ? logits->shape[0] : 0);
  request.training = true;
  request.seed = 3;
  request.stream = 4;
  return request;
}

static esp_tensor *route_loss(example *e, esp_tensor *logits, int k, const esp_router_config *config,
                              const esp_expert_layout *of) {
  const esp_route_request request = training_request(config, of, k, logits);
  return routed_loss(e, esp_route, logits, &request);
}

/* 12 tokens of 6 images in 2 members of 3 experts, one of them a zero expert; with bias, noise and capacity. */
static const esp_expert_layout member_layout = {
    .experts = 6, .stored = 5, .index = {0, 1, 2, 3, Z, 4}, .original_ids = {0, 1, 2, 3, 4, 5}};

static esp_tensor *route_members(example *e) {
  static const esp_real bias[] = {0.125, -0.25, 0.0625, 0, 0.25, -0.125};
  const esp_router_config config = {
      .renormalise = true, .noise = 0.3, .capacity = 0.8, .batch_priority = true, .group_images = 2};
  esp_tensor *logits = example_apart(e, SHAPE(12, 6));
  esp_route_request request = training_request(&config, &member_layout, 2, logits);
  request.members = 2;
  request.images = 6;
  request.bias = bias;
  return routed_loss(e, esp_route, logits, &request);
}

static esp_tensor *route_assigned(example *e) {
  static const int32_t choices[] = {0, 2, 4, 0, 5, 6, 2, 3, 6, 0};
  const esp_router_config config = {.renormalise = true};
  esp_tensor *logits = example_normal(e, SHAPE(5, 7));
  esp_route_request request = training_request(&config, &large_layout, 2, logits);
  request.choices = choices;
  return routed_loss(e, esp_route, logits, &request);
}

/* 2 members, groups of 4 and 2 tokens. */
static esp_tensor *route_experts(example *e, esp_score_kind score, bool selected_only) {
  const esp_router_config config = {
      .score = score, .score_selected_only = selected_only, .noise = 0.2, .group_images = 2};
  esp_tensor *logits = example_apart(e, SHAPE(12, 6));
  esp_route_request request = training_request(&config, &member_layout, 1, logits);
  request.members = 2;
  request.images = 6;
  return routed_loss(e, esp_route_experts, logits, &request);
}

static esp_tensor *route_experts_softmax(example *e) { return route_experts(e, ESP_SCORE_SOFTMAX, false); }

static esp_tensor *route_experts_softmax_chosen(example *e) { return route_experts(e, ESP_SCORE_SOFTMAX, true); }

static esp_tensor *route_experts_sigmoid(example *e) { return route_experts(e, ESP_SCORE_SIGMOID, false); }

static esp_tensor *route_experts_sigmoid_chosen(example *e) { return route_experts(e, ESP_SCORE_SIGMOID, true); }

static esp_tensor *softmax_tokens(example *e) {
  return example_loss(e, esp_softmax_tokens(e->tape, example_normal(e, SHAPE(3, 5, 4))));
}

static esp_tensor *uneven_combine(example *e) {
  esp_tensor *rows = example_normal(e, SHAPE(6, 3)), *gates = example_normal(e, SHAPE(8, 1));
  return example_loss(e, esp_combine(e->tape, rows, gates, &uneven_routing));
}

static esp_tensor *uneven_dispatch(example *e) {
  return example_loss(e, esp_dispatch(e->tape, example_normal(e, SHAPE(5, 3)), &uneven_routing));
}

static esp_tensor *tile(example *e) { return example_loss(e, esp_tile(e->tape, example_normal(e, SHAPE(2, 3, 4)), 3)); }

static esp_tensor *log_mean_probability(example *e) {
  return example_loss(e, esp_log_mean_probability(e->tape, example_normal(e, SHAPE(6, 5)), 3));
}

static esp_tensor *unit_rows(example *e) {
  return example_loss(e, esp_unit_rows(e->tape, example_normal(e, SHAPE(4, 6))));
}

/* With 1, 2 and 3 choices. */
static esp_tensor *route(example *e, esp_score_kind score, bool selected_only, bool renormalise) {
  const esp_router_config config = {.score = score, .score_selected_only = selected_only, .renormalise = renormalise};
  esp_tensor *loss = route_loss(e, example_apart(e, SHAPE(5, 7)), 1, &config, &large_layout);
  for (int k = 2; k <= 3; k++)
    loss = esp_add(e->tape, loss, route_loss(e, example_apart(e, SHAPE(5, 7)), k, &config, &large_layout));
  return loss;
}

static esp_tensor *route_softmax(example *e) { return route(e, ESP_SCORE_SOFTMAX, false, false); }

static esp_tensor *route_softmax_divided(example *e) { return route(e, ESP_SCORE_SOFTMAX, false, true); }

static esp_tensor *route_softmax_selected(example *e) { return route(e, ESP_SCORE_SOFTMAX, true, false); }

static esp_tensor *route_softmax_selected_divided(example *e) { return route(e, ESP_SCORE_SOFTMAX, true, true); }

static esp_tensor *route_sigmoid(example *e) { return route(e, ESP_SCORE_SIGMOID, false, false); }

static esp_tensor *route_sigmoid_divided(example *e) { return route(e, ESP_SCORE_SIGMOID, false, true); }

static esp_tensor *route_sigmoid_selected(example *e) { return route(e, ESP_SCORE_SIGMOID, true, false); }

static esp_tensor *route_sigmoid_selected_divided(example *e) { return route(e, ESP_SCORE_SIGMOID, true, true); }

/* More tokens than one range of the parallel loop. */
static esp_tensor *route_noise(example *e) {
  const esp_router_config config = {.renormalise = true, .noise = 0.5};
  esp_tensor *logits = repeated_rows(e, 600, 600, 5);
  return esp_scale(e->tape, route_loss(e, logits, 2, &config, &layout), 0.01);
}

static esp_tensor *dispatch(example *e) {
  return example_loss(e, esp_dispatch(e->tape, example_normal(e, SHAPE(5, 3)), &routing));
}

static const int64_t groups[] = {0, 3, 3, 7, 8}, empty_ends[] = {0, 0, 5, 5}, one_group[] = {0, 6};

static esp_tensor *grouped_map(example *e) {
  esp_tensor *x = example_normal(e, SHAPE(8, 3)), *bank = example_normal(e, SHAPE(4, 3, 2));
  return example_loss(
      e, esp_grouped_map(e->tape, x, bank, NULL, &(esp_grouped_map_options){.first_row = groups, .groups = 4}));
}

static esp_tensor *grouped_map_bias(example *e) {
  esp_tensor *x = example_normal(e, SHAPE(8, 3)), *bank = example_normal(e, SHAPE(4, 3, 2));
  return example_loss(e, esp_grouped_map(e->tape, x, bank, example_normal(e, SHAPE(4, 2)),
                                         &(esp_grouped_map_options){.first_row = groups, .groups = 4}));
}

static esp_tensor *grouped_map_transposed(example *e) {
  esp_tensor *x = example_normal(e, SHAPE(5, 3)), *bank = example_normal(e, SHAPE(3, 2, 3));
  return example_loss(
      e, esp_grouped_map(e->tape, x, bank, NULL,
                         &(esp_grouped_map_options){.first_row = empty_ends, .groups = 3, .transpose = true}));
}

static esp_tensor *grouped_map_transposed_bias(example *e) {
  esp_tensor *x = example_normal(e, SHAPE(8, 3)), *bank = example_normal(e, SHAPE(4, 2, 3));
  return example_loss(e,
                      esp_grouped_map(e->tape, x, bank, example_normal(e, SHAPE(4, 2)),
                                      &(esp_grouped_map_options){.first_row = groups, .groups = 4, .transpose = true}));
}

static esp_tensor *grouped_map_one_group(example *e) {
  esp_tensor *x = example_normal(e, SHAPE(6, 3)), *bank = example_normal(e, SHAPE(4, 3));
  return example_loss(
      e, esp_grouped_map(e->tape, x, bank, example_normal(e, SHAPE(4)),
                         &(esp_grouped_map_options){.first_row = one_group, .groups = 1, .transpose = true}));
}

/* Groups of 0, 4, 1 and 3 rows, of 2, 3, 1 and 3 neurons in two parts; the second part's columns are 3 to 5. */
static const int64_t ragged_groups[] = {0, 0, 4, 5, 8};
static const int32_t ragged_widths[] = {2, 3, 1, 3};

static esp_tensor *ragged_map_up(example *e) {
  esp_tensor *x = example_normal(e, SHAPE(8, 3)), *bank = example_normal(e, SHAPE(18, 3));
  return example_loss(
      e, esp_grouped_map(
             e->tape, x, bank, example_normal(e, SHAPE(18)),
             &(esp_grouped_map_options){
                 .first_row = ragged_groups, .groups = 4, .widths = ragged_widths, .parts = 2, .transpose = true}));
}

static esp_tensor *ragged_map_down(example *e) {
  esp_tensor *x = example_normal(e, SHAPE(8, 3)), *bank = example_normal(e, SHAPE(9, 4));
  return example_loss(
      e, esp_grouped_map(e->tape, x, bank, example_normal(e, SHAPE(4, 4)),
                         &(esp_grouped_map_options){.first_row = ragged_groups, .groups = 4, .widths = ragged_widths}));
}

/* The padding takes gradients from the ops between, and gives none on. */
static esp_tensor *ragged_maps_of_experts(example *e) {
  esp_tensor *x = example_normal(e, SHAPE(8, 3)), *up = example_normal(e, SHAPE(18, 3));
  esp_tensor *down = example_normal(e, SHAPE(9, 3));
  esp_tensor *pre = esp_grouped_map(
      e->tape, x, up, NULL,
      &(esp_grouped_map_options){
          .first_row = ragged_groups, .groups = 4, .widths = ragged_widths, .parts = 2, .transpose = true});
  esp_tensor *kept = esp_neuron_top_k(e->tape, esp_swiglu(e->tape, pre), pre,
                                      &(esp_neuron_selection){.kept = 2, .ranking = ESP_GATE_SILU}, NULL);
  return example_loss(
      e, esp_grouped_map(e->tape, kept, down, NULL,
                         &(esp_grouped_map_options){.first_row = ragged_groups, .groups = 4, .widths = ragged_widths}));
}

/* Lists of sparse rows: some, none (of an empty group), all, one. */
static const int32_t sparse_counts[] = {2, 0, 4, 1}, no_counts[] = {0, 0, 0, 0};
static esp_real row_numbers[] = {1, 3, 0, 1, 2, 3, 2}, unused_row[] = {0, 0, 0};

static esp_tensor *factored(example *e, esp_tensor *x, int parts, const int32_t *counts, bool bias) {
  const bool none = counts == no_counts;
  esp_tensor *rows = esp_tape_take(e->tape, sizeof *rows), *unused = esp_tape_take(e->tape, sizeof *unused);
  if (!rows || !unused) return NULL;
  *rows = (esp_tensor){.data = none ? unused_row : row_numbers, .rank = 1, .shape = {none ? 1 : 7}};
  *unused = (esp_tensor){.data = unused_row, .rank = 2, .shape = {1, 3}};
  const esp_factors factors = {.parts = parts,
                               .counts = counts,
                               .u = example_normal(e, SHAPE(4, 4, 2)),
                               .v = example_normal(e, SHAPE(4, 2 * parts, 3)),
                               .s = none ? unused : example_normal(e, SHAPE(7, 3)),
                               .rows = rows};
  esp_tensor *biases = bias ? example_normal(e, SHAPE(4, 4)) : NULL;
  return example_loss(e, esp_factored_map(e->tape, x, &factors, biases, groups, 4));
}

static esp_tensor *factored_map(example *e) {
  return factored(e, example_normal(e, SHAPE(8, 3)), 1, sparse_counts, false);
}

static esp_tensor *factored_map_parts(example *e) {
  return factored(e, example_normal(e, SHAPE(8, 3)), 2, sparse_counts, true);
}

static esp_tensor *factored_map_low_rank(example *e) {
  return factored(e, example_normal(e, SHAPE(8, 3)), 2, no_counts, false);
}

/* By the values themselves. */
static esp_tensor *neuron_top_k(example *e) {
  esp_tensor *h = example_apart(e, SHAPE(4, 9));
  return example_loss(
      e, esp_neuron_top_k(e->tape, h, h, &(esp_neuron_selection){.kept = 4, .ranking = ESP_GATE_IDENTITY}, NULL));
}

/* The gradient of `pre` is that of the activation alone. */
static esp_tensor *neuron_top_k_pre(example *e) {
  esp_tensor *pre = example_apart(e, SHAPE(4, 18)), *sum = NULL;
  for (int i = 0; i < ALL_GATES; i++) {
    const esp_neuron_selection selection = {.kept = 4, .ranking = all_gates[i]};
    esp_tensor *kept = esp_neuron_top_k(e->tape, esp_glu(e->tape, pre, all_gates[i]), pre, &selection, NULL);
    esp_tensor *loss = example_loss(e, kept);
    sum = sum ? esp_add(e->tape, sum, loss) : loss;
  }
  return sum;
}

static esp_tensor *combine(example *e) {
  esp_tensor *rows = example_normal(e, SHAPE(8, 3)), *gates = example_normal(e, SHAPE(5, 2));
  return example_loss(e, esp_combine(e->tape, rows, gates, &routing));
}

static const esp_router_config loss_config = {.noise = 1, .group_images = 2};

static esp_tensor *balance_loss(example *e) {
  const esp_route_request request = esp_plain_request(&loss_config, &layout, 2, 5);
  return esp_balance_loss(e->tape, example_normal(e, SHAPE(5, 5)), &routing, &request);
}

static esp_tensor *balance_loss_of_first_choices(example *e) {
  const esp_router_config config = {.balance = ESP_BALANCE_FIRST_CHOICE};
  const esp_route_request request = esp_plain_request(&config, &layout, 2, 5);
  return esp_balance_loss(e->tape, example_normal(e, SHAPE(5, 5)), &routing, &request);
}

static esp_tensor *balance_loss_of_selected_scores(example *e) {
  const esp_router_config config = {.balance_scores = ESP_BALANCE_SCORES_SELECTED};
  const esp_route_request request = esp_plain_request(&config, &layout, 2, 5);
  return esp_balance_loss(e->tape, example_normal(e, SHAPE(5, 5)), &routing, &request);
}

/* Every gate has its turn, with q both ways; there are four experts, one without rows, and once of different widths. */
static esp_tensor *neuron_balance_loss(example *e) {
  static const int32_t widths[] = {2, 3, 5, 4};
  esp_tensor *pre = example_apart(e, SHAPE(8, 10)), *sum = NULL;
  for (int i = 0; i < 4 * ALL_GATES; i++) {
    const esp_gate_kind gate = all_gates[i / 4];
    const int32_t *ragged = i % 2 ? widths : NULL;
    const esp_neuron_selection selection = {.kept = 3, .ranking = gate, .widths = ragged, .first_row = groups};
    const esp_neuron_balance balance = {.kind = i / 2 % 2 ? ESP_NEURON_BALANCE_NORM : ESP_NEURON_BALANCE_ABS,
                                        .gate = gate,
                                        .kept = 3,
                                        .experts = 4,
                                        .first_row = groups,
                                        .widths = ragged};
    const uint8_t *mask = NULL;
    esp_tensor *h = esp_neuron_top_k(e->tape, esp_glu(e->tape, pre, gate), pre, &selection, &mask);
    if (!h) return NULL;
    esp_tensor *loss = esp_scale(e->tape, esp_neuron_balance_loss(e->tape, pre, mask, 5, &balance), 1 + i / 32.0);
    sum = sum ? esp_add(e->tape, sum, loss) : loss;
  }
  return sum;
}

/* 20 tokens of 10 images, 2 members of 4 experts each, one masked; groups of 4 and of 2 tokens. */
static const esp_expert_layout masked_member_layout = {
    .experts = 8, .stored = 7, .index = {0, 1, 2, 3, 4, M, 5, 6}, .original_ids = {0, 1, 2, 3, 4, 5, 6, 7}};

static esp_route_request member_request(void) {
  esp_route_request request = esp_plain_request(&loss_config, &masked_member_layout, 2, 20);
  request.members = 2;
  request.images = 10;
  return request;
}

typedef esp_tensor *loss_of_logits(esp_tape *tape, esp_tensor *logits, const esp_route_request *request);

static esp_tensor *both_losses(example *e, loss_of_logits *loss) {
  const esp_route_request plain = esp_plain_request(&loss_config, &layout, 2, 5), members = member_request();
  esp_tensor *first = loss(e->tape, example_normal(e, SHAPE(5, 5)), &plain);
  return esp_add(e->tape, first, loss(e->tape, example_normal(e, SHAPE(20, 8)), &members));
}

static esp_tensor *z_loss(example *e) { return both_losses(e, esp_z_loss); }

static esp_tensor *entropy_loss(example *e) { return both_losses(e, esp_entropy_loss); }

static esp_tensor *importance_loss(example *e) { return both_losses(e, esp_importance_loss); }

/* The noise is the same for all logits of an expert, so the noisy logits move with the logits. */
static esp_tensor *load_loss(example *e) {
  const esp_route_request request = member_request();
  esp_tensor *logits = example_apart(e, SHAPE(20, 8)), *noisy = esp_tape_tensor(e->tape, 2, (const int64_t[]){20, 8});
  if (!logits || !noisy) return NULL;
  for (int64_t i = 0; i < 160; i++) {
    const bool open = i % 8 / 4 == i / 80 && i % 8 != 5;
    noisy->data[i] = open ? logits->data[i] + (esp_real)(i % 8) / 16 : (esp_real)-INFINITY;
  }
  return esp_load_loss(e->tape, logits, noisy, &request);
}

/* Logits and scores get gradients from several ops, tokens from dispatch and router. */
static esp_tensor *mixture(example *e) {
  esp_tensor *x = example_normal(e, SHAPE(6, 4)), *matrix = example_normal(e, SHAPE(5, 4));
  esp_tensor *up = example_normal(e, SHAPE(3, 10, 4)), *down = example_normal(e, SHAPE(3, 5, 4));
  esp_tensor *logits = esp_linear_map(e->tape, x, matrix, NULL);
  const esp_router_config config = {.renormalise = true};
  const esp_route_request request = esp_plain_request(&config, &layout, 2, 6);
  esp_routed routed = {0};
  esp_tensor *gates = esp_route(e->tape, logits, &request, &routed);
  if (!gates) return NULL;
  const esp_routing *r = routed.routing;
  esp_tensor *losses =
      esp_add(e->tape, esp_balance_loss(e->tape, routed.scores, r, &request), esp_z_loss(e->tape, logits, &request));
  esp_tensor *rows = esp_dispatch(e->tape, x, r);
  esp_tensor *pre =
      esp_grouped_map(e->tape, rows, up, NULL,
                      &(esp_grouped_map_options){.first_row = r->first_row, .groups = r->stored, .transpose = true});
  esp_tensor *kept = esp_neuron_top_k(e->tape, esp_swiglu(e->tape, pre), pre,
                                      &(esp_neuron_selection){.kept = 3, .ranking = ESP_GATE_SILU}, NULL);
  rows = esp_grouped_map(e->tape, kept, down, NULL,
                         &(esp_grouped_map_options){.first_row = r->first_row, .groups = r->stored});
  return esp_add(e->tape, losses, example_loss(e, esp_combine(e->tape, rows, gates, r)));
}

/* --- the table ------------------------------------------------------------------------------------------- */

const op_example op_examples[] = {
    {"matmul", "neither transposed", matmul_plain},
    {"matmul", "a transposed", matmul_a},
    {"matmul", "a batch, b transposed", matmul_b_batch},
    {"matmul", "a batch of rank 4, both transposed", matmul_both_batch},
    {"matmul", "a matrix times its own transpose", matmul_itself},
    {"matmul", "several tiles", matmul_tiled},
    {"linear map", "rank 3, with bias", linear_map},
    {"linear map", "no bias", linear_map_no_bias},
    {"add", "equal shapes", add},
    {"add", "the second repeated", add_repeated},
    {"add", "a tensor to itself", add_itself},
    {"multiply", "equal shapes", multiply},
    {"multiply", "the second repeated", multiply_repeated},
    {"multiply", "a tensor with itself", multiply_itself},
    {"scale", "by a negative factor", scale},
    {"relu", "away from 0", relu},
    {"silu", "normal numbers", silu},
    {"gelu", "normal numbers", gelu},
    {"gelu tanh", "normal numbers", gelu_tanh},
    {"squared relu", "away from 0", squared_relu},
    {"glu", "SwiGLU, rank 3", swiglu},
    {"glu", "every gate", glu_of_each_gate},
    {"dropout", "a fixed mask", dropout},
    {"softmax", "rank 3", softmax},
    {"log softmax", "rank 3", log_softmax},
    {"cross-entropy", "plain labels", cross_entropy},
    {"cross-entropy", "smoothed and mixed-up labels", cross_entropy_mixed},
    {"distillation", "temperature 1", distillation},
    {"distillation", "temperature 2.5", distillation_softened},
    {"layer norm", "more rows than parts", layer_norm},
    {"rms norm", "more rows than parts", rms_norm},
    {"batch norm", "of the batch, more rows than parts", batch_norm},
    {"batch norm", "with averages that were kept", batch_norm_fixed},
    {"unit rows", "normal numbers", unit_rows},
    {"tile", "three times", tile},
    {"log mean probability", "three members", log_mean_probability},
    {"convolution", "padded, with bias", convolution},
    {"convolution", "strided and padded, no bias", convolution_strided},
    {"convolution", "patches, more images than parts", convolution_patches},
    {"depthwise convolution", "3 x 3 with bias", depthwise},
    {"depthwise convolution", "7 x 7, larger than the image, no bias", depthwise_wide},
    {"max pool", "distinct pixels", max_pool},
    {"mean pool", "3 x 3", mean_pool},
    {"attention", "two heads", attention},
    {"mean over tokens", "rank 3", mean_tokens},
    {"mean", "rank 3", mean},
    {"reshape", "to a matrix", reshape},
    {"reshape", "beside the original", reshape_and_original},
    {"gather rows", "some twice, some never", gather_rows},
    {"scatter rows", "some twice, some never", scatter_rows},
    {"top-k", "distinct values", top_k},
    {"linear map", "a residual block: gradients from several ops", residual},
    {"gelu", "several ranges of elements", many_elements},
    {"rms norm", "several ranges of rows", many_rows},
    {"route", "softmax over all", route_softmax},
    {"route", "softmax over all, renormalised", route_softmax_divided},
    {"route", "softmax over the selected", route_softmax_selected},
    {"route", "softmax over the selected, renormalised", route_softmax_selected_divided},
    {"route", "sigmoid of all", route_sigmoid},
    {"route", "sigmoid of all, renormalised", route_sigmoid_divided},
    {"route", "sigmoid of the selected", route_sigmoid_selected},
    {"route", "sigmoid of the selected, renormalised", route_sigmoid_selected_divided},
    {"route", "noise, several ranges of tokens", route_noise},
    {"route", "members, bias, noise, capacity, priority", route_members},
    {"route", "choices made elsewhere", route_assigned},
    {"route experts", "softmax over all", route_experts_softmax},
    {"route experts", "softmax over the chosen tokens", route_experts_softmax_chosen},
    {"route experts", "sigmoid of all", route_experts_sigmoid},
    {"route experts", "sigmoid of the chosen tokens", route_experts_sigmoid_chosen},
    {"softmax over tokens", "normal numbers", softmax_tokens},
    {"dispatch", "zero experts", dispatch},
    {"dispatch", "tokens without and with several slots", uneven_dispatch},
    {"grouped map", "an empty group", grouped_map},
    {"grouped map", "an empty group, bias", grouped_map_bias},
    {"grouped map", "transposed, the first and last group empty", grouped_map_transposed},
    {"grouped map", "transposed, bias", grouped_map_transposed_bias},
    {"grouped map", "one group without a dimension of its own", grouped_map_one_group},
    {"grouped map", "groups of different widths in two parts, up", ragged_map_up},
    {"grouped map", "groups of different widths, down", ragged_map_down},
    {"grouped map", "experts of different widths with a neuron selection", ragged_maps_of_experts},
    {"factored map", "some rows, none, all", factored_map},
    {"factored map", "gate and up side by side, bias", factored_map_parts},
    {"factored map", "no sparse rows at all", factored_map_low_rank},
    {"neuron top-k", "largest of the values themselves", neuron_top_k},
    {"neuron top-k", "largest by the activation of every gate", neuron_top_k_pre},
    {"neuron top-k", "in a whole mixture layer", mixture},
    {"combine", "zero experts", combine},
    {"combine", "tokens without and with several slots", uneven_combine},
    {"balance loss", "zero and masked experts", balance_loss},
    {"balance loss", "of first choices", balance_loss_of_first_choices},
    {"balance loss", "of the chosen experts' scores", balance_loss_of_selected_scores},
    {"neuron balance loss", "every gate, both q, ragged too", neuron_balance_loss},
    {"z-loss", "masked experts, members", z_loss},
    {"entropy loss", "masked experts, members", entropy_loss},
    {"importance loss", "masked experts, members, groups", importance_loss},
    {"load loss", "masked experts, members, groups", load_loss},
    {NULL, NULL, NULL},
};
