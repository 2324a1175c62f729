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

/* The two sides of an expert: the matrices to the neurons (gate | up), and back (down). */
enum { ESP_SIDE_UP, ESP_SIDE_DOWN, ESP_SIDES };

/* Which experts a layer has. Logical experts are the router's outputs; stored experts are those in the bank. */
typedef struct esp_expert_layout {
  int experts; /* logical */
  int stored;
  int32_t index[ESP_MAX_EXPERTS];        /* [experts] logical -> stored, or ESP_EXPERT_ZERO or _MASKED */
  int32_t original_ids[ESP_MAX_EXPERTS]; /* [experts] which expert of the unpruned layer this was */
  int32_t widths[ESP_MAX_EXPERTS];       /* [stored] neurons of each; 0: as many as the config says */
  int rank;     /* > 0: matrices are factored, U V + S (factors.h), U V having this rank; widths do not differ then */
  bool pruning; /* factored, and rows of S are being pruned: the bank holds their importance */
  int32_t sparse_rows[ESP_SIDES][ESP_MAX_EXPERTS]; /* [stored] factored: rows of S that are there */
  /* dynamic skipping in evaluation (arXiv 2402.14800, section 3.3 and appendix), token choice: the smallest number
   * i of choices is served whose gates g satisfy (g_i+1 + .. + g_k) / (g_1 + .. + g_i) < skip; with top-2 g_2 / g_1
   * < beta. 0: none */
  double skip;
} esp_expert_layout;

/* The layout of an unpruned layer. */
ESP_API void esp_expert_layout_full(esp_expert_layout *layout, int experts);

/* Neurons of stored expert `stored`, of the narrowest and of the widest one; `hidden`: what the config says
 * (moe.hidden). */
ESP_API int esp_stored_width(const esp_expert_layout *layout, int stored, int hidden);
ESP_API int esp_narrowest(const esp_expert_layout *layout, int hidden);
ESP_API int esp_widest(const esp_expert_layout *layout, int hidden);

/* Whether the stored experts differ in width. */
ESP_API bool esp_is_ragged(const esp_expert_layout *layout, int hidden);

/* Says the same widths in the one way that is kept: none at all if every expert has `hidden` neurons, else all. */
ESP_API void esp_settle_widths(esp_expert_layout *layout, int hidden);

/* Rows of a matrix W of one side, gate | up counting as one, of experts with `hidden` neurons. */
ESP_API int64_t esp_side_rows(const esp_model_config *config, int side, int hidden);

/* Whether the layout's rank and sparse rows cannot be those of a layer of this model; `problem` then says why: "has a
 * rank of 9 ...". */
enum { ESP_LAYOUT_PROBLEM_SIZE = 160 };
ESP_API bool esp_factoring_problem(const esp_expert_layout *layout, const esp_model_config *config,
                                   char problem[ESP_LAYOUT_PROBLEM_SIZE]);

/* Logical experts that can be routed to (not masked). */
ESP_API int esp_routable_experts(const esp_expert_layout *layout);

/* ... of the experts first .. end - 1: of one member of an E3. */
ESP_API int esp_routable_between(const esp_expert_layout *layout, int first, int end);

/* What a router decided for one batch, in the step arena. A slot is one token in one expert. A row is a slot's place
 * after sorting by stored expert. */
typedef struct esp_routing {
  int64_t tokens, slots;
  int k;                     /* token choice: slot i belongs to token i / k; else 0 */
  int experts, stored;       /* logical and stored */
  int64_t rows;              /* slots that go to a stored expert and within its capacity */
  int64_t skipped;           /* slots that dynamic skipping left out; their gate is 0 */
  const int64_t *first_slot; /* [tokens + 1] where each token's slots begin; NULL with Soft MoE */
  const int32_t *token;      /* [slots]; NULL with Soft MoE, where a slot is a mixture of an image's tokens */
  const int32_t *choice;     /* [slots] logical expert, of a token's slots the best one first */
  const int32_t *row;        /* [slots] its row, -1 if it goes to a zero expert, beyond the capacity or is skipped */
  const int32_t *slot;       /* [rows] the slot of each row */
  const int64_t *first_row;  /* [stored + 1] where each stored expert's rows begin */
  const int64_t *wanted;     /* [experts] slots that chose each logical expert */
  const int64_t *served;     /* [experts] ... of them within its capacity */
} esp_routing;

