#include <espalier/escape.h>
#include <espalier/utf8.h>

#include <string.h>

enum { SHOWN_SIZE = 8192, SHOWN_BUFFERS = 8, LONGEST_ESCAPE = 16 };

/* Control characters (C0, DEL, C1), line and paragraph separators, and marks of direction (Unicode's Bidi_Control). */
static bool does_something(uint32_t code) {
  return code < 0x20 || (code >= 0x7f && code <= 0x9f) || code == 0x61c || code == 0x200e || code == 0x200f ||
         (code >= 0x2028 && code <= 0x202e) || (code >= 0x2066 && code <= 0x2069);
}

/* Writes the next character of `text` as it may be shown, and returns how many bytes of it that was. */
static size_t show_character(const char *text, char shown[LONGEST_ESCAPE + 1]) {
  uint32_t code;
  const size_t length = esp_utf8_character(text, &code);
  if (length && !does_something(code)) {
    memcpy(shown, text, length);
    shown[length] = '\0';
    return length;
  }
  size_t used = 0;
  const size_t bytes = length ? length : 1;
  for (size_t i = 0; i < bytes; i++)
    used += (size_t)snprintf(shown + used, LONGEST_ESCAPE + 1 - used, "\\x%02x", (unsigned)(unsigned char)text[i]);
  return bytes;
}

static bool is_harmless(const char *text) {
  uint32_t code;
  size_t done = 0;
  for (size_t step; text[done]; done += step)
    if ((step = esp_utf8_character(text + done, &code)) == 0 || does_something(code)) return false;
  return done < SHOWN_SIZE - LONGEST_ESCAPE;
}

const char *esp_shown(const char *text) {
  static _Thread_local char buffers[SHOWN_BUFFERS][SHOWN_SIZE];
  static _Thread_local int turn;
  if (is_harmless(text)) return text;
  char *const shown = buffers[turn = (turn + 1) % SHOWN_BUFFERS];
  size_t used = 0;
  while (*text && used + LONGEST_ESCAPE + sizeof "..." < SHOWN_SIZE) {
    text += show_character(text, shown + used);
    used += strlen(shown + used);
  }
  memcpy(shown + used, *text ? "..." : "", *text ? sizeof "..." : 1);
  return shown;
}

static void write_quoted(FILE *file, const char *text, char quote) {
  char shown[LONGEST_ESCAPE + 1];
  fputc(quote, file);
  while (*text) {
    if (*text == quote) fputc(quote, file);
    text += show_character(text, shown);
    fputs(shown, file);
  }
  fputc(quote, file);
}

void esp_csv_text(FILE *file, const char *text) {
  if (strpbrk(text, ",\"")) write_quoted(file, text, '"');
  else fputs(esp_shown(text), file);
}

void esp_gnuplot_text(FILE *file, const char *text) { write_quoted(file, text, '\''); }
