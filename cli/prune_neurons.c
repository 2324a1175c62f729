/* The part of prune that cuts neurons: its arguments and what it prints. */
#include "commands_internal.h"

#include <stdio.h>
#include <string.h>

static esp_status read_budget(esp_neuron_budget *budget, const arguments *a) {
  if (!a->below == !a->ratio)
    return esp_fail(ESP_ERR_USAGE,
                    "give either --ratio R (the share of the neurons to cut) or --below P (those selected in "
                    "less than a share P of their expert's rows)");
  *budget = (esp_neuron_budget){.exclude = a->exclude, .by_layer = a->budget && strcmp(a->budget, "layer") == 0};
  if (a->budget && !budget->by_layer && strcmp(a->budget, "expert") != 0)
    return esp_fail(ESP_ERR_USAGE,
                    "--budget is \"%s\"; for neurons it must be expert (default: each loses the same share) or layer "
                    "(the lowest scores of all experts of a layer)",
                    a->budget);
  if (a->ratio) return real_number("--ratio", a->ratio, 0, 1, &budget->ratio);
  ESP_TRY(real_number("--below", a->below, 0, 1, &budget->below));
  return budget->below > 0 ? ESP_OK : esp_fail(ESP_ERR_USAGE, "--below is %s; it must be above 0", a->below);
}

esp_status read_neuron_pruning(const esp_neuron_criterion **criterion, esp_neuron_budget *budget, const arguments *a) {
  ESP_TRY(blame("--criterion", esp_neuron_criterion_find(criterion, a->criterion)));
  if (a->drop || a->mode || a->reference || a->floor || a->gates || a->loss)
    return esp_fail(
        ESP_ERR_USAGE,
        "--criterion %s cuts neurons, not experts: leave out --drop, --mode, --reference, --floor, --gates and "
        "--loss",
        a->criterion);
  if ((*criterion)->needs_data && !a->data)
    return esp_fail(
        ESP_ERR_USAGE,
        "--criterion %s looks at what neurons do with data: give --data, those of the task the model is for",
        a->criterion);
  if (!(*criterion)->needs_data)
    ESP_TRY(refuse_options(a, "--data --calibration --validation",
                           "a criterion of neurons that looks at no data was chosen"));
  if (!(*criterion)->needs_data && !(*criterion)->uses_seed)
    ESP_TRY(refuse_options(a, "--seed", "the criterion draws nothing"));
  return read_budget(budget, a);
}

void describe_neurons(const esp_neuron_budget *budget, char *text, size_t size) {
  if (budget->below > 0) snprintf(text, size, "below %g", budget->below);
  else snprintf(text, size, "ratio %g of each %s's neurons", budget->ratio, budget->by_layer ? "layer" : "expert");
}

void print_neurons(const esp_layer_plan *layer) {
  int64_t first;
  if (!layer->neuron.stored) return;
  printf("%s: cuts %lld of %lld neurons; its experts have", layer->scope, (long long)esp_plan_neurons_cut(layer),
         (long long)layer->neuron.count);
  for (int s = 0; s < layer->neuron.stored; s++) printf(" %d", esp_plan_neurons_left(layer, s, &first));
  putchar('\n');
}

json_t *neurons_left_json(const esp_layer_plan *layer) {
  json_t *left = json_array();
  int64_t first;
  for (int s = 0; s < layer->neuron.stored; s++)
    json_array_append_new(left, json_integer(esp_plan_neurons_left(layer, s, &first)));
  return left;
}
