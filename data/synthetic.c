/* Procedural images, 32x32 RGB. A class is a figure; place, size, tilt, colours, shading, stray lines and
 * noise are random, so that no single pixel and no colour tells the class. Integer arithmetic (and one
 * square root, which IEEE 754 rounds exactly) gives the same bytes on every machine. Lengths are in 1/256
 * of a pixel, angles in 1/64 of a turn. */
#include "dataset_internal.h"

#include <espalier/random.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { SIDE = 32, CHANNELS = 3, PIXELS = SIDE * SIDE, UNIT = 256, TURN = 64, COSINE_ONE = 16384 };
enum { BROAD_TRAIN = 20000, BROAD_TEST = 2000, NARROW_TRAIN = 5000, NARROW_TEST = 1000 };
enum { LEAST_CONTRAST = 150, SHADING = 24, MOST_LINES = 2, NOISE = 20, OPAQUE = 256 };

static const uint64_t image_seed = 0x657370616c696572u; /* part of the data set: changing it makes another one */
static const char broad_version[] = "synthetic-1", narrow_version[] = "synthetic-narrow-1";

typedef enum primitive { DISCS, RING, BOXES, TRIANGLE, STRIPES, CHECKS } primitive;

/* Sizes are in sixteenths of the figure's: a box reaches width to the left and right of x, and height above and
 * below y. */
typedef struct part {
  int8_t x, y, width, height;
} part;

enum { MOST_PARTS = 5 };

/* A row of the table of classes. */
typedef struct figure_kind {
  const char *name;
  primitive form;
  int turn, tilt;        /* turned by turn +- tilt */
  int smallest, largest; /* size (of textures: period), in quarters of a pixel */
  int radius;            /* of discs, in sixteenths of the size */
  int part_count;
  part parts[MOST_PARTS];
} figure_kind;

enum { CLASSES = 20, NARROW_FIRST = 5, NARROW_CLASSES = 5 };

/* clang-format off */
static const figure_kind figure_kinds[CLASSES] = {
    {"disc",     DISCS,    0,  0, 24, 44, 14, 1, {{0, 0, 0, 0}}},
    {"ring",     RING,     0,  0, 24, 44,  0, 0, {{0, 0, 0, 0}}},
    {"square",   BOXES,    0,  8, 24, 44,  0, 1, {{0, 0, 12, 12}}},
    {"triangle", TRIANGLE, 0, 32, 28, 48,  0, 0, {{0, 0, 0, 0}}},
    {"cross",    BOXES,    0,  8, 24, 44,  0, 2, {{0, 0, 15, 4}, {0, 0, 4, 15}}},

    {"upright stripes", STRIPES,  0, 2, 16, 32, 0, 0, {{0, 0, 0, 0}}},
    {"level stripes",   STRIPES, 16, 2, 16, 32, 0, 0, {{0, 0, 0, 0}}},
    {"rising stripes",  STRIPES,  8, 2, 16, 32, 0, 0, {{0, 0, 0, 0}}},
    {"falling stripes", STRIPES, 56, 2, 16, 32, 0, 0, {{0, 0, 0, 0}}},
    {"checks",          CHECKS,   0, 8, 24, 44, 0, 0, {{0, 0, 0, 0}}},

    {"two dots abreast", DISCS,  0, 2, 24, 36, 5, 2, {{-11, 0, 0, 0}, {11, 0, 0, 0}}},
    {"two dots stacked", DISCS, 16, 2, 24, 36, 5, 2, {{-11, 0, 0, 0}, {11, 0, 0, 0}}},
    {"three dots",       DISCS,  0, 2, 24, 36, 5, 3, {{0, -11, 0, 0}, {-11, 9, 0, 0}, {11, 9, 0, 0}}},
    {"four dots",        DISCS,  0, 2, 24, 36, 5, 4,
     {{-11, -11, 0, 0}, {11, -11, 0, 0}, {-11, 11, 0, 0}, {11, 11, 0, 0}}},
    {"five dots",        DISCS,  0, 2, 28, 36, 5, 5,
     {{-13, -13, 0, 0}, {13, -13, 0, 0}, {-13, 13, 0, 0}, {13, 13, 0, 0}, {0, 0, 0, 0}}},

    {"letter L", BOXES, 0, 2, 24, 40, 0, 2, {{-9, 0, 3, 16}, {0, 13, 12, 3}}},
    {"letter T", BOXES, 0, 2, 24, 40, 0, 2, {{0, -13, 12, 3}, {0, 0, 3, 16}}},
    {"letter U", BOXES, 0, 2, 24, 40, 0, 3, {{-9, 0, 3, 16}, {9, 0, 3, 16}, {0, 13, 12, 3}}},
    {"letter H", BOXES, 0, 2, 24, 40, 0, 3, {{-9, 0, 3, 16}, {9, 0, 3, 16}, {0, 0, 12, 3}}},
    {"letter E", BOXES, 0, 2, 28, 40, 0, 4, {{-9, 0, 3, 16}, {0, -13, 12, 3}, {0, 0, 11, 3}, {0, 13, 12, 3}}},
};
/* clang-format on */

