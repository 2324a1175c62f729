/* label: short */
/* What the ops rest on: statuses, memory, random streams, parameters, parallel sums. */
#include "testing.h"

#include <espalier/memory.h>
#include <espalier/parallel.h>
#include <espalier/parameters.h>

#include <omp.h>

/* --- statuses ---------------------------------------------------------------------------------------------- */

static void a_failure_leaves_its_message(void **state) {
  (void)state;
  assert_int_equal(esp_fail(ESP_ERR_IO, "file %s: byte %d", "a.bin", 17), ESP_ERR_IO);
  assert_string_equal(esp_error_message(), "file a.bin: byte 17");
  assert_int_equal(esp_fail_in(ESP_ERR_FORMAT, "record %d", 3), ESP_ERR_FORMAT);
  assert_string_equal(esp_error_message(), "record 3: file a.bin: byte 17");
  (void)esp_fail(ESP_ERR_IO, "again: %s", esp_error_message());
  assert_string_equal(esp_error_message(), "again: record 3: file a.bin: byte 17");
}

static void long_messages_are_cut(void **state) {
  (void)state;
  char text[5000];
  memset(text, 'x', sizeof text - 1);
  text[sizeof text - 1] = '\0';
  (void)esp_fail(ESP_ERR_IO, "%s", text);
  const size_t length = strlen(esp_error_message());
  assert_true(length > 100 && length < sizeof text);
  (void)esp_fail_in(ESP_ERR_IO, "%s", text);
  assert_true(strlen(esp_error_message()) < sizeof text);
  (void)esp_fail_in(ESP_ERR_IO, "%s", "where");
  assert_memory_equal(esp_error_message(), "where: xxx", 10);
}

static void every_status_has_a_text(void **state) {
  (void)state;
#define HAS_TEXT(code, value, text)                 \
  assert_string_equal(esp_status_text(code), text); \
  assert_int_equal(code, value);
  ESP_STATUS_LIST(HAS_TEXT)
  assert_non_null(esp_status_text((esp_status)-1000));
}

static void the_nearest_word_is_suggested(void **state) {
  (void)state;
  const char *const words[] = {"experts", "top_k", "learning_rate"};
  assert_string_equal(esp_nearest("expert", words, 3), "experts");
  assert_string_equal(esp_nearest("topk", words, 3), "top_k");
  assert_string_equal(esp_nearest("lerning_rat", words, 3), "learning_rate");
  assert_null(esp_nearest("zzzzzzzz", words, 3));
  assert_null(esp_nearest("topk", words, 0));
  char word[200];
  memset(word, 'e', sizeof word - 1);
  word[sizeof word - 1] = '\0';
  assert_null(esp_nearest(word, words, 3));
}

static void panic(void *context) { esp_panic("%s is %d", (const char *)context, 5); }

static void unknown_names_are_answered(void **state) {
  (void)state;
  const char *names[] = {"experts", "top_k", "hidden"};
  int index = -1;
  assert_int_equal(esp_find_name(&index, "setting", "top_k", names, 3), ESP_OK);
  assert_int_equal(index, 1);
  assert_int_equal(esp_find_name(&index, "setting", "topk", names, 3), ESP_ERR_USAGE);
  assert_string_equal(esp_error_message(), "there is no setting \"topk\"; did you mean \"top_k\"?");
  assert_int_equal(esp_fail_unknown(ESP_ERR_NOT_FOUND, "setting", "zzzzzzzz", names, 3), ESP_ERR_NOT_FOUND);
  assert_string_equal(esp_error_message(), "there is no setting \"zzzzzzzz\"; there are experts, top_k and hidden");
  assert_int_equal(esp_suggest(ESP_ERR_CONFIG, NULL), ESP_ERR_CONFIG);
  assert_string_equal(esp_error_message(), "there is no setting \"zzzzzzzz\"; there are experts, top_k and hidden");
}

