/* label: short */
/* What a run writes of its routers, and the alarm for experts that go unused. */
#include "testing.h"

#include <espalier/routing_log.h>

enum { EXPERTS = 4, TEXT_SIZE = 1 << 14 };

typedef struct fixture {
  char folder[TESTING_PATH_SIZE];
  esp_model *model;
  esp_routing_log *log;
  esp_progress_bar bar;
} fixture;

static void expect_ok(esp_status status) {
  if (status != ESP_OK) fail_msg("%s", esp_error_message());
}

static void open_log(fixture *f, int64_t step) {
  const esp_routing_alarm alarm = {.share = 0.2, .evaluations = 3};
  expect_ok(esp_routing_log_open(&f->log, f->folder, f->model, &alarm, step));
}

static void set_up(fixture *f, int top_k) {
  *f = (fixture){.bar = esp_progress_start(true, 0, 100)};
  make_folder(f->folder);
  esp_model_config c = esp_model_defaults;
  c.image_height = c.image_width = 8;
  c.image_channels = 3;
  c.classes = 4;
  c.width = 8;
  c.heads = 2;
  c.blocks = 2;
  c.moe.experts = EXPERTS;
  c.moe.hidden = 4;
  c.moe.top_k = top_k;
  c.feed_forward.hidden = 4;
  expect_ok(esp_model_create(&f->model, &c, NULL, 1));
  open_log(f, 0);
}

static void tear_down(fixture *f) {
  expect_ok(esp_routing_log_close(f->log));
  esp_model_free(f->model);
  remove_folder(f->folder);
}

/* What a layer would show of `slots` choices of k a token, the labels of one-token images repeating 1, 3, 0, 2. Gates
 * are
 * 1/2; a choice is unserved where `unserved` says so (NULL: the last of each expert). */
static void show(fixture *f, const int32_t *choice, int64_t slots, int k, const bool *unserved) {
  static const int32_t cycle[] = {1, 3, 0, 2};
  int32_t token[256], row[256], labels[256];
  int64_t first_slot[257], wanted[EXPERTS] = {0}, served[EXPERTS] = {0}, rows = 0;
  esp_real gates[256];
  for (int64_t i = 0; i < slots; i++) {
    bool last = true;
    for (int64_t j = i + 1; j < slots; j++) last = last && choice[j] != choice[i];
    const bool out = unserved ? unserved[i] : last;
    gates[i] = (esp_real)0.5;
    token[i] = (int32_t)(i / k);
    labels[i / k] = cycle[i / k % 4];
    first_slot[i / k] = i / k * k;
    row[i] = out ? -1 : (int32_t)rows++;
    wanted[choice[i]]++;
    served[choice[i]] += !out;
  }
  first_slot[slots / k] = slots;
  const esp_tensor gate_tensor = {.data = gates, .rank = 2, .shape = {slots / k, k}};
  const esp_routing routing = {.tokens = slots / k,
                               .slots = slots,
                               .k = k,
                               .experts = EXPERTS,
                               .rows = rows,
                               .choice = choice,
                               .token = token,
                               .first_slot = first_slot,
                               .row = row,
                               .wanted = wanted,
                               .served = served};
  const esp_moe_record record = {.layer = esp_model_moe(f->model, 0),
                                 .routing = &routing,
                                 .gates = &gate_tensor,
                                 .labels = labels,
                                 .tokens_per_image = 1,
                                 .images = slots / k};
  const esp_observer observer = esp_routing_log_observer(f->log);
  observer.moe(observer.context, &record);
}

static void write_log(fixture *f, int64_t step) {
  expect_ok(esp_routing_log_write(f->log, step, (double)step / 10, &f->bar));
}

/* An evaluation in which expert e was chosen counts[e] times, and served once less if it could be. */
static void evaluate(fixture *f, int64_t step, const int64_t counts[EXPERTS]) {
  int32_t choice[256];
  int64_t slots = 0;
  for (int32_t e = 0; e < EXPERTS; e++)
    for (int64_t i = 0; i < counts[e]; i++) choice[slots++] = e;
  show(f, choice, slots, 1, NULL);
  write_log(f, step);
}

static void read_text(const fixture *f, const char *name, char text[TEXT_SIZE]) {
  char path[TESTING_PATH_SIZE + 64];
  snprintf(path, sizeof path, "%s/%s", f->folder, name);
  FILE *file = fopen(path, "r");
  assert_non_null(file);
  const size_t size = fread(text, 1, TEXT_SIZE - 1, file);
  fclose(file);
  text[size] = '\0';
}

static const int64_t even[] = {16, 16, 16, 16}, collapsed[] = {40, 2, 22, 0}; /* 0.2 / 4 of 64 are 3.2 */

static void rows_hold_what_was_seen(void **state) {
  (void)state;
  static char text[TEXT_SIZE];
  fixture f;
  set_up(&f, 1);
  evaluate(&f, 10, collapsed);
  read_text(&f, "routing.csv", text);
  const char *row = strstr(text, "10,1.0000,blocks.1.moe,1,1,2,1,0.03125,1,0.5,");
  assert_non_null(row);
  assert_non_null(strstr(text, "10,1.0000,blocks.1.moe,3,3,0,0,0,0,0,"));
  assert_non_null(strstr(row, ",2.5000,,,1,0.5\n")); /* 40 of a mean of 16; expert 3 is dead;
                                                       no logits, so no entropy of a token; one of two served */
  read_text(&f, "coactivation.csv", text);
  assert_string_equal(text, "step,layer,expert,other,tokens,together_share\n"); /* k = 1: nobody chooses two */
  tear_down(&f);
}

