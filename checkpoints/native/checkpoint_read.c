#include "checkpoint_parts_internal.h"
#include <espalier/factors.h>
#include <espalier/input_file.h>
#include <espalier/memory.h>

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

/* The parameters of a model are allowed to be a little more than the estimate from the file's own sizes. */
enum { TEXT_SIZE = 64, SPARE_ELEMENTS = 1 << 16 };

/* ---- the file ---- */

static esp_status open_file(esp_checkpoint_file *file, const char *path, const char *kind) {
  char expected[TEXT_SIZE];
  snprintf(expected, sizeof expected, "a %s", kind);
  ESP_TRY(esp_input_check(path, expected));
  ESP_TRY(esp_seal_check(path));
  const hid_t list = esp_h5_keep(&file->handles, H5Pcreate(H5P_FILE_ACCESS));
  /* A checkpoint never changes once it has its name, so there is nothing to lock; some file systems cannot. */
  if (list >= 0) H5Pset_file_locking(list, false, true);
  const htri_t known = H5Fis_hdf5(path);
  if (known == 0) return esp_fail(ESP_ERR_FORMAT, "is not an HDF5 file; expected an Espalier %s", kind);
  file->id = esp_h5_keep(&file->handles, H5Fopen(path, H5F_ACC_RDONLY, list < 0 ? H5P_DEFAULT : list));
  if (file->id >= 0) return ESP_OK;
  return esp_fail(ESP_ERR_FORMAT, "cannot be opened, the file is damaged or cut short: %s", esp_h5_reason());
}

static esp_status check_header(hid_t file, const char *kind) {
  char format[TEXT_SIZE], expected[TEXT_SIZE];
  int64_t version;
  snprintf(expected, sizeof expected, "espalier %s", kind);
  ESP_TRY(esp_h5_get_text(file, "format", format, sizeof format));
  if (strcmp(format, expected) != 0)
    return esp_fail(ESP_ERR_FORMAT, "calls itself \"%s\"; expected \"%s\"", format, expected);
  ESP_TRY(esp_h5_get_number(file, "format_version", &version));
  if (version == ESP_FORMAT_VERSION) return ESP_OK;
  return esp_fail(ESP_ERR_FORMAT, "written by format %lld, this program reads %d: %s", (long long)version,
                  (int)ESP_FORMAT_VERSION,
                  version > ESP_FORMAT_VERSION ? "update espalier" : "there was no such format");
}

esp_status esp_checkpoint_open(esp_checkpoint_file *file, const char *path, const char *kind) {
  *file = (esp_checkpoint_file){.silence = esp_h5_begin_silence(), .id = H5I_INVALID_HID};
  ESP_TRY(open_file(file, path, kind));
  return check_header(file->id, kind);
}

void esp_checkpoint_close(esp_checkpoint_file *file) {
  esp_h5_close(&file->handles);
  esp_h5_end_silence(&file->silence);
}

/* ---- the model ---- */

typedef struct sizes {
  double elements, bytes; /* claimed, kept in the file */
} sizes;

static esp_status add_sizes(void *context, hid_t group, const char *name) {
  sizes *sum = context;
  esp_h5_handles handles = {0};
  esp_h5_array array = {0};
  hid_t data;
  const esp_status status = esp_h5_open(&handles, group, name, H5T_FLOAT, sizeof(float), &array, &data);
  double elements = 1;
  for (int i = 0; i < array.rank; i++) elements *= (double)array.shape[i];
  if (status == ESP_OK) {
    sum->elements += elements;
    sum->bytes += (double)H5Dget_storage_size(data);
  }
  esp_h5_close(&handles);
  return status;
}

/* Before memory is taken: the config must not ask for more than the file brings. */
static esp_status check_sizes(hid_t file, hid_t group, const esp_architecture *architecture) {
  sizes found = {0, 0};
  hsize_t size = 0;
  const double wanted = esp_architecture_elements(architecture);
  ESP_TRY(esp_h5_each(group, add_sizes, &found));
  H5Fget_filesize(file, &size);
  if (found.bytes > (double)size)
    return esp_fail(ESP_ERR_FORMAT, "`parameters` claims %.0f bytes of the file, which has %.0f", found.bytes,
                    (double)size);
  if (wanted <= 2 * found.elements + SPARE_ELEMENTS) return ESP_OK;
  return esp_fail(ESP_ERR_FORMAT,
                  "`architecture/config` describes a model of about %.0f parameters, but `parameters` "
                  "holds %.0f",
                  wanted, found.elements);
}

