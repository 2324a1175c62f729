/* What a model costs, counted from its settings: parameters and FLOPs of one image's forward pass. */
#ifndef ESPALIER_COST_H
#define ESPALIER_COST_H

#include <espalier/model.h>

#ifdef __cplusplus
extern "C" {
#endif

/* How parameters are counted, for a layer and for the whole model:
 *   parameters          all that are stored
 *   activated           those that take part for one token: dense parts, routers and shared experts in full,
 *                       and k experts (fewer if fewer are stored; with expert choice k is the mean; with Soft MoE all
 *                       of them, for each token is in every slot; with E3 k of each member); of a MoNE's experts W_gate
 *                       in full, for it must be computed to rank the neurons, and the kept neurons' rows of the others
 *                       This is also what a sparse kernel touches for one token: it reads W_gate and the kept rows
 *   activated_selected  the same, but of a MoNE's experts the kept neurons' rows only, of W_gate too
 *   touched             those that the forward pass of one whole image may read: its tokens choose different
 *                       experts, tokens x k at most, and different neurons: all of a MoNE's, also where only
 *                       those that some token selects are read (esp_neuron_path)
 * Factored experts (factors.h) have U, V and the rows of S that are there; their numbers do not count.
 *
 * How FLOPs are counted: matrix products and convolutions, a multiply-add as two; norms, activations,
 * softmaxes, biases and sums are left out. A mixture layer counts the rows that its stored experts compute:
 *   token choice, hash, even  tokens x k. In a pruned layer that is the share to be expected if the router chose evenly
 *                             among the experts it can choose, for a token that is routed to a zero expert costs
 *                             nothing. With model.moe.router.evaluation_capacity at most what the experts may serve
 *   expert choice             what each expert takes of a group, shared out among the group's images
 *   Soft MoE                  experts x slots, whatever the tokens; dispatch and combine are products, too
 * Experts of different widths count with their mean: k experts are k times the mean over the layer's logical experts
 * that compute something (as if the router chose evenly; a merged expert counts once for each of those it stands for);
 * what an image touches, the mean over the stored ones. Activated parameters are rounded to the nearest number.
 * With E3 everything from the first mixture block on runs once a member.
 *   flops               what training and the masked path compute: a MoNE's products run over all neurons
 *   flops_selected      what the gathered path computes, which evaluation takes where it is faster
 *                       (esp_gathering_pays()): of a MoNE's experts W_gate in full, of the other matrices the kept
 * rows */
typedef struct esp_layer_cost {
  char name[32]; /* "blocks.1.moe"; the model's */
  esp_layer_kind kind;
  int experts, stored_experts; /* logical and stored; 0 in a dense layer */
  int narrowest, widest;       /* neurons of the stored experts; 0 in a dense layer */
  int neurons_kept;            /* per token and expert, of the widest; all of them unless the layer is a MoNE */
  int64_t parameters, activated, activated_selected, touched;
  double flops, flops_selected;
  int64_t block_parameters; /* of the whole block: norms and mixing too */
  double block_flops;
} esp_layer_cost;

typedef struct esp_model_cost {
  int64_t parameters, activated, activated_selected, touched;
  double flops, flops_selected;
  double stem_flops, head_flops;
  int layer_count;
  esp_layer_cost layers[ESP_MAX_BLOCKS]; /* the feed-forward part of each block, without its norm */
} esp_model_cost;

/* Bytes of a parameter: its value alone, and in training with AdamW its gradient and two moments too. */
enum { ESP_PARAMETER_BYTES = 4, ESP_TRAINED_PARAMETER_BYTES = 16 };

/* Counts the model that these settings, which esp_model_config_check() has passed, would make; nothing is made.
 * `layouts`: one per block, those of dense blocks are ignored; NULL: all experts are there. */
ESP_API void esp_config_cost(const esp_model_config *config, const esp_expert_layout *layouts, esp_model_cost *cost);

/* The same of a model that is there. */
ESP_API void esp_model_cost_of(const esp_model *model, esp_model_cost *cost);

/* The same with FLOPs from measurement: rows_per_token [blocks] are the expert rows that a token took on average over
 * some data, which zero experts, capacities and dynamic skipping make fewer than top_k; of dense blocks ignored. */
ESP_API void esp_model_cost_measured(const esp_model *model, const double *rows_per_token, esp_model_cost *cost);

#ifdef __cplusplus
}
#endif
#endif
