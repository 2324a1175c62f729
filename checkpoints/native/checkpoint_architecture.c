/* /architecture: the model's config as YAML, and which experts each mixture layer has. */
#include "checkpoint_parts_internal.h"
#include <espalier/memory.h>

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

enum { SCOPE_SIZE = 32 };

/* ---- between model and file ---- */

esp_status esp_architecture_of(esp_architecture *architecture, const esp_model *model) {
  *architecture = (esp_architecture){.config = model->config};
  ESP_TRY(esp_model_config_save(&architecture->text, &model->config));
  architecture->layouts = esp_alloc((size_t)model->config.blocks, sizeof *architecture->layouts);
  if (!architecture->layouts) return ESP_ERR_MEMORY;
  for (int i = 0; i < model->config.blocks; i++)
    if (model->blocks[i].kind != ESP_LAYER_DENSE) architecture->layouts[i] = model->blocks[i].moe.layout;
  return ESP_OK;
}

void esp_architecture_clear(esp_architecture *architecture) {
  esp_free(architecture->text);
  esp_free(architecture->layouts);
  *architecture = (esp_architecture){0};
}

/* The names under which models declare their mixture layers; false for a dense block. */
static bool layer_scope(const esp_model_config *config, int block, char scope[SCOPE_SIZE]) {
  const esp_layer_kind kind = esp_layer_kind_of(config, block);
  snprintf(scope, SCOPE_SIZE, "blocks.%d.%s", block, esp_layer_kind_name(kind));
  return kind != ESP_LAYER_DENSE;
}

/* ---- what cannot be ---- */

/* esp_model_config_check() and the models multiply these as int. */
static esp_status check_products(const esp_model_config *config) {
  double pools = 1;
  for (unsigned i = 0; i < config->stem.pools_count && i < ESP_MAX_STAGES; i++) pools *= config->stem.pools[i];
  const double pixels = (double)config->image_height * config->image_width * config->image_channels;
  if (pools <= 1 << 20 && pixels <= INT_MAX) return ESP_OK;
  return esp_fail(ESP_ERR_FORMAT, "the model's images of %.0f numbers, pooled by %.0f, are beyond any use", pixels,
                  pools);
}

static esp_status check_entries(const char *scope, const esp_expert_layout *layout) {
  for (int i = 0; i < layout->experts; i++) {
    if (layout->index[i] < ESP_EXPERT_MASKED || layout->index[i] >= layout->stored)
      return esp_fail(ESP_ERR_FORMAT,
                      "expert %d of the layer %s is stored at place %d; expected 0 to %d, %d (zero) or %d "
                      "(masked)",
                      i, scope, layout->index[i], layout->stored - 1, ESP_EXPERT_ZERO, ESP_EXPERT_MASKED);
    if (layout->original_ids[i] < 0 || layout->original_ids[i] >= ESP_MAX_EXPERTS)
      return esp_fail(ESP_ERR_FORMAT, "expert %d of the layer %s has the original number %d; expected 0 to %d", i,
                      scope, layout->original_ids[i], (int)ESP_MAX_EXPERTS - 1);
  }
  return ESP_OK;
}

/* Widths are there for all stored experts or for none, and only if they say something that the config does not. */
static esp_status check_widths(const char *scope, const esp_expert_layout *layout, int hidden) {
  bool all = layout->widths[0] != 0;
  for (int s = 0; s < layout->stored; s++) {
    if (layout->widths[s] < 0 || (layout->widths[s] == 0) != (layout->widths[0] == 0))
      return esp_fail(ESP_ERR_FORMAT, "the stored expert %d of the layer %s has a width of %d; expected at least 1", s,
                      scope, (int)layout->widths[s]);
    all = all && layout->widths[s] == hidden;
  }
  if (!all) return ESP_OK;
  return esp_fail(ESP_ERR_FORMAT, "the widths of the layer %s are all %d, as its config says; expected none", scope,
                  hidden);
}

static esp_status check_layout(const char *scope, const esp_expert_layout *layout, const esp_moe_config *moe) {
  const int top_k = moe->top_k;
  if (layout->experts < 1 || layout->experts > ESP_MAX_EXPERTS)
    return esp_fail(ESP_ERR_FORMAT, "the layer %s has %d experts; expected 1 to %d", scope, layout->experts,
                    (int)ESP_MAX_EXPERTS);
  if (layout->stored < 1 || layout->stored > layout->experts)
    return esp_fail(ESP_ERR_FORMAT, "the layer %s stores %d of its %d experts; expected 1 to %d", scope, layout->stored,
                    layout->experts, layout->experts);
  ESP_TRY(check_entries(scope, layout));
  ESP_TRY(check_widths(scope, layout, moe->hidden));
  if (esp_routable_experts(layout) >= top_k) return ESP_OK;
  return esp_fail(ESP_ERR_FORMAT, "the layer %s can route to %d experts; its tokens choose %d", scope,
                  esp_routable_experts(layout), top_k);
}

