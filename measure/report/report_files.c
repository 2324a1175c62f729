#include <espalier/json_file.h>
#include <espalier/report.h>
#include <espalier/run_folder.h>
#include <espalier/statistics_rows.h>

/* --- rows ----------------------------------------------------------------------------------------------- */

static void write_expert(const esp_measurement *m, int layer, int expert, FILE *file) {
  const esp_moe *moe = esp_model_moe(m->model, layer);
  fprintf(file, "%s,%s,%d,%d,%d", moe->scope, esp_layer_kind_name(moe->kind), expert, moe->layout.original_ids[expert],
          moe->layout.index[expert]);
  fputc(',', file);
  if (moe->router) fprintf(file, "%.9g", esp_router_norm(moe, expert));
  if (m->changes) {
    const esp_router_change *c = &m->changes->layers[layer].experts[expert];
    fprintf(file, ",%.9g,%.9g,%.9g,%.9g", c->reference_norm, c->signed_change, c->absolute_change, c->difference_norm);
  } else {
    fputs(",,,,", file);
  }
  if (m->statistics) {
    esp_expert_statistics s;
    esp_statistics_expert(m->statistics, layer, expert, &s);
    fprintf(file, ",%lld,%lld,%.9g,%lld,%.9g,%.9g,%.9g,%.9g\n", (long long)s.count, (long long)s.served, s.share,
            (long long)s.first_choices, s.gate_mass, s.mean_gate, s.mean_score, s.gate_served);
  } else {
    fputs(",,,,,,,,\n", file);
  }
}

static void write_experts(const esp_measurement *m, FILE *file) {
  fputs("layer,kind,expert,original_id,stored,router_norm,reference_norm,router_norm_change,absolute_change,"
        "difference_norm,count,served,share,first_choices,gate_mass,mean_gate,mean_score,gate_served\n",
        file);
  for (int i = 0; i < esp_model_moe_count(m->model); i++)
    for (int e = 0; e < esp_model_moe(m->model, i)->layout.experts; e++) write_expert(m, i, e, file);
}

static void write_routing(const esp_measurement *m, FILE *file) {
  fputs("layer,kind,experts,routable,tokens,slots,served,entropy,normalised_entropy,token_entropy,imbalance,"
        "dead_experts,logit_rms\n",
        file);
  for (int i = 0; i < esp_statistics_layer_count(m->statistics); i++) {
    esp_layer_statistics s;
    esp_statistics_layer(m->statistics, i, &s);
    fprintf(file, "%s,%s,%d,%d,%lld,%lld,%lld,%.9g,%.9g,", s.scope, esp_layer_kind_name(s.kind), s.experts, s.routable,
            (long long)s.tokens, (long long)s.slots, (long long)s.served, s.entropy, s.normalised_entropy);
    if (s.scored) fprintf(file, "%.9g", s.token_entropy);
    fprintf(file, ",%.9g,%d,", s.imbalance, s.dead_experts);
    if (s.logits) fprintf(file, "%.9g", s.logit_rms);
    fputc('\n', file);
  }
}

static void write_coactivation(const esp_measurement *m, FILE *file) {
  fputs(ESP_COACTIVATION_COLUMNS "\n", file);
  for (int i = 0; i < esp_statistics_layer_count(m->statistics); i++) esp_coactivation_rows(file, "", m->statistics, i);
}

static void write_specialisation(const esp_measurement *m, FILE *file) {
  fputs(ESP_SPECIALISATION_COLUMNS "\n", file);
  for (int i = 0; i < esp_statistics_layer_count(m->statistics); i++)
    esp_specialisation_rows(file, "", m->statistics, i);
}

