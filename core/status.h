/* Statuses: what the world can do wrong comes back as a code, with a message that says what was found,
 * where, what was expected and what to do. What only a programmer can do wrong ends in esp_panic(). */
#ifndef ESPALIER_STATUS_H
#define ESPALIER_STATUS_H

#include <stdbool.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define ESP_API __attribute__((visibility("default")))
#define ESP_PRINTF(format_index, first_argument) __attribute__((format(printf, format_index, first_argument)))
#define ESP_MUST_CHECK __attribute__((warn_unused_result))
#else
#define ESP_API
#define ESP_PRINTF(format_index, first_argument)
#define ESP_MUST_CHECK
#endif

/* code, value, text */
#define ESP_STATUS_LIST(X)                                      \
  X(ESP_OK, 0, "done")                                          \
  X(ESP_ERR_MEMORY, -1, "out of memory")                        \
  X(ESP_ERR_IO, -2, "input or output failed")                   \
  X(ESP_ERR_FORMAT, -3, "malformed data")                       \
  X(ESP_ERR_CONFIG, -4, "invalid configuration")                \
  X(ESP_ERR_USAGE, -5, "wrong usage")                           \
  X(ESP_ERR_MISMATCH, -6, "things that do not belong together") \
  X(ESP_ERR_NOT_FOUND, -7, "not found")                         \
  X(ESP_ERR_NOT_FINITE, -8, "a value is not finite")            \
  X(ESP_ERR_INTERRUPTED, -9, "interrupted")                     \
  X(ESP_ERR_BUSY, -10, "in use by another process")

typedef enum esp_status {
#define ESP_STATUS_ENUM(code, value, text) code = value,
  ESP_STATUS_LIST(ESP_STATUS_ENUM)
#undef ESP_STATUS_ENUM
} esp_status;

/* "0.1.0". */
ESP_API const char *esp_version(void);

/* The general text of a code; never NULL. */
ESP_API const char *esp_status_text(esp_status status);

/* Records the message of this thread's newest failure and returns `status`, so that
 * `return esp_fail(ESP_ERR_IO, "...")` is the way to fail. The arguments may point into the old message. */
ESP_API esp_status esp_fail(esp_status status, const char *format, ...) ESP_PRINTF(2, 3);

/* Puts "prefix: " before this thread's newest message: says where, on the way up. Returns `status`. */
ESP_API esp_status esp_fail_in(esp_status status, const char *format, ...) ESP_PRINTF(2, 3);

/* The message of this thread's newest failure; "" if there was none. Valid until the thread's next failure. */
ESP_API const char *esp_error_message(void);

/* A programmer's mistake (shapes that do not fit, say): prints the message and aborts. */
ESP_API void esp_panic(const char *format, ...) ESP_PRINTF(1, 2) __attribute__((noreturn));

/* Returns from the enclosing function if `expression` is not ESP_OK. */
#define ESP_TRY(expression)                                \
  do {                                                     \
    const esp_status esp_try_status_ = (expression);       \
    if (esp_try_status_ != ESP_OK) return esp_try_status_; \
  } while (0)

/* ---- Names that are not known ---- */

/* The entry of `names` (count of them) nearest to `word` by edit distance, or NULL if none is near. */
ESP_API const char *esp_nearest(const char *word, const char *const *names, size_t count);

/* Adds `; did you mean "NAME"?` to this thread's newest message; nothing if `name` is NULL. Returns `status`. */
ESP_API esp_status esp_suggest(esp_status status, const char *name);

/* Fails with `there is no KIND "WORD"` and the nearest of the names or, where none is near, all of them. */
ESP_API esp_status esp_fail_unknown(esp_status status, const char *kind, const char *word, const char *const *names,
                                    size_t count);

/* Sets *index to the place of `word` among the names. ESP_ERR_USAGE, by esp_fail_unknown(), if it is none of them. */
ESP_API esp_status esp_find_name(int *index, const char *kind, const char *word, const char *const *names,
                                 size_t count) ESP_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
