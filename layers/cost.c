#include <espalier/cost.h>
#include <espalier/compare.h>

#include <stdio.h>

/* Running averages of a batch norm are no parameters. */
static int64_t norm_size(const esp_model_config *config, int64_t width) {
  return config->norm == ESP_NORM_RMS ? width : 2 * width;
}

/* --- one feed-forward network, one token ----------------------------------------------------------------
 * With three matrices the neurons are ranked by W_gate x, with two by W_up x: that one is needed in full. */

typedef struct expert_cost {
  int64_t parameters, activated, activated_selected;
  double flops, flops_selected;
} expert_cost;

static expert_cost cost_of_expert(const esp_model_config *config, int64_t hidden, int64_t kept) {
  const esp_feed_forward_config *f = &config->feed_forward;
  const int64_t width = config->width;
  const int64_t ups = esp_activation_is_gated(f->activation) ? 2 : 1; /* matrices before the activation */
  const int64_t up_row = width + f->bias, down_bias = f->bias ? width : 0;
  const int64_t skippable = (ups - 1) * up_row + width; /* of a neuron, if it is not selected */
  return (expert_cost){
      .parameters = hidden * (ups * up_row + width) + down_bias,
      .activated = hidden * up_row + kept * skippable + down_bias,
      .activated_selected = kept * (ups * up_row + width) + down_bias,
      .flops = 2.0 * (double)(hidden * (ups + 1) * width),
      .flops_selected = 2.0 * (double)(hidden * width + kept * ups * width),
  };
}

/* U V + S in the place of each matrix; the numbers of S's rows are structure, not parameters. A MoNE's neurons are
 * selected after all has been computed. */
static expert_cost cost_of_factored(const esp_model_config *config, const esp_expert_layout *layout, int stored) {
  const int64_t hidden = esp_stored_width(layout, stored, config->moe.hidden), width = config->width;
  const int64_t ups = esp_side_rows(config, ESP_SIDE_UP, (int)hidden);
  const int64_t factors = (ups / hidden + 1) * layout->rank * (hidden + width);
  const int64_t sparse =
      layout->sparse_rows[ESP_SIDE_UP][stored] * width + layout->sparse_rows[ESP_SIDE_DOWN][stored] * hidden;
  const int64_t size = factors + sparse + (config->feed_forward.bias ? ups + width : 0);
  const double flops = 2.0 * (double)(factors + sparse);
  return (expert_cost){size, size, size, flops, flops};
}

/* --- layers: all FLOPs are those of one image ----------------------------------------------------------- */

/* A block as the counts need it. */
typedef struct place {
  const esp_model_config *config;
  const esp_expert_layout *layout; /* NULL: all experts are there */
  int64_t tokens;                  /* of an image */
  int index, runs;                 /* runs: how often an image passes, once a member in an E3's later part */
  const double *rows;              /* [blocks] rows of a token that were measured; NULL: what is to be expected */
} place;

static void count_dense(esp_layer_cost *layer, const place *at) {
  const int64_t hidden = at->config->feed_forward.hidden;
  const expert_cost whole = cost_of_expert(at->config, hidden, hidden);
  layer->parameters = layer->activated = layer->activated_selected = layer->touched = whole.parameters;
  layer->flops = layer->flops_selected = (double)(at->runs * at->tokens) * whole.flops;
}

static int logical_experts(const place *at) { return at->layout ? at->layout->experts : at->config->moe.experts; }

static int stored_experts(const place *at) { return at->layout ? at->layout->stored : at->config->moe.experts; }

/* Sums over the experts. */
static void add_expert(expert_cost *sum, const expert_cost *expert) {
  sum->parameters += expert->parameters;
  sum->activated += expert->activated;
  sum->activated_selected += expert->activated_selected;
  sum->flops += expert->flops;
  sum->flops_selected += expert->flops_selected;
}

/* All stored experts together, and those that the logical ones lead to: whom more experts lead to counts as often. */
static void sum_experts(const place *at, int kept, expert_cost *stored, expert_cost *served) {
  const int hidden = at->config->moe.hidden;
  *stored = *served = (expert_cost){0};
  for (int s = 0; s < stored_experts(at); s++) {
    const int width = at->layout ? esp_stored_width(at->layout, s, hidden) : hidden;
    const bool factored = at->layout && at->layout->rank;
    const expert_cost cost = factored ? cost_of_factored(at->config, at->layout, s)
                                      : cost_of_expert(at->config, width, esp_smaller(kept, width));
    add_expert(stored, &cost);
    for (int e = 0; e < logical_experts(at); e++)
      if ((at->layout ? at->layout->index[e] : e) == s) add_expert(served, &cost);
  }
}

