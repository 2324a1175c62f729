/* Recording: an op runs at once and leaves a node where a gradient will flow. */
#include "tape_internal.h"

#include <string.h>

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
  tape->spare_count = 0;
  tape->loss = NULL;
  tape->count = 0;
  tape->scope = "";
  tape->status = ESP_OK;
  tape->record = record;
}

esp_status esp_tape_status(const esp_tape *tape) { return tape->status; }

esp_arena *esp_tape_arena(esp_tape *tape) { return tape->arena; }

bool esp_tape_records(const esp_tape *tape) { return tape->record; }

void esp_tape_scope(esp_tape *tape, const char *scope) { tape->scope = scope; }

void esp_tape_set_precision(esp_tape *tape, esp_precision precision) { tape->precision = precision; }

esp_precision esp_tape_precision(const esp_tape *tape) { return tape->precision; }

void esp_tape_set_timer(esp_tape *tape, const esp_tape_timer *timer) { tape->timer = timer; }

int64_t esp_tape_node_count(const esp_tape *tape) { return tape->count; }

const esp_node *esp_tape_node(const esp_tape *tape, int64_t index) { return tape->nodes[index]; }

void esp_tape_run_phase(const esp_tape *tape, esp_node *node, esp_op_phase phase) {
  const esp_tape_timer *timer = tape->timer;
  const double begin = timer ? timer->clock() : 0;
  (phase == ESP_OP_BACKWARD ? node->op->backward : node->op->forward)(node);
  if (timer) timer->op(timer->context, node, phase, begin, timer->clock());
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
  for (int i = 0; i < node->input_count; i++)
    if (node->inputs[i] && !node->inputs[i]->first_reader) node->inputs[i]->first_reader = node;
  return true;
}

static esp_node *make_node(esp_tape *tape, const esp_op *op, esp_tensor *const *inputs, int input_count,
                           const void *attributes, size_t attributes_size) {
  esp_node *node = esp_tape_take(tape, sizeof *node);
  if (!node) return NULL;
  *node = (esp_node){.op = op, .scope = tape->scope, .input_count = input_count, .precision = tape->precision};
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

static bool needs_grad(const esp_tape *tape, const esp_node *node) {
  if (!tape->record || !node->op->backward) return false;
  for (int i = 0; i < node->input_count; i++)
    if (node->inputs[i] && node->inputs[i]->requires_grad) return true;
  return false;
}

static bool take_buffers(esp_tape *tape, esp_node *node) {
  for (int i = 0; i < node->output_count; i++)
    if (!node->outputs[i]->data && !esp_tape_take_data(tape, node->outputs[i])) return false;
  if (node->saved_bytes) node->saved = esp_tape_take(tape, node->saved_bytes);
  return !node->saved_bytes || node->saved;
}

esp_node *esp_tape_run(esp_tape *tape, const esp_op *op, esp_tensor *const *inputs, int input_count,
                       const void *attributes, size_t attributes_size) {
  if (tape->status != ESP_OK) return NULL;
  esp_node *node = make_node(tape, op, inputs, input_count, attributes, attributes_size);
  if (!node) return NULL;
  op->prepare(node);
  if (!take_buffers(tape, node)) return NULL;
  esp_tape_run_phase(tape, node, ESP_OP_FORWARD);
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
