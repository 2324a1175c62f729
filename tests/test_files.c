/* label: short */
/* Files of core/: replaced as a whole under names that nobody foresees, read only if they are regular, folders with one
 * writer. */
#include "testing.h"

#include <espalier/folder_lock.h>
#include <espalier/input_file.h>
#include <espalier/memory.h>
#include <espalier/output_file.h>
#include <espalier/utf8.h>

#include <errno.h>
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>

static char folder[TESTING_PATH_SIZE];

static int set_up(void **state) {
  (void)state;
  make_folder(folder);
  return 0;
}

static int tear_down(void **state) {
  (void)state;
  remove_folder(folder);
  return 0;
}

static const char *in_folder(const char *name) {
  static char paths[4][2 * TESTING_PATH_SIZE];
  static int next;
  char *const path = paths[next++ % 4];
  snprintf(path, sizeof paths[0], "%s/%s", folder, name);
  return path;
}

/* Entries of the folder but for "." and "..", and the last one's name. */
static int count_entries(char name[256]) {
  DIR *entries = opendir(folder);
  int count = 0;
  for (const struct dirent *entry; (entry = readdir(entries));) {
    if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
    snprintf(name, 256, "%s", entry->d_name);
    count++;
  }
  closedir(entries);
  return count;
}

static void put(const char *path, const char *text) {
  FILE *file = fopen(path, "w");
  assert_non_null(file);
  fputs(text, file);
  assert_int_equal(fclose(file), 0);
}

static void assert_holds(const char *path, const char *expected) {
  char *text;
  size_t length;
  assert_int_equal(esp_input_read(&text, &length, path, "a file of the test", 1 << 16), ESP_OK);
  assert_int_equal(length, strlen(expected));
  assert_string_equal(text, expected);
  esp_free(text);
}

static void expect(esp_status found, esp_status expected, const char *part) {
  assert_int_equal(found, expected);
  if (!strstr(esp_error_message(), part)) fail_msg("\"%s\" is not in \"%s\"", part, esp_error_message());
}

/* --- replacing ---------------------------------------------------------------------------------------------- */

static void a_file_is_made_and_replaced_whole(void **state) {
  (void)state;
  char name[256];
  const char *const path = in_folder("a.txt");
  assert_int_equal(esp_file_replace(path, "one", 3), ESP_OK);
  assert_holds(path, "one");
  assert_int_equal(esp_file_replace(path, "another", 7), ESP_OK);
  assert_holds(path, "another");
  assert_int_equal(count_entries(name), 1);
  expect(esp_file_replace(in_folder("none/b.txt"), "x", 1), ESP_ERR_IO, "none/b.txt cannot be written");
}

static void a_name_of_the_longest_kind_can_be_replaced(void **state) {
  (void)state;
  char name[256], found[256];
  memset(name, 'n', 255);
  name[255] = '\0';
  assert_int_equal(esp_file_replace(in_folder(name), "x", 1), ESP_OK);
  assert_int_equal(count_entries(found), 1);
  assert_string_equal(found, name);
}

/* A file size limit fails the write; SIGXFSZ is ignored as the program does. */
static void a_failed_write_leaves_the_old_file_and_nothing_else(void **state) {
  (void)state;
  char name[256], *const bytes = calloc(1, 1 << 16);
  const char *const path = in_folder("a.txt");
  struct rlimit before;
  assert_int_equal(esp_file_replace(path, "old", 3), ESP_OK);
  getrlimit(RLIMIT_FSIZE, &before);
  signal(SIGXFSZ, SIG_IGN);
  setrlimit(RLIMIT_FSIZE, &(struct rlimit){1 << 12, before.rlim_max});
  const esp_status status = esp_file_replace(path, bytes, 1 << 16);
  setrlimit(RLIMIT_FSIZE, &before);
  signal(SIGXFSZ, SIG_DFL);
  free(bytes);
  expect(status, ESP_ERR_IO, "File too large");
  assert_holds(path, "old");
  assert_int_equal(count_entries(name), 1);
}