static void a_panic_says_why(void **state) {
  (void)state;
  char name[] = "rank";
  assert_panics(panic, name, "espalier: rank is 5");
}

/* --- memory ------------------------------------------------------------------------------------------------ */

static void blocks_are_zeroed_and_aligned(void **state) {
  (void)state;
  for (size_t size = 0; size < 300; size += 7) {
    unsigned char *block = esp_alloc(size, 1);
    assert_non_null(block);
    assert_int_equal((uintptr_t)block % 64, 0);
    for (size_t i = 0; i < size; i++) assert_int_equal(block[i], 0);
    memset(block, 1, size);
    esp_free(block);
  }
  char *copy = esp_copy_text("text");
  assert_string_equal(copy, "text");
  esp_free(copy);
  esp_free(NULL);
}

static void sizes_that_overflow_are_refused(void **state) {
  (void)state;
  const size_t half = SIZE_MAX / 2;
  assert_null(esp_alloc(half, 3));
  assert_non_null(strstr(esp_error_message(), "overflow"));
  assert_null(esp_alloc(SIZE_MAX, 1));
  assert_null(esp_alloc(1, SIZE_MAX));
  esp_arena *arena = esp_arena_create();
  assert_non_null(arena);
  assert_null(esp_arena_take(arena, SIZE_MAX));
  assert_null(esp_arena_take(arena, SIZE_MAX - 63));
  assert_null(esp_arena_take(arena, SIZE_MAX - 62));
  assert_non_null(esp_arena_take(arena, 100));
  esp_arena_free(arena);
}

static void allocations_fail_on_demand(void **state) {
  (void)state;
  const uint64_t before = esp_allocation_count();
  esp_alloc_fail_after(2);
  void *first = esp_alloc(1, 1), *second = esp_alloc(1, 1), *third = esp_alloc(1, 1), *fourth = esp_alloc(1, 1);
  esp_alloc_fail_after(-1);
  assert_true(first && second && !third && !fourth);
  assert_int_equal(esp_allocation_count() - before, 2);
  assert_non_null(strstr(esp_error_message(), "out of memory"));
  esp_free(first);
  esp_free(second);
}

/* Takes blocks of uneven sizes, fills each with its number and checks that none overwrote another. */
static void fill_arena(esp_arena *arena, int blocks) {
  unsigned char *taken[200];
  for (int i = 0; i < blocks; i++) {
    taken[i] = esp_arena_take(arena, (size_t)i * 397 + 1);
    assert_non_null(taken[i]);
    assert_int_equal((uintptr_t)taken[i] % 64, 0);
    memset(taken[i], i, (size_t)i * 397 + 1);
  }
  for (int i = 0; i < blocks; i++)
    for (size_t j = 0; j < (size_t)i * 397 + 1; j++)
      if (taken[i][j] != (unsigned char)i) fail_msg("block %d was overwritten at byte %zu", i, j);
}

static void a_reset_arena_keeps_its_memory(void **state) {
  (void)state;
  esp_arena *arena = esp_arena_create();
  assert_non_null(arena);
  fill_arena(arena, 200);
  const size_t capacity = esp_arena_capacity(arena), peak = esp_arena_peak(arena);
  const uint64_t allocations = esp_allocation_count();
  assert_true(capacity > (size_t)4 << 20); /* several chunks */
  assert_true(peak <= capacity);
  for (int step = 0; step < 5; step++) {
    esp_arena_reset(arena);
    fill_arena(arena, 200 - 30 * step);
  }
  assert_int_equal(esp_arena_capacity(arena), capacity);
  assert_int_equal(esp_arena_peak(arena), peak);
  assert_int_equal(esp_allocation_count(), allocations);
  esp_arena_free(arena);
  esp_arena_free(NULL);
}