/* A figure of one image. */
typedef struct figure {
  const figure_kind *kind;
  int32_t x, y, size; /* of textures x and y are the phases, size the period */
  int32_t cosine, sine;
  int32_t radius;
  struct {
    int32_t x, y, width, height;
  } parts[MOST_PARTS];
} figure;

/* sin of a 64th of a turn, times COSINE_ONE. */
static int32_t sine_of(int angle) {
  static const int16_t quarter[TURN / 4 + 1] = {0,     1606,  3196,  4756,  6270,  7723,  9102,  10394, 11585,
                                                12665, 13623, 14449, 15137, 15679, 16069, 16305, 16384};
  const int a = ((angle % TURN) + TURN) % TURN;
  const int within = a % (TURN / 2);
  const int32_t value = quarter[within <= TURN / 4 ? within : TURN / 2 - within];
  return a < TURN / 2 ? value : -value;
}

static int32_t between(esp_random *stream, int32_t least, int32_t most) {
  return least + (int32_t)esp_random_below(stream, (uint32_t)(most - least + 1));
}

static figure random_figure(esp_random *stream, const figure_kind *kind) {
  const int angle = kind->turn + between(stream, -kind->tilt, kind->tilt);
  const int32_t size = between(stream, kind->smallest * (UNIT / 4), kind->largest * (UNIT / 4));
  const int32_t reach = size + UNIT; /* whole figures only */
  const bool texture = kind->form == STRIPES || kind->form == CHECKS;
  const int32_t least = texture ? 0 : reach;
  const int32_t most = texture ? size - 1 : SIDE * UNIT - reach;
  const int32_t x = between(stream, least, most);
  const int32_t y = between(stream, least, most);
  figure f = {.kind = kind, .x = x, .y = y, .size = size, .radius = kind->radius * size / 16};
  f.cosine = sine_of(angle + TURN / 4);
  f.sine = sine_of(angle);
  for (int i = 0; i < kind->part_count; i++) {
    f.parts[i].x = kind->parts[i].x * size / 16;
    f.parts[i].y = kind->parts[i].y * size / 16;
    f.parts[i].width = kind->parts[i].width * size / 16;
    f.parts[i].height = kind->parts[i].height * size / 16;
  }
  return f;
}

/* ---- distances to the figure's edge, negative inside ---- */

static inline int32_t smaller(int32_t a, int32_t b) { return a < b ? a : b; }
static inline int32_t larger(int32_t a, int32_t b) { return a > b ? a : b; }

static inline int32_t root(int32_t square) { return (int32_t)sqrtf((float)square); }

static inline int32_t to_discs(const figure *f, int32_t u, int32_t v) {
  int32_t least = INT32_MAX;
  for (int i = 0; i < f->kind->part_count; i++) {
    const int32_t a = u - f->parts[i].x, b = v - f->parts[i].y;
    least = smaller(least, a * a + b * b);
  }
  return root(least) - f->radius;
}

static inline int32_t to_ring(const figure *f, int32_t u, int32_t v) {
  return abs(root(u * u + v * v) - f->size * 11 / 16) - f->size * 3 / 16;
}

static inline int32_t to_boxes(const figure *f, int32_t u, int32_t v) {
  int32_t least = INT32_MAX;
  for (int i = 0; i < f->kind->part_count; i++) {
    const int32_t a = abs(u - f->parts[i].x) - f->parts[i].width;
    const int32_t b = abs(v - f->parts[i].y) - f->parts[i].height;
    least = smaller(least, larger(a, b));
  }
  return least;
}

