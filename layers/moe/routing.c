/* From choices to rows: capacity, and the stable counting sort of the slots by stored expert. */
#include "moe_ops_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void esp_expert_layout_full(esp_expert_layout *layout, int experts) {
  memset(layout, 0, sizeof *layout);
  layout->experts = layout->stored = experts;
  for (int i = 0; i < experts; i++) layout->index[i] = layout->original_ids[i] = i;
}

int esp_stored_width(const esp_expert_layout *layout, int stored, int hidden) {
  return layout->widths[stored] ? layout->widths[stored] : hidden;
}

int esp_widest(const esp_expert_layout *layout, int hidden) {
  int most = 0;
  for (int s = 0; s < layout->stored; s++) {
    const int width = esp_stored_width(layout, s, hidden);
    if (width > most) most = width;
  }
  return most;
}

int esp_narrowest(const esp_expert_layout *layout, int hidden) {
  int least = INT32_MAX;
  for (int s = 0; s < layout->stored; s++) {
    const int width = esp_stored_width(layout, s, hidden);
    if (width < least) least = width;
  }
  return least;
}

bool esp_is_ragged(const esp_expert_layout *layout, int hidden) {
  return esp_narrowest(layout, hidden) != esp_widest(layout, hidden);
}

void esp_settle_widths(esp_expert_layout *layout, int hidden) {
  bool all = true;
  for (int s = 0; s < layout->stored; s++) all = all && esp_stored_width(layout, s, hidden) == hidden;
  for (int s = 0; s < ESP_MAX_EXPERTS; s++)
    layout->widths[s] = all || s >= layout->stored ? 0 : esp_stored_width(layout, s, hidden);
}

int64_t esp_side_rows(const esp_model_config *config, int side, int hidden) {
  const bool gated = esp_activation_is_gated(config->feed_forward.activation);
  return side == ESP_SIDE_DOWN ? config->width : gated ? 2 * hidden : hidden;
}

/* False, saying what is wrong, if there cannot be so many rows of S. */
static bool rows_can_be(const esp_expert_layout *layout, int side, int64_t most,
                        char problem[ESP_LAYOUT_PROBLEM_SIZE]) {
  for (int s = 0; s < layout->stored; s++) {
    const int32_t rows = layout->sparse_rows[side][s];
    if (rows >= 0 && rows <= most) continue;
    snprintf(problem, ESP_LAYOUT_PROBLEM_SIZE,
             "has %d sparse rows in the %s matrix of its stored expert %d; expected 0 to %lld", (int)rows,
             side == ESP_SIDE_UP ? "first" : "last", s, (long long)most);
    return false;
  }
  return true;
}

bool esp_factoring_problem(const esp_expert_layout *layout, const esp_model_config *config,
                           char problem[ESP_LAYOUT_PROBLEM_SIZE]) {
  const int hidden = esp_widest(layout, config->moe.hidden), most = hidden < config->width ? hidden : config->width;
  if (layout->rank == 0 && !layout->pruning) return false;
  if (layout->rank < 1 || layout->rank > most) {
    snprintf(problem, ESP_LAYOUT_PROBLEM_SIZE, "has experts factored with rank %d; expected 1 to %d", layout->rank,
             most);
    return true;
  }
  if (esp_is_ragged(layout, config->moe.hidden)) {
    snprintf(problem, ESP_LAYOUT_PROBLEM_SIZE, "has factored experts that differ in width; that is not provided for");
    return true;
  }
  for (int side = 0; side < ESP_SIDES; side++)
    if (!rows_can_be(layout, side, esp_side_rows(config, side, hidden), problem)) return true;
  return false;
}

int esp_routable_between(const esp_expert_layout *layout, int first, int end) {
  int count = 0;
  for (int i = first; i < end; i++) count += layout->index[i] != ESP_EXPERT_MASKED;
  return count;
}

int esp_routable_experts(const esp_expert_layout *layout) { return esp_routable_between(layout, 0, layout->experts); }

