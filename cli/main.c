/* The program: finds the command, sets threads, runs it. Only the files of this folder print and exit. */
#include "commands_internal.h"

#include <espalier/core.h>

#include <errno.h>
#include <stdio.h>
#include <string.h>

static const command *const commands[] = {
    &pretrain_command, &finetune_command, &evaluate_command, &measure_command, &compare_command,
    &prune_command,    &overlap_command,  &skip_command,     &sweep_command,   &merge_command,
    &compress_command, &upcycle_command,  &inspect_command,  &data_command,    &bench_command,
};
enum { COMMAND_COUNT = sizeof commands / sizeof commands[0] };

static void print_overview(FILE *file) {
  fputs("Espalier trains sparse mixtures of experts and of neuron experts, measures them, and prunes them.\n\n"
        "usage: espalier COMMAND ...\n\n",
        file);
  for (int i = 0; i < COMMAND_COUNT; i++) print_row(file, commands[i]->name, commands[i]->summary);
  fputs("\n`espalier COMMAND --help` explains each. Exit codes: 0 done, 1 failed, 2 wrong usage.\n", file);
}

static int unknown_command(const char *name) {
  const char *names[COMMAND_COUNT];
  for (int i = 0; i < COMMAND_COUNT; i++) names[i] = commands[i]->name;
  return report_failure(esp_fail_unknown(ESP_ERR_USAGE, "command", name, names, COMMAND_COUNT));
}

static void warn_unsealed(const char *path) {
  fprintf(stderr, "espalier: warning: %s has no seal: another program has changed it, or it is cut short\n",
          esp_shown(path));
}

static int run(const command *c, int argc, char **argv) {
  arguments a;
  long long threads = 0;
  esp_status status = parse_arguments(c, argc, argv, &a);
  if (status == ESP_OK && a.help) {
    print_help(c);
    return EXIT_DONE;
  }
  if (status == ESP_OK) status = whole_number("--threads", a.threads, 1, MOST_THREADS, 0, &threads);
  esp_threads_set((int)threads);
  if (status == ESP_OK) status = check_threads();
  if (status != ESP_OK) return report_failure(status);
  if (a.unsealed) esp_checkpoint_accept_unsealed(warn_unsealed);
  return c->run(&a);
}

/* What was printed may still be on its way, to a full disk say. */
static int end_output(int code) {
  if (fflush(stdout) == 0 && !ferror(stdout)) return code;
  return report_failure(esp_fail(ESP_ERR_IO, "standard output cannot be written: %s", strerror(errno)));
}

static int dispatch(int argc, char **argv) {
  if (argc < 2) {
    print_overview(stderr);
    return EXIT_USAGE;
  }
  if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 || strcmp(argv[1], "help") == 0) {
    print_overview(stdout);
    return EXIT_DONE;
  }
  if (strcmp(argv[1], "--version") == 0) {
    printf("espalier %s\n", esp_version());
    return EXIT_DONE;
  }
  for (int i = 0; i < COMMAND_COUNT; i++)
    if (strcmp(argv[1], commands[i]->name) == 0) return run(commands[i], argc, argv);
  return unknown_command(argv[1]);
}

int main(int argc, char **argv) {
  prepare_process(argv);
  return end_output(dispatch(argc, argv));
}
