/* Passes over calibration data that merging needs: what experts see, what their neurons do side by side, and their
 * gradients. */
#ifndef ESPALIER_EXPERT_PASSES_INTERNAL_H
#define ESPALIER_EXPERT_PASSES_INTERNAL_H

#include <espalier/alignment.h>
#include <espalier/calibration.h>

/* --- what experts see --------------------------------------------------------------------------------------- */

/* Sums over the tokens (of padding none) of one mixture layer, by logical expert. */
typedef struct expert_inputs {
  int experts, width, neurons;
  double slots;     /* tokens x k */
  double *count;    /* [experts] tokens that chose it, before any capacity */
  double *logits;   /* [experts, experts] sum of z_i z_j over all tokens; NULL if the router has none */
  double *features; /* [experts, width] sum of x over its tokens */
  double *absolute; /* [experts, width] sum of |x| */
  double *squares;  /* [experts, width] sum of x^2 */
  double *hidden;   /* [experts, neurons] sum of squares of its neurons' activations (those selected) */
} expert_inputs;

/* [layers of the model]. Freed by esp_expert_inputs_free(). On failure *inputs is NULL. */
esp_status esp_expert_inputs_make(expert_inputs **inputs, const esp_model *model, const esp_calibration *calibration);
void esp_expert_inputs_free(expert_inputs *inputs, int layers);

/* --- neurons side by side ----------------------------------------------------------------------------------- */

/* The activations of some logical experts' neurons against those of others, over the tokens that chose any of them. */
typedef struct neuron_match {
  int layer; /* as esp_model_moe() counts */
  int row_count, column_count;
  int32_t rows[ESP_MAX_EXPERTS], columns[ESP_MAX_EXPERTS];
  esp_correlation correlation; /* [row_count x neurons, column_count x neurons]; the caller's */
} neuron_match;

esp_status esp_match_neurons(neuron_match *matches, int count, const esp_model *model,
                             const esp_calibration *calibration);

/* --- gradients ---------------------------------------------------------------------------------------------- */

/* Sums the gradients of each batch's mean cross-entropy over the batches: as they are and squared, in the places of the
 * model's flat parameter arrays. ESP_ERR_MISMATCH if the data's classes are not the model's. Freed by esp_free(). */
esp_status esp_sum_gradients(esp_real **sum, esp_real **squares, const esp_model *model,
                             const esp_calibration *calibration);

/* A bank whose weights are the numbers at the same places of another flat array. `tensors` [4] must outlive it. */
esp_expert_bank esp_bank_in(const esp_expert_bank *bank, const esp_model *model, esp_real *values, esp_tensor *tensors);

#endif
