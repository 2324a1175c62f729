#include <espalier/moe_layer.h>
#include <espalier/ops.h>

#include <math.h>
#include <stdio.h>

static const double router_deviation = 0.02;

const char *esp_loss_kind_name(esp_loss_kind kind) {
  static const char *const names[ESP_LOSS_KINDS] = {"balance", "importance",     "load",        "z",
                                                    "entropy", "neuron_balance", "distillation"};
  return names[kind];
}

/* --- declaration ----------------------------------------------------------------------------------------- */

static int routable_of_member(const esp_moe *moe, int member) {
  const int own = moe->layout.experts / moe->config.members;
  int count = 0;
  for (int e = member * own; e < (member + 1) * own; e++) count += moe->layout.index[e] != ESP_EXPERT_MASKED;
  return count;
}

static esp_status check_layout(const esp_moe *moe) {
  const int members = moe->config.members;
  if (moe->layout.stored < 1)
    return esp_fail(ESP_ERR_CONFIG, "%s has no stored expert; a mixture layer needs at least one", moe->scope);
  for (int s = 0; s < moe->layout.stored; s++)
    if (moe->layout.widths[s] < 0)
      return esp_fail(ESP_ERR_CONFIG, "%s gives its stored expert %d a width of %d; it must be positive", moe->scope, s,
                      (int)moe->layout.widths[s]);
  if (moe->layout.experts % members)
    return esp_fail(ESP_ERR_CONFIG, "%s has %d experts, which %d members cannot share out evenly", moe->scope,
                    moe->layout.experts, members);
  for (int m = 0; m < members; m++)
    if (moe->config.top_k > routable_of_member(moe, m))
      return esp_fail(ESP_ERR_CONFIG, "%s can route to %d of its %d experts, but model.moe.top_k is %d", moe->scope,
                      routable_of_member(moe, m), moe->layout.experts / members, moe->config.top_k);
  if (moe->config.router.policy == ESP_ROUTER_SOFT && esp_routable_experts(&moe->layout) < moe->layout.experts)
    return esp_fail(ESP_ERR_CONFIG,
                    "%s has masked experts, but policy soft mixes all; remove their router rows instead", moe->scope);
  return ESP_OK;
}

/* One row an expert; Soft MoE: one an expert and slot. */
static esp_status declare_router(esp_moe *moe, esp_parameters *parameters, const esp_model_config *config) {
  int rows, columns;
  esp_token_grid(config, &rows, &columns);
  const int64_t experts = moe->layout.experts, slots = esp_soft_slots(&config->moe, (int64_t)rows * columns);
  const bool soft = config->moe.router.policy == ESP_ROUTER_SOFT;
  if (moe->policy->has_weights)
    ESP_TRY(esp_take_parameter(
        &moe->router,
        esp_parameters_add(parameters, moe->scope, "router",
                           &(esp_parameter_options){.kind = ESP_KIND_ROUTER,
                                                    .rank = soft ? 3 : 2,
                                                    .shape = {experts, soft ? slots : config->width, config->width},
                                                    .deviation = router_deviation})));
  if (!(config->moe.router.bias_rate > 0)) return ESP_OK;
  return esp_take_parameter(
      &moe->router_bias,
      esp_parameters_add(parameters, moe->scope, "router_bias",
                         &(esp_parameter_options){.kind = ESP_KIND_STATE, .rank = 1, .shape = {experts}}));
}

/* The loss is a mean over the layers that select neurons. */
static double neuron_balance_weight(const esp_model_config *config) {
  int layers = 0;
  for (int i = 0; i < config->blocks; i++) layers += esp_layer_kind_of(config, i) == ESP_LAYER_MONE;
  return config->moe.neuron_balance_weight / (layers ? layers : 1);
}

