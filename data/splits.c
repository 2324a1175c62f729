/* Training, validation, test: which stored images a split deals. */
#include "dataset_internal.h"

#include <espalier/random.h>

#include <math.h>

/* Keys of the draws. They are no settings: runs that differ in their seed are compared on the same images. */
static const uint64_t validation_key = 0x76616c6964617465u, test_key = 0x746573747465u;

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

/* A draw under way, over the stored images that are dealt as training. */
typedef struct draw {
  uint64_t key;
  double share;
  esp_split_name to; /* what becomes of the drawn ones */
  int64_t *starts;   /* [classes + 1] of the classes in `sorted` */
  uint32_t *sorted;  /* [count] places by class */
  uint8_t *split;    /* [count] by place: what deals it */
  int64_t drawn;
} draw;

/* Whatever was held out before is training again; a test split that was drawn stays. */
static void mark(draw *d, const esp_dataset *dataset) {
  const uint32_t *const tested = dataset->rows[ESP_TEST];
  for (int64_t i = 0; tested && i < dataset->info.count[ESP_TEST]; i++) d->split[tested[i]] = ESP_TEST;
}

/* A counting sort: places by class, and ascending within a class. */
static void sort_by_class(draw *d, const esp_split *train, int classes) {
  for (int64_t i = 0; i < train->count; i++)
    if (d->split[i] == ESP_TRAIN) d->starts[train->labels[i] + 1]++;
  for (int c = 0; c < classes; c++) d->starts[c + 1] += d->starts[c];
  for (int64_t i = 0; i < train->count; i++)
    if (d->split[i] == ESP_TRAIN) d->sorted[d->starts[train->labels[i]]++] = (uint32_t)i;
  for (int c = classes; c > 0; c--) d->starts[c] = d->starts[c - 1];
  d->starts[0] = 0;
}

/* How many of the n images of a class are drawn. */
static int64_t drawn_of(int64_t n, double share) {
  if (n < 2) return 0;
  const int64_t rounded = llround(share * (double)n);
  return rounded > 0 ? rounded : 1;
}

static esp_status draw_class(draw *d, int class) {
  const int64_t n = d->starts[class + 1] - d->starts[class], drawn = drawn_of(n, d->share);
  uint32_t *const places = d->sorted + d->starts[class];
  if (n > 0 && drawn >= n)
    return esp_fail(ESP_ERR_CONFIG,
                    "data.validation is %g, which leaves class %d without any of its %lld training images; lower it",
                    d->share, class, (long long)n);
  esp_random stream = esp_random_stream(d->key, ESP_PURPOSE_VALIDATION, (uint64_t) class);
  esp_random_shuffle(&stream, places, (uint32_t)n);
  for (int64_t i = 0; i < drawn; i++) d->split[places[i]] = (uint8_t)d->to;
  d->drawn += drawn;
  return ESP_OK;
}

static esp_status draw_classes(draw *d, const esp_dataset *dataset) {
  const esp_split *const train = &dataset->splits[ESP_TRAIN];
  const size_t classes = (size_t)dataset->info.classes, count = (size_t)train->count;
  if (train->count > UINT32_MAX)
    return esp_fail(ESP_ERR_CONFIG, "%lld training images are too many to be split; at most %lld can be",
                    (long long)train->count, (long long)UINT32_MAX);
  d->starts = esp_alloc(classes + 1, sizeof *d->starts);
  d->sorted = esp_alloc(count, sizeof *d->sorted);
  d->split = esp_alloc(count, sizeof *d->split);
  if (!d->starts || !d->sorted || !d->split) return ESP_ERR_MEMORY;
  mark(d, dataset);
  if (!(d->share > 0)) return ESP_OK;
  sort_by_class(d, train, dataset->info.classes);
  for (int c = 0; c < dataset->info.classes; c++) ESP_TRY(draw_class(d, c));
  return ESP_OK;
}

/* Places of each split, ascending. */
static esp_status list_places(const draw *d, int64_t count, uint32_t *rows[ESP_SPLITS], int64_t counts[ESP_SPLITS]) {
  for (int64_t i = 0; i < count; i++) counts[d->split[i]]++;
  for (int split = 0; split < ESP_SPLITS; split++)
    if (counts[split] && !(rows[split] = esp_alloc((size_t)counts[split], sizeof **rows))) return ESP_ERR_MEMORY;
  int64_t listed[ESP_SPLITS] = {0};
  for (int64_t i = 0; i < count; i++) rows[d->split[i]][listed[d->split[i]]++] = (uint32_t)i;
  return ESP_OK;
}

/* From now on the splits that are parts of the stored training images are what was drawn. */
static esp_status deal_drawn(esp_dataset *dataset, const draw *d) {
  uint32_t *rows[ESP_SPLITS] = {NULL};
  int64_t counts[ESP_SPLITS] = {0};
  if (list_places(d, dataset->splits[ESP_TRAIN].count, rows, counts) != ESP_OK) {
    for (int split = 0; split < ESP_SPLITS; split++) esp_free(rows[split]);
    return ESP_ERR_MEMORY;
  }
  for (int split = 0; split < ESP_SPLITS; split++) {
    if (dataset->splits[split].count > 0 && split != ESP_TRAIN) continue; /* the source's own */
    esp_free(dataset->rows[split]);
    dataset->rows[split] = rows[split];
    dataset->info.count[split] = counts[split];
  }
  return ESP_OK;
}

static esp_status draw_and_deal(esp_dataset *dataset, draw *d, const char *purpose) {
  esp_status status = draw_classes(d, dataset);
  if (status == ESP_OK && d->share > 0 && d->drawn == 0)
    status = esp_fail(ESP_ERR_CONFIG, "no class of %s has two training images, so that none can be held out for %s",
                      dataset->info.name, purpose);
  if (status == ESP_OK) status = deal_drawn(dataset, d);
  esp_free(d->starts);
  esp_free(d->sorted);
  esp_free(d->split);
  return status;
}

esp_status esp_dataset_draw_test(esp_dataset *dataset, double share) {
  draw d = {.key = test_key, .share = share, .to = ESP_TEST};
  return draw_and_deal(dataset, &d, "the test split; add `test_images`");
}

esp_status esp_dataset_hold_out(esp_dataset *dataset, double share) {
  if (!(share >= 0 && share < 1))
    return esp_fail(ESP_ERR_CONFIG, "data.validation is %g; it must lie in [0, 1): a share of the training images",
                    share);
  if (dataset->info.own_validation) return ESP_OK;
  draw d = {.key = validation_key, .share = share, .to = ESP_VALIDATION};
  ESP_TRY(draw_and_deal(dataset, &d, "validation; set data.validation=0"));
  dataset->info.validation = share;
  return ESP_OK;
}
