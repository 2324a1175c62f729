/* Budgets: how many experts go, and the lowest scores first. */
#include <espalier/parameters.h>
#include <espalier/plan.h>

#include <math.h>
#include <string.h>

static bool is_excluded(const esp_prune_budget *budget, const esp_layer_plan *layer) {
  return budget->exclude && *budget->exclude && esp_name_matches(budget->exclude, layer->scope);
}

static int alive(const esp_layer_plan *layer) { return layer->experts - esp_plan_dropped(layer); }

/* What the mode and the floor leave in a layer, for each of an E3's members. */
static int least_left(const esp_plan *plan, const esp_moe *moe, const esp_prune_budget *budget) {
  const int members = moe->config.members, floor = (budget->floor + members - 1) / members;
  const int least = plan->mode == ESP_PRUNE_ZERO ? 1 : moe->config.top_k;
  return floor > least ? floor : least;
}

/* --- checks ------------------------------------------------------------------------------------------------ */

static esp_status check_ratio(const esp_prune_budget *budget) {
  if (budget->drop >= 0 || (budget->ratio >= 0 && budget->ratio < 1)) return ESP_OK;
  return esp_fail(ESP_ERR_USAGE, "the ratio of experts to drop is %g; it must lie in [0, 1)", budget->ratio);
}

static esp_status check_scores(const esp_plan *plan) {
  for (int i = 0; i < plan->layer_count; i++)
    for (int e = 0; e < plan->layers[i].experts; e++)
      if (!isfinite(plan->layers[i].score[e]))
        return esp_fail(ESP_ERR_NOT_FINITE,
                        "%s scores expert %d of %s with %g: are all parameters of the model finite?", plan->criterion,
                        e, plan->layers[i].scope, plan->layers[i].score[e]);
  return ESP_OK;
}

static esp_status check_exclusion(const esp_plan *plan, const esp_prune_budget *budget) {
  if (!budget->exclude || !*budget->exclude) return ESP_OK;
  int excluded = 0;
  for (int i = 0; i < plan->layer_count; i++) excluded += is_excluded(budget, &plan->layers[i]);
  if (excluded == 0)
    return esp_fail(ESP_ERR_USAGE, "\"%s\" excludes none of the mixture layers, %s to %s; give a pattern such as %s",
                    budget->exclude, plan->layers[0].scope, plan->layers[plan->layer_count - 1].scope,
                    plan->layers[0].scope);
  if (excluded == plan->layer_count)
    return esp_fail(ESP_ERR_USAGE, "\"%s\" excludes all %d mixture layers, so nothing is left to prune",
                    budget->exclude, excluded);
  return ESP_OK;
}

static esp_status check_left(const esp_plan *plan, const esp_layer_plan *layer, const esp_moe *moe, int drop,
                             const esp_prune_budget *budget) {
  static const char *const reasons[] = {"", " (the router's top_k)", " (the router's top_k)"};
  const int members = moe->config.members, least = members * least_left(plan, moe, budget), has = alive(layer);
  if (drop % members)
    return esp_fail(ESP_ERR_USAGE,
                    "%s shares its experts out among %d ensemble members, each of which must lose the "
                    "same number, but %d are to go; drop a multiple of %d",
                    layer->scope, members, drop, members);
  if (has - drop >= least) return ESP_OK;
  if (budget->floor >= least)
    return esp_fail(ESP_ERR_USAGE, "%s has %d experts; dropping %d would leave %d, but the floor is %d", layer->scope,
                    has, drop, has - drop, budget->floor);
  return esp_fail(ESP_ERR_USAGE, "%s has %d experts; dropping %d would leave %d, but mode %s needs at least %d%s",
                  layer->scope, has, drop, has - drop, esp_prune_mode_name(plan->mode), least, reasons[plan->mode]);
}

/* --- per layer --------------------------------------------------------------------------------------------- */

/* The ratio's tenths and thirds are not exact: 0.3 of 10 are 3. */
static int share_of(double ratio, int experts) { return (int)floor(ratio * experts + 1e-9); }

static int layer_count(const esp_prune_budget *budget, const esp_layer_plan *layer, int members) {
  if (is_excluded(budget, layer)) return 0;
  return budget->drop >= 0 ? budget->drop : members * share_of(budget->ratio, alive(layer) / members);
}

static int alive_in(const esp_layer_plan *layer, int begin, int end) {
  int count = 0;
  for (int e = begin; e < end; e++) count += layer->target[e] >= 0;
  return count;
}

/* A pruned E3 may have lost more in one member than in another. */
static esp_status check_members(const esp_plan *plan, const esp_layer_plan *layer, const esp_moe *moe, int drop,
                                const esp_prune_budget *budget) {
  const int members = moe->config.members, own = layer->experts / members;
  for (int m = 0; members > 1 && m < members; m++) {
    const int has = alive_in(layer, m * own, (m + 1) * own);
    if (has - drop / members < least_left(plan, moe, budget))
      return esp_fail(ESP_ERR_USAGE, "member %d of %s has %d experts; dropping %d would leave too few; drop fewer", m,
                      layer->scope, has, drop / members);
  }
  return ESP_OK;
}

