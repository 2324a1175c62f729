/* Where the values of a dataset lie. HDF5 fetches them from other files if a file says so (external links, external
 * storage, virtual datasets), and looks for programs that unpack them (filters): what is not expected is refused before
 * it is asked to. */
#include "images_hdf5_internal.h"

#include <espalier/hdf5_filters.h>
#include <espalier/input_file.h>

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

enum { DEEPEST = 4, MOST_SOURCES = 65536, PATH_SIZE = 4096, NAME_SIZE = 512 };

/* The folder of a file, with its slash; "./" for a bare name. */
static bool folder_of(const char *path, char folder[PATH_SIZE]) {
  const char *const slash = strrchr(path, '/');
  const int length = slash ? (int)(slash - path) + 1 : 2;
  return length < PATH_SIZE && snprintf(folder, PATH_SIZE, "%.*s", length, slash ? path : "./") == length;
}

/* External links are refused when HDF5 comes to one, wherever that lies on the way. */
static herr_t refuse_link(const char *parent, const char *group, const char *child, const char *object, unsigned *flags,
                          hid_t list, void *context) {
  (void)parent, (void)group, (void)child, (void)object, (void)flags, (void)list, (void)context;
  return -1;
}

hid_t esp_hdf5_open(hid_t file, const char *path, const char *name) {
  char folder[PATH_SIZE];
  const hid_t list = H5Pcreate(H5P_DATASET_ACCESS);
  hid_t data = -1;
  if (list < 0) return -1;
  if (folder_of(path, folder) && H5Pset_elink_cb(list, refuse_link, NULL) >= 0 &&
      H5Pset_virtual_prefix(list, folder) >= 0)
    data = H5Dopen2(file, name, list);
  H5Pclose(list);
  return data;
}

static esp_status check_filters(hid_t list, const char *path, const char *name) {
  const int count = H5Pget_nfilters(list);
  for (int i = 0; i < count; i++) {
    unsigned flags, settings;
    size_t values = 0;
    const H5Z_filter_t filter = H5Pget_filter2(list, (unsigned)i, &flags, &values, NULL, 0, NULL, &settings);
    if (filter == H5Z_FILTER_SHUFFLE || filter == H5Z_FILTER_DEFLATE || filter == H5Z_FILTER_FLETCHER32) continue;
    return esp_fail(ESP_ERR_FORMAT, "%s: `%s` " ESP_FILTER_MESSAGE, path, name, (int)filter,
                    esp_hdf5_filter_name((int)filter));
  }
  return ESP_OK;
}

static esp_status check_at(hid_t file, const char *path, const char *name, int depth, double *stored, double *outside);

/* A source that is not there would be read as zeros. */
static esp_status check_other(const char *folder, const char *other, const char *name, int depth, double *stored,
                              double *outside) {
  char path[PATH_SIZE];
  struct stat found;
  if ((size_t)snprintf(path, sizeof path, "%s%s", folder, other) >= sizeof path)
    return esp_fail(ESP_ERR_FORMAT, "%s...: the path is too long", folder);
  const esp_status regular = esp_input_check(path, "a source of the virtual dataset");
  if (regular != ESP_OK) return esp_fail_in(regular, "%s", path);
  const hid_t file = H5Fopen(path, H5F_ACC_RDONLY, H5P_DEFAULT);
  if (file < 0)
    return esp_fail(ESP_ERR_FORMAT, "%s is no HDF5 file, or is cut short; it is a source of a virtual dataset", path);
  const esp_status status = check_at(file, path, name, depth + 1, stored, outside);
  H5Fclose(file);
  if (stat(path, &found) == 0) *outside += (double)found.st_size;
  return status;
}

