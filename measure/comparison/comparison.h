/* MoE against MoNE: the models that are compared, each derived from one set of settings, and the tables and the figure
 * of how they did. */
#ifndef ESPALIER_COMPARISON_H
#define ESPALIER_COMPARISON_H

#include <espalier/figure.h>
#include <espalier/model_config.h>

#ifdef __cplusplus
extern "C" {
#endif

struct json_t; /* jansson's */

/* Which of an expert's weights count as activated for one token; arXiv 2510.05781 leaves it open, so that both are used
 * (reconstruction). f = neurons of an expert, K_N = those kept, d = width; biases aside:
 *                        three matrices      two matrices
 *   the gate in full     d (f + 2 K_N)       d (f + K_N)        the matrix that ranks the neurons is computed whole
 *   selected only        3 d K_N             2 d K_N            the kept neurons' rows of all matrices */
typedef enum esp_activation_count { ESP_COUNT_GATE_IN_FULL, ESP_COUNT_SELECTED } esp_activation_count;

typedef enum esp_variant_kind {
  ESP_VARIANT_DENSE, /* no experts: k f neurons */
  ESP_VARIANT_MOE,   /* the settings as they are, with all neurons: the baseline */
  ESP_VARIANT_HALF,  /* a MoNE with half of the MoE's activated expert parameters, with as many experts a token */
  ESP_VARIANT_EQUAL  /* a MoNE with as many activated ones, with more experts a token */
} esp_variant_kind;

/* A row of the table of models to be compared. */
typedef struct esp_variant {
  const char *name, *summary;
  esp_variant_kind kind;
  esp_activation_count count; /* of HALF and EQUAL */
  bool balanced;              /* of HALF and EQUAL: with the neuron balance loss */
  bool usual;                 /* compared unless others are named */
} esp_variant;

/* The table; returns its number of rows. */
ESP_API size_t esp_variant_list(const esp_variant **variants);

/* The model of `base` (complete: sizes from the data are set) that the variant says: its dense layers stay, its mixture
 * layers become the variant's; all but the dense variant have the same total parameters. The
 * neuron balance loss has the weight of `base`, 0.01 if that is 0, in the balanced ones, and none in the others. EQUAL
 * takes the most experts a token, up to 2 k, for which a whole K_N solves k' activated(K_N) = k activated(f).
 * ESP_ERR_CONFIG, with the reason, if there is none, or if `base` has no mixture layer or a router for which "experts a
 * token" means something else. */
ESP_API esp_status esp_variant_config(const esp_variant *variant, const esp_model_config *base,
                                      esp_model_config *config) ESP_MUST_CHECK;

/* What is known of a run. Not-a-number: not measured. */
typedef enum esp_compared_value {
  ESP_COMPARED_VALIDATION_ACCURACY, /* at the end, on the validation split: what a choice may look at */
  ESP_COMPARED_ACCURACY,            /* at the end, on the test split, like the loss: what is reported */
  ESP_COMPARED_LOSS,
  ESP_COMPARED_PARAMETERS, /* as in esp_model_cost ... */
  ESP_COMPARED_ACTIVATED,
  ESP_COMPARED_ACTIVATED_SELECTED,
  ESP_COMPARED_TOUCHED,
  ESP_COMPARED_FLOPS,
  ESP_COMPARED_FLOPS_SELECTED,
  ESP_COMPARED_NEAR_ZERO_HUNDREDTH, /* share of gate activations with |a| < 0.01, mean over the mixture layers */
  ESP_COMPARED_NEAR_ZERO_TENTH,     /* ... 0.1 */
  ESP_COMPARED_NEURONS_USED,        /* K_N / f */
  ESP_COMPARED_NEURON_GINI,         /* of how often neurons are selected, mean over the layers; of MoNEs */
  ESP_COMPARED_DEAD_NEURONS,        /* share of neurons that hardly any token selects; of MoNEs */
  ESP_COMPARED_TRAINING_RATE,       /* images/s of the training steps */
  ESP_COMPARED_MILLISECONDS,        /* of one image alone; measured once per variant, see esp_comparison */
  ESP_COMPARED_VALUES
} esp_compared_value;

/* "validation_accuracy", "accuracy", "loss" ... as columns and keys are called. */
ESP_API const char *esp_compared_value_name(esp_compared_value value);

typedef struct esp_compared_run {
  const esp_variant *variant;
  uint64_t seed;
  int top_k, neurons, neurons_kept; /* 0 without experts */
  double values[ESP_COMPARED_VALUES];
} esp_compared_run;

typedef struct esp_comparison {
  const char *config, *data; /* how people call them */
  const esp_compared_run *runs;
  int run_count;
} esp_comparison;

/* A variant over its seeds. Deviations are of a sample (n - 1); not-a-number with one seed. */
typedef struct esp_compared_summary {
  const esp_compared_run *first;
  int seeds;
  double mean[ESP_COMPARED_VALUES], deviation[ESP_COMPARED_VALUES];
  /* This variant minus the MoE of the same seed, over the seeds that both have: 0 pairs, not-a-number, without an
   * MoE. */
  int pairs;
  double difference[ESP_COMPARED_VALUES], difference_deviation[ESP_COMPARED_VALUES];
} esp_compared_summary;

/* Summaries in the order in which variants first appear among the runs; returns their number. summaries [run_count]. */
ESP_API int esp_comparison_summaries(const esp_comparison *comparison, esp_compared_summary *summaries);

/* config, data, threads, blas_kernel; runs[]: variant, seed, top_k, neurons, neurons_kept and the values by name;
 * variants[]: the same with seeds, pairs and, of each value, mean and deviation, of accuracies and loss also difference
 * and difference_deviation. Not-a-number is null. A new reference; NULL if memory is short. */
ESP_API struct json_t *esp_comparison_json(const esp_comparison *comparison);

/* Writes compare.csv (a row a run), compare_summary.csv (a row a variant), compare.json and compare.gp, which draws
 * accuracy over activated parameters by both counts, into a folder that exists. */
ESP_API esp_status esp_comparison_write(const esp_comparison *comparison, const char *folder) ESP_MUST_CHECK;

/* A table with a row a variant. */
ESP_API void esp_comparison_print(const esp_comparison *comparison, FILE *file);

#ifdef __cplusplus
}
#endif
#endif
