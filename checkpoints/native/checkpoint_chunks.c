/* Compressed chunks, made here as HDF5's filters shuffle, deflate and Fletcher-32 would, so that every reader undoes
 * them, but faster: of a trained float32 only the byte with the exponent can be compressed, and deflate takes its time
 * to find out that the others cannot. So bytes that look like noise are stored as they are, and at level 1 the others
 * only have runs and Huffman codes, which is all there is to gain. */
#include "checkpoint_hdf5_internal.h"
#include <espalier/memory.h>

#include <string.h>
#include <zlib.h>

enum { CHECKSUM_BYTES = 4, WINDOW_BITS = 15, MEMORY_LEVEL = 8, BYTE_VALUES = 256 };

/* Two random ones of bytes that are all equally likely are equal with probability 1 / 256. Up to this much more often,
 * Huffman codes save less than about one per cent. */
static const double noise_excess = 1.02;

static bool is_noise(const unsigned char *bytes, size_t count) {
  size_t found[BYTE_VALUES] = {0};
  double pairs = 0;
  for (size_t i = 0; i < count; i++) found[bytes[i]]++;
  for (int i = 0; i < BYTE_VALUES; i++) pairs += (double)found[i] * (double)found[i];
  return pairs * BYTE_VALUES <= noise_excess * (double)count * (double)count;
}

/* All first bytes of the elements, then all second ones ...: the shuffle filter. */
static void shuffle(unsigned char *planes, const unsigned char *elements, size_t count, size_t size) {
  for (size_t byte = 0; byte < size; byte++)
    for (size_t i = 0; i < count; i++) planes[byte * count + i] = elements[i * size + byte];
}

static bool deflate_plane(z_stream *stream, unsigned char *plane, size_t count, int level, bool is_last) {
  const bool noise = is_noise(plane, count);
  stream->avail_in = 0;
  if (deflateParams(stream, noise ? 0 : level, noise || level > 1 ? Z_DEFAULT_STRATEGY : Z_RLE) != Z_OK) return false;
  stream->next_in = plane;
  stream->avail_in = (uInt)count;
  const int code = deflate(stream, is_last ? Z_FINISH : Z_NO_FLUSH);
  return stream->avail_in == 0 && code == (is_last ? Z_STREAM_END : Z_OK);
}

/* One zlib stream of all planes. Returns its size; 0 if memory is short. */
static size_t deflate_planes(unsigned char *packed, size_t room, unsigned char *planes, size_t count, size_t size,
                             int level) {
  z_stream stream = {.next_out = packed, .avail_out = (uInt)room};
  if (deflateInit2(&stream, level, Z_DEFLATED, WINDOW_BITS, MEMORY_LEVEL, Z_DEFAULT_STRATEGY) != Z_OK) return 0;
  bool done = true;
  for (size_t byte = 0; byte < size && done; byte++)
    done = deflate_plane(&stream, planes + byte * count, count, level, byte + 1 == size);
  deflateEnd(&stream);
  return done ? (size_t)stream.total_out : 0;
}

/* Fletcher's checksum as HDF5 has it: of 16-bit words, high byte first; a last odd byte is the high one of a word. */
static uint32_t fletcher32(const unsigned char *bytes, size_t count) {
  enum { WORDS_AT_ONCE = 360 }; /* so many cannot overflow */
  uint32_t sum = 0, sum_of_sums = 0;
  size_t at = 0;
  while (at + 1 < count) {
    for (int i = 0; i < WORDS_AT_ONCE && at + 1 < count; i++, at += 2) {
      sum += (uint32_t)bytes[at] << 8 | bytes[at + 1];
      sum_of_sums += sum;
    }
    sum = (sum & 0xffff) + (sum >> 16);
    sum_of_sums = (sum_of_sums & 0xffff) + (sum_of_sums >> 16);
  }
  if (at < count) {
    sum += (uint32_t)bytes[at] << 8;
    sum_of_sums += sum;
    sum = (sum & 0xffff) + (sum >> 16);
    sum_of_sums = (sum_of_sums & 0xffff) + (sum_of_sums >> 16);
  }
  sum = (sum & 0xffff) + (sum >> 16);
  sum_of_sums = (sum_of_sums & 0xffff) + (sum_of_sums >> 16);
  return sum_of_sums << 16 | sum;
}