struct esp_route_request; /* router.h */
struct esp_routed;

/* Token-choice routing of logits [T, experts]. Returns gates [T, k] and sets the other members of *routed: the scores
 * over all experts [T, experts] (for the losses), the decisions. Ties go to the lower index. In training, noise of
 * standard deviation config->noise / experts (of a member, masked ones not counted), keyed by (seed, stream), is added
 * to the logits before all else. Selected scores: raw, renormalised, or taken over the selected logits only, as the
 * request's config says. The request and its config are copied; its layout, bias and choices must outlive the step. */
ESP_API esp_tensor *esp_route(esp_tape *tape, esp_tensor *logits, const struct esp_route_request *request,
                              struct esp_routed *routed);

/* Expert-choice routing of logits [T, experts]: of each group of tokens every expert that can be routed to takes the
 * l = min(S, S k / original experts, rounded up) with its highest scores, S the group's tokens. Returns gates
 * [slots, 1], a token's slots by expert: the scores, or their softmax resp. sigmoid over the expert's chosen tokens
 * (score_selected_only). Noise and the rest as esp_route(). */
ESP_API esp_tensor *esp_route_experts(esp_tape *tape, esp_tensor *logits, const struct esp_route_request *request,
                                      struct esp_routed *routed);

/* The rows of x [T, C] in the order of the experts: [rows, C]. Its gradient sums a token's slots in their order. */
ESP_API esp_tensor *esp_dispatch(esp_tape *tape, esp_tensor *x, const esp_routing *routing);

typedef struct esp_grouped_map_options {
  const int64_t *first_row; /* [groups + 1] */
  int64_t groups;
  const int32_t *widths; /* [groups] neurons of each, > 0, if they differ; NULL: all have the same */
  int64_t parts;         /* with widths: matrices that lie one after another in a group (gate, up); 0 or 1: one */
  bool transpose;
} esp_grouped_map_options;

/* Each group of rows times its own matrix. x [rows, in]; bank [groups, out, in] if `transpose` (y = x W^T), else
 * [groups, in, out] (y = x W); bias [groups, out] or NULL -> [rows, out]. With one group bank and bias may lack the
 * first dimension.
 *
 * Groups of different widths: group g has widths[g] neurons, f is the largest of them. The side of the neurons stays a
 * rectangle, with zeros in the columns of a group that are no neuron's; they cost neither memory in the bank nor
 * products. `parts` matrices of a group stand one after another in the bank, and side by side in the rectangle from
 * columns 0, f .. on.
 *   transpose: x [rows, in], bank [parts x sum of widths, in], bias [parts x sum] or NULL -> [rows, parts x f]
 *   else:      x [rows, f] (one part), bank [sum of widths, out], bias [groups, out] or NULL -> [rows, out]
 * Equal widths give the same bits with and without the list. `first_row` and `widths` must outlive the step. */
ESP_API esp_tensor *esp_grouped_map(esp_tape *tape, esp_tensor *x, esp_tensor *bank, esp_tensor *bias,
                                    const esp_grouped_map_options *options);

/* Factored matrices of one side of all experts of a bank, W = U V + S. */
typedef struct esp_factors {
  int parts;             /* matrices that lie one after another in each: 2 for gate | up, else 1 */
  const int32_t *counts; /* [experts] rows of S that are there */
  esp_tensor *u;         /* [experts, out, rank] */
  esp_tensor *v;         /* [experts, parts x rank, in] */
  esp_tensor *s; /* [sum of counts, in] the experts' sparse rows one after another; one unused row if there are none */
  esp_tensor *rows; /* [sum of counts] which row of W each is, from 0 to out - 1, ascending within an expert */
  esp_tensor *importance, *last_importance; /* [sum of counts] while rows are being pruned (row_pruning.h), else NULL */
} esp_factors;

