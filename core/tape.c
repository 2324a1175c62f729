#include <espalier/tape.h>

#include <math.h>
#include <stdio.h>
#include <string.h>

/* Memory whose life has ended before the step has: gradients that were used, results that were forgotten. Reusing it
 * keeps a step in the cache, and its memory near that of what backward needs. Ordered by address, neighbours joined. */
enum { SPARE_BUFFERS = 256, SPARE_GRAIN = 64 };

typedef struct spare_buffer {
  char *block;
  size_t bytes; /* a multiple of SPARE_GRAIN */
} spare_buffer;

struct esp_tape {
  esp_arena *arena;
  spare_buffer spares[SPARE_BUFFERS];
  int spare_count;
  esp_tensor *loss; /* of the last backward pass; NULL before it */
  esp_node **nodes; /* the nodes lie in the arena; this list of them is kept from step to step */
  int64_t count, capacity;
  const char *scope;
  esp_status status;
  bool record;
  esp_precision precision;
  const esp_tape_timer *timer; /* or NULL */
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

/* Runs one of an op's functions. */
static void run_phase(const esp_tape *tape, esp_node *node, esp_op_phase phase) {
  const esp_tape_timer *timer = tape->timer;
  const double begin = timer ? timer->clock() : 0;
  (phase == ESP_OP_BACKWARD ? node->op->backward : node->op->forward)(node);
  if (timer) timer->op(timer->context, node, phase, begin, timer->clock());
}

void *esp_tape_take(esp_tape *tape, size_t bytes) {
  void *block = esp_arena_take(tape->arena, bytes);
  if (!block) tape->status = ESP_ERR_MEMORY;
  return block;
}

static size_t round_to_grain(size_t bytes) { return (bytes + SPARE_GRAIN - 1) / SPARE_GRAIN * SPARE_GRAIN; }

/* The smallest spare block that fits, or new memory. */
static void *take_block(esp_tape *tape, size_t bytes) {
  int best = -1;
  for (int i = 0; i < tape->spare_count; i++)
    if (tape->spares[i].bytes >= bytes && (best < 0 || tape->spares[i].bytes < tape->spares[best].bytes)) best = i;
  if (best < 0 || bytes == 0 || bytes > SIZE_MAX - SPARE_GRAIN) return esp_tape_take(tape, bytes);
  spare_buffer *spare = &tape->spares[best];
  void *block = spare->block;
  spare->block += round_to_grain(bytes);
  spare->bytes -= round_to_grain(bytes);
  if (spare->bytes == 0) memmove(spare, spare + 1, (size_t)(--tape->spare_count - best) * sizeof *spare);
  return block;
}

static bool joins(const spare_buffer *low, const spare_buffer *high) { return low->block + low->bytes == high->block; }

/* A block that finds no room in the list waits for the next step. */
static void give_block(esp_tape *tape, void *block, size_t bytes) {
  const spare_buffer given = {block, round_to_grain(bytes)};
  if (!block || !bytes) return;
  int at = 0;
  while (at < tape->spare_count && tape->spares[at].block < given.block) at++;
  spare_buffer *next = &tape->spares[at];
  const bool has_next = at < tape->spare_count;
  if (at > 0 && joins(next - 1, &given)) {
    next[-1].bytes += given.bytes;
    if (!has_next || !joins(next - 1, next)) return;
    next[-1].bytes += next->bytes;
    memmove(next, next + 1, (size_t)(--tape->spare_count - at) * sizeof *next);
  } else if (has_next && joins(&given, next)) {
    *next = (spare_buffer){block, given.bytes + next->bytes};
  } else if (tape->spare_count < SPARE_BUFFERS) {
    memmove(next + 1, next, (size_t)(tape->spare_count++ - at) * sizeof *next);
    *next = given;
  }
}

static size_t data_bytes(const esp_tensor *tensor) { return (size_t)esp_tensor_count(tensor) * sizeof *tensor->data; }

static bool take_data(esp_tape *tape, esp_tensor *tensor) {
  tensor->data = take_block(tape, data_bytes(tensor));
  return tensor->data != NULL;
}

void esp_tape_forget(esp_tape *tape, esp_tensor *tensor) {
  while (tensor && tensor->view) tensor = tensor->producer->inputs[0];
  if (!tensor || !tensor->producer || !tensor->data) return;
  give_block(tape, tensor->data, data_bytes(tensor));
  tensor->data = NULL;
  tensor->forgotten = true;
}

void esp_tape_drop(esp_tape *tape, esp_tensor *tensor) {
  if (!tape->record) esp_tape_forget(tape, tensor);
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
  run_phase(tape, node, ESP_OP_FORWARD);
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
  tensor->grad = take_block(tape, data_bytes(tensor));
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
  if (!tensor->grad_sharer) give_block(tape, tensor->grad, data_bytes(tensor));
  stop_sharing(tensor);
  tensor->grad = NULL;
}

/* Before a node writes the gradient of its input. */
static esp_status own_gradient(esp_tape *tape, esp_tensor *tensor) {
  if (!tensor || !tensor->grad_sharer) return ESP_OK;
  esp_real *own = take_block(tape, data_bytes(tensor));
  if (!own) return ESP_ERR_MEMORY;
  if (tensor->grad_written) memcpy(own, tensor->grad, data_bytes(tensor));
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

/* Has a forgotten tensor computed again, and what it was computed from where that is forgotten, too. */
static esp_status recall(esp_tape *tape, esp_tensor *tensor) {
  if (!tensor || !tensor->producer) return ESP_OK;
  esp_node *node = tensor->producer;
  if (tensor->view) {
    ESP_TRY(recall(tape, node->inputs[0]));
    tensor->data = node->inputs[0]->data;
  }
  if (tensor->data) return ESP_OK;
  for (int i = 0; i < node->input_count; i++) ESP_TRY(recall(tape, node->inputs[i]));
  for (int i = 0; i < node->output_count; i++)
    if (!node->outputs[i]->data && !take_data(tape, node->outputs[i])) return ESP_ERR_MEMORY;
  run_phase(tape, node, ESP_OP_AGAIN);
  return ESP_OK;
}

static esp_status recall_what_backward_reads(esp_tape *tape, esp_node *node) {
  for (int i = 0; i < node->input_count; i++)
    if (!(node->unread & ESP_UNREAD_INPUT(i))) ESP_TRY(recall(tape, node->inputs[i]));
  for (int i = 0; i < node->output_count; i++)
    if (!(node->unread & ESP_UNREAD_OUTPUTS)) ESP_TRY(recall(tape, node->outputs[i]));
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
  give_block(tape, node->scratch, node->scratch_bytes);
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
    node->scratch = take_block(tape, node->scratch_bytes);
    if (!node->scratch) return ESP_ERR_MEMORY;
  }
  run_phase(tape, node, ESP_OP_BACKWARD);
  if (overwrites) {
    node->inputs[0]->data = NULL;
    node->inputs[0]->forgotten = true;
  }
  release_outputs(tape, node);
  return ESP_OK;
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
  if (hands_on(node)) {
    hand_on(node);
    release_outputs(tape, node);
    return ESP_OK;
  }
  return write_gradients(tape, node);
}

/* As if no backward pass had been. */
static void forget_gradients(esp_tape *tape) {
  for (int64_t n = 0; n < tape->count; n++) {
    const esp_node *node = tape->nodes[n];
    for (int i = 0; i < node->output_count; i++) node->outputs[i]->grad_written = false;
    for (int i = 0; i < node->input_count; i++)
      if (node->inputs[i]) node->inputs[i]->grad_written = false;
  }
}

static esp_status start_backward(esp_tape *tape, esp_tensor *loss) {
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
  ESP_TRY(start_backward(tape, loss));
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

static bool results_are_finite(esp_tape *tape, const esp_node *node) {
  for (int i = 0; i < node->output_count; i++)
    if (recall(tape, node->outputs[i]) == ESP_OK &&
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
  if (!tape->loss || start_backward(tape, tape->loss) != ESP_OK) return NULL;
  for (int64_t n = tape->count - 1; n >= 0; n--) {
    if (run_backward(tape, tape->nodes[n]) != ESP_OK) return NULL;
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
