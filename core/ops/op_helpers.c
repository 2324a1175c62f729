#include <espalier/op_helpers.h>

#include <string.h>

void esp_set_output(esp_node *node, int index, int rank, const int64_t *shape) {
  esp_tensor *output = node->outputs[index];
  output->rank = rank;
  memcpy(output->shape, shape, (size_t)rank * sizeof *shape);
  if (node->output_count <= index) node->output_count = index + 1;
}

void esp_set_output_same(esp_node *node) { esp_set_output(node, 0, node->inputs[0]->rank, node->inputs[0]->shape); }

void esp_set_output_scalar(esp_node *node) { esp_set_output(node, 0, 1, (const int64_t[]){1}); }

void esp_set_output_columns(esp_node *node, int index, int64_t columns) {
  const esp_tensor *input = node->inputs[0];
  int64_t shape[ESP_MAX_RANK];
  memcpy(shape, input->shape, sizeof shape);
  shape[input->rank - 1] = columns;
  esp_set_output(node, index, input->rank, shape);
}

void esp_require(const esp_node *node, bool fits, const char *what) {
  if (!fits) esp_panic_shape(node, what);
}

esp_cost esp_cost_elementwise(const esp_node *node, double flops) {
  double elements = 0;
  for (int i = 0; i < node->input_count; i++)
    if (node->inputs[i]) elements += (double)esp_tensor_count(node->inputs[i]);
  for (int i = 0; i < node->output_count; i++) elements += (double)esp_tensor_count(node->outputs[i]);
  return (esp_cost){flops * (double)esp_tensor_count(node->outputs[0]), elements * (double)sizeof(esp_real)};
}
