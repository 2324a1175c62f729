#include <espalier/overlap.h>

#include <string.h>

static esp_status check_same(const esp_plan *a, const esp_plan *b, const esp_model *model) {
  if (strcmp(a->model_digest, b->model_digest) == 0 && a->layer_count == b->layer_count &&
      a->layer_count == esp_model_moe_count(model))
    return ESP_OK;
  return esp_fail(ESP_ERR_MISMATCH, "plans for different models (%s, %s) drop different experts and cannot be compared",
                  a->model_digest, b->model_digest);
}

esp_status esp_plan_overlap(const esp_plan *a, const esp_plan *b, const esp_model *model, int layer,
                            esp_layer_overlap *overlap) {
  ESP_TRY(check_same(a, b, model));
  const esp_expert_layout *layout = &esp_model_moe(model, layer)->layout;
  const esp_layer_plan *one = &a->layers[layer], *two = &b->layers[layer];
  int first = 0, second = 0, common = 0;
  for (int e = 0; e < layout->experts; e++) {
    if (layout->index[e] < 0) continue;
    first += one->target[e] < 0;
    second += two->target[e] < 0;
    common += one->target[e] < 0 && two->target[e] < 0;
  }
  *overlap = (esp_layer_overlap){.dropped = first > second ? first : second, .common = common};
  return ESP_OK;
}

esp_status esp_mean_overlap(const esp_plan *const *plans, int count, const esp_model *model, double *overlap) {
  double sum = 0;
  int terms = 0;
  for (int a = 0; a < count; a++)
    for (int b = a + 1; b < count; b++)
      for (int i = 0; i < plans[a]->layer_count; i++) {
        esp_layer_overlap layer;
        ESP_TRY(esp_plan_overlap(plans[a], plans[b], model, i, &layer));
        if (layer.dropped == 0) continue;
        sum += (double)layer.common / layer.dropped;
        terms++;
      }
  *overlap = terms ? sum / terms : 1;
  return ESP_OK;
}
