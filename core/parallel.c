#include <espalier/parallel.h>

#include <omp.h>

static int chosen_threads;

void esp_threads_set(int threads) { chosen_threads = threads > 0 ? threads : 0; }

int esp_threads(void) { return chosen_threads ? chosen_threads : omp_get_max_threads(); }

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

void esp_parallel_for(int64_t count, int64_t grain, esp_range_body *body, void *context) {
  const int64_t chunks = (count + grain - 1) / grain;
  if (chunks <= 1) {
    if (count > 0) body(context, 0, count);
    return;
  }
#pragma omp parallel for schedule(static) num_threads(esp_threads())
  for (int64_t i = 0; i < chunks; i++) body(context, i * grain, smaller((i + 1) * grain, count));
}

void esp_parallel_for_uneven(int64_t count, int64_t grain, esp_range_body *body, void *context) {
  const int64_t chunks = (count + grain - 1) / grain;
  if (chunks <= 1) {
    if (count > 0) body(context, 0, count);
    return;
  }
#pragma omp parallel for schedule(dynamic, 1) num_threads(esp_threads())
  for (int64_t i = 0; i < chunks; i++) body(context, i * grain, smaller((i + 1) * grain, count));
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
