/* Memory within a step. A block that is no longer needed is given to the next result before the step ends. That keeps
 * the working set in the cache, and the memory of a step near what backward needs. */
#include "tape_internal.h"

#include <string.h>

void *esp_tape_take(esp_tape *tape, size_t bytes) {
  void *block = esp_arena_take(tape->arena, bytes);
  if (!block) tape->status = ESP_ERR_MEMORY;
  return block;
}

static size_t round_to_grain(size_t bytes) { return (bytes + ESP_SPARE_GRAIN - 1) / ESP_SPARE_GRAIN * ESP_SPARE_GRAIN; }

void *esp_tape_take_block(esp_tape *tape, size_t bytes) {
  int best = -1;
  for (int i = 0; i < tape->spare_count; i++)
    if (tape->spares[i].bytes >= bytes && (best < 0 || tape->spares[i].bytes < tape->spares[best].bytes)) best = i;
  if (best < 0 || bytes == 0 || bytes > SIZE_MAX - ESP_SPARE_GRAIN) return esp_tape_take(tape, bytes);
  esp_spare_block *spare = &tape->spares[best];
  void *block = spare->block;
  spare->block += round_to_grain(bytes);
  spare->bytes -= round_to_grain(bytes);
  if (spare->bytes == 0) memmove(spare, spare + 1, (size_t)(--tape->spare_count - best) * sizeof *spare);
  return block;
}

static bool joins(const esp_spare_block *low, const esp_spare_block *high) {
  return low->block + low->bytes == high->block;
}

void esp_tape_give_block(esp_tape *tape, void *block, size_t bytes) {
  const esp_spare_block given = {block, round_to_grain(bytes)};
  if (!block || !bytes) return;
  int at = 0;
  while (at < tape->spare_count && tape->spares[at].block < given.block) at++;
  esp_spare_block *next = &tape->spares[at];
  const bool has_next = at < tape->spare_count;
  if (at > 0 && joins(next - 1, &given)) {
    next[-1].bytes += given.bytes;
    if (!has_next || !joins(next - 1, next)) return;
    next[-1].bytes += next->bytes;
    memmove(next, next + 1, (size_t)(--tape->spare_count - at) * sizeof *next);
  } else if (has_next && joins(&given, next)) {
    *next = (esp_spare_block){block, given.bytes + next->bytes};
  } else if (tape->spare_count < ESP_SPARE_BLOCKS) {
    memmove(next + 1, next, (size_t)(tape->spare_count++ - at) * sizeof *next);
    *next = given;
  }
}

size_t esp_tensor_bytes(const esp_tensor *tensor) { return (size_t)esp_tensor_count(tensor) * sizeof *tensor->data; }

bool esp_tape_take_data(esp_tape *tape, esp_tensor *tensor) {
  tensor->data = esp_tape_take_block(tape, esp_tensor_bytes(tensor));
  return tensor->data != NULL;
}

void esp_tape_forget(esp_tape *tape, esp_tensor *tensor) {
  while (tensor && tensor->view) tensor = tensor->producer->inputs[0];
  if (!tensor || !tensor->producer || !tensor->data) return;
  esp_tape_give_block(tape, tensor->data, esp_tensor_bytes(tensor));
  tensor->data = NULL;
  tensor->forgotten = true;
}

void esp_tape_release(esp_tape *tape, esp_tensor *tensor) {
  if (!tape->record) esp_tape_forget(tape, tensor);
}

esp_tensor *esp_tape_tensor(esp_tape *tape, int rank, const int64_t *shape) {
  esp_tensor *tensor = esp_tape_take(tape, sizeof *tensor);
  if (!tensor) return NULL;
  *tensor = (esp_tensor){.rank = rank};
  memcpy(tensor->shape, shape, (size_t)rank * sizeof *shape);
  return esp_tape_take_data(tape, tensor) ? tensor : NULL;
}
