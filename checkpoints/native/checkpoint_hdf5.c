#include "checkpoint_hdf5_internal.h"
#include <espalier/memory.h>

#include <stdio.h>
#include <string.h>

enum {
  ELEMENTS_PER_CHUNK = 1 << 20,
  LONGEST_TEXT = 1 << 20,
  LARGEST_RATIO = 1032,  /* of deflate */
  DEFLATE_EXCESS = 1000, /* what cannot be compressed grows by less than a thousandth */
  BYTES_PER_DATASET = 4096,
  REASON_SIZE = 256,
  MOST_LINKS = 1 << 16
};

/* ---- errors and handles ---- */

esp_h5_silence esp_h5_begin_silence(void) {
  esp_h5_silence silence;
  H5Eget_auto2(H5E_DEFAULT, &silence.print, &silence.data);
  H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
  return silence;
}

void esp_h5_end_silence(const esp_h5_silence *silence) { H5Eset_auto2(H5E_DEFAULT, silence->print, silence->data); }

static herr_t take_innermost(unsigned n, const H5E_error2_t *error, void *reason) {
  if (n == 0 && error->desc) snprintf(reason, REASON_SIZE, "%s", error->desc);
  return 0;
}

const char *esp_h5_reason(void) {
  static _Thread_local char reason[REASON_SIZE];
  snprintf(reason, sizeof reason, "no reason given by HDF5");
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, take_innermost, reason);
  return reason;
}

hid_t esp_h5_keep(esp_h5_handles *handles, hid_t id) {
  if (id < 0) return id;
  if (handles->count == (int)(sizeof handles->ids / sizeof handles->ids[0]))
    esp_panic("more HDF5 handles than a function can keep");
  handles->ids[handles->count++] = id;
  return id;
}

void esp_h5_close(esp_h5_handles *handles) {
  while (handles->count > 0) H5Idec_ref(handles->ids[--handles->count]);
}

/* ---- shapes ---- */

esp_h5_array esp_h5_floats(const esp_tensor *shaped) {
  esp_h5_array array = {.stored = H5T_IEEE_F32LE, .type = H5T_NATIVE_FLOAT, .rank = shaped->rank};
  for (int i = 0; i < shaped->rank; i++) array.shape[i] = (hsize_t)shaped->shape[i];
  return array;
}

esp_h5_array esp_h5_numbers(hid_t stored, hid_t type, int64_t count) {
  return (esp_h5_array){.stored = stored, .type = type, .rank = 1, .shape = {(hsize_t)count}};
}

bool esp_h5_same_shape(const esp_h5_array *a, const esp_h5_array *b) {
  return a->rank == b->rank && memcmp(a->shape, b->shape, (size_t)a->rank * sizeof a->shape[0]) == 0;
}

char *esp_h5_shape_text(const esp_h5_array *array, char *text, size_t size) {
  size_t used = (size_t)snprintf(text, size, "[");
  for (int i = 0; i < array->rank && used < size; i++)
    used += (size_t)snprintf(text + used, size - used, "%s%llu", i ? ", " : "", (unsigned long long)array->shape[i]);
  if (used < size) snprintf(text + used, size - used, "]");
  return text;
}

static double count_elements(const esp_h5_array *array) {
  double count = 1;
  for (int i = 0; i < array->rank; i++) count *= (double)array->shape[i];
  return count;
}

/* Whole slices of the last dimensions, as many as fit, in chunks of nearly the same size. */
static void set_chunk(const esp_h5_array *array, hsize_t chunk[]) {
  hsize_t left = ELEMENTS_PER_CHUNK;
  for (int i = array->rank - 1; i >= 0; i--) {
    const hsize_t chunks = (array->shape[i] + left - 1) / left;
    chunk[i] = (array->shape[i] + chunks - 1) / chunks;
    left = left / chunk[i] ? left / chunk[i] : 1;
  }
}

size_t esp_h5_most_bytes(const esp_h5_array *array, size_t size) {
  hsize_t chunk[ESP_MAX_RANK], elements = 1;
  set_chunk(array, chunk);
  for (int i = 0; i < array->rank; i++) elements *= (array->shape[i] + chunk[i] - 1) / chunk[i] * chunk[i];
  const size_t bytes = (size_t)elements * size;
  return bytes + bytes / DEFLATE_EXCESS + BYTES_PER_DATASET;
}

/* ---- writing ---- */

static esp_status fail_write(const char *name) {
  return esp_fail(ESP_ERR_MEMORY, "HDF5 cannot take up `%s`: %s", name, esp_h5_reason());
}

