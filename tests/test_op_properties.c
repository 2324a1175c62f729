/* label: short */
/* What holds for every example of an op, in float: results do not depend on the number of threads, a second step
 * allocates nothing, lack of memory comes back as a status, and a bad number is found where it arose. */
#include "op_examples.h"
#include "testing.h"

#include <espalier/ops.h>
#include <espalier/parallel.h>

/* Everything an example computed, as a copy: all outputs of its nodes and all gradients of its leaves. */
typedef struct results {
  esp_real *values;
  int64_t count;
} results;

static esp_real *copy_of(const esp_real *values, int64_t count) {
  if (!values) return NULL;
  esp_real *copy = esp_alloc((size_t)count, sizeof *copy);
  assert_non_null(copy);
  memcpy(copy, values, (size_t)count * sizeof *copy);
  return copy;
}

static void append(results *r, const esp_real *values, int64_t count) {
  if (r->values) memcpy(r->values + r->count, values, (size_t)count * sizeof *values);
  r->count += count;
}

static void append_results(const example *e, results *r) {
  for (int64_t n = 0; n < esp_tape_node_count(e->tape); n++) {
    const esp_node *node = esp_tape_node(e->tape, n);
    for (int i = 0; i < node->output_count; i++) append(r, node->outputs[i]->data, esp_tensor_count(node->outputs[i]));
  }
}

static void append_gradients(const example *e, results *r) {
  for (int l = 0; l < e->leaf_count; l++)
    if (e->leaves[l].requires_grad) append(r, e->leaves[l].grad, esp_tensor_count(&e->leaves[l]));
}

/* The results before the backward pass, which may write over them. */
static results run_and_collect(example *e) {
  results r = {0};
  esp_tensor *loss = example_build(e, 1);
  append_results(e, &r);
  append_gradients(e, &r);
  r.values = esp_alloc((size_t)r.count, sizeof *r.values);
  assert_non_null(r.values);
  r.count = 0;
  append_results(e, &r);
  assert_int_equal(esp_tape_backward(e->tape, loss), ESP_OK);
  append_gradients(e, &r);
  return r;
}

static void threads_do_not_change_a_bit(void **state) {
  (void)state;
  for (const op_example *row = op_examples; row->op; row++) {
    example e;
    example_create(&e, row);
    esp_threads_set(1);
    results one = run_and_collect(&e);
    for (int threads = 2; threads <= 3; threads++) {
      esp_threads_set(threads);
      results more = run_and_collect(&e);
      assert_int_equal(more.count, one.count);
      assert_same_bits(row->description, one.values, more.values, one.count);
      esp_free(more.values);
    }
    esp_free(one.values);
    esp_threads_set(0);
    example_free(&e);
  }
}

static void a_second_step_allocates_nothing(void **state) {
  (void)state;
  for (const op_example *row = op_examples; row->op; row++) {
    example e;
    example_create(&e, row);
    assert_int_equal(example_run(&e, 2), ESP_OK);
    const uint64_t before = esp_allocation_count();
    const size_t capacity = esp_arena_capacity(esp_tape_arena(e.tape));
    for (int step = 0; step < 3; step++) assert_int_equal(example_run(&e, 2), ESP_OK);
    assert_int_equal(esp_allocation_count(), before);
    assert_int_equal(esp_arena_capacity(esp_tape_arena(e.tape)), capacity);
    example_free(&e);
  }
}

/* All results are forgotten after the forward pass, so backward has to compute anew whatever it reads. What it says it
 * does not read is not there: that it lies would crash. */
static void forgotten_results_are_computed_again(void **state) {
  (void)state;
  for (const op_example *row = op_examples; row->op; row++) {
    example e;
    example_create(&e, row);
    assert_int_equal(example_run(&e, 2), ESP_OK);
    esp_real *expected[EXAMPLE_MAX_LEAVES] = {NULL};
    for (int l = 0; l < e.leaf_count; l++) expected[l] = copy_of(e.leaves[l].grad, esp_tensor_count(&e.leaves[l]));
    esp_tensor *loss = example_build(&e, 2);
    for (int64_t n = 0; n < esp_tape_node_count(e.tape); n++) {
      const esp_node *node = esp_tape_node(e.tape, n);
      for (int i = 0; i < node->output_count; i++)
        if (node->outputs[i] != loss) esp_tape_forget(e.tape, node->outputs[i]);
    }
    assert_int_equal(esp_tape_backward(e.tape, loss), ESP_OK);
    for (int l = 0; l < e.leaf_count; l++) {
      if (expected[l])
        assert_same_bits(row->description, expected[l], e.leaves[l].grad, esp_tensor_count(&e.leaves[l]));
      esp_free(expected[l]);
    }
    example_free(&e);
  }
}

typedef struct spans {
  int count[3]; /* by phase */
  double last_end;
} spans;

