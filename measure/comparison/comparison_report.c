#include <espalier/comparison.h>
#include <espalier/core.h>
#include <espalier/json_file.h>

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

const char *esp_compared_value_name(esp_compared_value value) {
  static const char *const names[ESP_COMPARED_VALUES] = {"validation_accuracy",
                                                         "accuracy",
                                                         "loss",
                                                         "parameters",
                                                         "activated_parameters",
                                                         "activated_parameters_selected",
                                                         "touched_parameters",
                                                         "flops_per_image",
                                                         "flops_per_image_selected",
                                                         "near_zero_0.01",
                                                         "near_zero_0.1",
                                                         "neurons_used",
                                                         "neuron_gini",
                                                         "dead_neurons",
                                                         "images_per_second",
                                                         "milliseconds_per_image"};
  return names[value];
}

/* --- summaries ------------------------------------------------------------------------------------------ */

static const esp_compared_run *find_baseline(const esp_comparison *c, uint64_t seed) {
  for (int i = 0; i < c->run_count; i++)
    if (c->runs[i].variant->kind == ESP_VARIANT_MOE && c->runs[i].seed == seed) return &c->runs[i];
  return NULL;
}

/* Averages the runs of one variant, or their differences to the baseline's. Returns how many there are. */
static int mean_of(const esp_comparison *c, const esp_variant *variant, int value, bool differences, double *mean,
                   double *deviation) {
  int count = 0;
  double sum = 0, squares = 0;
  for (int pass = 0; pass < 2; pass++) {
    for (int i = 0; i < c->run_count; i++) {
      const esp_compared_run *run = &c->runs[i], *baseline = differences ? find_baseline(c, run->seed) : NULL;
      if (run->variant != variant || (differences && !baseline)) continue;
      const double x = run->values[value] - (baseline ? baseline->values[value] : 0);
      if (isnan(x)) continue; /* not measured in this run */
      if (pass == 0) {
        sum += x;
        count++;
      } else {
        squares += (x - *mean) * (x - *mean);
      }
    }
    if (pass == 0) *mean = count ? sum / count : (double)NAN;
  }
  *deviation = count > 1 ? sqrt(squares / (count - 1)) : (double)NAN;
  return count;
}

int esp_comparison_summaries(const esp_comparison *c, esp_compared_summary *summaries) {
  int count = 0;
  for (int i = 0; i < c->run_count; i++) {
    const esp_variant *variant = c->runs[i].variant;
    bool known = false;
    for (int j = 0; j < count; j++) known |= summaries[j].first->variant == variant;
    if (known) continue;
    esp_compared_summary *s = &summaries[count++];
    s->first = &c->runs[i];
    for (int v = 0; v < ESP_COMPARED_VALUES; v++) {
      mean_of(c, variant, v, false, &s->mean[v], &s->deviation[v]);
      mean_of(c, variant, v, true, &s->difference[v], &s->difference_deviation[v]);
    }
    double mean, deviation;
    s->seeds = mean_of(c, variant, ESP_COMPARED_ACCURACY, false, &mean, &deviation);
    s->pairs = mean_of(c, variant, ESP_COMPARED_ACCURACY, true, &mean, &deviation);
  }
  return count;
}

/* Summaries that the caller frees; NULL if memory is short. */
static esp_compared_summary *summarise(const esp_comparison *c, int *count) {
  esp_compared_summary *summaries = esp_alloc((size_t)c->run_count + 1, sizeof *summaries);
  if (summaries) *count = esp_comparison_summaries(c, summaries);
  return summaries;
}

/* --- files ---------------------------------------------------------------------------------------------- */

static void put_number(double value, FILE *file) {
  fputc(',', file);
  if (isfinite(value)) fprintf(file, "%.10g", value);
}

static void put_names(const char *suffix, FILE *file) {
  for (int v = 0; v < ESP_COMPARED_VALUES; v++)
    fprintf(file, ",%s%s", esp_compared_value_name((esp_compared_value)v), suffix);
}

static void write_runs(const void *context, FILE *file) {
  const esp_comparison *c = context;
  fputs("variant,seed,top_k,neurons,neurons_kept", file);
  put_names("", file);
  fputc('\n', file);
  for (int i = 0; i < c->run_count; i++) {
    const esp_compared_run *r = &c->runs[i];
    fprintf(file, "%s,%llu,%d,%d,%d", r->variant->name, (unsigned long long)r->seed, r->top_k, r->neurons,
            r->neurons_kept);
    for (int v = 0; v < ESP_COMPARED_VALUES; v++) put_number(r->values[v], file);
    fputc('\n', file);
  }
}

typedef struct summary_list {
  const esp_compared_summary *summaries;
  int count;
} summary_list;

