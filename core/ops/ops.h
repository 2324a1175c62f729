/* The general ops. Each returns its result, owned by the tape, or NULL if the tape has failed (see tape.h).
 * "Rows" means all dimensions but the last. Images and tokens are channels-last: [N, H, W, C], [N, T, C].
 * A gradient flows to every floating-point input unless the comment says otherwise. */
#ifndef ESPALIER_OPS_H
#define ESPALIER_OPS_H

#include <espalier/gates.h>
#include <espalier/tape.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The rows of the op table that core/ contributes; ends with NULL. */
ESP_API extern const esp_op *const esp_core_ops[];

/* --- products ------------------------------------------------------------------------------------------ */

/* op(a) op(b), op being the transposition of the last two dimensions where asked for. Matrices [m, k] and
 * [k, n], or batches of them with the same leading dimensions: [.., m, n]. */
ESP_API esp_tensor *esp_matmul(esp_tape *tape, esp_tensor *a, bool transpose_a, esp_tensor *b, bool transpose_b);

/* x weight^T + bias: x [.., in], weight [out, in], bias [out] or NULL -> [.., out]. */
ESP_API esp_tensor *esp_linear_map(esp_tape *tape, esp_tensor *x, esp_tensor *weight, esp_tensor *bias);

/* --- elementwise --------------------------------------------------------------------------------------- */

/* a + b and a * b; b has a's shape or that of a's last dimensions (a bias [C], positions [T, C]), over which
 * it is repeated. */
ESP_API esp_tensor *esp_add(esp_tape *tape, esp_tensor *a, esp_tensor *b);
ESP_API esp_tensor *esp_multiply(esp_tape *tape, esp_tensor *a, esp_tensor *b);

/* factor * x. */
ESP_API esp_tensor *esp_scale(esp_tape *tape, esp_tensor *x, double factor);

ESP_API esp_tensor *esp_relu(esp_tape *tape, esp_tensor *x);      /* max(x, 0); slope 0 at 0 */
ESP_API esp_tensor *esp_silu(esp_tape *tape, esp_tensor *x);      /* x sigmoid(x) */
ESP_API esp_tensor *esp_gelu(esp_tape *tape, esp_tensor *x);      /* x Phi(x), by the error function */
ESP_API esp_tensor *esp_gelu_tanh(esp_tape *tape, esp_tensor *x); /* its tanh approximation */

ESP_API esp_tensor *esp_squared_relu(esp_tape *tape, esp_tensor *x); /* max(x, 0)^2 */

/* The middle of a gated linear unit (Shazeer, arXiv 2002.05202): x [.., 2f] = gate | up -> f(gate) * up [.., f].
 * SiLU makes it SwiGLU, the sigmoid GLU, GELU GEGLU, ReLU ReGLU. */
ESP_API esp_tensor *esp_glu(esp_tape *tape, esp_tensor *x, esp_gate_kind gate);
ESP_API esp_tensor *esp_swiglu(esp_tape *tape, esp_tensor *x); /* with SiLU */

/* x with each element zeroed with probability `rate` and the others scaled by 1 / (1 - rate); element i's
 * fate is keyed by (seed, index, i). rate 0 returns x itself. */
ESP_API esp_tensor *esp_dropout(esp_tape *tape, esp_tensor *x, double rate, uint64_t seed, uint64_t index);

/* --- softmax and losses -------------------------------------------------------------------------------- */

ESP_API esp_tensor *esp_softmax(esp_tape *tape, esp_tensor *x);     /* over the last dimension */
ESP_API esp_tensor *esp_log_softmax(esp_tape *tape, esp_tensor *x); /* over the last dimension */

/* The prediction of an ensemble: log of the mean over members of softmax(x), x [members N, C] member after member ->
 * [N, C]. With one member x itself. */
ESP_API esp_tensor *esp_log_mean_probability(esp_tape *tape, esp_tensor *x, int64_t members);

/* What a row should have been. All arrays have one entry per row and must outlive the step. */
typedef struct esp_targets {
  const int32_t *labels;
  const int32_t *mixed_labels; /* with `mix`: the other label of a mixed-up image; NULL without mixup */
  const float *mix;            /* the share of `labels` in the target, 0..1; NULL: 1 */
  double smoothing;            /* label smoothing: this much is spread evenly over all classes */
} esp_targets;

/* The mean over rows of the cross-entropy of softmax(logits [N, classes]) against the targets -> [1]. */
ESP_API esp_tensor *esp_cross_entropy(esp_tape *tape, esp_tensor *logits, const esp_targets *targets);

/* Knowledge distillation (Hinton et al., arXiv 1503.02531, section 2), without its factor T^2: the mean over rows of
 * KL(softmax(teacher / T) || softmax(logits / T)) -> [1]. Logits [N, classes]. The teacher's are a constant: no
 * gradient flows to them, and they must outlive the step. Equal logits give exactly 0 and a gradient of 0. */
ESP_API esp_tensor *esp_distillation_loss(esp_tape *tape, esp_tensor *logits, const esp_tensor *teacher,
                                          double temperature);

/* --- normalisation ------------------------------------------------------------------------------------- */

