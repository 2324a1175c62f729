#include "checkpoint_parts_internal.h"
#include <espalier/cost.h>

#include <string.h>

/* Groups, tables and all that is small take no more. */
enum { SPARE_BYTES = 1 << 20 };

static esp_status write_header(hid_t file, const char *digest) {
  ESP_TRY(esp_h5_set_text(file, "format", "espalier checkpoint"));
  ESP_TRY(esp_h5_set_number(file, "format_version", ESP_FORMAT_VERSION));
  ESP_TRY(esp_h5_set_text(file, "espalier_version", esp_version()));
  return esp_h5_set_text(file, "digest", digest);
}

/* Tells readers of the file; it is not read back. */
static esp_status write_counts(hid_t file, const esp_architecture *architecture) {
  esp_model_cost cost;
  esp_config_cost(&architecture->config, architecture->layouts, &cost);
  ESP_TRY(esp_h5_set_number(file, "parameters", cost.parameters));
  ESP_TRY(esp_h5_set_number(file, "activated_parameters", cost.activated));
  return esp_h5_set_number(file, "flops_per_image", (int64_t)cost.flops);
}

/* What a save is made of. */
typedef struct contents {
  const esp_architecture *architecture;
  const esp_parameters *parameters;
  const esp_optimizer *optimizer; /* or NULL */
  const esp_checkpoint_info *info;
  int level;
} contents;

static esp_status write_contents(hid_t file, const void *context) {
  const contents *c = context;
  ESP_TRY(write_header(file, c->info->digest));
  ESP_TRY(write_counts(file, c->architecture));
  ESP_TRY(esp_architecture_write(file, c->architecture));
  ESP_TRY(esp_info_write(file, c->info));
  ESP_TRY(esp_arrays_write(file, "parameters", c->parameters, esp_parameters_values(c->parameters), c->level));
  return c->optimizer ? esp_optimizer_write(file, c->parameters, c->optimizer, c->level) : ESP_OK;
}

static size_t most_bytes(const contents *c) {
  const char *name;
  size_t arrays = 1, texts = strlen(c->architecture->text);
  if (c->info->run_config) texts += strlen(c->info->run_config);
  while (c->optimizer && esp_optimizer_state(c->optimizer, (int)arrays - 1, &name)) arrays++;
  const size_t layouts = (size_t)c->architecture->config.blocks * sizeof *c->architecture->layouts;
  return arrays * esp_arrays_most_bytes(c->parameters) + texts + layouts + sizeof *c->info + SPARE_BYTES;
}

static esp_status save(const char *path, const contents *c) {
  const esp_status status = esp_architecture_check(c->architecture);
  if (status != ESP_OK) return esp_fail_in(status, "%s", path);
  return esp_sealed_file_write(path, most_bytes(c), write_contents, c);
}

esp_status esp_checkpoint_save(const char *path, const esp_model *model, const esp_optimizer *optimizer,
                               esp_checkpoint_info *info, int compression) {
  if (compression < 0 || compression > 9) esp_panic("there is no compression %d; expected 0 to 9", compression);
  esp_architecture architecture;
  esp_status status = esp_architecture_of(&architecture, model);
  if (status == ESP_OK) {
    esp_digest_text(info->digest, esp_architecture_digest(&architecture, model->parameters));
    status = save(path, &(contents){&architecture, model->parameters, optimizer, info, compression});
  }
  esp_architecture_clear(&architecture);
  return status;
}
