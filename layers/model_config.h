/* What a model is made of: plain settings, read from YAML, kept in every checkpoint. */
#ifndef ESPALIER_MODEL_CONFIG_H
#define ESPALIER_MODEL_CONFIG_H

#include <espalier/gates.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { ESP_MAX_BLOCKS = 64, ESP_MAX_STAGES = 4, ESP_MAX_EXTRA = 3, ESP_MAX_EXPERTS = 1024 };
enum { ESP_UNLIMITED_CAPACITY = -1 }; /* an expert serves whoever chose it */
enum { ESP_EVALUATION_IMAGES = 128 }; /* of a pass of an evaluation; of a group, where none is asked for */

/* How an image [H, W, C] becomes tokens [T, width]. */
typedef enum esp_stem_kind {
  ESP_STEM_PATCH,       /* squares of patch x patch pixels, mapped linearly */
  ESP_STEM_CONVOLUTION, /* stages of 3 x 3 convolution, pooling, norm and GELU */
  ESP_STEM_FLATTEN      /* the whole image as one token: for the small MLP */
} esp_stem_kind;

/* How tokens of an image exchange information. */
typedef enum esp_mixing_kind {
  ESP_MIXING_ATTENTION,   /* multi-head self-attention */
  ESP_MIXING_CONVOLUTION, /* depthwise convolution over the grid of tokens, as in ConvMixer (arXiv 2201.09792) */
  ESP_MIXING_NONE         /* each token by itself: an MLP */
} esp_mixing_kind;

typedef enum esp_norm_kind {
  ESP_NORM_LAYER,
  ESP_NORM_RMS,
  ESP_NORM_BATCH /* over the batch; with running averages for evaluation (arXiv 1502.03167) */
} esp_norm_kind;

typedef enum esp_activation_kind {
  ESP_ACTIVATION_RELU,         /* two matrices */
  ESP_ACTIVATION_GELU,         /* two matrices */
  ESP_ACTIVATION_SWIGLU,       /* three matrices: gate, up, down; the middle is SiLU(gate) up (arXiv 2002.05202) */
  ESP_ACTIVATION_SQUARED_RELU, /* two matrices (Primer, arXiv 2109.08668) */
  ESP_ACTIVATION_GLU,          /* three: sigmoid(gate) up */
  ESP_ACTIVATION_GEGLU,        /* three: GELU(gate) up */
  ESP_ACTIVATION_REGLU,        /* three: ReLU(gate) up */
  ESP_ACTIVATION_SQUARED_REGLU /* three: ReLU(gate)^2 up */
} esp_activation_kind;

/* The magnitude by which a MoNE ranks an expert's neurons for a token. */
typedef enum esp_neuron_ranking {
  ESP_RANK_ACTIVATION,    /* |act(W_gate x)|, two matrices |act(W_up x)| (arXiv 2510.05781) */
  ESP_RANK_PRE_ACTIVATION /* before the activation: |W_gate x| resp. |W_up x| */
} esp_neuron_ranking;

typedef enum esp_layer_kind {
  ESP_LAYER_DENSE,
  ESP_LAYER_MOE, /* mixture of experts */
  ESP_LAYER_MONE /* mixture of neuron experts (arXiv 2510.05781): an MoE that keeps the top neurons in each expert */
} esp_layer_kind;

/* Who chooses; a row of the table in layers/moe/router.c each. */
typedef enum esp_router_kind {
  ESP_ROUTER_TOKEN_CHOICE,  /* each token its top_k experts (Shazeer et al., arXiv 1701.06538) */
  ESP_ROUTER_EXPERT_CHOICE, /* each expert the same number of tokens (Zhou et al., arXiv 2202.09368) */
  ESP_ROUTER_SOFT,          /* every slot of an expert takes a mixture of all tokens (Puigcerver et al., 2308.00951) */
  ESP_ROUTER_HASH,          /* fixed: the position of a token decides, by a hash (Roller et al., arXiv 2106.04426) */
  ESP_ROUTER_EVEN           /* forced: all experts in turn, whatever the scores; for benchmarks */
} esp_router_kind;

enum { ESP_ROUTERS = ESP_ROUTER_EVEN + 1 };

