#include <espalier/loader.h>
#include <espalier/memory.h>
#include <espalier/random.h>

#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

/* One batch with the caller, the others being prepared. */
enum { SLOTS = 3 };

struct esp_loader {
  const esp_dataset *dataset;
  esp_split_name split;
  esp_loader_options options;
  int64_t examples, batches_per_epoch, image_size;
  uint32_t *order;     /* [examples] numbers within the range, as dealt in `order_epoch`; the thread's own */
  uint32_t *sample;    /* [images from first_example on] in random order, the first `examples` are dealt; or NULL */
  int64_t order_epoch; /* -1: not set yet */
  esp_batch slots[SLOTS];

  pthread_t thread;
  bool started;
  pthread_mutex_t mutex;
  pthread_cond_t prepared, released; /* with the counters below they are what `mutex` guards */
  int64_t made, taken, returned;     /* batches of the run so far, made >= taken >= returned */
  bool stopping;
};

/* ---- making a batch ---- */

static void set_order(esp_loader *loader, int64_t epoch) {
  if (loader->order_epoch == epoch) return;
  const uint32_t count = (uint32_t)loader->examples;
  for (uint32_t i = 0; i < count; i++) loader->order[i] = i;
  if (loader->options.shuffle) {
    esp_random stream = esp_random_stream(loader->options.seed, ESP_PURPOSE_SHUFFLE, (uint64_t)epoch);
    esp_random_shuffle(&stream, loader->order, count);
  }
  loader->order_epoch = epoch;
}

static void mix_pair(float *a, float *b, int64_t size, float share) {
  for (int64_t i = 0; i < size; i++) {
    const float from_a = a[i], from_b = b[i];
    a[i] = share * from_a + (1.0f - share) * from_b;
    b[i] = share * from_b + (1.0f - share) * from_a;
  }
}

/* Mixes image i with image count - 1 - i: a batch is in random order, so these are random pairs. One share
 * a batch. */
static void mix_up(const esp_loader *loader, esp_batch *batch, int64_t number) {
  esp_random stream = esp_random_stream(loader->options.seed, ESP_PURPOSE_MIXUP, (uint64_t)number);
  const float share = (float)esp_random_beta(&stream, loader->options.augmentation.mixup);
  for (int64_t i = 0; i < batch->count; i++) {
    const int64_t other = batch->count - 1 - i;
    batch->mixed_labels[i] = batch->labels[other];
    batch->mix[i] = share;
    if (i < other)
      mix_pair(batch->images + i * loader->image_size, batch->images + other * loader->image_size, loader->image_size,
               share);
  }
}

/* Batch `number` of the run. */
static void make_batch(esp_loader *loader, esp_batch *batch, int64_t number) {
  const esp_loader_options *const options = &loader->options;
  batch->epoch = number / loader->batches_per_epoch;
  batch->index_in_epoch = number % loader->batches_per_epoch;
  set_order(loader, batch->epoch);
  const int64_t start = batch->index_in_epoch * options->batch;
  const int64_t left = loader->examples - start;
  batch->count = left < options->batch ? left : options->batch;
  for (int64_t i = 0; i < batch->count; i++) {
    const uint32_t place = loader->order[start + i];
    const int64_t index = options->first_example + (loader->sample ? loader->sample[place] : place);
    const int64_t position = batch->epoch * loader->examples + start + i;
    esp_augment_image(loader->dataset, loader->split, index,
                      &(esp_augment_options){.normalisation = &options->normalisation,
                                             .augmentation = &options->augmentation,
                                             .seed = options->seed,
                                             .epoch = (uint64_t)batch->epoch,
                                             .position = (uint64_t)position},
                      batch->images + i * loader->image_size);
    batch->places[i] = index;
    batch->labels[i] = batch->mixed_labels[i] = esp_dataset_label(loader->dataset, loader->split, index);
    batch->mix[i] = 1.0f;
  }
  if (options->augmentation.mixup > 0.0) mix_up(loader, batch, number);
}

/* ---- the thread ---- */

/* Waits for room; the number of the batch to make, or -1 when the loader closes. */
static int64_t next_to_make(esp_loader *loader) {
  pthread_mutex_lock(&loader->mutex);
  while (!loader->stopping && loader->made - loader->returned >= SLOTS)
    pthread_cond_wait(&loader->released, &loader->mutex);
  const int64_t number = loader->stopping ? -1 : loader->made;
  pthread_mutex_unlock(&loader->mutex);
  return number;
}

static void *prepare(void *argument) {
  esp_loader *const loader = argument;
  for (int64_t number = next_to_make(loader); number >= 0; number = next_to_make(loader)) {
    make_batch(loader, &loader->slots[number % SLOTS], number);
    pthread_mutex_lock(&loader->mutex);
    loader->made = number + 1;
    pthread_cond_signal(&loader->prepared);
    pthread_mutex_unlock(&loader->mutex);
  }
  return NULL;
}