esp_status esp_plan_counts(const esp_plan *plan, const esp_model *model, const esp_prune_budget *budget, int *drops) {
  ESP_TRY(check_ratio(budget));
  ESP_TRY(check_exclusion(plan, budget));
  for (int i = 0; i < plan->layer_count; i++) {
    const esp_moe *moe = esp_model_moe(model, i);
    drops[i] = layer_count(budget, &plan->layers[i], moe->config.members);
    if (drops[i] == 0) continue;
    ESP_TRY(check_left(plan, &plan->layers[i], moe, drops[i], budget));
    ESP_TRY(check_members(plan, &plan->layers[i], moe, drops[i], budget));
  }
  return ESP_OK;
}

/* Finds it among experts [begin, end); -1 if none has weights. */
static int lowest(const esp_layer_plan *layer, int begin, int end) {
  int found = -1;
  for (int e = begin; e < end; e++)
    if (layer->target[e] >= 0 && (found < 0 || layer->score[e] <= layer->score[found])) found = e;
  return found;
}

static void drop_in_layer(esp_plan *plan, int i, int members, int drop) {
  const esp_layer_plan *layer = &plan->layers[i];
  const int own = layer->experts / members;
  for (int m = 0; m < members; m++)
    for (int n = 0; n < drop / members; n++) esp_plan_drop(plan, i, lowest(layer, m * own, (m + 1) * own));
}

static esp_status drop_by_layer(esp_plan *plan, const esp_model *model, const esp_prune_budget *budget) {
  int drops[ESP_MAX_BLOCKS];
  ESP_TRY(esp_plan_counts(plan, model, budget, drops));
  for (int i = 0; i < plan->layer_count; i++) drop_in_layer(plan, i, esp_model_moe(model, i)->config.members, drops[i]);
  return ESP_OK;
}

/* --- over all layers --------------------------------------------------------------------------------------- */

static int can_lose(const esp_plan *plan, const esp_model *model, const esp_prune_budget *budget, int i) {
  if (is_excluded(budget, &plan->layers[i])) return 0;
  const int spare = alive(&plan->layers[i]) - least_left(plan, esp_model_moe(model, i), budget);
  return spare > 0 ? spare : 0;
}

static esp_status global_count(const esp_plan *plan, const esp_model *model, const esp_prune_budget *budget,
                               int *total) {
  int layers = 0, experts = 0, most = 0;
  for (int i = 0; i < plan->layer_count; i++) {
    if (is_excluded(budget, &plan->layers[i])) continue;
    layers++;
    experts += alive(&plan->layers[i]);
    most += can_lose(plan, model, budget, i);
  }
  *total = budget->drop >= 0 ? budget->drop * layers : share_of(budget->ratio, experts);
  if (*total <= most) return ESP_OK;
  return esp_fail(ESP_ERR_USAGE,
                  "%d of %d experts in %d layers are to go, but only %d can: mode %s and the floor of %d "
                  "keep the others",
                  *total, experts, layers, most, esp_prune_mode_name(plan->mode), budget->floor);
}

static void drop_lowest_of_all(esp_plan *plan, const esp_model *model, const esp_prune_budget *budget) {
  int best = -1, expert = -1;
  for (int i = 0; i < plan->layer_count; i++) {
    if (can_lose(plan, model, budget, i) == 0) continue;
    const int e = lowest(&plan->layers[i], 0, plan->layers[i].experts);
    if (best < 0 || plan->layers[i].score[e] <= plan->layers[best].score[expert]) best = i, expert = e;
  }
  esp_plan_drop(plan, best, expert);
}

static esp_status drop_globally(esp_plan *plan, const esp_model *model, const esp_prune_budget *budget) {
  int total;
  if (model->config.moe.members > 1)
    return esp_fail(ESP_ERR_USAGE,
                    "a global budget and an ensemble of %d members do not go together: each member must "
                    "lose the same number of experts; use a budget per layer",
                    model->config.moe.members);
  ESP_TRY(check_ratio(budget));
  ESP_TRY(check_exclusion(plan, budget));
  ESP_TRY(global_count(plan, model, budget, &total));
  for (int n = 0; n < total; n++) drop_lowest_of_all(plan, model, budget);
  return ESP_OK;
}

esp_status esp_plan_drop_lowest(esp_plan *plan, const esp_model *model, const esp_prune_budget *budget) {
  ESP_TRY(check_scores(plan));
  return budget->global ? drop_globally(plan, model, budget) : drop_by_layer(plan, model, budget);
}
