#include <espalier/criteria.h>
#include <espalier/random.h>
#include <espalier/router_change.h>

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
    return esp_fail(ESP_ERR_USAGE, "%s compares with the model from before finetuning, and no reference was given", plan->criterion);
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

static esp_status score_signed(const esp_criterion_inputs *inputs, esp_plan *plan) {
  return score_change(inputs, plan, SIGNED_CHANGE);
}

static esp_status score_absolute(const esp_criterion_inputs *inputs, esp_plan *plan) {
  return score_change(inputs, plan, ABSOLUTE_CHANGE);
}

static esp_status score_difference(const esp_criterion_inputs *inputs, esp_plan *plan) {
  return score_change(inputs, plan, DIFFERENCE_NORM);
}

static esp_status score_random(const esp_criterion_inputs *inputs, esp_plan *plan) {
  for (int i = 0; i < plan->layer_count; i++) {
    esp_random stream =
        esp_random_stream(inputs->seed, ESP_PURPOSE_PRUNE, (uint64_t)esp_model_moe(inputs->model, i)->block);
    for (int e = 0; e < plan->layers[i].experts; e++) plan->layers[i].score[e] = esp_random_uniform(&stream);
  }
  return ESP_OK;
}

static const esp_criterion table[] = {
    {"router-norm-change", "|w_T| - |w_0|: signed change of the router row's L2 norm since the reference",
     "Chowdhury et al., ICML 2024, arXiv 2405.16646", true, ESP_PRUNE_ZERO, score_signed},
    {"router-norm-change-absolute", "||w_T| - |w_0||: its absolute value", "ablation of the same", true, ESP_PRUNE_ZERO,
     score_absolute},
    {"router-difference-norm", "|w_T - w_0|: norm of the difference", "ablation of the same", true, ESP_PRUNE_ZERO,
     score_difference},
    {"random", "a uniform number, keyed by --seed and the layer", "the baseline every criterion has to beat", false,
     ESP_PRUNE_ZERO, score_random},
};

size_t esp_criterion_list(const esp_criterion **criteria) {
  *criteria = table;
  return sizeof table / sizeof table[0];
}

esp_status esp_criterion_find(const esp_criterion **criterion, const char *name) {
  const char *names[sizeof table / sizeof table[0]];
  for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
    names[i] = table[i].name;
    if (strcmp(name, table[i].name) != 0) continue;
    *criterion = &table[i];
    return ESP_OK;
  }
  const char *near = esp_nearest(name, names, sizeof table / sizeof table[0]);
  return esp_fail(ESP_ERR_USAGE, "--criterion %s is unknown%s%s; `espalier prune --help` lists them", name,
                  near ? "; did you mean " : "", near ? near : "");
}
