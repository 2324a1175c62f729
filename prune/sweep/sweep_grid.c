/* The grid of a sweep: its cells, and what cells, rows and their data are called. */
#include "sweep_internal.h"

#include <espalier/evaluate.h>
#include <espalier/memory.h>
#include <espalier/run_config.h>
#include <espalier/yaml.h>

#include <stdio.h>
#include <string.h>

const char *esp_sweep_calibration(const esp_sweep *sweep, int calibration) {
  if (calibration < 0) return "none";
  return calibration == 0 ? "matched" : esp_dataset_info_of(sweep->settings.calibration[calibration])->name;
}

const char *esp_sweep_mode(int mode) { return mode < 0 ? "none" : esp_prune_mode_name((esp_prune_mode)mode); }

const char *esp_sweep_gates(int gates) {
  if (gates < 0) return "none";
  return gates == ESP_GATES_NORMALISED ? "normalised" : "model";
}

/* Whether two cells have different values of one kind, -1 apart. */
static bool differ(const esp_sweep *sweep, int (*value)(const esp_sweep_cell *cell)) {
  int first = -1;
  for (int64_t i = 0; i < sweep->cell_count; i++) {
    const int own = value(&sweep->cells[i]);
    if (own >= 0 && first >= 0 && own != first) return true;
    if (own >= 0) first = own;
  }
  return false;
}

static int mode_of(const esp_sweep_cell *cell) { return cell->mode; }
static int gates_of(const esp_sweep_cell *cell) { return cell->gates; }

bool esp_sweep_has_modes(const esp_sweep *sweep) { return differ(sweep, mode_of); }
bool esp_sweep_has_gate_forms(const esp_sweep *sweep) { return differ(sweep, gates_of); }

void esp_sweep_cell_name(const esp_sweep *sweep, const esp_sweep_cell *cell, char name[SWEEP_NAME_SIZE]) {
  const bool moded = cell->mode >= 0, gated = cell->gates >= 0;
  const int length =
      snprintf(name, SWEEP_NAME_SIZE, "%s-%s%s%s%s%s-%g-%llu-%s", sweep->settings.models[cell->model].info->digest,
               cell->method.name, moded ? "-" : "", moded ? esp_sweep_mode(cell->mode) : "", gated ? "-" : "",
               gated ? esp_sweep_gates(cell->gates) : "", cell->ratio, (unsigned long long)cell->seed,
               esp_sweep_calibration(sweep, cell->calibration));
  for (int i = 0; i < length && name[i]; i++)
    if (strchr("/:,()", name[i])) name[i] = '.';
}

void esp_sweep_curve_name(const esp_sweep *sweep, const esp_sweep_row *row, char name[SWEEP_NAME_SIZE]) {
  const bool moded = row->mode >= 0 && esp_sweep_has_modes(sweep);
  const bool gated = row->gates >= 0 && esp_sweep_has_gate_forms(sweep);
  snprintf(name, SWEEP_NAME_SIZE, "%s%s%s%s%s%s%s", row->method.name, moded ? " " : "",
           moded ? esp_sweep_mode(row->mode) : "", gated ? " with gates " : "",
           gated ? esp_sweep_gates(row->gates) : "", row->calibration > 0 ? " on " : "",
           row->calibration > 0 ? esp_sweep_calibration(sweep, row->calibration) : "");
}

/* Settings that a sweep decides itself, or whose traces it does not keep. */
static esp_status check_key(void *context, const char *key) {
  static const struct {
    const char *key, *reason;
  } decided[] = {
      {"model.", "a cell's model is what its method makes of the model given"},
      {"training.epochs", "how long models are finetuned is a setting of the sweep itself"},
      {"training.seed", "each cell has the seed of its row"},
      {"training.evaluate_every", "cells are evaluated at their end only"},
      {"training.evaluate_examples", "cells are evaluated at their end only"},
      {"training.checkpoint_minutes", "a cell is finetuned in one go"},
      {"training.log_every", "metrics of a cell's finetuning are not kept"},
      {"training.alarm", "alarms of a cell's finetuning are not kept"},
      {"training.compression", "checkpoints of a cell's finetuning are not kept"},
      {"compression.", "a cell's rows are pruned by its method, not while it is finetuned"},
  };
  const esp_sweep_settings *s = context;
  for (size_t i = 0; i < sizeof decided / sizeof decided[0]; i++)
    if (strncmp(key, decided[i].key, strlen(decided[i].key)) == 0)
      return esp_fail(ESP_ERR_USAGE, "the setting %s would do nothing in a sweep: %s; leave it out", key,
                      decided[i].reason);
  if (!s->distil && strncmp(key, "distillation.", 13) == 0)
    return esp_fail(ESP_ERR_USAGE, "the setting %s would do nothing in a sweep that does not distil; leave it out",
                    key);
  return ESP_OK;
}

static esp_status check_overrides(const esp_sweep_settings *s) {
  esp_run_config config;
  const esp_sweep_model *first = &s->models[0];
  if (s->override_count == 0) return ESP_OK;
  ESP_TRY(esp_run_config_parse(&config, first->name, first->info->run_config, s->overrides, s->override_count));
  for (size_t i = 0; i < s->override_count; i++)
    ESP_TRY(esp_yaml_visit_override(s->overrides[i], check_key, (void *)(uintptr_t)s));
  return ESP_OK;
}

