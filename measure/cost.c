#include <espalier/cost.h>

static int64_t size_of(const esp_tensor *tensor) { return tensor ? esp_tensor_count(tensor) : 0; }

static int64_t norm_size(const esp_norm *norm) { return size_of(norm->gain) + size_of(norm->bias); }

static int64_t linear_size(const esp_linear *linear) { return size_of(linear->weight) + size_of(linear->bias); }

static int64_t bank_size(const esp_expert_bank *bank) {
  return size_of(bank->up) + size_of(bank->up_bias) + size_of(bank->down) + size_of(bank->down_bias);
}

/* --- one expert, one token ------------------------------------------------------------------------------
 * With SwiGLU the neurons are ranked by W_gate x, with two matrices by W_up x: that one is needed in full. */

typedef struct expert_cost {
  int64_t parameters, activated, activated_selected;
  double flops, flops_selected;
} expert_cost;

static expert_cost cost_of_expert(const esp_expert_bank *bank, int64_t kept) {
  const int64_t width = bank->width, hidden = bank->hidden;
  const int64_t ups = bank->activation == ESP_ACTIVATION_SWIGLU ? 2 : 1; /* matrices before the activation */
  const int64_t up_row = width + (bank->up_bias != NULL), down_bias = bank->down_bias ? width : 0;
  const int64_t skippable = (ups - 1) * up_row + width; /* of a neuron, if it is not selected */
  return (expert_cost){
      .parameters = hidden * (ups * up_row + width) + down_bias,
      .activated = hidden * up_row + kept * skippable + down_bias,
      .activated_selected = kept * (ups * up_row + width) + down_bias,
      .flops = 2.0 * (double)(hidden * (ups + 1) * width),
      .flops_selected = 2.0 * (double)(hidden * width + kept * ups * width),
  };
}

/* --- layers: all FLOPs are those of `tokens` tokens ----------------------------------------------------- */

static void count_dense(esp_layer_cost *layer, const esp_expert_bank *bank, int64_t tokens) {
  layer->parameters = layer->activated = layer->activated_selected = layer->touched = bank_size(bank);
  layer->flops = layer->flops_selected = (double)tokens * cost_of_expert(bank, bank->hidden).flops;
}

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

static void count_moe(esp_layer_cost *layer, const esp_moe *moe, int64_t tokens) {
  const expert_cost expert = cost_of_expert(&moe->bank, moe->neurons_kept);
  const int64_t k = moe->config.top_k, stored = moe->layout.stored, router = size_of(moe->router);
  const int64_t always = router + (moe->has_shared ? bank_size(&moe->shared) : 0);
  int served = 0; /* logical experts that compute something */
  for (int e = 0; e < moe->layout.experts; e++) served += moe->layout.index[e] >= 0;
  const double slots = (double)(tokens * k) * served / esp_routable_experts(&moe->layout);
  const double always_flops =
      (double)tokens *
      (2.0 * (double)router + (moe->has_shared ? cost_of_expert(&moe->shared, moe->shared.hidden).flops : 0));
  layer->experts = moe->layout.experts;
  layer->stored_experts = moe->layout.stored;
  layer->parameters = always + bank_size(&moe->bank);
  layer->activated = always + smaller(k, stored) * expert.activated;
  layer->activated_selected = always + smaller(k, stored) * expert.activated_selected;
  layer->touched = always + smaller(tokens * k, stored) * expert.parameters;
  layer->flops = always_flops + slots * expert.flops;
  layer->flops_selected = always_flops + slots * expert.flops_selected;
}

/* A block without mixing leaves its part empty: all sizes are 0. */
static int64_t mixing_size(const esp_mixing *mixing) {
  return linear_size(&mixing->qkv) + linear_size(&mixing->projection) + size_of(mixing->kernel_weight) +
         size_of(mixing->kernel_bias);
}

static double mixing_flops(const esp_mixing *mixing, int64_t tokens, int64_t width) {
  const int64_t weights =
      size_of(mixing->qkv.weight) + size_of(mixing->projection.weight) + size_of(mixing->kernel_weight);
  /* Attention also multiplies queries by keys and scores by values. */
  const int64_t attention = mixing->qkv.weight ? 2 * tokens * tokens * width : 0;
  return 2.0 * (double)(tokens * weights + attention);
}

static void count_block(esp_layer_cost *layer, const esp_model *model, int index, int64_t tokens) {
  const esp_block *block = &model->blocks[index];
  *layer = (esp_layer_cost){.name = block->layer_scope, .kind = block->kind};
  if (block->kind == ESP_LAYER_DENSE)
    count_dense(layer, &block->dense, tokens);
  else
    count_moe(layer, &block->moe, tokens);
  layer->block_parameters =
      layer->parameters + norm_size(&block->layer_norm) + norm_size(&block->mixing_norm) + mixing_size(&block->mixing);
  layer->block_flops = layer->flops + mixing_flops(&block->mixing, tokens, model->config.width);
}

/* --- the ends of the model ------------------------------------------------------------------------------ */

static double stem_flops(const esp_model *model, int64_t tokens) {
  const esp_stem *stem = &model->stem;
  if (stem->kind != ESP_STEM_CONVOLUTION) return 2.0 * (double)(tokens * size_of(stem->weight));
  int64_t height = model->config.image_height, width = model->config.image_width;
  double flops = 0;
  for (unsigned i = 0; i < stem->stage_count; i++) {
    flops += 2.0 * (double)(height * width * size_of(stem->stages[i].weight));
    height /= stem->stages[i].pool;
    width /= stem->stages[i].pool;
  }
  return flops;
}

static int64_t count_parameters(const esp_model *model) {
  int64_t count = 0;
  for (int64_t i = 0; i < esp_parameters_count(model->parameters); i++)
    count += esp_parameters_at(model->parameters, i)->count;
  return count;
}

static void add_layer(esp_model_cost *cost, const esp_layer_cost *layer) {
  cost->activated -= layer->parameters - layer->activated;
  cost->activated_selected -= layer->parameters - layer->activated_selected;
  cost->touched -= layer->parameters - layer->touched;
  cost->flops += layer->block_flops;
  cost->flops_selected += layer->block_flops - layer->flops + layer->flops_selected;
}

void esp_model_cost_of(const esp_model *model, esp_model_cost *cost) {
  const int64_t tokens = (int64_t)model->stem.grid[0] * model->stem.grid[1];
  *cost = (esp_model_cost){.layer_count = model->config.blocks};
  cost->parameters = count_parameters(model);
  cost->activated = cost->activated_selected = cost->touched = cost->parameters; /* but for what layers leave out */
  cost->stem_flops = stem_flops(model, tokens);
  cost->head_flops = 2.0 * (double)size_of(model->head.weight);
  cost->flops = cost->flops_selected = cost->stem_flops + cost->head_flops;
  for (int i = 0; i < cost->layer_count; i++) {
    count_block(&cost->layers[i], model, i, tokens);
    add_layer(cost, &cost->layers[i]);
  }
}
