/* Training, validation, test: which stored images a split deals. */
#include "dataset_internal.h"

#include <espalier/random.h>

#include <math.h>

/* Of the draw. It is no setting: runs that differ in their seed are compared on the same validation images. */
static const uint64_t validation_key = 0x76616c6964617465u;

const char *esp_split_text(esp_split_name split) {
  static const char *const names[ESP_SPLITS] = {"train", "validation", "test"};
  return names[split];
}

void esp_dataset_locate(const esp_dataset *dataset, esp_split_name *split, int64_t *index) {
  if (*index < 0 || *index >= dataset->info.count[*split])
    esp_panic("%s: %s image %lld of %lld was asked for", dataset->info.name, esp_split_text(*split), (long long)*index,
              (long long)dataset->info.count[*split]);
  if (!dataset->rows[*split]) return;
  *index = dataset->rows[*split][*index];
  *split = ESP_TRAIN;
}

/* A draw under way, over the stored training images. */
typedef struct draw {
  double share;
  int64_t *starts;  /* [classes + 1] of the classes in `sorted` */
  uint32_t *sorted; /* [count] places by class */
  bool *held;       /* [count] by place */
  int64_t held_count;
} draw;

/* A counting sort: places by class, and ascending within a class. */
static void sort_by_class(draw *d, const esp_split *train, int classes) {
  for (int64_t i = 0; i < train->count; i++) d->starts[train->labels[i] + 1]++;
  for (int c = 0; c < classes; c++) d->starts[c + 1] += d->starts[c];
  for (int64_t i = 0; i < train->count; i++) d->sorted[d->starts[train->labels[i]]++] = (uint32_t)i;
  for (int c = classes; c > 0; c--) d->starts[c] = d->starts[c - 1];
  d->starts[0] = 0;
}

/* How many of the n images of a class are held out. */
static int64_t held_of(int64_t n, double share) {
  if (n < 2) return 0;
  const int64_t rounded = llround(share * (double)n);
  return rounded > 0 ? rounded : 1;
}

static esp_status draw_class(draw *d, int class) {
  const int64_t n = d->starts[class + 1] - d->starts[class], held = held_of(n, d->share);
  uint32_t *const places = d->sorted + d->starts[class];
  if (n > 0 && held >= n)
    return esp_fail(ESP_ERR_CONFIG,
                    "data.validation is %g, which leaves class %d without any of its %lld training images; lower it",
                    d->share, class, (long long)n);
  esp_random stream = esp_random_stream(validation_key, ESP_PURPOSE_VALIDATION, (uint64_t) class);
  esp_random_shuffle(&stream, places, (uint32_t)n);
  for (int64_t i = 0; i < held; i++) d->held[places[i]] = true;
  d->held_count += held;
  return ESP_OK;
}

static esp_status draw_all(draw *d, const esp_dataset *dataset) {
  const esp_split *const train = &dataset->splits[ESP_TRAIN];
  const size_t classes = (size_t)dataset->info.classes, count = (size_t)train->count;
  if (train->count > UINT32_MAX)
    return esp_fail(ESP_ERR_CONFIG, "%lld training images are too many to hold some of them out; set data.validation=0",
                    (long long)train->count);
  d->starts = esp_alloc(classes + 1, sizeof *d->starts);
  d->sorted = esp_alloc(count, sizeof *d->sorted);
  d->held = esp_alloc(count, sizeof *d->held);
  if (!d->starts || !d->sorted || !d->held) return ESP_ERR_MEMORY;
  sort_by_class(d, train, dataset->info.classes);
  for (int c = 0; c < dataset->info.classes; c++) ESP_TRY(draw_class(d, c));
  if (d->held_count > 0) return ESP_OK;
  return esp_fail(ESP_ERR_CONFIG,
                  "no class of %s has two training images, so that none can be held out for validation; set "
                  "data.validation=0",
                  dataset->info.name);
}

/* Deals `rows` from now on; NULL: what is stored. Takes them over. */
static void deal(esp_dataset *dataset, uint32_t *train, uint32_t *validation, int64_t held, double share) {
  esp_free(dataset->rows[ESP_TRAIN]);
  esp_free(dataset->rows[ESP_VALIDATION]);
  dataset->rows[ESP_TRAIN] = train;
  dataset->rows[ESP_VALIDATION] = validation;
  dataset->info.count[ESP_TRAIN] = dataset->splits[ESP_TRAIN].count - held;
  dataset->info.count[ESP_VALIDATION] = held;
  dataset->info.validation = share;
}

static esp_status deal_drawn(esp_dataset *dataset, const draw *d) {
  const int64_t count = dataset->splits[ESP_TRAIN].count;
  uint32_t *const train = esp_alloc((size_t)(count - d->held_count), sizeof *train);
  uint32_t *const validation = esp_alloc((size_t)d->held_count, sizeof *validation);
  if (!train || !validation) {
    esp_free(train);
    esp_free(validation);
    return ESP_ERR_MEMORY;
  }
  int64_t trained = 0, held = 0;
  for (int64_t i = 0; i < count; i++)
    if (d->held[i]) validation[held++] = (uint32_t)i;
    else train[trained++] = (uint32_t)i;
  deal(dataset, train, validation, held, d->share);
  return ESP_OK;
}

esp_status esp_dataset_hold_out(esp_dataset *dataset, double share) {
  if (!(share >= 0 && share < 1))
    return esp_fail(ESP_ERR_CONFIG, "data.validation is %g; it must lie in [0, 1): a share of the training images",
                    share);
  if (dataset->info.own_validation) return ESP_OK;
  if (!(share > 0)) {
    deal(dataset, NULL, NULL, 0, 0);
    return ESP_OK;
  }
  draw d = {.share = share};
  esp_status status = draw_all(&d, dataset);
  if (status == ESP_OK) status = deal_drawn(dataset, &d);
  esp_free(d.starts);
  esp_free(d.sorted);
  esp_free(d.held);
  return status;
}
