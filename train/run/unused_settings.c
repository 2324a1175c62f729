#include "unused_settings_internal.h"

#include <espalier/router.h>
#include <espalier/yaml.h>

#include <stdio.h>
#include <string.h>

/* A reason why a setting does nothing is a half sentence that follows "does nothing: "; NULL: it acts. */
typedef const char *unused_reason(const esp_run_config *config);

static const esp_router_config *router_of(const esp_run_config *c) { return &c->model.moe.router; }

static bool routes_by(const esp_run_config *c, esp_router_kind policy) { return router_of(c)->policy == policy; }

/* ---- model ---- */

static const char *without_patch_stem(const esp_run_config *c) {
  return c->model.stem.kind == ESP_STEM_PATCH ? NULL : "only model.stem.kind patch cuts images into patches";
}

static const char *without_convolution_stem(const esp_run_config *c) {
  return c->model.stem.kind == ESP_STEM_CONVOLUTION ? NULL : "only model.stem.kind convolution has stages";
}

static const char *without_attention(const esp_run_config *c) {
  return c->model.mixing == ESP_MIXING_ATTENTION ? NULL : "only model.mixing attention has heads";
}

static const char *without_convolution(const esp_run_config *c) {
  return c->model.mixing == ESP_MIXING_CONVOLUTION ? NULL : "only model.mixing convolution has a kernel";
}

static const char *without_dense(const esp_run_config *c) {
  return esp_has_layer(&c->model, ESP_LAYER_DENSE) ? NULL
                                                   : "model.layers names no dense layer (experts: model.moe.hidden)";
}

static const char *without_mixture(const esp_run_config *c) {
  return esp_has_mixture(&c->model) ? NULL : "model.layers names no mixture (moe or mone)";
}

static const char *without_mone(const esp_run_config *c) {
  return esp_has_layer(&c->model, ESP_LAYER_MONE) ? NULL
                                                  : "model.layers names no mone layer, and others keep all neurons";
}

static const char *kept_per_layer(const esp_run_config *c) {
  if (c->model.moe.neurons_kept_per_layer_count) return "model.moe.neurons_kept_per_layer says it for each layer";
  return without_mone(c);
}

static const char *without_neuron_balance(const esp_run_config *c) {
  if (!(c->model.moe.neuron_balance_weight > 0)) return "model.moe.neuron_balance_weight is 0";
  return without_mone(c);
}

/* ---- routers ---- */

static const char *without_top_k(const esp_run_config *c) {
  return routes_by(c, ESP_ROUTER_SOFT) ? "model.moe.router.policy soft chooses no experts" : NULL;
}

static const char *without_scores(const esp_run_config *c) {
  return routes_by(c, ESP_ROUTER_HASH) ? "model.moe.router.policy hash has no scores; its gates are 1" : NULL;
}

static const char *without_selection(const esp_run_config *c) {
  return routes_by(c, ESP_ROUTER_SOFT) ? "model.moe.router.policy soft mixes by all scores" : without_scores(c);
}

/* What is switched off may be said of any router. */
static const char *selection_without(const esp_run_config *c) {
  return router_of(c)->score_selected_only ? without_selection(c) : NULL;
}

static const char *division_without(const esp_run_config *c) {
  return router_of(c)->renormalise ? without_selection(c) : NULL;
}

static const char *without_cosine(const esp_run_config *c) {
  return router_of(c)->cosine ? NULL : "only cosines (model.moe.router.cosine) are divided by it";
}

static const char *without_capacity(const esp_run_config *c) {
  const esp_router_config *r = router_of(c);
  if (routes_by(c, ESP_ROUTER_SOFT)) return "model.moe.router.policy soft mixes the tokens of each image by themselves";
  if (routes_by(c, ESP_ROUTER_EXPERT_CHOICE) || r->capacity > 0 || r->evaluation_capacity > 0) return NULL;
  if (r->importance_weight > 0 || r->load_weight > 0) return NULL; /* both are of each group */
  return "nothing has a capacity (model.moe.router.capacity), so that no images share "
         "one";
}

static const char *without_evaluation_capacity(const esp_run_config *c) {
  if (routes_by(c, ESP_ROUTER_SOFT)) return without_capacity(c);
  if (routes_by(c, ESP_ROUTER_EXPERT_CHOICE) || router_of(c)->evaluation_capacity > 0) return NULL;
  return "outside of training nothing has a capacity (model.moe.router.evaluation_capacity), so that no images share "
         "one";
}

static const char *without_balance(const esp_run_config *c) {
  static const char *const reasons[] = {
      [ESP_ROUTER_EXPERT_CHOICE] = "with model.moe.router.policy expert_choice all experts serve as many tokens",
      [ESP_ROUTER_SOFT] = "with model.moe.router.policy soft all experts have as many slots",
      [ESP_ROUTER_HASH] = "model.moe.router.policy hash learns nothing that could be balanced",
      [ESP_ROUTER_EVEN] = "model.moe.router.policy even is balanced by force"};
  return routes_by(c, ESP_ROUTER_TOKEN_CHOICE) ? NULL : reasons[router_of(c)->policy];
}

static const char *weight_without_balance(const esp_run_config *c) {
  return router_of(c)->balance_weight > 0 ? without_balance(c) : NULL;
}

static const char *weight_without_mone(const esp_run_config *c) {
  return c->model.moe.neuron_balance_weight > 0 ? without_mone(c) : NULL;
}

static const char *without_balance_loss(const esp_run_config *c) {
  return router_of(c)->balance_weight > 0 ? without_balance(c) : "model.moe.router.balance_weight is 0";
}

