#include <espalier/factors.h>
#include <espalier/memory.h>
#include <espalier/parallel.h>
#include <espalier/row_pruning.h>

#include <math.h>
#include <string.h>

const esp_compression_config esp_compression_defaults = {
    .rank = 32, .keep = 0.10, .start = 0.04, .finish = 0.16, .beta = 0.85};

esp_status esp_compression_config_check(const esp_compression_config *c) {
  const struct {
    const char *key;
    double value, least, most;
  } ranges[] = {{"rank", c->rank, 1, 65536},
                {"keep", c->keep, 0, 1},
                {"start", c->start, 0, 1},
                {"finish", c->finish, 0, 1},
                {"beta", c->beta, 0, 0.999999}};
  for (size_t i = 0; i < sizeof ranges / sizeof ranges[0]; i++)
    if (!(ranges[i].value >= ranges[i].least && ranges[i].value <= ranges[i].most))
      return esp_fail(ESP_ERR_CONFIG, "compression.%s is %g; it must lie in [%g, %g]", ranges[i].key, ranges[i].value,
                      ranges[i].least, ranges[i].most);
  if (c->start + c->finish < 1) return ESP_OK;
  return esp_fail(
      ESP_ERR_CONFIG,
      "compression.start %g and compression.finish %g leave no steps for pruning between them; their sum must "
      "be below 1",
      c->start, c->finish);
}

double esp_compression_share(const esp_compression_config *config, int64_t step, int64_t steps) {
  const double t = (double)step, start = config->start * (double)steps, end = (1 - config->finish) * (double)steps;
  if (t >= end) return config->keep;
  if (t <= start) return 1;
  const double rest = 1 - (t - start) / (end - start);
  return config->keep + (1 - config->keep) * rest * rest * rest;
}

struct esp_row_pruning {
  esp_factors *factors; /* [count] one for each bank and direction */
  int64_t count, elements;
};

static int64_t rows_of(const esp_factors *f) { return f->s->shape[0]; }

static int64_t columns_of(const esp_factors *f) { return f->s->shape[1]; }

/* Rows that may not change are neither weighed nor pruned. */
static bool is_frozen(const esp_factors *f) {
  return f->s->frozen || f->importance->frozen || f->last_importance->frozen;
}

esp_status esp_row_pruning_create(esp_row_pruning **pruning, const esp_model *model) {
  *pruning = NULL;
  const int layers = esp_model_moe_count(model);
  esp_row_pruning *made = esp_alloc(1, sizeof *made);
  if (!made) return ESP_ERR_MEMORY;
  made->factors = esp_alloc((size_t)(2 * layers) + 1, sizeof *made->factors);
  if (!made->factors) {
    esp_free(made);
    return ESP_ERR_MEMORY;
  }
  for (int i = 0; i < layers; i++) {
    const esp_moe *moe = esp_model_moe(model, i);
    for (int m = 0; moe->layout.pruning && m < ESP_SIDES; m++) {
      if (is_frozen(&moe->bank.factors[m])) continue;
      made->factors[made->count++] = moe->bank.factors[m];
      made->elements += esp_tensor_count(moe->bank.factors[m].s);
    }
  }
  if (made->count) *pruning = made;
  else esp_row_pruning_free(made);
  return ESP_OK;
}

void esp_row_pruning_free(esp_row_pruning *pruning) {
  if (!pruning) return;
  esp_free(pruning->factors);
  esp_free(pruning);
}

/* --- importance --- */

typedef struct weighing {
  const esp_factors *factors;
  esp_real beta, rest;
  bool has_gradient;
} weighing;

ESP_HOT static void weigh_rows(void *context, int64_t begin, int64_t end) {
  const weighing *w = context;
  const int64_t columns = columns_of(w->factors);
  esp_real *restrict average = w->factors->importance->data, *restrict last = w->factors->last_importance->data;
  for (int64_t r = begin; r < end; r++) {
    const esp_real *restrict s = w->factors->s->data + r * columns, *restrict g = w->factors->s->grad + r * columns;
    esp_real sum = 0;
    ESP_SUMS(sum)
    for (int64_t i = 0; i < columns; i++) sum += s[i] * g[i] < 0 ? -s[i] * g[i] : s[i] * g[i];
    average[r] = w->beta * average[r] + w->rest * last[r];
    last[r] = w->has_gradient ? sum / (esp_real)columns : 0;
  }
}

/* --- the threshold --- */

/* Importances are not negative, so that their bits are in the order of their values. */
static uint32_t bits_of(esp_real importance) {
  const float value = (float)importance;
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

/* Elements in rows whose importance is at most `limit`. */
static int64_t elements_up_to(const esp_row_pruning *pruning, uint32_t limit) {
  int64_t elements = 0;
  for (int64_t m = 0; m < pruning->count; m++) {
    const esp_factors *f = &pruning->factors[m];
    for (int64_t r = 0; r < rows_of(f); r++)
      if (bits_of(f->importance->data[r]) <= limit) elements += columns_of(f);
  }
  return elements;
}

/* The least importance up to which there are more elements than the surplus: bit by bit. */
static uint32_t find_threshold(const esp_row_pruning *pruning, int64_t surplus) {
  uint32_t low = 0, high = UINT32_MAX;
  while (low < high) {
    const uint32_t middle = low + (high - low) / 2;
    if (elements_up_to(pruning, middle) > surplus) high = middle;
    else low = middle + 1;
  }
  return low;
}

static void clear_row(const esp_factors *f, int64_t row) {
  memset(f->s->data + row * columns_of(f), 0, (size_t)columns_of(f) * sizeof(esp_real));
}

/* Rows below the threshold all go; of those at it the last ones, as long as their elements are part of the surplus. */
static void clear_rows(const esp_row_pruning *pruning, int64_t surplus) {
  const uint32_t threshold = find_threshold(pruning, surplus);
  int64_t left = surplus - (threshold > 0 ? elements_up_to(pruning, threshold - 1) : 0);
  for (int64_t m = pruning->count - 1; m >= 0; m--) {
    const esp_factors *f = &pruning->factors[m];
    for (int64_t r = rows_of(f) - 1; r >= 0; r--) {
      const uint32_t bits = bits_of(f->importance->data[r]);
      const bool at = bits == threshold && columns_of(f) <= left;
      if (at) left -= columns_of(f);
      if (at || bits < threshold) clear_row(f, r);
    }
  }
}

void esp_row_pruning_step(esp_row_pruning *pruning, double beta, double share) {
  for (int64_t m = 0; m < pruning->count; m++) {
    weighing w = {&pruning->factors[m], (esp_real)beta, (esp_real)(1 - beta), pruning->factors[m].s->requires_grad};
    esp_parallel_for(rows_of(w.factors), 64, weigh_rows, &w);
  }
  const int64_t surplus = (int64_t)floor((double)pruning->elements * (1 - share) + 1e-6);
  if (surplus > 0) clear_rows(pruning, surplus);
}

int64_t esp_row_pruning_elements(const esp_row_pruning *pruning) { return pruning->elements; }

int64_t esp_row_pruning_left(const esp_row_pruning *pruning) {
  int64_t left = 0;
  for (int64_t m = 0; m < pruning->count; m++) {
    const esp_factors *f = &pruning->factors[m];
    for (int64_t r = 0; r < rows_of(f); r++)
      if (!esp_sparse_row_is_zero(f, r)) left += columns_of(f);
  }
  return left;
}
