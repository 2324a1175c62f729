#include <espalier/model_schema.h>
#include <espalier/router.h>
#include <espalier/yaml.h>

#include <math.h>
#include <stdio.h>

static const cyaml_strval_t stem_names[] = {
    {"patch", ESP_STEM_PATCH}, {"convolution", ESP_STEM_CONVOLUTION}, {"flatten", ESP_STEM_FLATTEN}};
static const cyaml_strval_t mixing_names[] = {
    {"attention", ESP_MIXING_ATTENTION}, {"convolution", ESP_MIXING_CONVOLUTION}, {"none", ESP_MIXING_NONE}};
static const cyaml_strval_t norm_names[] = {
    {"layer", ESP_NORM_LAYER}, {"rms", ESP_NORM_RMS}, {"batch", ESP_NORM_BATCH}};
/* clang-format off */
static const cyaml_strval_t activation_names[] = {
    {"relu", ESP_ACTIVATION_RELU}, {"gelu", ESP_ACTIVATION_GELU}, {"swiglu", ESP_ACTIVATION_SWIGLU},
    {"squared_relu", ESP_ACTIVATION_SQUARED_RELU}, {"glu", ESP_ACTIVATION_GLU}, {"geglu", ESP_ACTIVATION_GEGLU},
    {"reglu", ESP_ACTIVATION_REGLU}, {"squared_reglu", ESP_ACTIVATION_SQUARED_REGLU}};
/* clang-format on */
static const cyaml_strval_t balance_score_names[] = {{"all", ESP_BALANCE_SCORES_ALL},
                                                     {"selected", ESP_BALANCE_SCORES_SELECTED}};
static const cyaml_strval_t neuron_balance_names[] = {{"abs", ESP_NEURON_BALANCE_ABS},
                                                      {"norm", ESP_NEURON_BALANCE_NORM}};
static const cyaml_strval_t ranking_names[] = {{"activation", ESP_RANK_ACTIVATION},
                                               {"pre_activation", ESP_RANK_PRE_ACTIVATION}};
static const cyaml_strval_t layer_names[] = {
    {"dense", ESP_LAYER_DENSE}, {"moe", ESP_LAYER_MOE}, {"mone", ESP_LAYER_MONE}};
static const cyaml_strval_t score_names[] = {{"softmax", ESP_SCORE_SOFTMAX}, {"sigmoid", ESP_SCORE_SIGMOID}};

static const cyaml_strval_t policy_names[] = {{"token_choice", ESP_ROUTER_TOKEN_CHOICE},
                                              {"expert_choice", ESP_ROUTER_EXPERT_CHOICE},
                                              {"soft", ESP_ROUTER_SOFT},
                                              {"hash", ESP_ROUTER_HASH},
                                              {"even", ESP_ROUTER_EVEN}};
static const cyaml_strval_t balance_names[] = {{"all_choices", ESP_BALANCE_ALL_CHOICES},
                                               {"first_choice", ESP_BALANCE_FIRST_CHOICE}};

static const cyaml_schema_value_t int_entry = {CYAML_VALUE_INT(CYAML_FLAG_DEFAULT, int)};
static const cyaml_schema_value_t number_entry = {CYAML_VALUE_FLOAT(CYAML_FLAG_DEFAULT, double)};
static const cyaml_schema_value_t layer_entry = {
    CYAML_VALUE_ENUM(CYAML_FLAG_STRICT, esp_layer_kind, layer_names, CYAML_ARRAY_LEN(layer_names))};

