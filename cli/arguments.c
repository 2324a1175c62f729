#include "arguments_internal.h"

#include <espalier/utf8.h>

#include <errno.h>
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TEXT(member) offsetof(arguments, member)

static const program_option option_table[] = {
    {"--data", "DATA", "synthetic, NAME or NAME:PATH; `espalier data list` shows the names", TEXT(data)},
    {"--out", "PATH", "a folder for what is made", TEXT(out)},
    {"--config", "FILE.yaml", "settings that go over those of the model's own training", TEXT(config)},
    {"--set", "KEY=VALUE", "overrides a setting, e.g. --set model.moe.experts=16; may be repeated", 0},
    {"--resume", NULL, "goes on with the run in --out", TEXT(resume)},
    {"--reference", "RUN|CKPT", "the model from before finetuning", TEXT(reference)},
    {"--teacher", "RUN|CKPT", "a model to distil from, as the settings distillation.* say", TEXT(teacher)},
    {"--criterion", "NAME", "how experts are scored", TEXT(criterion)},
    {"--drop", "N", "experts to drop in each mixture layer", TEXT(drop)},
    {"--ratio", "R", "the same as a share of each layer's experts, e.g. 0.5", TEXT(ratio)},
    {"--below", "P", "neurons selected in less than this share of their expert's rows, e.g. 0.01", TEXT(below)},
    {"--mode", "MODE", "zero (router kept), remove (router row gone too) or mask (kept, never chosen)", TEXT(mode)},
    {"--calibration", "N", "training images to calibrate on, drawn by --seed (default 1024)", TEXT(calibration)},
    {"--gates", "FORM", "normalised (default: over a token's chosen experts) or model (as the model uses them)",
     TEXT(gates)},
    {"--budget", "SCOPE", "layer (each loses as many) or global", TEXT(budget)},
    {"--floor", "N", "experts that every layer keeps at least", TEXT(floor)},
    {"--exclude", "PATTERNS", "layers that keep all experts, e.g. \"blocks.3.*,blocks.5.*\"", TEXT(exclude)},
    {"--loss", "FORM", "reconstruction: norm (default: one over all tokens) or batches (sum of the batches' norms)",
     TEXT(loss)},
    {"--plan", "FILE.json", "drops what a saved plan of this model says", TEXT(plan)},
    {"--beta", "B", "skips a token's second expert if its gate is below B times the first one's", TEXT(beta)},
    {"--methods", "LIST", "methods with commas between them, or all (default)", TEXT(methods)},
    {"--modes", "LIST", "modes in which criteria prune (default zero,remove)", TEXT(modes)},
    {"--ratios", "LIST", "shares of each layer's experts that go (default 0.25,0.5,0.75)", TEXT(ratios)},
    {"--seeds", "LIST", "seeds with commas between them (default 1,2,3)", TEXT(seeds)},
    {"--finetune", "EPOCHS", "finetunes each compressed model so long, too, e.g. 0.1", TEXT(finetune)},
    {"--calibrate-on", "DATA", "calibrates on other images besides, to compare; may be repeated", TEXT(calibrate_on)},
    {"--distil", NULL, "the unpruned model teaches the finetuned ones", TEXT(distil)},
    {"--keep", NULL, "keeps the compressed checkpoints", TEXT(keep)},
    {"--rank", "R", "rank of U V: compression.rank", TEXT(rank)},
    {"--share", "P", "share of S that is left: compression.keep", TEXT(share)},
    {"--zero-shot", NULL, "trains nothing: --calibration images tell which rows matter", TEXT(zero_shot)},
    {"--split", "SPLIT", "test (default), validation or train", TEXT(split)},
    {"--validation", "SHARE", "of the training images, held out (default: as the model's training did, or 0.05)",
     TEXT(validation)},
    {"--limit", "N", "looks at N images only, always the same ones, with the classes in their shares", TEXT(limit)},
    {"--noise", "S", "on the copies: normal, of S times each matrix's root mean square (default 0)", TEXT(noise)},
    {"--rounds", "N", "how often each case is measured (default 21)", TEXT(rounds)},
    {"--method", "NAME", "how experts are merged (default m-smoe)", TEXT(method)},
    {"--groups", "N", "stored experts that a mixture layer is to have left, on average", TEXT(groups)},
    {"--capacity", "N", "most experts of a group (default: any number)", TEXT(capacity)},
    {"--ranks", NULL, "stable ranks of the experts' matrices before and after, which takes a while for large ones",
     TEXT(ranks)},
    {"--similarity", "NAME", "what experts are grouped by (default router-logits)", TEXT(similarity)},
    {"--align", "HOW", "weights, activations, zip or none: instead of what the method says", TEXT(align)},
    {"--average", "HOW", "frequency, uniform or fisher: instead of what the method says", TEXT(average)},
    {"--trace", "FILE.h5", "records which experts each token was routed to", TEXT(trace)},
    {"--replay", "FILE.h5", "routes as a recorded trace says, not as the routers do", TEXT(replay)},
    {"--logits", "FILE.csv", "writes each image's logits", TEXT(logits)},
    {"--flip", NULL, "also looks at mirror images: the mean of both logits, beside the plain result", TEXT(flip)},
    {"--sparsify", NULL, "leaves out neurons of the experts, a share of them after the other", TEXT(sparsify)},
    {"--layers", "WHICH", "of --sparsify: each alone too (default), together only, or a mixture layer's number",
     TEXT(layers)},
    {"--variants", "NAME,...", "which models to compare (default: all but dense)", TEXT(variants)},
    {"--new-head", "WHEN", "auto (default: if the number of classes differs), always or never", TEXT(new_head)},
    {"--augment", NULL, "shows images as training sees them: shifted and mirrored", TEXT(augment)},
    {"--parameters", NULL, "lists every parameter with its shape", TEXT(parameters)},
    {"--overwrite", NULL, "replaces a run that is already in the output folder", TEXT(overwrite)},
    {"--seed", "N", "seeds what is random here", TEXT(seed)},
    {"--unsealed", NULL,
     "reads checkpoints and traces without a seal too, which another program has changed: trust them", TEXT(unsealed)},
    {"--threads", "N", "threads to compute with (default: all cores)", TEXT(threads)},
    {"--json", NULL, "prints one JSON object on standard output and nothing else there", TEXT(json)},
    {"--quiet", NULL, "no progress on standard error", TEXT(quiet)},
    {"--help", NULL, "this text", TEXT(help)},
};
enum { OPTION_COUNT = sizeof option_table / sizeof option_table[0] };

