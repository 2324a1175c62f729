/* The backward pass: from the last node to the first. */
#include "tape_internal.h"

#include <string.h>

static esp_status take_grad(esp_tape *tape, esp_tensor *tensor) {
  if (!tensor || !tensor->requires_grad || tensor->grad) return ESP_OK;
  tensor->grad = esp_tape_take_block(tape, esp_tensor_bytes(tensor));
  return tensor->grad ? ESP_OK : ESP_ERR_MEMORY;
}

/* --- gradients in memory that is there already ------------------------------------------------------------------
 * When a node's turn comes its output's gradient is complete and nobody but the node will read it. An input that has
 * none yet can have that memory, two inputs share it until one of them is to be changed or is dead. Leaves keep their
 * own. */

static void stop_sharing(esp_tensor *tensor) {
  if (tensor->grad_sharer) tensor->grad_sharer->grad_sharer = NULL;
  tensor->grad_sharer = NULL;
}

static void share_gradient(esp_tensor *a, esp_tensor *b) {
  if (a) a->grad_sharer = b;
  if (b) b->grad_sharer = a;
}

static void give_gradient(esp_tape *tape, esp_tensor *tensor) {
  if (!tensor->grad_sharer) esp_tape_give_block(tape, tensor->grad, esp_tensor_bytes(tensor));
  stop_sharing(tensor);
  tensor->grad = NULL;
}

/* Before a node writes the gradient of its input. */
static esp_status own_gradient(esp_tape *tape, esp_tensor *tensor) {
  if (!tensor || !tensor->grad_sharer) return ESP_OK;
  esp_real *own = esp_tape_take_block(tape, esp_tensor_bytes(tensor));
  if (!own) return ESP_ERR_MEMORY;
  if (tensor->grad_written) memcpy(own, tensor->grad, esp_tensor_bytes(tensor));
  stop_sharing(tensor);
  tensor->grad = own;
  return ESP_OK;
}

static bool has_no_gradient(const esp_tensor *tensor) {
  return tensor->producer && !tensor->grad && !tensor->grad_written;
}

static bool hands_on(const esp_node *node) {
  const esp_tensor *first = NULL;
  int takers = 0;
  for (int i = 0; i < node->input_count; i++) {
    const esp_tensor *input = node->inputs[i];
    if (!input || !input->requires_grad) continue;
    if (!(node->passes & ESP_PASSES(i)) || !has_no_gradient(input) || input == first) return false;
    if (!first) first = input;
    takers++;
  }
  return takers == 1 || (takers == 2 && !node->outputs[0]->grad_sharer);
}

static void hand_on(esp_node *node) {
  esp_tensor *output = node->outputs[0], *sharer = output->grad_sharer;
  for (int i = 0; i < node->input_count; i++) {
    esp_tensor *input = node->inputs[i];
    if (!input || !input->requires_grad) continue;
    input->grad = output->grad;
    input->grad_written = true;
    share_gradient(input, sharer);
    sharer = input;
  }
  output->grad = NULL;
  output->grad_sharer = NULL;
}

/* The first reader of a result is the last that backward comes to; its producer must not look at it either. */
static bool may_overwrite(const esp_node *node) {
  const esp_tensor *x = node->inputs[0];
  return node->overwrites && x->requires_grad && has_no_gradient(x) && x->first_reader == node && !x->view && x->data &&
         (x->producer->unread & ESP_UNREAD_OUTPUTS);
}

esp_status esp_tape_recall(esp_tape *tape, esp_tensor *tensor) {
  if (!tensor || !tensor->producer) return ESP_OK;
  esp_node *node = tensor->producer;
  if (tensor->view) {
    ESP_TRY(esp_tape_recall(tape, node->inputs[0]));
    tensor->data = node->inputs[0]->data;
  }
  if (tensor->data) return ESP_OK;
  for (int i = 0; i < node->input_count; i++) ESP_TRY(esp_tape_recall(tape, node->inputs[i]));
  for (int i = 0; i < node->output_count; i++)
    if (!node->outputs[i]->data && !esp_tape_take_data(tape, node->outputs[i])) return ESP_ERR_MEMORY;
  esp_tape_run_phase(tape, node, ESP_OP_AGAIN);
  return ESP_OK;
}

