#include "dataset_internal.h"

#include <espalier/augment.h>
#include <math.h>
#include <string.h>

/* One channel after the other repeats along a row: PATTERN pixels of it let the compiler use whole
 * vectors. */
enum { PATTERN = 16, PATTERN_VALUES = PATTERN * ESP_MAX_CHANNELS };

typedef struct affine {
  float scale[PATTERN_VALUES], shift[PATTERN_VALUES]; /* out = in * scale + shift; [PATTERN, channels] */
  int period;                                         /* values in the pattern */
} affine;

static affine make_affine(const esp_normalisation *normalisation, int channels, float unit) {
  affine map = {.period = PATTERN * channels};
  for (int i = 0; i < map.period; i++) {
    const float deviation = normalisation->deviation[i % channels];
    map.scale[i] = 1.0f / (unit * deviation);
    map.shift[i] = -normalisation->mean[i % channels] / deviation;
  }
  return map;
}

/* `values` values, the first of them of channel 0. */
static void map_bytes(const affine *map, const uint8_t *in, int values, float *out) {
  for (int start = 0; start < values; start += map->period) {
    const int block = values - start < map->period ? values - start : map->period;
    for (int i = 0; i < block; i++) out[start + i] = (float)in[start + i] * map->scale[i] + map->shift[i];
  }
}

static void map_floats(const affine *map, const float *in, int values, float *out) {
  for (int start = 0; start < values; start += map->period) {
    const int block = values - start < map->period ? values - start : map->period;
    for (int i = 0; i < block; i++) out[start + i] = in[start + i] * map->scale[i] + map->shift[i];
  }
}

/* What was drawn for one image. */
typedef struct choice {
  int down, across; /* the crop's offset in the unpadded image */
  bool mirrored;
  int cut_top, cut_bottom, cut_left, cut_right; /* [top, bottom) x [left, right) is set to 0 */
} choice;

static int random_offset(esp_random *stream, int padding) {
  return (int)esp_random_below(stream, 2 * (uint32_t)padding + 1) - padding;
}

static int clamp(int value, int most) { return value < 0 ? 0 : value > most ? most : value; }

/* Which way round an image is in an epoch if its flips alternate. */
static bool alternating_flip(uint64_t seed, int64_t index, uint64_t epoch) {
  esp_random stream = esp_random_stream(seed, ESP_PURPOSE_FLIP, (uint64_t)index);
  return (esp_random_bits(&stream) >> 31) ^ (epoch & 1);
}

static choice choose(const esp_augmentation *augmentation, const esp_dataset_info *info, bool alternating,
                     esp_random *stream) {
  choice c = {0};
  if (augmentation->crop_padding > 0) {
    c.down = random_offset(stream, augmentation->crop_padding);
    c.across = random_offset(stream, augmentation->crop_padding);
  }
  if (augmentation->flip) c.mirrored = augmentation->alternate ? alternating : esp_random_bits(stream) >> 31;
  if (augmentation->cutout > 0) {
    const int side = augmentation->cutout;
    const int top = (int)esp_random_below(stream, (uint32_t)info->height) - side / 2;
    const int left = (int)esp_random_below(stream, (uint32_t)info->width) - side / 2;
    c.cut_top = clamp(top, info->height);
    c.cut_bottom = clamp(top + side, info->height);
    c.cut_left = clamp(left, info->width);
    c.cut_right = clamp(left + side, info->width);
  }
  return c;
}

static void mirror_row(float *row, int width, int channels) {
  for (int left = 0, right = width - 1; left < right; left++, right--)
    for (int c = 0; c < channels; c++) {
      const float kept = row[left * channels + c];
      row[left * channels + c] = row[right * channels + c];
      row[right * channels + c] = kept;
    }
}

static void clear(float *out, int values) { memset(out, 0, (size_t)values * sizeof *out); }

/* What lies outside [0, size) mirrored into it; the outermost pixel is not repeated. */
static int reflected(int place, int size) {
  return place < 0 ? -place : place >= size ? 2 * (size - 1) - place : place;
}

/* Fills what lies left and right of the pixels [first, end) that are there. */
static void reflect_columns(float *row, int width, int channels, int first, int end) {
  for (int x = 0; x < width; x++)
    if (x < first || x >= end)
      memcpy(row + x * channels, row + (first + reflected(x - first, end - first)) * channels,
             (size_t)channels * sizeof *row);
}