static void write_summaries(const void *context, FILE *file) {
  const summary_list *list = context;
  fputs("variant,seeds,top_k,neurons,neurons_kept,pairs", file);
  for (int v = 0; v <= ESP_COMPARED_LOSS; v++) {
    const char *name = esp_compared_value_name((esp_compared_value)v);
    fprintf(file, ",%s_difference,%s_difference_deviation", name, name);
  }
  put_names("", file);
  put_names("_deviation", file);
  fputc('\n', file);
  for (int i = 0; i < list->count; i++) {
    const esp_compared_summary *s = &list->summaries[i];
    fprintf(file, "%s,%d,%d,%d,%d,%d", s->first->variant->name, s->seeds, s->first->top_k, s->first->neurons,
            s->first->neurons_kept, s->pairs);
    for (int v = 0; v <= ESP_COMPARED_LOSS; v++) {
      put_number(s->difference[v], file);
      put_number(s->difference_deviation[v], file);
    }
    for (int v = 0; v < ESP_COMPARED_VALUES; v++) put_number(s->mean[v], file);
    for (int v = 0; v < ESP_COMPARED_VALUES; v++) put_number(s->deviation[v], file);
    fputc('\n', file);
  }
}

static json_t *real(double value) { return isfinite(value) ? json_real(value) : json_null(); }

static json_t *start_json(const esp_compared_run *run) {
  return json_pack("{s:s, s:i, s:i, s:i}", "variant", run->variant->name, "top_k", run->top_k, "neurons", run->neurons,
                   "neurons_kept", run->neurons_kept);
}

static json_t *run_json(const esp_compared_run *run) {
  json_t *json = start_json(run);
  json_object_set_new(json, "seed", json_integer((json_int_t)run->seed));
  for (int v = 0; v < ESP_COMPARED_VALUES; v++)
    json_object_set_new(json, esp_compared_value_name((esp_compared_value)v), real(run->values[v]));
  return json;
}

static json_t *summary_json(const esp_compared_summary *s) {
  json_t *json = start_json(s->first);
  json_object_set_new(json, "seeds", json_integer(s->seeds));
  json_object_set_new(json, "pairs", json_integer(s->pairs));
  for (int v = 0; v < ESP_COMPARED_VALUES; v++) {
    json_t *value = json_pack("{s:o, s:o}", "mean", real(s->mean[v]), "deviation", real(s->deviation[v]));
    if (v <= ESP_COMPARED_LOSS) {
      json_object_set_new(value, "difference", real(s->difference[v]));
      json_object_set_new(value, "difference_deviation", real(s->difference_deviation[v]));
    }
    json_object_set_new(json, esp_compared_value_name((esp_compared_value)v), value);
  }
  return json;
}

json_t *esp_comparison_json(const esp_comparison *c) {
  int count = 0;
  esp_compared_summary *summaries = summarise(c, &count);
  if (!summaries) return NULL;
  json_t *runs = json_array(), *variants = json_array();
  for (int i = 0; i < c->run_count; i++) json_array_append_new(runs, run_json(&c->runs[i]));
  for (int i = 0; i < count; i++) json_array_append_new(variants, summary_json(&summaries[i]));
  esp_free(summaries);
  return json_pack("{s:s, s:s, s:i, s:s, s:s, s:o, s:o}", "config", c->config, "data", c->data, "threads",
                   esp_threads(), "blas_kernel", esp_blas_kernel(), "product_kernel", esp_gemm_kernel(), "runs", runs,
                   "variants", variants);
}

/* --- figure --------------------------------------------------------------------------------------------- */

static esp_status write_figure(const esp_comparison *c, const summary_list *list, const char *folder) {
  esp_figure_series *curves = esp_alloc((size_t)list->count + 1, sizeof *curves);
  if (!curves) return ESP_ERR_MEMORY;
  bool spread = false;
  for (int i = 0; i < list->count; i++) {
    curves[i] = (esp_figure_series){list->summaries[i].first->variant->name, NULL};
    spread |= list->summaries[i].seeds > 1;
  }
  const esp_figure_panel panels[] = {{.title = "the gate counted in full",
                                      .x_label = "activated parameters",
                                      .x_format = "%.0s%c",
                                      .y_label = "test accuracy",
                                      .x = "activated_parameters",
                                      .y = "accuracy",
                                      .low = "accuracy_deviation"},
                                     {.title = "selected neurons only",
                                      .x_label = "activated parameters",
                                      .x_format = "%.0s%c",
                                      .y_label = "test accuracy",
                                      .x = "activated_parameters_selected",
                                      .y = "accuracy",
                                      .low = "accuracy_deviation"}};
  char title[200];
  snprintf(title, sizeof title, "MoE and MoNE on %.80s: mean over seeds%s", c->data,
           spread ? " and their standard deviation" : "");
  const esp_figure figure = {.csv = "compare_summary.csv",
                             .title = title,
                             .series = "variant",
                             .curves = curves,
                             .curve_count = list->count,
                             .panels = panels,
                             .panel_count = 2,
                             .spread = spread ? ESP_SPREAD_DEVIATION : ESP_SPREAD_NONE,
                             .points = true};
  const esp_status status = esp_figure_write(&figure, folder, "compare");
  esp_free(curves);
  return status;
}