typedef enum esp_score_kind { ESP_SCORE_SOFTMAX, ESP_SCORE_SIGMOID } esp_score_kind;

/* Which slots count as an expert's load in the balance loss. */
typedef enum esp_balance_kind {
  ESP_BALANCE_ALL_CHOICES, /* Switch with k = 1, DeepSeek */
  ESP_BALANCE_FIRST_CHOICE /* GShard: a token's first choice only */
} esp_balance_kind;

/* Whose scores the balance loss means over the tokens. */
typedef enum esp_balance_scores {
  ESP_BALANCE_SCORES_ALL, /* each token's over all experts (Switch, DeepSeek) */
  /* 0 but for the chosen experts: as arXiv 2510.05781 prints its eq. 5; reconstruction: read so from reviewers' quotes.
   * It can be lowered by scoring the chosen experts low */
  ESP_BALANCE_SCORES_SELECTED
} esp_balance_scores;

/* What q of a neuron the neuron balance loss means over an expert's tokens. */
typedef enum esp_neuron_balance_kind {
  /* |G_j| where selected, else 0: the closest reading of arXiv 2510.05781. G does not sum to 1, so that shrinking |G|
   * lowers the loss as balancing does */
  ESP_NEURON_BALANCE_ABS,
  ESP_NEURON_BALANCE_NORM /* |G_j| / sum_l |G_l|, of all neurons: shrinking changes nothing; 1 at perfect balance */
} esp_neuron_balance_kind;

/* The systems disagree on all of this (V-MoE: softmax, selection after, not renormalised; Mixtral: the same,
 * renormalised), so that all of it is a setting. */
typedef struct esp_router_config {
  esp_router_kind policy;
  esp_score_kind score;
  bool score_selected_only; /* false: scores over all experts, then top-k; true: top-k logits, then scores of these k
                               (expert choice: of the tokens an expert chose) */
  bool renormalise;         /* divide the k gates by their sum */
  bool cosine;              /* logits are cosines of token and router vector, divided by `temperature` */
  double temperature;
  double noise;     /* training only: normal noise of standard deviation noise / experts on the logits */
  double bias_rate; /* > 0: selection, not the gates, adds a bias to the scores, which is moved by this much after each
                       training step, up where the load was below the mean (Wang et al., arXiv 2408.15664) */
  /* slots of an expert over an even share, in training and otherwise; ESP_UNLIMITED_CAPACITY: as many as are wanted */
  double capacity, evaluation_capacity;
  bool batch_priority; /* with a capacity: served by descending score of the first choice, not by position */
  int group_images;    /* images that share a capacity, and that the importance and load losses are of; expert choice:
                          among whose tokens an expert chooses; 0: the whole batch */
  /* the same outside of training, where batches may not matter: the images of a split in their order, so many to a
   * group, the last group what is left; 0: as group_images, and ESP_EVALUATION_IMAGES where that is 0 */
  int evaluation_group;
  int slots; /* Soft MoE: of each expert and image; 0: tokens / experts, rounded up */
  esp_balance_kind balance;
  esp_balance_scores balance_scores;
  double balance_weight;    /* of the Switch load-balance loss */
  double importance_weight; /* of V-MoE's importance loss */
  double load_weight;       /* of V-MoE's load loss; needs noise */
  double z_weight;          /* of the router z-loss */
  double entropy_weight;    /* of the mean entropy of a token's scores; negative rewards undecided routers */
} esp_router_config;

typedef struct esp_moe_config {
  int experts;
  int top_k;
  int members;         /* E3 (arXiv 2110.03360): ensemble members that share the experts out among them; 1: none */
  int hidden;          /* neurons of one expert */
  int shared_hidden;   /* neurons of the always-on shared expert; 0: none */
  double neurons_kept; /* MoNE: the share of an expert's neurons kept for a token, in (0, 1] */
  double neurons_kept_per_layer[ESP_MAX_BLOCKS]; /* MoNE: instead, of each mixture layer in turn, repeated if shorter:
                                                    up to 1 a share, above 1 a whole number of neurons */
  unsigned neurons_kept_per_layer_count;         /* 0: neurons_kept for all */
  esp_neuron_ranking neuron_ranking;
  esp_neuron_balance_kind neuron_balance;
  double neuron_balance_weight; /* MoNE: of the neuron balance loss, meant over the MoNE layers */
  bool identical_experts;       /* all experts start from the same weights (V-MoE) */
  esp_router_config router;
} esp_moe_config;

