/* Exact single-expert damage with rerouting (arXiv 2606.15716): what the layer's output loses if one expert is removed
 * and the router's next choice takes its tokens, sum over the tokens routed to it of ||y - y without it||. Every expert
 * runs once on every token; nothing is kept from one batch to the next. */
#include "criteria_internal.h"
#include <espalier/recombine.h>
#include <espalier/memory.h>

#include <math.h>
#include <string.h>

typedef struct damage_watch {
  const esp_model *model;
  esp_plan *plan;
  esp_tape *tape;
  esp_status status;
  esp_real *experts, *y, *without; /* [stored, T, width], [T, width] each; of the batch */
} damage_watch;

static esp_status take_memory(damage_watch *w, const esp_moe *moe, int64_t tokens) {
  const size_t size = (size_t)(tokens * moe->bank.width) * sizeof(esp_real);
  w->experts = esp_alloc((size_t)moe->layout.stored, size);
  w->y = esp_alloc(1, size);
  w->without = esp_alloc(1, size);
  return w->experts && w->y && w->without ? ESP_OK : ESP_ERR_MEMORY;
}

static void free_memory(damage_watch *w) {
  esp_free(w->experts);
  esp_free(w->y);
  esp_free(w->without);
  w->experts = w->y = w->without = NULL;
}

/* Sums over the tokens routed to the expert: those of its slots that it served. */
static double lost(const damage_watch *w, const esp_moe_record *record, int expert) {
  const esp_routing *r = record->routing;
  const int64_t width = record->layer->bank.width;
  double sum = 0;
  for (int64_t slot = 0; slot < r->slots; slot++) {
    const int64_t at = r->token[slot] * width;
    if (r->choice[slot] != expert || r->row[slot] < 0 || !esp_record_counts(record, r->token[slot])) continue;
    double squares = 0;
    for (int64_t i = at; i < at + width; i++) {
      const double difference = (double)w->y[i] - (double)w->without[i];
      squares += difference * difference;
    }
    sum += sqrt(squares);
  }
  return sum;
}

static esp_status add_damage(damage_watch *w, const esp_moe_record *record, esp_layer_plan *plan) {
  const esp_moe *moe = record->layer;
  const esp_layer_batch batch = {.tokens = record->routing->tokens,
                                 .images = record->images * moe->config.members,
                                 .input = record->input->data,
                                 .logits = record->logits ? record->logits->data : NULL};
  esp_expert_layout without = moe->layout;
  ESP_TRY(take_memory(w, moe, batch.tokens));
  ESP_TRY(esp_run_every_expert(moe, w->tape, &batch, w->experts));
  ESP_TRY(
      esp_recombine(moe, w->tape, &batch, &(esp_recombination){.layout = &moe->layout, .experts = w->experts}, w->y));
  for (int e = 0; e < moe->layout.experts; e++) {
    if (moe->layout.index[e] < 0 || record->routing->served[e] == 0) continue;
    without.index[e] = esp_dropped_index(ESP_PRUNE_REMOVE, moe);
    ESP_TRY(esp_recombine(moe, w->tape, &batch, &(esp_recombination){.layout = &without, .experts = w->experts},
                          w->without));
    without.index[e] = moe->layout.index[e];
    plan->score[e] += lost(w, record, e);
  }
  return ESP_OK;
}

static void watch(void *context, const esp_moe_record *record) {
  damage_watch *w = context;
  for (int i = 0; w->status == ESP_OK && i < w->plan->layer_count; i++)
    if (esp_model_moe(w->model, i)->block == record->layer->block) {
      w->status = add_damage(w, record, &w->plan->layers[i]);
      free_memory(w);
    }
}

/* There must be someone to take the tokens. */
static esp_status check_replacements(const esp_model *model) {
  for (int i = 0; i < esp_model_moe_count(model); i++) {
    const esp_moe *moe = esp_model_moe(model, i);
    if (esp_routable_experts(&moe->layout) <= moe->config.top_k * moe->config.members)
      return esp_fail(ESP_ERR_MISMATCH,
                      "damage removes one expert and asks the next, but %s routes to all of its %d "
                      "experts (top_k); use a criterion by scores",
                      moe->scope, esp_routable_experts(&moe->layout));
  }
  return ESP_OK;
}

esp_status esp_score_damage(const esp_criterion *self, const esp_criterion_inputs *inputs, esp_plan *plan) {
  ESP_TRY(esp_check_recombination(inputs->model, self->name));
  ESP_TRY(check_replacements(inputs->model));
  damage_watch w = {.model = inputs->model, .plan = plan, .tape = esp_tape_create()};
  if (!w.tape) return ESP_ERR_MEMORY;
  const esp_observer observer = {watch, &w};
  const esp_status status = esp_calibration_pass(inputs->model, inputs->calibration, &observer);
  esp_tape_free(w.tape);
  return status == ESP_OK ? w.status : status;
}
