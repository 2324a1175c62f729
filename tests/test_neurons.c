/* label: short */
/* MoNE's selection of neurons against a full sort. The layer is in test_layers.c, gradients in op_examples.c. */
#include "testing.h"

#include <espalier/layers.h>
#include <espalier/ops.h>
#include <espalier/parallel.h>

/* --- the selection as it is defined ------------------------------------------------------------------------------ */

static double rank_of(esp_real value) {
  return isnan(value) ? HUGE_VAL : fabs((double)value);
}

/* Stays if fewer than `kept` others are larger, or equal and before it; not-a-number is larger than infinity. */
static bool stays(const esp_real *row, int64_t width, int64_t kept, int64_t j) {
  int64_t before = 0;
  for (int64_t i = 0; i < width; i++) {
    const double a = rank_of(row[i]), b = rank_of(row[j]);
    const int a_nan = isnan(row[i]) ? 1 : 0, b_nan = isnan(row[j]) ? 1 : 0;
    before += a > b || a_nan > b_nan || (a == b && a_nan == b_nan && i < j);
  }
  return before < kept;
}

static void check_rows(const esp_real *values, int64_t rows, int64_t width, int64_t kept) {
  esp_tape *tape = esp_tape_create();
  esp_tensor *h = esp_tape_tensor(tape, 2, (const int64_t[]){rows, width});
  memcpy(h->data, values, (size_t)(rows * width) * sizeof *values);
  const uint8_t *mask = NULL;
  const esp_tensor *y = esp_neuron_top_k(tape, h, h, &(esp_neuron_selection){.kept = kept, .ranking = ESP_GATE_IDENTITY}, &mask);
  assert_non_null(y);
  for (int64_t i = 0; i < rows * width; i++) {
    const bool expected = stays(values + i / width * width, width, kept, i % width);
    if (mask[i] != expected)
      fail_msg("width %lld, %lld kept: neuron %lld of row %lld, %g, is%s selected", (long long)width, (long long)kept,
               (long long)(i % width), (long long)(i / width), (double)values[i], mask[i] ? "" : " not");
    assert_same_bits("value", &y->data[i], mask[i] ? &values[i] : &(esp_real){0}, 1);
  }
  esp_tape_free(tape);
}

enum { ROWS = 6, MOST = 131 };

/* Rows of very different sizes follow one another, so that the first guess of each is wrong. */
static void fill(esp_real *values, int64_t count, int kind) {
  fill_normal(values, count, (uint64_t)kind);
  for (int64_t i = 0; i < count; i++) {
    esp_real *v = &values[i];
    if (kind == 1) *v = rintf(*v * 2) / 2;                          /* many ties, many zeros */
    if (kind == 2) *v = expf(20 * *v);                              /* over thirty orders of magnitude, overflow */
    if (kind == 3) *v = *v > 0.5f ? *v : 0;                         /* mostly zeros, as after a ReLU */
    if (kind == 4) *v = i % 7 ? *v : i % 2 ? NAN : -INFINITY;       /* what should not be */
    if (kind == 5) *v = i / 20 % 2 ? 1 : *v * 1e-40f;               /* all the same, subnormal */
    if (kind == 6) *v = i % 3 ? NAN : *v;
    if (kind == 7) *v = 1 + (esp_real)(i % 5) * 1.1920929e-7f;      /* neighbouring numbers */
  }
}

static void row_45_the_largest_stay_and_ties_go_to_the_lower_index(void **state) {
  (void)state;
  static const int64_t widths[] = {1, 2, 7, 8, 31, 64, MOST};
  esp_real values[ROWS * MOST];
  for (int kind = 0; kind < 8; kind++)
    for (size_t w = 0; w < sizeof widths / sizeof widths[0]; w++) {
      fill(values, ROWS * widths[w], kind);
      const int64_t width = widths[w], step = width > 40 ? 7 : 1;
      for (int64_t kept = 1; kept <= width; kept += step) check_rows(values, ROWS, width, kept);
    }
}

/* Ranges of rows, and so the rows a search begins after, depend on nothing but the shape; the mask not even on these. */
static void row_45_a_row_is_selected_alike_wherever_it_lies(void **state) {
  (void)state;
  enum { MANY = 300, WIDTH = 96, KEPT = 24 };
  esp_tape *tape = esp_tape_create();
  esp_tensor *all = esp_tape_tensor(tape, 2, (const int64_t[]){MANY, WIDTH});
  fill_normal(all->data, MANY * WIDTH, 3);
  const esp_neuron_selection selection = {.kept = KEPT, .ranking = ESP_GATE_SILU};
  const uint8_t *mask, *alone;
  assert_non_null(esp_neuron_top_k(tape, all, all, &selection, &mask));
  for (int64_t r = 0; r < MANY; r += 17) {
    esp_tensor *one = esp_tape_tensor(tape, 2, (const int64_t[]){1, WIDTH});
    memcpy(one->data, all->data + r * WIDTH, WIDTH * sizeof *one->data);
    assert_non_null(esp_neuron_top_k(tape, one, one, &selection, &alone));
    assert_memory_equal(alone, mask + r * WIDTH, WIDTH);
  }
  esp_tape_free(tape);
}

/* Before the activation -3 is larger than 2; after SiLU it is not. */
static void the_ranking_is_a_setting(void **state) {
  (void)state;
  esp_tape *tape = esp_tape_create();
  esp_tensor *pre = esp_tape_tensor(tape, 2, (const int64_t[]){1, 4});
  memcpy(pre->data, ((const esp_real[]){-3, 2, 10, 10}), 4 * sizeof *pre->data);
  esp_expert_bank bank = {.activation = ESP_ACTIVATION_SWIGLU, .hidden = 2};
  const uint8_t *mask;
  for (int before = 0; before < 2; before++) {
    bank.ranking = before ? ESP_RANK_PRE_ACTIVATION : ESP_RANK_ACTIVATION;
    const esp_neuron_selection selection = esp_expert_bank_selection(&bank, NULL, 1);
    assert_non_null(esp_neuron_top_k(tape, esp_swiglu(tape, pre), pre, &selection, &mask));
    assert_int_equal(mask[0], before);
    assert_int_equal(mask[1], !before);
  }
  esp_tape_free(tape);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(row_45_the_largest_stay_and_ties_go_to_the_lower_index),
      cmocka_unit_test(row_45_a_row_is_selected_alike_wherever_it_lies),
      cmocka_unit_test(the_ranking_is_a_setting),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