static const cyaml_schema_field_t router_fields[] = {
    CYAML_FIELD_ENUM("policy", CYAML_FLAG_STRICT, esp_router_config, policy, policy_names,
                     CYAML_ARRAY_LEN(policy_names)),
    CYAML_FIELD_ENUM("score", CYAML_FLAG_STRICT, esp_router_config, score, score_names, CYAML_ARRAY_LEN(score_names)),
    CYAML_FIELD_BOOL("score_selected_only", CYAML_FLAG_DEFAULT, esp_router_config, score_selected_only),
    CYAML_FIELD_BOOL("renormalise", CYAML_FLAG_DEFAULT, esp_router_config, renormalise),
    CYAML_FIELD_BOOL("cosine", CYAML_FLAG_DEFAULT, esp_router_config, cosine),
    CYAML_FIELD_FLOAT("temperature", CYAML_FLAG_DEFAULT, esp_router_config, temperature),
    CYAML_FIELD_FLOAT("noise", CYAML_FLAG_DEFAULT, esp_router_config, noise),
    CYAML_FIELD_FLOAT("bias_rate", CYAML_FLAG_DEFAULT, esp_router_config, bias_rate),
    CYAML_FIELD_FLOAT("capacity", CYAML_FLAG_DEFAULT, esp_router_config, capacity),
    CYAML_FIELD_FLOAT("evaluation_capacity", CYAML_FLAG_DEFAULT, esp_router_config, evaluation_capacity),
    CYAML_FIELD_BOOL("batch_priority", CYAML_FLAG_DEFAULT, esp_router_config, batch_priority),
    CYAML_FIELD_INT("group_images", CYAML_FLAG_DEFAULT, esp_router_config, group_images),
    CYAML_FIELD_INT("evaluation_group", CYAML_FLAG_DEFAULT, esp_router_config, evaluation_group),
    CYAML_FIELD_INT("slots", CYAML_FLAG_DEFAULT, esp_router_config, slots),
    CYAML_FIELD_ENUM("balance", CYAML_FLAG_STRICT, esp_router_config, balance, balance_names,
                     CYAML_ARRAY_LEN(balance_names)),
    CYAML_FIELD_ENUM("balance_scores", CYAML_FLAG_STRICT, esp_router_config, balance_scores, balance_score_names,
                     CYAML_ARRAY_LEN(balance_score_names)),
    CYAML_FIELD_FLOAT("balance_weight", CYAML_FLAG_DEFAULT, esp_router_config, balance_weight),
    CYAML_FIELD_FLOAT("importance_weight", CYAML_FLAG_DEFAULT, esp_router_config, importance_weight),
    CYAML_FIELD_FLOAT("load_weight", CYAML_FLAG_DEFAULT, esp_router_config, load_weight),
    CYAML_FIELD_FLOAT("z_weight", CYAML_FLAG_DEFAULT, esp_router_config, z_weight),
    CYAML_FIELD_FLOAT("entropy_weight", CYAML_FLAG_DEFAULT, esp_router_config, entropy_weight),
    CYAML_FIELD_END};

static const cyaml_schema_field_t moe_fields[] = {
    CYAML_FIELD_INT("experts", CYAML_FLAG_DEFAULT, esp_moe_config, experts),
    CYAML_FIELD_INT("top_k", CYAML_FLAG_DEFAULT, esp_moe_config, top_k),
    CYAML_FIELD_INT("members", CYAML_FLAG_DEFAULT, esp_moe_config, members),
    CYAML_FIELD_INT("hidden", CYAML_FLAG_DEFAULT, esp_moe_config, hidden),
    CYAML_FIELD_INT("shared_hidden", CYAML_FLAG_DEFAULT, esp_moe_config, shared_hidden),
    CYAML_FIELD_FLOAT("neurons_kept", CYAML_FLAG_DEFAULT, esp_moe_config, neurons_kept),
    CYAML_FIELD_SEQUENCE("neurons_kept_per_layer", CYAML_FLAG_DEFAULT, esp_moe_config, neurons_kept_per_layer,
                         &number_entry, 0, ESP_MAX_BLOCKS),
    CYAML_FIELD_ENUM("neuron_ranking", CYAML_FLAG_STRICT, esp_moe_config, neuron_ranking, ranking_names,
                     CYAML_ARRAY_LEN(ranking_names)),
    CYAML_FIELD_ENUM("neuron_balance", CYAML_FLAG_STRICT, esp_moe_config, neuron_balance, neuron_balance_names,
                     CYAML_ARRAY_LEN(neuron_balance_names)),
    CYAML_FIELD_FLOAT("neuron_balance_weight", CYAML_FLAG_DEFAULT, esp_moe_config, neuron_balance_weight),
    CYAML_FIELD_BOOL("identical_experts", CYAML_FLAG_DEFAULT, esp_moe_config, identical_experts),
    CYAML_FIELD_MAPPING("router", CYAML_FLAG_DEFAULT, esp_moe_config, router, router_fields),
    CYAML_FIELD_END};

