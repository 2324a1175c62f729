/* The digest that names a model: FNV-1a (Fowler, Noll, Vo), 64 bits. Each step is a bijection of the state, so
 * that no single changed byte goes unnoticed. */
#include "checkpoint_parts_internal.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

uint64_t esp_fnv(uint64_t digest, const void *bytes, size_t size) {
  const unsigned char *const byte = bytes;
  for (size_t i = 0; i < size; i++) digest = (digest ^ byte[i]) * UINT64_C(0x100000001b3);
  return digest;
}

/* Adds its end too, so that two texts in a row cannot be told apart in two ways. */
static uint64_t add_text(uint64_t digest, const char *text) { return esp_fnv(digest, text, strlen(text) + 1); }

static uint64_t add_layout(uint64_t digest, const esp_expert_layout *layout) {
  const int32_t counts[] = {layout->experts, layout->stored};
  const size_t size = (size_t)layout->experts * sizeof layout->index[0];
  digest = esp_fnv(digest, counts, sizeof counts);
  digest = esp_fnv(digest, layout->index, size);
  digest = esp_fnv(digest, layout->original_ids, size);
  const size_t stored = (size_t)layout->stored * sizeof layout->widths[0];
  if (layout->widths[0]) digest = esp_fnv(digest, layout->widths, stored); /* not as the config says */
  if (layout->skip > 0) digest = esp_fnv(digest, &layout->skip, sizeof layout->skip);
  if (layout->rank == 0) return digest;
  const int32_t factoring[] = {layout->rank, layout->pruning};
  digest = esp_fnv(digest, factoring, sizeof factoring);
  for (int side = 0; side < ESP_SIDES; side++) digest = esp_fnv(digest, layout->sparse_rows[side], stored);
  return digest;
}

static uint64_t add_parameter(uint64_t digest, const esp_parameter *p) {
  digest = add_text(digest, p->tensor.name);
  digest = esp_fnv(digest, p->tensor.shape, (size_t)p->tensor.rank * sizeof p->tensor.shape[0]);
  return esp_fnv(digest, p->tensor.data, (size_t)p->count * sizeof p->tensor.data[0]);
}

uint64_t esp_architecture_digest(const esp_architecture *architecture, const esp_parameters *parameters) {
  uint64_t digest = add_text(ESP_FNV_START, architecture->text);
  for (int i = 0; i < architecture->config.blocks; i++) digest = add_layout(digest, &architecture->layouts[i]);
  for (int64_t i = 0; i < esp_parameters_count(parameters); i++)
    digest = add_parameter(digest, esp_parameters_at(parameters, i));
  return digest;
}

void esp_digest_text(char text[ESP_DIGEST_SIZE], uint64_t digest) {
  snprintf(text, ESP_DIGEST_SIZE, "%016" PRIx64, digest);
}

esp_status esp_model_digest(const esp_model *model, char digest[ESP_DIGEST_SIZE]) {
  esp_architecture architecture;
  const esp_status status = esp_architecture_of(&architecture, model);
  if (status == ESP_OK) esp_digest_text(digest, esp_architecture_digest(&architecture, model->parameters));
  esp_architecture_clear(&architecture);
  return status;
}
