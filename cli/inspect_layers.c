/* The part of inspect that tells what became of a model's experts: removed, merged, narrowed, factored, skipped. */
#include "commands_internal.h"

#include <espalier/core.h>
#include <espalier/factors.h>

#include <stdio.h>

static const char *const sides[ESP_SIDES] = {"gate_up", "down"};

/* --- JSON ----------------------------------------------------------------------------------------------------- */

static json_t *integers(const int32_t *values, int count) {
  json_t *list = json_array();
  for (int i = 0; i < count; i++) json_array_append_new(list, json_integer(values[i]));
  return list;
}

static json_t *widths_json(const esp_moe *moe) {
  json_t *list = json_array();
  for (int s = 0; s < moe->layout.stored; s++)
    json_array_append_new(list, json_integer(esp_expert_width(&moe->bank, s)));
  return list;
}

static json_t *factors_json(const esp_moe *moe) {
  json_t *json = json_object();
  for (int side = 0; side < ESP_SIDES; side++) {
    json_object_set_new(json, sides[side], integers(moe->layout.sparse_rows[side], moe->layout.stored));
  }
  return json;
}

void put_experts_json(json_t *layers, const esp_model *model) {
  for (int i = 0; i < esp_model_moe_count(model); i++) {
    const esp_moe *moe = esp_model_moe(model, i);
    const esp_expert_layout *layout = &moe->layout;
    json_t *json = json_array_get(layers, (size_t)moe->block);
    json_object_set_new(json, "stored", integers(layout->index, layout->experts));
    json_object_set_new(json, "original_ids", integers(layout->original_ids, layout->experts));
    json_object_set_new(json, "widths", widths_json(moe));
    json_object_set_new(json, "skip", json_real(layout->skip));
    json_object_set_new(json, "rank", json_integer(layout->rank));
    if (layout->rank) json_object_set_new(json, "sparse_rows", factors_json(moe));
  }
}

/* --- for people ----------------------------------------------------------------------------------------------- */

static int members_of(const esp_expert_layout *layout, int32_t stored) {
  int count = 0;
  for (int e = 0; e < layout->experts; e++) count += layout->index[e] == stored;
  return count;
}

static void print_members(const char *what, const esp_expert_layout *layout, int32_t stored) {
  if (!members_of(layout, stored)) return;
  fputs(what, stdout);
  for (int e = 0; e < layout->experts; e++)
    if (layout->index[e] == stored) printf(" %d", e);
}

static bool is_merged(const esp_expert_layout *layout) {
  for (int s = 0; s < layout->stored; s++)
    if (members_of(layout, s) > 1) return true;
  return false;
}

static void print_groups(const esp_expert_layout *layout) {
  fputs("; merged, logical experts by stored one:", stdout);
  for (int s = 0; s < layout->stored; s++) {
    printf("%s %d:", s ? "," : "", s);
    print_members("", layout, s);
  }
}

static void print_factors(const esp_moe *moe) {
  const esp_expert_layout *layout = &moe->layout;
  printf("; factored, rank %d, rows of S%s:", layout->rank, layout->pruning ? ", being pruned" : "");
  for (int side = 0; side < ESP_SIDES; side++) {
    printf("%s", side ? "; down" : " gate and up");
    for (int s = 0; s < layout->stored; s++) printf(" %d", layout->sparse_rows[side][s]);
    printf(" of %lld", (long long)esp_factors_rows(&moe->bank, side));
  }
}

/* A layer as it was trained from the start has nothing to tell. */
static bool is_untouched(const esp_moe *moe) {
  const esp_expert_layout *layout = &moe->layout;
  return layout->stored == layout->experts && !moe->bank.widths && !layout->rank && !(layout->skip > 0);
}

void print_experts(const esp_model *model) {
  for (int i = 0, printed = 0; i < esp_model_moe_count(model); i++) {
    const esp_moe *moe = esp_model_moe(model, i);
    const esp_expert_layout *layout = &moe->layout;
    if (is_untouched(moe)) continue;
    if (printed++ == 0) puts("experts:");
    printf("  %s: %d, stored %d", moe->scope, layout->experts, layout->stored);
    print_members("; zero:", layout, ESP_EXPERT_ZERO);
    print_members("; masked:", layout, ESP_EXPERT_MASKED);
    if (is_merged(layout)) print_groups(layout);
    if (moe->bank.widths) fputs("; neurons of the stored ones:", stdout);
    for (int s = 0; moe->bank.widths && s < layout->stored; s++) printf(" %d", esp_expert_width(&moe->bank, s));
    if (layout->rank) print_factors(moe);
    if (layout->skip > 0) printf("; skips what has less than %.4g of the gates of those before it", layout->skip);
    putchar('\n');
  }
}