esp_status esp_moe_declare(esp_moe *moe, esp_parameters *parameters, const char *scope,
                           const esp_moe_options *options) {
  const esp_model_config *config = options->config;
  const esp_layer_kind kind = esp_layer_kind_of(config, options->block);
  *moe = (esp_moe){.scope = scope,
                   .block = options->block,
                   .kind = kind,
                   .config = config->moe,
                   .neurons_kept = esp_neurons_kept(config, options->block),
                   .neuron_balance_weight = neuron_balance_weight(config),
                   .policy = esp_router_policy_of(config->moe.router.policy),
                   .has_shared = config->moe.shared_hidden > 0};
  if (options->layout) moe->layout = *options->layout;
  else esp_expert_layout_full(&moe->layout, config->moe.experts);
  ESP_TRY(check_layout(moe));
  char problem[ESP_LAYOUT_PROBLEM_SIZE];
  if (esp_factoring_problem(&moe->layout, config, problem)) return esp_fail(ESP_ERR_CONFIG, "%s %s", scope, problem);
  const int hidden = esp_widest(&moe->layout, config->moe.hidden);
  esp_settle_widths(&moe->layout, config->moe.hidden);
  if (moe->neurons_kept > hidden || kind != ESP_LAYER_MONE) moe->neurons_kept = hidden;
  char bank_scope[64], shared_scope[64];
  snprintf(bank_scope, sizeof bank_scope, "%s.experts", scope);
  snprintf(shared_scope, sizeof shared_scope, "%s.shared", scope);
  ESP_TRY(declare_router(moe, parameters, config));
  const esp_expert_bank_options bank = {.experts = moe->layout.stored,
                                        .width = config->width,
                                        .hidden = hidden,
                                        .widths =
                                            esp_is_ragged(&moe->layout, config->moe.hidden) ? moe->layout.widths : NULL,
                                        .factored = moe->layout.rank ? &moe->layout : NULL,
                                        .config = &config->feed_forward,
                                        .residual_scale = options->residual_scale,
                                        .identical = config->moe.identical_experts};
  ESP_TRY(esp_expert_bank_declare(&moe->bank, parameters, bank_scope, &bank));
  moe->bank.ranking = config->moe.neuron_ranking;
  if (!moe->has_shared) return ESP_OK;
  return esp_expert_bank_declare(&moe->shared, parameters, shared_scope,
                                 &(esp_expert_bank_options){.width = config->width,
                                                            .hidden = config->moe.shared_hidden,
                                                            .config = &config->feed_forward,
                                                            .residual_scale = options->residual_scale});
}

int64_t esp_router_vector_size(const esp_moe *moe) {
  return moe->router ? esp_tensor_count(moe->router) / moe->layout.experts : 0;
}

double esp_router_norm(const esp_moe *moe, int expert) {
  if (!moe->router) return NAN;
  const int64_t size = esp_router_vector_size(moe);
  const esp_real *weights = moe->router->data + expert * size;
  double squares = 0;
  for (int64_t i = 0; i < size; i++) squares += (double)weights[i] * (double)weights[i];
  return sqrt(squares);
}

/* --- forward --------------------------------------------------------------------------------------------- */

static esp_tensor *multiply_by_router(const esp_moe *moe, esp_tape *tape, esp_tensor *tokens) {
  esp_tensor *router = moe->router;
  const int64_t width = esp_tensor_columns(router);
  if (router->rank == 3) router = esp_reshape(tape, router, 2, (const int64_t[]){esp_tensor_rows(router), width});
  if (!moe->config.router.cosine) return esp_linear_map(tape, tokens, router, NULL);
  esp_tensor *logits = esp_linear_map(tape, esp_unit_rows(tape, tokens), esp_unit_rows(tape, router), NULL);
  return esp_scale(tape, logits, 1 / moe->config.router.temperature);
}

/* tokens [T, width] -> [T, rows of the router], by products or by cosines over a temperature; in fp32 always, for
 * choices hang on small differences. */
static esp_tensor *make_logits(const esp_moe *moe, esp_tape *tape, esp_tensor *tokens) {
  if (!moe->router) return NULL;
  const esp_precision precision = esp_tape_precision(tape);
  esp_tape_set_precision(tape, ESP_FP32);
  esp_tensor *logits = multiply_by_router(moe, tape, tokens);
  esp_tape_set_precision(tape, precision);
  return logits;
}

static void add_loss(esp_auxiliary_losses *losses, esp_loss_kind kind, int block, double weight, esp_tensor *raw) {
  losses->loss[losses->count++] = (esp_auxiliary_loss){kind, block, weight, raw};
}

/* Only token choice can be unbalanced: the others' loads are even, or nobody's choice. */
static void add_losses(const esp_moe *moe, esp_tape *tape, const esp_route_request *request, const esp_routed *routed,
                       esp_auxiliary_losses *losses) {
  const esp_router_config *c = &moe->config.router;
  const int block = moe->block;
  const bool chooses = c->policy == ESP_ROUTER_TOKEN_CHOICE;
  if (chooses && c->balance_weight > 0)
    add_loss(losses, ESP_LOSS_BALANCE, block, c->balance_weight,
             esp_balance_loss(tape, routed->scores, routed->routing, request));
  if (c->importance_weight > 0)
    add_loss(losses, ESP_LOSS_IMPORTANCE, block, c->importance_weight,
             esp_importance_loss(tape, routed->logits, request));
  if (c->load_weight > 0 && request->training)
    add_loss(losses, ESP_LOSS_LOAD, block, c->load_weight, esp_load_loss(tape, routed->logits, routed->noisy, request));
  if (c->z_weight > 0) add_loss(losses, ESP_LOSS_Z, block, c->z_weight, esp_z_loss(tape, routed->logits, request));
  if (c->entropy_weight != 0)
    add_loss(losses, ESP_LOSS_ENTROPY, block, c->entropy_weight, esp_entropy_loss(tape, routed->logits, request));
}

