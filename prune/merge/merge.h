/* Merging experts: groups of them come to share one expert's weights, while the router stays as it is and maps to fewer
 * stored experts (M-SMoE: Li et al., "Merge, Then Compress", ICLR 2024, arXiv 2310.01334), and the baselines it is
 * compared with. */
#ifndef ESPALIER_MERGE_H
#define ESPALIER_MERGE_H

#include <espalier/calibration.h>
#include <espalier/grouping.h>
#include <espalier/plan.h>
#include <espalier/similarity.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Calibration images in the paper. */
enum { ESP_MERGE_IMAGES = 256 };

/* How neurons are brought together before experts are averaged. Experts are aligned once, before they are grouped, to
 * the first expert of their layer that has weights, as the paper does it; with an E3, of their member. */
typedef enum esp_align_kind {
  ESP_ALIGN_NONE,
  ESP_ALIGN_WEIGHTS,     /* by weights (esp_weight_gains()) */
  ESP_ALIGN_ACTIVATIONS, /* by the correlation of activations over the tokens routed to either expert */
  ESP_ALIGN_ZIP          /* ZipIt-like, within each group (zip.h) */
} esp_align_kind;

/* The weights in a group's average. */
typedef enum esp_average_kind {
  ESP_AVERAGE_FREQUENCY, /* how often each expert was chosen; equal where none of the group was */
  ESP_AVERAGE_UNIFORM,
  /* the trace of each expert's Fisher information: squared gradients of the calibration batches summed over its
   * matrices (after Matena and Raffel, arXiv 2111.09832; reconstruction: a number an expert instead of one a weight, so
   * that plans stay tables) */
  ESP_AVERAGE_FISHER
} esp_average_kind;

/* What becomes of experts that are not dominant. */
typedef enum esp_merge_form {
  ESP_MERGE_AVERAGE,  /* averaged into their group */
  ESP_MERGE_REDIRECT, /* gone; their tokens go to the dominant expert of their group, whose weights stay as they are */
  ESP_MERGE_REROUTE   /* gone and masked: their tokens are routed among the dominant experts */
} esp_merge_form;

/* A row of the table of methods. */
typedef struct esp_merge_method {
  const char *name, *summary, *source;
  esp_merge_form form;
  esp_align_kind align;
  esp_average_kind average;
} esp_merge_method;

ESP_API size_t esp_merge_method_list(const esp_merge_method **methods);
/* ESP_ERR_USAGE if there is none of that name; the message names the nearest. */
ESP_API esp_status esp_merge_method_find(esp_merge_method *method, const char *name) ESP_MUST_CHECK;

/* "none", "weights" ...; "frequency" ... */
ESP_API const char *esp_align_name(esp_align_kind kind);
ESP_API esp_status esp_align_parse(esp_align_kind *kind, const char *name) ESP_MUST_CHECK;
ESP_API const char *esp_average_name(esp_average_kind kind);
ESP_API esp_status esp_average_parse(esp_average_kind *kind, const char *name) ESP_MUST_CHECK;

typedef struct esp_merge_options {
  esp_merge_method method; /* a row of the table; align and average may be set otherwise */
  esp_group_budget budget;
  esp_similarity_kind similarity;
  const char *exclude; /* layers that keep all: comma-separated patterns of their names, "blocks.1.*"; NULL: none */
  bool without_down;   /* alignment by weights looks at the first matrices only */
  uint64_t seed;       /* of random similarity */
} esp_merge_options;

/* A plan for esp_apply_plan(); its scores are the frequencies. `calibration`: training images.
 * On failure *plan is NULL: ESP_ERR_USAGE for a budget that cannot be, ESP_ERR_MISMATCH if data, model and options do
 * not fit each other, ESP_ERR_NOT_FINITE. Freed by esp_plan_free(). */
ESP_API esp_status esp_merge_plan(esp_plan **plan, const esp_model *model, const esp_calibration *calibration,
                                  const esp_merge_options *options) ESP_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
