#include <espalier/core.h>
#include <espalier/factors.h>
#include <espalier/figure.h>
#include <espalier/gates.h>
#include <espalier/sparsify.h>

#include <math.h>

const double esp_sparsify_shares[ESP_SPARSIFY_SHARES] = {0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99};

const char *esp_sparsify_order_name(esp_sparsify_order order) {
  static const char *const names[ESP_SPARSIFY_ORDERS] = {"smallest", "largest", "random", "contribution"};
  return names[order];
}

/* --- leaving out ---------------------------------------------------------------------------------------- */

typedef struct ranked {
  float key; /* low ones are left out first */
  int32_t index;
} ranked;

/* What goes on in one evaluation. */
typedef struct study {
  const esp_model *model;
  double *norms[ESP_MAX_BLOCKS]; /* of each mixture layer [stored x f]: of the rows of W_down */
  uint64_t seed;
  esp_sparsify_order order;
  double share;
  int64_t rows; /* seen so far in this evaluation: key of the random order */
  bool failed;  /* for want of memory some rows were left as they are */
  int64_t activated[ESP_PARTS], left[ESP_PARTS];
} study;

typedef struct filtering {
  study *s;
  const esp_expert_bank *bank;
  const double *norms;
  const int64_t *first_row;
  const esp_bank_trace *trace;
  ranked *items; /* [ESP_PARTS][f] */
} filtering;

static bool goes_before(ranked a, ranked b) { return a.key < b.key || (a.key == b.key && a.index > b.index); }

/* Moves the `count` first to go to the front, in any order (Hoare's selection). */
static void put_first(ranked *items, int64_t size, int64_t count) {
  int64_t low = 0, high = size - 1;
  while (low < high) {
    const ranked pivot = items[low + (high - low) / 2];
    int64_t i = low, j = high;
    while (i <= j) {
      while (goes_before(items[i], pivot)) i++;
      while (goes_before(pivot, items[j])) j--;
      if (i > j) break;
      const ranked kept = items[i];
      items[i++] = items[j];
      items[j--] = kept;
    }
    if (count - 1 <= j) high = j;
    else if (count - 1 >= i) low = i;
    else return;
  }
}

static float key_of(const filtering *f, int64_t row, int expert, int64_t j, esp_real gate, esp_random *random) {
  const int64_t columns = esp_tensor_columns(f->trace->selected);
  switch (f->s->order) {
  case ESP_SPARSIFY_SMALLEST:
    return fabsf((float)gate);
  case ESP_SPARSIFY_LARGEST:
    return -fabsf((float)gate);
  case ESP_SPARSIFY_RANDOM:
    return (float)esp_random_uniform(random);
  case ESP_SPARSIFY_CONTRIBUTION:
  case ESP_SPARSIFY_ORDERS:
    break;
  }
  return (float)(fabs((double)f->trace->selected->data[row * columns + j]) * f->norms[expert * columns + j]);
}

static void filter_row(const filtering *f, int64_t part, int64_t row, int expert) {
  study *s = f->s;
  const int64_t columns = esp_tensor_columns(f->trace->selected), neurons = esp_expert_width(f->bank, expert);
  const esp_activation_kind activation = f->bank->activation;
  const bool gated = esp_activation_is_gated(activation);
  const esp_real *middle = f->trace->pre->data + row * esp_tensor_columns(f->trace->pre);
  const uint8_t *mask = f->trace->mask ? f->trace->mask + row * columns : NULL;
  ranked *items = f->items + part * columns;
  esp_random random = esp_random_stream(s->seed, ESP_PURPOSE_SPARSIFY, (uint64_t)(s->rows + row));
  int64_t count = 0;
  for (int64_t j = 0; j < neurons; j++) {
    if (mask && !mask[j]) continue;
    esp_real gate = f->trace->activation->data[row * columns + j];
    if (gated) esp_gate_values(esp_activation_gate(activation), &middle[j], 1, &gate);
    items[count++] = (ranked){key_of(f, row, expert, j, gate, &random), (int32_t)j};
  }
  const int64_t masked = (int64_t)(s->share * (double)count + 0.5);
  if (masked) put_first(items, count, masked);
  for (int64_t i = 0; i < masked; i++) f->trace->selected->data[row * columns + items[i].index] = 0;
  s->activated[part] += count;
  s->left[part] += count - masked;
}

static void filter_parts(void *context, int64_t begin, int64_t end) {
  const filtering *f = context;
  const int64_t rows = f->first_row[f->bank->experts];
  for (int64_t part = begin; part < end; part++) {
    int expert = 0;
    for (int64_t row = esp_part_begin(rows, part); row < esp_part_begin(rows, part + 1); row++) {
      while (row >= f->first_row[expert + 1]) expert++;
      filter_row(f, part, row, expert);
    }
  }
}

