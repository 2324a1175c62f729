/* What the tests of the program share: running it, what it printed, what it left in the folder, and two runs that
 * every test finds. */
#ifndef ESPALIER_TEST_CLI_PROGRAM_H
#define ESPALIER_TEST_CLI_PROGRAM_H

#include "testing.h"

#include <espalier/folder_lock.h>

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <spawn.h>
#include <stdint.h>
#include <time.h>
#include <zlib.h>

#ifndef ESPALIER_PROGRAM
#error "ESPALIER_PROGRAM is the path of the program to be tested"
#endif

extern char **environ;

enum { MOST_WORDS = 40, TEXT_SIZE = 1 << 17 };

/* The tests run in base/work; what the program prints goes to base/out and base/err. */
static char base[TESTING_PATH_SIZE], start_folder[TESTING_PATH_SIZE];
static char out[TEXT_SIZE], err[TEXT_SIZE]; /* of the last run() */

/* ---- running the program ---- */

static inline const char *in_base(const char *name) {
  static char paths[2][TESTING_PATH_SIZE + 16];
  static int next;
  char *path = paths[next = (next + 1) % 2];
  snprintf(path, sizeof paths[0], "%s/%s", base, name);
  return path;
}

static inline size_t read_file(const char *path, char *bytes, size_t room) {
  FILE *file = fopen(path, "rb");
  if (!file) fail_msg("%s cannot be read: %s", path, strerror(errno));
  const size_t size = fread(bytes, 1, room - 1, file);
  fclose(file);
  assert_true(size < room - 1);
  bytes[size] = '\0';
  return size;
}

static inline void write_file(const char *path, const void *bytes, size_t size) {
  FILE *file = fopen(path, "wb");
  assert_non_null(file);
  assert_int_equal(fwrite(bytes, 1, size, file), size);
  assert_int_equal(fclose(file), 0);
}

/* The arguments are the words of `line`. Standard output goes to the file `to`. */
static inline pid_t spawn(const char *line, const char *to) {
  static char words[2048], program[] = ESPALIER_PROGRAM;
  char *list[MOST_WORDS + 2] = {program};
  int count = 1;
  snprintf(words, sizeof words, "%s", line);
  for (char *word = words; *word && count <= MOST_WORDS;) {
    list[count++] = word;
    word += strcspn(word, " ");
    if (*word) *word++ = '\0';
  }
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, to, O_WRONLY | O_CREAT | O_TRUNC, 0666);
  posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, in_base("err"), O_WRONLY | O_CREAT | O_TRUNC, 0666);
  pid_t child;
  const int error = posix_spawn(&child, program, &actions, NULL, list, environ);
  if (error) fail_msg("%s: %s", program, strerror(error));
  posix_spawn_file_actions_destroy(&actions);
  return child;
}

/* The exit code of the program, or minus the signal that ended it. */
static inline int finish(pid_t child) {
  int status;
  assert_int_equal(waitpid(child, &status, 0), child);
  read_file(in_base("err"), err, sizeof err);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

static inline int run(const char *line) {
  const int code = finish(spawn(line, in_base("out")));
  read_file(in_base("out"), out, sizeof out);
  return code;
}

static inline void succeed(const char *line) {
  const int code = run(line);
  if (code != 0) fail_msg("espalier %s: exit code %d: %s", line, code, err);
}

/* With --json; the object is all there is on standard output, and --quiet leaves standard error empty. The caller frees
 * it. */
static inline json_t *succeed_json(const char *line) {
  char longer[2048];
  json_error_t error;
  snprintf(longer, sizeof longer, "%s --json --quiet", line);
  succeed(longer);
  json_t *object = json_loads(out, JSON_REJECT_DUPLICATES, &error);
  if (!json_is_object(object)) fail_msg("espalier %s: %s in %s", longer, error.text, out);
  assert_string_equal(err, "");
  return object;
}

/* ---- what is in the folder ---- */

static inline uint64_t name_and_bytes(const char *path) {
  static char bytes[1 << 22];
  const size_t size = read_file(path, bytes, sizeof bytes);
  const uLong name = crc32_z(0, (const Bytef *)path, strlen(path));
  return ((uint64_t)name << 32) + crc32_z(name, (const Bytef *)bytes, size);
}

/* A number that changes when a file or folder comes, goes or changes. Locks do not count: they say who took the folder
 * last. */
static inline uint64_t all_that_is_in(const char *path) {
  DIR *folder = opendir(path);
  assert_non_null(folder);
  uint64_t sum = 1;
  for (struct dirent *entry; (entry = readdir(folder));) {
    if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
    if (strcmp(entry->d_name, ESP_LOCK_NAME) == 0) continue;
    char inner[TESTING_PATH_SIZE + 300];
    assert_true(snprintf(inner, sizeof inner, "%s/%s", path, entry->d_name) < (int)sizeof inner);
    struct stat status;
    assert_int_equal(lstat(inner, &status), 0);
    if (strstr(entry->d_name, ".tmp") || strstr(entry->d_name, ".write-test")) fail_msg("%s was left behind", inner);
    if (strcmp(entry->d_name, ".espalier.lock") == 0) { /* its text says who held the folder last */
      sum += crc32_z(0, (const Bytef *)inner, strlen(inner));
      continue;
    }
    sum += S_ISDIR(status.st_mode) ? 31 * all_that_is_in(inner) + crc32_z(0, (const Bytef *)inner, strlen(inner))
                                   : name_and_bytes(inner);
  }
  closedir(folder);
  return sum;
}

/* The command ends with `code`, prints nothing on standard output, says `words` and `more_words` in one line on
 * standard error, and changes no file. */
static inline void refuse(const char *line, int code, const char *words, const char *more_words) {
  const uint64_t before = all_that_is_in(".");
  const int got = run(line);
  if (got != code) fail_msg("espalier %s: exit code %d, expected %d: %s", line, got, code, err);
  if (!strstr(err, words) || !strstr(err, more_words))
    fail_msg("espalier %s: the message lacks \"%s\" or \"%s\": %s", line, words, more_words, err);
  if (strncmp(err, "espalier: ", 10) != 0 || strchr(err, '\n') != err + strlen(err) - 1)
    fail_msg("espalier %s: not one line: %s", line, err);
  assert_string_equal(out, "");
  if (all_that_is_in(".") != before) fail_msg("espalier %s: was refused (%s), but changed files", line, err);
}

typedef struct refusal {
  const char *line;
  int code;
  const char *words, *more_words;
} refusal;

static inline void refuse_all(const refusal *list, size_t count) {
  for (size_t i = 0; i < count; i++) refuse(list[i].line, list[i].code, list[i].words, list[i].more_words);
}

#define REFUSE_ALL(list) refuse_all(list, sizeof(list) / sizeof(list)[0])

static inline void pause_briefly(void) { nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL); }

