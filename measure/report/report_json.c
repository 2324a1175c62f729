#include <espalier/report.h>

#include <jansson.h>
#include <math.h>

/* An object in the making; what fails on the way is noticed at the end. */
typedef struct object {
  json_t *json;
  bool failed;
} object;

static object start(void) { return (object){.json = json_object()}; }

static void put(object *o, const char *key, json_t *value) {
  if (json_object_set_new(o->json, key, value) != 0) o->failed = true;
}

static void put_integer(object *o, const char *key, int64_t value) { put(o, key, json_integer(value)); }

static json_t *real(double value) { return isfinite(value) ? json_real(value) : json_null(); }

static void put_real(object *o, const char *key, double value) { put(o, key, real(value)); }

static void put_text(object *o, const char *key, const char *text) {
  if (text) put(o, key, json_string(text));
}

static json_t *finish(object *o) {
  if (!o->failed) return o->json;
  json_decref(o->json);
  return NULL;
}

/* --- experts -------------------------------------------------------------------------------------------- */

static void put_change(object *o, const esp_router_change *change) {
  put_real(o, "reference_norm", change->reference_norm);
  put_real(o, "router_norm_change", change->signed_change);
  put_real(o, "absolute_change", change->absolute_change);
  put_real(o, "difference_norm", change->difference_norm);
}

static void put_expert_statistics(object *o, const esp_statistics *statistics, int layer, int expert) {
  esp_expert_statistics s;
  esp_statistics_expert(statistics, layer, expert, &s);
  put_integer(o, "count", s.count);
  put_integer(o, "served", s.served);
  put_real(o, "share", s.share);
  put_integer(o, "first_choices", s.first_choices);
  put_real(o, "gate_mass", s.gate_mass);
  put_real(o, "mean_gate", s.mean_gate);
  put_real(o, "gate_served", s.gate_served);
  put_real(o, "mean_score", s.mean_score);
}

static json_t *counts_json(const esp_statistics *statistics, int layer, int expert, int count,
                           int64_t (*count_of)(const esp_statistics *, int, int, int)) {
  json_t *counts = json_array();
  for (int i = 0; i < count; i++) json_array_append_new(counts, json_integer(count_of(statistics, layer, expert, i)));
  return counts;
}

static int neurons_of(const esp_moe *moe, int expert) {
  const int32_t stored = moe->layout.index[expert];
  return stored < 0 ? 0 : esp_expert_width(&moe->bank, stored);
}

static json_t *expert_json(const esp_measurement *m, int layer, int expert) {
  const esp_moe *moe = esp_model_moe(m->model, layer);
  object o = start();
  put_integer(&o, "index", expert);
  put_integer(&o, "original_id", moe->layout.original_ids[expert]);
  put_integer(&o, "stored", moe->layout.index[expert]);
  put_integer(&o, "neurons", neurons_of(moe, expert));
  put_real(&o, "router_norm", esp_router_norm(moe, expert));
  if (m->changes) put_change(&o, &m->changes->layers[layer].experts[expert]);
  if (m->statistics) {
    put_expert_statistics(&o, m->statistics, layer, expert);
    put(&o, "together", counts_json(m->statistics, layer, expert, moe->layout.experts, esp_statistics_pair));
    put(&o, "classes",
        counts_json(m->statistics, layer, expert, esp_statistics_classes(m->statistics, layer), esp_statistics_class));
  }
  return finish(&o);
}

static json_t *experts_json(const esp_measurement *m, int layer) {
  json_t *experts = json_array();
  for (int e = 0; experts && e < esp_model_moe(m->model, layer)->layout.experts; e++)
    if (json_array_append_new(experts, expert_json(m, layer, e)) != 0) {
      json_decref(experts);
      return NULL;
    }
  return experts;
}

/* --- layers --------------------------------------------------------------------------------------------- */

static json_t *histogram_json(const esp_layer_statistics *s) {
  json_t *edges = json_array(), *counts = json_array();
  for (int i = 0; i <= ESP_HISTOGRAM_BINS; i++) json_array_append_new(edges, json_real(esp_histogram_edge(i)));
  for (int i = 0; i < ESP_HISTOGRAM_BINS; i++) json_array_append_new(counts, json_integer(s->histogram[i]));
  object o = start();
  put(&o, "edges", edges);
  put(&o, "counts", counts);
  put_integer(&o, "below", s->below);
  put_integer(&o, "above", s->above);
  put_integer(&o, "not_finite", s->not_finite);
  return finish(&o);
}

static json_t *near_zero_json(const esp_layer_statistics *s) {
  object o = start();
  char key[32];
  for (int i = 0; i < ESP_NEAR_ZERO_LEVELS; i++) {
    snprintf(key, sizeof key, "%g", esp_near_zero_levels[i]);
    put_real(&o, key, s->near_zero[i]);
  }
  return finish(&o);
}

static json_t *top_mass_json(const esp_layer_statistics *s) {
  object o = start();
  char key[32];
  for (int i = 0; i < ESP_TOP_MASS_LEVELS; i++) {
    snprintf(key, sizeof key, "%d", esp_top_mass_percents[i]);
    put_real(&o, key, s->top_mass[i]);
  }
  return finish(&o);
}

