/* The op table of mixture layers: one row an op. The tests walk it. */
#include "moe_ops_internal.h"

const esp_op *const esp_moe_ops[] = {
    &esp_op_route,           &esp_op_route_experts, &esp_op_softmax_tokens,      &esp_op_dispatch,
    &esp_op_grouped_map,     &esp_op_factored_map,  &esp_op_neuron_top_k,        &esp_op_gathered_experts,
    &esp_op_combine,         &esp_op_balance_loss,  &esp_op_neuron_balance_loss, &esp_op_z_loss,
    &esp_op_importance_loss, &esp_op_load_loss,     &esp_op_entropy_loss,        NULL};