/* (x - mean) / sqrt(variance + epsilon) * gain + bias, over the last dimension; gain, bias [C]. */
ESP_API esp_tensor *esp_layer_norm(esp_tape *tape, esp_tensor *x, esp_tensor *gain, esp_tensor *bias, double epsilon);

/* x / sqrt(mean(x^2) + epsilon) * gain, over the last dimension (Zhang and Sennrich, arXiv 1910.07467). */
ESP_API esp_tensor *esp_rms_norm(esp_tape *tape, esp_tensor *x, esp_tensor *gain, double epsilon);

typedef struct esp_batch_norm_options {
  esp_tensor *mean, *variance; /* [C] the averages that are kept */
  double epsilon;
  bool training;
} esp_batch_norm_options;

/* (x - mean) / sqrt(variance + epsilon) * gain + bias, mean and variance those of a column over all rows (Ioffe and
 * Szegedy, arXiv 1502.03167); gain, bias, mean, variance [C]. In training they are the batch's own; otherwise the
 * averages that were kept in `mean` and `variance`. No gradient flows to those two. */
ESP_API esp_tensor *esp_batch_norm(esp_tape *tape, esp_tensor *x, esp_tensor *gain, esp_tensor *bias,
                                   const esp_batch_norm_options *options);

/* Moves the averages of every batch norm that the step's gradient went through by `share` towards the batch's mean and
 * its unbiased variance. An op may run twice in a step (esp_tape_forget()), so that this is not its own business. */
ESP_API void esp_batch_norm_update(const esp_tape *tape, double share);

/* Each row over its Euclidean length, over the last dimension; the length counts as at least 1e-6. */
ESP_API esp_tensor *esp_unit_rows(esp_tape *tape, esp_tensor *x);

/* --- images -------------------------------------------------------------------------------------------- */

/* x [N, H, W, C], weight [out, kernel, kernel, C], bias [out] or NULL -> [N, H', W', out] with
 * H' = (H + 2 padding - kernel) / stride + 1. */
ESP_API esp_tensor *esp_convolution(esp_tape *tape, esp_tensor *x, esp_tensor *weight, esp_tensor *bias, int64_t stride,
                                    int64_t padding);

/* Each channel by its own kernel, output as large as the input: x [N, H, W, C], weight [kernel, kernel, C]
 * with an odd kernel, bias [C] or NULL -> [N, H, W, C]. */
ESP_API esp_tensor *esp_depthwise_convolution(esp_tape *tape, esp_tensor *x, esp_tensor *weight, esp_tensor *bias);

/* The maximum of each window of size x size, without overlap: [N, H, W, C] -> [N, H / size, W / size, C].
 * On ties the gradient goes to the first. */
ESP_API esp_tensor *esp_max_pool(esp_tape *tape, esp_tensor *x, int64_t size);

/* [N, H, W, C] -> [N, H / size, W / size, C]. */
ESP_API esp_tensor *esp_mean_pool(esp_tape *tape, esp_tensor *x, int64_t size);

/* --- tokens -------------------------------------------------------------------------------------------- */

/* Scaled dot-product attention of every head: qkv [N, T, 3 d] = queries | keys | values, each of `heads`
 * heads side by side -> [N, T, d]. */
ESP_API esp_tensor *esp_attention(esp_tape *tape, esp_tensor *qkv, int64_t heads);

/* The mean over the middle dimension: [N, T, C] -> [N, C]. */
ESP_API esp_tensor *esp_mean_tokens(esp_tape *tape, esp_tensor *x);

/* x [N, ..] `times` times one after another: [times N, ..]. Once: x itself. */
ESP_API esp_tensor *esp_tile(esp_tape *tape, esp_tensor *x, int64_t times);

/* The mean of all elements -> [1]. */
ESP_API esp_tensor *esp_mean(esp_tape *tape, esp_tensor *x);

/* The same data in another shape of the same size. */
ESP_API esp_tensor *esp_reshape(esp_tape *tape, esp_tensor *x, int rank, const int64_t *shape);

/* --- rows ---------------------------------------------------------------------------------------------- */

/* Row i of the result is row rows[i] of x [.., C] -> [count, C]; an embedding is a gather from its table.
 * `rows` is copied. */
ESP_API esp_tensor *esp_gather_rows(esp_tape *tape, esp_tensor *x, const int32_t *rows, int64_t count);

/* Row rows[i] of the result [height, C] is the sum of the rows i of x that name it, in the order of i. */
ESP_API esp_tensor *esp_scatter_rows(esp_tape *tape, esp_tensor *x, const int32_t *rows, int64_t height);

/* The k largest of each row, largest first, equal ones by lower index: x [.., C] -> [.., k]. `*indices`, if
 * not NULL, becomes their columns [rows, k], in the step arena. */
ESP_API esp_tensor *esp_top_k(esp_tape *tape, esp_tensor *x, int64_t k, const int32_t **indices);

/* The columns of the k largest of values [count], largest first, equal ones by lower index. Not-a-number
 * counts as less than everything. O(count k). */
ESP_API void esp_top_k_of(const esp_real *values, int64_t count, int64_t k, int32_t *indices);

#ifdef __cplusplus
}
#endif
#endif
