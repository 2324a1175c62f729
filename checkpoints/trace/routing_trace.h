/* Routing traces: which experts every token of a pass chose, with its gates. Recorded by an observer, kept as HDF5,
 * replayed by a later pass of the same or another model over the same data. */
#ifndef ESPALIER_ROUTING_TRACE_H
#define ESPALIER_ROUTING_TRACE_H

#include <espalier/dataset.h>
#include <espalier/model.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What one mixture layer chose. */
typedef struct esp_trace_layer {
  char scope[32]; /* "blocks.1.moe" */
  int block, experts, k;
  int64_t images;   /* recorded so far */
  int32_t *choices; /* [images, members, tokens of an image, k] logical experts, the best first; before any capacity */
  float *gates;     /* the same shape */
} esp_trace_layer;

typedef struct esp_routing_trace {
  char model[24]; /* digest of the model whose routers chose */
  char data_name[64], data_digest[64];
  char split[16];       /* "train", "validation" or "test" */
  int64_t split_images; /* that the split had */
  int64_t images,
      tokens_per_image; /* traced: all in their own order, or as many of those that esp_evaluate() samples */
  int members;          /* of an E3, else 1 */
  int layer_count;
  esp_trace_layer *layers;
} esp_routing_trace;

/* An empty trace of `images` images. ESP_ERR_MISMATCH if the model has no mixture layer, or one whose tokens do not
 * have k experts each (expert choice, Soft MoE). On failure *trace is NULL. Freed by esp_routing_trace_free(). */
ESP_API esp_status esp_routing_trace_create(esp_routing_trace **trace, const esp_model *model,
                                            const esp_dataset_info *data, esp_split_name split,
                                            int64_t images) ESP_MUST_CHECK;
ESP_API void esp_routing_trace_free(esp_routing_trace *trace);

/* Appends what the model's passes choose, images in the order they come; beyond `images` it keeps nothing. */
ESP_API esp_observer esp_routing_trace_observer(esp_routing_trace *trace);

/* Written to a temporary file and renamed. ESP_ERR_IO, ESP_ERR_MEMORY; ESP_ERR_MISMATCH if images are missing. */
ESP_API esp_status esp_routing_trace_save(const char *path, const esp_routing_trace *trace) ESP_MUST_CHECK;

/* On failure *trace is NULL: ESP_ERR_NOT_FOUND, or ESP_ERR_FORMAT for all that is not a whole trace whose experts
 * exist. */
ESP_API esp_status esp_routing_trace_load(esp_routing_trace **trace, const char *path) ESP_MUST_CHECK;

/* ESP_ERR_MISMATCH, saying what differs, unless the trace can route the model over `images` images of the split. */
ESP_API esp_status esp_routing_trace_check(const esp_routing_trace *trace, const esp_model *model,
                                           const esp_dataset_info *data, esp_split_name split,
                                           int64_t images) ESP_MUST_CHECK;

/* The choices of images [first, first + count) as esp_pass.choices wants them, in the step arena; NULL if memory is
 * short. */
ESP_API const int32_t *const *esp_routing_trace_choices(const esp_routing_trace *trace, esp_tape *tape, int64_t first,
                                                        int64_t count);

#ifdef __cplusplus
}
#endif
#endif