static void an_arena_outlives_a_failure(void **state) {
  (void)state;
  for (int64_t calls = 0; calls < 2; calls++) {
    esp_arena *arena = esp_arena_create();
    assert_non_null(esp_arena_take(arena, 1000));
    esp_alloc_fail_after(calls);
    assert_null(esp_arena_take(arena, (size_t)8 << 20));
    esp_alloc_fail_after(-1);
    assert_non_null(esp_arena_take(arena, 1000));
    assert_non_null(esp_arena_take(arena, (size_t)8 << 20));
    esp_arena_free(arena);
  }
}

/* --- random streams ---------------------------------------------------------------------------------------- */

/* The first of Random123's known answers, and that streams lay their words out as a key and a counter. */
static void philox_gives_the_known_answer(void **state) {
  (void)state;
  esp_random stream = {.left = 0};
  const uint32_t expected[] = {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8};
  for (int i = 0; i < 4; i++) assert_int_equal(esp_random_bits(&stream), expected[i]);
  assert_int_equal(stream.counter[0], 1);
}

static void streams_are_told_apart_by_every_part_of_the_key(void **state) {
  (void)state;
  const esp_random streams[] = {esp_random_stream(1, ESP_PURPOSE_TEST, 1),
                                esp_random_stream(2, ESP_PURPOSE_TEST, 1),
                                esp_random_stream(1, ESP_PURPOSE_INIT, 1),
                                esp_random_stream(1, ESP_PURPOSE_TEST, 2),
                                esp_random_stream(1 + (1ull << 32), ESP_PURPOSE_TEST, 1),
                                esp_random_stream(1, ESP_PURPOSE_TEST, 1 + (1ull << 32))};
  enum { COUNT = sizeof streams / sizeof streams[0], DRAWS = 64 };
  uint32_t drawn[COUNT][DRAWS];
  for (int s = 0; s < COUNT; s++) {
    esp_random stream = streams[s], again = streams[s];
    for (int i = 0; i < DRAWS; i++) {
      drawn[s][i] = esp_random_bits(&stream);
      assert_int_equal(drawn[s][i], esp_random_bits(&again));
    }
    for (int other = 0; other < s; other++)
      for (int i = 0; i < DRAWS; i++) assert_int_not_equal(drawn[s][i], drawn[other][i]);
  }
}

static void uniform_numbers_are_uniform(void **state) {
  (void)state;
  enum { COUNT = 200000, BINS = 20 };
  esp_random stream = esp_random_stream(5, ESP_PURPOSE_TEST, 0);
  double sum = 0, squares = 0, chi = 0;
  int bins[BINS] = {0};
  for (int i = 0; i < COUNT; i++) {
    const double u = esp_random_uniform(&stream);
    assert_true(u >= 0 && u < 1 && (double)(float)u == u);
    sum += u;
    squares += (u - 0.5) * (u - 0.5);
    bins[(int)(u * BINS)]++;
  }
  for (int b = 0; b < BINS; b++) chi += pow(bins[b] - (double)COUNT / BINS, 2) / ((double)COUNT / BINS);
  assert_true(fabs(sum / COUNT - 0.5) < 5 * sqrt(1.0 / 12 / COUNT));
  assert_true(fabs(squares / COUNT - 1.0 / 12) < 5 * sqrt(1.0 / 180 / COUNT));
  assert_true(chi < 50); /* 19 degrees of freedom: 5 deviations */
}

static void bounded_numbers_have_no_bias(void **state) {
  (void)state;
  enum { COUNT = 60000 };
  esp_random stream = esp_random_stream(6, ESP_PURPOSE_TEST, 0);
  int seen[7] = {0}, low = 0;
  for (int i = 0; i < COUNT; i++) seen[esp_random_below(&stream, 7)]++;
  for (int v = 0; v < 7; v++) assert_true(abs(seen[v] - COUNT / 7) < 5 * sqrt(COUNT / 7.0));
  for (int i = 0; i < 100; i++) assert_int_equal(esp_random_below(&stream, 1), 0);
  /* With 3 x 2^30 numbers, remainders alone would make the lower third twice as likely as each other. */
  for (int i = 0; i < COUNT; i++) low += esp_random_below(&stream, 3u << 30) < 1u << 30;
  assert_true(fabs(low - COUNT / 3.0) < 5 * sqrt(COUNT * 2.0 / 9));
}

