/* What routers and neurons of the mixture layers do over a pass of data: an observer that adds up in double
 * precision. Observers see mixture layers only, so nothing is said about dense ones. */
#ifndef ESPALIER_STATISTICS_H
#define ESPALIER_STATISTICS_H

#include <espalier/model.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The gate activation of a neuron is what weighs its contribution: act(W_gate x), SiLU(W_gate x) with SwiGLU; the
 * neuron's activation with two matrices. In a MoNE: before the selection. */
enum {
  ESP_HISTOGRAM_BINS = 81, /* of equal width, the middle one around 0 */
  ESP_NEAR_ZERO_LEVELS = 3,
  ESP_TOP_MASS_LEVELS = 6,
  ESP_STATISTICS_STRIDE = 32
};

/* Bin i reaches from esp_histogram_edge(i) up to, not including, esp_histogram_edge(i + 1); 0 <= i <=
 * ESP_HISTOGRAM_BINS. The first edge is -2.025 and the last one 2.025. */
ESP_API double esp_histogram_edge(int index);

ESP_API extern const double esp_near_zero_levels[ESP_NEAR_ZERO_LEVELS]; /* 0.001, 0.01, 0.1 */
ESP_API extern const int esp_top_mass_percents[ESP_TOP_MASS_LEVELS];    /* 1, 5, 10, 20, 30, 50 */

/* What is known of one logical expert. A token's k choices are its slots; an expert is at most one of them. */
typedef struct esp_expert_statistics {
  int64_t count;         /* tokens that chose it; with Soft MoE its slots */
  int64_t served;        /* of them within its capacity */
  int64_t first_choices; /* ... before all others */
  double share;          /* of all slots */
  double gate_mass;      /* sum of its gates over the tokens that chose it */
  double gate_served;    /* ... over those of them that reached a stored expert */
  double mean_gate;      /* gate_mass / count; 0 if no token chose it */
  double mean_score;     /* over all tokens */
} esp_expert_statistics;

/* How a stored expert of a layer that selects neurons (MoNE) uses them. Every row counts, whatever the stride. */
typedef struct esp_neuron_usage {
  int64_t rows;            /* tokens the expert served */
  int neurons;             /* of the expert */
  const int64_t *selected; /* [neurons] for how many of its tokens each was selected; lives as long as the statistics */
  double gini; /* Gini coefficient of `selected`: 0 if all are selected equally often, towards 1 if few always are */
  int dead;    /* neurons selected less often than 0.1 of the mean; 0 if the expert served no token */
} esp_neuron_usage;

/* What is known of one mixture layer. "Routable" experts are those that are not masked. */
typedef struct esp_layer_statistics {
  const char *scope; /* "blocks.1.moe"; lives as long as the statistics */
  esp_layer_kind kind;
  int block, experts, routable;
  int64_t tokens, slots;     /* seen; tokens x k */
  int64_t served;            /* slots that reached a stored expert: executed expert calls */
  int64_t skipped;           /* slots that dynamic skipping left out */
  int64_t scored;            /* tokens whose router scores were seen; 0 if the policy has none: hash, Soft MoE */
  int64_t logits;            /* of routable experts that were seen; 0 if the policy has none: hash */
  double entropy;            /* of the experts' shares, in nats */
  double normalised_entropy; /* ... over log(routable), its largest value: at most 1 */
  double token_entropy;      /* of a token's scores (divided by their sum), in nats; mean over tokens */
  double imbalance;          /* most slots of an expert / mean over routable experts */
  int dead_experts;          /* routable ones with a share below 0.1 / routable */
  double logit_rms;          /* root of the mean of their squares */

  /* In a MoNE these are taken over the experts that served a token; they are 0 otherwise. */
  double neuron_gini; /* mean of the experts' */
  int dead_neurons, counted_neurons;

  /* These tell of the sampled rows; a row is one token in one expert. */
  int64_t rows, values; /* looked at; rows x neurons */
  int64_t not_finite;   /* gate activations that are no number or infinite; counted nowhere below */
  int64_t histogram[ESP_HISTOGRAM_BINS];
  int64_t below, above;                   /* left and right of the histogram */
  double near_zero[ESP_NEAR_ZERO_LEVELS]; /* share of gate activations with |a| < the level */
  int64_t silent_rows;                    /* rows whose sum of |a| is 0 */
  /* The share of a row's sum of |a| that lies in its largest p percent of neurons (their number is rounded
   * up); mean over the rows that are not silent. */
  double top_mass[ESP_TOP_MASS_LEVELS];
} esp_layer_statistics;

typedef struct esp_statistics esp_statistics;

/* Empty statistics for a model (which need not outlive them). Routing is counted for every token; neurons
 * are looked at in every `stride`-th row of a batch (rows are sorted by expert), since sorting all rows
 * costs more than the forward pass: 1 for all rows, ESP_STATISTICS_STRIDE for a pass over a test set (a few
 * percent of the pass), 0 for routing alone: nothing of neurons is counted then. The sums do not depend on the order of
 * the batches; with a stride above 1 the sample depends on how the data are cut into batches. Freed by
 * esp_statistics_free(). */
ESP_API esp_status esp_statistics_create(esp_statistics **statistics, const esp_model *model,
                                         int stride) ESP_MUST_CHECK;
ESP_API void esp_statistics_free(esp_statistics *statistics);

/* Adds what it sees. To be used with the model the statistics were created for, or one of the same layout. */
ESP_API esp_observer esp_statistics_observer(esp_statistics *statistics);

/* Forgets what was seen. */
ESP_API void esp_statistics_reset(esp_statistics *statistics);

/* Adds what `other` has seen. ESP_ERR_MISMATCH if they were created for different layouts. */
ESP_API esp_status esp_statistics_merge(esp_statistics *statistics, const esp_statistics *other) ESP_MUST_CHECK;

/* Mixture layers, as esp_model_moe() counts them. Statistics of nothing are 0. */
ESP_API int esp_statistics_layer_count(const esp_statistics *statistics);
ESP_API void esp_statistics_layer(const esp_statistics *statistics, int layer, esp_layer_statistics *result);
ESP_API void esp_statistics_expert(const esp_statistics *statistics, int layer, int expert,
                                   esp_expert_statistics *result);

/* How often each neuron of stored expert `stored` was selected. False, and nothing set, if the layer selects none. */
ESP_API bool esp_statistics_neurons(const esp_statistics *statistics, int layer, int stored, esp_neuron_usage *usage);

/* Tokens that chose both experts, in whatever order; 0 for an expert and itself. */
ESP_API int64_t esp_statistics_pair(const esp_statistics *statistics, int layer, int expert, int other);

/* Whether a token could choose both: not if k is 1 (expert choice excepted, where a token may have any number), not in
 * Soft MoE, where tokens choose nothing, not across the members of an E3, each of which has its own copy of a token. */
ESP_API bool esp_statistics_can_pair(const esp_statistics *statistics, int layer, int expert, int other);

/* The model's classes, and the slots that tokens of a class's images took in an expert, or those of them that reached a
 * stored expert; 0 if the passes had no labels. With Soft MoE there are no classes, since its slots mix an image's
 * tokens. */
ESP_API int esp_statistics_classes(const esp_statistics *statistics, int layer);
ESP_API int64_t esp_statistics_class(const esp_statistics *statistics, int layer, int expert, int class_);
ESP_API int64_t esp_statistics_class_served(const esp_statistics *statistics, int layer, int expert, int class_);

#ifdef __cplusplus
}
#endif
#endif