static hid_t storage(esp_h5_handles *handles, const esp_h5_array *array, int level) {
  hsize_t chunk[ESP_MAX_RANK];
  set_chunk(array, chunk);
  const hid_t list = esp_h5_keep(handles, H5Pcreate(H5P_DATASET_CREATE));
  bool done = list >= 0 && H5Pset_chunk(list, array->rank, chunk) >= 0;
  if (level > 0) done = done && H5Pset_shuffle(list) >= 0 && H5Pset_deflate(list, (unsigned)level) >= 0;
  done = done && H5Pset_fletcher32(list) >= 0 && H5Pset_obj_track_times(list, false) >= 0;
  return done ? list : H5I_INVALID_HID;
}

/* HDF5's filters do it where elements have another form in memory than in the file. */
static esp_status fill_dataset(hid_t data, const char *name, const esp_h5_array *array, const void *values, int level) {
  hsize_t chunk[ESP_MAX_RANK];
  set_chunk(array, chunk);
  if (level > 0 && H5Tequal(array->stored, array->type) > 0)
    return esp_h5_write_chunks(data, array, chunk, values, level);
  return H5Dwrite(data, array->type, H5S_ALL, H5S_ALL, H5P_DEFAULT, values) >= 0 ? ESP_OK : fail_write(name);
}

esp_status esp_h5_write(hid_t place, const char *name, const esp_h5_array *array, const void *values, int level) {
  esp_h5_handles handles = {0};
  const hid_t list = storage(&handles, array, level);
  const hid_t space = esp_h5_keep(&handles, H5Screate_simple(array->rank, array->shape, NULL));
  hid_t data = H5I_INVALID_HID;
  if (list >= 0 && space >= 0)
    data = esp_h5_keep(&handles, H5Dcreate2(place, name, array->stored, space, H5P_DEFAULT, list, H5P_DEFAULT));
  const esp_status status = data >= 0 ? fill_dataset(data, name, array, values, level) : fail_write(name);
  esp_h5_close(&handles);
  return status;
}

static hid_t text_type(esp_h5_handles *handles, size_t size) {
  const hid_t type = esp_h5_keep(handles, H5Tcopy(H5T_C_S1));
  const bool done = type >= 0 && H5Tset_size(type, size) >= 0 && H5Tset_cset(type, H5T_CSET_UTF8) >= 0;
  return done ? type : H5I_INVALID_HID;
}

esp_status esp_h5_write_text(hid_t place, const char *name, const char *text) {
  esp_h5_handles handles = {0};
  const hid_t type = text_type(&handles, strlen(text) + 1);
  const esp_h5_array array = esp_h5_numbers(type, type, 1);
  const esp_status status = type < 0 ? fail_write(name) : esp_h5_write(place, name, &array, text, 0);
  esp_h5_close(&handles);
  return status;
}

static esp_status set_attribute(hid_t place, const char *name, hid_t stored, hid_t type, const void *value) {
  esp_h5_handles handles = {0};
  const hid_t space = esp_h5_keep(&handles, H5Screate(H5S_SCALAR));
  hid_t attribute = H5I_INVALID_HID;
  if (space >= 0 && stored >= 0)
    attribute = esp_h5_keep(&handles, H5Acreate2(place, name, stored, space, H5P_DEFAULT, H5P_DEFAULT));
  const esp_status status = attribute >= 0 && H5Awrite(attribute, type, value) >= 0 ? ESP_OK : fail_write(name);
  esp_h5_close(&handles);
  return status;
}

esp_status esp_h5_set_text(hid_t place, const char *name, const char *text) {
  esp_h5_handles handles = {0};
  const hid_t type = text_type(&handles, strlen(text) + 1);
  const esp_status status = set_attribute(place, name, type, type, text);
  esp_h5_close(&handles);
  return status;
}

esp_status esp_h5_set_number(hid_t place, const char *name, int64_t value) {
  return set_attribute(place, name, H5T_STD_I64LE, H5T_NATIVE_INT64, &value);
}

esp_status esp_h5_make_group(esp_h5_handles *handles, hid_t place, const char *name, hid_t *group) {
  *group = esp_h5_keep(handles, H5Gcreate2(place, name, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT));
  return *group >= 0 ? ESP_OK : fail_write(name);
}

/* ---- reading ---- */

static esp_status fail_read(const char *name) {
  return esp_fail(ESP_ERR_FORMAT, "`%s` cannot be read, the file is damaged: %s", name, esp_h5_reason());
}

bool esp_h5_has(hid_t place, const char *name) { return H5Lexists(place, name, H5P_DEFAULT) > 0; }

bool esp_h5_has_attribute(hid_t place, const char *name) { return H5Aexists(place, name) > 0; }

