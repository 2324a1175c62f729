/* ZipIt-like matching of neurons: those that do the same are put together, within an expert as well as across experts,
 * until one expert's number is left (after ZipIt!, Stoica et al., arXiv 2305.03053, section 4.1; reconstruction:
 * clusters by average linkage, both layers' maps are the sums and means of prune/merge/averaging_internal.h). */
#ifndef ESPALIER_ZIP_H
#define ESPALIER_ZIP_H

#include <espalier/status.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* likeness [count, count], symmetric, is used up. The two clusters with the highest mean likeness between their neurons
 * become one, ties to the lower indices, until `clusters` are left. place [count]: each neuron's cluster, numbered by
 * their first neurons. O(count^2) memory, O(count^2) to O(count^3) time. */
ESP_API esp_status esp_zip(int count, int clusters, double *likeness, int32_t *place) ESP_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
