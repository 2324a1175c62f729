/* Stable ranks of the experts' matrices: how nearly a matrix is one of low rank. */
#ifndef ESPALIER_STABLE_RANK_H
#define ESPALIER_STABLE_RANK_H

#include <espalier/model.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct esp_matrix_rank {
  const char *layer;  /* "blocks.1.moe"; the model's */
  int expert;         /* stored */
  const char *matrix; /* "gate", "up", "down" */
  int64_t out, in;
  int rank;            /* of U V; 0: not factored */
  int64_t sparse_rows; /* of S */
  double stable_rank; /* sum sigma^2 / max sigma^2 of W, of U V + S if it is factored (arXiv 2310.01334, section 3.2) */
} esp_matrix_rank;

typedef struct esp_stable_ranks {
  int64_t count;
  esp_matrix_rank *of; /* layer after layer, expert after expert, gate, up, down */
} esp_stable_ranks;

/* Finds the ranks of all experts of all mixture layers. On failure *ranks is NULL. */
ESP_API esp_status esp_stable_ranks_create(esp_stable_ranks **ranks, const esp_model *model) ESP_MUST_CHECK;
ESP_API void esp_stable_ranks_free(esp_stable_ranks *ranks);

#ifdef __cplusplus
}
#endif
#endif
