#include <espalier/lapack.h>
#include <espalier/loader.h>
#include <espalier/memory.h>
#include <espalier/whitening.h>

#include <math.h>
#include <string.h>

enum { SAMPLE = 2000, BATCH = 50 };
static const double epsilon = 5e-4; /* as in the source */

/* Sums over patches, in double. */
typedef struct moments {
  int64_t size;          /* values of a patch */
  double *sum, *product; /* [size], [size, size] upper half */
  double count;
  double *patch;
} moments;

static void take_patch(const float *pixel, int64_t row_values, int64_t kernel_values, double *patch) {
  for (int ky = 0; ky < ESP_STAGE_KERNEL; ky++)
    for (int64_t j = 0; j < kernel_values; j++) patch[ky * kernel_values + j] = (double)pixel[ky * row_values + j];
}

static void add_patch(moments *m) {
  for (int64_t i = 0; i < m->size; i++) {
    m->sum[i] += m->patch[i];
    for (int64_t j = i; j < m->size; j++) m->product[i * m->size + j] += m->patch[i] * m->patch[j];
  }
  m->count++;
}

/* Patches that lie inside the image are counted. */
static void add_image(moments *m, const float *image, const esp_model_config *config) {
  const int64_t channels = config->image_channels, row_values = config->image_width * channels;
  for (int64_t y = 0; y + ESP_STAGE_KERNEL <= config->image_height; y++)
    for (int64_t x = 0; x + ESP_STAGE_KERNEL <= config->image_width; x++) {
      take_patch(image + y * row_values + x * channels, row_values, ESP_STAGE_KERNEL * channels, m->patch);
      add_patch(m);
    }
}

static esp_status add_sample(moments *m, const esp_model *model, const esp_dataset *dataset,
                             const esp_normalisation *normalisation, uint64_t seed) {
  const int64_t available = esp_dataset_info_of(dataset)->count[ESP_TRAIN];
  const esp_loader_options options = {.batch = BATCH,
                                      .normalisation = *normalisation,
                                      .seed = seed,
                                      .sample = true,
                                      .example_limit = available < SAMPLE ? available : SAMPLE};
  const int64_t image = (int64_t)model->config.image_height * model->config.image_width * model->config.image_channels;
  esp_loader *loader;
  ESP_TRY(esp_loader_create(&loader, dataset, ESP_TRAIN, &options, 0));
  esp_status status = ESP_OK;
  for (int64_t left = esp_loader_batches_per_epoch(loader); left > 0 && status == ESP_OK; left--) {
    const esp_batch *batch;
    status = esp_loader_next(loader, &batch);
    for (int64_t i = 0; status == ESP_OK && i < batch->count; i++)
      add_image(m, batch->images + i * image, &model->config);
  }
  esp_loader_close(loader);
  return status;
}

static void fill_covariance(const moments *m, double *matrix) {
  for (int64_t i = 0; i < m->size; i++)
    for (int64_t j = 0; j < m->size; j++) {
      const double product = i <= j ? m->product[i * m->size + j] : m->product[j * m->size + i];
      matrix[i * m->size + j] = product / m->count - m->sum[i] / m->count * (m->sum[j] / m->count);
    }
}

/* The singular vectors of a covariance are its eigenvectors. */
static esp_status set_weights(const moments *m, esp_tensor *weight) {
  const int64_t components = weight->shape[0] / 2;
  esp_svd svd;
  ESP_TRY(esp_svd_create(&svd, m->size, m->size));
  fill_covariance(m, svd.matrix);
  const esp_status status = esp_svd_run(&svd);
  for (int64_t i = 0; status == ESP_OK && i < components; i++)
    for (int64_t j = 0; j < m->size; j++) {
      const double value = svd.right[i * m->size + j] / sqrt(svd.sigma[i] + epsilon);
      weight->data[i * m->size + j] = (esp_real)value;
      weight->data[(components + i) * m->size + j] = (esp_real)-value;
    }
  esp_svd_free(&svd);
  return status;
}

static bool is_set(const esp_tensor *weight) {
  for (int64_t i = 0; i < esp_tensor_count(weight); i++)
    if (weight->data[i] != 0) return true;
  return false;
}

esp_status esp_whiten(esp_model *model, const esp_dataset *dataset, const esp_normalisation *normalisation,
                      uint64_t seed) {
  esp_tensor *weight = model->stem.whitening;
  if (!weight || is_set(weight)) return ESP_OK;
  moments m = {.size = esp_tensor_count(weight) / weight->shape[0]};
  m.sum = esp_alloc((size_t)(m.size * (m.size + 2)), sizeof *m.sum);
  if (!m.sum) return ESP_ERR_MEMORY;
  m.patch = m.sum + m.size;
  m.product = m.patch + m.size;
  esp_status status = add_sample(&m, model, dataset, normalisation, seed);
  if (status == ESP_OK) status = set_weights(&m, weight);
  esp_free(m.sum);
  return status;
}
