#include <espalier/memory.h>
#include <espalier/method.h>

#include <stdio.h>

/* What was done, as the history calls it. */
static const char *action_of(esp_method_kind kind) {
  static const char *const names[] = {[ESP_METHOD_NONE] = "copy",
                                      [ESP_METHOD_PRUNE] = "prune",
                                      [ESP_METHOD_MERGE] = "merge",
                                      [ESP_METHOD_FACTOR] = "compress",
                                      [ESP_METHOD_SKIP] = "skip"};
  return names[kind];
}

static void describe(const esp_method *method, const esp_method_inputs *inputs, char *text, size_t size) {
  char ratio[32] = "", data[160] = "";
  const esp_calibration *c = method->needs_data ? inputs->calibration : NULL;
  if (method->has_ratio) snprintf(ratio, sizeof ratio, ", ratio %g", inputs->ratio);
  if (c)
    snprintf(data, sizeof data, ", calibrated on %lld images of %s (seed %llu)", (long long)esp_calibration_images(c),
             esp_dataset_info_of(c->dataset)->name, (unsigned long long)c->seed);
  snprintf(text, size, "%s%s%s", method->name, ratio, data);
}

/* The info of a model made of another one, whose settings it keeps. */
static esp_status inherit(esp_checkpoint_info *info, const esp_checkpoint_info *from) {
  *info = *from;
  info->run_config = from->run_config ? esp_copy_text(from->run_config) : NULL;
  return from->run_config && !info->run_config ? ESP_ERR_MEMORY : ESP_OK;
}

static esp_status tell(esp_trained *made, const esp_method *method, const esp_method_inputs *inputs) {
  char detail[256];
  describe(method, inputs, detail, sizeof detail);
  ESP_TRY(inherit(&made->info, inputs->info));
  return esp_checkpoint_add_history(&made->info, action_of(method->kind), detail, inputs->info->digest,
                                    method->needs_reference ? inputs->reference_info->digest : "");
}

esp_status esp_method_apply(const char *name, const esp_trained *trained, const esp_method_inputs *inputs,
                            esp_trained *made) {
  esp_method method;
  esp_compressed compressed;
  esp_method_inputs own = *inputs;
  own.model = trained->model;
  own.info = &trained->info;
  *made = (esp_trained){.model = NULL};
  ESP_TRY(esp_method_find(&method, name));
  ESP_TRY(esp_method_make(&method, &own, &compressed));
  made->model = compressed.model;
  compressed.model = NULL;
  esp_compressed_clear(&compressed);
  const esp_status status = tell(made, &method, &own);
  if (status != ESP_OK) esp_trained_clear(made);
  return status;
}
