#include <espalier/status.h>

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MESSAGE_SIZE = 2048, LONGEST_WORD = 63 };

static _Thread_local char message[MESSAGE_SIZE];

const char *esp_version(void) { return ESP_VERSION; }

const char *esp_status_text(esp_status status) {
  switch (status) {
#define STATUS_CASE(code, value, text) \
  case code:                           \
    return text;
    ESP_STATUS_LIST(STATUS_CASE)
#undef STATUS_CASE
  }
  return "unknown status";
}

esp_status esp_fail(esp_status status, const char *format, ...) {
  char text[MESSAGE_SIZE];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  memcpy(message, text, sizeof message);
  return status;
}

esp_status esp_fail_in(esp_status status, const char *format, ...) {
  char text[MESSAGE_SIZE];
  va_list arguments;
  va_start(arguments, format);
  const int length = vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  size_t used = length < 0 ? 0 : (size_t)length < sizeof text ? (size_t)length : sizeof text - 1;
  const char *parts[] = {": ", message};
  for (int i = 0; i < 2; i++)
    for (const char *c = parts[i]; *c && used + 1 < sizeof text; c++) text[used++] = *c;
  text[used] = '\0';
  memcpy(message, text, sizeof message);
  return status;
}

const char *esp_error_message(void) { return message; }

void esp_panic(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  fputs("espalier: ", stderr);
  vfprintf(stderr, format, arguments);
  fputc('\n', stderr);
  va_end(arguments);
  abort();
}

/* Levenshtein distance of two words of at most LONGEST_WORD letters, row by row. */
static size_t edit_distance(const char *a, const char *b) {
  size_t row[LONGEST_WORD + 1];
  const size_t b_length = strlen(b);
  for (size_t j = 0; j <= b_length; j++) row[j] = j;
  for (size_t i = 1; a[i - 1]; i++) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b_length; j++) {
      const size_t above = row[j];
      size_t best = diagonal + (a[i - 1] != b[j - 1]);
      if (above + 1 < best) best = above + 1;
      if (row[j - 1] + 1 < best) best = row[j - 1] + 1;
      row[j] = best;
      diagonal = above;
    }
  }
  return row[b_length];
}

const char *esp_nearest(const char *word, const char *const *names, size_t count) {
  const char *nearest = NULL;
  const size_t length = strlen(word);
  if (length > LONGEST_WORD) return NULL;
  size_t least = length / 2 + 2; /* more edits than this is another word */
  for (size_t i = 0; i < count; i++) {
    if (strlen(names[i]) > LONGEST_WORD) continue;
    const size_t distance = edit_distance(word, names[i]);
    if (distance < least) {
      least = distance;
      nearest = names[i];
    }
  }
  return nearest;
}

esp_status esp_suggest(esp_status status, const char *name) {
  return name ? esp_fail(status, "%s; did you mean \"%s\"?", message, name) : status;
}

esp_status esp_fail_unknown(esp_status status, const char *kind, const char *word, const char *const *names,
                            size_t count) {
  const char *near = esp_nearest(word, names, count);
  (void)esp_fail(status, "there is no %s \"%.100s\"", kind, word);
  if (near) return esp_suggest(status, near);
  for (size_t i = 0; i < count; i++)
    (void)esp_fail(status, "%s%s%s", message, i ? i + 1 < count ? ", " : " and " : "; there are ", names[i]);
  return status;
}

esp_status esp_find_name(int *index, const char *kind, const char *word, const char *const *names, size_t count) {
  for (size_t i = 0; i < count; i++)
    if (strcmp(word, names[i]) == 0) {
      *index = (int)i;
      return ESP_OK;
    }
  return esp_fail_unknown(ESP_ERR_USAGE, kind, word, names, count);
}
