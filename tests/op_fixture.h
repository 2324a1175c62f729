/* A tape for each test, tensors on it, and room for reference results. For the tests of op values. */
#ifndef ESPALIER_OP_FIXTURE_H
#define ESPALIER_OP_FIXTURE_H

#include "testing.h"

#include <espalier/ops.h>

#define SHAPE(...) \
  (int)(sizeof((const int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), (const int64_t[]) { __VA_ARGS__ }

static esp_tape *tape;
static uint64_t next_stream;

static inline int make_tape(void **state) {
  (void)state;
  next_stream = 1;
  tape = esp_tape_create();
  return tape ? 0 : -1;
}

static inline int free_tape(void **state) {
  (void)state;
  esp_tape_free(tape);
  return 0;
}

/* A tensor of normal numbers. */
static inline esp_tensor *normal(int rank, const int64_t *shape) {
  esp_tensor *tensor = esp_tape_tensor(tape, rank, shape);
  assert_non_null(tensor);
  fill_normal(tensor->data, esp_tensor_count(tensor), next_stream++);
  return tensor;
}

/* A tensor of given values. */
static inline esp_tensor *holding(const esp_real *values, int rank, const int64_t *shape) {
  esp_tensor *tensor = esp_tape_tensor(tape, rank, shape);
  assert_non_null(tensor);
  memcpy(tensor->data, values, (size_t)esp_tensor_count(tensor) * sizeof *values);
  return tensor;
}

/* Room for a reference result. */
static inline double *doubles(int64_t count) {
  double *values = esp_tape_take(tape, (size_t)count * sizeof *values);
  assert_non_null(values);
  memset(values, 0, (size_t)count * sizeof *values);
  return values;
}

static inline void assert_shape(const esp_tensor *tensor, int rank, const int64_t *shape) {
  assert_non_null(tensor);
  assert_int_equal(tensor->rank, rank);
  for (int i = 0; i < rank; i++) assert_int_equal(tensor->shape[i], shape[i]);
}

static inline double at(const esp_tensor *tensor, int64_t index) { return (double)tensor->data[index]; }

#define TEST(function) cmocka_unit_test_setup_teardown(function, make_tape, free_tape)

#endif
