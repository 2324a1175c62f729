/* A whole HDF5 file in memory. It is made there and written to disk by plain means: after a write to a full
 * disk failed, HDF5 1.10 crashes in H5Fclose(). HDF5's own H5Fget_file_image() is no way out: it changes the
 * superblock's flags and not their checksum (seen with 1.10.8), so the image is taken when HDF5 has closed it. */
#include "checkpoint_parts_internal.h"
#include <espalier/memory.h>

#include <stdio.h>
#include <string.h>

enum { STEP = 1 << 16 };

static void *grow(void *block, size_t size, H5FD_file_image_op_t operation, void *user_data) {
  esp_image *image = user_data;
  (void)block, (void)operation;
  if (size <= image->capacity) return image->bytes;
  const size_t capacity = size + image->capacity;
  void *bytes = esp_alloc(capacity + ESP_SEAL_SIZE, 1);
  if (!bytes) return NULL;
  if (image->bytes) memcpy(bytes, image->bytes, image->capacity);
  esp_free(image->bytes);
  image->bytes = bytes;
  image->capacity = capacity;
  return bytes;
}

/* HDF5 lets go of the bytes when it closes the file; they stay with the image. */
static herr_t let_go(void *block, H5FD_file_image_op_t operation, void *user_data) {
  (void)block, (void)operation, (void)user_data;
  return 0;
}

static void *share(void *user_data) { return user_data; }

static herr_t unshare(void *user_data) {
  (void)user_data;
  return 0;
}

/* No file is made under the name. Version 1.10's structures carry checksums, older ones' do not. */
static hid_t create(esp_h5_handles *handles, esp_image *image) {
  H5FD_file_image_callbacks_t callbacks = {
      .image_realloc = grow, .image_free = let_go, .udata_copy = share, .udata_free = unshare, .udata = image};
  char name[64];
  snprintf(name, sizeof name, "espalier checkpoint in memory %p", (const void *)image);
  const hid_t list = esp_h5_keep(handles, H5Pcreate(H5P_FILE_ACCESS));
  if (list < 0 || H5Pset_fapl_core(list, STEP, false) < 0) return H5I_INVALID_HID;
  if (H5Pset_file_image_callbacks(list, &callbacks) < 0) return H5I_INVALID_HID;
  if (H5Pset_libver_bounds(list, H5F_LIBVER_V110, H5F_LIBVER_V110) < 0) return H5I_INVALID_HID;
  return H5Fcreate(name, H5F_ACC_TRUNC, H5P_DEFAULT, list);
}

static esp_status finish(hid_t file, esp_image *image) {
  const ssize_t size = H5Fflush(file, H5F_SCOPE_GLOBAL) < 0 ? -1 : H5Fget_file_image(file, NULL, 0);
  if (size > 0 && (size_t)size <= image->capacity) {
    image->size = (size_t)size;
    return ESP_OK;
  }
  return esp_fail(ESP_ERR_MEMORY, "HDF5 cannot finish a file in memory: %s", esp_h5_reason());
}

static esp_status fill(esp_h5_handles *handles, esp_image *image, esp_image_writer *write, const void *context) {
  const hid_t file = create(handles, image);
  if (file < 0) return esp_fail(ESP_ERR_MEMORY, "HDF5 cannot make a file in memory: %s", esp_h5_reason());
  esp_status status = write(file, context);
  if (status == ESP_OK) status = finish(file, image);
  const bool closed = H5Fclose(file) >= 0;
  if (status != ESP_OK || closed) return status;
  return esp_fail(ESP_ERR_MEMORY, "HDF5 cannot close a file in memory: %s", esp_h5_reason());
}

/* Memory is taken at once, because HDF5 cannot close a file that it could not make larger. */
esp_status esp_image_make(esp_image *image, size_t expected, esp_image_writer *write, const void *context) {
  *image = (esp_image){.bytes = esp_alloc(expected + ESP_SEAL_SIZE, 1), .capacity = expected};
  if (!image->bytes) return ESP_ERR_MEMORY;
  esp_h5_handles handles = {0};
  const esp_h5_silence silence = esp_h5_begin_silence();
  const esp_status status = fill(&handles, image, write, context);
  esp_h5_close(&handles);
  esp_h5_end_silence(&silence);
  return status;
}

/* ---- reading ---- */

/* HDF5 is to use the bytes where they lie: it asks for memory for its copy, and gets the bytes themselves. */
static void *lend(size_t size, H5FD_file_image_op_t operation, void *user_data) {
  const esp_image *image = user_data;
  (void)operation;
  return size <= image->size ? image->bytes : NULL;
}

static void *keep(void *to, const void *from, size_t size, H5FD_file_image_op_t operation, void *user_data) {
  (void)from, (void)size, (void)operation, (void)user_data;
  return to;
}

static void *refuse_to_grow(void *block, size_t size, H5FD_file_image_op_t operation, void *user_data) {
  (void)block, (void)size, (void)operation, (void)user_data;
  return NULL;
}

hid_t esp_image_open(esp_h5_handles *handles, esp_image *image) {
  H5FD_file_image_callbacks_t callbacks = {.image_malloc = lend,
                                           .image_memcpy = keep,
                                           .image_realloc = refuse_to_grow,
                                           .image_free = let_go,
                                           .udata_copy = share,
                                           .udata_free = unshare,
                                           .udata = image};
  char name[64];
  snprintf(name, sizeof name, "espalier file in memory %p", (const void *)image);
  const hid_t list = esp_h5_keep(handles, H5Pcreate(H5P_FILE_ACCESS));
  if (list < 0 || H5Pset_fapl_core(list, STEP, false) < 0) return H5I_INVALID_HID;
  if (H5Pset_file_image_callbacks(list, &callbacks) < 0) return H5I_INVALID_HID;
  if (H5Pset_file_image(list, image->bytes, image->size) < 0) return H5I_INVALID_HID;
  return esp_h5_keep(handles, H5Fopen(name, H5F_ACC_RDONLY, list));
}
