#include <espalier/parallel.h>
#include <espalier/row_products.h>

#include <string.h>

/* So many rows go at once: enough sums to hide the latency of one, and x resp. y is read once for all of them. */
enum { ROWS_AT_ONCE = 8 };

static const esp_real *row_at(const esp_row_list *rows, int64_t i) {
  return rows->data + (rows->index ? rows->index[i] : i) * rows->stride;
}

/* The last rows of a list that is not a multiple of ROWS_AT_ONCE long are computed with the last one repeated, so that
 * every product comes from the same instructions. */
static void take_rows(const esp_row_list *rows, int64_t first, const esp_real *taken[ROWS_AT_ONCE]) {
  for (int64_t i = 0; i < ROWS_AT_ONCE; i++)
    taken[i] = row_at(rows, first + i < rows->count ? first + i : rows->count - 1);
}

ESP_HOT static void dot_eight(const esp_real *restrict x, int64_t n, const esp_real *const w[ROWS_AT_ONCE],
                              esp_real *restrict products) {
  const esp_real *restrict w0 = w[0], *restrict w1 = w[1], *restrict w2 = w[2], *restrict w3 = w[3];
  const esp_real *restrict w4 = w[4], *restrict w5 = w[5], *restrict w6 = w[6], *restrict w7 = w[7];
  esp_real s0 = 0, s1 = 0, s2 = 0, s3 = 0, s4 = 0, s5 = 0, s6 = 0, s7 = 0;
  ESP_SUMS(s0, s1, s2, s3, s4, s5, s6, s7)
  for (int64_t k = 0; k < n; k++) {
    s0 += x[k] * w0[k];
    s1 += x[k] * w1[k];
    s2 += x[k] * w2[k];
    s3 += x[k] * w3[k];
    s4 += x[k] * w4[k];
    s5 += x[k] * w5[k];
    s6 += x[k] * w6[k];
    s7 += x[k] * w7[k];
  }
  products[0] = s0, products[1] = s1, products[2] = s2, products[3] = s3;
  products[4] = s4, products[5] = s5, products[6] = s6, products[7] = s7;
}

void esp_dot_rows(const esp_real *x, int64_t n, const esp_row_list *rows, esp_real *products) {
  const esp_real *w[ROWS_AT_ONCE];
  esp_real last[ROWS_AT_ONCE];
  int64_t i = 0;
  for (; i + ROWS_AT_ONCE <= rows->count; i += ROWS_AT_ONCE) {
    take_rows(rows, i, w);
    dot_eight(x, n, w, products + i);
  }
  if (i == rows->count) return;
  take_rows(rows, i, w);
  dot_eight(x, n, w, last);
  memcpy(products + i, last, (size_t)(rows->count - i) * sizeof *last);
}

ESP_HOT static void add_eight(esp_real *restrict y, int64_t n, const esp_real *const w[ROWS_AT_ONCE],
                              const esp_real *restrict a) {
  const esp_real *restrict w0 = w[0], *restrict w1 = w[1], *restrict w2 = w[2], *restrict w3 = w[3];
  const esp_real *restrict w4 = w[4], *restrict w5 = w[5], *restrict w6 = w[6], *restrict w7 = w[7];
  const esp_real a0 = a[0], a1 = a[1], a2 = a[2], a3 = a[3], a4 = a[4], a5 = a[5], a6 = a[6], a7 = a[7];
  for (int64_t k = 0; k < n; k++) {
    esp_real sum = y[k];
    sum += a0 * w0[k];
    sum += a1 * w1[k];
    sum += a2 * w2[k];
    sum += a3 * w3[k];
    sum += a4 * w4[k];
    sum += a5 * w5[k];
    sum += a6 * w6[k];
    sum += a7 * w7[k];
    y[k] = sum;
  }
}

ESP_HOT static void add_one(esp_real *restrict y, int64_t n, const esp_real *restrict w, esp_real a) {
  for (int64_t k = 0; k < n; k++) y[k] += a * w[k];
}

void esp_add_rows(esp_real *y, int64_t n, const esp_row_list *rows, const esp_real *factors) {
  const esp_real *w[ROWS_AT_ONCE];
  int64_t i = 0;
  for (; i + ROWS_AT_ONCE <= rows->count; i += ROWS_AT_ONCE) {
    take_rows(rows, i, w);
    add_eight(y, n, w, factors + i);
  }
  for (; i < rows->count; i++) add_one(y, n, row_at(rows, i), factors[i]);
}