const command_option common_options[] = {{"--unsealed", NULL}, {"--threads", NULL}, {"--json", NULL},
                                         {"--quiet", NULL},    {"--help", NULL},    {NULL, NULL}};

static bool is_among(const command_option *list, const char *name) {
  for (; list->name; list++)
    if (strcmp(list->name, name) == 0) return true;
  return false;
}

static bool takes(const command *c, const program_option *o) {
  return is_among(common_options, o->name) || is_among(c->options, o->name);
}

static esp_status unknown(const command *c, const char *name) {
  const char *names[OPTION_COUNT];
  size_t count = 0;
  for (int i = 0; i < OPTION_COUNT; i++)
    if (takes(c, &option_table[i])) names[count++] = option_table[i].name;
  (void)esp_fail_unknown(ESP_ERR_USAGE, "option", name, names, count);
  return esp_fail_in(ESP_ERR_USAGE, "`espalier %s`", c->name);
}

const program_option *find_option(const char *name, size_t length) {
  for (int i = 0; i < OPTION_COUNT; i++)
    if (strlen(option_table[i].name) == length && strncmp(option_table[i].name, name, length) == 0)
      return &option_table[i];
  return NULL;
}

static bool is_repeatable(const command *c, const program_option *o) {
  return c->repeats && is_among(c->repeats, o->name);
}

static bool is_given(const arguments *a, const program_option *o) {
  const char *member = (const char *)a + o->offset, *value;
  if (strcmp(o->name, "--set") == 0) return a->override_count > 0;
  if (!o->value) return *(const bool *)member;
  memcpy(&value, member, sizeof value);
  return value != NULL;
}

esp_status refuse_options(const arguments *a, const char *names, const char *reason) {
  for (const char *name = names; *name; name += strspn(name, " ")) {
    const size_t length = strcspn(name, " ");
    const program_option *o = find_option(name, length);
    if (is_given(a, o)) return esp_fail(ESP_ERR_USAGE, "%s would do nothing: %s; leave it out", o->name, reason);
    name += length;
  }
  return ESP_OK;
}

esp_status blame(const char *option, esp_status status) {
  return status == ESP_OK ? ESP_OK : esp_fail_in(status, "%s", option);
}

esp_status advise(const char *advice, esp_status status) {
  return status == ESP_OK ? ESP_OK : esp_fail(status, "%s; %s", esp_error_message(), advice);
}

static esp_status add_repeated(repeated *list, const char *option_name, const char *value) {
  if (list->count == MAX_REPEATS) return esp_fail(ESP_ERR_USAGE, "more than %d %s", MAX_REPEATS, option_name);
  list->values[list->count++] = value;
  return ESP_OK;
}

static esp_status store(const command *c, arguments *a, const program_option *o, const char *value) {
  if (strcmp(o->name, "--set") != 0 && !is_repeatable(c, o) && is_given(a, o))
    return esp_fail(ESP_ERR_USAGE, "%s is given twice; leave one out", o->name);
  if (strcmp(o->name, "--data") == 0) ESP_TRY(add_repeated(&a->data_sets, o->name, value));
  if (strcmp(o->name, "--criterion") == 0) ESP_TRY(add_repeated(&a->criteria, o->name, value));
  if (o->offset == TEXT(calibrate_on)) return add_repeated(&a->calibrate_on, o->name, value);
  if (strcmp(o->name, "--set") != 0) {
    memcpy((char *)a + o->offset, &value, sizeof value);
    return ESP_OK;
  }
  if (a->override_count == MAX_OVERRIDES)
    return esp_fail(ESP_ERR_USAGE, "more than %d --set; put the settings into a file", MAX_OVERRIDES);
  a->overrides[a->override_count++] = value;
  return ESP_OK;
}