static double ticks;

static double next_tick(void) { return ticks++; }

static void add_span(void *context, const esp_node *node, esp_op_phase phase, double begin, double end) {
  spans *s = context;
  assert_non_null(node->op);
  assert_true(begin >= s->last_end && end == begin + 1);
  s->count[phase]++;
  s->last_end = end;
}

static void a_timer_sees_each_op_run(void **state) {
  (void)state;
  for (const op_example *row = op_examples; row->op; row++) {
    example e;
    example_create(&e, row);
    spans seen = {.last_end = -1};
    const esp_tape_timer timer = {next_tick, add_span, &seen};
    ticks = 0;
    esp_tape_set_timer(e.tape, &timer);
    esp_tensor *loss = example_build(&e, 2);
    assert_true(seen.count[ESP_OP_FORWARD] >= esp_tape_node_count(e.tape));
    assert_int_equal(seen.count[ESP_OP_AGAIN] + seen.count[ESP_OP_BACKWARD], 0);
    const int forward = seen.count[ESP_OP_FORWARD];
    esp_tape_forget(e.tape, esp_tape_node(e.tape, esp_tape_node_count(e.tape) - 1)->inputs[0]);
    assert_int_equal(esp_tape_backward(e.tape, loss), ESP_OK);
    assert_int_equal(seen.count[ESP_OP_FORWARD], forward);
    assert_in_range(seen.count[ESP_OP_BACKWARD], 1, esp_tape_node_count(e.tape)); /* not where no gradient arrives */
    assert_true(ticks == 2 * (seen.count[0] + seen.count[1] + seen.count[2]));
    esp_tape_set_timer(e.tape, NULL);
    const double before = ticks;
    assert_int_equal(example_run(&e, 2), ESP_OK);
    assert_true(ticks == before);
    example_free(&e);
  }
}

static void what_is_computed_again_is_timed_as_such(void **state) {
  (void)state;
  example e;
  example_create(&e, op_examples);
  spans seen = {.last_end = -1};
  const esp_tape_timer timer = {next_tick, add_span, &seen};
  ticks = 0;
  esp_tape_set_timer(e.tape, &timer);
  esp_tape_reset(e.tape, true);
  esp_tensor *x = esp_scale(e.tape, &e.leaves[0], 2), *y = esp_gelu(e.tape, x), *loss = esp_mean(e.tape, y);
  e.leaves[0].requires_grad = true;
  esp_tape_forget(e.tape, x);
  assert_int_equal(esp_tape_backward(e.tape, loss), ESP_OK);
  assert_int_equal(seen.count[ESP_OP_AGAIN], 1);
  assert_int_equal(seen.count[ESP_OP_BACKWARD], 3);
  example_free(&e);
}

static void without_recording_no_nodes_are_kept(void **state) {
  (void)state;
  example e;
  example_create(&e, &op_examples[0]);
  esp_tape_reset(e.tape, false);
  e.next = 0;
  const esp_tensor *loss = e.row->build(&e);
  assert_non_null(loss);
  assert_false(loss->requires_grad);
  assert_int_equal(esp_tape_node_count(e.tape), 0);
  example_free(&e);
}

/* --- gradients in memory that is there already -------------------------------------------------------------------- */

enum { SHARED = 40 };

typedef struct leaf {
  esp_real data[SHARED], grad[SHARED];
  esp_tensor tensor;
  esp_tape *tape;
} leaf;

static void leaf_create(leaf *x) {
  for (int i = 0; i < SHARED; i++) x->data[i] = (esp_real)(i - SHARED / 2) + (esp_real)0.5;
  x->tensor = (esp_tensor){.data = x->data, .grad = x->grad, .rank = 1, .shape = {SHARED}, .requires_grad = true};
  x->tape = esp_tape_create();
  assert_non_null(x->tape);
}

static void assert_slopes(leaf *x, esp_tensor *sum, double (*slope)(double x)) {
  x->tensor.grad_written = false;
  assert_int_equal(esp_tape_backward(x->tape, esp_mean(x->tape, sum)), ESP_OK);
  for (int i = 0; i < SHARED; i++) assert_float_equal(SHARED * x->grad[i], slope((double)x->data[i]), 1e-4);
}

static esp_tensor *doubled(leaf *x) {
  esp_tape_reset(x->tape, true);
  return esp_scale(x->tape, &x->tensor, 2);
}

static double eight(double x) { return x - x + 8; }
static double forty_eight(double x) { return x - x + 48; }
static double of_square_and_relu(double x) { return 8 * x + (x > 0 ? 2 : 0); }
static double of_squared_relu(double x) { return x > 0 ? 8 * x : 0; }
static double of_relus(double x) { return x > 0 ? 2 * (1 + 4 * x) : 0; }

