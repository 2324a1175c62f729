#include <espalier/memory.h>

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum { ALIGNMENT = 64 };
static const size_t first_chunk_bytes = (size_t)1 << 20;

static atomic_uint_fast64_t allocations;
static atomic_int_fast64_t calls_until_failure = -1;

static bool failure_is_due(void) {
  int_fast64_t left = atomic_load(&calls_until_failure);
  if (left < 0) return false;
  if (left == 0) return true;
  atomic_store(&calls_until_failure, left - 1);
  return false;
}

static size_t round_up(size_t bytes) { return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT; }

static void *take_block(size_t bytes) {
  void *block = failure_is_due() ? NULL : aligned_alloc(ALIGNMENT, round_up(bytes ? bytes : 1));
  if (!block) {
    (void)esp_fail(ESP_ERR_MEMORY, "out of memory: %zu bytes were asked for; use a smaller batch or model", bytes);
    return NULL;
  }
  atomic_fetch_add(&allocations, 1);
  return block;
}

void *esp_alloc(size_t count, size_t size) {
  if (size && count > (SIZE_MAX - ALIGNMENT) / size) {
    (void)esp_fail(ESP_ERR_MEMORY, "out of memory: %zu items of %zu bytes overflow the address space", count, size);
    return NULL;
  }
  void *block = take_block(count * size);
  if (block) memset(block, 0, count * size);
  return block;
}

void esp_free(void *block) { free(block); }

char *esp_copy_text(const char *text) {
  const size_t size = strlen(text) + 1;
  char *copy = esp_alloc(size, 1);
  if (copy) memcpy(copy, text, size);
  return copy;
}

uint64_t esp_allocation_count(void) { return atomic_load(&allocations); }

void esp_alloc_fail_after(int64_t calls) { atomic_store(&calls_until_failure, calls); }

/* Chunks are kept in the order they were made. A step that needs more than the chunks hold appends one; the next step
 * then finds all of them and fills them in the same order. */
typedef struct chunk {
  struct chunk *next;
  size_t size, used;
  char *bytes;
} chunk;

struct esp_arena {
  chunk *first;
  size_t capacity, in_use, peak;
};

esp_arena *esp_arena_create(void) { return esp_alloc(1, sizeof(esp_arena)); }

void esp_arena_free(esp_arena *arena) {
  if (!arena) return;
  for (chunk *c = arena->first; c;) {
    chunk *next = c->next;
    esp_free(c->bytes);
    esp_free(c);
    c = next;
  }
  esp_free(arena);
}

static chunk *append_chunk(esp_arena *arena, size_t bytes) {
  size_t size = arena->capacity / 8 > first_chunk_bytes ? arena->capacity / 8 : first_chunk_bytes;
  if (size < bytes) size = bytes;
  chunk *c = esp_alloc(1, sizeof *c);
  if (!c) return NULL;
  c->bytes = take_block(size);
  if (!c->bytes) {
    esp_free(c);
    return NULL;
  }
  c->size = size;
  chunk **end = &arena->first;
  while (*end) end = &(*end)->next;
  *end = c;
  arena->capacity += size;
  return c;
}

void *esp_arena_take(esp_arena *arena, size_t bytes) {
  if (bytes > SIZE_MAX - ALIGNMENT) {
    (void)esp_fail(ESP_ERR_MEMORY, "out of memory: %zu bytes overflow the address space", bytes);
    return NULL;
  }
  bytes = round_up(bytes);
  chunk *c = arena->first; /* from the first one on: small blocks fill what large ones left of a chunk */
  while (c && c->size - c->used < bytes) c = c->next;
  if (!c) c = append_chunk(arena, bytes);
  if (!c) return NULL;
  void *block = c->bytes + c->used;
  c->used += bytes;
  arena->in_use += bytes;
  if (arena->in_use > arena->peak) arena->peak = arena->in_use;
  return block;
}

void esp_arena_reset(esp_arena *arena) {
  for (chunk *c = arena->first; c; c = c->next) c->used = 0;
  arena->in_use = 0;
}

size_t esp_arena_capacity(const esp_arena *arena) { return arena->capacity; }

size_t esp_arena_peak(const esp_arena *arena) { return arena->peak; }
