/* Everything of layers/: norms, stems, mixing, expert banks, mixture layers, whole models. */
#ifndef ESPALIER_LAYERS_H
#define ESPALIER_LAYERS_H

#include <espalier/cost.h>
#include <espalier/expert_bank.h>
#include <espalier/factors.h>
#include <espalier/model.h>
#include <espalier/model_config.h>
#include <espalier/moe_layer.h>
#include <espalier/moe_ops.h>
#include <espalier/norm.h>
#include <espalier/stem.h>
#include <espalier/upcycle.h>

#endif
