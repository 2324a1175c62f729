/* What a checkpoint tells besides the model: /data, /progress and /history are tables (compound datasets),
 * whose columns are listed here once for writing and reading. */
#include "checkpoint_parts_internal.h"
#include <espalier/memory.h>
#include <espalier/utf8.h>

#include <stdio.h>
#include <string.h>

typedef enum column_kind { END, TEXT, FLOATS, DOUBLE, SIGNED, UNSIGNED } column_kind;

/* A member of a struct. */
typedef struct column {
  const char *name;
  size_t offset;
  size_t size; /* in bytes */
  column_kind kind;
} column;

#define COLUMN(type, member, kind) \
  { #member, offsetof(type, member), sizeof((type *)0)->member, kind }

/* Data set and normalisation; in esp_checkpoint_info they are no struct of their own. */
typedef struct data_row {
  char name[64], digest[64];
  float mean[ESP_MAX_CHANNELS], deviation[ESP_MAX_CHANNELS];
} data_row;

static const column data_columns[] = {COLUMN(data_row, name, TEXT),
                                      COLUMN(data_row, digest, TEXT),
                                      COLUMN(data_row, mean, FLOATS),
                                      COLUMN(data_row, deviation, FLOATS),
                                      {0}};

static const column progress_columns[] = {COLUMN(esp_progress, step, SIGNED),
                                          COLUMN(esp_progress, steps, SIGNED),
                                          COLUMN(esp_progress, batches, SIGNED),
                                          COLUMN(esp_progress, seed, UNSIGNED),
                                          COLUMN(esp_progress, best_accuracy, DOUBLE),
                                          COLUMN(esp_progress, best_step, SIGNED),
                                          {0}};

static const column history_columns[] = {COLUMN(esp_history_entry, action, TEXT),
                                         COLUMN(esp_history_entry, detail, TEXT),
                                         COLUMN(esp_history_entry, parent, TEXT),
                                         COLUMN(esp_history_entry, reference, TEXT),
                                         COLUMN(esp_history_entry, frozen, TEXT),
                                         COLUMN(esp_history_entry, steps, SIGNED),
                                         {0}};

static hid_t column_type(const column *c) {
  if (c->kind == DOUBLE) return H5Tcopy(H5T_NATIVE_DOUBLE);
  if (c->kind == SIGNED) return H5Tcopy(H5T_NATIVE_INT64);
  if (c->kind == UNSIGNED) return H5Tcopy(H5T_NATIVE_UINT64);
  if (c->kind == FLOATS) return H5Tarray_create2(H5T_NATIVE_FLOAT, 1, (const hsize_t[]){c->size / sizeof(float)});
  const hid_t type = H5Tcopy(H5T_C_S1);
  if (type >= 0 && H5Tset_size(type, c->size) >= 0) H5Tset_cset(type, H5T_CSET_UTF8);
  return type;
}

/* The struct as it lies in memory, and packed as it is stored. */
static esp_status table_types(esp_h5_handles *handles, const column *columns, size_t size, esp_h5_array *array) {
  array->type = esp_h5_keep(handles, H5Tcreate(H5T_COMPOUND, size));
  bool done = array->type >= 0;
  for (const column *c = columns; done && c->kind != END; c++) {
    const hid_t type = column_type(c);
    done = type >= 0 && H5Tinsert(array->type, c->name, c->offset, type) >= 0;
    if (type >= 0) H5Tclose(type);
  }
  array->stored = done ? esp_h5_keep(handles, H5Tcopy(array->type)) : H5I_INVALID_HID;
  if (array->stored >= 0 && H5Tpack(array->stored) >= 0) return ESP_OK;
  return esp_fail(ESP_ERR_MEMORY, "HDF5 cannot describe a table: %s", esp_h5_reason());
}

static esp_status write_table(hid_t file, const char *name, const column *columns, size_t size, int count,
                              const void *rows) {
  esp_h5_handles handles = {0};
  esp_h5_array array = {.rank = 1, .shape = {(hsize_t)count}};
  esp_status status = table_types(&handles, columns, size, &array);
  if (status == ESP_OK) status = esp_h5_write(file, name, &array, rows, 0);
  esp_h5_close(&handles);
  return status;
}

static esp_status end_texts(const column *columns, size_t size, hsize_t count, char *rows) {
  for (hsize_t i = 0; i < count; i++)
    for (const column *c = columns; c->kind != END; c++) {
      char *const text = rows + i * size + c->offset;
      if (c->kind != TEXT) continue;
      text[c->size - 1] = '\0';
      if (!esp_is_utf8(text))
        return esp_fail(ESP_ERR_FORMAT, "the column `%s` holds a text that is not UTF-8", c->name);
    }
  return ESP_OK;
}

/* The stored table must have just these columns: HDF5 would silently leave out what has no counterpart. */
static esp_status read_rows(esp_h5_handles *handles, hid_t file, const char *name, const column *columns, size_t size,
                            int most, int *count, void *rows) {
  esp_h5_array wanted, found = {0};
  hid_t data;
  ESP_TRY(table_types(handles, columns, size, &wanted));
  ESP_TRY(esp_h5_open(handles, file, name, H5T_COMPOUND, 0, &found, &data));
  const hid_t stored = esp_h5_keep(handles, H5Dget_type(data));
  if (stored < 0 || H5Tequal(stored, wanted.stored) <= 0)
    return esp_fail(ESP_ERR_FORMAT, "the table `%s` has other columns than format %d", name, (int)ESP_FORMAT_VERSION);
  if (found.rank != 1 || found.shape[0] < 1 || found.shape[0] > (hsize_t)most)
    return esp_fail(ESP_ERR_FORMAT, "the table `%s` has %llu rows; expected 1 to %d", name,
                    (unsigned long long)found.shape[0], most);
  ESP_TRY(esp_h5_read(data, name, wanted.type, rows));
  ESP_TRY(end_texts(columns, size, found.shape[0], rows));
  *count = (int)found.shape[0];
  return ESP_OK;
}

static esp_status read_table(hid_t file, const char *name, const column *columns, size_t size, int most, int *count,
                             void *rows) {
  esp_h5_handles handles = {0};
  const esp_status status = read_rows(&handles, file, name, columns, size, most, count, rows);
  esp_h5_close(&handles);
  return status;
}

static esp_status write_data(hid_t file, const esp_checkpoint_info *info) {
  data_row row = {0};
  memcpy(row.name, info->data_name, sizeof row.name);
  esp_utf8_trim(row.name);
  memcpy(row.digest, info->data_digest, sizeof row.digest);
  memcpy(row.mean, info->normalisation.mean, sizeof row.mean);
  memcpy(row.deviation, info->normalisation.deviation, sizeof row.deviation);
  return write_table(file, "data", data_columns, sizeof row, 1, &row);
}

static esp_status read_data(hid_t file, esp_checkpoint_info *info) {
  data_row row = {0};
  int count;
  ESP_TRY(read_table(file, "data", data_columns, sizeof row, 1, &count, &row));
  memcpy(info->data_name, row.name, sizeof row.name);
  memcpy(info->data_digest, row.digest, sizeof row.digest);
  memcpy(info->normalisation.mean, row.mean, sizeof row.mean);
  memcpy(info->normalisation.deviation, row.deviation, sizeof row.deviation);
  return ESP_OK;
}

static esp_status write_run(hid_t file, const char *config) {
  esp_h5_handles handles = {0};
  hid_t run;
  esp_status status = esp_h5_make_group(&handles, file, "run", &run);
  if (status == ESP_OK) status = esp_h5_write_text(run, "config", config);
  esp_h5_close(&handles);
  return status;
}

esp_status esp_info_write(hid_t file, const esp_checkpoint_info *info) {
  if (info->history_count < 0 || info->history_count > ESP_MAX_HISTORY)
    esp_panic("a checkpoint's history has %d entries", info->history_count);
  ESP_TRY(write_data(file, info));
  ESP_TRY(write_table(file, "progress", progress_columns, sizeof info->progress, 1, &info->progress));
  if (info->history_count > 0)
    ESP_TRY(write_table(file, "history", history_columns, sizeof info->history[0], info->history_count, info->history));
  return info->run_config ? write_run(file, info->run_config) : ESP_OK;
}

static esp_status check_progress(const esp_checkpoint_info *info) {
  const esp_progress *p = &info->progress;
  if (p->step >= 0 && p->steps >= 0 && p->batches >= 0) return ESP_OK;
  return esp_fail(ESP_ERR_FORMAT,
                  "`progress` tells of step %lld of %lld after %lld batches; expected no negative numbers",
                  (long long)p->step, (long long)p->steps, (long long)p->batches);
}

esp_status esp_info_read(hid_t file, esp_checkpoint_info *info) {
  int count;
  ESP_TRY(read_data(file, info));
  ESP_TRY(read_table(file, "progress", progress_columns, sizeof info->progress, 1, &count, &info->progress));
  ESP_TRY(check_progress(info));
  if (esp_h5_has(file, "history"))
    ESP_TRY(read_table(file, "history", history_columns, sizeof info->history[0], ESP_MAX_HISTORY, &info->history_count,
                       info->history));
  return esp_h5_has(file, "run") ? esp_h5_read_text(file, "run/config", &info->run_config) : ESP_OK;
}

esp_status esp_checkpoint_add_history(esp_checkpoint_info *info, const char *action, const char *detail,
                                      const char *parent, const char *reference) {
  if (info->history_count == ESP_MAX_HISTORY)
    return esp_fail(ESP_ERR_MISMATCH,
                    "the model has been through %d actions already, the most a checkpoint can tell of",
                    ESP_MAX_HISTORY);
  esp_history_entry *entry = &info->history[info->history_count++];
  *entry = (esp_history_entry){.steps = 0};
  snprintf(entry->action, sizeof entry->action, "%s", action);
  snprintf(entry->detail, sizeof entry->detail, "%s", detail);
  esp_utf8_trim(entry->detail);
  snprintf(entry->parent, sizeof entry->parent, "%s", parent);
  snprintf(entry->reference, sizeof entry->reference, "%s", reference);
  return ESP_OK;
}

void esp_checkpoint_info_clear(esp_checkpoint_info *info) {
  esp_free(info->run_config);
  info->run_config = NULL;
}