/* Logical experts first .. first + count - 1 that compute something, and those that can be routed to. */
static void count_experts(const place *at, int first, int count, int *served, int *routable) {
  *served = *routable = 0;
  for (int e = first; e < first + count; e++) {
    const int32_t index = at->layout ? at->layout->index[e] : e;
    *served += index >= 0;
    *routable += index != ESP_EXPERT_MASKED;
  }
}

/* Token choice, of one member, evenly: tokens x k x served / routable, and at most the experts' capacity. */
static double chosen_rows(const place *at, int first, int count) {
  const esp_moe_config *moe = &at->config->moe;
  const int64_t group = esp_evaluation_group(&moe->router);
  int served, routable;
  count_experts(at, first, count, &served, &routable);
  if (served == 0) return 0;
  const double rows = (double)(at->tokens * moe->top_k) * served / routable;
  if (!(moe->router.evaluation_capacity > 0)) return rows;
  const int64_t capacity =
      esp_expert_capacity(group * at->tokens, moe->top_k, moe->router.evaluation_capacity, routable);
  const double most = (double)(served * capacity) / (double)group;
  return rows < most ? rows : most;
}

/* Expert choice: each of a group's S tokens has k experts on average, so that an expert takes S k / experts. */
static double taken_rows(const place *at) {
  const esp_moe_config *moe = &at->config->moe;
  const int64_t group = esp_evaluation_group(&moe->router), own = moe->experts / moe->members,
                tokens = group * at->tokens;
  int served, routable;
  count_experts(at, 0, logical_experts(at), &served, &routable);
  return (double)(served * esp_smaller(tokens, (tokens * moe->top_k + own - 1) / own)) / (double)group;
}

/* Rows of the router matrix; 0 without one. */
static int64_t router_rows(const place *at) {
  const esp_moe_config *moe = &at->config->moe;
  if (!esp_router_policy_of(moe->router.policy)->has_weights) return 0;
  return logical_experts(at) * (moe->router.policy == ESP_ROUTER_SOFT ? esp_soft_slots(moe, at->tokens) : 1);
}

/* Rows that the experts compute of one image, over all members. */
static double expert_rows(const place *at) {
  const esp_moe_config *moe = &at->config->moe;
  const int experts = logical_experts(at), own = experts / moe->members;
  int served, routable;
  double rows = 0;
  if (at->rows) return (double)(at->runs * at->tokens) * at->rows[at->index];
  switch (moe->router.policy) {
  case ESP_ROUTER_EXPERT_CHOICE:
    return taken_rows(at);
  case ESP_ROUTER_SOFT:
    count_experts(at, 0, experts, &served, &routable);
    return (double)(at->runs * served * (esp_soft_slots(moe, at->tokens)));
  case ESP_ROUTER_TOKEN_CHOICE:
  case ESP_ROUTER_HASH:
  case ESP_ROUTER_EVEN:
    break;
  }
  for (int m = 0; m < moe->members; m++) rows += chosen_rows(at, m * own, own);
  return rows;
}

/* Router and shared expert: what every token needs. */
static int64_t always_size(const place *at, expert_cost shared) {
  const esp_moe_config *moe = &at->config->moe;
  const int64_t bias = moe->router.bias_rate > 0 ? logical_experts(at) : 0;
  return router_rows(at) * at->config->width + bias + (moe->shared_hidden ? shared.parameters : 0);
}

/* This is of one token. Soft MoE's dispatch and combine weigh every token for every slot, as its logits do. */
static double always_flops(const place *at, expert_cost shared) {
  const esp_moe_config *moe = &at->config->moe;
  const int products = moe->router.policy == ESP_ROUTER_SOFT ? 3 : 1;
  return 2.0 * (double)(products * router_rows(at) * at->config->width) + (moe->shared_hidden ? shared.flops : 0);
}

/* times x sum / count, rounded to the nearest. */
static int64_t of_mean(int64_t times, int64_t sum, int64_t count) {
  return count ? (times * sum + count / 2) / count : 0;
}

