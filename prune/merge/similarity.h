/* How alike two experts of a layer are: the bases that M-SMoE compares (arXiv 2310.01334, table 4). */
#ifndef ESPALIER_SIMILARITY_H
#define ESPALIER_SIMILARITY_H

#include <espalier/status.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* All are (cosine + 1) / 2, which the paper's code computes; the paper itself says cosine, whose order is the same. */
typedef enum esp_similarity_kind {
  ESP_SIMILARITY_ROUTER_LOGITS,    /* of the experts' raw logits over all calibration tokens: the paper's choice */
  ESP_SIMILARITY_ROUTER_WEIGHTS,   /* of their rows in the router */
  ESP_SIMILARITY_EXPERT_WEIGHTS,   /* of their matrices, flattened, after alignment */
  ESP_SIMILARITY_WEIGHTS_FEATURES, /* the same with each weight times its input's L2 norm over the expert's tokens */
  ESP_SIMILARITY_GRADIENTS,        /* of the gradients of the loss on the calibration data, after alignment */
  ESP_SIMILARITY_MEAN_FEATURES,    /* of the mean inputs of the tokens that chose them */
  ESP_SIMILARITY_MEAN_ABSOLUTE,    /* of the mean absolute inputs */
  ESP_SIMILARITY_RANDOM,           /* uniform numbers, by a seed: the baseline */
  ESP_SIMILARITY_KINDS
} esp_similarity_kind;

/* "router-logits" ... ESP_ERR_USAGE if there is none of that name; the message names the nearest. */
ESP_API const char *esp_similarity_name(esp_similarity_kind kind);
ESP_API esp_status esp_similarity_parse(esp_similarity_kind *kind, const char *name) ESP_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