static void normal_numbers_have_normal_moments(void **state) {
  (void)state;
  enum { COUNT = 200000 };
  esp_random stream = esp_random_stream(7, ESP_PURPOSE_TEST, 0);
  double moments[5] = {0};
  for (int i = 0; i < COUNT; i++) {
    const double x = esp_random_normal(&stream);
    assert_true(isfinite(x));
    for (int m = 1; m <= 4; m++) moments[m] += pow(x, m) / COUNT;
  }
  assert_true(fabs(moments[1]) < 5 * sqrt(1.0 / COUNT));
  assert_true(fabs(moments[2] - 1) < 5 * sqrt(2.0 / COUNT));
  assert_true(fabs(moments[3]) < 5 * sqrt(15.0 / COUNT));
  assert_true(fabs(moments[4] - 3) < 5 * sqrt(96.0 / COUNT));
}

static void a_shuffle_is_a_fair_permutation(void **state) {
  (void)state;
  enum { COUNT = 1000, ROUNDS = 24000 };
  esp_random stream = esp_random_stream(8, ESP_PURPOSE_TEST, 0);
  uint32_t items[COUNT];
  bool seen[COUNT] = {false};
  for (uint32_t i = 0; i < COUNT; i++) items[i] = i;
  esp_random_shuffle(&stream, items, COUNT);
  int moved = 0;
  for (uint32_t i = 0; i < COUNT; i++) {
    assert_true(items[i] < COUNT && !seen[items[i]]);
    seen[items[i]] = true;
    moved += items[i] != i;
  }
  assert_true(moved > COUNT - 20);
  int orders[64] = {0}; /* by the first three places in base 4 */
  for (int r = 0; r < ROUNDS; r++) {
    uint32_t four[] = {0, 1, 2, 3};
    esp_random_shuffle(&stream, four, 4);
    orders[four[0] * 16 + four[1] * 4 + four[2]]++;
  }
  for (int o = 0, found = 0; o < 64; o++) {
    found += orders[o] > 0;
    if (orders[o]) assert_true(abs(orders[o] - ROUNDS / 24) < 5 * sqrt(ROUNDS / 24.0));
    if (o == 63) assert_int_equal(found, 24);
  }
  esp_random_shuffle(&stream, items, 0);
}

static void names_hash_as_fnv_1a(void **state) {
  (void)state;
  assert_true(esp_hash_text("") == 0xcbf29ce484222325u);
  assert_true(esp_hash_text("a") == 0xaf63dc4c8601ec8cu);
  assert_true(esp_hash_text("foobar") == 0x85944171f73967e8u);
}

/* --- parameters -------------------------------------------------------------------------------------------- */

static esp_parameter *declare(esp_parameters *p, const char *scope, const char *name, int64_t rows) {
  esp_parameter *parameter =
      esp_parameters_add(p, scope, name,
                         &(esp_parameter_options){
                             .kind = ESP_KIND_WEIGHT, .rank = 2, .shape = {rows, 5}, .deviation = 0.5, .constant = 2});
  assert_non_null(parameter);
  return parameter;
}

static esp_parameters *store_with(const char *extra, uint64_t seed) {
  esp_parameters *p = esp_parameters_create();
  assert_non_null(p);
  if (extra) declare(p, "", extra, 3);
  declare(p, "blocks.0", "router", 3);
  declare(p, "blocks.0", "up", 7);
  declare(p, "blocks.1", "router", 3);
  assert_int_equal(esp_parameters_allocate(p, seed), ESP_OK);
  return p;
}

