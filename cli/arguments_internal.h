/* Command lines: one struct for all commands, one table that says which option belongs to which. */
#ifndef ESPALIER_ARGUMENTS_INTERNAL_H
#define ESPALIER_ARGUMENTS_INTERNAL_H

#include <espalier/status.h>

#include <stdio.h>

enum { MAX_OVERRIDES = 64, MAX_OPERANDS = 8, MAX_REPEATS = 32, LIST_SIZE = 4096 };

/* The values of an option that may be given several times. */
typedef struct repeated {
  const char *values[MAX_REPEATS];
  int count;
} repeated;

typedef struct arguments {
  const char *operands[MAX_OPERANDS];
  int operand_count;
  const char *data, *out, *reference, *criterion, *mode, *split, *new_head, *trace, *replay, *logits, *teacher;
  const char *method, *similarity, *align, *average, *groups, *capacity; /* of a merge */
  const char *gates, *budget, *exclude, *loss, *plan, *validation;
  repeated data_sets, criteria; /* every --data and --criterion; the last ones are `data` and `criterion` too */
  const char *seeds, *variants, *layers;
  bool sparsify, flip;
  const char *config;                              /* of a finetuning: a file */
  repeated calibrate_on;                           /* of a sweep */
  const char *beta;                                /* of skip: a number */
  const char *methods, *modes, *ratios, *finetune; /* lists and a number of a sweep */
  const char *overrides[MAX_OVERRIDES];
  size_t override_count;
  const char *drop, *ratio, *below, *calibration, *floor, *threads, *seed, *limit, *noise,
      *rounds; /* numbers, checked by whole_number() and real_number() */
  bool json, quiet, help, resume, augment, parameters, overwrite, ranks, keep, distil, unsealed;
  const char *rank, *share; /* of compress: numbers */
  bool zero_shot;           /* likewise */
} arguments;

/* An option of the program. */
typedef struct program_option {
  const char *name, *value, *help; /* value NULL: a switch */
  size_t offset;                   /* of its member of `arguments` */
} program_option;

/* An option that a command takes. */
typedef struct command_option {
  const char *name;
  const char *help; /* NULL: what the table of options says */
} command_option;

/* A command of the program. A line of its texts may be of any length: it is wrapped where it is printed. */
typedef struct command {
  const char *name;
  const char *usage;             /* a form a line, without the program's name */
  const char *summary;           /* one line, without a full stop */
  const char *details;           /* a paragraph a line, or NAME, a tab and what it is */
  const char *example;           /* a command a line, without the program's name */
  const command_option *options; /* besides the common ones; one without a name ends them */
  const command_option *repeats; /* those that may be given several times here, ended likewise; NULL: none */
  int least_operands, most_operands;
  int (*run)(const arguments *a); /* returns the exit code */
} command;

/* Reads argv[2..]. Fails with ESP_ERR_USAGE for what the command does not take. */
esp_status parse_arguments(const command *c, int argc, char **argv, arguments *a);

/* The option of that name; NULL if there is none. `length`: of the name. */
const program_option *find_option(const char *name, size_t length);

/* Refuses those of the options, names with spaces between them, that are given: they would do nothing, for a reason. */
esp_status refuse_options(const arguments *a, const char *names, const char *reason);

/* Puts the option before the message of a failure that it led to. */
esp_status blame(const char *option, esp_status status);

/* Puts what to do on the command line behind a failure's message. */
esp_status advise(const char *advice, esp_status status);

/* What every command takes; one without a name ends them. */
extern const command_option common_options[];

/* help.c: prints the help of a command. */
void print_help(const command *c);

/* A name and what it is, in two columns, wrapped. */
void print_row(FILE *file, const char *name, const char *text);

/* A whole number within [least, most]; `fallback` if text is NULL. `option` is for the message. */
esp_status whole_number(const char *option, const char *text, long long least, long long most, long long fallback,
                        long long *number);

/* Cuts a list with commas between its items, "a,b,S(1,0,1)", not within parentheses. The items lie in `space`, no two
 * are the same, and there are 1 to `most`. */
esp_status read_list(const char *option, const char *text, char space[LIST_SIZE], const char **items, int most,
                     int *count);

/* ESP_ERR_USAGE: an option or a list has the same thing twice. */
esp_status fail_twice(const char *option, const char *item);

/* A finite number within [least, most]. */
esp_status real_number(const char *option, const char *text, double least, double most, double *number);

#endif
