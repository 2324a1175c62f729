/* What the sources of ops share, here and in layers/: shapes and costs. */
#ifndef ESPALIER_OP_HELPERS_H
#define ESPALIER_OP_HELPERS_H

#include <espalier/tape.h>

#ifdef __cplusplus
extern "C" {
#endif

/* These prepare an op's node: they give an output its shape. */
ESP_API void esp_set_output(esp_node *node, int index, int rank, const int64_t *shape);
ESP_API void esp_set_output_same(esp_node *node); /* one output, like input 0 */
ESP_API void esp_set_output_scalar(esp_node *node);

/* Input 0's shape with another last dimension. */
ESP_API void esp_set_output_columns(esp_node *node, int index, int64_t columns);

/* esp_panic_shape() unless `fits`. */
ESP_API void esp_require(const esp_node *node, bool fits, const char *what);

/* Cost of reading the inputs and writing the outputs once, with `flops` operations per element of output 0. */
ESP_API esp_cost esp_cost_elementwise(const esp_node *node, double flops);

#ifdef __cplusplus
}
#endif
#endif
