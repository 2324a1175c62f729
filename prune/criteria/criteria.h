/* Criteria: how much each expert is worth keeping, or which experts to keep. A new criterion is one function and one
 * row of a table (prune/criteria/criteria.c; the functions lie in prune/criteria/criteria_*.c by topic). */
#ifndef ESPALIER_CRITERIA_H
#define ESPALIER_CRITERIA_H

#include <espalier/calibration.h>
#include <espalier/expert_scores.h>
#include <espalier/plan.h>

#ifdef __cplusplus
extern "C" {
#endif

/* How the losses of a layer's tokens become one (methods by reconstruction). */
typedef enum esp_reconstruction_loss {
  ESP_RECONSTRUCTION_ONE_NORM,   /* the Frobenius norm of the difference over all tokens */
  ESP_RECONSTRUCTION_BATCH_NORMS /* the sum of the batches' norms, as the code of arXiv 2402.14800 has it */
} esp_reconstruction_loss;

/* What a criterion may look at. */
typedef struct esp_criterion_inputs {
  const esp_model *model;
  const esp_checkpoint_info *info;           /* of the model */
  const esp_model *reference;                /* NULL if none was given */
  const esp_checkpoint_info *reference_info; /* NULL with it */
  uint64_t seed;                             /* of what is random in the criterion itself */
  const esp_calibration *calibration;        /* NULL: no data were given */
  esp_gate_form gates;                       /* what counts as a gate in the criteria that look at gates */
  esp_reconstruction_loss loss;
  const esp_expert_scores *scores; /* of the calibration data, with `gates`; NULL: a criterion that wants them makes a
                                      pass of its own. For those who ask several criteria */
} esp_criterion_inputs;

typedef struct esp_criterion esp_criterion;

/* A criterion scores, or it chooses: exactly one of `score` and `choose` is set. */
struct esp_criterion {
  const char *name, *formula, *source;
  bool needs_reference, needs_data;
  esp_prune_mode mode; /* the one its paper uses */
  /* Fills the scores of the plan's layers: the higher, the more worth keeping. */
  esp_status (*score)(const esp_criterion *self, const esp_criterion_inputs *inputs, esp_plan *plan);
  /* Drops drops[i] experts of layer i itself, and may say in their scores why. */
  esp_status (*choose)(const esp_criterion *self, const esp_criterion_inputs *inputs, esp_plan *plan, const int *drops);
  int b, alpha, beta; /* of the family S(b, alpha, beta) (esp_family_score()); otherwise unused */
  bool weighs_gates;  /* esp_criterion_inputs.gates changes its scores */
  bool uses_loss;     /* likewise .loss what it chooses */
  bool uses_seed;     /* likewise .seed its scores; that of the calibration draws the images of all that need data */
};

/* The table of named criteria; returns its number of rows. The family's variants without a name are not among them. */
ESP_API size_t esp_criterion_list(const esp_criterion **criteria);

/* The family's 17 variants as "S(b,alpha,beta)"; those with a name are in both tables. */
ESP_API size_t esp_criterion_family(const esp_criterion **criteria);

/* Finds a criterion by its name, or by "S(1,0,1)" or "family:1,0,1". ESP_ERR_USAGE if there is none of that name; the
 * message names the nearest, or says why there is no S(1,0,0). */
ESP_API esp_status esp_criterion_find(const esp_criterion **criterion, const char *name) ESP_MUST_CHECK;

/* Has a plan tell which data it was calibrated on. */
ESP_API void esp_plan_note_data(esp_plan *plan, const esp_calibration *calibration);

/* The mode to use where none is asked for: the criterion's own; with routers whose experts or slots choose (expert
 * choice, Soft MoE) the router's row goes with the expert, as arXiv 2405.16646 does it there. */
ESP_API esp_prune_mode esp_criterion_mode(const esp_criterion *criterion, const esp_model *model);

/* Makes a plan for esp_apply_plan() from a criterion and a budget. On failure *plan is NULL: ESP_ERR_USAGE if the
 * criterion needs data or a reference and there are none, or the budget cannot be; ESP_ERR_MISMATCH if the criterion
 * makes no sense with this model. Freed by esp_plan_free(). */
ESP_API esp_status esp_plan_make(esp_plan **plan, const esp_criterion *criterion, const esp_criterion_inputs *inputs,
                                 esp_prune_mode mode, const esp_prune_budget *budget) ESP_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
