#include "dataset_internal.h"

#include <espalier/output_file.h>
#include <espalier/preview.h>
#include <png.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { GAP = 2, SHOWN_SIDE = 64, MOST_CELLS = 1000 };

typedef struct contact_sheet {
  uint8_t *bytes; /* [height, width, planes] */
  int64_t height, width;
  int planes; /* 1: grey, 3: RGB */
  int zoom;   /* pixels of the sheet to a side of a pixel of an image */
} contact_sheet;

/* How values become bytes: (value - low) / (high - low) * 255. */
typedef struct tone_range {
  float low[ESP_MAX_CHANNELS], high[ESP_MAX_CHANNELS];
} tone_range;

/* Float images have no fixed range: two deviations around the mean are shown. */
static tone_range make_tone(const esp_dataset *dataset, const esp_normalisation *normalisation) {
  tone_range t;
  for (int c = 0; c < ESP_MAX_CHANNELS; c++) {
    const bool floats = dataset->splits[ESP_TRAIN].floats != NULL;
    t.low[c] = floats ? normalisation->mean[c] - 2.0f * normalisation->deviation[c] : 0.0f;
    t.high[c] = floats ? normalisation->mean[c] + 2.0f * normalisation->deviation[c] : 1.0f;
  }
  return t;
}

static uint8_t to_byte(float value, float low, float high) {
  const float share = (value - low) / (high - low);
  return share >= 1.0f ? 255 : share > 0.0f ? (uint8_t)(share * 255.0f + 0.5f) : 0;
}

static void place(contact_sheet *sheet, const esp_dataset_info *info, const tone_range *tone, int64_t row,
                  int64_t column, const float *image) {
  const int64_t top = GAP + row * (info->height * (int64_t)sheet->zoom + GAP);
  const int64_t left = GAP + column * (info->width * (int64_t)sheet->zoom + GAP);
  for (int64_t y = 0; y < (int64_t)info->height * sheet->zoom; y++)
    for (int64_t x = 0; x < (int64_t)info->width * sheet->zoom; x++) {
      const float *const pixel = image + (y / sheet->zoom * info->width + x / sheet->zoom) * info->channels;
      uint8_t *const out = sheet->bytes + ((top + y) * sheet->width + left + x) * sheet->planes;
      for (int c = 0; c < sheet->planes; c++) out[c] = to_byte(pixel[c], tone->low[c], tone->high[c]);
    }
}

/* The next image of a class from `start` on, or -1. */
static int64_t next_of_class(const esp_dataset *dataset, esp_split_name split, int64_t label, int64_t start) {
  for (int64_t i = start; i < dataset->info.count[split]; i++)
    if (esp_dataset_label(dataset, split, i) == label) return i;
  return -1;
}

typedef struct request {
  const esp_dataset *dataset;
  esp_split_name split;
  esp_preview_options options;
  esp_normalisation normalisation;
  tone_range tone;
} request;

/* The image in [0, 1] as it is, or augmented and its normalisation undone. */
static void take_image(const request *r, int64_t index, uint64_t position, float *image) {
  if (!r->options.augmentation) {
    esp_dataset_image(r->dataset, r->split, index, image);
    return;
  }
  const int channels = r->dataset->info.channels;
  const int64_t size = esp_dataset_image_size(r->dataset);
  esp_augment_image(r->dataset, r->split, index,
                    &(esp_augment_options){.normalisation = &r->normalisation,
                                           .augmentation = r->options.augmentation,
                                           .seed = r->options.seed,
                                           .epoch = position,
                                           .position = position},
                    image);
  for (int64_t i = 0; i < size; i++)
    image[i] = image[i] * r->normalisation.deviation[i % channels] + r->normalisation.mean[i % channels];
}