static const cyaml_schema_field_t stem_fields[] = {
    CYAML_FIELD_ENUM("kind", CYAML_FLAG_STRICT, esp_stem_config, kind, stem_names, CYAML_ARRAY_LEN(stem_names)),
    CYAML_FIELD_INT("patch", CYAML_FLAG_DEFAULT, esp_stem_config, patch),
    CYAML_FIELD_SEQUENCE("channels", CYAML_FLAG_DEFAULT, esp_stem_config, channels, &int_entry, 0, ESP_MAX_STAGES),
    CYAML_FIELD_SEQUENCE("pools", CYAML_FLAG_DEFAULT, esp_stem_config, pools, &int_entry, 0, ESP_MAX_STAGES),
    CYAML_FIELD_INT("extra_convolutions", CYAML_FLAG_DEFAULT, esp_stem_config, extra_convolutions),
    CYAML_FIELD_INT("whitening", CYAML_FLAG_DEFAULT, esp_stem_config, whitening),
    CYAML_FIELD_END};

static const cyaml_schema_field_t feed_forward_fields[] = {
    CYAML_FIELD_ENUM("activation", CYAML_FLAG_STRICT, esp_feed_forward_config, activation, activation_names,
                     CYAML_ARRAY_LEN(activation_names)),
    CYAML_FIELD_BOOL("bias", CYAML_FLAG_DEFAULT, esp_feed_forward_config, bias),
    CYAML_FIELD_INT("hidden", CYAML_FLAG_DEFAULT, esp_feed_forward_config, hidden), CYAML_FIELD_END};

const cyaml_schema_field_t esp_model_fields[] = {
    CYAML_FIELD_INT("image_height", CYAML_FLAG_DEFAULT, esp_model_config, image_height),
    CYAML_FIELD_INT("image_width", CYAML_FLAG_DEFAULT, esp_model_config, image_width),
    CYAML_FIELD_INT("image_channels", CYAML_FLAG_DEFAULT, esp_model_config, image_channels),
    CYAML_FIELD_INT("classes", CYAML_FLAG_DEFAULT, esp_model_config, classes),
    CYAML_FIELD_MAPPING("stem", CYAML_FLAG_DEFAULT, esp_model_config, stem, stem_fields),
    CYAML_FIELD_INT("width", CYAML_FLAG_DEFAULT, esp_model_config, width),
    CYAML_FIELD_INT("blocks", CYAML_FLAG_DEFAULT, esp_model_config, blocks),
    CYAML_FIELD_ENUM("mixing", CYAML_FLAG_STRICT, esp_model_config, mixing, mixing_names,
                     CYAML_ARRAY_LEN(mixing_names)),
    CYAML_FIELD_INT("heads", CYAML_FLAG_DEFAULT, esp_model_config, heads),
    CYAML_FIELD_INT("kernel", CYAML_FLAG_DEFAULT, esp_model_config, kernel),
    CYAML_FIELD_BOOL("positions", CYAML_FLAG_DEFAULT, esp_model_config, positions),
    CYAML_FIELD_ENUM("norm", CYAML_FLAG_STRICT, esp_model_config, norm, norm_names, CYAML_ARRAY_LEN(norm_names)),
    CYAML_FIELD_FLOAT("dropout", CYAML_FLAG_DEFAULT, esp_model_config, dropout),
    CYAML_FIELD_MAPPING("feed_forward", CYAML_FLAG_DEFAULT, esp_model_config, feed_forward, feed_forward_fields),
    CYAML_FIELD_SEQUENCE("layers", CYAML_FLAG_DEFAULT, esp_model_config, layers, &layer_entry, 1, ESP_MAX_BLOCKS),
    CYAML_FIELD_MAPPING("moe", CYAML_FLAG_DEFAULT, esp_model_config, moe, moe_fields),
    CYAML_FIELD_END};

static const cyaml_schema_value_t model_schema = {
    CYAML_VALUE_MAPPING(CYAML_FLAG_POINTER, esp_model_config, esp_model_fields)};

