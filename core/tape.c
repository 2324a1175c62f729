#include <espalier/tape.h>

#include <math.h>
#include <stdio.h>
#include <string.h>

struct esp_tape {
  esp_arena *arena;
  esp_node **nodes; /* the nodes lie in the arena; this list of them is kept from step to step */
  int64_t count, capacity;
  const char *scope;
  esp_status status;
  bool record;
};

esp_tape *esp_tape_create(void) {
  esp_tape *tape = esp_alloc(1, sizeof *tape);
  if (!tape) return NULL;
  tape->arena = esp_arena_create();
  if (!tape->arena) {
    esp_tape_free(tape);
    return NULL;
  }
  esp_tape_reset(tape, true);
  return tape;
}

void esp_tape_free(esp_tape *tape) {
  if (!tape) return;
  esp_arena_free(tape->arena);
  esp_free(tape->nodes);
  esp_free(tape);
}

void esp_tape_reset(esp_tape *tape, bool record) {
  esp_arena_reset(tape->arena);
  tape->count = 0;
  tape->scope = "";
  tape->status = ESP_OK;
  tape->record = record;
}

esp_status esp_tape_status(const esp_tape *tape) { return tape->status; }

esp_arena *esp_tape_arena(esp_tape *tape) { return tape->arena; }

bool esp_tape_records(const esp_tape *tape) { return tape->record; }

void esp_tape_scope(esp_tape *tape, const char *scope) { tape->scope = scope; }

void *esp_tape_take(esp_tape *tape, size_t bytes) {
  void *block = esp_arena_take(tape->arena, bytes);
  if (!block) tape->status = ESP_ERR_MEMORY;
  return block;
}

static bool take_data(esp_tape *tape, esp_tensor *tensor) {
  tensor->data = esp_tape_take(tape, (size_t)esp_tensor_count(tensor) * sizeof *tensor->data);
  return tensor->data != NULL;
}

esp_tensor *esp_tape_tensor(esp_tape *tape, int rank, const int64_t *shape) {
  esp_tensor *tensor = esp_tape_take(tape, sizeof *tensor);
  if (!tensor) return NULL;
  *tensor = (esp_tensor){.rank = rank};
  memcpy(tensor->shape, shape, (size_t)rank * sizeof *shape);
  return take_data(tape, tensor) ? tensor : NULL;
}

static bool push(esp_tape *tape, esp_node *node) {
  if (tape->count == tape->capacity) {
    const int64_t capacity = tape->capacity ? 2 * tape->capacity : 256;
    esp_node **nodes = esp_alloc((size_t)capacity, sizeof(esp_node *));
    if (!nodes) {
      tape->status = ESP_ERR_MEMORY;
      return false;
    }
    if (tape->count) memcpy(nodes, tape->nodes, (size_t)tape->count * sizeof(esp_node *));
    esp_free(tape->nodes);
    tape->nodes = nodes;
    tape->capacity = capacity;
  }
  tape->nodes[tape->count++] = node;
  return true;
}

static esp_node *make_node(esp_tape *tape, const esp_op *op, esp_tensor *const *inputs, int input_count,
                           const void *attributes, size_t attributes_size) {
  esp_node *node = esp_tape_take(tape, sizeof *node);
  if (!node) return NULL;
  *node = (esp_node){.op = op, .scope = tape->scope, .input_count = input_count};
  memcpy(node->inputs, inputs, (size_t)input_count * sizeof(esp_tensor *));
  if (attributes_size) {
    node->attributes = esp_tape_take(tape, attributes_size);
    if (!node->attributes) return NULL;
    memcpy(node->attributes, attributes, attributes_size);
  }
  for (int i = 0; i < ESP_MAX_OUTPUTS; i++) {
    node->outputs[i] = esp_tape_take(tape, sizeof(esp_tensor));
    if (!node->outputs[i]) return NULL;
    *node->outputs[i] = (esp_tensor){.producer = node};
  }
  return node;
}

/* A node needs a gradient if any of its inputs does; leaves start the step with none written. */
static bool needs_grad(const esp_tape *tape, const esp_node *node) {
  bool needed = false;
  if (!tape->record || !node->op->backward) return false;
  for (int i = 0; i < node->input_count; i++) {
    esp_tensor *input = node->inputs[i];
    if (!input || !input->requires_grad) continue;
    if (!input->producer) input->grad_written = false;
    needed = true;
  }
  return needed;
}

