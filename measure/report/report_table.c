#include <espalier/report.h>

enum { BAR_WIDTH = 16 };

static double percent(double share) { return 100 * share; }

/* --- measurement ---------------------------------------------------------------------------------------- */

/* A bar as long as the share of slots; an even share fills a quarter of its room. */
static void print_bar(double share, int experts, FILE *file) {
  const double length = share * experts * BAR_WIDTH / 4 + 0.5;
  for (int i = 1; i <= BAR_WIDTH && i <= length; i++) fputc('#', file);
  if (length > BAR_WIDTH) fputc('+', file);
}

static void print_layer_title(const esp_measurement *m, int layer, FILE *file) {
  const esp_moe *moe = esp_model_moe(m->model, layer);
  fprintf(file, "%s: %s, %d experts (%d stored) of ", moe->scope, esp_layer_kind_name(moe->kind), moe->layout.experts,
          moe->layout.stored);
  if (moe->bank.widths) fprintf(file, "%d to ", esp_narrowest(&moe->layout, moe->config.hidden));
  fprintf(file, "%d neurons, %d a token", moe->bank.hidden, moe->config.top_k);
  if (moe->neurons_kept < moe->bank.hidden) fprintf(file, ", %d neurons kept", moe->neurons_kept);
  fputc('\n', file);
}

static void print_layer_statistics(const esp_layer_statistics *s, FILE *file) {
  fprintf(file, "  %lld tokens; load imbalance %.2f (max/mean), entropy of the shares %.3f of 1; dead experts %d\n",
          (long long)s->tokens, s->imbalance, s->normalised_entropy, s->dead_experts);
  const char *between = "  "; /* a policy need not have scores or logits */
  if (s->scored) fprintf(file, "%sentropy of a token's scores %.3f nats", between, s->token_entropy), between = "; ";
  if (s->logits) fprintf(file, "%srouter logits rms %.3f", between, s->logit_rms), between = "; ";
  if (s->skipped > 0)
    fprintf(file, "%s%.1f %% of the choices skipped", between, percent((double)s->skipped / (double)s->slots)),
        between = "; ";
  if (s->served < s->slots)
    fprintf(file, "%s%.1f %% of the choices unserved", between, percent(1 - (double)s->served / (double)s->slots)),
        between = "; ";
  if (*between == ';') fputc('\n', file);
}

static void print_expert_header(const esp_measurement *m, FILE *file) {
  fputs("  expert  was  stored", file);
  if (m->changes) fputs("  |w| then   |w| now   change  |moved|", file);
  else fputs("       |w|", file);
  if (m->statistics) fputs("   share   first    gate   score", file);
  fputc('\n', file);
}

static void print_stored(int32_t index, FILE *file) {
  if (index == ESP_EXPERT_ZERO) fputs("    zero", file);
  else if (index == ESP_EXPERT_MASKED) fputs("  masked", file);
  else fprintf(file, "  %6d", index);
}

static void print_expert_statistics(const esp_statistics *statistics, int layer, int expert, FILE *file) {
  esp_layer_statistics whole;
  esp_expert_statistics s;
  esp_statistics_layer(statistics, layer, &whole);
  esp_statistics_expert(statistics, layer, expert, &s);
  const double first = whole.tokens ? (double)s.first_choices / (double)whole.tokens : 0;
  fprintf(file, "  %5.1f%%  %5.1f%%  %6.4f  %6.4f  ", percent(s.share), percent(first), s.mean_gate, s.mean_score);
  print_bar(s.share, whole.routable, file);
}

static void print_expert(const esp_measurement *m, int layer, int expert, FILE *file) {
  const esp_moe *moe = esp_model_moe(m->model, layer);
  fprintf(file, "  %6d %4d", expert, moe->layout.original_ids[expert]);
  print_stored(moe->layout.index[expert], file);
  if (m->changes) {
    const esp_router_change *c = &m->changes->layers[layer].experts[expert];
    fprintf(file, "  %8.4f  %8.4f  %+7.4f  %7.4f", c->reference_norm, c->norm, c->signed_change, c->difference_norm);
  } else {
    if (moe->router) fprintf(file, "  %8.4f", esp_router_norm(moe, expert));
    else fputs("         -", file);
  }
  if (m->statistics) print_expert_statistics(m->statistics, layer, expert, file);
  fputc('\n', file);
}