esp_status esp_loader_next(esp_loader *loader, const esp_batch **batch) {
  pthread_mutex_lock(&loader->mutex);
  loader->returned = loader->taken;
  pthread_cond_signal(&loader->released);
  while (loader->made == loader->taken) pthread_cond_wait(&loader->prepared, &loader->mutex);
  *batch = &loader->slots[loader->taken % SLOTS];
  loader->taken++;
  pthread_mutex_unlock(&loader->mutex);
  return ESP_OK;
}

/* ---- creation ---- */

static esp_status check_range(const esp_loader_options *options, const esp_dataset_info *info, esp_split_name split) {
  const int64_t available = info->count[split];
  const char *const name = info->name;
  if (options->batch < 1)
    return esp_fail(ESP_ERR_CONFIG, "batch is %lld; expected 1 or more images", (long long)options->batch);
  if (available == 0) return esp_fail(ESP_ERR_CONFIG, "%s has no %s images", name, esp_split_text(split));
  if (options->first_example < 0 || options->first_example >= available)
    return esp_fail(ESP_ERR_CONFIG, "first_example is %lld; expected 0 to %lld: this split of %s has %lld images",
                    (long long)options->first_example, (long long)(available - 1), name, (long long)available);
  const int64_t left = available - options->first_example;
  if (options->example_limit < 0 || options->example_limit > left)
    return esp_fail(ESP_ERR_CONFIG,
                    "example_limit is %lld; expected 0 (all) to %lld, what %s has from first_example on",
                    (long long)options->example_limit, (long long)left, name);
  const int64_t examples = options->example_limit ? options->example_limit : left;
  if ((options->sample ? left : examples) > UINT32_MAX)
    return esp_fail(ESP_ERR_CONFIG, "%lld images cannot be dealt; set an example_limit of at most %lld",
                    (long long)examples, (long long)UINT32_MAX);
  if (options->drop_last && examples < options->batch)
    return esp_fail(ESP_ERR_CONFIG,
                    "a batch of %lld images cannot be filled from %lld; use a smaller batch or drop_last off",
                    (long long)options->batch, (long long)examples);
  return ESP_OK;
}

static esp_status check_normalisation(const esp_normalisation *normalisation, int channels) {
  for (int c = 0; c < channels; c++) {
    const double mean = (double)normalisation->mean[c], deviation = (double)normalisation->deviation[c];
    if (!isfinite(mean) || !isfinite(deviation) || deviation <= 0.0)
      return esp_fail(ESP_ERR_CONFIG,
                      "normalisation of channel %d: mean %g, deviation %g; expected finite numbers and a "
                      "deviation above 0 (see esp_dataset_normalisation())",
                      c, mean, deviation);
  }
  return ESP_OK;
}

static esp_status check_options(const esp_loader_options *options, const esp_dataset_info *info, esp_split_name split,
                                int64_t first_batch) {
  ESP_TRY(check_range(options, info, split));
  ESP_TRY(check_normalisation(&options->normalisation, info->channels));
  ESP_TRY(esp_augmentation_check(&options->augmentation, info->height, info->width));
  if (first_batch < 0)
    return esp_fail(ESP_ERR_CONFIG, "the first batch is %lld; expected 0 or more", (long long)first_batch);
  return ESP_OK;
}

static bool allocate_slot(esp_batch *batch, int64_t images, int64_t image_size) {
  batch->images = esp_alloc((size_t)images, (size_t)image_size * sizeof *batch->images);
  batch->labels = esp_alloc((size_t)images, sizeof *batch->labels);
  batch->places = esp_alloc((size_t)images, sizeof *batch->places);
  batch->mixed_labels = esp_alloc((size_t)images, sizeof *batch->mixed_labels);
  batch->mix = esp_alloc((size_t)images, sizeof *batch->mix);
  return batch->images && batch->labels && batch->places && batch->mixed_labels && batch->mix;
}

static void measure_range(esp_loader *loader, int64_t available) {
  const esp_loader_options *const o = &loader->options;
  loader->examples = o->example_limit ? o->example_limit : available - o->first_example;
  const int64_t whole = loader->examples / o->batch;
  loader->batches_per_epoch = whole + (!o->drop_last && loader->examples % o->batch != 0);
}

/* Signals are for the program's own threads: the loader's takes none. */
static esp_status start(esp_loader *loader) {
  sigset_t all, before;
  sigfillset(&all);
  pthread_mutex_init(&loader->mutex, NULL);
  pthread_cond_init(&loader->prepared, NULL);
  pthread_cond_init(&loader->released, NULL);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  const int problem = pthread_create(&loader->thread, NULL, prepare, loader);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  loader->started = problem == 0;
  if (problem)
    return esp_fail(ESP_ERR_IO, "the loader's thread cannot be started: %s; are too many threads running?",
                    strerror(problem));
  return ESP_OK;
}

/* An image of a sample, and where among those of its class it comes: in (0, 1), evenly spaced. */
typedef struct sampled {
  double place;
  uint32_t image, drawn; /* drawn: which one of all, so that equal places have an order */
} sampled;