/* Says whether something is missing or damaged. */
static esp_status fail_open(hid_t place, const char *name, const char *what) {
  if (H5Lexists(place, name, H5P_DEFAULT) == 0)
    return esp_fail(ESP_ERR_FORMAT, "the %s `%s` is missing; expected a complete Espalier checkpoint", what, name);
  return esp_fail(ESP_ERR_FORMAT, "the %s `%s` cannot be opened, the file is damaged: %s", what, name, esp_h5_reason());
}

esp_status esp_h5_open_group(esp_h5_handles *handles, hid_t place, const char *name, hid_t *group) {
  ESP_TRY(esp_h5_check_links(place, name));
  *group = esp_h5_keep(handles, H5Gopen2(place, name, H5P_DEFAULT));
  return *group >= 0 ? ESP_OK : fail_open(place, name, "group");
}

/* size 0: any. */
static esp_status check_type(const char *name, hid_t type, H5T_class_t kind, size_t size) {
  const bool fixed = type >= 0 && H5Tget_class(type) == kind && H5Tis_variable_str(type) <= 0;
  if (fixed && (size == 0 || H5Tget_size(type) == size)) return ESP_OK;
  const char *expected = kind == H5T_FLOAT     ? "floating-point numbers"
                         : kind == H5T_INTEGER ? "integers"
                         : kind == H5T_STRING  ? "text of fixed length"
                                               : "a table";
  char bytes[48] = "";
  if (size) snprintf(bytes, sizeof bytes, " of %zu bytes each", size);
  return esp_fail(ESP_ERR_FORMAT, "`%s` holds another type of values; expected %s%s", name, expected, bytes);
}

/* Before memory is taken: a few stored bytes must not claim to be a mountain of numbers. */
static esp_status check_stored(const char *name, hid_t data, hid_t type, const esp_h5_array *array) {
  const double claimed = count_elements(array) * (double)H5Tget_size(type);
  const double stored = (double)H5Dget_storage_size(data);
  if (claimed <= stored * LARGEST_RATIO) return ESP_OK;
  char shape[96];
  return esp_fail(ESP_ERR_FORMAT, "`%s` claims the shape %s, %.0f bytes, but has only %.0f bytes in the file", name,
                  esp_h5_shape_text(array, shape, sizeof shape), claimed, stored);
}

static esp_status read_shape(hid_t space, const char *name, esp_h5_array *array) {
  array->rank = H5Sget_simple_extent_ndims(space);
  if (array->rank < 1 || array->rank > ESP_MAX_RANK)
    return esp_fail(ESP_ERR_FORMAT, "`%s` has %d dimensions; expected 1 to %d", name, array->rank, (int)ESP_MAX_RANK);
  return H5Sget_simple_extent_dims(space, array->shape, NULL) < 0 ? fail_read(name) : ESP_OK;
}

static esp_status check_opened(hid_t data, hid_t type, hid_t space, const char *name, H5T_class_t kind, size_t size,
                               esp_h5_array *array) {
  ESP_TRY(check_type(name, type, kind, size));
  ESP_TRY(esp_h5_check_storage(data, name, type));
  ESP_TRY(read_shape(space, name, array));
  return check_stored(name, data, type, array);
}

esp_status esp_h5_open(esp_h5_handles *handles, hid_t place, const char *name, H5T_class_t kind, size_t size,
                       esp_h5_array *array, hid_t *dataset) {
  ESP_TRY(esp_h5_check_links(place, name));
  *dataset = esp_h5_keep(handles, H5Dopen2(place, name, H5P_DEFAULT));
  if (*dataset < 0) return fail_open(place, name, "dataset");
  esp_h5_handles inner = {0};
  const hid_t type = esp_h5_keep(&inner, H5Dget_type(*dataset));
  const hid_t space = esp_h5_keep(&inner, H5Dget_space(*dataset));
  const esp_status status = check_opened(*dataset, type, space, name, kind, size, array);
  esp_h5_close(&inner);
  return status;
}

esp_status esp_h5_read(hid_t dataset, const char *name, hid_t type, void *values) {
  return H5Dread(dataset, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, values) < 0 ? fail_read(name) : ESP_OK;
}

static esp_status read_expected(esp_h5_handles *handles, hid_t place, const char *name, const esp_h5_array *expected,
                                void *values) {
  esp_h5_array found = {0};
  hid_t data;
  ESP_TRY(
      esp_h5_open(handles, place, name, H5Tget_class(expected->type), H5Tget_size(expected->stored), &found, &data));
  char has[96], needs[96];
  if (!esp_h5_same_shape(&found, expected))
    return esp_fail(ESP_ERR_FORMAT, "`%s` has the shape %s; expected %s", name,
                    esp_h5_shape_text(&found, has, sizeof has), esp_h5_shape_text(expected, needs, sizeof needs));
  return esp_h5_read(data, name, expected->type, values);
}

