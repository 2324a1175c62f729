/* Which experts share weights after merging: dominant experts by how often they are used, and every other one with the
 * dominant expert it is most like (M-SMoE, arXiv 2310.01334, section 3.1). */
#ifndef ESPALIER_GROUPING_H
#define ESPALIER_GROUPING_H

#include <espalier/moe_ops.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct esp_group_layer {
  const char *scope;
  int experts, members; /* those of one member of an E3 never share with another's */
  bool excluded;        /* keeps all its experts */
  bool alive[ESP_MAX_EXPERTS];
  double frequency[ESP_MAX_EXPERTS]; /* how often each is chosen; sums to 1 over the layer */
  double *similarity;                /* [experts, experts]; the caller's */
  int32_t dominant[ESP_MAX_EXPERTS]; /* result: of each expert that is alive, the one it shares with; else -1 */
} esp_group_layer;

/* How many groups. Exactly one of `groups` and `ratio` is set. */
typedef struct esp_group_budget {
  int groups;   /* a layer, on average if `global`; 0: by ratio */
  double ratio; /* the share of a layer's experts that is to go, rounded down */
  bool global;  /* false: that many in each layer */
  int capacity; /* most experts a group may have; 0: any number */
} esp_group_budget;

/* Sets `dominant` of the dominant experts to themselves and of all others to -1.
 *
 * Uniform: each layer's most used experts (of each member as many), ties to the lower index.
 * Global: excluded layers' frequencies and every layer's (member's) largest count as 1; all are sorted, largest first;
 * the one at 0-based rank G is the threshold, G = the sum of what the layers are to keep, an excluded one all; a layer
 * has as many groups as it has frequencies strictly above. So frequencies that tie at the threshold yield fewer groups
 * than G, which is kept as the authors' code has it. If G is the number of all experts, all are dominant (their code
 * takes rank G - 1 there and loses the least used).
 *
 * ESP_ERR_USAGE if a budget cannot be: no groups, more than there are experts, fewer than layers (the threshold would
 * be
 * 1), a number that members cannot share. */
ESP_API esp_status esp_choose_dominant(esp_group_layer *layers, int count,
                                       const esp_group_budget *budget) ESP_MUST_CHECK;

/* Sets `dominant` of the other experts: the dominant one (of its member) with the highest similarity, ties to the lower
 * index. With a capacity experts choose in the order of their indices among the groups with room (reconstruction);
 * ESP_ERR_USAGE if the groups have not room for all. */
ESP_API esp_status esp_join_groups(esp_group_layer *layers, int count, const esp_group_budget *budget) ESP_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