static void count_moe(esp_layer_cost *layer, const place *at) {
  const esp_moe_config *moe = &at->config->moe;
  int served, routable;
  expert_cost all, chosen;
  count_experts(at, 0, logical_experts(at), &served, &routable);
  sum_experts(at, esp_neurons_kept(at->config, at->index), &all, &chosen);
  const expert_cost shared = cost_of_expert(at->config, moe->shared_hidden, moe->shared_hidden);
  const int64_t always = always_size(at, shared), stored = stored_experts(at);
  const bool soft = moe->router.policy == ESP_ROUTER_SOFT, taken = moe->router.policy == ESP_ROUTER_EXPERT_CHOICE;
  const int64_t of_token = soft ? stored : esp_smaller(at->runs * moe->top_k, stored);
  const int64_t of_image = soft || taken ? stored : esp_smaller(at->runs * at->tokens * moe->top_k, stored);
  const double rows = expert_rows(at), base = (double)(at->runs * at->tokens) * always_flops(at, shared);
  layer->experts = logical_experts(at);
  layer->stored_experts = (int)stored;
  layer->narrowest = at->layout ? esp_narrowest(at->layout, moe->hidden) : moe->hidden;
  layer->widest = at->layout ? esp_widest(at->layout, moe->hidden) : moe->hidden;
  layer->neurons_kept = esp_neurons_kept(at->config, at->index);
  if (layer->neurons_kept > layer->widest || layer->kind != ESP_LAYER_MONE) layer->neurons_kept = layer->widest;
  layer->parameters = always + all.parameters;
  layer->activated = always + of_mean(of_token, chosen.activated, served);
  layer->activated_selected = always + of_mean(of_token, chosen.activated_selected, served);
  layer->touched = always + of_mean(of_image, all.parameters, stored);
  layer->flops = base + (served ? rows * (chosen.flops / served) : 0);
  layer->flops_selected = base + (served ? rows * (chosen.flops_selected / served) : 0);
}

/* --- mixing --------------------------------------------------------------------------------------------- */

/* Attention maps to queries, keys and values and back; convolution has a kernel for each channel. */
static int64_t mixing_weights(const esp_model_config *config) {
  const int64_t width = config->width;
  switch (config->mixing) {
  case ESP_MIXING_ATTENTION:
    return 4 * width * width;
  case ESP_MIXING_CONVOLUTION:
    return (int64_t)config->kernel * config->kernel * width;
  case ESP_MIXING_NONE:
    break;
  }
  return 0;
}

static int64_t mixing_size(const esp_model_config *config) {
  const int64_t width = config->width;
  if (config->mixing == ESP_MIXING_NONE) return 0;
  const int64_t biases = config->mixing == ESP_MIXING_ATTENTION ? 4 * width : width;
  return norm_size(config, width) + mixing_weights(config) + biases;
}

static double mixing_flops(const esp_model_config *config, int64_t tokens) {
  /* Attention also multiplies queries by keys and scores by values. */
  const int64_t attention = config->mixing == ESP_MIXING_ATTENTION ? 2 * tokens * tokens * config->width : 0;
  return 2.0 * (double)(tokens * mixing_weights(config) + attention);
}

static void count_block(esp_layer_cost *layer, const place *at) {
  const esp_model_config *config = at->config;
  *layer = (esp_layer_cost){.kind = esp_layer_kind_of(config, at->index)};
  const bool dense = layer->kind == ESP_LAYER_DENSE;
  snprintf(layer->name, sizeof layer->name, "blocks.%d.%s", at->index, dense ? "ffn" : "moe");
  if (dense) count_dense(layer, at);
  else count_moe(layer, at);
  layer->block_parameters = layer->parameters + norm_size(config, config->width) + mixing_size(config);
  layer->block_flops = layer->flops + at->runs * mixing_flops(config, at->tokens);
}

/* --- the ends of the model ------------------------------------------------------------------------------ */

/* Adds the FLOPs of a 3 x 3 convolution and returns its weights. */
static int64_t count_kernel(int64_t pixels, int64_t in, int64_t out, double *flops) {
  const int64_t weights = out * ESP_STAGE_KERNEL * ESP_STAGE_KERNEL * in;
  *flops += 2.0 * (double)(pixels * weights);
  return weights;
}

