#include <espalier/memory.h>
#include <espalier/parameters.h>
#include <espalier/random.h>

#include <fnmatch.h>
#include <stdio.h>
#include <string.h>

enum { NAME_SIZE = 128, OFFSET_MULTIPLE = 16 };

typedef struct entry {
  esp_parameter parameter;
  char name[NAME_SIZE];
} entry;

struct esp_parameters {
  entry **entries;
  int64_t count, capacity, size;
  esp_real *values, *gradients;
};

esp_parameters *esp_parameters_create(void) { return esp_alloc(1, sizeof(esp_parameters)); }

void esp_parameters_free(esp_parameters *parameters) {
  if (!parameters) return;
  for (int64_t i = 0; i < parameters->count; i++) esp_free(parameters->entries[i]);
  esp_free(parameters->entries);
  esp_free(parameters->values);
  esp_free(parameters->gradients);
  esp_free(parameters);
}

static bool grow(esp_parameters *parameters) {
  if (parameters->count < parameters->capacity) return true;
  const int64_t capacity = parameters->capacity ? 2 * parameters->capacity : 64;
  entry **entries = esp_alloc((size_t)capacity, sizeof(entry *));
  if (!entries) return false;
  if (parameters->count) memcpy(entries, parameters->entries, (size_t)parameters->count * sizeof(entry *));
  esp_free(parameters->entries);
  parameters->entries = entries;
  parameters->capacity = capacity;
  return true;
}

esp_parameter *esp_parameters_add(esp_parameters *parameters, const char *scope, const char *name,
                                  const esp_parameter_options *options) {
  if (!grow(parameters)) return NULL;
  entry *e = esp_alloc(1, sizeof *e);
  if (!e) return NULL;
  if (snprintf(e->name, sizeof e->name, "%s%s%s", scope, *scope ? "." : "", name) >= (int)sizeof e->name)
    esp_panic("the parameter name %s.%s is too long", scope, name);
  if (esp_parameters_find(parameters, e->name)) esp_panic("the parameter %s is declared twice", e->name);
  esp_parameter *p = &e->parameter;
  *p = (esp_parameter){.kind = options->kind,
                       .offset = parameters->size,
                       .deviation = options->deviation,
                       .constant = options->constant};
  p->tensor = (esp_tensor){.rank = options->rank, .requires_grad = options->kind != ESP_KIND_STATE, .name = e->name};
  memcpy(p->tensor.shape, options->shape, sizeof p->tensor.shape);
  p->count = esp_tensor_count(&p->tensor);
  parameters->size += (p->count + OFFSET_MULTIPLE - 1) / OFFSET_MULTIPLE * OFFSET_MULTIPLE;
  parameters->entries[parameters->count++] = e;
  return p;
}

static void initialise(esp_parameter *p, uint64_t seed) {
  const int64_t slice = p->shared_init ? p->count / p->tensor.shape[0] : p->count;
  esp_random stream = esp_random_stream(seed, ESP_PURPOSE_INIT, esp_hash_text(p->tensor.name));
  for (int64_t i = 0; i < slice; i++) {
    const double noise = p->deviation > 0 ? p->deviation * esp_random_normal(&stream) : 0;
    p->tensor.data[i] = (esp_real)(p->constant + noise);
  }
  for (int64_t i = slice; i < p->count; i++) p->tensor.data[i] = p->tensor.data[i - slice];
}

esp_status esp_parameters_allocate(esp_parameters *parameters, uint64_t seed) {
  parameters->values = esp_alloc((size_t)parameters->size, sizeof *parameters->values);
  parameters->gradients = esp_alloc((size_t)parameters->size, sizeof *parameters->gradients);
  if (!parameters->values || !parameters->gradients) return ESP_ERR_MEMORY;
  for (int64_t i = 0; i < parameters->count; i++) {
    esp_parameter *p = &parameters->entries[i]->parameter;
    p->tensor.data = parameters->values + p->offset;
    p->tensor.grad = parameters->gradients + p->offset;
    initialise(p, seed);
  }
  return ESP_OK;
}

int64_t esp_parameters_count(const esp_parameters *parameters) { return parameters->count; }

int64_t esp_parameters_size(const esp_parameters *parameters) { return parameters->size; }

esp_parameter *esp_parameters_at(const esp_parameters *parameters, int64_t index) {
  return &parameters->entries[index]->parameter;
}

esp_parameter *esp_parameters_find(const esp_parameters *parameters, const char *name) {
  for (int64_t i = 0; i < parameters->count; i++)
    if (strcmp(parameters->entries[i]->name, name) == 0) return &parameters->entries[i]->parameter;
  return NULL;
}

esp_real *esp_parameters_values(const esp_parameters *parameters) { return parameters->values; }

esp_real *esp_parameters_gradients(const esp_parameters *parameters) { return parameters->gradients; }

/* The first of the comma-separated patterns into `pattern`; returns what follows it. Patterns that are longer than any
 * name come out cut, and match nothing. */
static const char *next_pattern(const char *patterns, char pattern[NAME_SIZE]) {
  const size_t length = strcspn(patterns, ",");
  snprintf(pattern, NAME_SIZE, "%.*s", (int)length, patterns);
  return patterns + length + (patterns[length] == ',');
}

bool esp_name_matches(const char *patterns, const char *name) {
  char pattern[NAME_SIZE];
  while (*patterns) {
    patterns = next_pattern(patterns, pattern);
    if (fnmatch(pattern, name, 0) == 0) return true;
  }
  return false;
}

static int64_t freeze_matches(esp_parameters *parameters, const char *pattern) {
  int64_t matches = 0;
  for (int64_t i = 0; i < parameters->count; i++) {
    if (fnmatch(pattern, parameters->entries[i]->name, 0) != 0) continue;
    esp_parameter *p = &parameters->entries[i]->parameter;
    p->tensor.frozen = true;
    p->tensor.requires_grad = false;
    matches++;
  }
  return matches;
}

esp_status esp_parameters_freeze(esp_parameters *parameters, const char *patterns) {
  for (int64_t i = 0; i < parameters->count; i++) {
    esp_parameter *p = &parameters->entries[i]->parameter;
    p->tensor.frozen = false;
    p->tensor.requires_grad = p->kind != ESP_KIND_STATE;
  }
  char pattern[NAME_SIZE];
  while (*patterns) {
    patterns = next_pattern(patterns, pattern);
    if (*pattern && freeze_matches(parameters, pattern) == 0)
      return esp_fail(ESP_ERR_CONFIG, "freeze: no parameter matches \"%s\"; names look like \"%s\"", pattern,
                      parameters->count ? parameters->entries[0]->name : "");
  }
  return ESP_OK;
}

bool esp_parameters_can_train(const esp_parameters *parameters) {
  for (int64_t i = 0; i < parameters->count; i++)
    if (parameters->entries[i]->parameter.tensor.requires_grad) return true;
  return false;
}
