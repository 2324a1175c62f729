/* The tape ops of mixture layers. A layer is
 *   route -> dispatch -> grouped map (gate|up) -> activation -> [neuron top-k] -> grouped map (down) -> combine,
 * and MoE and MoNE differ by the one op in brackets. */
#ifndef ESPALIER_MOE_OPS_H
#define ESPALIER_MOE_OPS_H

#include <espalier/model_config.h>
#include <espalier/tape.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The rows of the op table that layers/moe/ contributes; ends with NULL. */
ESP_API extern const esp_op *const esp_moe_ops[];

/* Where a logical expert's weights are, if not at a place in the bank. */
enum {
  ESP_EXPERT_ZERO = -1,  /* removed but still routed to: contributes zero */
  ESP_EXPERT_MASKED = -2 /* removed and never routed to: its logit counts as -infinity */
};

/* Which experts a layer has. Logical experts are the router's outputs; stored experts are those in the bank. */
typedef struct esp_expert_layout {
  int experts; /* logical */
  int stored;
  int32_t index[ESP_MAX_EXPERTS];        /* [experts] logical -> stored, or ESP_EXPERT_ZERO or _MASKED */
  int32_t original_ids[ESP_MAX_EXPERTS]; /* [experts] which expert of the unpruned layer this was */
} esp_expert_layout;

/* The layout of an unpruned layer. */
ESP_API void esp_expert_layout_full(esp_expert_layout *layout, int experts);

/* Logical experts that can be routed to (not masked). */
ESP_API int esp_routable_experts(const esp_expert_layout *layout);

/* What a router decided for one batch, in the step arena. A slot is one of a token's k choices: slot i belongs to
 * token i / k. A row is a slot's place after sorting by stored expert. */
typedef struct esp_routing {
  int64_t tokens;
  int k, experts, stored;
  int64_t rows;             /* slots that go to a stored expert */
  const int32_t *choice;    /* [tokens, k] logical expert of each slot, best first */
  const int32_t *row;       /* [tokens, k] its row, -1 if it goes to a zero expert */
  const int32_t *slot;      /* [rows] the slot of each row */
  const int64_t *first_row; /* [stored + 1] where each stored expert's rows begin */
  const int64_t *wanted;    /* [experts] slots that chose each logical expert */
} esp_routing;

/* Token-choice routing of logits [T, experts]. Returns gates [T, k]; *scores becomes the scores over all experts
 * [T, experts] (for the balance loss), *routing the decisions. Ties go to the lower index. In training, noise of
 * standard deviation config->noise / experts, keyed by (seed, stream), is added to the logits before all else.
 * `layout` must outlive the step.
 * Selected scores: raw, renormalised, or taken over the selected logits only, as `config` says. */
ESP_API esp_tensor *esp_route(esp_tape *tape, esp_tensor *logits, int k, const esp_router_config *config,
                              const esp_expert_layout *layout, bool training, uint64_t seed, uint64_t stream,
                              esp_tensor **scores, const esp_routing **routing);

/* The rows of x [T, C] in the order of the experts: [rows, C]. Its gradient sums a token's slots in their order. */
ESP_API esp_tensor *esp_dispatch(esp_tape *tape, esp_tensor *x, const esp_routing *routing);

/* Each group of rows times its own matrix. x [rows, in]; first_row [groups + 1]; bank [groups, out, in] if
 * `transpose` (y = x W^T), else [groups, in, out] (y = x W); bias [groups, out] or NULL -> [rows, out].
 * With one group bank and bias may lack the first dimension. `first_row` must outlive the step. */
ESP_API esp_tensor *esp_grouped_map(esp_tape *tape, esp_tensor *x, esp_tensor *bank, esp_tensor *bias, bool transpose,
                                    const int64_t *first_row, int64_t groups);

/* MoNE's neuron selection: of each row of h [rows, f] the `kept` entries with the largest |gate activation| stay,
 * the others become 0; ties go to the lower index. The gate activation is SiLU of the first f columns of
 * pre [rows, 2 f], or h itself if pre is NULL. The selection is a constant in backward: no gradient flows to pre
 * through it. Linear in f. */
ESP_API esp_tensor *esp_neuron_top_k(esp_tape *tape, esp_tensor *h, esp_tensor *pre, int64_t kept);

/* y_t = sum over the slots of token t, in their order, of gate times its row of `rows` [rows, C] -> [T, C]. */
ESP_API esp_tensor *esp_combine(esp_tape *tape, esp_tensor *rows, esp_tensor *gates, const esp_routing *routing);

/* The load-balance loss of Switch (arXiv 2101.03961, eq. 4), for any k: E sum_i F_i P_i -> [1], F_i the share of
 * slots that chose expert i (a constant), P_i the mean over tokens of its score. 1 at perfect balance of softmax
 * scores. Counts the experts that can be routed to. */
ESP_API esp_tensor *esp_balance_loss(esp_tape *tape, esp_tensor *scores, const esp_routing *routing,
                                     const esp_expert_layout *layout);

/* Router z-loss (ST-MoE, arXiv 2202.08906, eq. 5): the mean over tokens of log(sum_i e^(logit_i))^2 -> [1],
 * over the experts that can be routed to. `layout` must outlive the step. */
ESP_API esp_tensor *esp_z_loss(esp_tape *tape, esp_tensor *logits, const esp_expert_layout *layout);

#ifdef __cplusplus
}
#endif
#endif