esp_status esp_sweep_check(const esp_sweep_settings *s) {
  if (s->model_count < 1 || s->ratio_count < 1 || s->seed_count < 1)
    return esp_fail(ESP_ERR_USAGE, "a sweep needs at least one model, one ratio and one seed");
  for (int i = 0; i < s->ratio_count; i++)
    if (!(s->ratios[i] > 0 && s->ratios[i] < 1))
      return esp_fail(ESP_ERR_USAGE, "a ratio of the sweep is %g; it must lie between 0 and 1", s->ratios[i]);
  for (int i = 0; i < s->model_count; i++) {
    const esp_status status = esp_check_data_fits(&s->models[i].model->config, s->data, true);
    if (status != ESP_OK) return esp_fail_in(status, "%s", s->models[i].name);
    for (int c = 0; c < s->calibration_count; c++)
      ESP_TRY(esp_check_data_fits(&s->models[i].model->config, s->calibration[c], false));
  }
  return check_overrides(s);
}

static void add_method(esp_sweep_settings *s, const char *name, int place) {
  for (int i = 0; i < s->method_count; i++) {
    if (strcmp(s->methods[i], name) != 0) continue;
    memmove(&s->methods[i], &s->methods[i + 1], (size_t)(s->method_count - i - 1) * sizeof *s->methods);
    s->method_count--;
    break;
  }
  memmove(&s->methods[place + 1], &s->methods[place], (size_t)(s->method_count - place) * sizeof *s->methods);
  s->methods[place] = name;
  s->method_count++;
}

enum { MODES = 3, GATE_FORMS = 2 };

/* The modes that a method has on a model; {-1} if it has none. Returns how many. */
static int list_modes(const esp_sweep_settings *s, const esp_model *model, const esp_method *method, int modes[MODES]) {
  modes[0] = -1;
  if (!method->criterion) return 1;
  for (int i = 0; i < s->mode_count; i++) modes[i] = (int)s->modes[i];
  if (s->mode_count > 0) return s->mode_count;
  const esp_router_kind policy = model->config.moe.router.policy;
  const bool experts_choose = policy == ESP_ROUTER_EXPERT_CHOICE || policy == ESP_ROUTER_SOFT;
  modes[0] = experts_choose ? ESP_PRUNE_REMOVE : ESP_PRUNE_ZERO;
  modes[1] = ESP_PRUNE_REMOVE;
  return experts_choose ? 1 : 2;
}

/* The same for forms of gates. Of one gate a token normalisation makes 1. */
static int list_gates(const esp_sweep_settings *s, const esp_model *model, const esp_method *method,
                      int gates[GATE_FORMS]) {
  const esp_moe_config *moe = &model->config.moe;
  gates[0] = -1;
  if (!method->criterion || !method->criterion->weighs_gates) return 1;
  for (int i = 0; i < s->gate_count; i++) gates[i] = (int)s->gates[i];
  if (s->gate_count > 0) return s->gate_count;
  const bool several = moe->router.policy == ESP_ROUTER_TOKEN_CHOICE && moe->top_k > 1;
  gates[0] = several ? ESP_GATES_NORMALISED : ESP_GATES_MODEL;
  return 1;
}

/* The cells of one method in one form on one model, seeds together; counts only if cells is NULL. `like` has the model,
 * the method and its form. */
static int64_t list_form(const esp_sweep_settings *s, const esp_sweep_cell *like, esp_sweep_cell *cells) {
  const esp_method *method = &like->method;
  const int ratios = method->has_ratio ? s->ratio_count : 1, sets = method->needs_data ? s->calibration_count : 1;
  int64_t count = 0;
  for (int c = 0; c < sets; c++)
    for (int r = 0; r < ratios; r++)
      for (int i = 0; i < s->seed_count; i++, count++) {
        if (!cells) continue;
        cells[count] = *like;
        cells[count].calibration = method->needs_data ? c : -1;
        cells[count].ratio = method->has_ratio ? s->ratios[r] : 0;
        cells[count].seed = s->seeds[i];
      }
  return count;
}

static int64_t list_method(const esp_sweep_settings *s, int model, const esp_method *method, esp_sweep_cell *cells) {
  int modes[MODES], gates[GATE_FORMS];
  const int mode_count = list_modes(s, s->models[model].model, method, modes);
  const int gate_count = list_gates(s, s->models[model].model, method, gates);
  int64_t count = 0;
  for (int m = 0; m < mode_count; m++)
    for (int g = 0; g < gate_count; g++) {
      const esp_sweep_cell like = {.model = model, .method = *method, .mode = modes[m], .gates = gates[g]};
      count += list_form(s, &like, cells ? cells + count : NULL);
    }
  return count;
}

static esp_status list_cells(const esp_sweep_settings *s, esp_sweep_cell *cells, int64_t *count) {
  *count = 0;
  for (int m = 0; m < s->model_count; m++)
    for (int i = 0; i < s->method_count; i++) {
      esp_method method;
      ESP_TRY(esp_method_find(&method, s->methods[i]));
      *count += list_method(s, m, &method, cells ? cells + *count : NULL);
    }
  return ESP_OK;
}

esp_status esp_sweep_make_grid(esp_sweep *sweep) {
  add_method(&sweep->settings, "unpruned", 0);
  add_method(&sweep->settings, "random", 1);
  ESP_TRY(list_cells(&sweep->settings, NULL, &sweep->cell_count));
  sweep->cells = esp_alloc((size_t)sweep->cell_count, sizeof *sweep->cells);
  if (!sweep->cells) return ESP_ERR_MEMORY;
  return list_cells(&sweep->settings, sweep->cells, &sweep->cell_count);
}