static void parameters_lie_in_one_array(void **state) {
  (void)state;
  esp_parameters *p = store_with("stem", 1);
  assert_int_equal(esp_parameters_count(p), 4);
  int64_t end = 0;
  for (int64_t i = 0; i < 4; i++) {
    const esp_parameter *parameter = esp_parameters_at(p, i);
    assert_ptr_equal(esp_parameters_find(p, parameter->tensor.name), parameter);
    assert_int_equal(parameter->offset % 16, 0);
    assert_true(parameter->offset >= end);
    assert_ptr_equal(parameter->tensor.data, esp_parameters_values(p) + parameter->offset);
    assert_ptr_equal(parameter->tensor.grad, esp_parameters_gradients(p) + parameter->offset);
    assert_true(parameter->tensor.requires_grad);
    end = parameter->offset + parameter->count;
  }
  assert_true(esp_parameters_size(p) >= end);
  assert_string_equal(esp_parameters_at(p, 0)->tensor.name, "stem");
  assert_string_equal(esp_parameters_at(p, 2)->tensor.name, "blocks.0.up");
  assert_null(esp_parameters_find(p, "blocks.0"));
  esp_parameters_free(p);
  esp_parameters_free(NULL);
}

static void same_start(const esp_parameters *a, const esp_parameters *b, const char *name, bool same) {
  const esp_parameter *x = esp_parameters_find(a, name), *y = esp_parameters_find(b, name);
  assert_int_equal(memcmp(x->tensor.data, y->tensor.data, (size_t)x->count * sizeof(esp_real)) == 0, same);
}

static void a_start_depends_on_seed_and_name_only(void **state) {
  (void)state;
  esp_parameters *a = store_with(NULL, 1), *b = store_with("stem", 1), *c = store_with(NULL, 2);
  same_start(a, b, "blocks.0.router", true);
  same_start(a, b, "blocks.1.router", true);
  same_start(a, c, "blocks.0.router", false);
  const esp_parameter *first = esp_parameters_find(a, "blocks.0.router"),
                      *second = esp_parameters_find(a, "blocks.1.router");
  assert_true(memcmp(first->tensor.data, second->tensor.data, (size_t)first->count * sizeof(esp_real)) != 0);
  esp_parameters_free(a);
  esp_parameters_free(b);
  esp_parameters_free(c);
}

static void a_start_has_its_mean_and_deviation(void **state) {
  (void)state;
  esp_parameters *p = esp_parameters_create();
  const esp_parameter *wide = declare(p, "", "wide", 4000);
  const esp_parameter *ones = esp_parameters_add(
      p, "", "ones", &(esp_parameter_options){.kind = ESP_KIND_NORM, .rank = 1, .shape = {9}, .constant = 1});
  esp_parameter *bank = declare(p, "", "bank", 4);
  bank->shared_init = 1;
  assert_int_equal(esp_parameters_allocate(p, 3), ESP_OK);
  double sum = 0, squares = 0;
  for (int64_t i = 0; i < wide->count; i++) {
    sum += (double)wide->tensor.data[i];
    squares += pow((double)wide->tensor.data[i] - 2, 2);
  }
  assert_true(fabs(sum / 20000 - 2) < 5 * 0.5 / sqrt(20000));
  assert_true(fabs(squares / 20000 - 0.25) < 5 * 0.25 * sqrt(2.0 / 20000));
  for (int i = 0; i < 9; i++) assert_true(ones->tensor.data[i] == 1);
  for (int i = 5; i < 20; i++) assert_true(bank->tensor.data[i] == bank->tensor.data[i % 5]);
  esp_parameters_free(p);
}

static bool frozen(const esp_parameters *p, const char *name) {
  const esp_parameter *parameter = esp_parameters_find(p, name);
  assert_true(parameter->tensor.frozen != parameter->tensor.requires_grad);
  return parameter->tensor.frozen;
}