esp_status esp_architecture_check(const esp_architecture *architecture) {
  const esp_model_config *config = &architecture->config;
  char scope[SCOPE_SIZE];
  char problem[ESP_LAYOUT_PROBLEM_SIZE];
  for (int i = 0; i < config->blocks; i++) {
    if (!layer_scope(config, i, scope)) continue;
    ESP_TRY(check_layout(scope, &architecture->layouts[i], &config->moe));
    if (esp_factoring_problem(&architecture->layouts[i], config, problem))
      return esp_fail(ESP_ERR_FORMAT, "the layer %s %s", scope, problem);
  }
  return ESP_OK;
}

/* ---- how big it is ---- */

/* neurons: of all experts together. */
static double bank_elements(const esp_model_config *config, double experts, double neurons) {
  const double columns = esp_activation_is_gated(config->feed_forward.activation) ? 2 * neurons : neurons;
  return (columns + neurons) * config->width + columns + experts * config->width;
}

/* U, V, S with the numbers and importances of its rows, biases. */
static double factored_elements(const esp_model_config *config, const esp_expert_layout *layout) {
  const int hidden = esp_widest(layout, config->moe.hidden);
  double elements = 0;
  for (int side = 0; side < ESP_SIDES; side++) {
    const double out = (double)esp_side_rows(config, side, hidden), in = side == ESP_SIDE_UP ? config->width : hidden;
    const double parts = side == ESP_SIDE_UP ? out / hidden : 1;
    elements += layout->stored * (layout->rank * (out + parts * in) + out);
    for (int s = 0; s < layout->stored; s++) elements += layout->sparse_rows[side][s] * (in + 3);
  }
  return elements;
}

static double stem_elements(const esp_model_config *config) {
  const esp_stem_config *stem = &config->stem;
  const double width = config->width;
  const double pixels = (double)config->image_height * config->image_width * config->image_channels;
  double in = config->image_channels, elements = 0;
  switch (stem->kind) {
  case ESP_STEM_PATCH:
    return width * ((double)stem->patch * stem->patch * in + 1);
  case ESP_STEM_FLATTEN:
    return width * (pixels + 1);
  case ESP_STEM_CONVOLUTION:
    break;
  }
  if (stem->whitening > 0) {
    elements += 2.0 * stem->whitening * (9 * in + 1);
    in = 2.0 * stem->whitening;
  }
  for (unsigned i = 0; i < stem->pools_count; i++) {
    const double out = i + 1 < stem->pools_count ? stem->channels[i] : width;
    elements += out * (9 * in + 3) + stem->extra_convolutions * out * (9 * out + 3);
    in = out;
  }
  return elements;
}

static double block_elements(const esp_architecture *architecture, int block) {
  const esp_model_config *config = &architecture->config;
  const esp_expert_layout *layout = &architecture->layouts[block];
  const double width = config->width, kernel = config->kernel, norms = 4 * width;
  double elements = norms, neurons = 0;
  if (config->mixing == ESP_MIXING_ATTENTION) elements += 4 * width * (width + 1);
  if (config->mixing == ESP_MIXING_CONVOLUTION) elements += width * (kernel * kernel + 1);
  if (esp_layer_kind_of(config, block) == ESP_LAYER_DENSE)
    return elements + bank_elements(config, 1, config->feed_forward.hidden);
  for (int s = 0; s < layout->stored; s++) neurons += esp_stored_width(layout, s, config->moe.hidden);
  const double experts =
      layout->rank ? factored_elements(config, layout) : bank_elements(config, layout->stored, neurons);
  return elements + layout->experts * width + experts + bank_elements(config, 1, config->moe.shared_hidden);
}

double esp_architecture_elements(const esp_architecture *architecture) {
  const esp_model_config *config = &architecture->config;
  int rows, columns;
  esp_token_grid(config, &rows, &columns);
  double elements = stem_elements(config) + (double)rows * columns * config->width;
  for (int i = 0; i < config->blocks; i++) elements += block_elements(architecture, i);
  return elements + 2.0 * config->width + ((double)config->width + 1) * config->classes;
}

/* ---- writing ---- */

static const char *const sparse_names[ESP_SIDES] = {"sparse_up_rows", "sparse_down_rows"};