const esp_model_config esp_model_defaults = {
    .stem =
        {.kind = ESP_STEM_PATCH, .patch = 4, .channels = {64}, .channels_count = 1, .pools = {2, 2}, .pools_count = 2},
    .width = 192,
    .blocks = 6,
    .mixing = ESP_MIXING_ATTENTION,
    .heads = 3,
    .kernel = 5,
    .positions = true,
    .norm = ESP_NORM_LAYER,
    .feed_forward = {.activation = ESP_ACTIVATION_SWIGLU, .hidden = 512},
    .layers = {ESP_LAYER_DENSE, ESP_LAYER_MOE},
    .layers_count = 2,
    .moe = {.experts = 8,
            .top_k = 2,
            .members = 1,
            .hidden = 384,
            .neurons_kept = 0.5,
            .neuron_balance = ESP_NEURON_BALANCE_NORM,
            .router = {.score = ESP_SCORE_SOFTMAX,
                       .renormalise = true,
                       .temperature = 0.1,
                       .capacity = ESP_UNLIMITED_CAPACITY,
                       .evaluation_capacity = ESP_UNLIMITED_CAPACITY,
                       .group_images = 8,
                       .balance_weight = 0.01}},
};

esp_layer_kind esp_layer_kind_of(const esp_model_config *config, int index) {
  return config->layers[(unsigned)index % config->layers_count];
}

bool esp_has_layer(const esp_model_config *config, esp_layer_kind kind) {
  for (int i = 0; i < config->blocks; i++)
    if (esp_layer_kind_of(config, i) == kind) return true;
  return false;
}

bool esp_has_mixture(const esp_model_config *config) {
  return esp_has_layer(config, ESP_LAYER_MOE) || esp_has_layer(config, ESP_LAYER_MONE);
}

const char *esp_layer_kind_name(esp_layer_kind kind) { return layer_names[kind].str; }

int esp_neurons_kept(const esp_model_config *config, int index) {
  const esp_moe_config *moe = &config->moe;
  double kept = moe->neurons_kept;
  if (esp_layer_kind_of(config, index) != ESP_LAYER_MONE) return moe->hidden;
  if (moe->neurons_kept_per_layer_count > 0) {
    unsigned mixtures_before = 0;
    for (int i = 0; i < index; i++) mixtures_before += esp_layer_kind_of(config, i) != ESP_LAYER_DENSE;
    kept = moe->neurons_kept_per_layer[mixtures_before % moe->neurons_kept_per_layer_count];
  }
  const int count = (int)ceil((kept > 1 ? kept : kept * moe->hidden) - 1e-9);
  return count < 1 ? 1 : count;
}

bool esp_gates_are_constant(const esp_moe_config *config) {
  const esp_router_config *r = &config->router;
  return config->top_k == 1 && r->policy == ESP_ROUTER_TOKEN_CHOICE &&
         (r->renormalise || (r->score_selected_only && r->score == ESP_SCORE_SOFTMAX));
}

int esp_evaluation_group(const esp_router_config *config) {
  if (config->evaluation_group > 0) return config->evaluation_group;
  return config->group_images > 0 ? config->group_images : ESP_EVALUATION_IMAGES;
}

int64_t esp_evaluation_batch(const esp_model_config *config, int64_t images) {
  const esp_router_config *router = &config->moe.router;
  const bool shares = router->policy == ESP_ROUTER_EXPERT_CHOICE ||
                      (router->policy == ESP_ROUTER_TOKEN_CHOICE && router->evaluation_capacity > 0);
  const int64_t group = esp_evaluation_group(router);
  if (!shares || !esp_has_mixture(config)) return images;
  return images < group ? group : images / group * group;
}

bool esp_activation_is_gated(esp_activation_kind activation) {
  return activation == ESP_ACTIVATION_SWIGLU || activation >= ESP_ACTIVATION_GLU;
}

esp_gate_kind esp_activation_gate(esp_activation_kind activation) {
  /* clang-format off */
  static const esp_gate_kind gates[] = {
      [ESP_ACTIVATION_RELU] = ESP_GATE_RELU,
      [ESP_ACTIVATION_GELU] = ESP_GATE_GELU,
      [ESP_ACTIVATION_SWIGLU] = ESP_GATE_SILU,
      [ESP_ACTIVATION_SQUARED_RELU] = ESP_GATE_SQUARED_RELU,
      [ESP_ACTIVATION_GLU] = ESP_GATE_SIGMOID,
      [ESP_ACTIVATION_GEGLU] = ESP_GATE_GELU,
      [ESP_ACTIVATION_REGLU] = ESP_GATE_RELU,
      [ESP_ACTIVATION_SQUARED_REGLU] = ESP_GATE_SQUARED_RELU,
  };
  /* clang-format on */
  return gates[activation];
}