/* Waits until the file is there and has so many bytes. */
static inline void wait_for(const char *path, long long bytes) {
  struct stat status;
  for (int i = 0; i < 60000; i++) {
    if (stat(path, &status) == 0 && (long long)status.st_size >= bytes) return;
    pause_briefly();
  }
  fail_msg("%s has not %lld bytes after two minutes", path, bytes);
}

/* ---- JSON ---- */

static inline json_t *get(const json_t *object, const char *key) {
  json_t *value = json_object_get(object, key);
  if (!value) fail_msg("the key %s is missing", key);
  return value;
}

static inline double number(const json_t *object, const char *key) {
  assert_true(json_is_number(get(object, key)));
  return json_number_value(get(object, key));
}

static inline const char *text(const json_t *object, const char *key) {
  assert_true(json_is_string(get(object, key)));
  return json_string_value(get(object, key));
}

static inline json_t *item(const json_t *object, const char *key, size_t index) {
  assert_true(json_is_array(get(object, key)) && index < json_array_size(get(object, key)));
  return json_array_get(get(object, key), index);
}

static inline void digest_of(const char *checkpoint, char digest[32]) {
  char line[512];
  snprintf(line, sizeof line, "inspect %s", checkpoint);
  json_t *json = succeed_json(line);
  snprintf(digest, 32, "%s", text(json, "digest"));
  json_decref(json);
}

static inline double parameters_of(const char *checkpoint) {
  char line[512];
  snprintf(line, sizeof line, "inspect %s", checkpoint);
  json_t *json = succeed_json(line);
  const double parameters = number(json, "parameters");
  json_decref(json);
  return parameters;
}

static inline bool is_there(const char *path) { return access(path, F_OK) == 0; }

/* ---- what every test finds ---- */

static const char config[] =
    "model:\n"
    "  stem: {kind: convolution, channels: [8], pools: [4, 4]}\n"
    "  width: 16\n"
    "  blocks: 2\n"
    "  mixing: convolution\n"
    "  kernel: 3\n"
    "  layers: [moe, mone]\n"
    "  moe: {experts: 4, top_k: 1, hidden: 8}\n"
    "training: {epochs: 0.02, batch: 64, log_every: 2, evaluate_every: 0.01, evaluate_examples: 64}\n";

#define PRETRAIN "pretrain small.yaml --data synthetic --quiet "

static inline int begin(void **state) {
  (void)state;
  assert_non_null(getcwd(start_folder, sizeof start_folder));
  make_folder(base);
  if (mkdir(in_base("work"), 0777) != 0 || chdir(in_base("work")) != 0) return -1;
  unsetenv("ESPALIER_DATA");
  write_file("small.yaml", config, strlen(config));
  succeed(PRETRAIN "--out pretrained");
  succeed("finetune pretrained --data synthetic:narrow --out finetuned --quiet --set training.epochs=0.05");
  return 0;
}

static inline int end(void **state) {
  (void)state;
  if (chdir(start_folder) != 0) return -1;
  remove_folder(base);
  return 0;
}

#endif
