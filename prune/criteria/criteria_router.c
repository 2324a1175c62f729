/* Scores by what finetuning did to the routers (Chowdhury et al., arXiv 2405.16646). */
#include "criteria_internal.h"
#include <espalier/memory.h>
#include <espalier/router_change.h>
#include <espalier/run_config.h>

#include <stdio.h>
#include <string.h>

/* A router that was frozen since the reference did not move, so its norm says nothing. */
static esp_status check_routers_trained(const esp_criterion_inputs *inputs) {
  for (int h = inputs->reference_info->history_count; h < inputs->info->history_count; h++)
    for (int i = 0; i < esp_model_moe_count(inputs->model); i++) {
      const esp_history_entry *entry = &inputs->info->history[h];
      const esp_tensor *weights = esp_model_moe(inputs->model, i)->router;
      const char *router = weights ? weights->name : "";
      if (weights && esp_name_matches(entry->frozen, router))
        return esp_fail(
            ESP_ERR_MISMATCH,
            "router-norm-change needs routers that were trained, but %s was frozen (training.freeze=\"%s\") in the "
            "%s on %s; finetune with the routers trained, or use another criterion",
            router, entry->frozen, entry->action, entry->detail);
    }
  return ESP_OK;
}

/* Nor does a router's whose gates are 1 whatever it says: auxiliary losses alone may have moved it. */
static esp_status check_task_reaches_routers(const esp_criterion_inputs *inputs) {
  if (!esp_gates_are_constant(&inputs->model->config.moe)) return ESP_OK;
  return esp_fail(ESP_ERR_MISMATCH,
                  "router-norm-change needs routers that the task trained, but with model.moe.top_k 1 and "
                  "model.moe.router.%s a token's one gate is 1 whatever the router says, so that the task gave it no "
                  "gradient; finetune with that set to false, or use another criterion",
                  inputs->model->config.moe.router.renormalise ? "renormalise" : "score_selected_only");
}

/* What the finetuning did that the paper's does not: its optimiser is SGD, and nothing decays (methods of arXiv
 * 2405.16646, section 5). A checkpoint from before there was router_decay decayed routers as all else. */
static void note_doubts(const esp_criterion_inputs *inputs, char note[ESP_PLAN_NOTE_SIZE]) {
  esp_run_config config;
  const char *const text = inputs->info->run_config;
  if (!text || esp_run_config_parse(&config, "the checkpoint", text, NULL, 0) != ESP_OK) return;
  const esp_optimizer_config *o = &config.optimizer;
  const double decay = o->weight_decay * (strstr(text, "router_decay") ? o->router_decay : 1);
  const bool adapts = o->kind != ESP_OPTIMIZER_SGD;
  if (!adapts && !(decay > 0)) return;
  char why[96] = "";
  if (decay > 0) snprintf(why, sizeof why, "%sdecayed routers by %g", adapts ? " and " : " ", decay);
  snprintf(
      note, ESP_PLAN_NOTE_SIZE,
      "the scores are doubtful: the finetuning%s%s, which moves the routers of experts that the task does not need "
      "as well; arXiv 2405.16646 finetunes by SGD (optimizer.kind=sgd) without decay",
      adapts ? " took steps that do not shrink with the gradient (AdamW)" : "", why);
}

static esp_status check_something_moved(const esp_router_changes *changes) {
  for (int i = 0; i < changes->layer_count; i++)
    for (int e = 0; e < changes->layers[i].expert_count; e++)
      if (changes->layers[i].experts[e].difference_norm > 0) return ESP_OK;
  return esp_fail(ESP_ERR_MISMATCH,
                  "router-norm-change: no router differs from the reference's; give the finetuned model first "
                  "and the pretrained one it came from as the reference");
}

typedef enum change_form { SIGNED_CHANGE, ABSOLUTE_CHANGE, DIFFERENCE_NORM } change_form;

static esp_status score_change(const esp_criterion_inputs *inputs, esp_plan *plan, change_form form) {
  if (!inputs->reference || !inputs->reference_info)
    return esp_fail(ESP_ERR_USAGE, "%s compares with the model from before finetuning, and no reference was given",
                    plan->criterion);
  ESP_TRY(check_routers_trained(inputs));
  ESP_TRY(check_task_reaches_routers(inputs));
  esp_router_changes *changes;
  ESP_TRY(esp_router_changes_create(&changes, inputs->model, inputs->reference));
  const esp_status status = check_something_moved(changes);
  for (int i = 0; status == ESP_OK && i < plan->layer_count; i++)
    for (int e = 0; e < plan->layers[i].experts; e++) {
      const esp_router_change *c = &changes->layers[i].experts[e];
      plan->layers[i].score[e] = form == SIGNED_CHANGE     ? c->signed_change
                                 : form == ABSOLUTE_CHANGE ? c->absolute_change
                                                           : c->difference_norm;
    }
  esp_router_changes_free(changes);
  if (status == ESP_OK) note_doubts(inputs, plan->note);
  return status;
}

esp_status esp_score_signed_change(const esp_criterion *self, const esp_criterion_inputs *inputs, esp_plan *plan) {
  (void)self;
  return score_change(inputs, plan, SIGNED_CHANGE);
}

esp_status esp_score_absolute_change(const esp_criterion *self, const esp_criterion_inputs *inputs, esp_plan *plan) {
  (void)self;
  return score_change(inputs, plan, ABSOLUTE_CHANGE);
}

esp_status esp_score_difference_norm(const esp_criterion *self, const esp_criterion_inputs *inputs, esp_plan *plan) {
  (void)self;
  return score_change(inputs, plan, DIFFERENCE_NORM);
}
