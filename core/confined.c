#define _GNU_SOURCE /* pipe2(), F_SETPIPE_SZ */
#include <espalier/confined.h>
#include <espalier/parallel.h>

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
  PIPE_BYTES = 1 << 20,
  MESSAGE_BYTES = 2048,
  LARGEST_RATIO = 1032, /* of deflate */
  COPIES = 4,
  SPARE_BYTES = 256 << 20,
  SPARE_SECONDS = 5,
  BYTES_PER_SECOND = 1 << 17, /* of a file that deflate made as small as it can */
  PATIENCE = 20               /* how much longer a process of a busy machine may take than it computes */
};

/* What the copy says at its end. */
typedef struct verdict {
  int32_t status;
  char message[MESSAGE_BYTES];
} verdict;

esp_confined_limits esp_confined_limits_of(uint64_t file_bytes, const char *for_whom) {
  const uint64_t most = UINT64_MAX / LARGEST_RATIO / COPIES / 2;
  const uint64_t bytes = file_bytes < most ? file_bytes : most, seconds = bytes / BYTES_PER_SECOND;
  return (esp_confined_limits){.bytes = SPARE_BYTES + bytes * LARGEST_RATIO * COPIES,
                               .seconds = SPARE_SECONDS + (int)(seconds < 1 << 20 ? seconds : 1 << 20),
                               .for_whom = for_whom};
}

/* ---- in the copy ---- */

static uint64_t bytes_mapped(void) {
  unsigned long long pages = 0;
  FILE *const file = fopen("/proc/self/statm", "r");
  if (!file) return 0;
  const int got = fscanf(file, "%llu", &pages);
  fclose(file);
  return got == 1 ? pages * (uint64_t)sysconf(_SC_PAGESIZE) : 0;
}

/* Lowers a limit; one that is lower already stays. */
static void lower(int which, uint64_t to) {
  struct rlimit limit;
  if (getrlimit(which, &limit) != 0 || limit.rlim_cur <= to) return;
  limit.rlim_cur = to;
  (void)setrlimit(which, &limit);
}

/* RLIMIT_CPU counts what this process computes, the copy's time starts at 0. */
static void confine(const esp_confined_limits *limits) {
  static const int deadly[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT, SIGXCPU, SIGALRM};
  const uint64_t mapped = bytes_mapped();
  for (size_t i = 0; i < sizeof deadly / sizeof *deadly; i++) signal(deadly[i], SIG_DFL);
  signal(SIGPIPE, SIG_IGN);
  if (mapped && limits->bytes < RLIM_INFINITY - mapped) lower(RLIMIT_AS, mapped + limits->bytes);
  lower(RLIMIT_CPU, (uint64_t)limits->seconds);
  lower(RLIMIT_CORE, 0);
  lower(RLIMIT_FSIZE, 0);
  const int nowhere = open("/dev/null", O_RDWR | O_CLOEXEC);
  for (int i = 0; nowhere >= 0 && i < 3; i++) dup2(nowhere, i);
}