static int reduction(const esp_stem_config *stem) {
  int factor = 1;
  if (stem->kind == ESP_STEM_PATCH) return stem->patch;
  for (unsigned i = 0; i < stem->pools_count; i++) factor *= stem->pools[i];
  return factor;
}

void esp_token_grid(const esp_model_config *config, int *rows, int *columns) {
  const bool flat = config->stem.kind == ESP_STEM_FLATTEN;
  *rows = flat ? 1 : config->image_height / reduction(&config->stem);
  *columns = flat ? 1 : config->image_width / reduction(&config->stem);
}

static esp_status check_positive(const char *key, int value) {
  if (value > 0 && value <= 1 << 20) return ESP_OK;
  return esp_fail(ESP_ERR_CONFIG, "model.%s is %d; it must be a positive number (at most %d)", key, value, 1 << 20);
}

static esp_status check_share(const char *key, double value, bool zero_allowed) {
  if (value <= 1 && (value > 0 || (zero_allowed && value == 0))) return ESP_OK;
  return esp_fail(ESP_ERR_CONFIG, "model.%s is %g; it must lie in %s0, 1]", key, value, zero_allowed ? "[" : "(");
}

static esp_status check_not_negative(const char *key, double value) {
  if (value >= 0 && isfinite(value)) return ESP_OK;
  return esp_fail(ESP_ERR_CONFIG, "model.%s is %g; it must be a number that is not negative", key, value);
}

/* The pools' product is checked as it grows: reduction() may then multiply them as int. */
static esp_status check_pools(const esp_model_config *c) {
  int64_t factor = 1;
  for (unsigned i = 0; i < c->stem.pools_count; i++) {
    ESP_TRY(check_positive("stem.pools", c->stem.pools[i]));
    factor *= c->stem.pools[i];
    if (factor > c->image_height)
      return esp_fail(ESP_ERR_CONFIG, "model.stem.pools divide images by %lld in all, but these have %d rows",
                      (long long)factor, c->image_height);
  }
  return ESP_OK;
}

static esp_status check_stages(const esp_model_config *c) {
  const int components = ESP_STAGE_KERNEL * ESP_STAGE_KERNEL * c->image_channels;
  if (c->stem.extra_convolutions < 0 || c->stem.extra_convolutions > ESP_MAX_EXTRA)
    return esp_fail(ESP_ERR_CONFIG, "model.stem.extra_convolutions is %d; a stage may have 0 to %d",
                    c->stem.extra_convolutions, ESP_MAX_EXTRA);
  if (c->stem.whitening < 0 || c->stem.whitening > components)
    return esp_fail(
        ESP_ERR_CONFIG,
        "model.stem.whitening is %d; patches of 3 x 3 pixels with %d channels have %d components (0: no whitening)",
        c->stem.whitening, c->image_channels, components);
  return ESP_OK;
}

static esp_status check_stem(const esp_model_config *c) {
  const esp_stem_config *stem = &c->stem;
  if (stem->kind == ESP_STEM_FLATTEN) return ESP_OK;
  if (stem->kind == ESP_STEM_PATCH) ESP_TRY(check_positive("stem.patch", stem->patch));
  if (stem->kind == ESP_STEM_CONVOLUTION) {
    for (unsigned i = 0; i < stem->channels_count; i++) ESP_TRY(check_positive("stem.channels", stem->channels[i]));
    ESP_TRY(check_pools(c));
    ESP_TRY(check_stages(c));
    if (stem->pools_count != stem->channels_count + 1)
      return esp_fail(
          ESP_ERR_CONFIG,
          "model.stem.pools has %u entries and model.stem.channels %u; each stage needs a pool, the last one "
          "(which gives model.width) too: %u entries, 1 for no pooling",
          stem->pools_count, stem->channels_count, stem->channels_count + 1);
  }
  if (c->image_height % reduction(stem) || c->image_width % reduction(stem))
    return esp_fail(ESP_ERR_CONFIG, "model.stem divides images by %d, which does not divide %d x %d pixels",
                    reduction(stem), c->image_height, c->image_width);
  return ESP_OK;
}

