/* Routers: who decides which expert sees which token. Each policy is a file of its own, router_*.c, behind the
 * interface below; layers/moe/router.c holds their table. */
#ifndef ESPALIER_ROUTER_H
#define ESPALIER_ROUTER_H

#include <espalier/moe_ops.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Everything a router may look at. T tokens of `images` images, image after image. With E3 the tokens come in
 * `members` equal blocks, one a member, and member m has the experts m E / members .. (m + 1) E / members - 1. */
typedef struct esp_route_request {
  const esp_router_config *config;
  const esp_expert_layout *layout;
  int k, original_experts; /* of the unpruned layer */
  int members;
  int block;
  int64_t tokens, images; /* over all members */
  bool training;
  uint64_t seed, stream;  /* key of the random streams */
  const esp_real *bias;   /* [experts] added to the scores for selection only; NULL: none */
  const int32_t *choices; /* [T, k] decided elsewhere, to be replayed; NULL: the router decides */
} esp_route_request;

/* The request of an evaluation pass over the tokens of one image, without members. */
ESP_API esp_route_request esp_plain_request(const esp_router_config *config, const esp_expert_layout *layout, int k,
                                            int64_t tokens);

/* What a router decided; all in the step arena. NULL: this policy has none. */
typedef struct esp_routed {
  esp_tensor *logits; /* [T, experts]; Soft MoE: [T, experts x slots] */
  esp_tensor *noisy;  /* [T, experts] logits after noise, with the gradient of the logits; NULL without noise */
  esp_tensor *scores; /* [T, experts] */
  esp_tensor *gates;  /* one of each slot: token choice [T, k], others [slots, 1] */
  esp_tensor *dispatch_weights; /* Soft MoE: [images, T / images, experts x slots], sums to 1 over an image's tokens */
  esp_tensor *combine_weights;  /* Soft MoE: the same shape, sums to 1 over experts and slots */
  const esp_routing *routing;   /* NULL: the tape has failed */
} esp_routed;

typedef struct esp_router_policy {
  const char *name;   /* as in model.moe.router.policy */
  const char *source; /* paper */
  bool has_weights;   /* false: no router matrix is declared, there are no logits */
  /* ESP_ERR_CONFIG, naming the key and the reason, if the settings make no sense with this policy. */
  esp_status (*check)(const esp_model_config *config);
  /* Sets routed->routing, and what else the policy has; logits are set already if has_weights. */
  void (*route)(esp_tape *tape, const esp_route_request *request, esp_routed *routed);
  /* tokens [T, C] -> the experts' rows [rows, C], and back. */
  esp_tensor *(*dispatch)(esp_tape *tape, esp_tensor *tokens, const esp_routed *routed);
  esp_tensor *(*combine)(esp_tape *tape, esp_tensor *rows, const esp_routed *routed);
} esp_router_policy;

/* The row of the table. */
ESP_API const esp_router_policy *esp_router_policy_of(esp_router_kind kind);

/* Slots an expert may serve of a group of `tokens` tokens: tokens x k x factor / experts, rounded up and then up to a
 * multiple of 4 (V-MoE); what is wanted if factor is not positive. capacity(520, 2, 8) is 140 at 1.05 and 196 at
 * 1.5. */
ESP_API int64_t esp_expert_capacity(int64_t tokens, int k, double factor, int experts);

/* Slots of each expert and image in Soft MoE. */
ESP_API int64_t esp_soft_slots(const esp_moe_config *config, int64_t tokens_per_image);

/* Tokens of one routing group, in training or otherwise, and how many groups a member's tokens make; the last one may
 * be smaller. */
ESP_API int64_t esp_group_tokens(const esp_route_request *request);
ESP_API int64_t esp_group_count(const esp_route_request *request);

/* Moves the selection bias of a layer after a training step: up by `rate` where fewer slots than the mean chose the
 * expert, down where more did; masked experts stay. bias [experts]. */
ESP_API void esp_router_bias_update(esp_real *bias, const esp_routing *routing, const esp_expert_layout *layout,
                                    double rate);

#ifdef __cplusplus
}
#endif
#endif
