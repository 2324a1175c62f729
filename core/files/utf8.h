/* Texts that go into JSON, YAML and HDF5 are UTF-8. */
#ifndef ESPALIER_UTF8_H
#define ESPALIER_UTF8_H

#include <espalier/status.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The code point at the start of a text, and how many bytes it has; 0 if they are not UTF-8. */
ESP_API size_t esp_utf8_character(const char *text, uint32_t *code);

/* Whether the text is UTF-8 as RFC 3629 has it: no overlong forms, no surrogates, nothing beyond U+10FFFF. */
ESP_API bool esp_is_utf8(const char *text);

/* ESP_ERR_USAGE if it is not; `what` begins the message, which shows the text with ? for what is not ASCII. */
ESP_API esp_status esp_utf8_check(const char *text, const char *what) ESP_MUST_CHECK;

/* Cuts off the beginning of a character that a text which was cut to a size ends with. */
ESP_API void esp_utf8_trim(char *text);

#ifdef __cplusplus
}
#endif
#endif
