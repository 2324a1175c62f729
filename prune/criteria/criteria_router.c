/* Scores by what finetuning did to the routers (Chowdhury et al., arXiv 2405.16646). */
#include "criteria_internal.h"
#include <espalier/router_change.h>

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

static esp_status check_something_moved(const esp_router_changes *changes) {
  for (int i = 0; i < changes->layer_count; i++)
    for (int e = 0; e < changes->layers[i].expert_count; e++)
      if (changes->layers[i].experts[e].difference_norm > 0) return ESP_OK;
  return esp_fail(ESP_ERR_MISMATCH,
                  "router-norm-change: no router differs from the reference's; give the finetuned model first "
                  "and the pretrained one it came from as --reference");
}

typedef enum change_form { SIGNED_CHANGE, ABSOLUTE_CHANGE, DIFFERENCE_NORM } change_form;

static esp_status score_change(const esp_criterion_inputs *inputs, esp_plan *plan, change_form form) {
  if (!inputs->reference || !inputs->reference_info)
    return esp_fail(ESP_ERR_USAGE, "%s compares with the model from before finetuning, and no reference was given",
                    plan->criterion);
  ESP_TRY(check_routers_trained(inputs));
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