/* Only where experts are factored. */
static esp_status write_factoring(hid_t group, const esp_expert_layout *layout) {
  const esp_h5_array stored = esp_h5_numbers(H5T_STD_I32LE, H5T_NATIVE_INT32, layout->stored);
  if (!layout->rank) return ESP_OK;
  ESP_TRY(esp_h5_set_number(group, "rank", layout->rank));
  ESP_TRY(esp_h5_set_number(group, "pruning", layout->pruning));
  for (int side = 0; side < ESP_SIDES; side++)
    ESP_TRY(esp_h5_write(group, sparse_names[side], &stored, layout->sparse_rows[side], 0));
  return ESP_OK;
}

static esp_status write_layout(hid_t layers, const char *scope, esp_layer_kind kind, const esp_expert_layout *layout) {
  esp_h5_handles handles = {0};
  const esp_h5_array array = esp_h5_numbers(H5T_STD_I32LE, H5T_NATIVE_INT32, layout->experts);
  const esp_h5_array stored = esp_h5_numbers(H5T_STD_I32LE, H5T_NATIVE_INT32, layout->stored);
  hid_t group;
  esp_status status = esp_h5_make_group(&handles, layers, scope, &group);
  if (status == ESP_OK) status = esp_h5_set_text(group, "kind", esp_layer_kind_name(kind));
  if (status == ESP_OK) status = esp_h5_set_number(group, "experts", layout->experts);
  if (status == ESP_OK) status = esp_h5_set_number(group, "stored_experts", layout->stored);
  if (status == ESP_OK) status = esp_h5_write(group, "index", &array, layout->index, 0);
  if (status == ESP_OK) status = esp_h5_write(group, "original_ids", &array, layout->original_ids, 0);
  if (status == ESP_OK && layout->widths[0]) status = esp_h5_write(group, "widths", &stored, layout->widths, 0);
  if (status == ESP_OK) status = write_factoring(group, layout);
  const esp_h5_array one = esp_h5_numbers(H5T_IEEE_F64LE, H5T_NATIVE_DOUBLE, 1);
  if (status == ESP_OK && layout->skip > 0) status = esp_h5_write(group, "skip", &one, &layout->skip, 0);
  esp_h5_close(&handles);
  return status;
}

static esp_status write_parts(esp_h5_handles *handles, hid_t file, const esp_architecture *architecture) {
  hid_t group, layers;
  char scope[SCOPE_SIZE];
  ESP_TRY(esp_h5_make_group(handles, file, "architecture", &group));
  ESP_TRY(esp_h5_write_text(group, "config", architecture->text));
  ESP_TRY(esp_h5_make_group(handles, group, "layers", &layers));
  for (int i = 0; i < architecture->config.blocks; i++)
    if (layer_scope(&architecture->config, i, scope))
      ESP_TRY(write_layout(layers, scope, esp_layer_kind_of(&architecture->config, i), &architecture->layouts[i]));
  return ESP_OK;
}

esp_status esp_architecture_write(hid_t file, const esp_architecture *architecture) {
  esp_h5_handles handles = {0};
  const esp_status status = write_parts(&handles, file, architecture);
  esp_h5_close(&handles);
  return status;
}

/* ---- reading ---- */

/* May be missing: then all have the config's. Zeros would say the same, and are refused. */
static esp_status read_widths(hid_t group, esp_expert_layout *layout) {
  const esp_h5_array stored = esp_h5_numbers(H5T_STD_I32LE, H5T_NATIVE_INT32, layout->stored);
  if (!esp_h5_has(group, "widths")) return ESP_OK;
  ESP_TRY(esp_h5_read_array(group, "widths", &stored, layout->widths));
  for (int s = 0; s < layout->stored; s++)
    if (layout->widths[s] < 1)
      return esp_fail(ESP_ERR_FORMAT, "`widths`: stored expert %d has %d neurons; expected at least 1", s,
                      (int)layout->widths[s]);
  return ESP_OK;
}

/* esp_factoring_problem() looks at what it says. */
static esp_status read_factoring(hid_t group, esp_expert_layout *layout) {
  const esp_h5_array stored = esp_h5_numbers(H5T_STD_I32LE, H5T_NATIVE_INT32, layout->stored);
  int64_t rank, pruning;
  if (!esp_h5_has_attribute(group, "rank")) return ESP_OK;
  ESP_TRY(esp_h5_get_number(group, "rank", &rank));
  ESP_TRY(esp_h5_get_number(group, "pruning", &pruning));
  if (rank < 1 || rank > INT_MAX || pruning < 0 || pruning > 1)
    return esp_fail(ESP_ERR_FORMAT, "`rank` %lld and `pruning` %lld; expected at least 1, and 0 or 1", (long long)rank,
                    (long long)pruning);
  layout->rank = (int)rank;
  layout->pruning = pruning;
  for (int side = 0; side < ESP_SIDES; side++)
    ESP_TRY(esp_h5_read_array(group, sparse_names[side], &stored, layout->sparse_rows[side]));
  return ESP_OK;
}