static void patterns_freeze(void **state) {
  (void)state;
  esp_parameters *p = store_with("stem", 1);
  assert_int_equal(esp_parameters_freeze(p, "blocks.*.router,stem"), ESP_OK);
  assert_true(frozen(p, "blocks.0.router") && frozen(p, "blocks.1.router") && frozen(p, "stem"));
  assert_false(frozen(p, "blocks.0.up"));
  assert_int_equal(esp_parameters_freeze(p, "blocks.0.*"), ESP_OK);
  assert_true(frozen(p, "blocks.0.router") && frozen(p, "blocks.0.up"));
  assert_false(frozen(p, "stem") || frozen(p, "blocks.1.router"));
  assert_int_equal(esp_parameters_freeze(p, "stem,blocks.*.rooter"), ESP_ERR_CONFIG);
  assert_non_null(strstr(esp_error_message(), "blocks.*.rooter"));
  char pattern[400];
  memset(pattern, 'a', sizeof pattern - 1);
  pattern[sizeof pattern - 1] = '\0';
  assert_int_equal(esp_parameters_freeze(p, pattern), ESP_ERR_CONFIG);
  assert_int_equal(esp_parameters_freeze(p, ""), ESP_OK);
  for (int64_t i = 0; i < 4; i++) assert_false(frozen(p, esp_parameters_at(p, i)->tensor.name));
  esp_parameters_free(p);
}

static void declare_twice(void *context) { declare(context, "blocks.0", "up", 2); }

static void a_name_is_declared_once(void **state) {
  (void)state;
  esp_parameters *p = store_with(NULL, 1);
  assert_panics(declare_twice, p, "blocks.0.up is declared twice");
  esp_parameters_free(p);
}

static void parameters_report_lack_of_memory(void **state) {
  (void)state;
  bool done = false;
  for (int64_t calls = 0; !done; calls++) {
    assert_true(calls < 20);
    esp_alloc_fail_after(calls);
    esp_parameters *p = esp_parameters_create();
    const esp_parameter *parameter =
        p ? esp_parameters_add(p, "a", "b", &(esp_parameter_options){.kind = ESP_KIND_BIAS, .rank = 1, .shape = {3}})
          : NULL;
    const esp_status status = parameter ? esp_parameters_allocate(p, 1) : ESP_ERR_MEMORY;
    esp_alloc_fail_after(-1);
    if (status != ESP_OK) assert_int_equal(status, ESP_ERR_MEMORY);
    done = status == ESP_OK;
    assert_true(done == (calls >= 5)); /* the store, its list, the entry, values, gradients */
    esp_parameters_free(p);
  }
}

/* --- parallel loops ---------------------------------------------------------------------------------------- */

static double sum_of_roots(void *context, int64_t begin, int64_t end) {
  (void)context;
  double sum = 0;
  for (int64_t i = begin; i < end; i++) sum += sqrt((double)i) * 1e-3;
  return sum;
}

static void sums_do_not_depend_on_threads(void **state) {
  (void)state;
  const int64_t counts[] = {0, 1, 15, 17, 4095, 100003};
  for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
    double first = 0;
    for (int threads = 1; threads <= 4; threads++) {
      esp_threads_set(threads);
      assert_int_equal(esp_threads(), threads);
      const double sum = esp_parallel_sum(counts[i], sum_of_roots, NULL);
      if (threads == 1) first = sum;
      assert_memory_equal(&sum, &first, sizeof sum);
    }
    const double plain = sum_of_roots(NULL, 0, counts[i]);
    assert_true(fabs(first - plain) <= 1e-12 * plain);
  }
  esp_threads_set(0);
  assert_true(esp_threads() >= 1);
}

enum { MOST_VISITED = 20000 };

typedef struct visited {
  int visits[MOST_VISITED];
  int64_t starts_at, most; /* ranges begin at multiples of this, and are no longer than that; 0: anything goes */
} visited;

