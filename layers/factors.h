/* Factored expert weights: each matrix W [out, in] of an expert is U V + S, U [out, rank], V [rank, in], and of S only
 * the rows that are listed are there (MC-SMoE: Li et al., ICLR 2024, arXiv 2310.01334, section 3.2). A row of S belongs
 * to an output neuron of the matrix: of gate and up to a hidden neuron, of down to a channel of the layer's output. */
#ifndef ESPALIER_FACTORS_H
#define ESPALIER_FACTORS_H

#include <espalier/expert_bank.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Sets bank->rank and declares what stands in the place of a bank's "up" and "down" (and of "gate_up") if layout->rank
 *   is above 0: NAME_u [experts, out, rank], NAME_v [experts, parts x rank, in], NAME_s [n, in], NAME_rows [n] and, if
 *   layout->pruning, NAME_importance and NAME_last_importance [n];
 * n is the sum of layout->sparse_rows, or 1, for an unused row, if that is 0 (no tensor is empty); parts is 2 where
 * gate and up lie together. All start at 0: who makes a factored model fills them. The layout must outlive the bank. */
ESP_API esp_status esp_factors_declare(esp_expert_bank *bank, esp_parameters *parameters, const char *scope,
                                       const esp_expert_layout *layout) ESP_MUST_CHECK;

/* Rows (out) and columns (in) of the matrices of one side, gate | up counting as one. */
ESP_API int64_t esp_factors_rows(const esp_expert_bank *bank, int side);
ESP_API int64_t esp_factors_columns(const esp_expert_bank *bank, int side);

/* Where the sparse rows of a stored expert begin. */
ESP_API int64_t esp_first_sparse_row(const esp_factors *factors, int expert);

ESP_API bool esp_sparse_row_is_zero(const esp_factors *factors, int64_t row);

/* ESP_ERR_FORMAT, naming the tensor, unless the lists of rows ascend within each expert and stay below `out`. */
ESP_API esp_status esp_factors_check(const esp_expert_bank *bank) ESP_MUST_CHECK;

/* --- one matrix of one expert, factored or not --- */

typedef struct esp_expert_matrix {
  const char *name; /* "gate", "up", "down" */
  int side;         /* ESP_SIDE_UP or ESP_SIDE_DOWN */
  int part;         /* 1: of gate | up the second */
  int64_t out, in;
} esp_expert_matrix;

/* 3 with a gate (SwiGLU), else 2; and the index-th of them. */
ESP_API int esp_expert_matrix_count(const esp_expert_bank *bank);
ESP_API esp_expert_matrix esp_expert_matrix_at(const esp_expert_bank *bank, int expert, int index);

/* Writes the matrix, U V + S if it is factored, to w [out, in]. */
ESP_API void esp_expert_matrix_read(const esp_expert_bank *bank, int expert, const esp_expert_matrix *matrix,
                                    double *w);

/* Its sparse rows; 0 if it is not factored. */
ESP_API int64_t esp_expert_matrix_sparse_rows(const esp_expert_bank *bank, int expert, const esp_expert_matrix *matrix);

#ifdef __cplusplus
}
#endif
#endif