/* Equilateral: three half planes at half the circumradius; sqrt(3)/2 is 222/256. */
static inline int32_t to_triangle(const figure *f, int32_t u, int32_t v) {
  return larger(v, (abs(u) * 222 - v * 128) / 256) - f->size / 2;
}

/* Bands of half a period. */
static inline int32_t to_bands(int32_t along, int32_t phase, int32_t period) {
  const int32_t within = (along + phase + 64 * period) % period;
  return abs(within - period / 2) - period / 4;
}

static inline int32_t to_checks(const figure *f, int32_t u, int32_t v) {
  const int32_t a = to_bands(u, f->x, f->size), b = to_bands(v, f->y, f->size);
  return larger(smaller(a, b), -larger(a, b));
}

static inline int32_t distance_to(const figure *f, primitive form, int32_t u, int32_t v) {
  switch (form) {
  case DISCS:
    return to_discs(f, u, v);
  case RING:
    return to_ring(f, u, v);
  case BOXES:
    return to_boxes(f, u, v);
  case TRIANGLE:
    return to_triangle(f, u, v);
  case STRIPES:
    return to_bands(u, f->x, f->size);
  case CHECKS:
    return to_checks(f, u, v);
  }
  return 0;
}

/* How much of each pixel the figure covers, of OPAQUE: its edge is one pixel wide. */
static void cover(const figure *f, int16_t mask[PIXELS]) {
  const primitive form = f->kind->form;
  const bool texture = form == STRIPES || form == CHECKS;
  const int32_t x0 = texture ? SIDE * UNIT / 2 : f->x, y0 = texture ? SIDE * UNIT / 2 : f->y;
  for (int32_t y = 0; y < SIDE; y++)
    for (int32_t x = 0; x < SIDE; x++) {
      const int32_t dx = x * UNIT + UNIT / 2 - x0, dy = y * UNIT + UNIT / 2 - y0;
      const int32_t u = (dx * f->cosine + dy * f->sine) / COSINE_ONE;
      const int32_t v = (dy * f->cosine - dx * f->sine) / COSINE_ONE;
      const int32_t inside = UNIT / 2 - distance_to(f, form, u, v);
      mask[y * SIDE + x] = (int16_t)smaller(larger(inside, 0), OPAQUE);
    }
}

/* ---- painting ---- */

typedef struct colour {
  int32_t value[CHANNELS]; /* 0..255 */
} colour;

static colour random_colour(esp_random *stream) {
  colour c;
  for (int i = 0; i < CHANNELS; i++) c.value[i] = between(stream, 20, 235);
  return c;
}

/* A colour that stands out from `ground`: the differences of its channels add up to LEAST_CONTRAST at
 * least. */
static colour contrasting_colour(esp_random *stream, const colour *ground) {
  for (;;) {
    const colour c = random_colour(stream);
    int32_t difference = 0;
    for (int i = 0; i < CHANNELS; i++) difference += abs(c.value[i] - ground->value[i]);
    if (difference >= LEAST_CONTRAST) return c;
  }
}

/* What is painted on: [CHANNELS, PIXELS], so that loops over pixels become vector code. */
typedef int16_t canvas[CHANNELS][PIXELS];

static void paint(canvas on, const int16_t mask[PIXELS], const colour *with) {
  for (int c = 0; c < CHANNELS; c++) {
    const int32_t value = with->value[c];
    for (int p = 0; p < PIXELS; p++) on[c][p] = (int16_t)(on[c][p] + (value - on[c][p]) * mask[p] / OPAQUE);
  }
}

/* The ground colour, lighter towards a random side. */
static void paint_ground(esp_random *stream, canvas on, const colour *ground) {
  const int32_t across = between(stream, -SHADING, SHADING), down = between(stream, -SHADING, SHADING);
  for (int32_t y = 0; y < SIDE; y++)
    for (int32_t x = 0; x < SIDE; x++) {
      const int32_t shade = (across * (2 * x - SIDE + 1) + down * (2 * y - SIDE + 1)) / SIDE;
      for (int c = 0; c < CHANNELS; c++) on[c][y * SIDE + x] = (int16_t)(ground->value[c] + shade);
    }
}