/* Each group of rows times its own factored matrix: x [rows, in] -> y = (x V^T) U^T + x S^T + bias [rows, out], of gate
 * | up each half by its own half of U and V; bias [groups, out] or NULL. The rows of S that are not there cost nothing.
 * No gradient flows to factors->rows. `first_row` and factors->counts must outlive the step. */
ESP_API esp_tensor *esp_factored_map(esp_tape *tape, esp_tensor *x, const esp_factors *factors, esp_tensor *bias,
                                     const int64_t *first_row, int64_t groups);

/* How MoNE (Mixture of Neuron Experts, arXiv 2510.05781) selects the neurons of an expert for a token: the `kept` of
 * largest |ranking(gate)|. `gate` are the first f columns of an expert's `pre` [rows, 2 f], or with two matrices pre
 * [rows, f]. The paper ranks by the activation; ESP_GATE_IDENTITY ranks before it. */
typedef struct esp_neuron_selection {
  int64_t kept;
  esp_gate_kind ranking;
  /* Where experts differ in width, a row of expert e, which are first_row[e] .. first_row[e + 1] - 1, has widths[e] <=
   * f neurons, of which at most all are selected. widths NULL: all have f. Both must outlive the step. */
  const int32_t *widths;
  const int64_t *first_row;
} esp_neuron_selection;

/* Keeps the selected entries of each row of h [rows, f]; the others become 0; ties go to the lower index, not-a-number
 * counts as the largest magnitude. pre [rows, f or 2 f]. The selection is a constant in backward: no gradient flows to
 * pre through it, and none to an entry that was not selected. Linear in f. Sets *mask, if it is not NULL, to
 * [rows, f] in the step arena: 1 where an entry stayed. */
ESP_API esp_tensor *esp_neuron_top_k(esp_tape *tape, esp_tensor *h, esp_tensor *pre,
                                     const esp_neuron_selection *selection, const uint8_t **mask);

/* The weights of one expert, in place: neuron j's are row j of each matrix. `gate` is NULL with two matrices, biases
 * where there are none. */
typedef struct esp_expert_weights {
  int64_t neurons;
  esp_real *gate, *up, *down;    /* [neurons, width] */
  esp_real *gate_bias, *up_bias; /* [neurons] */
  esp_real *down_bias;           /* [width] */
} esp_expert_weights;

typedef struct esp_gathered_options {
  const esp_expert_weights *experts; /* [groups], to outlive the step */
  const int64_t *first_row;          /* [groups + 1], to outlive the step */
  int64_t groups;
  esp_neuron_selection selection;
  esp_gate_kind activation;
} esp_gathered_options;

/* The whole of a MoNE's experts at inference, reading only the weights it needs: of each row of x [rows, width] the
 * gate product in full (two matrices: up's), then of the selected neurons alone their rows of up and down. Returns
 * [rows, width], equal to grouped map, activation, esp_neuron_top_k() and grouped map but for the order of sums. An
 * expert with fewer neurons than are to be kept uses them all. It has no backward, and nothing in between is there to
 * be observed. */
ESP_API esp_tensor *esp_gathered_experts(esp_tape *tape, esp_tensor *x, const esp_gathered_options *options);

/* y_t = sum over the slots of token t, in their order, of gate times its row of `rows` [rows, C] -> [T, C]. */
ESP_API esp_tensor *esp_combine(esp_tape *tape, esp_tensor *rows, esp_tensor *gates, const esp_routing *routing);

/* Softmax over the middle dimension: [images, tokens, slots], each slot's weights sum to 1 over its image's tokens. */
ESP_API esp_tensor *esp_softmax_tokens(esp_tape *tape, esp_tensor *x);

