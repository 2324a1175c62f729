/* The fixed first convolution of a stem: where its weights come from. */
#ifndef ESPALIER_WHITENING_H
#define ESPALIER_WHITENING_H

#include <espalier/dataset.h>
#include <espalier/model.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Gives the whitening convolution of the model's stem, if it has one whose weights are still all zero, its weights:
 * with v_i and l_i the eigenvectors and eigenvalues, largest first, of the covariance of all 3 x 3 patches of 2000
 * training images (drawn by `seed`, normalised, not augmented), the rows v_i / sqrt(l_i + epsilon) and then their
 * negatives (Jordan, arXiv 2404.00498, section 3.1; there of 2 x 2 patches, all components). Models that have their
 * weights, from a checkpoint say, keep them. */
ESP_API esp_status esp_whiten(esp_model *model, const esp_dataset *dataset, const esp_normalisation *normalisation,
                              uint64_t seed) ESP_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