static void only_regular_files_are_replaced(void **state) {
  (void)state;
  assert_int_equal(mkfifo(in_folder("fifo"), 0600), 0);
  assert_int_equal(symlink("/dev/null", in_folder("link")), 0);
  expect(esp_output_check(in_folder("fifo")), ESP_ERR_USAGE, "is a FIFO");
  expect(esp_file_replace(in_folder("fifo"), "x", 1), ESP_ERR_USAGE, "is a FIFO");
  expect(esp_file_replace(in_folder("link"), "x", 1), ESP_ERR_USAGE, "is a device");
  expect(esp_output_check("/dev/full"), ESP_ERR_USAGE, "/dev/full is a device");
  expect(esp_output_check(folder), ESP_ERR_USAGE, "is a folder");
  struct stat found;
  assert_true(lstat(in_folder("fifo"), &found) == 0 && S_ISFIFO(found.st_mode));
  assert_true(lstat(in_folder("link"), &found) == 0 && S_ISLNK(found.st_mode));
  assert_int_equal(esp_output_check(in_folder("new")), ESP_OK);
}

/* What a process that is killed while it writes leaves: forked, it makes the file and dies with its lock. */
static void leave_half_written(const char *path) {
  const pid_t child = fork();
  if (child == 0) {
    setrlimit(RLIMIT_FSIZE, &(struct rlimit){1 << 12, 1 << 12});
    signal(SIGXFSZ, SIG_DFL);
    setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
    static char bytes[1 << 14];
    (void)!esp_file_replace(path, bytes, sizeof bytes);
    _exit(0);
  }
  int status;
  waitpid(child, &status, 0);
  assert_true(WIFSIGNALED(status));
}

static void what_the_dead_left_goes_and_what_the_living_write_stays(void **state) {
  (void)state;
  char name[256];
  leave_half_written(in_folder("a.txt"));
  assert_int_equal(count_entries(name), 1);
  assert_memory_equal(name, ".a.txt.", 7);
  assert_string_equal(name + strlen(name) - 4, ".tmp");

  const int other = open(in_folder(name), O_RDWR);
  struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
  enum { OFD_SETLK = 37 }; /* F_OFD_SETLK, which POSIX does not name yet */
  assert_int_equal(fcntl(other, OFD_SETLK, &whole), 0);
  assert_int_equal(esp_file_replace(in_folder("a.txt"), "x", 1), ESP_OK);
  assert_int_equal(count_entries(name), 2); /* somebody holds it */
  close(other);
  assert_int_equal(esp_file_replace(in_folder("b.txt"), "x", 1), ESP_OK);
  assert_int_equal(count_entries(name), 3); /* not b.txt's */
  assert_int_equal(esp_file_replace(in_folder("a.txt"), "y", 1), ESP_OK);
  assert_int_equal(count_entries(name), 2);

  leave_half_written(in_folder("c.txt"));
  put(in_folder(".notes.tmp"), "a user's");
  esp_folder_clean(folder);
  assert_int_equal(count_entries(name), 3);
  assert_holds(in_folder(".notes.tmp"), "a user's");
}

/* A link that somebody planted under every name there could be is out of reach; what has such a name and is a link or a
 * FIFO is neither followed nor waited for. */
static void planted_links_are_not_followed(void **state) {
  (void)state;
  char name[256];
  put(in_folder("victim"), "safe");
  assert_int_equal(symlink("victim", in_folder(".a.txt.0123456789abcdef.tmp")), 0);
  assert_int_equal(mkfifo(in_folder(".a.txt.0123456789abcdee.tmp"), 0600), 0);
  assert_int_equal(esp_file_replace(in_folder("a.txt"), "x", 1), ESP_OK);
  esp_folder_clean(folder);
  assert_holds(in_folder("victim"), "safe");
  assert_int_equal(count_entries(name), 4);
}

