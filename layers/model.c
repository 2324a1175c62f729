#include <espalier/memory.h>
#include <espalier/model.h>
#include <espalier/ops.h>

#include <math.h>
#include <stdio.h>
#include <string.h>

/* Each residual branch starts smaller the more of them there are (GPT-2's rule). */
static double residual_scale(const esp_model_config *config) { return 1 / sqrt(2.0 * config->blocks); }

static esp_status declare_norm(esp_norm *norm, esp_model *model, const char *scope) {
  char norm_scope[48];
  snprintf(norm_scope, sizeof norm_scope, "%s.norm", scope);
  return esp_norm_declare(norm, model->parameters, norm_scope, model->config.norm, model->config.width);
}

static esp_status declare_block(esp_model *model, int index, const esp_expert_layout *layout) {
  const esp_model_config *config = &model->config;
  esp_block *block = &model->blocks[index];
  const double scale = residual_scale(config);
  block->kind = esp_layer_kind_of(config, index);
  snprintf(block->mixing_scope, sizeof block->mixing_scope, "blocks.%d.mixing", index);
  snprintf(block->layer_scope, sizeof block->layer_scope, "blocks.%d.%s", index,
           block->kind == ESP_LAYER_DENSE ? "ffn" : "moe"); /* also of a MoNE, so that both start alike */
  if (config->mixing != ESP_MIXING_NONE) {
    ESP_TRY(declare_norm(&block->mixing_norm, model, block->mixing_scope));
    ESP_TRY(esp_mixing_declare(&block->mixing, model->parameters, block->mixing_scope, config, scale));
  }
  ESP_TRY(declare_norm(&block->layer_norm, model, block->layer_scope));
  if (block->kind != ESP_LAYER_DENSE)
    return esp_moe_declare(
        &block->moe, model->parameters, block->layer_scope,
        &(esp_moe_options){.block = index, .config = config, .layout = layout, .residual_scale = scale});
  return esp_expert_bank_declare(&block->dense, model->parameters, block->layer_scope,
                                 &(esp_expert_bank_options){.width = config->width,
                                                            .hidden = config->feed_forward.hidden,
                                                            .config = &config->feed_forward,
                                                            .residual_scale = scale});
}

static esp_status declare_all(esp_model *model, const esp_expert_layout *layouts, uint64_t seed) {
  const esp_model_config *config = &model->config;
  model->parameters = esp_parameters_create();
  model->blocks = esp_alloc((size_t)config->blocks, sizeof *model->blocks);
  if (!model->parameters || !model->blocks) return ESP_ERR_MEMORY;
  ESP_TRY(esp_stem_declare(&model->stem, model->parameters, config));
  for (int i = 0; i < config->blocks; i++) ESP_TRY(declare_block(model, i, layouts ? &layouts[i] : NULL));
  ESP_TRY(esp_norm_declare(&model->norm, model->parameters, "norm", config->norm, config->width));
  /* A head of zeros: the first loss is log(classes), and a new head in finetuning disturbs nothing. */
  ESP_TRY(esp_linear_declare(&model->head, model->parameters, "head", config->width, config->classes, 0));
  esp_parameters_find(model->parameters, "head.weight")->matrices = 0; /* Muon is for hidden layers */
  return esp_parameters_allocate(model->parameters, seed);
}

esp_status esp_model_create(esp_model **model, const esp_model_config *config, const esp_expert_layout *layouts,
                            uint64_t seed) {
  *model = NULL;
  ESP_TRY(esp_model_config_check(config));
  esp_model *made = esp_alloc(1, sizeof *made);
  if (!made) return ESP_ERR_MEMORY;
  made->config = *config;
  const esp_status status = declare_all(made, layouts, seed);
  if (status != ESP_OK) {
    esp_model_free(made);
    return status;
  }
  *model = made;
  return ESP_OK;
}

void esp_model_free(esp_model *model) {
  if (!model) return;
  esp_parameters_free(model->parameters);
  esp_free(model->blocks);
  esp_free(model);
}

static esp_tensor *apply_dropout(const esp_model *model, esp_tape *tape, esp_tensor *x, const esp_pass *pass,
                                 int place) {
  if (!pass->training) return x;
  return esp_dropout(tape, x, model->config.dropout, pass->seed, pass->step * 2 * ESP_MAX_BLOCKS + (uint64_t)place);
}

/* x + scaled; nobody reads the branch again (`scaled` is `branch` itself without dropout), nor, in evaluation, x. */
static esp_tensor *add_branch(esp_tape *tape, esp_tensor *x, esp_tensor *branch, esp_tensor *scaled) {
  esp_tensor *sum = esp_add(tape, x, scaled);
  esp_tape_forget(tape, scaled);
  esp_tape_forget(tape, branch);
  esp_tape_release(tape, x);
  return sum;
}

