/* What the tests of core/ and layers/ share: numbers to fill arrays with, comparisons that name the worst element,
 * panics that are expected, temporary folders. It includes cmocka and what cmocka needs. */
#ifndef ESPALIER_TESTING_H
#define ESPALIER_TESTING_H

#include <espalier/parameters.h>
#include <espalier/random.h>
#include <espalier/tensor.h>

#include <dirent.h>
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

enum { TESTING_SEED = 20240 };

/* `count` normal numbers; equal streams give equal numbers, whatever esp_real is. */
static inline void fill_normal(esp_real *values, int64_t count, uint64_t stream) {
  esp_random random = esp_random_stream(TESTING_SEED, ESP_PURPOSE_TEST, stream);
  for (int64_t i = 0; i < count; i++) values[i] = (esp_real)esp_random_normal(&random);
}

/* Every parameter, by its name: what it starts from plus normal numbers times `scale`, so that nothing vanishes because
 * a head or a bias starts at zero. */
static inline void fill_parameters(const esp_parameters *parameters, double scale) {
  for (int64_t i = 0; i < esp_parameters_count(parameters); i++) {
    const esp_parameter *p = esp_parameters_at(parameters, i);
    fill_normal(p->tensor.data, p->count, esp_hash_text(p->tensor.name));
    for (int64_t j = 0; j < p->count; j++)
      p->tensor.data[j] = (esp_real)p->constant + (esp_real)scale * p->tensor.data[j];
  }
}

/* `count` numbers around 0 in random order, no two of them and none of them and 0 closer than `gap`: for ops with
 * kinks where values are equal or 0. */
static inline void fill_apart(esp_real *values, int64_t count, double gap, uint64_t stream) {
  esp_random random = esp_random_stream(TESTING_SEED, ESP_PURPOSE_TEST, stream);
  for (int64_t i = 0; i < count; i++) values[i] = (esp_real)(gap * (2.0 * (double)i - (double)count + 0.5));
  for (int64_t i = count - 1; i > 0; i--) {
    const int64_t j = esp_random_below(&random, (uint32_t)i + 1);
    const esp_real kept = values[i];
    values[i] = values[j];
    values[j] = kept;
  }
}

/* Fails unless |actual - expected| <= atol + rtol |expected| for all `count` elements; not-a-number is expected only
 * where it is expected. Says how many differ and which one most. */
static inline void assert_close(const char *what, const esp_real *actual, const double *expected, int64_t count,
                                double rtol, double atol) {
  int64_t wrong = 0, worst = 0;
  double most = 0;
  for (int64_t i = 0; i < count; i++) {
    const double a = (double)actual[i], e = expected[i], allowed = atol + rtol * fabs(e);
    const bool agree = isnan(e) ? isnan(a) : a == e || fabs(a - e) <= allowed;
    if (agree) continue;
    const double excess = isfinite(a - e) && allowed > 0 ? fabs(a - e) / allowed : HUGE_VAL;
    if (wrong++ == 0 || excess > most) most = excess, worst = i;
  }
  if (wrong)
    fail_msg("%s: %lld of %lld differ; the worst, [%lld], is %.9g and should be %.9g (rtol %g, atol %g)", what,
             (long long)wrong, (long long)count, (long long)worst, (double)actual[worst], expected[worst], rtol, atol);
}

/* The same bits, not-a-number included. */
static inline void assert_same_bits(const char *what, const esp_real *a, const esp_real *b, int64_t count) {
  for (int64_t i = 0; i < count; i++)
    if (memcmp(&a[i], &b[i], sizeof a[i]) != 0)
      fail_msg("%s: [%lld] is %.17g and %.17g", what, (long long)i, (double)a[i], (double)b[i]);
}

/* Fails unless body(context), run in a process of its own, aborts with a message that holds `text`. The body must
 * not start threads. */
static inline void assert_panics(void (*body)(void *context), void *context, const char *text) {
  int ends[2];
  assert_int_equal(pipe(ends), 0);
  fflush(NULL);
  const pid_t child = fork();
  assert_true(child >= 0);
  if (child == 0) {
    dup2(ends[1], STDERR_FILENO);
    signal(SIGABRT, SIG_DFL);
    alarm(10); /* a body that goes on instead may wait for threads that the fork did not copy */
    body(context);
    _exit(0);
  }
  close(ends[1]);
  char message[1024];
  size_t used = 0;
  for (ssize_t got; used + 1 < sizeof message; used += (size_t)got)
    if ((got = read(ends[0], message + used, sizeof message - 1 - used)) <= 0) break;
  message[used] = '\0';
  close(ends[0]);
  int status = 0;
  assert_int_equal(waitpid(child, &status, 0), child);
  if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGABRT)
    fail_msg("no panic where one with \"%s\" was expected", text);
  if (!strstr(message, text)) fail_msg("the panic says \"%s\", not \"%s\"", message, text);
}

enum { TESTING_PATH_SIZE = 512 };

/* Makes an empty folder under TMPDIR or /tmp and writes its path into `path` [TESTING_PATH_SIZE]. */
static inline void make_folder(char *path) {
  const char *root = getenv("TMPDIR");
  snprintf(path, TESTING_PATH_SIZE, "%s/espalier-test-XXXXXX", root && *root ? root : "/tmp");
  assert_non_null(mkdtemp(path));
}

/* Removes a folder and all it holds. */
static inline void remove_folder(const char *path) {
  DIR *folder = opendir(path);
  for (struct dirent *entry; folder && (entry = readdir(folder));) {
    if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
    char inner[TESTING_PATH_SIZE + 300];
    if (snprintf(inner, sizeof inner, "%s/%s", path, entry->d_name) >= (int)sizeof inner) continue;
    struct stat status;
    if (lstat(inner, &status) == 0 && S_ISDIR(status.st_mode)) remove_folder(inner);
    else unlink(inner);
  }
  if (folder) closedir(folder);
  rmdir(path);
}

#endif
