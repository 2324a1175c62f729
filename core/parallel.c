#include <espalier/parallel.h>
#include <espalier/compare.h>

#include <omp.h>
#include <stdatomic.h>

static int chosen_threads;

void esp_threads_set(int threads) { chosen_threads = threads > 0 ? threads : 0; }

int esp_threads(void) { return chosen_threads ? chosen_threads : omp_get_max_threads(); }

/* Fewer elements than so many are not worth another thread. */
enum { LEAST_ELEMENTS = 2048, UNIT = 64, MOST_SHARES = 128 };

void esp_parallel_for(int64_t count, int64_t grain, esp_range_body *body, void *context) {
  const int64_t chunks = (count + grain - 1) / grain;
  if (chunks <= 1) {
    if (count > 0) body(context, 0, count);
    return;
  }
#pragma omp parallel for schedule(static) num_threads(esp_threads())
  for (int64_t i = 0; i < chunks; i++) body(context, i * grain, esp_smaller((i + 1) * grain, count));
}

/* `count` elements in units of `unit`, of which a range has `least` at least. */
static void share(int64_t count, int64_t unit, int64_t least, esp_range_body *body, void *context) {
  const int64_t units = (count + unit - 1) / unit, ranges = esp_smaller(esp_threads(), units / (least > 0 ? least : 1));
  if (ranges <= 1) {
    if (count > 0) body(context, 0, count);
    return;
  }
#pragma omp parallel for schedule(static) num_threads((int)ranges)
  for (int64_t i = 0; i < ranges; i++)
    body(context, units * i / ranges * unit, esp_smaller(units * (i + 1) / ranges * unit, count));
}

void esp_parallel_rows(int64_t rows, int64_t columns, esp_range_body *body, void *context) {
  share(rows, 1, (LEAST_ELEMENTS + columns - 1) / (columns > 0 ? columns : 1), body, context);
}

void esp_parallel_elements(int64_t count, esp_range_body *body, void *context) {
  share(count, UNIT, LEAST_ELEMENTS / UNIT, body, context);
}

/* What is left of a thread's share of a loop: pieces [next, pieces), on a cache line of its own. */
typedef struct share_left {
  _Alignas(64) atomic_int_fast64_t next;
  int64_t pieces, begin, end;
} share_left;

static void run_pieces(share_left *share, esp_range_body *body, void *context) {
  const int64_t length = share->end - share->begin;
  for (;;) {
    const int64_t i = atomic_fetch_add_explicit(&share->next, 1, memory_order_relaxed);
    if (i >= share->pieces) return;
    body(context, share->begin + length * i / share->pieces, share->begin + length * (i + 1) / share->pieces);
  }
}

void esp_parallel_for_uneven(int64_t count, int64_t grain, esp_range_body *body, void *context) {
  share_left shares[MOST_SHARES];
  const int64_t pieces = (count + grain - 1) / grain;
  const int threads = (int)esp_smaller(esp_smaller(esp_threads(), MOST_SHARES), pieces);
  if (threads <= 1) {
    if (count > 0) body(context, 0, count);
    return;
  }
  for (int t = 0; t < threads; t++) {
    shares[t] = (share_left){.begin = count * t / threads, .end = count * (t + 1) / threads};
    shares[t].pieces = (shares[t].end - shares[t].begin + grain - 1) / grain;
  }
#pragma omp parallel num_threads(threads)
  {
    const int own = omp_get_thread_num();
    for (int i = 0; i < threads; i++) run_pieces(&shares[(own + i) % threads], body, context);
  }
}

double esp_parallel_sum(int64_t count, esp_range_sum *body, void *context) {
  double sums[ESP_PARTS];
#pragma omp parallel for schedule(static) num_threads(esp_threads()) if (count >= 4096)
  for (int64_t part = 0; part < ESP_PARTS; part++)
    sums[part] = body(context, esp_part_begin(count, part), esp_part_begin(count, part + 1));
  double sum = 0;
  for (int part = 0; part < ESP_PARTS; part++) sum += sums[part];
  return sum;
}