static void add_neuron_loss(const esp_moe *moe, esp_tape *tape, const esp_bank_trace *trace, const int64_t *first_row,
                            esp_auxiliary_losses *losses) {
  if (!(moe->neuron_balance_weight > 0) || !trace->mask) return;
  const esp_neuron_balance balance = {.kind = moe->config.neuron_balance,
                                      .gate = esp_activation_gate(moe->bank.activation),
                                      .kept = moe->neurons_kept,
                                      .experts = moe->bank.experts,
                                      .first_row = first_row,
                                      .widths = moe->bank.widths};
  add_loss(losses, ESP_LOSS_NEURON_BALANCE, moe->block, moe->neuron_balance_weight,
           esp_neuron_balance_loss(tape, trace->pre, trace->mask, moe->bank.hidden, &balance));
}

esp_route_request esp_moe_request(const esp_moe *moe, int64_t tokens, int64_t images, const esp_pass *pass) {
  return (esp_route_request){.config = &moe->config.router,
                             .layout = &moe->layout,
                             .k = moe->config.top_k,
                             .original_experts = moe->config.experts,
                             .members = moe->config.members,
                             .block = moe->block,
                             .tokens = tokens,
                             .images = images,
                             .training = pass->training,
                             .seed = pass->seed,
                             .stream = pass->step * ESP_MAX_BLOCKS + (uint64_t)moe->block,
                             .bias = moe->router_bias ? moe->router_bias->data : NULL,
                             .choices = pass->choices ? pass->choices[moe->block] : NULL};
}

static void notify(const esp_moe *moe, const esp_pass *pass, const esp_route_request *request, esp_moe_record record) {
  if (!record.output || !pass->observer) return;
  record.layer = moe;
  record.labels = pass->labels;
  record.padding = pass->padding;
  record.tokens_per_image = request->tokens / request->images;
  record.images = request->images / request->members;
  pass->observer->moe(pass->observer->context, &record);
}

/* What observers and filters look at is computed in full. */
static esp_tensor *run_experts(const esp_moe *moe, esp_tape *tape, esp_tensor *rows, const int64_t *first_row,
                               const esp_pass *pass, esp_bank_trace *trace) {
  const esp_neuron_filter *filter = pass->filter;
  if (filter && filter->block >= 0 && filter->block != moe->block) filter = NULL;
  if (!filter && !pass->observer &&
      esp_expert_bank_gathers(&moe->bank, tape, first_row, moe->neurons_kept, pass->neurons))
    return esp_expert_bank_gather(&moe->bank, tape, rows, first_row, moe->neurons_kept);
  return esp_expert_bank_forward(&moe->bank, tape, rows, first_row,
                                 &(esp_neuron_options){.kept = moe->neurons_kept, .filter = filter}, trace);
}

esp_tensor *esp_moe_forward(const esp_moe *moe, esp_tape *tape, esp_tensor *x, const esp_pass *pass,
                            esp_auxiliary_losses *losses) {
  if (!x) return NULL;
  const esp_route_request request = esp_moe_request(moe, esp_tensor_rows(x), x->shape[0], pass);
  esp_tensor *tokens = esp_reshape(tape, x, 2, (const int64_t[]){request.tokens, esp_tensor_columns(x)});
  esp_route_request *kept = esp_tape_take(tape, sizeof *kept);
  if (!kept) return NULL;
  *kept = request;
  esp_routed routed = {.logits = make_logits(moe, tape, tokens)};
  moe->policy->route(tape, kept, &routed);
  if (!routed.routing) return NULL;
  losses->routing[moe->block] = routed.routing;
  add_losses(moe, tape, kept, &routed, losses);
  esp_bank_trace trace = {0};
  esp_tensor *dispatched = moe->policy->dispatch(tape, tokens, &routed);
  esp_tensor *rows = run_experts(moe, tape, dispatched, routed.routing->first_row, pass, &trace);
  if (!routed.dispatch_weights) esp_tape_forget(tape, dispatched); /* copies, but for Soft MoE's products */
  add_neuron_loss(moe, tape, &trace, routed.routing->first_row, losses);
  esp_tensor *y = moe->policy->combine(tape, rows, &routed);
  if (moe->has_shared) y = esp_add(tape, y, esp_expert_bank_forward_all(&moe->shared, tape, tokens));
  notify(moe, pass, &request,
         (esp_moe_record){.routing = routed.routing,
                          .input = tokens,
                          .output = y,
                          .logits = routed.scores ? routed.logits : NULL,
                          .scores = routed.scores,
                          .slot_logits = routed.dispatch_weights ? routed.logits : NULL,
                          .gates = routed.gates,
                          .experts = trace});
  esp_bank_trace_release(tape, &trace);
  return y;
}