static void write_sparsity(const esp_measurement *m, FILE *file) {
  fputs("layer,kind,sampled_rows,silent_rows,not_finite", file);
  for (int i = 0; i < ESP_NEAR_ZERO_LEVELS; i++) fprintf(file, ",near_zero_%g", esp_near_zero_levels[i]);
  for (int i = 0; i < ESP_TOP_MASS_LEVELS; i++) fprintf(file, ",top_mass_%d", esp_top_mass_percents[i]);
  fputc('\n', file);
  for (int layer = 0; layer < esp_statistics_layer_count(m->statistics); layer++) {
    esp_layer_statistics s;
    esp_statistics_layer(m->statistics, layer, &s);
    fprintf(file, "%s,%s,%lld,%lld,%lld", s.scope, esp_layer_kind_name(s.kind), (long long)s.rows,
            (long long)s.silent_rows, (long long)s.not_finite);
    for (int i = 0; i < ESP_NEAR_ZERO_LEVELS; i++) fprintf(file, ",%.9g", s.near_zero[i]);
    for (int i = 0; i < ESP_TOP_MASS_LEVELS; i++) fprintf(file, ",%.9g", s.top_mass[i]);
    fputc('\n', file);
  }
}

/* The first and the last row of a layer are what lies outside the bins. */
static void write_activations(const esp_measurement *m, FILE *file) {
  fputs("layer,from,to,count\n", file);
  for (int layer = 0; layer < esp_statistics_layer_count(m->statistics); layer++) {
    esp_layer_statistics s;
    esp_statistics_layer(m->statistics, layer, &s);
    fprintf(file, "%s,-inf,%.9g,%lld\n", s.scope, esp_histogram_edge(0), (long long)s.below);
    for (int i = 0; i < ESP_HISTOGRAM_BINS; i++)
      fprintf(file, "%s,%.9g,%.9g,%lld\n", s.scope, esp_histogram_edge(i), esp_histogram_edge(i + 1),
              (long long)s.histogram[i]);
    fprintf(file, "%s,%.9g,inf,%lld\n", s.scope, esp_histogram_edge(ESP_HISTOGRAM_BINS), (long long)s.above);
  }
}

/* A row per stored expert and neuron of the layers that select neurons. */
static void write_neurons(const esp_measurement *m, FILE *file) {
  fputs("layer,stored,neuron,selected,rows,frequency\n", file);
  for (int i = 0; i < esp_statistics_layer_count(m->statistics); i++) {
    const esp_moe *moe = esp_model_moe(m->model, i);
    esp_neuron_usage u;
    for (int e = 0; e < moe->layout.stored && esp_statistics_neurons(m->statistics, i, e, &u); e++)
      for (int j = 0; j < u.neurons; j++)
        fprintf(file, "%s,%d,%d,%lld,%lld,%.9g\n", moe->scope, e, j, (long long)u.selected[j], (long long)u.rows,
                u.rows ? (double)u.selected[j] / (double)u.rows : 0);
  }
}

/* --- files ---------------------------------------------------------------------------------------------- */

typedef void csv_writer(const esp_measurement *m, FILE *file);

typedef struct csv_file {
  const esp_measurement *measurement;
  csv_writer *write;
} csv_file;

static void write_rows(const void *context, FILE *file) {
  const csv_file *csv = context;
  csv->write(csv->measurement, file);
}

static esp_status write_csv(const esp_measurement *m, const char *folder, const char *name, csv_writer *write) {
  return esp_file_compose(folder, name, write_rows, &(csv_file){m, write});
}

esp_status esp_measurement_write(const esp_measurement *measurement, const char *folder) {
  ESP_TRY(esp_json_write(folder, "measure.json", esp_measurement_json(measurement), 10));
  ESP_TRY(write_csv(measurement, folder, "experts.csv", write_experts));
  if (!measurement->statistics) return ESP_OK;
  ESP_TRY(write_csv(measurement, folder, "routing.csv", write_routing));
  ESP_TRY(write_csv(measurement, folder, "coactivation.csv", write_coactivation));
  ESP_TRY(write_csv(measurement, folder, "specialisation.csv", write_specialisation));
  ESP_TRY(write_csv(measurement, folder, "sparsity.csv", write_sparsity));
  ESP_TRY(write_csv(measurement, folder, "neurons.csv", write_neurons));
  return write_csv(measurement, folder, "activations.csv", write_activations);
}
