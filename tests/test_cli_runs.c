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
#ifdef ESP_NO_MULTIVERSIONING
  skip(); /* a sanitizer's own tables alone are larger */
#endif
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

/* Another process in the folder: refused and told who it is; also one that would go on with it. */
static void test_two_writers(void **state) {
  (void)state;
  const pid_t first = spawn(PRETRAIN "--out shared --set training.epochs=50 --set training.checkpoint_minutes=0.000001",
                            in_base("out"));
  char holder[80];
  snprintf(holder, sizeof holder, "shared is being written by process %ld (pretrain) on ", (long)first);
  wait_for("shared/last.h5", 1);
  const char *const lines[] = {PRETRAIN "--out shared --overwrite",
                               PRETRAIN "--out shared --resume --set training.epochs=50"
                                        " --set training.checkpoint_minutes=0.000001",
                               "finetune pretrained --data synthetic:narrow --quiet --out shared --overwrite",
                               "prune pretrained --criterion random --drop 1 --out shared --overwrite"};
  for (int i = 0; i < 4; i++) {
    assert_int_equal(run(lines[i]), 1);
    if (!strstr(err, holder) || !strstr(err, " since 20")) fail_msg("%s: %s", lines[i], err);
  }
  assert_int_equal(kill(first, 0), 0);
  kill(first, SIGTERM);
  assert_int_equal(finish(first), 1);
  assert_non_null(strstr(err, "stopped after step"));
}

/* --overwrite takes nothing away before the new run can begin. */
static void test_overwrite_waits(void **state) {
  (void)state;
  char before[32], after[32];
  digest_of("pretrained", before);
  assert_int_equal(run("pretrain small.yaml --data hdf5:none.h5 --out pretrained --overwrite"), 1);
  assert_int_equal(run(PRETRAIN "--out pretrained --overwrite --set training.batch=100000000"), 2);
  assert_int_equal(run(PRETRAIN "--out pretrained --overwrite --set training.freeze=nothing.like.that"), 2);
  digest_of("pretrained", after);
  assert_string_equal(before, after);
  assert_true(is_there("pretrained/results.json") && is_there("pretrained/best.h5"));
}

/* Devices are not replaced by files. */
static void test_outputs_that_are_no_files(void **state) {
  (void)state;
  assert_int_equal(mkfifo("pipe.h5", 0600), 0);
  symlink("/dev/full", "full");
  assert_int_equal(run("measure pretrained --data synthetic --trace full --out traced"), 2);
  assert_non_null(strstr(err, "full is a device, and would be replaced"));
  assert_int_equal(run("prune pretrained --criterion random --drop 1 --out pipe.h5 --overwrite"), 2);
  assert_non_null(strstr(err, "pipe.h5 is a FIFO"));
  assert_int_equal(run("data preview synthetic --out full"), 2);
  assert_non_null(strstr(err, "full is a device"));
  assert_int_equal(run("evaluate pretrained --data synthetic --logits full"), 2);
  assert_non_null(strstr(err, "full is a device"));
  struct stat found;
  assert_true(lstat("full", &found) == 0 && S_ISLNK(found.st_mode));
  unlink("pipe.h5");
  unlink("full");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_threads_of_the_environment),
      cmocka_unit_test(test_short_memory_is_told),
      cmocka_unit_test(test_names_that_are_not_utf8),
      cmocka_unit_test(test_no_waiting_for_fifos),
      cmocka_unit_test(test_closed_pipe),
      cmocka_unit_test(test_two_writers),
      cmocka_unit_test(test_overwrite_waits),
      cmocka_unit_test(test_outputs_that_are_no_files),
  };
  return cmocka_run_group_tests_name("cli runs", tests, begin, end);
}