typedef struct esp_stem_config {
  esp_stem_kind kind;
  int patch;
  int channels[ESP_MAX_STAGES]; /* convolution: outputs of the stages before the last, which gives `width` */
  unsigned channels_count;
  int pools[ESP_MAX_STAGES]; /* convolution: size of the max pooling after each stage, the last included */
  unsigned pools_count;
  int extra_convolutions; /* convolution: of each stage after its pooling, each with norm and GELU */
  /* convolution: before the stages one whose weights stay fixed, the first so many principal components of the training
   * images' 3 x 3 patches, scaled to variance 1, and their negatives; then GELU. 0: none */
  int whitening;
} esp_stem_config;

enum { ESP_STAGE_KERNEL = 3 }; /* rows and columns of the kernels of a convolution stem */

typedef struct esp_feed_forward_config {
  esp_activation_kind activation; /* of dense layers and of experts */
  bool bias;                      /* of dense layers and of experts */
  int hidden;                     /* neurons of a dense layer */
} esp_feed_forward_config;

typedef struct esp_model_config {
  int image_height, image_width, image_channels, classes; /* 0: taken from the data */
  esp_stem_config stem;
  int width; /* of a token */
  int blocks;
  esp_mixing_kind mixing;
  int heads;      /* attention */
  int kernel;     /* convolution mixing */
  bool positions; /* learned position embedding */
  esp_norm_kind norm;
  double dropout; /* on the outputs of mixing and feed-forward, in training */
  esp_feed_forward_config feed_forward;
  esp_layer_kind layers[ESP_MAX_BLOCKS]; /* the kind of each block's feed-forward part, repeated if shorter */
  unsigned layers_count;
  esp_moe_config moe;
} esp_model_config;

ESP_API extern const esp_model_config esp_model_defaults;

/* Kind of block `index`. */
ESP_API esp_layer_kind esp_layer_kind_of(const esp_model_config *config, int index);
ESP_API const char *esp_layer_kind_name(esp_layer_kind kind);

/* Whether a block's feed-forward part is of the kind; whether one is a mixture of either kind. */
ESP_API bool esp_has_layer(const esp_model_config *config, esp_layer_kind kind);
ESP_API bool esp_has_mixture(const esp_model_config *config);

/* Neurons that block `index`, a mixture, keeps per token and expert: a share rounded up, at least 1; all of them unless
 * the layer is a MoNE. */
ESP_API int esp_neurons_kept(const esp_model_config *config, int index);

/* Three matrices, one of them a gate; and the function: of the gate, or with two matrices of the middle. */
ESP_API bool esp_activation_is_gated(esp_activation_kind activation);
ESP_API esp_gate_kind esp_activation_gate(esp_activation_kind activation);

/* Rows and columns of the grid of tokens that the stem makes. */
ESP_API void esp_token_grid(const esp_model_config *config, int *rows, int *columns);

/* Whether a token's gate is 1 whatever its router says, so that no task trains it: one expert a token, and a gate that
 * is divided by the sum of these. */
ESP_API bool esp_gates_are_constant(const esp_moe_config *config);

/* Images that share a capacity, or among whose tokens an expert chooses, outside of training. */
ESP_API int esp_evaluation_group(const esp_router_config *config);

/* How many images, about `images`, a pass outside of training takes so that groups stay whole: where it matters to a
 * token who shares its group, a multiple of the group. */
ESP_API int64_t esp_evaluation_batch(const esp_model_config *config, int64_t images);

/* ESP_ERR_CONFIG, naming the key, if the settings cannot be a model. */
ESP_API esp_status esp_model_config_check(const esp_model_config *config) ESP_MUST_CHECK;

/* Writes the settings as YAML text from esp_alloc(), and reads them back. */
ESP_API esp_status esp_model_config_save(char **text, const esp_model_config *config) ESP_MUST_CHECK;
ESP_API esp_status esp_model_config_load(esp_model_config *config, const char *name, const char *text) ESP_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
