/* What is needed of LAPACK, which lies inside OpenBLAS: nothing else has to be linked. */
#ifndef ESPALIER_LAPACK_H
#define ESPALIER_LAPACK_H

#include <espalier/status.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* A singular value decomposition in double: matrix [rows, columns] = left [rows, n] diag(sigma [n]) right [n, columns],
 * n = min(rows, columns), sigma descending. All row-major. */
typedef struct esp_svd {
  int64_t rows, columns, n;
  double *matrix; /* [rows, columns] the caller's to fill before each esp_svd_run(), which overwrites it */
  double *left, *sigma, *right;
  double *work; /* LAPACK's */
  int *integer_work;
  int64_t work_size;
} esp_svd;

/* Takes memory for matrices of one shape, to be used any number of times. On failure nothing needs freeing. */
ESP_API esp_status esp_svd_create(esp_svd *svd, int64_t rows, int64_t columns) ESP_MUST_CHECK;
ESP_API void esp_svd_free(esp_svd *svd);

/* Decomposes by divide and conquer (dgesdd) on one thread, so that the bits are the same on the same kind of processor.
 * ESP_ERR_NOT_FINITE if the matrix has entries that are not finite, or if LAPACK does not converge. */
ESP_API esp_status esp_svd_run(esp_svd *svd) ESP_MUST_CHECK;

/* sum sigma_i^2 / max sigma_i^2, from 1 for a matrix of rank 1 to n for an orthogonal one; 0 of a zero matrix. */
ESP_API double esp_stable_rank(const double *sigma, int64_t n);

#ifdef __cplusplus
}
#endif
#endif