/* ---- optimizer, augmentation, training ---- */

static const char *without_router_decay(const esp_run_config *c) {
  if (c->optimizer.router_decay > 0 && !(c->optimizer.weight_decay > 0)) return "optimizer.weight_decay is 0";
  return without_mixture(c);
}

static const char *without_momentum(const esp_run_config *c) {
  return c->optimizer.kind == ESP_OPTIMIZER_ADAMW ? "optimizer.kind adamw has beta1 in its place" : NULL;
}

static const char *without_moments(const esp_run_config *c) {
  return c->optimizer.kind == ESP_OPTIMIZER_SGD ? "optimizer.kind sgd has momentum alone" : NULL;
}

static const char *without_decline(const esp_run_config *c) {
  return c->optimizer.schedule.kind == ESP_SCHEDULE_CONSTANT ? "optimizer.schedule.kind constant stays at its height"
                                                             : NULL;
}

static const char *without_crops(const esp_run_config *c) {
  return c->augmentation.crop_padding > 0 ? NULL : "nothing is padded (augmentation.crop_padding)";
}

static const char *without_flips(const esp_run_config *c) {
  return c->augmentation.flip ? NULL : "nothing is mirrored (augmentation.flip)";
}

static const char *without_alarms(const esp_run_config *c) {
  return c->training.alarm_share > 0 ? without_mixture(c) : "training.alarm_share is 0";
}

static const char *without_validation(const esp_run_config *c) {
  if (c->training.evaluate_examples == 0 || c->data.validation > 0) return NULL;
  return "data.validation is 0, so that evaluations under way have no images to look at";
}

/* The first row whose key is the setting's, or the section that it is in, and whose reason holds, decides. */
static const struct {
  const char *key; /* "section." stands for all keys in it */
  unused_reason *reason;
} rows[] = {{"model.stem.patch", without_patch_stem},
            {"model.stem.channels", without_convolution_stem},
            {"model.stem.pools", without_convolution_stem},
            {"model.stem.extra_convolutions", without_convolution_stem},
            {"model.stem.whitening", without_convolution_stem},
            {"model.heads", without_attention},
            {"model.kernel", without_convolution},
            {"model.feed_forward.hidden", without_dense},
            {"model.moe.", without_mixture},
            {"model.moe.top_k", without_top_k},
            {"model.moe.neurons_kept", kept_per_layer},
            {"model.moe.neurons_kept_per_layer", without_mone},
            {"model.moe.neuron_ranking", without_mone},
            {"model.moe.neuron_balance", without_neuron_balance},
            {"model.moe.neuron_balance_weight", weight_without_mone},
            {"model.moe.router.score", without_scores},
            {"model.moe.router.score_selected_only", selection_without},
            {"model.moe.router.renormalise", division_without},
            {"model.moe.router.temperature", without_cosine},
            {"model.moe.router.group_images", without_capacity},
            {"model.moe.router.evaluation_group", without_evaluation_capacity},
            {"model.moe.router.balance", without_balance_loss},
            {"model.moe.router.balance_scores", without_balance_loss},
            {"model.moe.router.balance_weight", weight_without_balance},
            {"optimizer.router_rate", without_mixture},
            {"optimizer.router_decay", without_router_decay},
            {"optimizer.momentum", without_momentum},
            {"optimizer.beta1", without_moments},
            {"optimizer.beta2", without_moments},
            {"optimizer.epsilon", without_moments},
            {"optimizer.schedule.final_share", without_decline},
            {"augmentation.reflect", without_crops},
            {"augmentation.alternate", without_flips},
            {"training.evaluate_examples", without_validation},
            {"training.alarm_share", without_mixture},
            {"training.alarm_evaluations", without_alarms}};

/* A file may hold it for an override that makes it act: experiments set model.layers=[dense]. */
static const char waits[] = "model.feed_forward.hidden";

static bool concerns(const char *row, const char *key) {
  const size_t length = strlen(row);
  return row[length - 1] == '.' ? strncmp(row, key, length) == 0 : strcmp(row, key) == 0;
}

/* NULL: the setting acts. */
static const char *reason_of(const esp_run_config *config, const char *key, bool in_file) {
  for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
    const bool asked = concerns(rows[i].key, key) && !(in_file && strcmp(key, waits) == 0);
    const char *reason = asked ? rows[i].reason(config) : NULL;
    if (reason) return reason;
  }
  return NULL;
}

/* ---- What is set ---- */

typedef struct origin {
  const esp_run_config *config;
  const char *name; /* of a file; NULL: the key is an override's */
} origin;

static esp_status refuse_unused(void *context, const char *key) {
  const origin *from = context;
  const char *reason = reason_of(from->config, key, from->name != NULL);
  if (!reason) return ESP_OK;
  return esp_fail(ESP_ERR_CONFIG, "%s%s%s is set, but does nothing: %s; leave it out", from->name ? from->name : "",
                  from->name ? ": " : "", key, reason);
}

esp_status esp_refuse_unused_keys(const esp_run_config *config, const char *path) {
  return esp_yaml_visit_file(path, refuse_unused, &(origin){config, path});
}

esp_status esp_refuse_unused_overrides(const esp_run_config *config, const char *const *overrides, size_t count) {
  for (size_t i = 0; i < count; i++)
    ESP_TRY(esp_yaml_visit_override(overrides[i], refuse_unused, &(origin){config, NULL}));
  return ESP_OK;
}

bool esp_is_used(void *config, const char *key) { return !reason_of(config, key, true); }