/* A sum's terms share its gradient, until one of them gets more; the other must not see that. */
static void a_shared_gradient_is_not_changed(void **state) {
  (void)state;
  leaf x;
  leaf_create(&x);
  esp_tensor *y = doubled(&x);
  assert_slopes(&x, esp_add(x.tape, y, esp_scale(x.tape, y, 3)), eight);
  y = doubled(&x);
  esp_tensor *threefold = esp_scale(x.tape, y, 3);
  esp_tensor *view = esp_reshape(x.tape, y, 2, (const int64_t[]){SHARED / 4, 4});
  esp_tensor *sum = esp_add(x.tape, esp_reshape(x.tape, threefold, 2, view->shape), view);
  sum = esp_add(x.tape, sum, sum);
  assert_slopes(&x, esp_add(x.tape, esp_scale(x.tape, sum, 2), sum), forty_eight);
  esp_tape_free(x.tape);
}

/* An activation's gradient takes its input's place, but only where nobody else is still to read that. */
static void an_overwritten_result_was_not_needed(void **state) {
  (void)state;
  leaf x;
  leaf_create(&x);
  esp_tensor *y = doubled(&x);
  esp_tensor *positive = esp_relu(x.tape, y);
  esp_tensor *mean = esp_mean(x.tape, esp_multiply(x.tape, positive, positive));
  assert_int_equal(esp_tape_backward(x.tape, mean), ESP_OK);
  assert_null(y->data);
  assert_null(esp_tape_first_gradient_not_finite(x.tape)); /* computes y once more */
  for (int i = 0; i < SHARED; i++) assert_float_equal(SHARED * x.grad[i], of_squared_relu((double)x.data[i]), 1e-4);
  y = doubled(&x);
  positive = esp_relu(x.tape, y);
  assert_slopes(&x, esp_add(x.tape, positive, esp_multiply(x.tape, positive, y)), of_relus);
  y = doubled(&x);
  esp_tensor *square = esp_multiply(x.tape, y, y);
  assert_slopes(&x, esp_add(x.tape, square, esp_relu(x.tape, y)), of_square_and_relu);
  assert_non_null(y->data);
  esp_tape_free(x.tape);
}

/* --- lack of memory ---------------------------------------------------------------------------------------- */

/* A step that finds `room` bytes free in the arena and gets no more. */
static esp_status step_in(example *e, size_t room) {
  esp_tape_reset(e->tape, true);
  esp_tape_scope(e->tape, e->row->description);
  e->next = 0;
  assert_non_null(esp_tape_take(e->tape, esp_arena_capacity(esp_tape_arena(e->tape)) - room));
  esp_alloc_fail_after(0);
  esp_tensor *loss = e->row->build(e);
  const esp_status status = loss ? esp_tape_backward(e->tape, loss) : esp_tape_status(e->tape);
  esp_alloc_fail_after(-1);
  return status;
}

/* Every place where a step takes memory fails once: room grows by the arena's grain, later by a sixteenth. */
static void a_full_arena_is_a_status(void **state) {
  (void)state;
  for (const op_example *row = op_examples; row->op; row++) {
    example e;
    example_create(&e, row);
    if (esp_arena_capacity(esp_tape_arena(e.tape)) > (size_t)1 << 20) { /* several chunks: not one block to fill */
      example_free(&e);
      continue;
    }
    int failures = 0;
    esp_status status = ESP_ERR_MEMORY;
    for (size_t room = 0; status != ESP_OK; room += 64 + room / 1024 * 64) {
      assert_true(room <= (size_t)1 << 20);
      status = step_in(&e, room);
      if (status == ESP_OK) break;
      assert_int_equal(status, ESP_ERR_MEMORY);
      assert_non_null(strstr(esp_error_message(), "out of memory"));
      failures++;
    }
    assert_true(failures > 10);
    assert_int_equal(example_run(&e, 1), ESP_OK); /* the tape recovers */
    example_free(&e);
  }
}

/* The whole life of a tape, with each allocation failing in turn. */
static void each_allocation_may_fail(void **state) {
  (void)state;
  for (const op_example *row = op_examples; row->op; row++) {
    example e;
    example_create(&e, row);
    esp_status status = ESP_ERR_MEMORY;
    int failures = 0;
    for (int64_t n = 0; status != ESP_OK; n++, failures++) {
      assert_true(n < 100);
      esp_tape_free(e.tape);
      esp_alloc_fail_after(n);
      e.tape = esp_tape_create();
      status = e.tape ? example_run(&e, 1) : ESP_ERR_MEMORY;
      esp_alloc_fail_after(-1);
      if (status != ESP_OK) assert_int_equal(status, ESP_ERR_MEMORY);
    }
    assert_true(failures > 4); /* tape, arena, chunk, its bytes, list of nodes */
    example_free(&e);
  }
}