/* --- losses. Each is a mean over the members of an E3, which count as layers of their own with their share of the
 * experts; only experts that can be routed to count. Layouts must outlive the step. --- */

/* The load-balance loss of Switch (arXiv 2101.03961, eq. 4), for any k: E sum_i F_i P_i -> [1], F_i the share of
 * slots (GShard: of first choices) that chose expert i before any capacity (a constant), P_i the mean over tokens of
 * its score; with config->balance_scores SELECTED, of its score where the token chose i, else 0. 1 at perfect balance
 * of softmax scores (selected: the share of the scores that the chosen experts have). */
ESP_API esp_tensor *esp_balance_loss(esp_tape *tape, esp_tensor *scores, const esp_routing *routing,
                                     const struct esp_route_request *request);

/* What the neuron balance loss needs to know of a bank's rows, as esp_neuron_selection does. */
typedef struct esp_neuron_balance {
  esp_neuron_balance_kind kind;
  esp_gate_kind gate; /* makes G of the first f columns of pre */
  int64_t kept;       /* K, or all of a narrower expert */
  int experts;
  const int64_t *first_row; /* [experts + 1] */
  const int32_t *widths;    /* [experts] or NULL: all have f */
} esp_neuron_balance;

/* MoNE's neuron-granular balance loss -> [1]. Reconstruction: arXiv 2510.05781 names it, its formula could not be
 * verified; this is the Switch loss for the neurons of each expert:
 *   L = mean over experts i that serve tokens of (f_i / K) sum_j F_ij P_ij,
 * F_ij the share of the expert's tokens that selected neuron j (a constant), P_ij the mean over these tokens of q_j:
 *   abs   q_j = |G_j| if selected, else 0. The closest reading; but gates of SiLU or sigmoid do not sum to 1, so that
 *         the loss also falls as |G| shrinks, without any balance
 *   norm  q_j = |G_j| / sum_l |G_l|, over all neurons, which mends that. 1 at perfect balance
 * pre [rows, f or 2 f], mask [rows, f] of the selection, f = hidden; both and what `balance` points to must outlive the
 * step. */
ESP_API esp_tensor *esp_neuron_balance_loss(esp_tape *tape, esp_tensor *pre, const uint8_t *mask, int64_t hidden,
                                            const esp_neuron_balance *balance);

/* V-MoE's importance loss (arXiv 2106.05974, appendix A.1): of each group, I_e = the sum over tokens of expert e's
 * noise-free softmax probability, then variance(I) / mean(I)^2 over the experts -> [1], the mean over groups. The
 * variance, not the standard deviation: the gradient is finite at perfect balance. 0 there. */
ESP_API esp_tensor *esp_importance_loss(esp_tape *tape, esp_tensor *logits, const struct esp_route_request *request);

/* V-MoE's load loss (appendix A.2): p_te = the probability that expert e would be among the k best of token t if its
 * noise were drawn anew = 1 - Phi((threshold_t - z_te) / deviation), threshold_t the k-th largest noisy logit; of each
 * group, the mean over tokens, then variance / mean^2 over the experts -> [1]. z are the noise-free logits; the
 * threshold's gradient flows to the logit that it is. `noisy` [T, experts] are values only. */
ESP_API esp_tensor *esp_load_loss(esp_tape *tape, esp_tensor *logits, const esp_tensor *noisy,
                                  const struct esp_route_request *request);

/* Router z-loss (ST-MoE, arXiv 2202.08906, eq. 5): the mean over tokens of log(sum_i e^(logit_i))^2 -> [1]. */
ESP_API esp_tensor *esp_z_loss(esp_tape *tape, esp_tensor *logits, const struct esp_route_request *request);

/* The mean over tokens of the entropy, in nats, of softmax(logits) -> [1]. */
ESP_API esp_tensor *esp_entropy_loss(esp_tape *tape, esp_tensor *logits, const struct esp_route_request *request);

#ifdef __cplusplus
}
#endif
#endif