static bool take_buffers(esp_tape *tape, esp_node *node) {
  for (int i = 0; i < node->output_count; i++)
    if (!node->outputs[i]->data && !take_data(tape, node->outputs[i])) return false;
  if (node->saved_bytes) node->saved = esp_tape_take(tape, node->saved_bytes);
  return !node->saved_bytes || node->saved;
}

esp_node *esp_tape_run(esp_tape *tape, const esp_op *op, esp_tensor *const *inputs, int input_count,
                       const void *attributes, size_t attributes_size) {
  if (tape->status != ESP_OK) return NULL;
  esp_node *node = make_node(tape, op, inputs, input_count, attributes, attributes_size);
  if (!node) return NULL;
  op->plan(node);
  if (!take_buffers(tape, node)) return NULL;
  op->forward(node);
  if (needs_grad(tape, node)) {
    for (int i = 0; i < node->output_count; i++) node->outputs[i]->requires_grad = true;
    if (!push(tape, node)) return NULL;
  }
  return node;
}

esp_tensor *esp_tape_apply(esp_tape *tape, const esp_op *op, esp_tensor *const *inputs, int input_count,
                           const void *attributes, size_t attributes_size) {
  esp_node *node = esp_tape_run(tape, op, inputs, input_count, attributes, attributes_size);
  return node ? node->outputs[0] : NULL;
}

static esp_status take_grad(esp_tape *tape, esp_tensor *tensor) {
  if (!tensor || !tensor->requires_grad || tensor->grad) return ESP_OK;
  tensor->grad = esp_tape_take(tape, (size_t)esp_tensor_count(tensor) * sizeof *tensor->grad);
  return tensor->grad ? ESP_OK : ESP_ERR_MEMORY;
}

/* Runs one node backwards unless no gradient reached it. Outputs that none reached count as zero. */
static esp_status run_backward(esp_tape *tape, esp_node *node) {
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
  for (int i = 0; i < node->input_count; i++) ESP_TRY(take_grad(tape, node->inputs[i]));
  if (node->scratch_bytes) {
    node->scratch = esp_tape_take(tape, node->scratch_bytes);
    if (!node->scratch) return ESP_ERR_MEMORY;
  }
  node->op->backward(node);
  return ESP_OK;
}

esp_status esp_tape_backward(esp_tape *tape, esp_tensor *loss) {
  if (tape->status != ESP_OK) return tape->status;
  if (esp_tensor_count(loss) != 1) esp_panic("esp_tape_backward: the loss must have one element");
  if (!loss->requires_grad) return ESP_OK; /* nothing it depends on is trained */
  ESP_TRY(take_grad(tape, loss));
  loss->grad[0] = 1;
  loss->grad_written = true;
  for (int64_t i = tape->count - 1; i >= 0; i--) ESP_TRY(run_backward(tape, tape->nodes[i]));
  return ESP_OK;
}

esp_real *esp_grad(esp_tensor *tensor, bool *accumulate) {
  if (!tensor || !tensor->requires_grad) return NULL;
  *accumulate = tensor->grad_written;
  tensor->grad_written = true;
  return tensor->grad;
}

int64_t esp_tape_node_count(const esp_tape *tape) { return tape->count; }

const esp_node *esp_tape_node(const esp_tape *tape, int64_t index) { return tape->nodes[index]; }

static bool all_finite(const esp_real *values, int64_t count) {
  for (int64_t i = 0; i < count; i++)
    if (!isfinite(values[i])) return false;
  return true;
}

const esp_node *esp_tape_first_not_finite(const esp_tape *tape, bool gradients) {
  for (int64_t n = 0; n < tape->count; n++) {
    const esp_node *node = tape->nodes[gradients ? tape->count - 1 - n : n];
    esp_tensor *const *tensors = gradients ? node->inputs : node->outputs;
    const int count = gradients ? node->input_count : node->output_count;
    for (int i = 0; i < count; i++) {
      const esp_tensor *t = tensors[i];
      if (!t || (gradients && !t->grad_written)) continue;
      if (!all_finite(gradients ? t->grad : t->data, esp_tensor_count(t))) return node;
    }
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
