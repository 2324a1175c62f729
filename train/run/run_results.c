/* results.json: what a run came to. */
#include <espalier/blas.h>
#include <espalier/parallel.h>
#include <espalier/run.h>

#include <jansson.h>
#include <stdio.h>

/* Keys of an evaluation; null where no image was looked at. */
static void put_evaluation(json_t *json, const char *prefix, const esp_evaluation *e) {
  const struct {
    const char *key;
    json_t *value;
  } entries[] = {{"accuracy", e->examples ? json_real(e->accuracy) : json_null()},
                 {"loss", e->examples ? json_real(e->loss) : json_null()},
                 {"examples", json_integer(e->examples)}};
  for (size_t i = 0; i < sizeof entries / sizeof entries[0]; i++) {
    char key[64];
    snprintf(key, sizeof key, "%s%s", prefix, entries[i].key);
    json_object_set_new(json, key, entries[i].value);
  }
}

static json_t *distillation_json(const esp_run *run, const esp_run_config *config, const esp_training_result *r) {
  const esp_distillation_config *d = &config->distillation;
  return json_pack("{s:s, s:f, s:f, s:b, s:f}", "teacher", run->teacher->info.digest, "weight", d->weight,
                   "temperature", d->temperature, "squared", d->squared, "last_loss", r->distillation);
}

json_t *esp_run_results_json(const esp_run *run, const esp_run_config *config, const esp_trained *trained,
                             const esp_training_result *r) {
  const esp_checkpoint_info *info = &trained->info;
  json_t *json = json_pack("{s:s, s:s}", "run", run->folder, "action", info->history[info->history_count - 1].action);
  put_evaluation(json, "", &r->final);
  put_evaluation(json, "validation_", &r->validation);
  put_evaluation(json, "best_", &r->best);
  put_evaluation(json, "best_validation_", &r->best_validation);
  json_t *rest = json_pack("{s:f, s:I, s:I, s:I, s:f, s:f, s:I, s:i, s:s, s:s, s:s, s:s}", "validation_share",
                           esp_dataset_info_of(run->dataset)->validation, "best_step", (json_int_t)r->best_step, "step",
                           (json_int_t)r->step, "steps", (json_int_t)r->steps, "seconds", r->seconds,
                           "images_per_second", r->images_per_second, "step_memory_bytes", (json_int_t)r->step_memory,
                           "threads", esp_threads(), "blas_kernel", esp_blas_kernel(), "product_kernel",
                           esp_gemm_kernel(), "data", info->data_name, "digest", info->digest);
  json_object_update(json, rest);
  json_decref(rest);
  if (run->teacher) json_object_set_new(json, "distillation", distillation_json(run, config, r));
  return json;
}
