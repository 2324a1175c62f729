#include <espalier/moe_layer.h>
#include <espalier/ops.h>

#include <math.h>
#include <stdio.h>

static const double router_deviation = 0.02;

static esp_status check_layout(const esp_moe *moe) {
  const int routable = esp_routable_experts(&moe->layout);
  if (moe->layout.stored < 1)
    return esp_fail(ESP_ERR_CONFIG, "%s has no stored expert; a mixture layer needs at least one", moe->scope);
  if (moe->config.top_k > routable)
    return esp_fail(ESP_ERR_CONFIG, "%s can route to %d of its %d experts, but model.moe.top_k is %d", moe->scope,
                    routable, moe->layout.experts, moe->config.top_k);
  return ESP_OK;
}

esp_status esp_moe_declare(esp_moe *moe, esp_parameters *parameters, const char *scope, int block,
                           const esp_model_config *config, const esp_expert_layout *layout, double residual_scale) {
  const esp_layer_kind kind = esp_layer_kind_of(config, block);
  *moe = (esp_moe){.scope = scope,
                   .block = block,
                   .kind = kind,
                   .config = config->moe,
                   .neurons_kept = esp_neurons_kept(config, kind),
                   .has_shared = config->moe.shared_hidden > 0};
  if (layout)
    moe->layout = *layout;
  else
    esp_expert_layout_full(&moe->layout, config->moe.experts);
  ESP_TRY(check_layout(moe));
  char bank_scope[64], shared_scope[64];
  snprintf(bank_scope, sizeof bank_scope, "%s.experts", scope);
  snprintf(shared_scope, sizeof shared_scope, "%s.shared", scope);
  const int64_t shape[] = {moe->layout.experts, config->width};
  ESP_TRY(esp_take_parameter(
      &moe->router, esp_parameters_add(parameters, scope, "router", ESP_KIND_ROUTER, 2, shape, router_deviation, 0)));
  ESP_TRY(esp_expert_bank_declare(&moe->bank, parameters, bank_scope, moe->layout.stored, config->width,
                                  config->moe.hidden, &config->feed_forward, residual_scale,
                                  config->moe.identical_experts));
  if (!moe->has_shared) return ESP_OK;
  return esp_expert_bank_declare(&moe->shared, parameters, shared_scope, 0, config->width, config->moe.shared_hidden,
                                 &config->feed_forward, residual_scale, false);
}

static void add_loss(esp_auxiliary_losses *losses, const char *kind, int block, double weight, esp_tensor *raw) {
  losses->loss[losses->count++] = (esp_auxiliary_loss){kind, block, weight, raw};
}

static void add_losses(const esp_moe *moe, esp_tape *tape, esp_tensor *logits, esp_tensor *scores,
                       const esp_routing *routing, esp_auxiliary_losses *losses) {
  const esp_router_config *config = &moe->config.router;
  if (config->balance_weight > 0)
    add_loss(losses, "balance", moe->block, config->balance_weight,
             esp_balance_loss(tape, scores, routing, &moe->layout));
  if (config->z_weight > 0) add_loss(losses, "z", moe->block, config->z_weight, esp_z_loss(tape, logits, &moe->layout));
}

esp_tensor *esp_moe_forward(const esp_moe *moe, esp_tape *tape, esp_tensor *x, const esp_pass *pass,
                            esp_auxiliary_losses *losses) {
  if (!x) return NULL;
  esp_tensor *tokens = esp_reshape(tape, x, 2, (const int64_t[]){esp_tensor_rows(x), esp_tensor_columns(x)});
  esp_tensor *logits = esp_linear_map(tape, tokens, moe->router, NULL);
  const esp_routing *routing;
  esp_tensor *scores;
  esp_tensor *gates = esp_route(tape, logits, moe->config.top_k, &moe->config.router, &moe->layout, pass->training,
                                pass->seed, pass->step * ESP_MAX_BLOCKS + (uint64_t)moe->block, &scores, &routing);
  if (!gates) return NULL;
  add_losses(moe, tape, logits, scores, routing, losses);
  esp_bank_trace trace;
  esp_tensor *rows = esp_dispatch(tape, tokens, routing);
  rows = esp_expert_bank_forward(&moe->bank, tape, rows, routing->first_row, moe->neurons_kept, &trace);
  esp_tensor *y = esp_combine(tape, rows, gates, routing);
  if (moe->has_shared) y = esp_add(tape, y, esp_expert_bank_forward_all(&moe->shared, tape, tokens));
  if (y && pass->observer)
    pass->observer->moe(pass->observer->context,
                        &(esp_moe_record){moe, routing, tokens, y, logits, scores, gates, trace});
  return y;
}
