/* Parallel loops whose results do not depend on the number of threads: the work is cut into chunks of a size
 * that the caller fixes, and reductions add the chunks' results in order. OpenMP owns the cores. */
#ifndef ESPALIER_PARALLEL_H
#define ESPALIER_PARALLEL_H

#include <espalier/status.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* A loop that is compiled for several processors; the right one is picked when the program starts. */
#if defined(ESP_NO_MULTIVERSIONING) || defined(__clang__) || !defined(__x86_64__)
#define ESP_HOT
#else
#define ESP_HOT __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#endif

/* Before a loop that adds up: lets the compiler add in the order that suits the vector unit. The order is fixed
 * by the code and the processor, never by the number of threads. */
#define ESP_PRAGMA(text) _Pragma(#text)
#define ESP_SUMS(...) ESP_PRAGMA(omp simd reduction(+ : __VA_ARGS__))

/* How many threads loops and products use from now on; 0: as many as OpenMP offers. */
ESP_API void esp_threads_set(int threads);
ESP_API int esp_threads(void);

typedef void esp_range_body(void *context, int64_t begin, int64_t end);

/* body(context, begin, end) for the ranges [0, grain), [grain, 2 grain) ... of [0, count). Ranges must be
 * independent. */
ESP_API void esp_parallel_for(int64_t count, int64_t grain, esp_range_body *body, void *context);

/* body(context, begin, end) for as many equal ranges of `rows` rows of `columns` elements as there are threads, or
 * fewer if that is too little work. In every such loop of as many rows the same rows come to the same thread, which has
 * them in its cache. Where ranges begin must not matter to the results. */
ESP_API void esp_parallel_rows(int64_t rows, int64_t columns, esp_range_body *body, void *context);

/* The same for `count` elements; ranges begin at multiples of 64. */
ESP_API void esp_parallel_elements(int64_t count, esp_range_body *body, void *context);

/* The same for ranges of uneven cost, of at most `grain` of `count`: a thread that has finished its share helps the
 * others. A single thread gets all in one range. */
ESP_API void esp_parallel_for_uneven(int64_t count, int64_t grain, esp_range_body *body, void *context);

/* Reductions over many rows are cut into this many parts, whatever the number of threads. */
enum { ESP_PARTS = 16 };

/* Rows [begin, end) of part `part` when `count` rows are cut into ESP_PARTS parts. */
static inline int64_t esp_part_begin(int64_t count, int64_t part) { return count * part / ESP_PARTS; }

typedef double esp_range_sum(void *context, int64_t begin, int64_t end);

/* The sum of body() over ESP_PARTS parts of [0, count), added in order. */
ESP_API double esp_parallel_sum(int64_t count, esp_range_sum *body, void *context);

#ifdef __cplusplus
}
#endif
#endif
