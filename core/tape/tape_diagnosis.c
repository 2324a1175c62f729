/* Finds the node that a step went wrong in, and says what a node was given. */
#include "tape_internal.h"

#include <math.h>
#include <stdio.h>

static bool all_finite(const esp_real *values, int64_t count) {
  for (int64_t i = 0; i < count; i++)
    if (!isfinite(values[i])) return false;
  return true;
}

static bool results_are_finite(esp_tape *tape, const esp_node *node) {
  for (int i = 0; i < node->output_count; i++)
    if (esp_tape_recall(tape, node->outputs[i]) == ESP_OK &&
        !all_finite(node->outputs[i]->data, esp_tensor_count(node->outputs[i])))
      return false;
  return true;
}

static bool gradients_are_finite(const esp_node *node) {
  for (int i = 0; i < node->input_count; i++) {
    const esp_tensor *t = node->inputs[i];
    if (t && t->grad_written && !all_finite(t->grad, esp_tensor_count(t))) return false;
  }
  return true;
}

const esp_node *esp_tape_first_not_finite(esp_tape *tape) {
  for (int64_t n = 0; n < tape->count; n++)
    if (!results_are_finite(tape, tape->nodes[n])) return tape->nodes[n];
  return NULL;
}

const esp_node *esp_tape_first_gradient_not_finite(esp_tape *tape) {
  if (!tape->loss || esp_tape_start_backward(tape, tape->loss) != ESP_OK) return NULL;
  for (int64_t n = tape->count - 1; n >= 0; n--) {
    if (esp_tape_run_backward(tape, tape->nodes[n]) != ESP_OK) return NULL;
    if (!gradients_are_finite(tape->nodes[n])) return tape->nodes[n];
  }
  return NULL;
}

void esp_panic_shape(const esp_node *node, const char *what) {
  char text[512] = "";
  size_t used = 0;
  for (int i = 0; i < node->input_count && used + 64 < sizeof text; i++) {
    char shape[64] = "none";
    if (node->inputs[i]) esp_shape_text(node->inputs[i], shape, sizeof shape);
    used += (size_t)snprintf(text + used, sizeof text - used, " %s", shape);
  }
  esp_panic("op %s in \"%s\": %s; inputs:%s", node->op->name, node->scope, what, text);
}