static esp_status check_mixing(const esp_model_config *c) {
  if (c->mixing == ESP_MIXING_ATTENTION) {
    ESP_TRY(check_positive("heads", c->heads));
    if (c->width % c->heads)
      return esp_fail(ESP_ERR_CONFIG, "model.heads is %d, which does not divide model.width, %d", c->heads, c->width);
  }
  if (c->mixing == ESP_MIXING_CONVOLUTION && (c->kernel < 1 || c->kernel % 2 == 0 || c->kernel > 31))
    return esp_fail(ESP_ERR_CONFIG, "model.kernel is %d; convolution mixing needs an odd number up to 31", c->kernel);
  return ESP_OK;
}

static esp_status check_neurons_kept(const esp_moe_config *moe) {
  ESP_TRY(check_not_negative("moe.neuron_balance_weight", moe->neuron_balance_weight));
  ESP_TRY(check_share("moe.neurons_kept", moe->neurons_kept, false));
  for (unsigned i = 0; i < moe->neurons_kept_per_layer_count; i++) {
    const double kept = moe->neurons_kept_per_layer[i];
    if (kept > 0 && kept <= moe->hidden && (kept <= 1 || kept == floor(kept))) continue;
    return esp_fail(
        ESP_ERR_CONFIG,
        "entry %u of model.moe.neurons_kept_per_layer is %g; it must be a share in (0, 1] or a whole number "
        "of neurons from 2 to %d (model.moe.hidden)",
        i + 1, kept, moe->hidden);
  }
  return ESP_OK;
}

static esp_status check_moe(const esp_moe_config *moe) {
  ESP_TRY(check_positive("moe.experts", moe->experts));
  ESP_TRY(check_positive("moe.top_k", moe->top_k));
  ESP_TRY(check_positive("moe.hidden", moe->hidden));
  if (moe->experts > ESP_MAX_EXPERTS)
    return esp_fail(ESP_ERR_CONFIG, "model.moe.experts is %d; at most %d are possible", moe->experts, ESP_MAX_EXPERTS);
  if (moe->top_k > moe->experts)
    return esp_fail(ESP_ERR_CONFIG, "model.moe.top_k is %d, but there are only %d experts (model.moe.experts)",
                    moe->top_k, moe->experts);
  if (moe->shared_hidden < 0)
    return esp_fail(ESP_ERR_CONFIG, "model.moe.shared_hidden is %d; it must be 0 or positive", moe->shared_hidden);
  return check_neurons_kept(moe);
}

static esp_status check_members(const esp_moe_config *moe) {
  ESP_TRY(check_positive("moe.members", moe->members));
  if (moe->experts % moe->members)
    return esp_fail(ESP_ERR_CONFIG,
                    "model.moe.members is %d, which does not divide model.moe.experts, %d: each member "
                    "of an E3 has the same number of experts",
                    moe->members, moe->experts);
  if (moe->top_k > moe->experts / moe->members)
    return esp_fail(ESP_ERR_CONFIG, "model.moe.top_k is %d, but each of the %d members has only %d experts", moe->top_k,
                    moe->members, moe->experts / moe->members);
  return ESP_OK;
}

static esp_status check_capacity(const char *key, double factor) {
  if (factor == ESP_UNLIMITED_CAPACITY || (factor > 0 && isfinite(factor))) return ESP_OK;
  return esp_fail(
      ESP_ERR_CONFIG,
      "model.moe.router.%s is %g, with which no expert could serve a token; give a positive factor of an even "
      "share (V-MoE 1.05), or leave it away (%d) for experts that serve every token",
      key, factor, ESP_UNLIMITED_CAPACITY);
}

