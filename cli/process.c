/* What the program does with its process: signals, and the sizes of the thread pools of the libraries that it uses. */
#define _GNU_SOURCE /* environ */
#include "commands_internal.h"

#include <espalier/parallel.h>

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* OpenBLAS starts a thread for each core when it is loaded, before main(). We never use them (products are shared out
 * by our own threads), and where memory is short each goes round for ever trying to get its 128 MB, so that the program
 * could not end. So the program begins again with the size set before OpenBLAS is loaded. If it cannot, it goes on as
 * it is. */
static void size_blas_pool(char **argv) {
  static const char name[] = "OPENBLAS_NUM_THREADS";
  const char *const threads = getenv(name);
  if (threads && strcmp(threads, "1") == 0) return;
  if (setenv(name, "1", 1) == 0) (void)execv("/proc/self/exe", argv);
}

/* A closed pipe and a file size limit then are errors of write(), which are told like others. */
void prepare_process(char **argv) {
  size_blas_pool(argv);
  signal(SIGPIPE, SIG_IGN);
  signal(SIGXFSZ, SIG_IGN);
}

/* OMP_NUM_THREADS may say anything. */
esp_status check_threads(void) {
  if (esp_threads() <= MOST_THREADS) return ESP_OK;
  return esp_fail(ESP_ERR_USAGE,
                  "OMP_NUM_THREADS asks for %d threads; at most %d make sense: correct it, or give --threads",
                  esp_threads(), MOST_THREADS);
}

static volatile sig_atomic_t interrupted;

static void on_signal(int number) {
  (void)number;
  interrupted = 1;
}

/* One that was ignored when the program began stays so: of nohup, or a job in the background. */
static void watch(int number, int flags) {
  struct sigaction action = {.sa_handler = on_signal, .sa_flags = flags | SA_RESTART}, before;
  sigemptyset(&action.sa_mask);
  if (sigaction(number, NULL, &before) == 0 && before.sa_handler != SIG_IGN) sigaction(number, &action, NULL);
}

/* A closed pipe's own SIGPIPE does nothing, write() tells of it. One that another process sends is a request to end. */
static void on_pipe(int number, siginfo_t *info, void *context) {
  (void)number, (void)context;
  if (info->si_pid != getpid()) interrupted = 1;
}

/* A second Ctrl-C ends the program at once. A second SIGHUP does not: when a terminal closes, both the shell and the
 * system may send one. */
const volatile sig_atomic_t *watch_interrupts(void) {
  watch(SIGINT, (int)SA_RESETHAND);
  watch(SIGTERM, (int)SA_RESETHAND);
  watch(SIGHUP, 0);
  struct sigaction pipe_action = {.sa_sigaction = on_pipe, .sa_flags = SA_SIGINFO | SA_RESTART};
  sigemptyset(&pipe_action.sa_mask);
  sigaction(SIGPIPE, &pipe_action, NULL);
  return &interrupted;
}
