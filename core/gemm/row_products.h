/* Products of one vector with chosen rows of a matrix: what is left of a matrix product when there is one row to
 * multiply, or when each row needs other parts of the matrix. They read each chosen row once, which is all they cost
 * where memory is the limit. The bits of a product depend on the vector and the row alone, not on what is chosen
 * too. */
#ifndef ESPALIER_ROW_PRODUCTS_H
#define ESPALIER_ROW_PRODUCTS_H

#include <espalier/tensor.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Rows of a matrix: row i of `count` begins at data + index[i] * stride, without index at data + i * stride. */
typedef struct esp_row_list {
  const esp_real *data;
  int64_t stride, count;
  const int32_t *index; /* [count]; NULL: all in turn */
} esp_row_list;

/* products[i] = <x, row i> over the first n columns. x [n], products [count]. */
ESP_API void esp_dot_rows(const esp_real *x, int64_t n, const esp_row_list *rows, esp_real *products);

/* y += sum over i of factors[i] x row i, in order, over the first n columns. y [n], factors [count]. */
ESP_API void esp_add_rows(esp_real *y, int64_t n, const esp_row_list *rows, const esp_real *factors);

#ifdef __cplusplus
}
#endif
#endif
