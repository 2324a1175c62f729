#include <espalier/memory.h>
#include <espalier/skip.h>
#include <espalier/compare.h>

#include <stdlib.h>

esp_status esp_skip_check(const esp_model *model) {
  const esp_moe_config *moe = &model->config.moe;
  if (esp_model_moe_count(model) == 0)
    return esp_fail(ESP_ERR_MISMATCH, "the model has no mixture layers, so there are no experts to skip");
  if (moe->router.policy != ESP_ROUTER_TOKEN_CHOICE)
    return esp_fail(ESP_ERR_MISMATCH,
                    "skipping leaves out a token's last choices, but with policy %s tokens do not choose",
                    esp_model_moe(model, 0)->policy->name);
  if (moe->top_k > 1) return ESP_OK;
  return esp_fail(ESP_ERR_MISMATCH,
                  "the model routes each token to one expert (top_k 1): there is no second one to skip");
}

/* A copy whose layers skip by beta[i]; NULL: not at all. */
static esp_status copy_with(esp_model **copy, const esp_model *model, const double *beta) {
  *copy = NULL;
  esp_expert_layout *layouts = esp_alloc((size_t)model->config.blocks, sizeof *layouts);
  if (!layouts) return ESP_ERR_MEMORY;
  for (int i = 0; i < esp_model_moe_count(model); i++) {
    const esp_moe *moe = esp_model_moe(model, i);
    layouts[moe->block] = moe->layout;
    layouts[moe->block].skip = beta ? beta[i] : 0;
  }
  esp_status status = esp_model_create(copy, &model->config, layouts, 0);
  esp_free(layouts);
  if (status == ESP_OK) status = esp_model_copy_parameters(*copy, model, "");
  if (status == ESP_OK) return ESP_OK;
  esp_model_free(*copy);
  *copy = NULL;
  return status;
}

/* --- the median ------------------------------------------------------------------------------------------- */

typedef struct ratios {
  const esp_model *model;
  int64_t capacity;
  int64_t count[ESP_MAX_BLOCKS]; /* of each mixture layer */
  double *values;                /* [mixture layers, capacity] */
} ratios;

static int index_of(const esp_model *model, const esp_moe *layer) {
  int index = 0;
  while (esp_model_moe(model, index)->block != layer->block) index++;
  return index;
}

static void add_ratios(void *context, const esp_moe_record *record) {
  ratios *r = context;
  const int layer = index_of(r->model, record->layer), k = record->routing->k;
  for (int64_t t = 0; t < record->routing->tokens && r->count[layer] < r->capacity; t++) {
    const esp_real *gates = record->gates->data + t * k;
    double head = 0;
    for (int i = 0; i + 1 < k; i++) head += (double)gates[i];
    r->values[layer * r->capacity + r->count[layer]++] = (double)gates[k - 1] / head;
  }
}

static esp_status take_medians(ratios *r, const esp_calibration *calibration, double *beta) {
  const esp_observer observer = {add_ratios, r};
  ESP_TRY(esp_calibration_pass(r->model, calibration, &observer));
  for (int i = 0; i < esp_model_moe_count(r->model); i++) {
    double *values = r->values + i * r->capacity;
    qsort(values, (size_t)r->count[i], sizeof *values, esp_ascending);
    beta[i] = 0.5 * (values[(r->count[i] - 1) / 2] + values[r->count[i] / 2]);
  }
  return ESP_OK;
}

esp_status esp_skip_calibrate(const esp_model *model, const esp_calibration *calibration, double beta[ESP_MAX_BLOCKS]) {
  int rows, columns;
  esp_model *plain;
  ESP_TRY(esp_skip_check(model));
  ESP_TRY(esp_calibration_check(calibration, &model->config));
  ESP_TRY(copy_with(&plain, model, NULL));
  esp_token_grid(&model->config, &rows, &columns);
  ratios r = {.model = plain,
              .capacity = esp_calibration_images(calibration) * rows * columns * model->config.moe.members};
  r.values = esp_alloc((size_t)(r.capacity * esp_model_moe_count(model)), sizeof *r.values);
  const esp_status status = r.values ? take_medians(&r, calibration, beta) : ESP_ERR_MEMORY;
  esp_free(r.values);
  esp_model_free(plain);
  return status;
}

esp_status esp_skip_apply(esp_model **skipping, const esp_model *model, const double *beta) {
  *skipping = NULL;
  ESP_TRY(esp_skip_check(model));
  return copy_with(skipping, model, beta);
}