static void a_folder_is_tried_without_a_trace(void **state) {
  (void)state;
  char name[256];
  assert_int_equal(esp_folder_try(folder), ESP_OK);
  assert_int_equal(count_entries(name), 0);
  expect(esp_folder_try(in_folder("none")), ESP_ERR_IO, "No such file");
  assert_int_equal(esp_file_delete(in_folder("none")), ESP_OK);
  expect(esp_file_delete(folder), ESP_ERR_IO, "cannot be deleted");
}

/* --- reading ------------------------------------------------------------------------------------------------ */

static void only_regular_files_are_read(void **state) {
  (void)state;
  int descriptor;
  char *text;
  size_t length;
  assert_int_equal(mkfifo(in_folder("fifo"), 0600), 0);
  expect(esp_input_open(&descriptor, in_folder("fifo"), "a plan"), ESP_ERR_USAGE, "is a FIFO; expected a plan");
  expect(esp_input_check("/dev/zero", "a plan"), ESP_ERR_USAGE, "is a device");
  expect(esp_input_check(folder, "a plan"), ESP_ERR_USAGE, "is a folder");
  expect(esp_input_check(in_folder("none"), "a plan"), ESP_ERR_NOT_FOUND, "cannot be opened: No such file");
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  snprintf(address.sun_path, sizeof address.sun_path, "%s", in_folder("socket"));
  const int listener = socket(AF_UNIX, SOCK_STREAM, 0);
  assert_int_equal(bind(listener, (const struct sockaddr *)&address, sizeof address), 0);
  expect(esp_input_read(&text, &length, in_folder("socket"), "a plan", 10), ESP_ERR_USAGE, "is a socket");
  close(listener);
}

static void a_file_is_read_up_to_a_limit(void **state) {
  (void)state;
  char *text;
  size_t length;
  expect(esp_input_read(&text, &length, in_folder("none"), "a plan", 4), ESP_ERR_NOT_FOUND, "none: cannot be opened");
  put(in_folder("a.txt"), "12345");
  expect(esp_input_read(&text, &length, in_folder("a.txt"), "a plan", 4), ESP_ERR_CONFIG, "is larger than 4 bytes");
  assert_null(text);
  assert_int_equal(esp_input_read(&text, &length, in_folder("a.txt"), "a plan", 5), ESP_OK);
  assert_string_equal(text, "12345");
  esp_free(text);
}

/* --- texts --------------------------------------------------------------------------------------------------- */

static void utf8_is_told_from_other_bytes(void **state) {
  (void)state;
  const char *const good[] = {"", "abc", "\xc3\xa4", "\xe2\x82\xac", "\xf0\x9f\x8c\xb3", "\xf4\x8f\xbf\xbf"};
  const char *const bad[] = {
      "\xe4", "a\xc3", "\xc0\x80", "\xe0\x80\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xf8\x88\x80\x80\x80",
      "\x80", "\xc3(", "\xff"};
  for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) assert_true(esp_is_utf8(good[i]));
  for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) assert_false(esp_is_utf8(bad[i]));
  char cut[][8] = {"a\xc3\xa4", "a\xc3", "a\xe2\x82", "a\xf0\x9f\x8c", "a", ""};
  const char *const whole[] = {"a\xc3\xa4", "a", "a", "a", "a", ""};
  for (int i = 0; i < 6; i++) {
    esp_utf8_trim(cut[i]);
    assert_string_equal(cut[i], whole[i]);
  }
  assert_int_equal(esp_utf8_check("\xc3\xa4", "the name"), ESP_OK);
  expect(esp_utf8_check("M\xe4use", "the name"), ESP_ERR_USAGE, "the name \"M?use\" is not UTF-8");
}

/* --- folders with one writer -------------------------------------------------------------------------------- */