/* A thin line right across: something that is no figure. It covers half. */
static void paint_line(esp_random *stream, canvas on) {
  const int angle = between(stream, 0, TURN - 1);
  const int32_t cosine = sine_of(angle + TURN / 4), sine = sine_of(angle);
  const int32_t x0 = between(stream, 0, SIDE * UNIT), y0 = between(stream, 0, SIDE * UNIT);
  const colour ink = random_colour(stream);
  int16_t mask[PIXELS];
  for (int32_t y = 0; y < SIDE; y++)
    for (int32_t x = 0; x < SIDE; x++) {
      const int32_t off = ((x * UNIT - x0) * cosine + (y * UNIT - y0) * sine) / COSINE_ONE;
      mask[y * SIDE + x] = (int16_t)(smaller(larger(UNIT - abs(off), 0), UNIT * 3 / 4) * 3 / 4);
    }
  paint(on, mask, &ink);
}

/* Adds noise in -NOISE..NOISE and rounds to bytes. Xorshift (Marsaglia, "Xorshift RNGs", 2003), started by
 * the image's stream, deals the noise: one step a pixel. */
static void finish(esp_random *stream, canvas from, uint8_t *out) {
  uint32_t state = esp_random_bits(stream) | 1;
  for (int p = 0; p < PIXELS; p++) {
    state ^= state << 13;
    state ^= state >> 17;
    state ^= state << 5;
    for (int c = 0; c < CHANNELS; c++) {
      const int32_t noise = (int32_t)(state >> (8 * c) & 255) * (2 * NOISE + 1) / 256 - NOISE;
      out[p * CHANNELS + c] = (uint8_t)smaller(larger(from[c][p] + noise, 0), 255);
    }
  }
}

static void draw(const esp_dataset *dataset, esp_split_name split, int64_t index, uint8_t *out) {
  const bool narrow = dataset->info.classes == NARROW_CLASSES;
  const int32_t label = dataset->splits[split].labels[index];
  const uint64_t set = (uint64_t)(split == ESP_TEST) | (uint64_t)narrow << 1;
  esp_random stream = esp_random_stream(image_seed, ESP_PURPOSE_SYNTHETIC, set << 62 | (uint64_t)index);
  canvas image;
  int16_t mask[PIXELS];
  const figure f = random_figure(&stream, &figure_kinds[label + (narrow ? NARROW_FIRST : 0)]);
  const colour ground = random_colour(&stream), ink = contrasting_colour(&stream, &ground);
  paint_ground(&stream, image, &ground);
  const int32_t lines = between(&stream, 0, MOST_LINES);
  for (int32_t i = 0; i < lines; i++) paint_line(&stream, image);
  cover(&f, mask);
  paint(image, mask, &ink);
  finish(&stream, image, out);
}

/* Classes take turns, so every part of a split is balanced. */
static esp_status allocate(esp_dataset *dataset, esp_split_name split, int64_t count) {
  ESP_TRY(esp_dataset_allocate(dataset, split, count, ESP_STORE_NOTHING));
  for (int64_t i = 0; i < count; i++) dataset->splits[split].labels[i] = (int32_t)(i % dataset->info.classes);
  return ESP_OK;
}

static esp_status name_classes(esp_dataset *dataset, int first) {
  dataset->class_list = esp_alloc((size_t)dataset->info.classes, sizeof *dataset->class_list);
  if (!dataset->class_list) return ESP_ERR_MEMORY;
  for (int i = 0; i < dataset->info.classes; i++) dataset->class_list[i] = figure_kinds[first + i].name;
  dataset->info.class_names = dataset->class_list;
  return ESP_OK;
}

esp_status esp_read_synthetic(esp_dataset *dataset, const char *path) {
  const bool narrow = path != NULL;
  if (narrow && strcmp(path, "narrow") != 0)
    return esp_fail(ESP_ERR_USAGE, "there is no 'synthetic:%s'; expected synthetic or synthetic:narrow", path);
  dataset->info.name = narrow ? "synthetic:narrow" : "synthetic";
  dataset->info.digest = narrow ? narrow_version : broad_version;
  dataset->info.note = "mirroring turns some classes into others (rising and falling stripes): train without flip";
  dataset->info.classes = narrow ? NARROW_CLASSES : CLASSES;
  ESP_TRY(name_classes(dataset, narrow ? NARROW_FIRST : 0));
  dataset->draw = draw;
  ESP_TRY(esp_dataset_set_shape(dataset, "synthetic", CHANNELS, SIDE, SIDE));
  ESP_TRY(allocate(dataset, ESP_TRAIN, narrow ? NARROW_TRAIN : BROAD_TRAIN));
  return allocate(dataset, ESP_TEST, narrow ? NARROW_TEST : BROAD_TEST);
}
