/* label: short */
/* Gradients of every op, in double, against central differences. Linked to core/ and layers/ compiled with
 * ESP_DOUBLE. */
#include "op_examples.h"
#include "testing.h"

#include <espalier/moe_ops.h>
#include <espalier/ops.h>

/* The op tables that the examples must cover. */
static const esp_op *const *const op_tables[] = {esp_core_ops, esp_moe_ops};
enum { TABLE_COUNT = sizeof op_tables / sizeof op_tables[0] };

static bool has_example(const esp_op *op) {
  for (const op_example *row = op_examples; row->op; row++)
    if (strcmp(row->op, op->name) == 0) return true;
  return false;
}

static void every_op_has_an_example(void **state) {
  (void)state;
  for (int t = 0; t < TABLE_COUNT; t++)
    for (const esp_op *const *op = op_tables[t]; *op; op++)
      if ((*op)->backward && !has_example(*op))
        fail_msg("the op \"%s\" has a gradient and no row in op_examples.c", (*op)->name);
}

static void every_op_says_how_to_check_it(void **state) {
  (void)state;
  for (int t = 0; t < TABLE_COUNT; t++)
    for (const esp_op *const *op = op_tables[t]; *op; op++) {
      assert_true((*op)->name && (*op)->prepare && (*op)->forward && (*op)->cost);
      if (!(*op)->backward) continue;
      assert_true((*op)->gradcheck.step > 0 && (*op)->gradcheck.step <= 1e-3);
      assert_true((*op)->gradcheck.tolerance > 0 && (*op)->gradcheck.tolerance <= 1e-6);
    }
}

static void every_example_runs_its_op(void **state) {
  (void)state;
  for (const op_example *row = op_examples; row->op; row++) {
    example e;
    example_create(&e, row);
    if (!example_node(&e)) fail_msg("the example \"%s\" of \"%s\" does not run that op", row->description, row->op);
    for (int64_t i = 0; i < esp_tape_node_count(e.tape); i++) {
      const esp_node *node = esp_tape_node(e.tape, i);
      const esp_cost cost = node->op->cost(node);
      if (!(cost.flops >= 0 && cost.bytes > 0 && isfinite(cost.flops) && isfinite(cost.bytes)))
        fail_msg("the op \"%s\" costs %g operations and %g bytes", node->op->name, cost.flops, cost.bytes);
    }
    example_free(&e);
  }
}

/* --- central differences ----------------------------------------------------------------------------------- */

static double loss_at(example *e, double *place, double value) {
  const double kept = *place;
  *place = value;
  const esp_tensor *loss = example_build(e, 1);
  assert_non_null(loss);
  const double result = loss->data[0];
  *place = kept;
  return result;
}

static double numeric_slope(example *e, double *place, double step) {
  const double at = *place, above = at + step, below = at - step;
  return (loss_at(e, place, above) - loss_at(e, place, below)) / (above - below);
}

/* |analytic - numeric| / max(1, |analytic|, |numeric|), at its worst over all elements of all leaves. */
static double worst_error(example *e, const esp_gradcheck *check) {
  double worst = 0;
  assert_int_equal(example_run(e, 1), ESP_OK);
  for (int l = 0; l < e->leaf_count; l++) {
    esp_tensor *leaf = &e->leaves[l];
    if (!leaf->requires_grad) continue;
    for (int64_t i = 0; i < esp_tensor_count(leaf); i++) {
      const double analytic = leaf->grad[i], numeric = numeric_slope(e, &leaf->data[i], check->step);
      const double error = fabs(analytic - numeric) / fmax(1, fmax(fabs(analytic), fabs(numeric)));
      if (!(error <= check->tolerance))
        fail_msg("op \"%s\", %s: input %d, element %lld: the gradient is %.12g, the difference quotient %.12g",
                 e->row->op, e->row->description, l, (long long)i, analytic, numeric);
      worst = fmax(worst, error);
    }
  }
  return worst;
}

static void gradients_are_difference_quotients(void **state) {
  (void)state;
  for (const op_example *row = op_examples; row->op; row++) {
    example e;
    example_create(&e, row);
    const esp_gradcheck check = example_node(&e)->op->gradcheck;
    const double error = worst_error(&e, &check);
    print_message("  %-22s %-44s %8.1e of %.0e\n", row->op, row->description, error, check.tolerance);
    example_free(&e);
  }
}

/* --- sums of gradients, and inputs without ------------------------------------------------------------------ */

static double *copy_gradient(const esp_tensor *leaf) {
  const size_t count = (size_t)esp_tensor_count(leaf);
  double *copy = esp_alloc(count, sizeof *copy);
  assert_non_null(copy);
  memcpy(copy, leaf->grad, count * sizeof *copy);
  return copy;
}

typedef struct gradients {
  double *of_leaf[EXAMPLE_MAX_LEAVES];
} gradients;

static gradients copy_gradients(const example *e) {
  gradients g = {{NULL}};
  for (int l = 0; l < e->leaf_count; l++) g.of_leaf[l] = copy_gradient(&e->leaves[l]);
  return g;
}

static void free_gradients(gradients *g) {
  for (int l = 0; l < EXAMPLE_MAX_LEAVES; l++) esp_free(g->of_leaf[l]);
}

