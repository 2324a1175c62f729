#include <espalier/utf8.h>

#include <stdint.h>
#include <string.h>

/* Bytes after the first, and the least code point that needs so many; -1: no first byte. */
static int more_bytes(unsigned char first, uint32_t *least) {
  *least = first < 0x80 ? 0 : first < 0xe0 ? 0x80 : first < 0xf0 ? 0x800 : 0x10000;
  if (first < 0x80) return 0;
  if (first < 0xc0 || first > 0xf7) return -1;
  return first < 0xe0 ? 1 : first < 0xf0 ? 2 : 3;
}

size_t esp_utf8_character(const char *text, uint32_t *code) {
  const unsigned char *const bytes = (const unsigned char *)text;
  uint32_t least;
  const int more = more_bytes(bytes[0], &least);
  if (more < 0) return 0;
  *code = more ? bytes[0] & (0x3fu >> more) : bytes[0];
  for (int i = 1; i <= more; i++) {
    if ((bytes[i] & 0xc0) != 0x80) return 0;
    *code = *code << 6 | (bytes[i] & 0x3f);
  }
  const bool beyond = *code > 0x10ffff || (*code >= 0xd800 && *code <= 0xdfff);
  return *code >= least && !beyond ? (size_t)more + 1 : 0;
}

bool esp_is_utf8(const char *text) {
  uint32_t code;
  for (size_t length; *text; text += length)
    if ((length = esp_utf8_character(text, &code)) == 0) return false;
  return true;
}

esp_status esp_utf8_check(const char *text, const char *what) {
  char shown[60];
  size_t length = 0;
  if (esp_is_utf8(text)) return ESP_OK;
  for (; text[length] && length + 1 < sizeof shown; length++)
    shown[length] = text[length] >= ' ' && text[length] <= '~' ? text[length] : '?';
  shown[length] = '\0';
  return esp_fail(ESP_ERR_USAGE, "%s \"%s\" is not UTF-8, so that it could not be written into results; rename it",
                  what, shown);
}

void esp_utf8_trim(char *text) {
  uint32_t least;
  size_t end = strlen(text), start = end;
  while (start > 0 && end - start < 3 && ((unsigned char)text[start - 1] & 0xc0) == 0x80) start--;
  if (start > 0 && more_bytes((unsigned char)text[start - 1], &least) > (int)(end - start)) text[start - 1] = '\0';
}
