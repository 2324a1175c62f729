#include "checkpoint_parts_internal.h"
#include <espalier/confined.h>
#include <espalier/factors.h>
#include <espalier/memory.h>

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

/* The parameters of a model are allowed to be a little more than the estimate from the file's own sizes. */
enum { TEXT_SIZE = 64, SPARE_ELEMENTS = 1 << 16 };

/* ---- the file ---- */

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

/* An image and what is to be done with it. */
typedef struct reading {
  esp_image *image;
  const char *kind;
  esp_checkpoint_work *work;
  void *context;
} reading;

static esp_status read_open(esp_h5_handles *handles, const reading *r) {
  const hid_t file = esp_image_open(handles, r->image);
  if (file < 0) return esp_fail(ESP_ERR_FORMAT, "cannot be opened, the file is damaged: %s", esp_h5_reason());
  ESP_TRY(check_header(file, r->kind));
  return r->work(file, r->context);
}

static esp_status read_image(void *context, int to) {
  (void)to;
  esp_h5_handles handles = {0};
  const esp_h5_silence silence = esp_h5_begin_silence();
  const esp_status status = read_open(&handles, context);
  esp_h5_close(&handles);
  esp_h5_end_silence(&silence);
  return status;
}

esp_status esp_checkpoint_read(const char *path, const char *kind, esp_checkpoint_work *work, void *context) {
  esp_image image;
  esp_status status = esp_sealed_file_read(&image, path, kind);
  if (status == ESP_OK) {
    const esp_confined_limits limits = esp_confined_limits_of(image.size, "HDF5");
    reading r = {&image, kind, work, context};
    status = esp_confined_try(read_image, &r, &limits);
    if (status == ESP_OK) status = read_image(&r, -1);
    if (status != ESP_OK) status = esp_fail_in(status, "%s", path);
  }
  esp_free(image.bytes);
  return status;
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

/* What a load makes; what was made before a failure is left here. */
typedef struct loading {
  esp_architecture architecture;
  esp_model *model;
  esp_checkpoint_info *info;
} loading;

static esp_status read_all(hid_t file, void *context) {
  loading *l = context;
  ESP_TRY(esp_checkpoint_make_model(file, &l->architecture, &l->model));
  esp_parameters *const parameters = l->model->parameters;
  ESP_TRY(esp_arrays_read(file, "parameters", parameters, esp_parameters_values(parameters)));
  for (int i = 0; i < esp_model_moe_count(l->model); i++) ESP_TRY(esp_factors_check(&esp_model_moe(l->model, i)->bank));
  ESP_TRY(check_digest(file, &l->architecture, l->model, l->info->digest));
  return esp_info_read(file, l->info);
}

esp_status esp_checkpoint_load(const char *path, esp_model **model, esp_checkpoint_info *info) {
  loading l = {.info = info};
  *info = (esp_checkpoint_info){0};
  const esp_status status = esp_checkpoint_read(path, "checkpoint", read_all, &l);
  esp_architecture_clear(&l.architecture);
  *model = status == ESP_OK ? l.model : NULL;
  if (status == ESP_OK) return ESP_OK;
  esp_model_free(l.model);
  esp_checkpoint_info_clear(info);
  return status;
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
