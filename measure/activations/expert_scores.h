/* What one pass of data says of every expert's gates and outputs: an observer that adds up in double precision and
 * yields all one-shot pruning criteria of the family S(b, alpha, beta) and those beside it (arXiv 2606.15716).
 *
 * f = an expert's output for a token before the gate, n = ||f|| (Euclidean, over the width), g = the token's gate for
 * the expert. Only tokens that were routed to an expert enter its sums. A choice beyond an expert's capacity was never
 * computed, so it counts as a first choice but enters no sum; a zero or masked expert has no output, its sums are 0.
 * Expert choice: the tokens an expert took. Soft MoE: f of a slot, g the slot's weight summed over the tokens. */
#ifndef ESPALIER_EXPERT_SCORES_H
#define ESPALIER_EXPERT_SCORES_H

#include <espalier/model.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum esp_gate_form {
  ESP_GATES_NORMALISED, /* over the token's selected k, before any capacity, as arXiv 2606.15716 defines them; with
                           policies without a fixed k as the model uses them */
  ESP_GATES_MODEL       /* as the model uses them */
} esp_gate_form;

enum { ESP_MOMENTS = 3 };

/* What the pass says of one logical expert. */
typedef struct esp_expert_sums {
  int64_t count;                           /* N: routed tokens (Soft MoE: slots) */
  double moment[ESP_MOMENTS][ESP_MOMENTS]; /* [alpha][beta] sum of g^alpha n^beta; [0][0] = N */
  double largest;                          /* the largest single entry of any f; 0 if N = 0 */
  double deviation;      /* norm of the standard deviations of f's entries: sqrt(sum M2 / (N - 1)); 0 if N < 2 */
  int64_t first_choices; /* tokens whose best expert it is, before any capacity (expert choice: of the largest gate) */
  double first_confidence; /* sum of these tokens' router scores for it, over all experts (without scores: of gates) */
} esp_expert_sums;

typedef struct esp_expert_scores esp_expert_scores;

/* Empty sums for a model, which need not outlive them. Freed by esp_expert_scores_free(). */
ESP_API esp_status esp_expert_scores_create(esp_expert_scores **scores, const esp_model *model,
                                            esp_gate_form gates) ESP_MUST_CHECK;
ESP_API void esp_expert_scores_free(esp_expert_scores *scores);

/* Adds what it sees of tokens that are no padding, in the fixed order of the rows: the same bits for any number of
 * threads. To be used with the model the sums were created for, or one of the same layout. */
ESP_API esp_observer esp_expert_scores_observer(esp_expert_scores *scores);

/* Adds what `other` has seen (means and deviations by Chan, Golub and LeVeque's update). ESP_ERR_MISMATCH if they were
 * created for different layouts or gates. */
ESP_API esp_status esp_expert_scores_merge(esp_expert_scores *scores, const esp_expert_scores *other) ESP_MUST_CHECK;

/* Mixture layers, as esp_model_moe() counts them; tokens that are no padding. */
ESP_API int esp_expert_scores_layer_count(const esp_expert_scores *scores);
ESP_API int64_t esp_expert_scores_tokens(const esp_expert_scores *scores, int layer);
ESP_API void esp_expert_scores_expert(const esp_expert_scores *scores, int layer, int expert, esp_expert_sums *sums);

/* [width] the mean of f ("characteristic activation"); lives as long as the scores. */
ESP_API const double *esp_expert_scores_mean(const esp_expert_scores *scores, int layer, int expert);

/* S(b, alpha, beta) = (1 / N^b) sum g^alpha n^beta; 0 if N = 0 (arXiv 2606.15716, eq. for S; REAP's code for N = 0).
 * b in {0, 1}, alpha and beta in {0, 1, 2}. */
ESP_API double esp_family_score(const esp_expert_sums *sums, int b, int alpha, int beta);

#ifdef __cplusplus
}
#endif
#endif