esp_status esp_h5_read_array(hid_t place, const char *name, const esp_h5_array *array, void *values) {
  esp_h5_handles handles = {0};
  const esp_status status = read_expected(&handles, place, name, array, values);
  esp_h5_close(&handles);
  return status;
}

static esp_status read_text(esp_h5_handles *handles, hid_t place, const char *name, char **text) {
  esp_h5_array found = {0};
  hid_t data;
  ESP_TRY(esp_h5_open(handles, place, name, H5T_STRING, 0, &found, &data));
  const hid_t stored = esp_h5_keep(handles, H5Dget_type(data));
  const size_t size = H5Tget_size(stored);
  if (found.rank != 1 || found.shape[0] != 1 || size > LONGEST_TEXT)
    return esp_fail(ESP_ERR_FORMAT, "`%s` is not one text of at most %d bytes", name, (int)LONGEST_TEXT);
  char *made = esp_alloc(size + 1, 1);
  if (!made) return ESP_ERR_MEMORY;
  const esp_status status = esp_h5_read(data, name, stored, made);
  if (status == ESP_OK) *text = made;
  else esp_free(made);
  return status;
}

esp_status esp_h5_read_text(hid_t place, const char *name, char **text) {
  esp_h5_handles handles = {0};
  const esp_status status = read_text(&handles, place, name, text);
  esp_h5_close(&handles);
  return status;
}

/* An attribute with its type and the number of its elements. */
static esp_status open_attribute(esp_h5_handles *handles, hid_t place, const char *name, hid_t *attribute,
                                 hid_t *type) {
  if (H5Aexists(place, name) <= 0)
    return esp_fail(ESP_ERR_FORMAT, "the attribute `%s` is missing; expected an Espalier checkpoint", name);
  *attribute = esp_h5_keep(handles, H5Aopen(place, name, H5P_DEFAULT));
  if (*attribute < 0) return fail_read(name);
  *type = esp_h5_keep(handles, H5Aget_type(*attribute));
  const hid_t space = esp_h5_keep(handles, H5Aget_space(*attribute));
  if (*type >= 0 && space >= 0 && H5Sget_simple_extent_npoints(space) == 1) return ESP_OK;
  return esp_fail(ESP_ERR_FORMAT, "the attribute `%s` is not a single value", name);
}

static esp_status get_text(esp_h5_handles *handles, hid_t place, const char *name, char *text, size_t size) {
  hid_t attribute, type;
  ESP_TRY(open_attribute(handles, place, name, &attribute, &type));
  ESP_TRY(check_type(name, type, H5T_STRING, 0));
  if (H5Tget_size(type) > size)
    return esp_fail(ESP_ERR_FORMAT, "the attribute `%s` has %zu bytes; expected at most %zu", name, H5Tget_size(type),
                    size);
  if (H5Aread(attribute, type, text) < 0) return fail_read(name);
  text[size - 1] = '\0';
  return ESP_OK;
}

esp_status esp_h5_get_text(hid_t place, const char *name, char *text, size_t size) {
  esp_h5_handles handles = {0};
  memset(text, 0, size);
  const esp_status status = get_text(&handles, place, name, text, size);
  esp_h5_close(&handles);
  return status;
}

static esp_status get_number(esp_h5_handles *handles, hid_t place, const char *name, int64_t *value) {
  hid_t attribute, type;
  ESP_TRY(open_attribute(handles, place, name, &attribute, &type));
  ESP_TRY(check_type(name, type, H5T_INTEGER, 0));
  return H5Aread(attribute, H5T_NATIVE_INT64, value) < 0 ? fail_read(name) : ESP_OK;
}

esp_status esp_h5_get_number(hid_t place, const char *name, int64_t *value) {
  esp_h5_handles handles = {0};
  const esp_status status = get_number(&handles, place, name, value);
  esp_h5_close(&handles);
  return status;
}

esp_status esp_h5_each(hid_t group, esp_h5_visit *visit, void *context) {
  H5G_info_t info;
  if (H5Gget_info(group, &info) < 0) return fail_read("a group");
  if (info.nlinks > MOST_LINKS)
    return esp_fail(ESP_ERR_FORMAT, "a group has %llu entries; expected at most %d", (unsigned long long)info.nlinks,
                    (int)MOST_LINKS);
  for (hsize_t i = 0; i < info.nlinks; i++) {
    char name[256];
    if (H5Lget_name_by_idx(group, ".", H5_INDEX_NAME, H5_ITER_INC, i, name, sizeof name, H5P_DEFAULT) < 0)
      return fail_read("the names of a group");
    ESP_TRY(visit(context, group, name));
  }
  return ESP_OK;
}