static void the_second_writer_is_told_who_the_first_is(void **state) {
  (void)state;
  esp_folder_lock *first, *second;
  char pid[40];
  assert_int_equal(esp_folder_lock_take(&first, folder, "pretrain"), ESP_OK);
  assert_string_equal(esp_folder_lock_note(first), "");
  expect(esp_folder_lock_take(&second, folder, "prune"), ESP_ERR_BUSY, "(pretrain) on ");
  assert_null(second);
  snprintf(pid, sizeof pid, "process %ld ", (long)getpid());
  assert_non_null(strstr(esp_error_message(), pid));
  assert_non_null(strstr(esp_error_message(), " since 20"));
  esp_folder_lock_free(first);
  assert_int_equal(esp_folder_lock_take(&second, folder, "prune"), ESP_OK);
  esp_folder_lock_free(second);
  expect(esp_folder_lock_take(&second, in_folder("none"), "prune"), ESP_ERR_IO, "cannot be locked");
}

static void a_lock_ends_with_its_process(void **state) {
  (void)state;
  int pipe_ends[2], status;
  char ready;
  assert_int_equal(pipe(pipe_ends), 0);
  const pid_t child = fork();
  if (child == 0) {
    esp_folder_lock *lock;
    if (esp_folder_lock_take(&lock, folder, "compress") != ESP_OK || write(pipe_ends[1], "x", 1) != 1) _exit(1);
    for (;;) pause();
  }
  assert_int_equal(read(pipe_ends[0], &ready, 1), 1);
  esp_folder_lock *lock;
  expect(esp_folder_lock_take(&lock, folder, "prune"), ESP_ERR_BUSY, "(compress)");
  kill(child, SIGKILL);
  waitpid(child, &status, 0);
  leave_half_written(in_folder("last.h5"));
  assert_int_equal(esp_folder_lock_take(&lock, folder, "prune"), ESP_OK);
  char name[256];
  assert_int_equal(count_entries(name), 1); /* the lock; what was half-written is gone */
  esp_folder_lock_free(lock);
  close(pipe_ends[0]);
  close(pipe_ends[1]);
}

static void a_lock_file_that_lies_is_harmless(void **state) {
  (void)state;
  esp_folder_lock *lock, *second;
  assert_int_equal(esp_folder_lock_take(&lock, folder, "prune"), ESP_OK);
  put(in_folder(ESP_LOCK_NAME), "\033[2Jevil\nmore");
  expect(esp_folder_lock_take(&second, folder, "prune"), ESP_ERR_BUSY, "written by ?[2Jevil;");
  esp_folder_lock_free(lock);
  assert_int_equal(unlink(in_folder(ESP_LOCK_NAME)), 0);
  put(in_folder("victim"), "safe");
  assert_int_equal(symlink("victim", in_folder(ESP_LOCK_NAME)), 0);
  expect(esp_folder_lock_take(&lock, folder, "prune"), ESP_ERR_IO, "cannot be locked");
  assert_holds(in_folder("victim"), "safe");
}

#define IN_FOLDER(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)

int main(void) {
  const struct CMUnitTest tests[] = {
      IN_FOLDER(a_file_is_made_and_replaced_whole),
      IN_FOLDER(a_name_of_the_longest_kind_can_be_replaced),
      IN_FOLDER(a_failed_write_leaves_the_old_file_and_nothing_else),
      IN_FOLDER(only_regular_files_are_replaced),
      IN_FOLDER(what_the_dead_left_goes_and_what_the_living_write_stays),
      IN_FOLDER(planted_links_are_not_followed),
      IN_FOLDER(a_folder_is_tried_without_a_trace),
      IN_FOLDER(only_regular_files_are_read),
      IN_FOLDER(a_file_is_read_up_to_a_limit),
      cmocka_unit_test(utf8_is_told_from_other_bytes),
      IN_FOLDER(the_second_writer_is_told_who_the_first_is),
      IN_FOLDER(a_lock_ends_with_its_process),
      IN_FOLDER(a_lock_file_that_lies_is_harmless),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