static void fill_row(const request *r, contact_sheet *sheet, int64_t row, float *image) {
  const int64_t label = row % r->dataset->info.classes;
  int64_t skipped = r->options.augmentation ? 0 : row / r->dataset->info.classes * r->options.columns;
  int64_t index = next_of_class(r->dataset, r->split, label, 0);
  for (; skipped > 0 && index >= 0; skipped--) index = next_of_class(r->dataset, r->split, label, index + 1);
  for (int64_t column = 0; column < r->options.columns && index >= 0; column++) {
    take_image(r, index, (uint64_t)(row * r->options.columns + column), image);
    place(sheet, &r->dataset->info, &r->tone, row, column, image);
    if (!r->options.augmentation) index = next_of_class(r->dataset, r->split, label, index + 1);
  }
}

static esp_status make_sheet(const request *r, contact_sheet *sheet) {
  const esp_dataset_info *const info = &r->dataset->info;
  const int side = info->height > info->width ? info->height : info->width;
  sheet->zoom = side < SHOWN_SIDE ? SHOWN_SIDE / side : 1;
  sheet->planes = info->channels == 3 ? 3 : 1;
  sheet->height = GAP + r->options.rows * (info->height * (int64_t)sheet->zoom + GAP);
  sheet->width = GAP + r->options.columns * (info->width * (int64_t)sheet->zoom + GAP);
  sheet->bytes = esp_alloc((size_t)sheet->height, (size_t)(sheet->width * sheet->planes));
  if (!sheet->bytes) return ESP_ERR_MEMORY;
  memset(sheet->bytes, 255, (size_t)(sheet->height * sheet->width * sheet->planes));
  float *const image = esp_alloc((size_t)esp_dataset_image_size(r->dataset), sizeof *image);
  if (!image) return ESP_ERR_MEMORY;
  for (int64_t row = 0; row < r->options.rows; row++) fill_row(r, sheet, row, image);
  esp_free(image);
  return ESP_OK;
}

static esp_status write_png(const contact_sheet *sheet, FILE *file, const char *path) {
  png_image png = {.version = PNG_IMAGE_VERSION,
                   .width = (png_uint_32)sheet->width,
                   .height = (png_uint_32)sheet->height,
                   .format = sheet->planes == 3 ? PNG_FORMAT_RGB : PNG_FORMAT_GRAY};
  if (png_image_write_to_stdio(&png, file, 0, sheet->bytes, 0, NULL)) return ESP_OK;
  return esp_fail(ESP_ERR_MEMORY, "%s cannot be written: %s", path, png.message);
}

/* Made in memory first: the file appears whole or not at all. */
static esp_status write_file(const contact_sheet *sheet, const char *path) {
  char *bytes = NULL;
  size_t size;
  FILE *const file = open_memstream(&bytes, &size);
  esp_status status = file ? write_png(sheet, file, path) : ESP_ERR_MEMORY;
  const bool closed = file && fclose(file) == 0;
  if (!file || (status == ESP_OK && !closed))
    status = esp_fail(ESP_ERR_MEMORY, "%s cannot be written: out of memory", path);
  if (status == ESP_OK) status = esp_file_replace(path, bytes, size);
  free(bytes);
  return status;
}

esp_status esp_preview_write(const esp_dataset *dataset, esp_split_name split, const esp_preview_options *options,
                             const char *png_path) {
  const esp_augmentation *augmentation = options->augmentation;
  if (options->columns < 1 || options->rows < 1 || options->columns > MOST_CELLS || options->rows > MOST_CELLS)
    return esp_fail(ESP_ERR_USAGE, "a sheet of %lld columns and %lld rows; expected 1 to %d of each",
                    (long long)options->columns, (long long)options->rows, MOST_CELLS);
  request r = {.dataset = dataset, .split = split, .options = *options};
  if (augmentation) ESP_TRY(esp_augmentation_check(augmentation, dataset->info.height, dataset->info.width));
  esp_dataset_normalisation(dataset, &r.normalisation);
  r.tone = make_tone(dataset, &r.normalisation);
  contact_sheet made = {0};
  esp_status status = make_sheet(&r, &made);
  if (status == ESP_OK) status = write_file(&made, png_path);
  esp_free(made.bytes);
  return status;
}
