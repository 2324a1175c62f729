/* Counter-based random streams (Philox 4x32-10; Salmon et al., "Parallel random numbers: as easy as
 * 1, 2, 3", SC 2011). A stream is a key, not a state: the same (seed, purpose, index) gives the same
 * numbers in any order and on any thread, so resuming and the number of threads cannot change a run. */
#ifndef ESPALIER_RANDOM_H
#define ESPALIER_RANDOM_H

#include <espalier/status.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What a stream is for; streams of different purposes are independent. Append only: the numbers are part
 * of what makes an old run repeatable. */
typedef enum esp_purpose {
  ESP_PURPOSE_INIT = 1,     /* index = hash of the parameter's name */
  ESP_PURPOSE_SHUFFLE,      /* index = epoch */
  ESP_PURPOSE_AUGMENT,      /* index = position of the sample in the run */
  ESP_PURPOSE_MIXUP,        /* index = batch in the run */
  ESP_PURPOSE_ROUTER_NOISE, /* index = step and layer */
  ESP_PURPOSE_DROPOUT,      /* index = step and layer */
  ESP_PURPOSE_SYNTHETIC,    /* index = sample */
  ESP_PURPOSE_PRUNE,        /* index = layer */
  ESP_PURPOSE_TEST,
  ESP_PURPOSE_ROUTER_HASH, /* index = block */
  ESP_PURPOSE_UPCYCLE,     /* index = hash of the parameter's name */
  ESP_PURPOSE_SAMPLE,      /* index = 0 */
  ESP_PURPOSE_SPARSIFY,    /* index = row of a pass */
  ESP_PURPOSE_FLIP,        /* index = image of the split */
  ESP_PURPOSE_VALIDATION   /* index = class */
} esp_purpose;

typedef struct esp_random {
  uint32_t key[2];
  uint32_t counter[4];
  uint32_t block[4];
  unsigned left; /* numbers of `block` not yet dealt */
} esp_random;

ESP_API esp_random esp_random_stream(uint64_t seed, esp_purpose purpose, uint64_t index);

/* Uniform 32 bits. */
ESP_API uint32_t esp_random_bits(esp_random *stream);

/* Uniform in [0, 1) on a grid of 2^-24. */
ESP_API double esp_random_uniform(esp_random *stream);

/* Uniform integer in [0, bound), without bias; bound > 0. */
ESP_API uint32_t esp_random_below(esp_random *stream, uint32_t bound);

/* Normal with mean 0 and standard deviation 1 (Box-Muller; two uniforms a call). */
ESP_API double esp_random_normal(esp_random *stream);

/* Shuffles `count` entries in place (Fisher-Yates). */
ESP_API void esp_random_shuffle(esp_random *stream, uint32_t *items, uint32_t count);

/* FNV-1a, 64 bits: turns a name into a stream's index. */
ESP_API uint64_t esp_hash_text(const char *text);

#ifdef __cplusplus
}
#endif
#endif