esp_status esp_comparison_write(const esp_comparison *c, const char *folder) {
  summary_list list = {.count = 0};
  esp_compared_summary *summaries = summarise(c, &list.count);
  if (!summaries) return ESP_ERR_MEMORY;
  list.summaries = summaries;
  esp_status status = esp_file_compose(folder, "compare.csv", write_runs, c);
  if (status == ESP_OK) status = esp_file_compose(folder, "compare_summary.csv", write_summaries, &list);
  if (status == ESP_OK) status = esp_json_write(folder, "compare.json", esp_comparison_json(c), 10);
  if (status == ESP_OK) status = write_figure(c, &list, folder);
  esp_free(summaries);
  return status;
}

/* --- table ---------------------------------------------------------------------------------------------- */

/* "71.32 +- 0.41", in percent; the spread only if there is one. */
static const char *spread_text(double mean, double deviation, bool sign, char text[32]) {
  if (!isfinite(mean)) snprintf(text, 32, "-");
  else if (!isfinite(deviation)) snprintf(text, 32, sign ? "%+.2f" : "%.2f", 100 * mean);
  else snprintf(text, 32, sign ? "%+.2f +- %.2f" : "%.2f +- %.2f", 100 * mean, 100 * deviation);
  return text;
}

static const char *share_text(double share, char text[32]) {
  snprintf(text, 32, isfinite(share) ? "%.1f" : "-", 100 * share);
  return text;
}

static void print_row(const esp_compared_summary *s, FILE *file) {
  char validation[32], accuracy[32], difference[32], near_zero[32], gini[32];
  const double *m = s->mean;
  const bool baseline = s->first->variant->kind == ESP_VARIANT_MOE;
  fprintf(file,
          "%-28s %5d %2d %4d/%-4d %-14s %-14s %-14s %8.4f %10.0f %9.0f %9.0f %9.0f %7.2f %7.2f %6s %5s %7.0f %7.3f\n",
          s->first->variant->name, s->seeds, s->first->top_k, s->first->neurons_kept, s->first->neurons,
          spread_text(m[ESP_COMPARED_VALIDATION_ACCURACY], s->deviation[ESP_COMPARED_VALIDATION_ACCURACY], false,
                      validation),
          spread_text(m[ESP_COMPARED_ACCURACY], s->deviation[ESP_COMPARED_ACCURACY], false, accuracy),
          baseline ? ""
                   : spread_text(s->difference[ESP_COMPARED_ACCURACY], s->difference_deviation[ESP_COMPARED_ACCURACY],
                                 true, difference),
          m[ESP_COMPARED_LOSS], m[ESP_COMPARED_PARAMETERS], m[ESP_COMPARED_ACTIVATED],
          m[ESP_COMPARED_ACTIVATED_SELECTED], m[ESP_COMPARED_TOUCHED], 1e-6 * m[ESP_COMPARED_FLOPS],
          1e-6 * m[ESP_COMPARED_FLOPS_SELECTED], share_text(m[ESP_COMPARED_NEAR_ZERO_TENTH], near_zero),
          share_text(m[ESP_COMPARED_NEURON_GINI], gini), m[ESP_COMPARED_TRAINING_RATE], m[ESP_COMPARED_MILLISECONDS]);
}

void esp_comparison_print(const esp_comparison *c, FILE *file) {
  int count = 0;
  esp_compared_summary *summaries = summarise(c, &count);
  if (!summaries) return;
  fprintf(file, "%-28s %5s %2s %9s %-14s %-14s %-14s %8s %10s %9s %9s %9s %7s %7s %6s %5s %7s %7s\n", "variant",
          "seeds", "k", "kept/f", "validation %", "test %", "minus MoE", "loss", "parameters", "activated", "selected",
          "touched", "MFLOP", "skipped", "near 0", "Gini", "images/s", "ms");
  for (int i = 0; i < count; i++) print_row(&summaries[i], file);
  fputs(
      "validation: accuracy on the validation split, for whatever is to be chosen; test: on the test split, as the "
      "difference from the MoE and the loss are.\nactivated: parameters of one token, the matrix that ranks the "
      "neurons in full; selected: kept neurons only; touched: what an image may read.\nMFLOP: of an image, as computed "
      "in training; skipped: if unselected neurons are skipped; near 0: % of gate activations\nwithin 0.1 of zero; "
      "Gini: % of how unevenly a MoNE's neurons are selected; images/s: in training; ms: a single image, median.\n",
      file);
  esp_free(summaries);
}