static int layer_of(const esp_model *model, const esp_expert_bank *bank) {
  int layer = 0;
  while (&esp_model_moe(model, layer)->bank != bank) layer++;
  return layer;
}

static void filter_rows(void *context, const esp_expert_bank *bank, const int64_t *first_row,
                        const esp_bank_trace *trace) {
  study *s = context;
  filtering f = {s, bank, s->norms[layer_of(s->model, bank)], first_row, trace, NULL};
  f.items = esp_alloc((size_t)ESP_PARTS * (size_t)esp_tensor_columns(trace->selected), sizeof *f.items);
  if (!f.items) {
    s->failed = true;
    return;
  }
  esp_parallel_for(ESP_PARTS, 1, filter_parts, &f);
  esp_free(f.items);
  s->rows += first_row[bank->experts];
}

/* --- norms of the rows of W_down ------------------------------------------------------------------------ */

static void set_norms(const esp_expert_bank *bank, double *matrix, double *norms) {
  const int down = esp_expert_matrix_count(bank) - 1;
  for (int e = 0; e < bank->experts; e++) {
    const esp_expert_matrix m = esp_expert_matrix_at(bank, e, down);
    esp_expert_matrix_read(bank, e, &m, matrix);
    for (int64_t j = 0; j < m.in; j++) {
      double squares = 0;
      for (int64_t i = 0; i < m.out; i++) squares += matrix[i * m.in + j] * matrix[i * m.in + j];
      norms[e * bank->hidden + j] = sqrt(squares);
    }
  }
}

static esp_status make_norms(study *s) {
  for (int i = 0; i < esp_model_moe_count(s->model); i++) {
    const esp_expert_bank *bank = &esp_model_moe(s->model, i)->bank;
    double *matrix = esp_alloc((size_t)bank->hidden, (size_t)bank->width * sizeof *matrix);
    s->norms[i] = esp_alloc((size_t)bank->experts, (size_t)bank->hidden * sizeof *s->norms[i]);
    const bool made = matrix && s->norms[i];
    if (made) set_norms(bank, matrix, s->norms[i]);
    esp_free(matrix);
    if (!made) return ESP_ERR_MEMORY;
  }
  return ESP_OK;
}

/* --- the study ------------------------------------------------------------------------------------------ */

int64_t esp_sparsify_count(const esp_sparsify_options *options) {
  return (int64_t)(1 + options->end_layer - options->first_layer) * ESP_SPARSIFY_ORDERS * ESP_SPARSIFY_SHARES;
}

static esp_status evaluate_point(study *s, const esp_dataset *dataset, const esp_normalisation *normalisation,
                                 const esp_sparsify_options *options, esp_sparsify_point *point) {
  const esp_neuron_filter filter = {filter_rows, s,
                                    point->layer < 0 ? -1 : esp_model_moe(s->model, point->layer)->block};
  esp_evaluation_options evaluating = options->evaluation;
  esp_evaluation evaluation;
  int64_t activated = 0, left = 0;
  s->order = point->order;
  s->share = point->share;
  s->rows = 0;
  s->failed = false;
  for (int i = 0; i < ESP_PARTS; i++) s->activated[i] = s->left[i] = 0;
  evaluating.filter = &filter;
  ESP_TRY(esp_evaluate(s->model, dataset, normalisation, &evaluating, &evaluation));
  if (s->failed) return esp_fail(ESP_ERR_MEMORY, "out of memory while neurons were being left out");
  for (int i = 0; i < ESP_PARTS; i++) {
    activated += s->activated[i];
    left += s->left[i];
  }
  point->accuracy = evaluation.accuracy;
  point->loss = evaluation.loss;
  point->active = activated ? (double)left / (double)activated : (double)NAN;
  return ESP_OK;
}

/* Sets what each point is, and evaluates it; with nothing left out all orders and layers are the same. */
static esp_status evaluate_points(study *s, const esp_dataset *dataset, const esp_normalisation *normalisation,
                                  const esp_sparsify_options *options, esp_sparsify_point *points) {
  const int64_t count = esp_sparsify_count(options);
  for (int64_t i = 0; i < count; i++) {
    const int64_t curve = i / ESP_SPARSIFY_SHARES, layer = curve / ESP_SPARSIFY_ORDERS;
    esp_sparsify_point *p = &points[i];
    *p = (esp_sparsify_point){.layer = layer ? options->first_layer + (int)layer - 1 : -1,
                              .order = (esp_sparsify_order)(curve % ESP_SPARSIFY_ORDERS),
                              .share = esp_sparsify_shares[i % ESP_SPARSIFY_SHARES]};
    if (options->stop && *options->stop)
      return esp_fail(ESP_ERR_INTERRUPTED, "stopped after %lld of %lld evaluations; nothing is written", (long long)i,
                      (long long)count);
    if (i && !(p->share > 0)) {
      p->accuracy = points[0].accuracy;
      p->loss = points[0].loss;
      p->active = points[0].active;
      continue;
    }
    ESP_TRY(evaluate_point(s, dataset, normalisation, options, p));
    if (options->progress) options->progress(options->context, i + 1, count);
  }
  return ESP_OK;
}