static void print_usage(const esp_layer_statistics *s, FILE *file) {
  if (s->counted_neurons == 0) return;
  fprintf(file, "  neurons selected: Gini coefficient %.3f, %d of %d hardly ever (below 0.1 of the mean)\n",
          s->neuron_gini, s->dead_neurons, s->counted_neurons);
}

static void print_sparsity(const esp_layer_statistics *s, FILE *file) {
  fprintf(file, "  gate activations (%lld rows):", (long long)s->rows);
  for (int i = 0; i < ESP_NEAR_ZERO_LEVELS; i++)
    fprintf(file, "%s %.1f%% within %g", i ? "," : "", percent(s->near_zero[i]), esp_near_zero_levels[i]);
  fputs(" of zero\n  share of their mass in the largest", file);
  for (int i = 0; i < ESP_TOP_MASS_LEVELS; i++)
    fprintf(file, "%s %d%%: %.1f%%", i ? "," : "", esp_top_mass_percents[i], percent(s->top_mass[i]));
  fputc('\n', file);
}

static void print_layer(const esp_measurement *m, int layer, FILE *file) {
  esp_layer_statistics s;
  if (m->statistics) esp_statistics_layer(m->statistics, layer, &s);
  print_layer_title(m, layer, file);
  if (m->statistics) print_layer_statistics(&s, file);
  print_expert_header(m, file);
  for (int e = 0; e < esp_model_moe(m->model, layer)->layout.experts; e++) print_expert(m, layer, e, file);
  if (m->statistics) print_usage(&s, file);
  if (m->statistics) print_sparsity(&s, file);
}

void esp_measurement_print(const esp_measurement *measurement, FILE *file) {
  if (measurement->evaluation)
    fprintf(file, "accuracy %.2f %%, loss %.4f (%lld images)\n\n", percent(measurement->evaluation->accuracy),
            measurement->evaluation->loss, (long long)measurement->evaluation->examples);
  for (int i = 0; i < esp_model_moe_count(measurement->model); i++) {
    if (i > 0) fputc('\n', file);
    print_layer(measurement, i, file);
  }
}

/* --- cost ----------------------------------------------------------------------------------------------- */

static void print_cost_row(const char *name, const char *kind, const int64_t *counts, const double *flops, FILE *file) {
  fprintf(file, "  %-14s %-5s", name, kind);
  for (int i = 0; i < 4; i++) fprintf(file, " %11lld", (long long)counts[i]);
  fprintf(file, " %10.3f %10.3f", flops[0] / 1e6, flops[1] / 1e6);
}

/* "8 of 8", and their neurons if they differ. */
static void print_experts(const esp_layer_cost *layer, FILE *file) {
  fprintf(file, "   %d of %d", layer->stored_experts, layer->experts);
  if (layer->neurons_kept < layer->widest) fprintf(file, ", %d kept", layer->neurons_kept);
  if (layer->narrowest < layer->widest) fprintf(file, ", %d to %d neurons", layer->narrowest, layer->widest);
}

void esp_model_cost_print(const esp_model_cost *cost, FILE *file) {
  fputs("                       parameters   activated    selected     touched     MFLOP     sparse   experts\n", file);
  for (int i = 0; i < cost->layer_count; i++) {
    const esp_layer_cost *l = &cost->layers[i];
    const int64_t counts[] = {l->parameters, l->activated, l->activated_selected, l->touched};
    print_cost_row(l->name, esp_layer_kind_name(l->kind), counts, (const double[]){l->flops, l->flops_selected}, file);
    if (l->experts) print_experts(l, file);
    fputc('\n', file);
  }
  const int64_t counts[] = {cost->parameters, cost->activated, cost->activated_selected, cost->touched};
  print_cost_row("whole model", "", counts, (const double[]){cost->flops, cost->flops_selected}, file);
  fputs("\n  activated: used for one token, W_gate of a MoNE in full; selected: its kept neurons only;\n"
        "  touched: used for one image; MFLOP: products of one image, a multiply-add as two; sparse: without those of\n"
        "  neurons that a MoNE does not select\n",
        file);
  fprintf(file, "  memory: %.3g GB in float32, %.3g GB in training with AdamW (gradient and two moments)\n",
          1e-9 * ESP_PARAMETER_BYTES * (double)cost->parameters,
          1e-9 * ESP_TRAINED_PARAMETER_BYTES * (double)cost->parameters);
}