static esp_tensor *run_block(const esp_model *model, int index, esp_tape *tape, esp_tensor *x, const esp_pass *pass,
                             esp_auxiliary_losses *losses) {
  const esp_block *block = &model->blocks[index];
  if (model->config.mixing != ESP_MIXING_NONE) {
    esp_tape_scope(tape, block->mixing_scope);
    esp_tensor *normal = esp_norm_forward(&block->mixing_norm, tape, x, pass->training);
    esp_tensor *mixed = esp_mixing_forward(&block->mixing, tape, normal);
    esp_tape_forget(tape, normal);
    x = add_branch(tape, x, mixed, apply_dropout(model, tape, mixed, pass, 2 * index));
  }
  esp_tape_scope(tape, block->layer_scope);
  esp_tensor *normal = esp_norm_forward(&block->layer_norm, tape, x, pass->training);
  esp_tensor *y = block->kind == ESP_LAYER_DENSE ? esp_expert_bank_forward_all(&block->dense, tape, normal)
                                                 : esp_moe_forward(&block->moe, tape, normal, pass, losses);
  esp_tape_forget(tape, normal);
  if (!x || !y) return NULL;
  y = esp_reshape(tape, y, x->rank, x->shape);
  return add_branch(tape, x, y, apply_dropout(model, tape, y, pass, 2 * index + 1));
}

/* The block before which an E3 repeats its tokens, one copy a member: the first mixture. */
static int first_mixture(const esp_model *model) {
  int index = 0;
  while (index < model->config.blocks && model->blocks[index].kind == ESP_LAYER_DENSE) index++;
  return index;
}

esp_model_output esp_model_forward(const esp_model *model, esp_tape *tape, esp_tensor *images, const esp_pass *pass) {
  esp_model_output output = {.members = 1};
  esp_tensor *x = esp_stem_forward(&model->stem, tape, images, pass->training);
  const int tiled = first_mixture(model);
  for (int i = 0; i < model->config.blocks; i++) {
    if (i == tiled) {
      output.members = model->config.moe.members;
      x = esp_tile(tape, x, output.members);
    }
    x = run_block(model, i, tape, x, pass, &output.auxiliary);
  }
  esp_tape_scope(tape, "head");
  x = esp_norm_forward(&model->norm, tape, esp_mean_tokens(tape, x), pass->training);
  output.logits = esp_linear_forward(&model->head, tape, x);
  return output;
}

esp_tensor *esp_ensemble_prediction(esp_tape *tape, const esp_model_output *output) {
  return esp_log_mean_probability(tape, output->logits, output->members);
}

void esp_model_update_router_biases(const esp_model *model, const esp_auxiliary_losses *auxiliary) {
  for (int i = 0; i < esp_model_moe_count(model); i++) {
    const esp_moe *moe = esp_model_moe(model, i);
    if (moe->router_bias && !moe->router_bias->frozen && auxiliary->routing[moe->block])
      esp_router_bias_update(moe->router_bias->data, auxiliary->routing[moe->block], &moe->layout,
                             moe->config.router.bias_rate);
  }
}

esp_tensor *esp_total_loss(esp_tape *tape, esp_tensor *task, const esp_auxiliary_losses *auxiliary) {
  esp_tape_scope(tape, "loss");
  esp_tensor *total = task;
  for (int i = 0; i < auxiliary->count; i++)
    total = esp_add(tape, total, esp_scale(tape, auxiliary->loss[i].raw, auxiliary->loss[i].weight));
  return total;
}

int esp_model_moe_count(const esp_model *model) {
  int count = 0;
  for (int i = 0; i < model->config.blocks; i++) count += model->blocks[i].kind != ESP_LAYER_DENSE;
  return count;
}

esp_moe *esp_model_moe(const esp_model *model, int index) {
  for (int i = 0; i < model->config.blocks; i++)
    if (model->blocks[i].kind != ESP_LAYER_DENSE && index-- == 0) return &model->blocks[i].moe;
  return NULL;
}

static esp_status check_copy(const esp_parameter *target, const esp_parameter *source, const char *name) {
  if (!target || !source)
    return esp_fail(ESP_ERR_MISMATCH, "the models differ: %s is only in the %s one", name, target ? "new" : "old");
  if (esp_same_shape(&target->tensor, &source->tensor)) return ESP_OK;
  char expected[64], found[64];
  return esp_fail(ESP_ERR_MISMATCH, "the models differ: %s is %s in the new one and %s in the old one", name,
                  esp_shape_text(&target->tensor, expected, sizeof expected),
                  esp_shape_text(&source->tensor, found, sizeof found));
}

/* Checks that every parameter of `a` that is not excepted has its like in `b`. */
static esp_status check_all(const esp_parameters *a, const esp_parameters *b, bool a_is_target, const char *except) {
  for (int64_t i = 0; i < esp_parameters_count(a); i++) {
    const esp_parameter *p = esp_parameters_at(a, i);
    if (esp_name_matches(except, p->tensor.name)) continue;
    const esp_parameter *other = esp_parameters_find(b, p->tensor.name);
    ESP_TRY(check_copy(a_is_target ? p : other, a_is_target ? other : p, p->tensor.name));
  }
  return ESP_OK;
}

esp_status esp_model_copy_parameters(esp_model *target, const esp_model *source, const char *except) {
  ESP_TRY(check_all(target->parameters, source->parameters, true, except));
  ESP_TRY(check_all(source->parameters, target->parameters, false, except));
  for (int64_t i = 0; i < esp_parameters_count(target->parameters); i++) {
    const esp_parameter *p = esp_parameters_at(target->parameters, i);
    if (esp_name_matches(except, p->tensor.name)) continue;
    memcpy(p->tensor.data, esp_parameters_find(source->parameters, p->tensor.name)->tensor.data,
           (size_t)p->count * sizeof *p->tensor.data);
  }
  return ESP_OK;
}
