/* label: short */
/* Work in a copy of the process: what it sends arrives, how it fails arrives, and whatever else it does ends the copy
 * alone. */
#include "testing.h"

#include <espalier/confined.h>
#include <espalier/parallel.h>

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static const esp_confined_limits limits = {.bytes = 64 << 20, .seconds = 1, .for_whom = "a test"};

static esp_status send_numbers(void *context, int to) {
  for (int64_t i = 0; i < *(const int64_t *)context; i++) ESP_TRY(esp_confined_send(to, &i, sizeof i));
  return ESP_OK;
}

static void test_what_is_sent_arrives(void **state) {
  (void)state;
  int64_t count = 300000, number;
  esp_confined copy;
  assert_int_equal(esp_confined_start(&copy, send_numbers, &count, &limits), ESP_OK);
  for (int64_t i = 0; i < count; i++) {
    assert_true(esp_confined_receive(&copy, &number, sizeof number));
    assert_int_equal(number, i);
  }
  assert_false(esp_confined_receive(&copy, &number, sizeof number));
  assert_int_equal(esp_confined_end(&copy), ESP_OK);
}

static void test_unread_results_do_not_hold_it_up(void **state) {
  (void)state;
  int64_t count = 1000000;
  esp_confined copy;
  assert_int_equal(esp_confined_start(&copy, send_numbers, &count, &limits), ESP_OK);
  assert_int_equal(esp_confined_end(&copy), ESP_ERR_IO);
}

static esp_status change(void *context, int to) {
  (void)to;
  *(int *)context = 2;
  esp_threads_set(7);
  return ESP_OK;
}

static void test_the_original_does_not_change(void **state) {
  (void)state;
  int value = 1;
  const int threads = esp_threads();
  assert_int_equal(esp_confined_try(change, &value, &limits), ESP_OK);
  assert_int_equal(value, 1);
  assert_int_equal(esp_threads(), threads);
}

static esp_status fail_by_itself(void *context, int to) {
  (void)context, (void)to;
  return esp_fail(ESP_ERR_MISMATCH, "so it is");
}
static esp_status crash(void *context, int to) {
  (void)context, (void)to;
  raise(SIGSEGV);
  return ESP_OK;
}
__attribute__((noreturn)) static esp_status leave(void *context, int to) {
  (void)context, (void)to;
  exit(0);
}
__attribute__((noreturn)) static esp_status compute_for_ever(void *context, int to) {
  (void)context, (void)to;
  for (volatile unsigned i = 0;; i++) continue;
}
#ifndef ESP_NO_MULTIVERSIONING /* sanitizers have allocators of their own, which end the process */
static esp_status take_memory(void *context, int to) {
  (void)context, (void)to;
  for (int i = 0; i < 100; i++) {
    char *const bytes = malloc(1 << 20);
    if (!bytes) return esp_fail(ESP_ERR_MEMORY, "after %d", i);
    for (int b = 0; b < 1 << 20; b += 4096) ((volatile char *)bytes)[b] = 1;
  }
  return ESP_OK;
}
#endif
static esp_status write_a_file(void *context, int to) {
  (void)to;
  const int file = open(context, O_WRONLY | O_CREAT, 0600);
  signal(SIGXFSZ, SIG_IGN);
  return file >= 0 && write(file, "x", 1) == 1 ? ESP_OK : esp_fail(ESP_ERR_IO, "cannot");
}

static void test_failures_arrive(void **state) {
  (void)state;
  char folder[TESTING_PATH_SIZE], file[TESTING_PATH_SIZE + 8];
  make_folder(folder);
  snprintf(file, sizeof file, "%s/a", folder);
  const struct {
    esp_confined_work *work;
    esp_status status;
    const char *message;
  } cases[] = {{fail_by_itself, ESP_ERR_MISMATCH, "so it is"},
               {crash, ESP_ERR_FORMAT, "reading it with a test ended the process that tried (signal 11)"},
               {leave, ESP_ERR_FORMAT, "ended the process that tried:"},
               {compute_for_ever, ESP_ERR_FORMAT, "takes more than 1 seconds"},
#ifndef ESP_NO_MULTIVERSIONING
               {take_memory, ESP_ERR_MEMORY, "after"},
#endif
               {write_a_file, ESP_ERR_IO, "cannot"}};
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    assert_int_equal(esp_confined_try(cases[i].work, file, &limits), cases[i].status);
    if (!strstr(esp_error_message(), cases[i].message)) fail_msg("case %zu: %s", i, esp_error_message());
  }
  assert_int_equal(waitpid(-1, NULL, WNOHANG), -1); /* nothing is left over */
  remove_folder(folder);
}

static void test_ignored_children(void **state) {
  (void)state;
  signal(SIGCHLD, SIG_IGN);
  int value = 1;
  assert_int_equal(esp_confined_try(change, &value, &limits), ESP_OK);
  assert_int_equal(esp_confined_try(crash, NULL, &limits), ESP_ERR_FORMAT);
  signal(SIGCHLD, SIG_DFL);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_what_is_sent_arrives),
      cmocka_unit_test(test_unread_results_do_not_hold_it_up),
      cmocka_unit_test(test_the_original_does_not_change),
      cmocka_unit_test(test_failures_arrive),
      cmocka_unit_test(test_ignored_children),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