static void count_visits(void *context, int64_t begin, int64_t end) {
  visited *v = context;
  assert_true(begin < end);
  if (v->starts_at) assert_int_equal(begin % v->starts_at, 0);
  if (v->most) assert_true(end - begin <= v->most);
  for (int64_t i = begin; i < end; i++) v->visits[i]++;
}

static void loops_visit_everything_once(void **state) {
  (void)state;
  static visited v;
  const int64_t cases[][2] = {{0, 1}, {1, 1}, {7, 3}, {9, 3}, {100, 1}, {5, 100}, {20000, 7}, {16383, 500}};
  for (int threads = 1; threads <= 4; threads++)
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
      const int64_t count = cases[c][0], grain = cases[c][1];
      esp_threads_set(threads);
      memset(&v, 0, sizeof v);
      v.starts_at = grain;
      esp_parallel_for(count, grain, count_visits, &v);
      v.starts_at = 0;
      v.most = threads > 1 ? grain : 0;
      esp_parallel_for_uneven(count, grain, count_visits, &v);
      v.most = 0;
      esp_parallel_rows(count, grain, count_visits, &v);
      v.starts_at = 64;
      esp_parallel_elements(count, count_visits, &v);
      for (int i = 0; i < MOST_VISITED; i++) assert_int_equal(v.visits[i], i < count ? 4 : 0);
    }
  esp_threads_set(0);
}

/* Who ran which row of a loop. */
static void note_thread(void *context, int64_t begin, int64_t end) {
  int *threads = context;
  for (int64_t i = begin; i < end; i++) threads[i] = omp_get_thread_num();
}

static void equal_rows_come_to_the_same_thread(void **state) {
  (void)state;
  int narrow[200], wide[200];
  for (int threads = 1; threads <= 3; threads++) {
    esp_threads_set(threads);
    esp_parallel_rows(200, 64, note_thread, narrow);
    esp_parallel_rows(200, 1000, note_thread, wide);
    assert_memory_equal(narrow, wide, sizeof wide);
    assert_int_equal(narrow[0], 0);
    assert_int_equal(narrow[199], threads - 1);
  }
  esp_threads_set(0);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(a_failure_leaves_its_message),
      cmocka_unit_test(long_messages_are_cut),
      cmocka_unit_test(every_status_has_a_text),
      cmocka_unit_test(the_nearest_word_is_suggested),
      cmocka_unit_test(unknown_names_are_answered),
      cmocka_unit_test(a_panic_says_why),
      cmocka_unit_test(blocks_are_zeroed_and_aligned),
      cmocka_unit_test(sizes_that_overflow_are_refused),
      cmocka_unit_test(allocations_fail_on_demand),
      cmocka_unit_test(a_reset_arena_keeps_its_memory),
      cmocka_unit_test(an_arena_outlives_a_failure),
      cmocka_unit_test(philox_gives_the_known_answer),
      cmocka_unit_test(streams_are_told_apart_by_every_part_of_the_key),
      cmocka_unit_test(uniform_numbers_are_uniform),
      cmocka_unit_test(bounded_numbers_have_no_bias),
      cmocka_unit_test(normal_numbers_have_normal_moments),
      cmocka_unit_test(a_shuffle_is_a_fair_permutation),
      cmocka_unit_test(names_hash_as_fnv_1a),
      cmocka_unit_test(parameters_lie_in_one_array),
      cmocka_unit_test(a_start_depends_on_seed_and_name_only),
      cmocka_unit_test(a_start_has_its_mean_and_deviation),
      cmocka_unit_test(patterns_freeze),
      cmocka_unit_test(a_name_is_declared_once),
      cmocka_unit_test(parameters_report_lack_of_memory),
      cmocka_unit_test(sums_do_not_depend_on_threads),
      cmocka_unit_test(loops_visit_everything_once),
      cmocka_unit_test(equal_rows_come_to_the_same_thread),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
