/* How many neurons a trained model can do without: neurons of the chosen experts are left out, token by token, and the
 * model is evaluated as it is (the study of arXiv 2510.05781; details are a reconstruction). */
#ifndef ESPALIER_SPARSIFY_H
#define ESPALIER_SPARSIFY_H

#include <espalier/evaluate.h>

#include <signal.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Which neurons of a row (a token in an expert) are left out first. G is the gate activation (act(W_gate x); with two
 * matrices act(W_up x)), h what goes into W_down (G times W_up x; with two matrices G). */
typedef enum esp_sparsify_order {
  ESP_SPARSIFY_SMALLEST,     /* smallest |G_j| */
  ESP_SPARSIFY_LARGEST,      /* largest |G_j| */
  ESP_SPARSIFY_RANDOM,       /* at random, by a seed */
  ESP_SPARSIFY_CONTRIBUTION, /* smallest |h_j| ||row j of W_down||, the norm of what the neuron adds */
  ESP_SPARSIFY_ORDERS
} esp_sparsify_order;

/* "smallest", "largest", "random", "contribution". */
ESP_API const char *esp_sparsify_order_name(esp_sparsify_order order);

enum { ESP_SPARSIFY_SHARES = 12 };
ESP_API extern const double esp_sparsify_shares[ESP_SPARSIFY_SHARES]; /* 0, 0.1 ... 0.9, 0.95, 0.99 */

typedef struct esp_sparsify_point {
  int layer; /* mixture layer that alone is sparsified; -1: all */
  esp_sparsify_order order;
  double share;          /* q that was asked for; 0 stands in every order, but is evaluated once */
  double active;         /* neurons left, of those that the layer activates: 1 - q but for rounding, mean over rows */
  double accuracy, loss; /* test */
} esp_sparsify_point;

typedef struct esp_sparsify_options {
  esp_evaluation_options evaluation; /* split, batch, limit */
  uint64_t seed;                     /* of the random order */
  int first_layer, end_layer;        /* mixture layers that are sparsified alone; both 0: none, only all together */
  const volatile sig_atomic_t *stop; /* set: end with ESP_ERR_INTERRUPTED; NULL: never */
  void (*progress)(void *context, int64_t done, int64_t evaluations); /* NULL: none */
  void *context;
} esp_sparsify_options;

/* Points of a study: (1 + layers) x orders x shares, by layer (all first), order and share. */
ESP_API int64_t esp_sparsify_count(const esp_sparsify_options *options);

/* Leaves out, of the n neurons that a row activates (all of the expert's, in a MoNE the selected ones), the round(q n)
 * first in the order; of equal ones the higher indices first. Neurons of shared experts and dense layers stay. q = 0
 * leaves the bits. points [esp_sparsify_count()]. */
ESP_API esp_status esp_sparsify(const esp_model *model, const esp_dataset *dataset,
                                const esp_normalisation *normalisation, const esp_sparsify_options *options,
                                esp_sparsify_point *points) ESP_MUST_CHECK;

/* Writes sparsify.csv (a row a point: layer, order, q, accuracy, loss, active) and the scripts of its figures,
 * sparsify.gp (all layers, by order) and, with single layers, sparsify_layers.gp (smallest |G|, by layer). */
ESP_API esp_status esp_sparsify_write(const esp_model *model, const esp_sparsify_point *points, int64_t count,
                                      const char *title, const char *folder) ESP_MUST_CHECK;

/* Accuracy in percent, a row a layer and order, a column a share. */
ESP_API void esp_sparsify_print(const esp_model *model, const esp_sparsify_point *points, int64_t count, FILE *file);

#ifdef __cplusplus
}
#endif
#endif
