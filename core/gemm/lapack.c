#include "blas_internal.h"
#include <espalier/lapack.h>
#include <espalier/memory.h>

#include <limits.h>

/* LAPACK's own (Fortran) interface: columns first, everything by address, lengths of texts at the end. */
void dgesdd_(const char *job, const int *m, const int *n, double *a, const int *lda, double *s, double *u,
             const int *ldu, double *vt, const int *ldvt, double *work, const int *work_size, int *integer_work,
             int *info, size_t job_length);

/* Row-major A is column-major A^T, and A^T = R^T diag(s) L^T: what LAPACK calls U is `right`, its V^T is `left`. */
static int decompose(esp_svd *svd, double *work, int work_size) {
  const int m = (int)svd->columns, n = (int)svd->rows, k = (int)svd->n;
  int info = 0;
  esp_use_one_blas_thread();
  dgesdd_("S", &m, &n, svd->matrix, &m, svd->sigma, svd->right, &m, svd->left, &k, work, &work_size, svd->integer_work,
          &info, 1);
  return info;
}

static esp_status take(esp_svd *svd) {
  const size_t rows = (size_t)svd->rows, columns = (size_t)svd->columns, n = (size_t)svd->n;
  svd->matrix = esp_alloc(rows * columns, sizeof(double));
  svd->left = esp_alloc(rows * n, sizeof(double));
  svd->sigma = esp_alloc(n, sizeof(double));
  svd->right = esp_alloc(n * columns, sizeof(double));
  svd->integer_work = esp_alloc(8 * n, sizeof(int));
  if (!svd->matrix || !svd->left || !svd->sigma || !svd->right || !svd->integer_work) return ESP_ERR_MEMORY;
  double wanted = 0;
  if (decompose(svd, &wanted, -1) != 0)
    esp_panic("LAPACK refuses a matrix of %lld x %lld", (long long)rows, (long long)columns);
  svd->work_size = (int64_t)wanted;
  svd->work = esp_alloc((size_t)svd->work_size, sizeof(double));
  return svd->work ? ESP_OK : ESP_ERR_MEMORY;
}

esp_status esp_svd_create(esp_svd *svd, int64_t rows, int64_t columns) {
  if (rows < 1 || columns < 1 || rows > INT_MAX || columns > INT_MAX)
    esp_panic("a matrix of %lld x %lld cannot be decomposed", (long long)rows, (long long)columns);
  *svd = (esp_svd){.rows = rows, .columns = columns, .n = rows < columns ? rows : columns};
  const esp_status status = take(svd);
  if (status != ESP_OK) esp_svd_free(svd);
  return status;
}

void esp_svd_free(esp_svd *svd) {
  esp_free(svd->matrix);
  esp_free(svd->left);
  esp_free(svd->sigma);
  esp_free(svd->right);
  esp_free(svd->work);
  esp_free(svd->integer_work);
  *svd = (esp_svd){0};
}

/* The entries are checked: some LAPACKs go round for ever with one that is not a number. */
static int is_finite(const esp_svd *svd) {
  double sum = 0;
  for (int64_t i = 0; i < svd->rows * svd->columns; i++) sum += 0 * svd->matrix[i];
  return sum == 0;
}

esp_status esp_svd_run(esp_svd *svd) {
  if (!is_finite(svd))
    return esp_fail(ESP_ERR_NOT_FINITE,
                    "a matrix of %lld x %lld has entries that are not finite, and so no singular values",
                    (long long)svd->rows, (long long)svd->columns);
  if (decompose(svd, svd->work, (int)svd->work_size) == 0) return ESP_OK;
  return esp_fail(ESP_ERR_NOT_FINITE,
                  "LAPACK finds no singular values of a matrix of %lld x %lld: it does not converge",
                  (long long)svd->rows, (long long)svd->columns);
}

double esp_stable_rank(const double *sigma, int64_t n) {
  double squares = 0;
  for (int64_t i = 0; i < n; i++) squares += sigma[i] * sigma[i];
  return squares > 0 ? squares / (sigma[0] * sigma[0]) : 0;
}
