/* Tensors: contiguous, row-major, up to 4 dimensions. Who made a tensor owns it: the tape owns what its ops
 * made (until the step arena is reset), the parameter store owns parameters, the caller what it wrapped. */
#ifndef ESPALIER_TENSOR_H
#define ESPALIER_TENSOR_H

#include <espalier/status.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Ops are compiled for float, and once more for double: only the gradient checks link those. */
#ifdef ESP_DOUBLE
typedef double esp_real;
#else
typedef float esp_real;
#endif

enum { ESP_MAX_RANK = 4 };

typedef struct esp_tensor {
  esp_real *data;
  esp_real *grad; /* NULL until backward needs it; the same shape as data */
  int64_t shape[ESP_MAX_RANK];
  int rank;
  bool requires_grad;
  bool frozen;                         /* of a parameter: nothing in training changes it */
  bool grad_written;                   /* the first gradient of a step overwrites, the next ones add */
  bool view;                           /* shares the memory of its producer's first input */
  bool forgotten;                      /* its memory went to others after the forward pass: esp_tape_forget() */
  const char *name;                    /* of a parameter; NULL otherwise */
  struct esp_node *producer;           /* the node whose output this is; NULL for leaves */
  const struct esp_node *first_reader; /* the first recorded node that takes it; NULL: none does */
  /* whose gradient lies in the same memory, as long as neither changes; NULL: nobody's */
  struct esp_tensor *grad_sharer;
} esp_tensor;

ESP_API int64_t esp_tensor_count(const esp_tensor *tensor);

/* Seen as a matrix [rows, columns]: the last dimension and the product of all others. */
ESP_API int64_t esp_tensor_rows(const esp_tensor *tensor);
ESP_API int64_t esp_tensor_columns(const esp_tensor *tensor);

ESP_API bool esp_same_shape(const esp_tensor *a, const esp_tensor *b);

/* Writes "[2, 3, 4]" into `text`. Returns `text`. */
ESP_API char *esp_shape_text(const esp_tensor *tensor, char *text, size_t size);

#ifdef __cplusplus
}
#endif
#endif