static esp_status check_router(const esp_model_config *c) {
  const esp_router_config *r = &c->moe.router;
  const struct {
    const char *key;
    double value;
  } numbers[] = {{"noise", r->noise},
                 {"bias_rate", r->bias_rate},
                 {"group_images", r->group_images},
                 {"evaluation_group", r->evaluation_group},
                 {"balance_weight", r->balance_weight},
                 {"importance_weight", r->importance_weight},
                 {"load_weight", r->load_weight},
                 {"z_weight", r->z_weight}};
  for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
    char key[48];
    snprintf(key, sizeof key, "moe.router.%s", numbers[i].key);
    ESP_TRY(check_not_negative(key, numbers[i].value));
  }
  ESP_TRY(check_capacity("capacity", r->capacity));
  ESP_TRY(check_capacity("evaluation_capacity", r->evaluation_capacity));
  if (!isfinite(r->entropy_weight))
    return esp_fail(ESP_ERR_CONFIG, "model.moe.router.entropy_weight is %g; it must be a number", r->entropy_weight);
  if (r->cosine && !(r->temperature > 0 && isfinite(r->temperature)))
    return esp_fail(ESP_ERR_CONFIG,
                    "model.moe.router.temperature is %g; cosines are divided by it, so it must be "
                    "positive",
                    r->temperature);
  if (r->slots > 0 && r->policy != ESP_ROUTER_SOFT)
    return esp_fail(ESP_ERR_CONFIG,
                    "model.moe.router.slots is %d, but only with model.moe.router.policy soft do experts "
                    "have slots; leave it out",
                    r->slots);
  return esp_router_policy_of(r->policy)->check(c);
}

/* Products of sizes that are each possible may still not be. */
static esp_status check_products(const esp_model_config *c) {
  const double pixels = (double)c->image_height * c->image_width * c->image_channels;
  const double hidden = c->feed_forward.hidden + (double)c->moe.hidden * c->moe.experts;
  const double bank = 3.0 * c->width * hidden;
  if (pixels > 1 << 26)
    return esp_fail(ESP_ERR_CONFIG, "images of %d x %d x %d have %.3g values; at most %d are possible", c->image_height,
                    c->image_width, c->image_channels, pixels, 1 << 26);
  if (bank * c->blocks > 1e11 || 4.0 * c->width * c->width * c->blocks > 1e11 || pixels * c->width > 1e11)
    return esp_fail(ESP_ERR_CONFIG,
                    "the model would have more than 1e11 parameters; lower model.width (%d), model.moe.hidden (%d), "
                    "model.moe.experts (%d) or model.blocks (%d)",
                    c->width, c->moe.hidden, c->moe.experts, c->blocks);
  return ESP_OK;
}

esp_status esp_model_config_check(const esp_model_config *c) {
  const struct {
    const char *key;
    int value;
  } sizes[] = {{"image_height", c->image_height},
               {"image_width", c->image_width},
               {"image_channels", c->image_channels},
               {"classes", c->classes},
               {"width", c->width},
               {"blocks", c->blocks}};
  for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) ESP_TRY(check_positive(sizes[i].key, sizes[i].value));
  if (c->blocks > ESP_MAX_BLOCKS)
    return esp_fail(ESP_ERR_CONFIG, "model.blocks is %d; at most %d are possible", c->blocks, ESP_MAX_BLOCKS);
  if (c->layers_count < 1 || c->layers_count > ESP_MAX_BLOCKS)
    return esp_fail(ESP_ERR_CONFIG, "model.layers is empty; name the kind of each block: dense, moe or mone");
  ESP_TRY(check_positive("feed_forward.hidden", c->feed_forward.hidden));
  if (!(c->dropout >= 0 && c->dropout < 1))
    return esp_fail(ESP_ERR_CONFIG, "model.dropout is %g; it must lie in [0, 1)", c->dropout);
  ESP_TRY(check_stem(c));
  ESP_TRY(check_mixing(c));
  ESP_TRY(check_moe(&c->moe));
  ESP_TRY(check_members(&c->moe));
  ESP_TRY(check_router(c));
  return check_products(c);
}

esp_status esp_model_config_save(char **text, const esp_model_config *config) {
  return esp_yaml_save(text, config, &model_schema);
}

esp_status esp_model_config_load(esp_model_config *config, const char *name, const char *text) {
  return esp_yaml_load(
      config,
      &(esp_yaml_options){.config_size = sizeof *config, .schema = &model_schema, .defaults = &esp_model_defaults},
      name, text);
}