static esp_status check_digest(hid_t file, const esp_architecture *architecture, const esp_model *model,
                               char digest[ESP_DIGEST_SIZE]) {
  char stored[ESP_DIGEST_SIZE];
  ESP_TRY(esp_h5_get_text(file, "digest", stored, sizeof stored));
  esp_digest_text(digest, esp_architecture_digest(architecture, model->parameters));
  if (strcmp(stored, digest) == 0) return ESP_OK;
  return esp_fail(ESP_ERR_FORMAT,
                  "the model's digest is %s, the file says %s: damaged or changed by hand; use another "
                  "checkpoint",
                  digest, stored);
}

static esp_status make_sized(esp_h5_handles *handles, hid_t file, esp_architecture *architecture, esp_model **model) {
  hid_t group;
  ESP_TRY(esp_architecture_read(file, architecture));
  ESP_TRY(esp_h5_open_group(handles, file, "parameters", &group));
  ESP_TRY(check_sizes(file, group, architecture));
  ESP_TRY(esp_model_create(model, &architecture->config, architecture->layouts, 0));
  return esp_arrays_check(file, "parameters", (*model)->parameters);
}

esp_status esp_checkpoint_make_model(hid_t file, esp_architecture *architecture, esp_model **model) {
  esp_h5_handles handles = {0};
  const esp_status status = make_sized(&handles, file, architecture, model);
  esp_h5_close(&handles);
  return status;
}

/* What was made so far is left in *model and *info. */
static esp_status read_all(hid_t file, esp_architecture *architecture, esp_model **model, esp_checkpoint_info *info) {
  ESP_TRY(esp_checkpoint_make_model(file, architecture, model));
  ESP_TRY(esp_arrays_read(file, "parameters", (*model)->parameters, esp_parameters_values((*model)->parameters)));
  for (int i = 0; i < esp_model_moe_count(*model); i++) ESP_TRY(esp_factors_check(&esp_model_moe(*model, i)->bank));
  ESP_TRY(check_digest(file, architecture, *model, info->digest));
  return esp_info_read(file, info);
}

esp_status esp_checkpoint_load(const char *path, esp_model **model, esp_checkpoint_info *info) {
  esp_checkpoint_file file;
  esp_architecture architecture = {0};
  *model = NULL;
  *info = (esp_checkpoint_info){0};
  esp_status status = esp_checkpoint_open(&file, path, "checkpoint");
  if (status == ESP_OK) status = read_all(file.id, &architecture, model, info);
  esp_architecture_clear(&architecture);
  esp_checkpoint_close(&file);
  if (status == ESP_OK) return ESP_OK;
  esp_model_free(*model);
  *model = NULL;
  esp_checkpoint_info_clear(info);
  return esp_fail_in(status, "%s", path);
}

/* ---- where it is ---- */

esp_status esp_checkpoint_resolve(char path[], size_t size, const char *run_or_checkpoint) {
  struct stat found;
  if (stat(run_or_checkpoint, &found) != 0)
    return esp_fail(errno == ENOENT ? ESP_ERR_NOT_FOUND : ESP_ERR_IO,
                    "%s: %s; expected a checkpoint or the folder of a run, which has " ESP_LAST_CHECKPOINT,
                    run_or_checkpoint, strerror(errno));
  const bool folder = S_ISDIR(found.st_mode);
  const int length = snprintf(path, size, "%s%s", run_or_checkpoint, folder ? "/" ESP_LAST_CHECKPOINT : "");
  if (length < 0 || (size_t)length >= size)
    return esp_fail(ESP_ERR_USAGE, "%s: the path is longer than %zu bytes", run_or_checkpoint, size - 1);
  if (!folder || stat(path, &found) == 0) return ESP_OK;
  return esp_fail(ESP_ERR_NOT_FOUND,
                  "%s is a folder, but has no " ESP_LAST_CHECKPOINT ": %s; expected a checkpoint or the "
                  "folder of a run",
                  run_or_checkpoint, strerror(errno));
}
