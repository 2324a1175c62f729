#include <espalier/comparison.h>

static const esp_variant variants[] = {
    {"moe", "all neurons of k experts: the baseline", ESP_VARIANT_MOE, ESP_COUNT_SELECTED, false, true},
    {"mone-half-full", "half the activated parameters, the gate counted in full (K_N = f/4)", ESP_VARIANT_HALF,
     ESP_COUNT_GATE_IN_FULL, false, true},
    {"mone-half-selected", "half of them, selected neurons counted only (K_N = f/2)", ESP_VARIANT_HALF,
     ESP_COUNT_SELECTED, false, true},
    {"mone-equal-full", "as many, the gate counted in full, of more experts a token", ESP_VARIANT_EQUAL,
     ESP_COUNT_GATE_IN_FULL, false, true},
    {"mone-equal-selected", "as many, selected neurons counted only, of more experts a token", ESP_VARIANT_EQUAL,
     ESP_COUNT_SELECTED, false, true},
    {"mone-half-full-balanced", "with the neuron balance loss", ESP_VARIANT_HALF, ESP_COUNT_GATE_IN_FULL, true, true},
    {"mone-half-selected-balanced", "with it", ESP_VARIANT_HALF, ESP_COUNT_SELECTED, true, true},
    {"mone-equal-full-balanced", "with it", ESP_VARIANT_EQUAL, ESP_COUNT_GATE_IN_FULL, true, true},
    {"mone-equal-selected-balanced", "with it", ESP_VARIANT_EQUAL, ESP_COUNT_SELECTED, true, true},
    {"dense", "one network of k f neurons in place of the experts", ESP_VARIANT_DENSE, ESP_COUNT_SELECTED, false,
     false},
};

static const double default_balance_weight = 0.01;

size_t esp_variant_list(const esp_variant **list) {
  *list = variants;
  return sizeof variants / sizeof variants[0];
}

static int matrices(const esp_model_config *config) {
  return esp_activation_is_gated(config->feed_forward.activation) ? 3 : 2;
}

/* The K_N with which `top_k` experts activate `target` rows of d weights; 0 if no whole number does. */
static int solve_kept(const esp_model_config *base, esp_activation_count count, int top_k, int target) {
  const int f = base->moe.hidden, m = matrices(base);
  const bool whole = count == ESP_COUNT_GATE_IN_FULL;
  const int rest = target - (whole ? top_k * f : 0), each = top_k * (whole ? m - 1 : m);
  return rest > 0 && rest % each == 0 && rest / each < f ? rest / each : 0;
}

static esp_status set_kept(esp_model_config *config, int top_k, int kept) {
  config->moe.top_k = top_k;
  config->moe.neurons_kept = (double)kept / config->moe.hidden;
  config->moe.neurons_kept_per_layer_count = 0;
  return ESP_OK;
}

static esp_status set_half(const esp_variant *variant, const esp_model_config *base, esp_model_config *config) {
  const int f = base->moe.hidden, m = matrices(base), k = base->moe.top_k;
  const int kept = k * m * f % 2 ? 0 : solve_kept(base, variant->count, k, k * m * f / 2);
  if (kept) return set_kept(config, k, kept);
  if (m == 2 && variant->count == ESP_COUNT_GATE_IN_FULL)
    return esp_fail(
        ESP_ERR_CONFIG,
        "%s cannot be matched: of experts of two matrices the first, which ranks the neurons, is half of the "
        "parameters already; use swiglu, or leave this variant out",
        variant->name);
  return esp_fail(ESP_ERR_CONFIG,
                  "%s cannot be matched: half the activated parameters of model.moe.hidden = %d neurons is no whole "
                  "number of neurons; use a multiple of 4, or leave this variant out",
                  variant->name, f);
}

static esp_status set_equal(const esp_variant *variant, const esp_model_config *base, esp_model_config *config) {
  const int k = base->moe.top_k, own = base->moe.experts / base->moe.members;
  if (base->moe.router.policy != ESP_ROUTER_TOKEN_CHOICE)
    return esp_fail(ESP_ERR_CONFIG,
                    "%s has more experts a token, which needs model.moe.router.policy token_choice; leave it out "
                    "to compare with another router",
                    variant->name);
  for (int top_k = 2 * k < own ? 2 * k : own; top_k > k; top_k--) {
    const int kept = solve_kept(base, variant->count, top_k, k * matrices(base) * base->moe.hidden);
    if (kept) return set_kept(config, top_k, kept);
  }
  return esp_fail(ESP_ERR_CONFIG,
                  "%s cannot be matched: no number of experts a token from %d (more than model.moe.top_k) to %d (twice "
                  "that, at most model.moe.experts = %d) goes with a whole number of model.moe.hidden = %d neurons; "
                  "change these, or leave this variant out",
                  variant->name, k + 1, 2 * k, own, base->moe.hidden);
}

static esp_status set_dense(const esp_variant *variant, const esp_model_config *base, esp_model_config *config) {
  config->feed_forward.hidden = base->moe.top_k * base->moe.hidden + base->moe.shared_hidden;
  for (unsigned i = 0; i < base->layers_count; i++)
    if (base->layers[i] == ESP_LAYER_DENSE && config->feed_forward.hidden != base->feed_forward.hidden)
      return esp_fail(ESP_ERR_CONFIG,
                      "%s needs model.feed_forward.hidden = %d, which would change the dense layers that all variants "
                      "have (%d); use that many, or leave this variant out",
                      variant->name, config->feed_forward.hidden, base->feed_forward.hidden);
  return ESP_OK;
}

static bool has_mixture(const esp_model_config *config) {
  for (int i = 0; i < config->blocks; i++)
    if (esp_layer_kind_of(config, i) != ESP_LAYER_DENSE) return true;
  return false;
}

static esp_layer_kind layer_kind(esp_variant_kind kind) {
  switch (kind) {
  case ESP_VARIANT_DENSE:
    return ESP_LAYER_DENSE;
  case ESP_VARIANT_MOE:
    return ESP_LAYER_MOE;
  case ESP_VARIANT_HALF:
  case ESP_VARIANT_EQUAL:
    break;
  }
  return ESP_LAYER_MONE;
}

esp_status esp_variant_config(const esp_variant *variant, const esp_model_config *base, esp_model_config *config) {
  *config = *base;
  if (!has_mixture(base))
    return esp_fail(ESP_ERR_CONFIG, "model.layers has no mixture to compare; name moe among the kinds");
  for (unsigned i = 0; i < base->layers_count; i++)
    if (base->layers[i] != ESP_LAYER_DENSE) config->layers[i] = layer_kind(variant->kind);
  if (!variant->balanced) config->moe.neuron_balance_weight = 0;
  else if (!(base->moe.neuron_balance_weight > 0)) config->moe.neuron_balance_weight = default_balance_weight;
  switch (variant->kind) {
  case ESP_VARIANT_DENSE:
    ESP_TRY(set_dense(variant, base, config));
    break;
  case ESP_VARIANT_HALF:
    ESP_TRY(set_half(variant, base, config));
    break;
  case ESP_VARIANT_EQUAL:
    ESP_TRY(set_equal(variant, base, config));
    break;
  case ESP_VARIANT_MOE:
    break;
  }
  return esp_model_config_check(config);
}
