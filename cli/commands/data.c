/* data list, data info, data preview. */
#include "commands_internal.h"

#include <espalier/data.h>
#include <espalier/escape.h>
#include <espalier/output_file.h>

#include <stdio.h>
#include <string.h>

enum { PREVIEW_COLUMNS = 12, PREVIEW_MOST_ROWS = 20 };

static int list_data(const arguments *a) {
  const esp_dataset_kind *kinds;
  const size_t count = esp_dataset_list(&kinds);
  json_t *list = json_array();
  for (size_t i = 0; i < count; i++) {
    const esp_dataset_kind *k = &kinds[i];
    json_array_append_new(list, json_pack("{s:s, s:s, s:s?, s:s?, s:s?}", "name", k->name, "summary", k->summary,
                                          "path", k->path_form, "places", k->places, "advice", k->advice));
    if (a->json) continue;
    printf("%s\n  %s\n", k->name, k->summary);
    if (k->path_form && *k->path_form) printf("  PATH is %s\n", k->path_form);
    if (k->places) printf("  without PATH looked for in %s\n", k->places);
    if (k->advice && *k->advice) printf("  %s\n", k->advice);
  }
  if (a->json) return print_json(json_pack("{s:o}", "datasets", list));
  json_decref(list);
  return EXIT_DONE;
}

static json_t *info_json(const esp_dataset_info *info) {
  json_t *names = json_array();
  for (int i = 0; info->class_names && i < info->classes; i++)
    json_array_append_new(names, json_string(info->class_names[i]));
  return json_pack("{s:s, s:s, s:i, s:I, s:I, s:I, s:b, s:f, s:[iii], s:o, s:s, s:s}", "name", info->name, "source",
                   info->source, "classes", info->classes, "train", (json_int_t)info->count[ESP_TRAIN], "validation",
                   (json_int_t)info->count[ESP_VALIDATION], "test", (json_int_t)info->count[ESP_TEST], "own_validation",
                   info->own_validation, "validation_share", info->validation, "shape", info->height, info->width,
                   info->channels, "class_names", names, "digest", info->digest, "note", info->note);
}

static void print_info(const esp_dataset *dataset) {
  const esp_dataset_info *info = esp_dataset_info_of(dataset);
  esp_normalisation n;
  esp_dataset_normalisation(dataset, &n);
  printf("%s (%s)\n  %d classes, %lld training, %lld validation and %lld test images of %d x %d x %d, %s\n", info->name,
         esp_shown(info->source), info->classes, (long long)info->count[ESP_TRAIN],
         (long long)info->count[ESP_VALIDATION], (long long)info->count[ESP_TEST], info->height, info->width,
         info->channels, info->digest);
  if (info->own_validation) puts("  the validation split is the source's own");
  else printf("  held out of the training images for validation: a share of %g of each class\n", info->validation);
  for (int c = 0; c < info->channels; c++)
    printf("  channel %d: mean %.4f, standard deviation %.4f\n", c, (double)n.mean[c], (double)n.deviation[c]);
  for (int i = 0; info->class_names && i < info->classes; i++)
    printf("%s%s", i ? ", " : "  classes: ", esp_shown(info->class_names[i]));
  if (info->class_names) putchar('\n');
  if (*info->note) printf("  %s\n", info->note);
}

/* The data of the second operand, with the share held out that is asked for. */
static esp_status open_operand(esp_dataset **dataset, const arguments *a) {
  double share = ESP_VALIDATION_SHARE;
  if (a->validation) ESP_TRY(real_number("--validation", a->validation, 0, 1, &share));
  ESP_TRY(esp_dataset_open(dataset, a->operands[1]));
  return a->validation ? esp_dataset_hold_out(*dataset, share) : ESP_OK;
}

static int show_info(const arguments *a) {
  esp_dataset *dataset = NULL;
  const esp_status status = open_operand(&dataset, a);
  int code = EXIT_DONE;
  if (status != ESP_OK) code = report_failure(status);
  else if (a->json) code = print_json(info_json(esp_dataset_info_of(dataset)));
  else print_info(dataset);
  esp_dataset_close(dataset);
  return code;
}

static esp_status write_preview(const arguments *a, const esp_dataset *dataset, int *rows) {
  const esp_augmentation augmentation = {.crop_padding = 4, .flip = true};
  esp_split_name split;
  long long seed;
  ESP_TRY(parse_split(a, &split));
  ESP_TRY(whole_number("--seed", a->seed, 0, INT64_MAX, 1, &seed));
  const int classes = esp_dataset_info_of(dataset)->classes;
  *rows = classes < PREVIEW_MOST_ROWS ? classes : PREVIEW_MOST_ROWS;
  return esp_preview_write(dataset, split,
                           &(esp_preview_options){.columns = PREVIEW_COLUMNS,
                                                  .rows = *rows,
                                                  .augmentation = a->augment ? &augmentation : NULL,
                                                  .seed = (uint64_t)seed},
                           a->out);
}

static int preview(const arguments *a) {
  esp_dataset *dataset = NULL;
  int rows = 0;
  esp_status status = a->out ? open_operand(&dataset, a)
                             : esp_fail(ESP_ERR_USAGE, "--out is missing: the PNG file to write, e.g. --out sheet.png");
  if (status == ESP_OK) status = esp_output_check(a->out);
  if (status == ESP_OK) status = write_preview(a, dataset, &rows);
  esp_dataset_close(dataset);
  if (status != ESP_OK) return report_failure(status);
  if (a->json)
    return print_json(json_pack("{s:s, s:i, s:i}", "file", a->out, "rows", rows, "columns", PREVIEW_COLUMNS));
  printf("%s: %d classes, a row each, %d images a row\n", esp_shown(a->out), rows, PREVIEW_COLUMNS);
  return EXIT_DONE;
}

static int run_data(const arguments *a) {
  const char *action = a->operands[0];
  if (strcmp(action, "preview") != 0 &&
      refuse_options(a, "--out --split --augment --seed", "it belongs to `espalier data preview`") != ESP_OK)
    return report_failure(ESP_ERR_USAGE);
  if (strcmp(action, "list") == 0 && a->operand_count == 1) return list_data(a);
  if (strcmp(action, "info") == 0 && a->operand_count == 2) return show_info(a);
  if (strcmp(action, "preview") == 0 && a->operand_count == 2) return preview(a);
  (void)esp_fail(ESP_ERR_USAGE,
                 "usage: espalier data list | espalier data info DATA | espalier data preview DATA --out FILE.png");
  return report_failure(ESP_ERR_USAGE);
}

/* --- help ------------------------------------------------------------------------------------------------------ */

static const command_option options[] = {
    {"--out", "of preview: the PNG file to write"},
    {"--validation", "share of the training images that is held out (default 0.05)"},
    {"--split", "of preview: test (default), validation or train"},
    {"--augment", "of preview: shows images as training sees them: shifted and mirrored"},
    {"--seed", "of preview: what --augment does (default 1)"},
    {NULL, NULL},
};

const command data_command = {
    .name = "data",
    .usage = "data list\n"
             "data info DATA [--validation SHARE]\n"
             "data preview DATA --out FILE.png [--split SPLIT] [--augment]",
    .summary = "Data sets: which there are, and what is in them",
    .details =
        "DATA is synthetic, NAME or NAME:PATH, as `data list` shows them. A preview is a contact sheet: a row of "
        "images for each class.",
    .example = "data list\n"
               "data preview synthetic --out sheet.png",
    .options = options,
    .least_operands = 1,
    .most_operands = 2,
    .run = run_data,
};
