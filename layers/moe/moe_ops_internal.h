#ifndef ESPALIER_MOE_OPS_INTERNAL_H
#define ESPALIER_MOE_OPS_INTERNAL_H

#include <espalier/blas.h>
#include <espalier/moe_ops.h>
#include <espalier/op_helpers.h>
#include <espalier/parallel.h>
#include <espalier/random.h>
#include <espalier/vector_math.h>

extern const esp_op esp_op_route, esp_op_dispatch, esp_op_grouped_map, esp_op_neuron_top_k, esp_op_combine,
    esp_op_balance_loss, esp_op_z_loss;

#endif