static int by_place(const void *a, const void *b) {
  const sampled *const x = a, *const y = b;
  if (x->place != y->place) return x->place < y->place ? -1 : 1;
  return (x->drawn > y->drawn) - (x->drawn < y->drawn);
}

/* Puts a random order so that each beginning of it has the classes in the shares that the whole has. */
static esp_status stratify(const esp_loader *loader, uint32_t *order, int64_t count) {
  const int classes = esp_dataset_info_of(loader->dataset)->classes;
  int64_t *const sizes = esp_alloc((size_t)classes, sizeof *sizes), *const ranks =
                                                                        esp_alloc((size_t)classes, sizeof *ranks);
  sampled *const images = esp_alloc((size_t)count, sizeof *images);
  const bool allocated = sizes && ranks && images;
  for (int pass = 0; allocated && pass < 2; pass++)
    for (int64_t i = 0; i < count; i++) {
      const int64_t index = loader->options.first_example + order[i];
      const int32_t label = esp_dataset_label(loader->dataset, loader->split, index);
      if (pass == 0) sizes[label]++;
      else images[i] = (sampled){((double)ranks[label]++ + 0.5) / (double)sizes[label], order[i], (uint32_t)i};
    }
  if (allocated) qsort(images, (size_t)count, sizeof *images, by_place);
  for (int64_t i = 0; allocated && i < count; i++) order[i] = images[i].image;
  esp_free(sizes);
  esp_free(ranks);
  esp_free(images);
  return allocated ? ESP_OK : ESP_ERR_MEMORY;
}

static esp_status draw_sample(esp_loader *loader, int64_t available) {
  const int64_t count = available - loader->options.first_example;
  loader->sample = esp_alloc((size_t)count, sizeof *loader->sample);
  if (!loader->sample) return ESP_ERR_MEMORY;
  for (int64_t i = 0; i < count; i++) loader->sample[i] = (uint32_t)i;
  esp_random stream = esp_random_stream(loader->options.seed, ESP_PURPOSE_SAMPLE, 0);
  esp_random_shuffle(&stream, loader->sample, (uint32_t)count);
  return loader->options.stratified ? stratify(loader, loader->sample, count) : ESP_OK;
}

static esp_status fill_in(esp_loader *loader, int64_t available, int64_t first_batch) {
  measure_range(loader, available);
  loader->order_epoch = -1;
  loader->made = loader->taken = loader->returned = first_batch;
  loader->order = esp_alloc((size_t)loader->examples, sizeof *loader->order);
  if (!loader->order) return ESP_ERR_MEMORY;
  if (loader->options.sample) ESP_TRY(draw_sample(loader, available));
  const int64_t most = loader->options.batch < loader->examples ? loader->options.batch : loader->examples;
  for (int i = 0; i < SLOTS; i++)
    if (!allocate_slot(&loader->slots[i], most, loader->image_size)) return ESP_ERR_MEMORY;
  return start(loader);
}

esp_status esp_loader_create(esp_loader **loader, const esp_dataset *dataset, esp_split_name split,
                             const esp_loader_options *options, int64_t first_batch) {
  *loader = NULL;
  const esp_dataset_info *const info = esp_dataset_info_of(dataset);
  ESP_TRY(check_options(options, info, split, first_batch));
  esp_loader *const made = esp_alloc(1, sizeof *made);
  if (!made) return ESP_ERR_MEMORY;
  made->dataset = dataset;
  made->split = split;
  made->options = *options;
  made->image_size = (int64_t)info->channels * info->height * info->width;
  const esp_status status = fill_in(made, info->count[split], first_batch);
  if (status != ESP_OK) {
    esp_loader_close(made);
    return status;
  }
  *loader = made;
  return ESP_OK;
}

int64_t esp_loader_batches_per_epoch(const esp_loader *loader) { return loader->batches_per_epoch; }

int64_t esp_loader_examples(const esp_loader *loader) { return loader->examples; }

static void stop(esp_loader *loader) {
  pthread_mutex_lock(&loader->mutex);
  loader->stopping = true;
  pthread_cond_signal(&loader->released);
  pthread_mutex_unlock(&loader->mutex);
  pthread_join(loader->thread, NULL);
  pthread_cond_destroy(&loader->prepared);
  pthread_cond_destroy(&loader->released);
  pthread_mutex_destroy(&loader->mutex);
}

void esp_loader_close(esp_loader *loader) {
  if (!loader) return;
  if (loader->started) stop(loader);
  for (int i = 0; i < SLOTS; i++) {
    esp_free(loader->slots[i].images);
    esp_free(loader->slots[i].labels);
    esp_free(loader->slots[i].places);
    esp_free(loader->slots[i].mixed_labels);
    esp_free(loader->slots[i].mix);
  }
  esp_free(loader->order);
  esp_free(loader->sample);
  esp_free(loader);
}