/* One chunk's memory: as the file's bytes, in planes, packed. */
typedef struct workspace {
  size_t elements, size, room; /* of a chunk; bytes of an element; of `packed` */
  unsigned char *plain, *planes, *packed;
} workspace;

static bool workspace_set(workspace *w, size_t elements, size_t size) {
  const size_t bytes = elements * size;
  w->elements = elements;
  w->size = size;
  w->room = compressBound((uLong)bytes) + CHECKSUM_BYTES + bytes / 64; /* planes are flushed one by one */
  w->plain = esp_alloc(bytes, 1);
  w->planes = esp_alloc(bytes, 1);
  w->packed = esp_alloc(w->room, 1);
  return w->plain && w->planes && w->packed;
}

static void workspace_clear(workspace *w) {
  esp_free(w->plain);
  esp_free(w->planes);
  esp_free(w->packed);
}

/* `values`: the first `count` elements of the chunk; beyond the end of the dataset it is filled with zeros. */
static esp_status write_chunk(hid_t data, const hsize_t *offset, workspace *w, const unsigned char *values,
                              size_t count, int level) {
  const size_t bytes = w->elements * w->size;
  memcpy(w->plain, values, count * w->size);
  memset(w->plain + count * w->size, 0, bytes - count * w->size);
  shuffle(w->planes, w->plain, w->elements, w->size);
  const size_t packed = deflate_planes(w->packed, w->room - CHECKSUM_BYTES, w->planes, w->elements, w->size, level);
  if (packed == 0) return esp_fail(ESP_ERR_MEMORY, "memory is short for compressing %zu bytes", bytes);
  const uint32_t sum = fletcher32(w->packed, packed);
  for (int i = 0; i < CHECKSUM_BYTES; i++) w->packed[packed + (size_t)i] = (unsigned char)(sum >> 8 * i & 0xff);
  if (H5Dwrite_chunk(data, H5P_DEFAULT, 0, offset, packed + CHECKSUM_BYTES, w->packed) >= 0) return ESP_OK;
  return esp_fail(ESP_ERR_MEMORY, "HDF5 cannot take up a chunk: %s", esp_h5_reason());
}

/* Moves `offset` to the next chunk; false after the last. */
static bool next_chunk(const esp_h5_array *array, const hsize_t *chunk, hsize_t *offset) {
  for (int i = array->rank - 1; i >= 0; i--) {
    offset[i] += chunk[i];
    if (offset[i] < array->shape[i]) return true;
    offset[i] = 0;
  }
  return false;
}

/* Where the chunk begins in memory, and how many elements of it there are: a chunk is whole slices of the last
 * dimensions, so that they lie together (set_chunk() in checkpoint_hdf5.c). */
static size_t locate(const esp_h5_array *array, const hsize_t *chunk, const hsize_t *offset, size_t *count) {
  size_t first = 0;
  *count = 1;
  for (int i = 0; i < array->rank; i++) {
    const hsize_t left = array->shape[i] - offset[i];
    first = first * (size_t)array->shape[i] + (size_t)offset[i];
    *count *= (size_t)(left < chunk[i] ? left : chunk[i]);
  }
  return first;
}

esp_status esp_h5_write_chunks(hid_t data, const esp_h5_array *array, const hsize_t *chunk, const void *values,
                               int level) {
  workspace w = {0};
  hsize_t offset[ESP_MAX_RANK] = {0};
  size_t elements = 1;
  for (int i = 0; i < array->rank; i++) elements *= (size_t)chunk[i];
  esp_status status = workspace_set(&w, elements, H5Tget_size(array->type)) ? ESP_OK : ESP_ERR_MEMORY;
  for (bool more = true; more && status == ESP_OK; more = next_chunk(array, chunk, offset)) {
    size_t count;
    const size_t first = locate(array, chunk, offset, &count);
    status = write_chunk(data, offset, &w, (const unsigned char *)values + first * w.size, count, level);
  }
  workspace_clear(&w);
  return status;
}
