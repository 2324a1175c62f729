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

static void set_up(fixture *f) {
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
  c.moe.top_k = 1;
  c.feed_forward.hidden = 4;
  expect_ok(esp_model_create(&f->model, &c, NULL, 1));
  open_log(f, 0);
}

static void tear_down(fixture *f) {
  expect_ok(esp_routing_log_close(f->log));
  esp_model_free(f->model);
  remove_folder(f->folder);
}

/* An evaluation in which expert e was chosen counts[e] times, with gates of 1/2, and served once less if it could be. */
static void evaluate(fixture *f, int64_t step, const int64_t counts[EXPERTS]) {
  int32_t choice[256];
  int64_t served[EXPERTS], slots = 0;
  esp_real gates[256];
  for (int32_t e = 0; e < EXPERTS; e++) {
    served[e] = counts[e] > 0 ? counts[e] - 1 : 0;
    for (int64_t i = 0; i < counts[e]; i++) {
      gates[slots] = (esp_real)0.5;
      choice[slots++] = e;
    }
  }
  const esp_tensor gate_tensor = {.data = gates, .rank = 2, .shape = {slots, 1}};
  const esp_routing routing = {.tokens = slots, .slots = slots, .k = 1, .experts = EXPERTS, .choice = choice,
                               .wanted = counts, .served = served};
  const esp_moe_record record = {.layer = esp_model_moe(f->model, 0), .routing = &routing, .gates = &gate_tensor};
  const esp_observer observer = esp_routing_log_observer(f->log);
  observer.moe(observer.context, &record);
  expect_ok(esp_routing_log_write(f->log, step, (double)step / 10, &f->bar));
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
  set_up(&f);
  evaluate(&f, 10, collapsed);
  read_text(&f, "routing.csv", text);
  const char *row = strstr(text, "10,1.0000,blocks.1.moe,1,1,2,1,0.03125,1,0.5,");
  assert_non_null(row);
  assert_non_null(strstr(text, "10,1.0000,blocks.1.moe,3,3,0,0,0,0,0,"));
  assert_non_null(strstr(row, ",2.5000,")); /* the imbalance: 40 of a mean of 16 */
  tear_down(&f);
}

static void the_alarm_waits_for_its_evaluations(void **state) {
  (void)state;
  static char text[TEXT_SIZE];
  fixture f;
  set_up(&f);
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

/* As if the process had died after step 4, of which only a checkpoint after step 2 is left. */
static void a_resumed_log_is_the_uninterrupted_one(void **state) {
  (void)state;
  static char whole[2][TEXT_SIZE], resumed[2][TEXT_SIZE];
  fixture a, b;
  set_up(&a);
  set_up(&b);
  for (int64_t step = 1; step <= 5; step++) evaluate(&a, step, collapsed);
  for (int64_t step = 1; step <= 4; step++) evaluate(&b, step, step > 2 ? even : collapsed);
  expect_ok(esp_routing_log_close(b.log));
  open_log(&b, 2);
  for (int64_t step = 3; step <= 5; step++) evaluate(&b, step, collapsed);
  for (int i = 0; i < 2; i++) {
    const char *name = i ? "alarms.csv" : "routing.csv";
    read_text(&a, name, whole[i]);
    read_text(&b, name, resumed[i]);
    assert_string_equal(whole[i], resumed[i]);
  }
  assert_non_null(strstr(resumed[1], "3,blocks.1.moe,1 3,3"));
  tear_down(&a);
  tear_down(&b);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(rows_hold_what_was_seen),
      cmocka_unit_test(the_alarm_waits_for_its_evaluations),
      cmocka_unit_test(a_resumed_log_is_the_uninterrupted_one),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
