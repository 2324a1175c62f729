/* Texts of others (class names, names of runs and files, what a checkpoint tells of its history, messages that hold
 * such) on their way to where some bytes do something: one function a medium. JSON is jansson's, which wants UTF-8
 * (utf8.h); YAML is libyaml's. */
#ifndef ESPALIER_ESCAPE_H
#define ESPALIER_ESCAPE_H

#include <espalier/status.h>

#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Makes it fit for a terminal or a log: control characters, bytes that are not UTF-8, and the characters that turn the
 * direction of writing are written as \x1b. A text that has none of them is returned itself, others lie in one of eight
 * buffers of this thread, in turns; what is longer than 8000 bytes is cut. */
ESP_API const char *esp_shown(const char *text);

/* Makes it fit for a CSV file: in quotes if it has commas or quotes, its own doubled, with line breaks and control
 * characters as esp_shown() has them. */
ESP_API void esp_csv_text(FILE *file, const char *text);

/* Makes it fit for a gnuplot script: in single quotes, its own doubled, the rest likewise. Labels need `noenhanced`
 * besides. */
ESP_API void esp_gnuplot_text(FILE *file, const char *text);

#ifdef __cplusplus
}
#endif
#endif