/* Tokens of classes 1, 3, 0, 2; the last one's second choice is beyond the capacity. */
static void pairs_and_classes_by_hand(void **state) {
  (void)state;
  static char text[TEXT_SIZE];
  static const int32_t choice[] = {0, 1, 1, 0, 1, 2, 0, 1};
  static const bool unserved[] = {false, false, false, false, false, false, false, true};
  fixture f;
  set_up(&f, 2);
  for (int64_t step = 7; step < 9; step++) { /* each evaluation starts anew */
    show(&f, choice, 8, 2, unserved);
    write_log(&f, step);
  }
  read_text(&f, "coactivation.csv", text);
  const char *second = strstr(text, "8,blocks.1.moe,0,1,");
  assert_non_null(second);
  assert_true(strncmp(second,
                      "8,blocks.1.moe,0,1,3,1\n8,blocks.1.moe,0,2,0,0\n8,blocks.1.moe,0,3,0,0\n"
                      "8,blocks.1.moe,1,2,1,1\n8,blocks.1.moe,1,3,0,0\n8,blocks.1.moe,2,3,0,0\n",
                      139) == 0);
  read_text(&f, "specialisation.csv", text);
  assert_non_null(strstr(text, "\n8,blocks.1.moe,0,0,0,0,0,0\n8,blocks.1.moe,1,0,1,1,0.25,0.5\n"
                               "8,blocks.1.moe,2,0,1,1,1,0.5\n8,blocks.1.moe,3,0,0,0,0,0\n"));
  assert_non_null(strstr(text, "\n8,blocks.1.moe,0,2,1,1,0.333333333,0.5\n8,blocks.1.moe,1,2,1,0,0.25,0.5\n"));
  tear_down(&f);
}

static void the_alarm_waits_for_its_evaluations(void **state) {
  (void)state;
  static char text[TEXT_SIZE];
  fixture f;
  set_up(&f, 1);
  evaluate(&f, 1, collapsed);
  evaluate(&f, 2, collapsed);
  read_text(&f, "alarms.csv", text);
  assert_string_equal(text, "step,layer,experts,evaluations\n");
  evaluate(&f, 3, collapsed);
  evaluate(&f, 4, collapsed); /* said once */
  read_text(&f, "alarms.csv", text);
  assert_string_equal(text, "step,layer,experts,evaluations\n3,blocks.1.moe,1 3,3\n");
  evaluate(&f, 5, even); /* recovers */
  for (int64_t step = 6; step < 9; step++) evaluate(&f, step, collapsed);
  read_text(&f, "alarms.csv", text);
  assert_non_null(strstr(text, "\n8,blocks.1.moe,1 3,3\n"));
  tear_down(&f);
}

static void a_file_of_other_columns_is_set_aside(void **state) {
  (void)state;
  static const char old_rows[] = "step,layer,share\n1,blocks.1.moe,0.5\n";
  static char text[TEXT_SIZE];
  char path[TESTING_PATH_SIZE + 64];
  fixture f;
  set_up(&f, 1);
  expect_ok(esp_routing_log_close(f.log));
  snprintf(path, sizeof path, "%s/routing.csv", f.folder);
  FILE *file = fopen(path, "w");
  assert_non_null(file);
  fputs(old_rows, file);
  fclose(file);
  open_log(&f, 1);
  evaluate(&f, 2, even);
  read_text(&f, "routing.csv.old", text);
  assert_string_equal(text, old_rows);
  read_text(&f, "routing.csv", text);
  assert_int_equal(strncmp(text, "step,epoch,layer,expert,", 24), 0);
  assert_non_null(strstr(text, "\n2,0.2000,blocks.1.moe,0,0,16,15,"));
  tear_down(&f);
}

/* As if the process had died after step 4, of which only a checkpoint after step 2 is left. */
static void a_resumed_log_is_the_uninterrupted_one(void **state) {
  (void)state;
  static const char *const names[] = {"routing.csv", "alarms.csv", "coactivation.csv", "specialisation.csv"};
  static char whole[4][TEXT_SIZE], resumed[4][TEXT_SIZE];
  fixture a, b;
  set_up(&a, 2);
  set_up(&b, 2);
  for (int64_t step = 1; step <= 5; step++) evaluate(&a, step, collapsed);
  for (int64_t step = 1; step <= 4; step++) evaluate(&b, step, step > 2 ? even : collapsed);
  expect_ok(esp_routing_log_close(b.log));
  open_log(&b, 2);
  for (int64_t step = 3; step <= 5; step++) evaluate(&b, step, collapsed);
  for (int i = 0; i < 4; i++) {
    read_text(&a, names[i], whole[i]);
    read_text(&b, names[i], resumed[i]);
    assert_string_equal(whole[i], resumed[i]);
  }
  assert_non_null(strstr(resumed[1], "3,blocks.1.moe,1 3,3"));
  tear_down(&a);
  tear_down(&b);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(rows_hold_what_was_seen),
      cmocka_unit_test(pairs_and_classes_by_hand),
      cmocka_unit_test(the_alarm_waits_for_its_evaluations),
      cmocka_unit_test(a_file_of_other_columns_is_set_aside),
      cmocka_unit_test(a_resumed_log_is_the_uninterrupted_one),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