static void a_failed_tape_stays_failed_until_reset(void **state) {
  (void)state;
  example e;
  example_create(&e, &op_examples[0]);
  esp_alloc_fail_after(0);
  assert_null(esp_tape_take(e.tape, (size_t)1 << 24));
  esp_alloc_fail_after(-1);
  assert_int_equal(esp_tape_status(e.tape), ESP_ERR_MEMORY);
  e.next = 0;
  assert_null(e.row->build(&e));
  assert_int_equal(example_run(&e, 1), ESP_OK);
  example_free(&e);
}

/* --- numbers that are not finite --------------------------------------------------------------------------- */

static void a_bad_value_is_found_where_it_arose(void **state) {
  (void)state;
  esp_tape *tape = esp_tape_create();
  assert_non_null(tape);
  esp_tensor *x = esp_tape_tensor(tape, 1, (const int64_t[]){4});
  fill_normal(x->data, 4, 1);
  x->requires_grad = true;
  esp_tape_scope(tape, "stem");
  esp_tensor *y = esp_scale(tape, x, 1);
  assert_null(esp_tape_first_not_finite(tape));
  esp_tape_scope(tape, "blocks.3.ffn");
  y = esp_scale(tape, y, HUGE_VAL);
  esp_tape_scope(tape, "head");
  y = esp_mean(tape, esp_relu(tape, y));
  const esp_node *node = esp_tape_first_not_finite(tape);
  assert_non_null(node);
  assert_string_equal(node->op->name, "scale");
  assert_string_equal(node->scope, "blocks.3.ffn");
  esp_tape_free(tape);
}

/* The values stay finite, but the slopes multiply to 1e60. */
static void a_bad_gradient_is_found_where_it_arose(void **state) {
  (void)state;
  esp_tape *tape = esp_tape_create();
  assert_non_null(tape);
  esp_tensor *x = esp_tape_tensor(tape, 1, (const int64_t[]){4});
  for (int i = 0; i < 4; i++) x->data[i] = 0;
  x->requires_grad = true;
  esp_tape_scope(tape, "stem");
  esp_tensor *y = esp_scale(tape, x, 1e30);
  esp_tape_scope(tape, "blocks.0");
  y = esp_mean(tape, esp_scale(tape, y, 1e30));
  assert_null(esp_tape_first_not_finite(tape));
  assert_int_equal(esp_tape_backward(tape, y), ESP_OK);
  const esp_node *node = esp_tape_first_gradient_not_finite(tape);
  assert_non_null(node);
  assert_string_equal(node->op->name, "scale");
  assert_string_equal(node->scope, "stem");
  esp_tape_free(tape);
}

/* Not-a-number in any input reaches the loss of every op that computes with its values. It is put in the middle:
 * the corners of a large kernel may never touch the image. */
static void not_a_number_comes_through(void **state) {
  (void)state;
  static const char *const choosing[] = {"dropout", "gather rows", "neuron top-k"}; /* may leave it out */
  for (const op_example *row = op_examples; row->op; row++) {
    bool chooses = false;
    for (size_t i = 0; i < sizeof choosing / sizeof choosing[0]; i++) chooses |= strcmp(row->op, choosing[i]) == 0;
    if (chooses) continue;
    example e;
    example_create(&e, row);
    for (int l = 0; l < e.leaf_count; l++) {
      if (!e.leaves[l].requires_grad) continue;
      esp_real *middle = &e.leaves[l].data[esp_tensor_count(&e.leaves[l]) / 2], kept = *middle;
      *middle = NAN;
      const esp_tensor *loss = example_build(&e, 1);
      if (!isnan(loss->data[0])) fail_msg("%s, %s: loses a not-a-number of input %d", row->op, row->description, l);
      assert_non_null(esp_tape_first_not_finite(e.tape));
      *middle = kept;
    }
    example_free(&e);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(threads_do_not_change_a_bit),
      cmocka_unit_test(a_second_step_allocates_nothing),
      cmocka_unit_test(forgotten_results_are_computed_again),
      cmocka_unit_test(a_timer_sees_each_op_run),
      cmocka_unit_test(what_is_computed_again_is_timed_as_such),
      cmocka_unit_test(without_recording_no_nodes_are_kept),
      cmocka_unit_test(a_shared_gradient_is_not_changed),
      cmocka_unit_test(an_overwritten_result_was_not_needed),
      cmocka_unit_test(a_full_arena_is_a_status),
      cmocka_unit_test(each_allocation_may_fail),
      cmocka_unit_test(a_failed_tape_stays_failed_until_reset),
      cmocka_unit_test(a_bad_value_is_found_where_it_arose),
      cmocka_unit_test(a_bad_gradient_is_found_where_it_arose),
      cmocka_unit_test(not_a_number_comes_through),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
