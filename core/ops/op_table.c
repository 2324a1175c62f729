/* The op table of core/: one row an op. The tests walk it. */
#include "ops_internal.h"

/* clang-format off */
const esp_op *const esp_core_ops[] = {
    &esp_op_matmul,      &esp_op_linear_map,
    &esp_op_add,         &esp_op_multiply,
    &esp_op_scale,       &esp_op_relu, &esp_op_squared_relu,
    &esp_op_silu,        &esp_op_gelu,
    &esp_op_gelu_tanh,   &esp_op_glu,
    &esp_op_dropout,     &esp_op_softmax,
    &esp_op_log_softmax, &esp_op_cross_entropy,
    &esp_op_layer_norm,  &esp_op_rms_norm,
    &esp_op_batch_norm,
    &esp_op_convolution, &esp_op_depthwise_convolution,
    &esp_op_max_pool,    &esp_op_mean_pool,
    &esp_op_attention,   &esp_op_mean_tokens,
    &esp_op_mean,        &esp_op_reshape,
    &esp_op_gather_rows, &esp_op_scatter_rows,
    &esp_op_top_k,       &esp_op_unit_rows,
    &esp_op_tile,        &esp_op_log_mean_probability,
    &esp_op_distillation,
    NULL,
};
/* clang-format on */