/* Row `y` of the crop. */
static void crop_row(const esp_dataset_info *info, const esp_pixels pixels, const affine *map, const choice *c,
                     bool reflect, int y, float *row) {
  const int channels = info->channels, width = info->width;
  const int source_y = reflect ? reflected(y + c->down, info->height) : y + c->down;
  if (source_y < 0 || source_y >= info->height) {
    clear(row, width * channels);
    return;
  }
  const int first = clamp(-c->across, width), end = clamp(width - c->across, width);
  const int64_t start = ((int64_t)source_y * width + first + c->across) * channels;
  clear(row, first * channels);
  if (pixels.bytes) map_bytes(map, pixels.bytes + start, (end - first) * channels, row + first * channels);
  else map_floats(map, pixels.floats + start, (end - first) * channels, row + first * channels);
  clear(row + end * channels, (width - end) * channels);
  if (reflect) reflect_columns(row, width, channels, first, end);
}

esp_status esp_augmentation_check(const esp_augmentation *augmentation, int height, int width) {
  const int side = height < width ? height : width;
  if (augmentation->crop_padding < 0 || augmentation->crop_padding >= side)
    return esp_fail(ESP_ERR_CONFIG, "crop_padding is %d; expected 0 to %d for images of %d x %d pixels",
                    augmentation->crop_padding, side - 1, height, width);
  if (augmentation->reflect && 2 * augmentation->crop_padding >= side)
    return esp_fail(ESP_ERR_CONFIG,
                    "crop_padding is %d; with reflect at most %d of these images of %d x %d pixels can be mirrored",
                    augmentation->crop_padding, (side - 1) / 2, height, width);
  if (augmentation->cutout < 0 || augmentation->cutout > side)
    return esp_fail(ESP_ERR_CONFIG, "cutout is %d; expected 0 (off) to %d for images of %d x %d pixels",
                    augmentation->cutout, side, height, width);
  if (!(augmentation->mixup >= 0.0 && augmentation->mixup <= 1e3))
    return esp_fail(ESP_ERR_CONFIG, "mixup is %g; expected 0 (off) to 1000, usually 0.1 to 1", augmentation->mixup);
  return ESP_OK;
}

void esp_augment_image(const esp_dataset *dataset, esp_split_name split, int64_t index,
                       const esp_augment_options *options, float *out) {
  static const esp_augmentation none = {0};
  const esp_dataset_info *const info = esp_dataset_info_of(dataset);
  uint8_t scratch[ESP_DRAWN_BYTES];
  const esp_pixels pixels = esp_dataset_pixels(dataset, split, index, scratch);
  const affine map = make_affine(options->normalisation, info->channels, pixels.bytes ? 255.0f : 1.0f);
  esp_random stream = esp_random_stream(options->seed, ESP_PURPOSE_AUGMENT, options->position);
  const esp_augmentation *const augmentation = options->augmentation ? options->augmentation : &none;
  const choice c = choose(augmentation, info, alternating_flip(options->seed, index, options->epoch), &stream);
  const int row_values = info->width * info->channels;
  for (int y = 0; y < info->height; y++) {
    float *const row = out + (int64_t)y * row_values;
    crop_row(info, pixels, &map, &c, augmentation->reflect, y, row);
    if (c.mirrored) mirror_row(row, info->width, info->channels);
    if (y >= c.cut_top && y < c.cut_bottom)
      clear(row + c.cut_left * info->channels, (c.cut_right - c.cut_left) * info->channels);
  }
}

/* Gamma(shape, 1) for shape >= 1 (Marsaglia and Tsang, "A simple method for generating gamma variables",
 * 2000). */
static double random_gamma(esp_random *stream, double shape) {
  const double d = shape - 1.0 / 3.0, c = 1.0 / sqrt(9.0 * d);
  for (;;) {
    const double x = esp_random_normal(stream);
    const double v = pow(1.0 + c * x, 3.0);
    if (v <= 0.0) continue;
    const double u = 1.0 - esp_random_uniform(stream);
    if (log(u) < 0.5 * x * x + d - d * v + d * log(v)) return d * v;
  }
}

/* The logarithm of Gamma(shape, 1): shapes below 1 go through shape + 1 and would underflow else. */
static double random_log_gamma(esp_random *stream, double shape) {
  if (shape >= 1.0) return log(random_gamma(stream, shape));
  const double whole = log(random_gamma(stream, shape + 1.0));
  return whole + log(1.0 - esp_random_uniform(stream)) / shape;
}

double esp_random_beta(esp_random *stream, double alpha) {
  const double a = random_log_gamma(stream, alpha), b = random_log_gamma(stream, alpha);
  return 1.0 / (1.0 + exp(b - a));
}