int64_t esp_expert_capacity(int64_t tokens, int k, double factor, int experts) {
  if (factor <= 0) return tokens * k;
  const int64_t slots = (int64_t)ceil((double)(tokens * k) * factor / experts - 1e-9);
  return (slots + 3) / 4 * 4;
}

esp_route_request esp_plain_request(const esp_router_config *config, const esp_expert_layout *layout, int k,
                                    int64_t tokens) {
  return (esp_route_request){.config = config,
                             .layout = layout,
                             .k = k,
                             .original_experts = layout->experts,
                             .members = 1,
                             .tokens = tokens,
                             .images = 1};
}

int64_t esp_group_tokens(const esp_route_request *r) {
  const int images = r->training ? r->config->group_images : esp_evaluation_group(r->config);
  const int64_t tokens = r->tokens / r->members, group = images * (r->tokens / r->images);
  return group > 0 && group < tokens ? group : tokens;
}

int64_t esp_group_count(const esp_route_request *r) {
  const int64_t group = esp_group_tokens(r);
  return (r->tokens / r->members + group - 1) / group;
}

esp_token_group esp_group_at(const esp_route_request *r, int64_t index) {
  const int64_t groups = esp_group_count(r), tokens = r->tokens / r->members, size = esp_group_tokens(r);
  const int64_t member = index / groups, begin = index % groups * size;
  const int64_t end = begin + size < tokens ? begin + size : tokens;
  const int experts = r->layout->experts / r->members;
  return (esp_token_group){.begin = member * tokens + begin,
                           .end = member * tokens + end,
                           .first_expert = (int)member * experts,
                           .end_expert = (int)(member + 1) * experts};
}

bool esp_request_copy(esp_tape *tape, const esp_route_request *request, esp_route_request *copy) {
  esp_router_config *config = esp_tape_take(tape, sizeof *config);
  if (!config) return false;
  *config = *request->config;
  *copy = *request;
  copy->config = config;
  return true;
}

/* --- the routing's memory -------------------------------------------------------------------------------- */

static void *take(esp_tape *tape, int64_t count, size_t size) { return esp_tape_take(tape, (size_t)count * size); }

esp_routing_work *esp_routing_take(esp_tape *tape, const esp_route_request *r, int64_t slots, int k) {
  esp_routing_work *w = take(tape, 1, sizeof *w);
  if (!w) return NULL;
  *w = (esp_routing_work){.token = take(tape, slots, sizeof *w->token),
                          .choice = take(tape, slots, sizeof *w->choice),
                          .row = take(tape, slots, sizeof *w->row),
                          .slot = take(tape, slots, sizeof *w->slot),
                          .first_slot = take(tape, r->tokens + 1, sizeof *w->first_slot),
                          .first_row = take(tape, r->layout->stored + 1, sizeof *w->first_row),
                          .wanted = take(tape, r->layout->experts, sizeof *w->wanted),
                          .served = take(tape, r->layout->experts, sizeof *w->served),
                          .order = take(tape, esp_group_tokens(r), sizeof *w->order)};
  if (!w->token || !w->choice || !w->row || !w->slot || !w->first_slot || !w->first_row || !w->wanted || !w->served ||
      !w->order)
    return NULL;
  w->routing = (esp_routing){.tokens = r->tokens,
                             .slots = slots,
                             .k = k,
                             .experts = r->layout->experts,
                             .stored = r->layout->stored,
                             .first_slot = w->first_slot,
                             .token = w->token,
                             .choice = w->choice,
                             .row = w->row,
                             .slot = w->slot,
                             .first_row = w->first_row,
                             .wanted = w->wanted,
                             .served = w->served};
  return w;
}

/* --- capacity -------------------------------------------------------------------------------------------- */

static int by_priority(const void *a, const void *b) {
  const esp_ranked *x = a, *y = b;
  if (x->value != y->value) return x->value < y->value ? 1 : -1;
  return (x->index > y->index) - (x->index < y->index);
}

void esp_rank(esp_ranked *items, int64_t count) { qsort(items, (size_t)count, sizeof *items, by_priority); }