/* The example twice on one tape, sharing its leaves: each backward function overwrites once and adds once. */
static void a_second_use_adds_to_the_gradient(void **state) {
  (void)state;
  for (const op_example *row = op_examples; row->op; row++) {
    example e;
    example_create(&e, row);
    assert_int_equal(example_run(&e, 1), ESP_OK);
    gradients once = copy_gradients(&e);
    assert_int_equal(example_run(&e, 2), ESP_OK);
    for (int l = 0; l < e.leaf_count; l++) {
      const int64_t count = esp_tensor_count(&e.leaves[l]);
      for (int64_t i = 0; i < count; i++) once.of_leaf[l][i] *= 2;
      assert_close(row->description, e.leaves[l].grad, once.of_leaf[l], count, 1e-12, 1e-11);
    }
    free_gradients(&once);
    example_free(&e);
  }
}

/* A step's gradients overwrite those of the step before, whatever was there. */
static void a_new_step_starts_afresh(void **state) {
  (void)state;
  for (const op_example *row = op_examples; row->op; row++) {
    example e;
    example_create(&e, row);
    assert_int_equal(example_run(&e, 1), ESP_OK);
    gradients first = copy_gradients(&e);
    for (int l = 0; l < e.leaf_count; l++)
      for (int64_t i = 0; e.leaves[l].requires_grad && i < esp_tensor_count(&e.leaves[l]); i++)
        e.leaves[l].grad[i] = (esp_real)NAN;
    assert_int_equal(example_run(&e, 1), ESP_OK);
    for (int l = 0; l < e.leaf_count; l++)
      assert_same_bits(row->description, e.leaves[l].grad, first.of_leaf[l], esp_tensor_count(&e.leaves[l]));
    free_gradients(&first);
    example_free(&e);
  }
}

/* With one leaf frozen its gradient stays as it was, and those of the others do not change. */
static void check_frozen_leaf(example *e, int frozen, const gradients *all) {
  esp_tensor *leaf = &e->leaves[frozen];
  leaf->requires_grad = false;
  leaf->grad[0] = 12345;
  assert_int_equal(example_run(e, 1), ESP_OK);
  assert_true(leaf->grad[0] == 12345);
  for (int l = 0; l < e->leaf_count; l++)
    if (l != frozen && e->leaves[l].requires_grad)
      assert_same_bits(e->row->description, e->leaves[l].grad, all->of_leaf[l], esp_tensor_count(&e->leaves[l]));
  leaf->requires_grad = true;
}

static void inputs_can_do_without_gradients(void **state) {
  (void)state;
  for (const op_example *row = op_examples; row->op; row++) {
    example e;
    example_create(&e, row);
    assert_int_equal(example_run(&e, 1), ESP_OK);
    gradients all = copy_gradients(&e);
    for (int l = 0; l < e.leaf_count; l++)
      if (e.leaves[l].requires_grad) check_frozen_leaf(&e, l, &all);
    free_gradients(&all);
    for (int l = 0; l < e.leaf_count; l++) e.leaves[l].requires_grad = false;
    assert_int_equal(example_run(&e, 1), ESP_OK); /* nothing to train is no error */
    assert_int_equal(esp_tape_node_count(e.tape), 0);
    example_free(&e);
  }
}

/* --- optional inputs ------------------------------------------------------------------------------------------ */

static void a_missing_bias_is_a_bias_of_zero(void **state) {
  (void)state;
  esp_tape *tape = esp_tape_create();
  assert_non_null(tape);
  double x_data[2 * 4 * 4 * 3], w_data[5 * 9 * 3], zeros[5] = {0};
  fill_normal(x_data, 96, 1);
  fill_normal(w_data, 135, 2);
  esp_tensor image = {.data = x_data, .rank = 4, .shape = {2, 4, 4, 3}},
             bias = {.data = zeros, .rank = 1, .shape = {5}};
  esp_tensor kernel = {.data = w_data, .rank = 4, .shape = {5, 3, 3, 3}};
  const esp_tensor *with = esp_convolution(tape, &image, &kernel, &bias, 1, 1);
  const esp_tensor *without = esp_convolution(tape, &image, &kernel, NULL, 1, 1);
  assert_close("convolution", without->data, with->data, esp_tensor_count(with), 1e-13, 1e-13);

  esp_tensor deep = {.data = w_data, .rank = 3, .shape = {3, 3, 3}};
  bias.shape[0] = 3;
  with = esp_depthwise_convolution(tape, &image, &deep, &bias);
  without = esp_depthwise_convolution(tape, &image, &deep, NULL);
  assert_close("depthwise convolution", without->data, with->data, esp_tensor_count(with), 1e-13, 1e-13);

  esp_tensor weight = {.data = w_data, .rank = 2, .shape = {5, 3}};
  bias.shape[0] = 5;
  with = esp_linear_map(tape, &image, &weight, &bias);
  without = esp_linear_map(tape, &image, &weight, NULL);
  assert_close("linear map", without->data, with->data, esp_tensor_count(with), 1e-13, 1e-13);
  esp_tape_free(tape);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(every_op_has_an_example),           cmocka_unit_test(every_op_says_how_to_check_it),
      cmocka_unit_test(every_example_runs_its_op),         cmocka_unit_test(gradients_are_difference_quotients),
      cmocka_unit_test(a_second_use_adds_to_the_gradient), cmocka_unit_test(a_new_step_starts_afresh),
      cmocka_unit_test(inputs_can_do_without_gradients),   cmocka_unit_test(a_missing_bias_is_a_bias_of_zero),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
