/* A pruning plan says what becomes of every expert; it is made by a criterion and a budget and carried out by the
 * surgeon. Plans are plain data: one can be read before it is applied, and kept beside the model it made. */
#ifndef ESPALIER_PLAN_H
#define ESPALIER_PLAN_H

#include <espalier/checkpoint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What happens to the router's row of a dropped expert. */
typedef enum esp_prune_mode {
  ESP_PRUNE_ZERO,   /* kept: tokens are still routed to it and get nothing (arXiv 2405.16646) */
  ESP_PRUNE_REMOVE, /* removed: the next best expert takes its tokens */
  ESP_PRUNE_MASK    /* kept but never chosen: the same function as removal */
} esp_prune_mode;

ESP_API const char *esp_prune_mode_name(esp_prune_mode mode);
ESP_API esp_status esp_prune_mode_parse(esp_prune_mode *mode, const char *name) ESP_MUST_CHECK;

/* A logical expert's target besides another expert's number. */
enum { ESP_TARGET_ZERO = ESP_EXPERT_ZERO, ESP_TARGET_MASKED = ESP_EXPERT_MASKED, ESP_TARGET_REMOVED = -3 };

/* Which neurons stay, of the experts in the bank before: one expert's neurons after another's, each in their order. */
typedef struct esp_neuron_choice {
  int stored;                     /* experts in the bank; 0: no choice is made, all neurons stay */
  int32_t width[ESP_MAX_EXPERTS]; /* [stored] neurons of each before */
  int64_t count;                  /* of all of them */
  bool *stays;                    /* [count] */
  double *score;                  /* [count] what the criterion said: the higher, the more worth keeping */
} esp_neuron_choice;

typedef struct esp_layer_plan {
  char scope[64];                  /* "blocks.1.moe" */
  int experts;                     /* logical experts of the layer before */
  int32_t target[ESP_MAX_EXPERTS]; /* whose weights expert e uses afterwards: e itself where it is kept, another
                                      expert where it is merged into that, or an ESP_TARGET_ */
  bool averaged;                   /* false: a target's weights stay as they are; true: they become the average of those
                                      of all experts that have this target (a group) */
  double weight[ESP_MAX_EXPERTS];  /* averaged: of each expert in its group's average; those of a group sum to 1 */
  int neurons;                     /* of each expert; 0 without `place` */
  int32_t *place; /* [experts, neurons] averaged: the neuron of the group's expert that each neuron goes into; NULL:
                     the one of the same number. One-to-one for aligned experts (a permutation). Where several meet,
                     their rows of gate and up are averaged and those of down added up */
  double score[ESP_MAX_EXPERTS]; /* what the criterion said: the higher, the more worth keeping */
  int unrouted; /* experts with weights that no calibration token was routed to: criteria by a pass score them 0 */
  double loss;  /* of the subset that reconstruction chose; 0 otherwise */
  bool greedy;  /* it went expert by expert, because there are too many subsets or it was asked to */
  esp_neuron_choice neuron;
} esp_layer_plan;

/* The data a plan was calibrated on. */
typedef struct esp_plan_data {
  char name[64], digest[64], split[8]; /* "" without calibration */
  int64_t images;
  uint64_t seed;
} esp_plan_data;

enum { ESP_PLAN_NOTE_SIZE = 384 };

typedef struct esp_plan {
  char model_digest[ESP_DIGEST_SIZE]; /* the model it was made for */
  char criterion[64], formula[192];
  char
      note[ESP_PLAN_NOTE_SIZE]; /* for people: what makes the scores doubtful; "": nothing does. Files do not keep it */
  uint64_t seed;                /* of what is random in the criterion */
  esp_plan_data data;
  esp_prune_mode mode;
  int layer_count;
  esp_layer_plan *layers; /* one per mixture layer */
} esp_plan;

/* How many experts go. Exactly one of `drop` and `ratio` is set. */
typedef struct esp_prune_budget {
  int drop;     /* experts per layer; -1: by ratio */
  double ratio; /* of the experts a layer has now, rounded down as in arXiv 2606.15716: 0.5 of 7 are 3 */
  bool global;  /* as many as that in all layers together, those with the lowest scores of all; scores are compared as
                   they are, so the criterion should mean the same in every layer */
  int floor;    /* every layer keeps at least so many, and at least what the mode needs: modes remove and mask top_k,
                   mode zero 1 */
  const char *exclude; /* layers that keep all: comma-separated shell patterns of scopes, "blocks.3.*"; NULL: none */
} esp_prune_budget;

/* A plan for the model in which every expert stays. On failure *plan is NULL. Freed by esp_plan_free(). */
ESP_API esp_status esp_plan_create(esp_plan **plan, const esp_model *model, const char *criterion,
                                   esp_prune_mode mode) ESP_MUST_CHECK;
ESP_API void esp_plan_free(esp_plan *plan);

/* Makes layer->place, in which every neuron stays where it is. Freed with the plan. */
ESP_API esp_status esp_plan_take_places(esp_layer_plan *layer, int neurons) ESP_MUST_CHECK;

/* Experts that have weights of their own afterwards, or groups that share some. */
ESP_API int esp_plan_groups(const esp_layer_plan *layer);

/* How many experts of each layer go by a budget that is not global: drops[layer_count]. With an E3 a multiple of the
 * members, of which each loses as many. ESP_ERR_USAGE if too few would be left, a pattern matches no layer, or members
 * cannot lose the same number. */
ESP_API esp_status esp_plan_counts(const esp_plan *plan, const esp_model *model, const esp_prune_budget *budget,
                                   int *drops) ESP_MUST_CHECK;

/* Drops the experts with the lowest scores among those that still have weights; of equal ones the higher index, and in
 * a global budget the later layer, goes first, so that ties favour the lower. With an E3 the lowest of each member.
 * ESP_ERR_USAGE as above, and for a global budget with an E3, whose members must lose the same number. A refused budget
 * changes nothing. */
ESP_API esp_status esp_plan_drop_lowest(esp_plan *plan, const esp_model *model,
                                        const esp_prune_budget *budget) ESP_MUST_CHECK;

/* Drops an expert as the plan's mode has it. */
ESP_API void esp_plan_drop(esp_plan *plan, int layer, int expert);

/* Makes layer->neuron, in which every neuron of the model's layer stays. Freed with the plan. */
ESP_API esp_status esp_plan_take_neurons(esp_layer_plan *layer, const esp_moe *moe) ESP_MUST_CHECK;

/* Neurons that the plan cuts out of a layer, and those it leaves of stored expert `stored`, the first of which is
 * number *first of layer->neuron. */
ESP_API int64_t esp_plan_neurons_cut(const esp_layer_plan *layer);
ESP_API int esp_plan_neurons_left(const esp_layer_plan *layer, int stored, int64_t *first);

/* Experts of a layer that the plan drops. */
ESP_API int esp_plan_dropped(const esp_layer_plan *layer);

/* The plan that esp_plan_json() wrote, to be applied again. On failure *plan is NULL: ESP_ERR_NOT_FOUND, ESP_ERR_FORMAT
 * (what is no plan, or names targets that cannot be). Whether it fits a model is for esp_apply_plan() to say. Freed by
 * esp_plan_free(). */
ESP_API esp_status esp_plan_load(esp_plan **plan, const char *path) ESP_MUST_CHECK;

/* The plan as JSON text from esp_alloc(). */
ESP_API esp_status esp_plan_json(char **text, const esp_plan *plan) ESP_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
