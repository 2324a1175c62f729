/* Comparisons that several folders need. */
#ifndef ESPALIER_COMPARE_H
#define ESPALIER_COMPARE_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

static inline int64_t esp_smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* Orders doubles for qsort(), from the smallest to the largest. */
static inline int esp_ascending(const void *a, const void *b) {
  const double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

#ifdef __cplusplus
}
#endif
#endif
