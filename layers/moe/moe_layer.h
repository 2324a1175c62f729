/* The mixture layer: a router, a bank of experts, and perhaps a shared expert. MoE and MoNE are the same layer. */
#ifndef ESPALIER_MOE_LAYER_H
#define ESPALIER_MOE_LAYER_H

#include <espalier/expert_bank.h>
#include <espalier/router.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct esp_moe {
  const char *scope; /* "blocks.1.moe"; owned by whoever declared the layer */
  int block;
  esp_layer_kind kind;
  esp_moe_config config;
  int neurons_kept; /* per token and expert, of a narrower expert all; in an MoE the neurons of the widest */
  esp_expert_layout layout;
  double neuron_balance_weight; /* of this layer's loss: the config's shared out among the MoNE layers */
  const esp_router_policy *policy;
  esp_tensor *router;      /* [experts, width]: row e is expert e's routing vector; Soft MoE [experts x slots, width];
                              NULL if the policy has none */
  esp_tensor *router_bias; /* [experts], added for selection only; NULL without */
  esp_expert_bank bank, shared;
  bool has_shared;
} esp_moe;

/* One forward pass of a mixture layer, as an observer sees it, for as long as it is called: the tensors' memory then
 * goes to later results. The routing lives until the step ends. T = tokens of the batch. */
typedef struct esp_moe_record {
  const esp_moe *layer;
  const esp_routing *routing;
  const esp_tensor *input, *output;  /* [T, width] */
  const esp_tensor *logits, *scores; /* [T, experts]; NULL if the router has none */
  const esp_tensor *slot_logits;     /* Soft MoE: [T, experts x slots]; NULL with other policies */
  const esp_tensor *gates;           /* one of each slot; Soft MoE: the weight of the slot, summed over the tokens */
  esp_bank_trace experts;            /* [rows, ...], rows as in `routing` */
  const int32_t *labels;             /* [images] their classes; NULL: not known */
  const uint8_t *padding;            /* [images, tokens_per_image] 1: no data, not to be counted; NULL: all are data */
  int64_t tokens_per_image;          /* token t belongs to image t / tokens_per_image */
  int64_t images;                    /* of one member: with E3, image i of member m is m images + i */
} esp_moe_record;

/* Whether token t of the pass is data. The members of an E3 see the same tokens, one copy after another. */
static inline bool esp_record_counts(const esp_moe_record *record, int64_t t) {
  return !record->padding || !record->padding[t % (record->images * record->tokens_per_image)];
}

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
  const int32_t *labels;        /* [N] for observers; NULL: not known */
  const uint8_t *padding;       /* [N, tokens of an image] for observers: 1 marks tokens that are no data; NULL: none */
  const int32_t *const *choices; /* [blocks] of [T, k]: routing to be replayed in that block; NULL: none */
  /* how MoNE layers compute where no gradient is recorded and neither observer nor filter looks on; otherwise
   * neurons are masked */
  esp_neuron_path neurons;
  const esp_neuron_filter *filter; /* changes what the experts' neurons yield, in evaluation; NULL: none */
} esp_pass;

typedef enum esp_loss_kind {
  ESP_LOSS_BALANCE,
  ESP_LOSS_IMPORTANCE,
  ESP_LOSS_LOAD,
  ESP_LOSS_Z,
  ESP_LOSS_ENTROPY,
  ESP_LOSS_NEURON_BALANCE,
  ESP_LOSS_DISTILLATION, /* of the whole model, not of a layer: train/distillation.h adds it */
  ESP_LOSS_KINDS
} esp_loss_kind;

/* "balance", "importance" ... as the columns of metrics are called. */
ESP_API const char *esp_loss_kind_name(esp_loss_kind kind);

/* A loss that is added to the task's: a layer's, or with block -1 one of the whole model. */
typedef struct esp_auxiliary_loss {
  esp_loss_kind kind;
  int block;
  double weight;
  esp_tensor *raw; /* [1] */
} esp_auxiliary_loss;

typedef struct esp_auxiliary_losses {
  int count;
  esp_auxiliary_loss loss[ESP_LOSS_KINDS * ESP_MAX_BLOCKS];
  const esp_routing *routing[ESP_MAX_BLOCKS]; /* of each mixture block, for esp_model_update_router_biases() */
} esp_auxiliary_losses;

typedef struct esp_moe_options {
  int block;                       /* which of the model's blocks the layer is in */
  const esp_model_config *config;  /* of the whole model */
  const esp_expert_layout *layout; /* copied; NULL: all experts are there */
  double residual_scale;           /* multiplies the initial deviation of `down` */
} esp_moe_options;

/* Declares "scope.router", "scope.experts.*" and "scope.shared.*".
 * ESP_ERR_CONFIG if it stores none, or if fewer than top_k can be routed to. */
ESP_API esp_status esp_moe_declare(esp_moe *moe, esp_parameters *parameters, const char *scope,
                                   const esp_moe_options *options) ESP_MUST_CHECK;

/* Router weights of one expert: width, with Soft MoE slots x width; 0 if the policy has none. */
ESP_API int64_t esp_router_vector_size(const esp_moe *moe);

/* Their L2 norm; not-a-number if there are none. */
ESP_API double esp_router_norm(const esp_moe *moe, int expert);

/* What the layer asks its router for: the tokens of `images` images over all members. It points into the layer and the
 * pass, which must outlive it. */
ESP_API esp_route_request esp_moe_request(const esp_moe *moe, int64_t tokens, int64_t images, const esp_pass *pass);

/* x [images, T / images, width] -> [T, width]; with E3 the members' images one after another. Appends the layer's
 * losses (those of weight 0 are not computed). */
ESP_API esp_tensor *esp_moe_forward(const esp_moe *moe, esp_tape *tape, esp_tensor *x, const esp_pass *pass,
                                    esp_auxiliary_losses *losses);

#ifdef __cplusplus
}
#endif
#endif