/* In which order the tokens of a group are served: by position, or by descending score of their first choice. */
static void order_tokens(const esp_route_request *r, const esp_routing_work *w, const esp_token_group *g,
                         const esp_real *scores) {
  for (int64_t t = g->begin; t < g->end; t++) {
    const esp_real score = scores[t * r->layout->experts + w->choice[t * w->routing.k]];
    w->order[t - g->begin] = (esp_ranked){.value = isnan(score) ? (esp_real)-INFINITY : score, .index = (int32_t)t};
  }
  if (r->config->batch_priority) esp_rank(w->order, g->end - g->begin);
}

/* Serves first choices before second ones, as far as the capacity goes. */
static void serve_group(const esp_route_request *r, const esp_routing_work *w, const esp_token_group *g,
                        double factor) {
  const int k = w->routing.k, experts = esp_routable_between(r->layout, g->first_expert, g->end_expert);
  const int64_t capacity = esp_expert_capacity(g->end - g->begin, k, factor, experts);
  int64_t used[ESP_MAX_EXPERTS] = {0};
  for (int rank = 0; rank < k; rank++)
    for (int64_t i = 0; i < g->end - g->begin; i++) {
      const int64_t slot = (int64_t)w->order[i].index * k + rank;
      const int32_t expert = w->choice[slot];
      if (w->row[slot] < 0) continue;
      if (used[expert] == capacity) w->row[slot] = -1;
      else used[expert]++;
    }
}

static void leave_out_skipped(esp_routing_work *w) {
  const int k = w->routing.k;
  for (int64_t t = 0; t < w->routing.tokens; t++)
    for (int i = w->kept[t]; i < k; i++) {
      w->row[t * k + i] = -1;
      w->routing.skipped++;
    }
}

static void serve(const esp_route_request *r, esp_routing_work *w, const esp_real *scores) {
  const double factor = r->training ? r->config->capacity : r->config->evaluation_capacity;
  memset(w->row, 0, (size_t)w->routing.slots * sizeof *w->row);
  if (w->kept) leave_out_skipped(w);
  if (factor <= 0 || w->routing.k == 0) return;
  const int64_t groups = esp_group_count(r) * r->members;
  for (int64_t i = 0; i < groups; i++) {
    const esp_token_group g = esp_group_at(r, i);
    order_tokens(r, w, &g, scores);
    serve_group(r, w, &g, factor);
  }
}

/* --- the sort -------------------------------------------------------------------------------------------- */

static void count_slots(const esp_route_request *r, esp_routing_work *w) {
  const esp_routing *routing = &w->routing;
  memset(w->wanted, 0, (size_t)routing->experts * sizeof *w->wanted);
  memset(w->served, 0, (size_t)routing->experts * sizeof *w->served);
  memset(w->first_row, 0, (size_t)(routing->stored + 1) * sizeof *w->first_row);
  for (int64_t i = 0; i < routing->slots; i++) {
    w->wanted[w->choice[i]]++;
    w->served[w->choice[i]] += w->row[i] >= 0;
  }
  for (int e = 0; e < routing->experts; e++)
    if (r->layout->index[e] >= 0) w->first_row[r->layout->index[e] + 1] += w->served[e];
  for (int s = 0; s < routing->stored; s++) w->first_row[s + 1] += w->first_row[s];
}

void esp_routing_sort(const esp_route_request *r, esp_routing_work *w, const esp_real *scores) {
  serve(r, w, scores);
  count_slots(r, w);
  int64_t next[ESP_MAX_EXPERTS];
  memcpy(next, w->first_row, (size_t)w->routing.stored * sizeof *next);
  for (int64_t i = 0; i < w->routing.slots; i++) {
    const int32_t stored = r->layout->index[w->choice[i]];
    w->row[i] = stored < 0 || w->row[i] < 0 ? -1 : (int32_t)next[stored]++;
    if (w->row[i] >= 0) w->slot[w->row[i]] = (int32_t)i;
  }
  w->routing.rows = w->first_row[w->routing.stored];
}