static esp_status recall_what_backward_reads(esp_tape *tape, esp_node *node) {
  for (int i = 0; i < node->input_count; i++)
    if (!(node->unread & ESP_UNREAD_INPUT(i))) ESP_TRY(esp_tape_recall(tape, node->inputs[i]));
  for (int i = 0; i < node->output_count; i++)
    if (!(node->unread & ESP_UNREAD_OUTPUTS)) ESP_TRY(esp_tape_recall(tape, node->outputs[i]));
  return ESP_OK;
}

/* Only the node that made a tensor reads its gradient, so after that node's backward it is dead; so is what was
 * recalled for the nodes that use it. */
static void release_outputs(esp_tape *tape, esp_node *node) {
  for (int i = 0; i < node->output_count; i++) {
    esp_tensor *output = node->outputs[i];
    give_gradient(tape, output);
    if (output->forgotten) esp_tape_forget(tape, output);
  }
  esp_tape_give_block(tape, node->scratch, node->scratch_bytes);
  node->scratch = NULL;
}

/* Runs a node's backward function. */
static esp_status write_gradients(esp_tape *tape, esp_node *node) {
  const bool overwrites = may_overwrite(node);
  if (overwrites) node->inputs[0]->grad = node->inputs[0]->data;
  for (int i = 0; i < node->input_count; i++) {
    ESP_TRY(own_gradient(tape, node->inputs[i]));
    ESP_TRY(take_grad(tape, node->inputs[i]));
  }
  ESP_TRY(recall_what_backward_reads(tape, node));
  if (node->scratch_bytes) {
    node->scratch = esp_tape_take_block(tape, node->scratch_bytes);
    if (!node->scratch) return ESP_ERR_MEMORY;
  }
  esp_tape_run_phase(tape, node, ESP_OP_BACKWARD);
  if (overwrites) {
    node->inputs[0]->data = NULL;
    node->inputs[0]->forgotten = true;
  }
  release_outputs(tape, node);
  return ESP_OK;
}

esp_status esp_tape_run_backward(esp_tape *tape, esp_node *node) {
  bool reached = false;
  for (int i = 0; i < node->output_count; i++) reached |= node->outputs[i]->grad_written;
  if (!reached) return ESP_OK;
  for (int i = 0; i < node->output_count; i++) {
    esp_tensor *output = node->outputs[i];
    if (output->grad_written) continue;
    ESP_TRY(take_grad(tape, output));
    memset(output->grad, 0, (size_t)esp_tensor_count(output) * sizeof *output->grad);
    output->grad_written = true;
  }
  if (hands_on(node)) {
    hand_on(node);
    release_outputs(tape, node);
    return ESP_OK;
  }
  return write_gradients(tape, node);
}

/* Leaves all as if no backward pass had been. */
static void forget_gradients(esp_tape *tape) {
  for (int64_t n = 0; n < tape->count; n++) {
    const esp_node *node = tape->nodes[n];
    for (int i = 0; i < node->output_count; i++) node->outputs[i]->grad_written = false;
    for (int i = 0; i < node->input_count; i++)
      if (node->inputs[i]) node->inputs[i]->grad_written = false;
  }
}

esp_status esp_tape_start_backward(esp_tape *tape, esp_tensor *loss) {
  forget_gradients(tape);
  ESP_TRY(take_grad(tape, loss));
  loss->grad[0] = 1;
  loss->grad_written = true;
  tape->loss = loss;
  return ESP_OK;
}

esp_status esp_tape_backward(esp_tape *tape, esp_tensor *loss) {
  if (tape->status != ESP_OK) return tape->status;
  if (esp_tensor_count(loss) != 1) esp_panic("esp_tape_backward: the loss must have one element");
  if (!loss->requires_grad) return ESP_OK; /* nothing it depends on is trained */
  ESP_TRY(esp_tape_start_backward(tape, loss));
  for (int64_t i = tape->count - 1; i >= 0; i--) ESP_TRY(esp_tape_run_backward(tape, tape->nodes[i]));
  return ESP_OK;
}

esp_real *esp_grad(esp_tensor *tensor, bool *accumulate) {
  if (!tensor || !tensor->requires_grad) return NULL;
  *accumulate = tensor->grad_written;
  tensor->grad_written = true;
  return tensor->grad;
}
