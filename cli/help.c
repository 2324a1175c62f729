/* How help is printed: within WIDTH columns, names in a column of their own. */
#include "arguments_internal.h"

#include <string.h>

enum { WIDTH = 96, TEXT_COLUMN = 26 };

/* How a text is broken into lines. */
typedef struct wrapping {
  int indent;         /* of all lines but the first */
  bool keeps_options; /* together with their values */
  const char *broken; /* stands where a line was broken */
} wrapping;

/* Letters up to where a line may end. */
static size_t piece(const char *text, const char *end, bool keeps_options) {
  const char *at = text;
  for (;; at++) {
    while (at < end && *at != ' ') at++;
    if (!keeps_options || at == end || at[1] == '-' || at[1] == '[') return (size_t)(at - text);
  }
}

/* Prints `text` from `column` on. */
static void print_wrapped(FILE *file, const char *text, size_t length, int column, const wrapping *w) {
  const char *end = text + length;
  for (bool starts = true; text < end; starts = false) { /* the line: nothing stands on it yet */
    const int letters = (int)piece(text, end, w->keeps_options);
    if (!starts && column + 1 + letters > WIDTH - (int)strlen(w->broken)) {
      fprintf(file, "%s\n%*s", w->broken, w->indent, "");
      column = w->indent;
      starts = true;
    }
    column += fprintf(file, "%s%.*s", starts ? "" : " ", letters, text);
    text += letters + 1;
  }
  fputc('\n', file);
}

static void print_named(FILE *file, const char *name, int name_length, const char *text, size_t length) {
  int column = fprintf(file, "  %.*s", name_length, name);
  if (column + 1 >= TEXT_COLUMN) fputc('\n', file), column = 0;
  fprintf(file, "%*s", TEXT_COLUMN - column, "");
  print_wrapped(file, text, length, TEXT_COLUMN, &(wrapping){.indent = TEXT_COLUMN, .broken = ""});
}

void print_row(FILE *file, const char *name, const char *text) {
  print_named(file, name, (int)strlen(name), text, strlen(text));
}

/* A paragraph, or NAME, a tab and what it is. */
static void print_detail(const char *line, size_t length) {
  const char *tab = memchr(line, '\t', length);
  if (tab) print_named(stdout, line, (int)(tab - line), tab + 1, length - (size_t)(tab + 1 - line));
  else print_wrapped(stdout, line, length, 0, &(wrapping){.broken = ""});
}

/* An empty line stands between paragraphs, and around a run of rows. */
static void print_details(const char *text) {
  bool was_row = true;
  for (const char *line = text; *line;) {
    const size_t length = strcspn(line, "\n");
    const bool is_row = memchr(line, '\t', length);
    if (line != text && !(is_row && was_row)) putchar('\n');
    print_detail(line, length);
    was_row = is_row;
    line += length + (line[length] == '\n');
  }
}

/* Each line goes behind the program's name. */
static void print_commands(const char *first, const char *next, const char *text, const wrapping *w) {
  for (const char *line = text; *line;) {
    const size_t length = strcspn(line, "\n");
    const int column = printf("%sespalier ", line == text ? first : next);
    print_wrapped(stdout, line, length, column, w);
    line += length + (line[length] == '\n');
  }
}

static void print_option(const command_option *taken) {
  char left[40];
  const program_option *o = find_option(taken->name, strlen(taken->name));
  snprintf(left, sizeof left, "%s%s%s", o->name, o->value ? " " : "", o->value ? o->value : "");
  print_row(stdout, left, taken->help ? taken->help : o->help);
}

void print_help(const command *c) {
  const int indent = (int)strlen("usage: espalier ") + (int)strlen(c->name) + 1;
  print_commands("usage: ", "       ", c->usage, &(wrapping){indent, true, ""});
  printf("\n%s.\n\n", c->summary);
  print_details(c->details);
  puts("\nOptions:");
  for (const command_option *o = c->options; o->name; o++) print_option(o);
  for (const command_option *o = common_options; o->name; o++) print_option(o);
  puts("\nExample:");
  print_commands("  ", "  ", c->example, &(wrapping){4, true, " \\"});
}
