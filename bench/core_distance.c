/* How far two threads are apart: what a cache line takes from one to the other. */
#include <espalier/bench.h>
#include <espalier/evaluate.h>
#include <espalier/parallel.h>

#include <omp.h>
#include <sched.h>
#include <stdatomic.h>

enum { EXCHANGES = 1000, TRIES = 7, PATIENCE = 10000 };

typedef struct exchanged_line {
  _Alignas(64) atomic_int turn;
} exchanged_line;

static void wait_for(const exchanged_line *line, int turn) {
  for (int looks = 0; atomic_load_explicit(&line->turn, memory_order_acquire) != turn; looks++)
    if (looks >= PATIENCE) sched_yield(); /* both may be on one processor */
}

/* Threads 0 and 1 count up in turns. */
static void count_up(exchanged_line *line, int thread) {
  for (int i = thread; i < 2 * EXCHANGES; i += 2) {
    wait_for(line, i);
    atomic_store_explicit(&line->turn, i + 1, memory_order_release);
  }
}

/* Seconds; 0 if there is one thread only. */
static double exchange(void) {
  exchanged_line line = {0};
  double seconds = 0;
#pragma omp parallel num_threads(2)
  if (omp_get_num_threads() == 2) {
#pragma omp barrier
    const double start = esp_seconds();
    count_up(&line, omp_get_thread_num());
#pragma omp barrier
#pragma omp master
    seconds = esp_seconds() - start;
  }
  return seconds;
}

/* The least of some tries: threads that were just started may share a processor at first. */
double esp_bench_core_distance(void) {
  double least = 0;
  for (int i = 0; i < TRIES && esp_threads() > 1; i++) {
    const double seconds = exchange();
    if (i == 0 || seconds < least) least = seconds;
  }
  return 1e9 * least / (2 * EXCHANGES);
}