/* The hard limits are still those of the original. */
static void raise_limit(int which, uint64_t by) {
  struct rlimit limit;
  if (getrlimit(which, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return;
  const uint64_t room = limit.rlim_max - limit.rlim_cur;
  limit.rlim_cur += by < room ? by : room;
  (void)setrlimit(which, &limit);
}

void esp_confined_extend(uint64_t file_bytes) {
  const esp_confined_limits more = esp_confined_limits_of(file_bytes, "");
  raise_limit(RLIMIT_CPU, (uint64_t)more.seconds - SPARE_SECONDS);
  raise_limit(RLIMIT_AS, more.bytes - SPARE_BYTES);
}

static bool send_all(int to, const void *bytes, size_t size) {
  const char *next = bytes;
  while (size > 0) {
    const ssize_t done = write(to, next, size);
    if (done < 0 && errno == EINTR) continue;
    if (done <= 0) return false;
    next += done;
    size -= (size_t)done;
  }
  return true;
}

esp_status esp_confined_send(int to, const void *bytes, size_t size) {
  if (send_all(to, bytes, size)) return ESP_OK;
  return esp_fail(ESP_ERR_IO, "what was read cannot be handed on: %s", strerror(errno));
}

/* Not exit(): what the process left in its buffers is for the original to write, and handlers are for it to call. */
static void be_the_copy(esp_confined_work *work, void *context, const esp_confined_limits *limits, int results,
                        int verdict_pipe) {
  verdict v = {.status = ESP_OK};
  confine(limits);
  esp_threads_set(1);
  v.status = work(context, results);
  if (v.status != ESP_OK) snprintf(v.message, sizeof v.message, "%s", esp_error_message());
  _exit(send_all(verdict_pipe, &v, sizeof v) ? 0 : 1);
}

/* ---- here ---- */

/* Descriptors 0 to 2 are what the copy loses. */
static bool open_pipe(int ends[2]) {
  if (pipe2(ends, O_CLOEXEC) != 0) return false;
  for (int i = 0; i < 2; i++) {
    if (ends[i] > 2) continue;
    const int higher = fcntl(ends[i], F_DUPFD_CLOEXEC, 3);
    close(ends[i]);
    ends[i] = higher;
  }
  (void)fcntl(ends[1], F_SETPIPE_SZ, PIPE_BYTES); /* fewer and longer turns, where it may */
  return ends[0] >= 0 && ends[1] >= 0;
}

static void close_ends(const int ends[2]) {
  for (int i = 0; i < 2; i++)
    if (ends[i] >= 0) close(ends[i]);
}

static esp_status fail_start(const int results[2], const int verdicts[2], const char *for_whom) {
  const int reason = errno;
  close_ends(results);
  close_ends(verdicts);
  return esp_fail(ESP_ERR_MEMORY, "no process can be started in which %s may look at a file: %s", for_whom,
                  strerror(reason));
}

esp_status esp_confined_start(esp_confined *copy, esp_confined_work *work, void *context,
                              const esp_confined_limits *limits) {
  int results[2] = {-1, -1}, verdicts[2] = {-1, -1};
  *copy = (esp_confined){.results = -1, .verdict = -1, .seconds = limits->seconds, .for_whom = limits->for_whom};
  if (!open_pipe(results) || !open_pipe(verdicts)) return fail_start(results, verdicts, limits->for_whom);
  const pid_t original = getpid(), process = fork();
  if (process < 0) return fail_start(results, verdicts, limits->for_whom);
  if (process == 0) {
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != original) _exit(1);
    close(results[0]);
    close(verdicts[0]);
    be_the_copy(work, context, limits, results[1], verdicts[1]);
  }
  close(results[1]);
  close(verdicts[1]);
  copy->process = process;
  copy->results = results[0];
  copy->verdict = verdicts[0];
  return ESP_OK;
}

/* How long the copy may go without giving a sign, in milliseconds. */
static int patience(const esp_confined *copy) {
  return copy->seconds < INT32_MAX / 1000 / PATIENCE ? copy->seconds * 1000 * PATIENCE : -1;
}

static bool receive(const esp_confined *copy, int from, void *bytes, size_t size) {
  char *next = bytes;
  while (size > 0) {
    struct pollfd waited = {.fd = from, .events = POLLIN};
    const int ready = poll(&waited, 1, patience(copy));
    if (ready < 0 && errno == EINTR) continue;
    if (ready <= 0) return false;
    const ssize_t got = read(from, next, size);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return false;
    next += got;
    size -= (size_t)got;
  }
  return true;
}

bool esp_confined_receive(esp_confined *copy, void *bytes, size_t size) {
  return receive(copy, copy->results, bytes, size);
}

static esp_status fail_dead(const esp_confined *copy, bool known, int how) {
  const int signal_number = known && WIFSIGNALED(how) ? WTERMSIG(how) : 0;
  if (signal_number == SIGXCPU || signal_number == SIGKILL)
    return esp_fail(
        ESP_ERR_FORMAT,
        "takes more than %d seconds or more memory than a file of its size may need: it is damaged, or made to "
        "do harm; use another one",
        copy->seconds);
  char by[32] = "";
  if (signal_number) snprintf(by, sizeof by, " (signal %d)", signal_number);
  return esp_fail(
      ESP_ERR_FORMAT,
      "reading it with %s ended the process that tried%s: the file is damaged, or made to do harm; use another "
      "one",
      copy->for_whom, by);
}

/* A process whose parent ignores SIGCHLD leaves nothing to wait for. */
esp_status esp_confined_end(esp_confined *copy) {
  verdict v = {.status = ESP_OK};
  int how = 0;
  pid_t ended;
  close(copy->results);
  const bool complete = receive(copy, copy->verdict, &v, sizeof v);
  close(copy->verdict);
  if (!complete) {
    const struct timespec moment = {.tv_nsec = 100 * 1000 * 1000};
    ended = waitpid((pid_t)copy->process, &how, WNOHANG);
    if (ended == 0) { /* its pipe may be closed a moment before it can be waited for */
      nanosleep(&moment, NULL);
      kill((pid_t)copy->process, SIGKILL);
    }
  } else {
    ended = 0;
  }
  while (ended == 0 || (ended < 0 && errno == EINTR)) ended = waitpid((pid_t)copy->process, &how, 0);
  if (!complete) return fail_dead(copy, ended > 0, how);
  v.message[sizeof v.message - 1] = '\0';
  return v.status == ESP_OK ? ESP_OK : esp_fail((esp_status)v.status, "%s", v.message);
}

esp_status esp_confined_try(esp_confined_work *work, void *context, const esp_confined_limits *limits) {
  esp_confined copy;
  ESP_TRY(esp_confined_start(&copy, work, context, limits));
  return esp_confined_end(&copy);
}
