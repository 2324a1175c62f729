/* Memory of three lifetimes: model and optimiser blocks from esp_alloc(), and the step arena, which is
 * reset after each step and never shrinks: after the first step a training step allocates nothing. */
#ifndef ESPALIER_MEMORY_H
#define ESPALIER_MEMORY_H

#include <espalier/status.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* `count` items of `size` bytes, zeroed, aligned to a cache line (64 bytes). NULL if the product overflows
 * or memory is short; the message then says how much was asked for. Freed by esp_free(). */
ESP_API void *esp_alloc(size_t count, size_t size);
ESP_API void esp_free(void *block);

/* A copy of `text` from esp_alloc(); NULL if memory is short. */
ESP_API char *esp_copy_text(const char *text);

/* How many blocks esp_alloc() has handed out since the program began. The tests compare two readings. */
ESP_API uint64_t esp_allocation_count(void);

/* The next calls: after `calls` more allocations every allocation fails; a negative number switches this
 * off. For tests of the failure paths. */
ESP_API void esp_alloc_fail_after(int64_t calls);

/* A growing stack of memory for one step. */
typedef struct esp_arena esp_arena;

ESP_API esp_arena *esp_arena_create(void); /* NULL if memory is short */
ESP_API void esp_arena_free(esp_arena *arena);

/* `bytes` bytes aligned to 64, NOT zeroed, valid until the next reset. NULL if memory is short. */
ESP_API void *esp_arena_take(esp_arena *arena, size_t bytes);

/* Forgets all that was taken and keeps the memory for the next step. */
ESP_API void esp_arena_reset(esp_arena *arena);

/* Bytes the arena holds, and the most that was ever in use at once. */
ESP_API size_t esp_arena_capacity(const esp_arena *arena);
ESP_API size_t esp_arena_peak(const esp_arena *arena);

#ifdef __cplusplus
}
#endif
#endif