static esp_status read_skip(hid_t group, esp_expert_layout *layout) {
  const esp_h5_array one = esp_h5_numbers(H5T_IEEE_F64LE, H5T_NATIVE_DOUBLE, 1);
  if (!esp_h5_has(group, "skip")) return ESP_OK;
  ESP_TRY(esp_h5_read_array(group, "skip", &one, &layout->skip));
  if (layout->skip > 0 && isfinite(layout->skip)) return ESP_OK;
  return esp_fail(ESP_ERR_FORMAT, "`skip` is %g; expected a number above 0", layout->skip);
}

/* int32 [experts], the number of experts being what the attribute says. */
static esp_status read_layout(hid_t group, esp_expert_layout *layout) {
  int64_t experts, stored;
  ESP_TRY(esp_h5_get_number(group, "experts", &experts));
  ESP_TRY(esp_h5_get_number(group, "stored_experts", &stored));
  if (experts < 1 || experts > ESP_MAX_EXPERTS || stored < 1 || stored > experts)
    return esp_fail(ESP_ERR_FORMAT,
                    "%lld experts, %lld of them stored; expected 1 to %d experts, 1 to all of them stored",
                    (long long)experts, (long long)stored, (int)ESP_MAX_EXPERTS);
  const esp_h5_array array = esp_h5_numbers(H5T_STD_I32LE, H5T_NATIVE_INT32, experts);
  layout->experts = (int)experts;
  layout->stored = (int)stored;
  ESP_TRY(esp_h5_read_array(group, "index", &array, layout->index));
  ESP_TRY(esp_h5_read_array(group, "original_ids", &array, layout->original_ids));
  ESP_TRY(read_widths(group, layout));
  ESP_TRY(read_factoring(group, layout));
  return read_skip(group, layout);
}

static esp_status read_layer(hid_t layers, const char *scope, esp_expert_layout *layout) {
  esp_h5_handles handles = {0};
  hid_t group;
  esp_status status = esp_h5_open_group(&handles, layers, scope, &group);
  if (status == ESP_OK) {
    status = read_layout(group, layout);
    if (status != ESP_OK) status = esp_fail_in(status, "the layer %s", scope);
  }
  esp_h5_close(&handles);
  return status;
}

static esp_status refuse_extra_layer(void *context, hid_t group, const char *name) {
  const esp_architecture *architecture = context;
  (void)group;
  char scope[SCOPE_SIZE];
  for (int i = 0; i < architecture->config.blocks; i++)
    if (layer_scope(&architecture->config, i, scope) && strcmp(name, scope) == 0) return ESP_OK;
  return esp_fail(ESP_ERR_FORMAT, "the layer `%s` does not belong to the model that `architecture/config` describes",
                  name);
}

static esp_status read_layers(esp_h5_handles *handles, hid_t group, esp_architecture *architecture) {
  hid_t layers;
  char scope[SCOPE_SIZE];
  ESP_TRY(esp_h5_open_group(handles, group, "layers", &layers));
  for (int i = 0; i < architecture->config.blocks; i++)
    if (layer_scope(&architecture->config, i, scope)) ESP_TRY(read_layer(layers, scope, &architecture->layouts[i]));
  return esp_h5_each(layers, refuse_extra_layer, architecture);
}

static esp_status check_config(esp_model_config *config, const char *text) {
  ESP_TRY(esp_model_config_load(config, "architecture/config", text));
  ESP_TRY(check_products(config));
  return esp_model_config_check(config);
}

static esp_status read_config(hid_t group, esp_architecture *architecture) {
  ESP_TRY(esp_h5_read_text(group, "config", &architecture->text));
  const esp_status status = check_config(&architecture->config, architecture->text);
  /* What the user of a checkpoint can do nothing about is no wrong setting of theirs. */
  return status == ESP_ERR_CONFIG ? esp_fail(ESP_ERR_FORMAT, "%s", esp_error_message()) : status;
}

static esp_status read_parts(esp_h5_handles *handles, hid_t file, esp_architecture *architecture) {
  hid_t group;
  ESP_TRY(esp_h5_open_group(handles, file, "architecture", &group));
  ESP_TRY(read_config(group, architecture));
  architecture->layouts = esp_alloc((size_t)architecture->config.blocks, sizeof *architecture->layouts);
  if (!architecture->layouts) return ESP_ERR_MEMORY;
  ESP_TRY(read_layers(handles, group, architecture));
  return esp_architecture_check(architecture);
}

esp_status esp_architecture_read(hid_t file, esp_architecture *architecture) {
  esp_h5_handles handles = {0};
  *architecture = (esp_architecture){0};
  const esp_status status = read_parts(&handles, file, architecture);
  esp_h5_close(&handles);
  return status;
}