/* The stages of 3 x 3 convolutions, each with a norm: their parameters and FLOPs. */
static int64_t count_stages(const esp_model_config *config, double *flops) {
  const esp_stem_config *stem = &config->stem;
  int64_t height = config->image_height, width = config->image_width, in = config->image_channels, size = 0;
  *flops = 0;
  if (stem->whitening) {
    size += count_kernel(height * width, in, 2 * stem->whitening, flops) + 2 * stem->whitening;
    in = 2 * stem->whitening;
  }
  for (unsigned i = 0; i < stem->pools_count; i++) {
    const int64_t out = i + 1 < stem->pools_count ? stem->channels[i] : config->width;
    for (int d = 0; d <= stem->extra_convolutions; d++) {
      size += count_kernel(height * width, in, out, flops) + (config->norm == ESP_NORM_BATCH ? 0 : out) +
              norm_size(config, out);
      if (d == 0) {
        height /= stem->pools[i];
        width /= stem->pools[i];
      }
      in = out;
    }
  }
  return size;
}

static int64_t count_stem(const esp_model_config *config, int64_t tokens, double *flops) {
  const esp_stem_config *stem = &config->stem;
  const int64_t positions = config->positions ? tokens * config->width : 0;
  if (stem->kind == ESP_STEM_CONVOLUTION) return count_stages(config, flops) + positions;
  const int64_t pixels = stem->kind == ESP_STEM_PATCH ? (int64_t)stem->patch * stem->patch
                                                      : (int64_t)config->image_height * config->image_width;
  const int64_t weights = pixels * config->image_channels * config->width;
  *flops = 2.0 * (double)(tokens * weights);
  return weights + config->width + positions;
}

static void add_layer(esp_model_cost *cost, const esp_layer_cost *layer) {
  const int64_t rest = layer->block_parameters - layer->parameters;
  cost->parameters += layer->block_parameters;
  cost->activated += rest + layer->activated;
  cost->activated_selected += rest + layer->activated_selected;
  cost->touched += rest + layer->touched;
  cost->flops += layer->block_flops;
  cost->flops_selected += layer->block_flops - layer->flops + layer->flops_selected;
}

/* layouts [blocks], each NULL or the block's. */
static void count_all(const esp_model_config *config, const esp_expert_layout *const *layouts, const double *measured,
                      esp_model_cost *cost) {
  int rows, columns, runs = 1;
  esp_token_grid(config, &rows, &columns);
  const int64_t tokens = (int64_t)rows * columns, head = (int64_t)config->width * config->classes;
  *cost = (esp_model_cost){.layer_count = config->blocks};
  const int64_t ends =
      count_stem(config, tokens, &cost->stem_flops) + norm_size(config, config->width) + head + config->classes;
  cost->parameters = cost->activated = cost->activated_selected = cost->touched = ends;
  cost->flops = cost->flops_selected = cost->stem_flops;
  for (int i = 0; i < config->blocks; i++) {
    if (esp_layer_kind_of(config, i) != ESP_LAYER_DENSE) runs = config->moe.members;
    count_block(&cost->layers[i], &(place){config, layouts[i], tokens, i, runs, measured});
    add_layer(cost, &cost->layers[i]);
  }
  cost->head_flops = runs * 2.0 * (double)head;
  cost->flops += cost->head_flops;
  cost->flops_selected += cost->head_flops;
}

void esp_config_cost(const esp_model_config *config, const esp_expert_layout *layouts, esp_model_cost *cost) {
  const esp_expert_layout *all[ESP_MAX_BLOCKS] = {NULL};
  for (int i = 0; layouts && i < config->blocks; i++) all[i] = &layouts[i];
  count_all(config, all, NULL, cost);
}

void esp_model_cost_measured(const esp_model *model, const double *rows_per_token, esp_model_cost *cost) {
  const esp_expert_layout *all[ESP_MAX_BLOCKS] = {NULL};
  for (int i = 0; i < model->config.blocks; i++)
    if (model->blocks[i].kind != ESP_LAYER_DENSE) all[i] = &model->blocks[i].moe.layout;
  count_all(&model->config, all, rows_per_token, cost);
}

void esp_model_cost_of(const esp_model *model, esp_model_cost *cost) { esp_model_cost_measured(model, NULL, cost); }
