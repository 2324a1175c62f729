#include <espalier/grouping.h>
#include <espalier/memory.h>

#include <math.h>
#include <stdlib.h>

/* The experts among which groups are formed: a layer, or a member's share of it. */
typedef struct unit {
  esp_group_layer *layer;
  int first, end;
} unit;

static int own(const esp_group_layer *layer) { return layer->experts / layer->members; }

static unit unit_of(esp_group_layer *layer, int member) {
  return (unit){layer, member * own(layer), (member + 1) * own(layer)};
}

static int alive_in(const unit *u) {
  int alive = 0;
  for (int e = u->first; e < u->end; e++) alive += u->layer->alive[e];
  return alive;
}

/* The most used expert that is alive and not dominant yet; -1: none. */
static int most_used(const unit *u) {
  int best = -1;
  for (int e = u->first; e < u->end; e++) {
    if (!u->layer->alive[e] || u->layer->dominant[e] == e) continue;
    if (best < 0 || u->layer->frequency[e] > u->layer->frequency[best]) best = e;
  }
  return best;
}

static void choose(const unit *u, int groups) {
  for (int e = u->first; e < u->end; e++) u->layer->dominant[e] = -1;
  for (int i = 0; i < groups; i++) {
    const int e = most_used(u);
    u->layer->dominant[e] = e;
  }
}

/* What a unit is to keep, before a global budget evens it out among all. */
static esp_status wanted_groups(const unit *u, const esp_group_budget *budget, int *groups) {
  const int alive = alive_in(u), members = u->layer->members;
  *groups = alive;
  if (u->layer->excluded) return ESP_OK;
  if (budget->groups > 0 && budget->groups % members)
    return esp_fail(
        ESP_ERR_USAGE,
        "%s shares its experts out among %d ensemble members, which cannot have %d groups between them; ask "
        "for a multiple of %d",
        u->layer->scope, members, budget->groups, members);
  *groups = budget->groups > 0 ? budget->groups / members : alive - (int)floor(budget->ratio * alive + 1e-9);
  if (*groups > 0 && *groups <= alive) return ESP_OK;
  return esp_fail(ESP_ERR_USAGE, "%s has %d experts%s; they cannot form %d groups", u->layer->scope, alive,
                  members > 1 ? " a member" : "", *groups);
}

static esp_status choose_evenly(esp_group_layer *layers, int count, const esp_group_budget *budget) {
  for (int i = 0; i < count; i++)
    for (int m = 0; m < layers[i].members; m++) {
      const unit u = unit_of(&layers[i], m);
      int groups;
      ESP_TRY(wanted_groups(&u, budget, &groups));
      choose(&u, groups);
    }
  return ESP_OK;
}

/* --- global ------------------------------------------------------------------------------------------------ */

static int descending(const void *a, const void *b) {
  const double x = *(const double *)a, y = *(const double *)b;
  return (x < y) - (x > y);
}

/* An expert's frequency as the global budget counts it; `best`: the unit's most used one. */
static double counted(const unit *u, int e, int best) {
  return u->layer->excluded || e == best ? 1 : u->layer->frequency[e];
}

/* All counted frequencies, and how many groups all units together are to have. */
static esp_status gather(esp_group_layer *layers, int count, const esp_group_budget *budget, double *all, int64_t *size,
                         int64_t *total) {
  *size = *total = 0;
  for (int i = 0; i < count; i++)
    for (int m = 0; m < layers[i].members; m++) {
      const unit u = unit_of(&layers[i], m);
      int groups;
      ESP_TRY(wanted_groups(&u, budget, &groups));
      *total += groups;
      choose(&u, 0);
      const int best = most_used(&u);
      for (int e = u.first; e < u.end; e++)
        if (layers[i].alive[e]) all[(*size)++] = counted(&u, e, best);
    }
  return ESP_OK;
}

static int above(const unit *u, double threshold) {
  const int best = most_used(u);
  int groups = 0;
  for (int e = u->first; e < u->end; e++) groups += u->layer->alive[e] && counted(u, e, best) > threshold;
  return groups;
}

static esp_status choose_globally(esp_group_layer *layers, int count, const esp_group_budget *budget, double *all) {
  int64_t size, total;
  ESP_TRY(gather(layers, count, budget, all, &size, &total));
  qsort(all, (size_t)size, sizeof *all, descending);
  const double threshold = total < size ? all[total] : -1;
  if (threshold >= 1)
    return esp_fail(
        ESP_ERR_USAGE,
        "the budget leaves %lld groups, but every layer needs at least one and excluded layers keep all; ask "
        "for more",
        (long long)total);
  for (int i = 0; i < count; i++)
    for (int m = 0; m < layers[i].members; m++) {
      const unit u = unit_of(&layers[i], m);
      choose(&u, above(&u, threshold));
    }
  return ESP_OK;
}

esp_status esp_choose_dominant(esp_group_layer *layers, int count, const esp_group_budget *budget) {
  if (budget->groups <= 0 && !(budget->ratio >= 0 && budget->ratio < 1))
    return esp_fail(ESP_ERR_USAGE, "the ratio of experts that are to go is %g; it must lie in [0, 1)", budget->ratio);
  if (!budget->global) return choose_evenly(layers, count, budget);
  size_t experts = 0;
  for (int i = 0; i < count; i++) experts += (size_t)layers[i].experts;
  double *all = esp_alloc(experts, sizeof *all);
  const esp_status status = all ? choose_globally(layers, count, budget, all) : ESP_ERR_MEMORY;
  esp_free(all);
  return status;
}

/* --- groups ------------------------------------------------------------------------------------------------ */

static esp_status join(const unit *u, int e, const esp_group_budget *budget, int *sizes) {
  const esp_group_layer *layer = u->layer;
  int best = -1;
  for (int d = u->first; d < u->end; d++) {
    if (layer->dominant[d] != d || (budget->capacity > 0 && sizes[d] >= budget->capacity)) continue;
    if (best < 0 || layer->similarity[e * layer->experts + d] > layer->similarity[e * layer->experts + best]) best = d;
  }
  if (best < 0)
    return esp_fail(ESP_ERR_USAGE, "the groups of %s have no room for expert %d with %d experts a group; allow more",
                    layer->scope, e, budget->capacity);
  u->layer->dominant[e] = best;
  sizes[best]++;
  return ESP_OK;
}

static esp_status join_unit(const unit *u, const esp_group_budget *budget) {
  int sizes[ESP_MAX_EXPERTS] = {0};
  for (int e = u->first; e < u->end; e++) sizes[e] = u->layer->dominant[e] == e;
  for (int e = u->first; e < u->end; e++)
    if (u->layer->alive[e] && u->layer->dominant[e] < 0) ESP_TRY(join(u, e, budget, sizes));
  return ESP_OK;
}

esp_status esp_join_groups(esp_group_layer *layers, int count, const esp_group_budget *budget) {
  for (int i = 0; i < count; i++)
    for (int m = 0; m < layers[i].members; m++) {
      const unit u = unit_of(&layers[i], m);
      ESP_TRY(join_unit(&u, budget));
    }
  return ESP_OK;
}