static void put_layer_statistics(object *o, const esp_statistics *statistics, int layer) {
  esp_layer_statistics s;
  esp_statistics_layer(statistics, layer, &s);
  put_integer(o, "tokens", s.tokens);
  put_integer(o, "slots", s.slots);
  put_integer(o, "served", s.served);
  put_integer(o, "skipped", s.skipped);
  put_real(o, "entropy", s.entropy);
  put_real(o, "normalised_entropy", s.normalised_entropy);
  put_real(o, "token_entropy", s.scored ? s.token_entropy : (double)NAN);
  put_real(o, "imbalance", s.imbalance);
  put_integer(o, "dead_experts", s.dead_experts);
  put_real(o, "logit_rms", s.logits ? s.logit_rms : (double)NAN);
  put_integer(o, "sampled_rows", s.rows);
  put_integer(o, "silent_rows", s.silent_rows);
  put(o, "near_zero", near_zero_json(&s));
  put(o, "top_mass", top_mass_json(&s));
  put(o, "histogram", histogram_json(&s));
}

/* A stored expert's, of a layer that selects neurons. */
static json_t *usage_json(const esp_neuron_usage *usage) {
  json_t *selected = json_array();
  for (int j = 0; selected && j < usage->neurons; j++)
    json_array_append_new(selected, json_integer(usage->selected[j]));
  object o = start();
  put_integer(&o, "rows", usage->rows);
  put_real(&o, "gini", usage->gini);
  put_integer(&o, "dead_neurons", usage->dead);
  put(&o, "selected", selected);
  return finish(&o);
}

static void put_usage(object *o, const esp_measurement *m, int layer) {
  esp_layer_statistics s;
  esp_neuron_usage usage;
  esp_statistics_layer(m->statistics, layer, &s);
  if (!esp_statistics_neurons(m->statistics, layer, 0, &usage)) return;
  put_real(o, "neuron_gini", s.neuron_gini);
  put_integer(o, "dead_neurons", s.dead_neurons);
  put_integer(o, "counted_neurons", s.counted_neurons);
  json_t *experts = json_array();
  for (int e = 0; e < esp_model_moe(m->model, layer)->layout.stored; e++)
    if (!esp_statistics_neurons(m->statistics, layer, e, &usage) ||
        json_array_append_new(experts, usage_json(&usage)) != 0)
      o->failed = true;
  put(o, "neuron_usage", experts);
}

static json_t *layer_json(const esp_measurement *m, int layer) {
  const esp_moe *moe = esp_model_moe(m->model, layer);
  object o = start();
  put_text(&o, "name", moe->scope);
  put_text(&o, "kind", esp_layer_kind_name(moe->kind));
  put_integer(&o, "block", moe->block);
  put_integer(&o, "top_k", moe->config.top_k);
  put_integer(&o, "neurons", moe->bank.hidden);
  put_integer(&o, "neurons_kept", moe->neurons_kept);
  put_integer(&o, "stored_experts", moe->layout.stored);
  if (m->statistics) put_layer_statistics(&o, m->statistics, layer);
  if (m->statistics) put_usage(&o, m, layer);
  put(&o, "experts", experts_json(m, layer));
  return finish(&o);
}

static json_t *layers_json(const esp_measurement *m) {
  json_t *layers = json_array();
  for (int i = 0; layers && i < esp_model_moe_count(m->model); i++)
    if (json_array_append_new(layers, layer_json(m, i)) != 0) {
      json_decref(layers);
      return NULL;
    }
  return layers;
}

/* --- wholes --------------------------------------------------------------------------------------------- */

static void put_model_cost(object *o, const esp_model_cost *cost) {
  put_integer(o, "parameters", cost->parameters);
  put_integer(o, "activated_parameters", cost->activated);
  put_integer(o, "activated_parameters_selected", cost->activated_selected);
  put_integer(o, "touched_parameters", cost->touched);
  put_real(o, "flops_per_image", cost->flops);
  put_real(o, "flops_per_image_selected", cost->flops_selected);
}

json_t *esp_measurement_json(const esp_measurement *measurement) {
  esp_model_cost cost;
  esp_model_cost_of(measurement->model, &cost);
  object o = start();
  put_text(&o, "checkpoint", measurement->checkpoint);
  put_text(&o, "reference", measurement->reference);
  put_text(&o, "data", measurement->data);
  if (measurement->evaluation) {
    put_real(&o, "accuracy", measurement->evaluation->accuracy);
    put_real(&o, "loss", measurement->evaluation->loss);
    put_integer(&o, "examples", measurement->evaluation->examples);
  }
  put_model_cost(&o, &cost);
  put(&o, "layers", layers_json(measurement));
  return finish(&o);
}

static json_t *layer_cost_json(const esp_layer_cost *layer) {
  object o = start();
  put_text(&o, "name", layer->name);
  put_text(&o, "kind", esp_layer_kind_name(layer->kind));
  put_integer(&o, "experts", layer->experts);
  put_integer(&o, "stored_experts", layer->stored_experts);
  put_integer(&o, "narrowest_expert", layer->narrowest);
  put_integer(&o, "widest_expert", layer->widest);
  put_integer(&o, "neurons_kept", layer->neurons_kept);
  put_integer(&o, "parameters", layer->parameters);
  put_integer(&o, "activated_parameters", layer->activated);
  put_integer(&o, "activated_parameters_selected", layer->activated_selected);
  put_integer(&o, "touched_parameters", layer->touched);
  put_real(&o, "flops", layer->flops);
  put_real(&o, "flops_selected", layer->flops_selected);
  return finish(&o);
}

json_t *esp_model_cost_json(const esp_model_cost *cost) {
  object o = start();
  put_model_cost(&o, cost);
  put_integer(&o, "parameter_bytes", ESP_PARAMETER_BYTES * cost->parameters);
  put_integer(&o, "training_bytes", ESP_TRAINED_PARAMETER_BYTES * cost->parameters);
  json_t *layers = json_array();
  for (int i = 0; i < cost->layer_count; i++)
    if (json_array_append_new(layers, layer_cost_json(&cost->layers[i])) != 0) o.failed = true;
  put(&o, "layers", layers);
  return finish(&o);
}
