#include <espalier/tensor.h>

#include <stdio.h>
#include <string.h>

int64_t esp_tensor_count(const esp_tensor *tensor) {
  int64_t count = 1;
  for (int i = 0; i < tensor->rank; i++) count *= tensor->shape[i];
  return count;
}

int64_t esp_tensor_columns(const esp_tensor *tensor) { return tensor->rank ? tensor->shape[tensor->rank - 1] : 1; }

int64_t esp_tensor_rows(const esp_tensor *tensor) {
  int64_t rows = 1;
  for (int i = 0; i + 1 < tensor->rank; i++) rows *= tensor->shape[i];
  return rows;
}

bool esp_same_shape(const esp_tensor *a, const esp_tensor *b) {
  return a->rank == b->rank && memcmp(a->shape, b->shape, (size_t)a->rank * sizeof a->shape[0]) == 0;
}

char *esp_shape_text(const esp_tensor *tensor, char *text, size_t size) {
  size_t used = (size_t)snprintf(text, size, "[");
  for (int i = 0; i < tensor->rank && used < size; i++)
    used += (size_t)snprintf(text + used, size - used, i ? ", %lld" : "%lld", (long long)tensor->shape[i]);
  if (used < size) snprintf(text + used, size - used, "]");
  return text;
}
