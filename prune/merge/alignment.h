/* Which neuron of one expert does what which neuron of another does. The order of an expert's neurons means nothing, so
 * experts are brought into the same order before they are averaged (Git Re-Basin, Ainsworth et al., arXiv 2209.04836;
 * of experts: MC-SMoE, arXiv 2310.01334, section 3.1). */
#ifndef ESPALIER_ALIGNMENT_H
#define ESPALIER_ALIGNMENT_H

#include <espalier/assignment.h>
#include <espalier/moe_layer.h>

#ifdef __cplusplus
extern "C" {
#endif

/* gain [f, f]: gain[r, n] = up_r . up_n + down_r . down_n of neuron r of stored expert `reference` and neuron n of
 * stored expert `other`; with three matrices also gate_r . gate_n (reconstruction: the paper's experts have two).
 * Biases are left out, as in the paper's code. Without `include_down` the first term alone (both first matrices of
 * SwiGLU). */
ESP_API void esp_weight_gains(const esp_expert_bank *bank, int reference, int other, bool include_down, double *gain);

/* Sums over tokens of the hidden activations of two sets of neurons, for their Pearson correlation. */
typedef struct esp_correlation {
  int64_t rows, columns, tokens;
  double *sum, *squares;             /* [rows] of the first set */
  double *other_sum, *other_squares; /* [columns] of the second set */
  double *products;                  /* [rows, columns] */
} esp_correlation;

ESP_API esp_status esp_correlation_create(esp_correlation *c, int64_t rows, int64_t columns) ESP_MUST_CHECK;
ESP_API void esp_correlation_free(esp_correlation *c);

/* a [tokens, rows], b [tokens, columns]. */
ESP_API void esp_correlation_add(esp_correlation *c, const esp_real *a, const esp_real *b, int64_t tokens);

/* gain [rows, columns] = the correlations; 0 with a neuron that never varies. With fewer than 2 tokens 1 on the
 * diagonal and 0 elsewhere, which leaves every neuron where it is. */
ESP_API void esp_correlation_gains(const esp_correlation *c, double *gain);

/* place [f]: for each neuron of the other expert the number of its partner in the reference, by the exact
 * assignment. */
ESP_API esp_status esp_align(int neurons, const double *gain, int32_t *place) ESP_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
