/* label: short */
/* Texts of strangers: what of them reaches a terminal, a CSV file, a gnuplot script. */
#include "testing.h"

#include <espalier/escape.h>

static void assert_shown(const char *text, const char *expected) { assert_string_equal(esp_shown(text), expected); }

static void test_terminal(void **state) {
  (void)state;
  const char *const harmless = "T-shirt/top, Schlo\xc3\x9f \xe7\x8c\xab \xf0\x9f\x90\x88 'a' \"b\" \\x1b";
  assert_ptr_equal(esp_shown(harmless), harmless);
  assert_shown("\x1b]0;owned\a cat", "\\x1b]0;owned\\x07 cat");
  assert_shown("a\nespalier: all is well\r", "a\\x0aespalier: all is well\\x0d");
  assert_shown("\x7f", "\\x7f");
  assert_shown("\xc2\x9b"
               "31m",
               "\\xc2\\x9b31m"); /* C1: the one-character form of ESC [ */
  assert_shown("abc\xe2\x80\xae"
               "cba",
               "abc\\xe2\\x80\\xae"
               "cba"); /* right to left */
}

static void test_what_is_not_utf8(void **state) {
  (void)state;
  assert_shown("\xff", "\\xff");
  assert_shown("a\xc3", "a\\xc3");                          /* cut short */
  assert_shown("\xc0\xaf", "\\xc0\\xaf");                   /* a slash in two bytes */
  assert_shown("\xed\xa0\x80", "\\xed\\xa0\\x80");          /* a surrogate */
  assert_shown("\xf4\x90\x80\x80", "\\xf4\\x90\\x80\\x80"); /* beyond Unicode */
}

static void test_long_texts_are_cut(void **state) {
  (void)state;
  static char text[100000];
  memset(text, 27, sizeof text - 1);
  const char *const shown = esp_shown(text);
  const size_t length = strlen(shown);
  assert_true(length > 8000 && length < 8192);
  assert_string_equal(shown + length - 7, "\\x1b...");
}

static void assert_written(void (*write)(FILE *file, const char *text), const char *text, const char *expected) {
  char *written = NULL;
  size_t size;
  FILE *const file = open_memstream(&written, &size);
  write(file, text);
  assert_int_equal(fclose(file), 0);
  assert_string_equal(written, expected);
  free(written);
}

static void test_csv(void **state) {
  (void)state;
  assert_written(esp_csv_text, "plain \x1b", "plain \\x1b");
  assert_written(esp_csv_text, "a,\"b\"\n\x1b[", "\"a,\"\"b\"\"\\x0a\\x1b[\"");
}

static void test_gnuplot(void **state) {
  (void)state;
  assert_written(esp_gnuplot_text, "it's `date` $x", "'it''s `date` $x'");
  assert_written(esp_gnuplot_text, "'\nsystem 'rm", "'''\\x0asystem ''rm'");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_terminal),
      cmocka_unit_test(test_what_is_not_utf8),
      cmocka_unit_test(test_long_texts_are_cut),
      cmocka_unit_test(test_csv),
      cmocka_unit_test(test_gnuplot),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
