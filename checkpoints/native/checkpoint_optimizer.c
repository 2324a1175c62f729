/* /optimizer: its steps, and a group for each of its state arrays. */
#include "checkpoint_parts_internal.h"

#include <stdio.h>
#include <string.h>

enum { NAMES_SIZE = 256 };

static esp_status write_states(hid_t group, const esp_parameters *parameters, const esp_optimizer *optimizer,
                               int level) {
  const int64_t steps = esp_optimizer_steps(optimizer);
  const esp_h5_array one = esp_h5_numbers(H5T_STD_I64LE, H5T_NATIVE_INT64, 1);
  const char *name;
  const esp_real *flat;
  ESP_TRY(esp_h5_write(group, "steps", &one, &steps, 0));
  for (int i = 0; (flat = esp_optimizer_state(optimizer, i, &name)) != NULL; i++)
    ESP_TRY(esp_arrays_write(group, name, parameters, flat, level));
  return ESP_OK;
}

esp_status esp_optimizer_write(hid_t file, const esp_parameters *parameters, const esp_optimizer *optimizer,
                               int level) {
  esp_h5_handles handles = {0};
  hid_t group;
  esp_status status = esp_h5_make_group(&handles, file, "optimizer", &group);
  if (status == ESP_OK) status = write_states(group, parameters, optimizer, level);
  esp_h5_close(&handles);
  return status;
}

/* Names of states as a text: "first_moment, second_moment". */
typedef struct state_names {
  int count;
  size_t used;
  char text[NAMES_SIZE];
} state_names;

static esp_status add_name(void *context, hid_t group, const char *name) {
  state_names *names = context;
  (void)group;
  if (strcmp(name, "steps") == 0) return ESP_OK;
  names->count++;
  if (names->used >= sizeof names->text) return ESP_OK;
  const int length =
      snprintf(names->text + names->used, sizeof names->text - names->used, "%s%s", names->used ? ", " : "", name);
  names->used += length > 0 ? (size_t)length : 0;
  return ESP_OK;
}

static esp_status check_states(hid_t group, const esp_optimizer *optimizer) {
  state_names found = {0}, wanted = {0};
  const char *name;
  bool same = true;
  ESP_TRY(esp_h5_each(group, add_name, &found));
  for (int i = 0; esp_optimizer_state(optimizer, i, &name); i++) {
    ESP_TRY(add_name(&wanted, group, name));
    same = same && esp_h5_has(group, name);
  }
  if (same && found.count == wanted.count) return ESP_OK;
  return esp_fail(ESP_ERR_MISMATCH,
                  "holds the state of another optimiser: %s; expected %s; set the optimiser that wrote "
                  "it, or start anew without resuming",
                  found.text, wanted.text);
}

/* All is checked before anything is read. */
static esp_status read_states(hid_t group, const esp_parameters *parameters, esp_optimizer *optimizer) {
  const esp_h5_array one = esp_h5_numbers(H5T_STD_I64LE, H5T_NATIVE_INT64, 1);
  const char *name;
  esp_real *flat;
  int64_t steps;
  ESP_TRY(check_states(group, optimizer));
  ESP_TRY(esp_h5_read_array(group, "steps", &one, &steps));
  if (steps < 0) return esp_fail(ESP_ERR_FORMAT, "the optimiser has done %lld steps", (long long)steps);
  for (int i = 0; esp_optimizer_state(optimizer, i, &name); i++) ESP_TRY(esp_arrays_check(group, name, parameters));
  for (int i = 0; (flat = esp_optimizer_state(optimizer, i, &name)) != NULL; i++)
    ESP_TRY(esp_arrays_read(group, name, parameters, flat));
  esp_optimizer_set_steps(optimizer, steps);
  return ESP_OK;
}

static esp_status read_group(hid_t file, void *context) {
  esp_optimizer *const optimizer = context;
  esp_h5_handles handles = {0};
  hid_t group;
  if (!esp_h5_has(file, "optimizer"))
    return esp_fail(ESP_ERR_MISMATCH,
                    "holds no optimiser state, so no training can be resumed from it; start anew from "
                    "its weights");
  esp_status status = esp_h5_open_group(&handles, file, "optimizer", &group);
  if (status == ESP_OK) status = read_states(group, esp_optimizer_parameters(optimizer), optimizer);
  esp_h5_close(&handles);
  return status;
}

esp_status esp_checkpoint_load_optimizer(const char *path, esp_optimizer *optimizer) {
  return esp_checkpoint_read(path, "checkpoint", read_group, optimizer);
}