/* One option, in the form --name value or --name=value. `*index` moves past what was used. */
static esp_status parse_option(const command *c, int argc, char **argv, int *index, arguments *a) {
  const char *word = strcmp(argv[*index], "-h") == 0 ? "--help" : argv[*index], *equals = strchr(word, '=');
  const program_option *o = find_option(word, equals ? (size_t)(equals - word) : strlen(word));
  if (!o || !takes(c, o)) return unknown(c, word);
  if (!o->value) {
    if (equals) return esp_fail(ESP_ERR_USAGE, "%s is a switch and takes no value", o->name);
    *((bool *)((char *)a + o->offset)) = true;
    return ESP_OK;
  }
  if (equals) return store(c, a, o, equals + 1);
  if (*index + 1 >= argc) return esp_fail(ESP_ERR_USAGE, "%s needs a value: %s %s", o->name, o->name, o->value);
  return store(c, a, o, argv[++*index]);
}

/* All forms on one line. */
static esp_status fail_usage(const command *c) {
  char forms[1024] = "";
  size_t used = 0;
  for (const char *form = c->usage; *form;) {
    const size_t length = strcspn(form, "\n");
    used +=
        (size_t)snprintf(forms + used, sizeof forms - used, "%sespalier %.*s", used ? " | " : "", (int)length, form);
    if (used >= sizeof forms) break;
    form += length + (form[length] == '\n');
  }
  return esp_fail(ESP_ERR_USAGE, "usage: %s; see `espalier %s --help`", forms, c->name);
}

esp_status parse_arguments(const command *c, int argc, char **argv, arguments *a) {
  *a = (arguments){.operand_count = 0};
  for (int i = 2; i < argc; i++) ESP_TRY(esp_utf8_check(argv[i], "the argument")); /* results.json holds names */
  for (int i = 2; i < argc; i++) {
    if (argv[i][0] == '-' && argv[i][1]) ESP_TRY(parse_option(c, argc, argv, &i, a));
    else if (a->operand_count < c->most_operands) a->operands[a->operand_count++] = argv[i];
    else {
      (void)fail_usage(c);
      return esp_fail_in(ESP_ERR_USAGE, "`espalier %s` does not know what to do with \"%s\"", c->name, argv[i]);
    }
  }
  return a->help || a->operand_count >= c->least_operands ? ESP_OK : fail_usage(c);
}

esp_status whole_number(const char *option_name, const char *text, long long least, long long most, long long fallback,
                        long long *number) {
  *number = fallback;
  if (!text) return ESP_OK;
  char *end;
  errno = 0;
  *number = strtoll(text, &end, 10);
  if (*text && !*end && errno == 0 && *number >= least && *number <= most) return ESP_OK;
  return esp_fail(ESP_ERR_USAGE, "%s is \"%s\"; it must be a whole number from %lld to %lld", option_name, text, least,
                  most);
}

/* In place. Returns how many items, or -1 if there are too many. */
static int cut(char *text, const char **items, int most) {
  int count = 0, depth = 0;
  for (char *at = text, *item = text;; at++) {
    depth += (*at == '(') - (*at == ')');
    if (*at && (*at != ',' || depth > 0)) continue;
    const bool last = !*at;
    *at = '\0';
    if (*item && count == most) return -1;
    if (*item) items[count++] = item;
    if (last) return count;
    item = at + 1;
  }
}

esp_status fail_twice(const char *option, const char *item) {
  return esp_fail(ESP_ERR_USAGE, "%s names %s twice; leave one out", option, item);
}

esp_status read_list(const char *option_name, const char *text, char space[LIST_SIZE], const char **items, int most,
                     int *count) {
  if (strlen(text) >= LIST_SIZE)
    return esp_fail(ESP_ERR_USAGE, "%s is longer than %d letters", option_name, LIST_SIZE - 1);
  memcpy(space, text, strlen(text) + 1);
  *count = cut(space, items, most);
  for (int i = 0; i < *count; i++)
    for (int j = 0; j < i; j++)
      if (strcmp(items[i], items[j]) == 0) return fail_twice(option_name, items[i]);
  if (*count > 0) return ESP_OK;
  return esp_fail(ESP_ERR_USAGE, "%s is \"%s\"; it must be a list of 1 to %d items with commas between them",
                  option_name, text, most);
}

esp_status real_number(const char *option_name, const char *text, double least, double most, double *number) {
  char *end;
  *number = strtod(text, &end);
  if (*text && !*end && isfinite(*number) && *number >= least && *number <= most) return ESP_OK;
  return esp_fail(ESP_ERR_USAGE, "%s is \"%s\"; it must be a number from %g to %g", option_name, text, least, most);
}
