/* Neuron pruning: neurons that an expert hardly uses are cut out for good, after which the experts of a layer differ in
 * width. A criterion scores neurons, a budget turns scores into a plan, esp_apply_plan() carries it out. The method is
 * a reconstruction: Mixture of Neuron Experts (arXiv 2510.05781) selects neurons token by token and cuts none out. */
#ifndef ESPALIER_NEURONS_H
#define ESPALIER_NEURONS_H

#include <espalier/criteria.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct esp_neuron_criterion esp_neuron_criterion;

struct esp_neuron_criterion {
  const char *name, *formula;
  bool needs_data;
  bool uses_seed;       /* whether the inputs' seed makes a difference besides drawing calibration images */
  bool needs_selection; /* says something of layers that select neurons only (MoNE); the others stay as they are */
  esp_status (*score)(const esp_neuron_criterion *self, const esp_criterion_inputs *inputs, esp_plan *plan);
};

/* Which neurons go: those with the lowest scores, of equal ones the higher index first. In every expert as many stay as
 * a token uses of it: K_N in a MoNE, else 1. */
typedef struct esp_neuron_budget {
  double ratio;  /* this share of an expert's neurons, in [0, 1), rounded down ... */
  bool by_layer; /* ... or of a layer's, wherever they are, so that its experts end up with different widths */
  double below;  /* > 0: instead of a share, those with a score below this; for neuron-frequency. An expert without
                          rows in the calibration data keeps all */
  const char *exclude; /* comma-separated patterns of layers that keep all; NULL: none */
} esp_neuron_budget;

/* The table; returns its number of rows. */
ESP_API size_t esp_neuron_criterion_list(const esp_neuron_criterion **criteria);

/* Whether a criterion of that name would be one for neurons: they begin with "neuron-". */
ESP_API bool esp_is_neuron_criterion(const char *name);

/* ESP_ERR_USAGE if there is none of that name; the message names the nearest. */
ESP_API esp_status esp_neuron_criterion_find(const esp_neuron_criterion **criterion, const char *name) ESP_MUST_CHECK;

/* A plan that cuts neurons and drops no expert. ESP_ERR_USAGE if the criterion needs data and there are none, or the
 * budget cannot be; ESP_ERR_MISMATCH if the criterion makes no sense with this model. On failure *plan is NULL. Freed
 * by esp_plan_free(). */
ESP_API esp_status esp_neuron_plan_make(esp_plan **plan, const esp_neuron_criterion *criterion,
                                        const esp_criterion_inputs *inputs,
                                        const esp_neuron_budget *budget) ESP_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