static esp_status check_source(hid_t list, size_t i, hid_t file, const char *path, int depth, double *stored,
                               double *outside) {
  char other[NAME_SIZE], name[NAME_SIZE], folder[PATH_SIZE];
  const ssize_t other_length = H5Pget_virtual_filename(list, i, other, sizeof other);
  const ssize_t name_length = H5Pget_virtual_dsetname(list, i, name, sizeof name);
  if (other_length < 0 || name_length < 0 || other_length >= NAME_SIZE || name_length >= NAME_SIZE ||
      !folder_of(path, folder))
    return esp_fail(ESP_ERR_FORMAT, "%s: a virtual dataset has a source that cannot be read", path);
  if (strcmp(other, ".") == 0) return check_at(file, path, name, depth + 1, stored, outside);
  if (strncmp(other, "./", 2) == 0) memmove(other, other + 2, strlen(other + 2) + 1);
  if (strpbrk(other, "/%") || strchr(name, '%') || !*other)
    return esp_fail(ESP_ERR_FORMAT,
                    "%s: a virtual dataset takes its values from \"%s\"; expected files in the folder of this one, by "
                    "their plain names",
                    path, other);
  return check_other(folder, other, name, depth, stored, outside);
}

static esp_status check_virtual(hid_t list, hid_t file, const char *path, const char *name, int depth, double *stored,
                                double *outside) {
  size_t count = 0;
  if (H5Pget_virtual_count(list, &count) < 0 || count > MOST_SOURCES || depth >= DEEPEST)
    return esp_fail(ESP_ERR_FORMAT, "%s: `%s` is a virtual dataset of too many parts, or of virtual ones in turn", path,
                    name);
  for (size_t i = 0; i < count; i++) ESP_TRY(check_source(list, i, file, path, depth, stored, outside));
  return ESP_OK;
}

static esp_status check_list(hid_t data, hid_t list, hid_t file, const char *path, const char *name, int depth,
                             double *stored, double *outside) {
  hsize_t size = 0;
  if (H5Pget_external_count(list) != 0)
    return esp_fail(ESP_ERR_FORMAT,
                    "%s: the values of `%s` lie in other files (external storage), which are not read; store "
                    "them in the file: h5repack",
                    path, name);
  ESP_TRY(check_filters(list, path, name));
  if (H5Pget_layout(list) == H5D_VIRTUAL) return check_virtual(list, file, path, name, depth, stored, outside);
  const double bytes = (double)H5Dget_storage_size(data);
  H5Fget_filesize(file, &size);
  *stored += bytes;
  if (bytes <= (double)size) return ESP_OK;
  return esp_fail(ESP_ERR_FORMAT, "%s: `%s` claims %.0f bytes of the file, which has %.0f", path, name, bytes,
                  (double)size);
}

static esp_status check_at(hid_t file, const char *path, const char *name, int depth, double *stored, double *outside) {
  H5L_info_t link;
  const bool known = H5Lexists(file, name, H5P_DEFAULT) > 0 && H5Lget_info(file, name, &link, H5P_DEFAULT) >= 0;
  if (known && link.type != H5L_TYPE_HARD)
    return esp_fail(ESP_ERR_FORMAT, "%s: `%s` is a link %s, which is not followed; store the values under this name",
                    path, name, link.type == H5L_TYPE_SOFT ? "to another name" : "to another file");
  const hid_t data = esp_hdf5_open(file, path, name);
  if (data < 0)
    return esp_fail(ESP_ERR_FORMAT, "%s: there is no dataset `%s`%s", path, name,
                    depth ? ", from which a virtual one takes its values"
                          : "; expected `images` N x C x H x W and `labels` N");
  const hid_t list = H5Dget_create_plist(data);
  esp_status status = list < 0 ? esp_fail(ESP_ERR_FORMAT, "%s: `%s` is damaged", path, name) : ESP_OK;
  if (status == ESP_OK) status = check_list(data, list, file, path, name, depth, stored, outside);
  if (list >= 0) H5Pclose(list);
  H5Dclose(data);
  return status;
}

esp_status esp_hdf5_check(hid_t file, const char *path, const char *name, double *stored, double *outside) {
  *stored = 0;
  return check_at(file, path, name, 0, stored, outside);
}