esp_status esp_sparsify(const esp_model *model, const esp_dataset *dataset, const esp_normalisation *normalisation,
                        const esp_sparsify_options *options, esp_sparsify_point *points) {
  study s = {.model = model, .seed = options->seed};
  if (!esp_model_moe_count(model))
    return esp_fail(ESP_ERR_MISMATCH, "the model has no mixture layer whose experts' neurons could be left out");
  esp_status status = make_norms(&s);
  if (status == ESP_OK) status = evaluate_points(&s, dataset, normalisation, options, points);
  for (int i = 0; i < esp_model_moe_count(model); i++) esp_free(s.norms[i]);
  return status;
}

/* --- files and tables ----------------------------------------------------------------------------------- */

typedef struct report {
  const esp_model *model;
  const esp_sparsify_point *points;
  int64_t count;
} report;

static const char *layer_name(const esp_model *model, int layer) {
  return layer < 0 ? "all" : esp_model_moe(model, layer)->scope;
}

static void write_points(const void *context, FILE *file) {
  const report *r = context;
  fputs("layer,order,q,accuracy,loss,active\n", file);
  for (int64_t i = 0; i < r->count; i++) {
    const esp_sparsify_point *p = &r->points[i];
    fprintf(file, "%s,%s,%g,%.9g,%.9g,%.9g\n", layer_name(r->model, p->layer), esp_sparsify_order_name(p->order),
            p->share, p->accuracy, p->loss, p->active);
  }
}

static esp_status write_figure(const char *title, const char *folder, const char *name, bool layers,
                               const esp_figure_series *curves, int count) {
  const char *where = layers ? "order" : "layer", *is = layers ? "smallest" : "all";
  static const char x_label[] = "share q of the activated neurons left out";
  const esp_figure_panel panels[] = {
      {.x_label = x_label, .y_label = "accuracy", .x = "q", .y = "accuracy", .where = where, .is = is},
      {.x_label = x_label, .y_label = "loss (nats)", .x = "q", .y = "loss", .where = where, .is = is}};
  const esp_figure figure = {.csv = "sparsify.csv",
                             .title = title,
                             .series = layers ? "layer" : "order",
                             .curves = curves,
                             .curve_count = count,
                             .panels = panels,
                             .panel_count = 2};
  return esp_figure_write(&figure, folder, name);
}

esp_status esp_sparsify_write(const esp_model *model, const esp_sparsify_point *points, int64_t count,
                              const char *title, const char *folder) {
  static const esp_figure_series orders[ESP_SPARSIFY_ORDERS] = {{"smallest", "smallest |G|"},
                                                                {"largest", "largest |G|"},
                                                                {"random", "at random"},
                                                                {"contribution", "smallest contribution"}};
  esp_figure_series layers[ESP_MAX_BLOCKS + 1];
  const int64_t curve = ESP_SPARSIFY_ORDERS * ESP_SPARSIFY_SHARES;
  int layer_count = 0;
  for (int64_t i = 0; i < count; i += curve)
    layers[layer_count++] = (esp_figure_series){layer_name(model, points[i].layer), NULL};
  ESP_TRY(esp_file_compose(folder, "sparsify.csv", write_points, &(report){model, points, count}));
  ESP_TRY(write_figure(title, folder, "sparsify", false, orders, ESP_SPARSIFY_ORDERS));
  return layer_count > 1 ? write_figure(title, folder, "sparsify_layers", true, layers, layer_count) : ESP_OK;
}

void esp_sparsify_print(const esp_model *model, const esp_sparsify_point *points, int64_t count, FILE *file) {
  fputs("accuracy in % with a share q of the activated neurons left out\n  layer          first to go", file);
  for (int i = 0; i < ESP_SPARSIFY_SHARES; i++) fprintf(file, " %6g", esp_sparsify_shares[i]);
  for (int64_t i = 0; i < count; i++) {
    if (i % ESP_SPARSIFY_SHARES == 0)
      fprintf(file, "\n  %-14s %-11s", layer_name(model, points[i].layer), esp_sparsify_order_name(points[i].order));
    fprintf(file, " %6.2f", 100 * points[i].accuracy);
  }
  fputc('\n', file);
}
