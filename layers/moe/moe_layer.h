/* The mixture layer: a router, a bank of experts, and perhaps a shared expert. MoE and MoNE are the same layer. */
#ifndef ESPALIER_MOE_LAYER_H
#define ESPALIER_MOE_LAYER_H

#include <espalier/expert_bank.h>
#include <espalier/moe_ops.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct esp_moe {
  const char *scope; /* "blocks.1.moe"; owned by whoever declared the layer */
  int block;
  esp_layer_kind kind;
  esp_moe_config config;
  int neurons_kept; /* per token and expert; config.hidden in an MoE */
  esp_expert_layout layout;
  esp_tensor *router; /* [experts, width]: row e is expert e's routing vector */
  esp_expert_bank bank, shared;
  bool has_shared;
} esp_moe;

/* One forward pass of a mixture layer, as an observer sees it; all in the step arena. T = tokens of the batch. */
typedef struct esp_moe_record {
  const esp_moe *layer;
  const esp_routing *routing;
  const esp_tensor *input, *output;  /* [T, width] */
  const esp_tensor *logits, *scores; /* [T, experts] */
  const esp_tensor *gates;           /* [T, k] */
  esp_bank_trace experts;            /* [rows, ...], rows as in `routing` */
} esp_moe_record;

/* Someone who watches the mixture layers without their knowing who. Called in the order of the layers, on the
 * thread that runs the forward pass. */
typedef struct esp_observer {
  void (*moe)(void *context, const esp_moe_record *record);
  void *context;
} esp_observer;

/* What a forward pass depends on besides the parameters. */
typedef struct esp_pass {
  bool training;                /* noise and dropout on */
  uint64_t seed, step;          /* key of the random streams */
  const esp_observer *observer; /* NULL: none */
} esp_pass;

/* A loss that a layer adds to the task's. */
typedef struct esp_auxiliary_loss {
  const char *kind; /* "balance" or "z" */
  int block;
  double weight;
  esp_tensor *raw; /* [1] */
} esp_auxiliary_loss;

typedef struct esp_auxiliary_losses {
  int count;
  esp_auxiliary_loss loss[2 * ESP_MAX_BLOCKS];
} esp_auxiliary_losses;

/* Declares "scope.router", "scope.experts.*" and "scope.shared.*". `layout` NULL: all experts are there.
 * ESP_ERR_CONFIG if it stores none, or if fewer than top_k can be routed to. */
ESP_API esp_status esp_moe_declare(esp_moe *moe, esp_parameters *parameters, const char *scope, int block,
                                   const esp_model_config *config, const esp_expert_layout *layout,
                                   double residual_scale) ESP_MUST_CHECK;

/* x [.., width] -> [T, width]; appends the layer's losses (those of weight 0 are not computed). */
ESP_API esp_tensor *esp_moe_forward(const esp_moe *moe, esp_tape *tape, esp_tensor *x, const esp_pass *pass,
                                    esp_auxiliary_losses *losses);

#ifdef __cplusplus
}
#endif
#endif
