/* Criteria: how much each expert is worth keeping. A new criterion is one function and one row of the table. */
#ifndef ESPALIER_CRITERIA_H
#define ESPALIER_CRITERIA_H

#include <espalier/plan.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What a criterion may look at. */
typedef struct esp_criterion_inputs {
  const esp_model *model;
  const esp_checkpoint_info *info;           /* of the model */
  const esp_model *reference;                /* NULL if none was given */
  const esp_checkpoint_info *reference_info; /* NULL with it */
  uint64_t seed;
} esp_criterion_inputs;

typedef struct esp_criterion {
  const char *name, *formula, *source;
  bool needs_reference;
  esp_prune_mode mode; /* the one its paper uses */
  /* Fills the scores of the plan's layers. */
  esp_status (*score)(const esp_criterion_inputs *inputs, esp_plan *plan);
} esp_criterion;

/* The table; returns its number of rows. */
ESP_API size_t esp_criterion_list(const esp_criterion **criteria);

/* ESP_ERR_USAGE if there is none of that name; the message names the nearest. */
ESP_API esp_status esp_criterion_find(const esp_criterion **criterion, const char *name) ESP_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
