#include <espalier/memory.h>
#include <espalier/random.h>
#include <espalier/upcycle.h>

#include <math.h>
#include <stdio.h>
#include <string.h>

/* What both models share must be the same; the settings' YAML tells, line by line. */
static esp_status check_rest(const esp_model_config *dense, const esp_model_config *config) {
  esp_model_config same = *config;
  memcpy(same.layers, dense->layers, sizeof same.layers);
  same.layers_count = dense->layers_count;
  same.moe = dense->moe;
  char *before = NULL, *after = NULL;
  esp_status status = esp_model_config_save(&before, dense);
  if (status == ESP_OK) status = esp_model_config_save(&after, &same);
  if (status == ESP_OK && strcmp(before, after) != 0)
    status = esp_fail(ESP_ERR_CONFIG, "upcycling changes model.layers and model.moe only; leave the other settings of "
                                      "the model as they were");
  esp_free(before);
  esp_free(after);
  return status;
}

static esp_status check_block(const esp_model_config *dense, const esp_model_config *config, int block) {
  const esp_layer_kind before = esp_layer_kind_of(dense, block), after = esp_layer_kind_of(config, block);
  if (before == after && before == ESP_LAYER_DENSE) return ESP_OK;
  if (before != ESP_LAYER_DENSE)
    return esp_fail(ESP_ERR_CONFIG, "block %d is a %s already; only a model whose layers are all dense can be upcycled",
                    block, esp_layer_kind_name(before));
  if (config->moe.hidden != dense->feed_forward.hidden)
    return esp_fail(ESP_ERR_CONFIG,
                    "model.moe.hidden is %d, but the dense layer that becomes an expert of block %d has %d neurons; "
                    "leave model.moe.hidden away",
                    config->moe.hidden, block, dense->feed_forward.hidden);
  if (config->moe.shared_hidden > 0)
    return esp_fail(ESP_ERR_CONFIG,
                    "model.moe.shared_hidden is %d, but the dense model has nothing that a shared expert could start "
                    "from beside the experts; set it to 0",
                    config->moe.shared_hidden);
  return ESP_OK;
}

static esp_status check(const esp_model_config *dense, const esp_model_config *config, double noise) {
  ESP_TRY(check_rest(dense, config));
  bool any = false;
  for (int i = 0; i < config->blocks; i++) {
    ESP_TRY(check_block(dense, config, i));
    any = any || esp_layer_kind_of(config, i) != ESP_LAYER_DENSE;
  }
  if (!any)
    return esp_fail(ESP_ERR_CONFIG, "no block would become a mixture; say which ones, for example "
                                    "model.layers: [dense, moe] for every second one");
  if (!(noise >= 0 && isfinite(noise)))
    return esp_fail(ESP_ERR_CONFIG, "the noise on the copies is %g; it must be 0 or a positive number", noise);
  return ESP_OK;
}

static double root_mean_square(const esp_real *values, int64_t count) {
  double squares = 0;
  for (int64_t i = 0; i < count; i++) squares += (double)values[i] * (double)values[i];
  return sqrt(squares / (double)count);
}

/* Slices of the first dimension of `experts` become `dense`, each with noise of its own. */
static void copy_to_all(const esp_tensor *experts, const esp_tensor *dense, double noise, uint64_t seed) {
  if (!experts) return;
  const int64_t size = esp_tensor_count(dense);
  const double deviation = noise * root_mean_square(dense->data, size);
  esp_random stream = esp_random_stream(seed, ESP_PURPOSE_UPCYCLE, esp_hash_text(experts->name));
  for (int64_t e = 0; e < experts->shape[0]; e++) {
    esp_real *expert = experts->data + e * size;
    memcpy(expert, dense->data, (size_t)size * sizeof *expert);
    for (int64_t i = 0; deviation > 0 && i < size; i++) expert[i] += (esp_real)(deviation * esp_random_normal(&stream));
  }
}

static void fill_block(const esp_block *block, const esp_block *dense, double noise, uint64_t seed) {
  copy_to_all(block->moe.bank.up, dense->dense.up, noise, seed);
  copy_to_all(block->moe.bank.up_bias, dense->dense.up_bias, 0, seed);
  copy_to_all(block->moe.bank.down, dense->dense.down, noise, seed);
  copy_to_all(block->moe.bank.down_bias, dense->dense.down_bias, 0, seed);
}

/* Parameters outside the blocks' feed-forward parts have the same names; their norms are called after the kind. */
static void copy_same(const esp_model *upcycled, const esp_model *dense) {
  for (int64_t i = 0; i < esp_parameters_count(dense->parameters); i++) {
    const esp_parameter *from = esp_parameters_at(dense->parameters, i);
    const esp_parameter *to = esp_parameters_find(upcycled->parameters, from->tensor.name);
    char name[96];
    const char *part = strstr(from->tensor.name, ".ffn.norm");
    if (!to && part) {
      snprintf(name, sizeof name, "%.*s.moe%s", (int)(part - from->tensor.name), from->tensor.name, part + 4);
      to = esp_parameters_find(upcycled->parameters, name);
    }
    if (to) memcpy(to->tensor.data, from->tensor.data, (size_t)from->count * sizeof *from->tensor.data);
  }
}

esp_status esp_upcycle(esp_model **upcycled, const esp_model *dense, const esp_model_config *config, double noise,
                       uint64_t seed) {
  *upcycled = NULL;
  ESP_TRY(check(&dense->config, config, noise));
  ESP_TRY(esp_model_create(upcycled, config, NULL, seed));
  copy_same(*upcycled, dense);
  for (int i = 0; i < config->blocks; i++)
    if ((*upcycled)->blocks[i].kind != ESP_LAYER_DENSE)
      fill_block(&(*upcycled)->blocks[i], &dense->blocks[i], noise, seed);
  return ESP_OK;
}

bool esp_upcycling_keeps_function(const esp_model_config *config) {
  const esp_router_config *r = &config->moe.router;
  for (int i = 0; i < config->blocks; i++)
    if (esp_neurons_kept(config, i) < config->moe.hidden) return false;
  const bool softmax_of_selected = r->score == ESP_SCORE_SOFTMAX && r->score_selected_only;
  if (r->policy == ESP_ROUTER_HASH) return true; /* one expert, gate 1 */
  return r->policy == ESP_ROUTER_TOKEN_CHOICE && (r->renormalise || softmax_of_selected) && !(r->capacity > 0) &&
         !(r->evaluation_capacity > 0);
}
