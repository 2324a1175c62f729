/* Flat arrays like that of the parameters' values, as a dataset for each parameter. */
#include "checkpoint_parts_internal.h"
#include <espalier/memory.h>

#include <stdio.h>
#include <string.h>

enum { NAMED_PROBLEMS = 5, PROBLEMS_SIZE = 1024 };

static esp_status write_arrays(hid_t group, const esp_parameters *parameters, const esp_real *flat, int level) {
  for (int64_t i = 0; i < esp_parameters_count(parameters); i++) {
    const esp_parameter *p = esp_parameters_at(parameters, i);
    const esp_h5_array array = esp_h5_floats(&p->tensor);
    ESP_TRY(esp_h5_write(group, p->tensor.name, &array, flat + p->offset, level));
  }
  return ESP_OK;
}

esp_status esp_arrays_write(hid_t place, const char *name, const esp_parameters *parameters, const esp_real *flat,
                            int level) {
  esp_h5_handles handles = {0};
  hid_t group;
  esp_status status = esp_h5_make_group(&handles, place, name, &group);
  if (status == ESP_OK) status = write_arrays(group, parameters, flat, level);
  esp_h5_close(&handles);
  return status;
}

size_t esp_arrays_most_bytes(const esp_parameters *parameters) {
  size_t bytes = 0;
  for (int64_t i = 0; i < esp_parameters_count(parameters); i++) {
    const esp_h5_array array = esp_h5_floats(&esp_parameters_at(parameters, i)->tensor);
    bytes += esp_h5_most_bytes(&array, sizeof(float));
  }
  return bytes;
}

/* What is wrong with a group: the first few things by name, all of them by number. */
typedef struct problems {
  const esp_parameters *parameters;
  int count;
  size_t used;
  char text[PROBLEMS_SIZE];
} problems;

static void add_problem(problems *p, const char *what, const char *name, const char *detail) {
  if (p->count++ >= NAMED_PROBLEMS) return;
  const int length =
      snprintf(p->text + p->used, sizeof p->text - p->used, "%s%s `%s`%s", p->used ? "; " : "", what, name, detail);
  if (length > 0) p->used += (size_t)length;
  if (p->used >= sizeof p->text) p->used = sizeof p->text - 1;
}

static esp_status report(const problems *p, const char *prefix) {
  if (p->count == 0) return ESP_OK;
  char more[48] = "";
  if (p->count > NAMED_PROBLEMS) snprintf(more, sizeof more, "; and %d more", p->count - NAMED_PROBLEMS);
  return esp_fail(ESP_ERR_FORMAT, "`%s` does not fit the model that `architecture/config` describes: %s%s", prefix,
                  p->text, more);
}

static esp_status check_one(problems *p, hid_t group, const esp_parameter *parameter) {
  const char *const name = parameter->tensor.name;
  const esp_h5_array wanted = esp_h5_floats(&parameter->tensor);
  esp_h5_array found = {0};
  char has[96], needs[96], detail[224];
  if (!esp_h5_has(group, name)) {
    add_problem(p, "missing", name, "");
    return ESP_OK;
  }
  esp_h5_handles handles = {0};
  hid_t data;
  const esp_status status = esp_h5_open(&handles, group, name, H5T_FLOAT, sizeof(float), &found, &data);
  esp_h5_close(&handles);
  ESP_TRY(status);
  if (esp_h5_same_shape(&found, &wanted)) return ESP_OK;
  snprintf(detail, sizeof detail, " is %s, expected %s", esp_h5_shape_text(&found, has, sizeof has),
           esp_h5_shape_text(&wanted, needs, sizeof needs));
  add_problem(p, "misshapen", name, detail);
  return ESP_OK;
}

static esp_status find_extra(void *context, hid_t group, const char *name) {
  problems *p = context;
  (void)group;
  if (!esp_parameters_find(p->parameters, name)) add_problem(p, "extra", name, "");
  return ESP_OK;
}

static esp_status check_group(hid_t group, problems *p) {
  for (int64_t i = 0; i < esp_parameters_count(p->parameters); i++)
    ESP_TRY(check_one(p, group, esp_parameters_at(p->parameters, i)));
  return esp_h5_each(group, find_extra, p);
}

esp_status esp_arrays_check(hid_t place, const char *name, const esp_parameters *parameters) {
  esp_h5_handles handles = {0};
  problems p = {.parameters = parameters};
  hid_t group;
  esp_status status = esp_h5_open_group(&handles, place, name, &group);
  if (status == ESP_OK) status = check_group(group, &p);
  esp_h5_close(&handles);
  return status == ESP_OK ? report(&p, name) : status;
}

static esp_status read_arrays(hid_t group, const esp_parameters *parameters, esp_real *flat) {
  for (int64_t i = 0; i < esp_parameters_count(parameters); i++) {
    const esp_parameter *p = esp_parameters_at(parameters, i);
    const esp_h5_array array = esp_h5_floats(&p->tensor);
    ESP_TRY(esp_h5_read_array(group, p->tensor.name, &array, flat + p->offset));
  }
  return ESP_OK;
}

esp_status esp_arrays_read(hid_t place, const char *name, const esp_parameters *parameters, esp_real *flat) {
  esp_h5_handles handles = {0};
  hid_t group;
  esp_status status = esp_h5_open_group(&handles, place, name, &group);
  if (status == ESP_OK) status = read_arrays(group, parameters, flat);
  esp_h5_close(&handles);
  return status;
}
