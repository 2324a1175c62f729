/* label: medium */
/* What may befall a run: its environment, other processes, what lies in the way of its files. */
#include "cli_program.h"

#include <sys/resource.h>

static void test_threads_of_the_environment(void **state) {
  (void)state;
  setenv("OMP_NUM_THREADS", "100000", 1);
  refuse("pretrain small.yaml --data synthetic --out many", 2, "OMP_NUM_THREADS asks for 100000 threads", "--threads");
  unsetenv("OMP_NUM_THREADS");
}

/* OpenBLAS's own threads, if there are any, try for ever to get memory that there is not. */
static void test_short_memory_is_told(void **state) {
  (void)state;
  struct rlimit before;
  getrlimit(RLIMIT_AS, &before);
  unsetenv("OPENBLAS_NUM_THREADS");
  setrlimit(RLIMIT_AS, &(struct rlimit){280 << 20, before.rlim_max});
  const pid_t child = spawn("pretrain small.yaml --data synthetic --out short --quiet", in_base("out"));
  setrlimit(RLIMIT_AS, &before);
  int status, waited = 0;
  while (waitpid(child, &status, WNOHANG) == 0 && waited++ < 10000) pause_briefly();
  if (waited >= 10000) kill(child, SIGKILL);
  assert_true(waited < 10000);
  assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 1);
  read_file(in_base("err"), err, sizeof err);
  assert_non_null(strstr(err, "out of memory"));
}

static void test_names_that_are_not_utf8(void **state) {
  (void)state;
  refuse(PRETRAIN "--out M\xe4use", 2, "\"M?use\" is not UTF-8", "rename it");
}

static void test_no_waiting_for_fifos(void **state) {
  (void)state;
  assert_int_equal(mkfifo("fifo", 0600), 0);
  symlink("fifo", "fifo.h5");
  const pid_t child = spawn("evaluate pretrained --data hdf5:fifo", in_base("out"));
  alarm(20);
  assert_int_equal(finish(child), 2);
  assert_non_null(strstr(err, "fifo: is a FIFO; expected an HDF5 file"));
  assert_int_equal(run("pretrain fifo --data synthetic --out new"), 2);
  assert_non_null(strstr(err, "fifo: is a FIFO; expected a file of settings"));
  assert_int_equal(run("prune pretrained --plan fifo --out new"), 2);
  assert_non_null(strstr(err, "fifo: is a FIFO; expected the plan.json"));
  assert_int_equal(run("inspect fifo.h5"), 2);
  assert_non_null(strstr(err, "fifo.h5: is a FIFO; expected a"));
  assert_int_equal(run("evaluate pretrained --data synthetic --replay fifo"), 2);
  assert_non_null(strstr(err, "fifo: is a FIFO; expected a routing trace"));
  alarm(0);
  unlink("fifo.h5");
  unlink("fifo");
}

/* A closed pipe is an error that is told, where the system would end the program without a word. */
static void test_closed_pipe(void **state) {
  (void)state;
  int ends[2];
  assert_int_equal(pipe(ends), 0);
  char to[40];
  snprintf(to, sizeof to, "/proc/self/fd/%d", ends[1]);
  const pid_t child = spawn("inspect pretrained", to);
  close(ends[0]);
  close(ends[1]);
  const int code = finish(child);
  if (code != 0) { /* 0: it was faster than we */
    assert_int_equal(code, 1);
    assert_non_null(strstr(err, "standard output cannot be written: Broken pipe"));
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_threads_of_the_environment),
      cmocka_unit_test(test_short_memory_is_told),
      cmocka_unit_test(test_names_that_are_not_utf8),
      cmocka_unit_test(test_no_waiting_for_fifos),
      cmocka_unit_test(test_closed_pipe),
  };
  return cmocka_run_group_tests_name("cli runs", tests, begin, end);
}
