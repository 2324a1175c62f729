/* What a reader relies on before it asks HDF5 for values: FORMAT.md promises plain chunks of the file itself. HDF5 can
 * also be told to fetch them elsewhere (soft and external links, external storage, virtual datasets), which in a
 * stranger's file would read whatever this user may read, and to run code that it finds on the machine (filters). */
#include "checkpoint_hdf5_internal.h"
#include <espalier/hdf5_filters.h>

#include <stdio.h>
#include <string.h>

enum { LONGEST_NAME = 1024, LARGEST_RATIO = 1032 /* of deflate */ };

static esp_status check_link(hid_t place, const char *name) {
  H5L_info_t info;
  if (H5Lexists(place, name, H5P_DEFAULT) <= 0) return ESP_OK; /* whoever opens it says so */
  if (H5Lget_info(place, name, &info, H5P_DEFAULT) < 0)
    return esp_fail(ESP_ERR_FORMAT, "`%s` cannot be read, the file is damaged: %s", name, esp_h5_reason());
  if (info.type == H5L_TYPE_HARD) return ESP_OK;
  return esp_fail(ESP_ERR_FORMAT, "`%s` is a link %s; espalier writes none, and follows none", name,
                  info.type == H5L_TYPE_SOFT ? "to another name" : "out of the file");
}

esp_status esp_h5_check_links(hid_t place, const char *name) {
  char part[LONGEST_NAME];
  const size_t length = strlen(name);
  if (length >= sizeof part) return esp_fail(ESP_ERR_FORMAT, "a name of %zu bytes; expected fewer", length);
  for (size_t i = 1; i <= length; i++) {
    if (name[i] != '/' && name[i] != '\0') continue;
    memcpy(part, name, i);
    part[i] = '\0';
    ESP_TRY(check_link(place, part));
  }
  return ESP_OK;
}

/* Shuffle, deflate and Fletcher-32 are HDF5's own; another one may be a program that HDF5 looks for. */
static esp_status check_filters(hid_t list, const char *name) {
  const int count = H5Pget_nfilters(list);
  for (int i = 0; i < count; i++) {
    unsigned flags, settings;
    size_t values = 0;
    const H5Z_filter_t filter = H5Pget_filter2(list, (unsigned)i, &flags, &values, NULL, 0, NULL, &settings);
    if (filter == H5Z_FILTER_SHUFFLE || filter == H5Z_FILTER_DEFLATE || filter == H5Z_FILTER_FLETCHER32) continue;
    return esp_fail(ESP_ERR_FORMAT, "`%s` " ESP_FILTER_MESSAGE, name, (int)filter, esp_hdf5_filter_name((int)filter));
  }
  return ESP_OK;
}

/* A chunk is unpacked into memory whole. */
static esp_status check_chunk(hid_t list, const char *name, double size, double stored) {
  hsize_t chunk[H5S_MAX_RANK];
  const int rank = H5Pget_chunk(list, H5S_MAX_RANK, chunk);
  double bytes = size;
  for (int i = 0; i < rank; i++) bytes *= (double)chunk[i];
  if (rank >= 1 && bytes <= stored * LARGEST_RATIO) return ESP_OK;
  return esp_fail(ESP_ERR_FORMAT, "`%s` has chunks of %.0f bytes, but has only %.0f bytes in the file", name, bytes,
                  stored);
}

static esp_status check_list(hid_t data, hid_t list, const char *name, double size) {
  hsize_t file_size = 0;
  const double stored = (double)H5Dget_storage_size(data);
  const hid_t file = H5Iget_file_id(data);
  if (H5Pget_layout(list) != H5D_CHUNKED || H5Pget_external_count(list) != 0)
    return esp_fail(ESP_ERR_FORMAT, "`%s` is not stored in chunks of this file, as format 1 has it%s", name,
                    H5Pget_external_count(list) > 0 ? ", but in other files" : "");
  ESP_TRY(check_filters(list, name));
  if (file >= 0) {
    H5Fget_filesize(file, &file_size);
    H5Fclose(file);
  }
  if (stored > (double)file_size)
    return esp_fail(ESP_ERR_FORMAT, "`%s` claims %.0f bytes of the file, which has %.0f", name, stored,
                    (double)file_size);
  return stored > 0 ? check_chunk(list, name, size, stored) : ESP_OK;
}

esp_status esp_h5_check_storage(hid_t data, const char *name, hid_t type) {
  const hid_t list = H5Dget_create_plist(data);
  if (list < 0) return esp_fail(ESP_ERR_FORMAT, "`%s` cannot be read, the file is damaged: %s", name, esp_h5_reason());
  const esp_status status = check_list(data, list, name, (double)H5Tget_size(type));
  H5Pclose(list);
  return status;
}
