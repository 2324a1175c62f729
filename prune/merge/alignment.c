
#include <espalier/alignment.h>
#include <espalier/memory.h>
#include <espalier/parallel.h>

#include <math.h>
#include <string.h>

/* --- by weights -------------------------------------------------------------------------------------------- */

typedef struct matching {
  esp_expert_weights reference, other;
  int64_t width;
  bool include_down;
  double *gain;
} matching;

static double dot(const esp_real *a, const esp_real *b, int64_t count) {
  double sum = 0;
  ESP_SUMS(sum)
  for (int64_t i = 0; i < count; i++) sum += (double)a[i] * (double)b[i];
  return sum;
}

static void match_rows(void *context, int64_t begin, int64_t end) {
  const matching *m = context;
  const int64_t f = m->reference.neurons, width = m->width;
  for (int64_t r = begin; r < end; r++)
    for (int64_t n = 0; n < f; n++) {
      double gain = dot(m->reference.up + r * width, m->other.up + n * width, width);
      if (m->reference.gate) gain += dot(m->reference.gate + r * width, m->other.gate + n * width, width);
      if (m->include_down) gain += dot(m->reference.down + r * width, m->other.down + n * width, width);
      m->gain[r * f + n] = gain;
    }
}

void esp_weight_gains(const esp_expert_bank *bank, int reference, int other, bool include_down, double *gain) {
  matching m = {esp_expert_weights_of(bank, reference), esp_expert_weights_of(bank, other), bank->width, include_down,
                gain};
  esp_parallel_for(m.reference.neurons, 8, match_rows, &m);
}

/* --- by activations ---------------------------------------------------------------------------------------- */

esp_status esp_correlation_create(esp_correlation *c, int64_t rows, int64_t columns) {
  *c = (esp_correlation){.rows = rows, .columns = columns};
  c->sum = esp_alloc((size_t)rows, sizeof *c->sum);
  c->squares = esp_alloc((size_t)rows, sizeof *c->squares);
  c->other_sum = esp_alloc((size_t)columns, sizeof *c->other_sum);
  c->other_squares = esp_alloc((size_t)columns, sizeof *c->other_squares);
  c->products = esp_alloc((size_t)(rows * columns), sizeof *c->products);
  if (c->sum && c->squares && c->other_sum && c->other_squares && c->products) return ESP_OK;
  esp_correlation_free(c);
  return ESP_ERR_MEMORY;
}

void esp_correlation_free(esp_correlation *c) {
  esp_free(c->sum);
  esp_free(c->squares);
  esp_free(c->other_sum);
  esp_free(c->other_squares);
  esp_free(c->products);
  *c = (esp_correlation){.rows = 0};
}

typedef struct addition {
  esp_correlation *c;
  const esp_real *a, *b;
  int64_t tokens;
} addition;

static void add_products(void *context, int64_t begin, int64_t end) {
  const addition *add = context;
  const int64_t rows = add->c->rows, columns = add->c->columns;
  for (int64_t t = 0; t < add->tokens; t++)
    for (int64_t r = begin; r < end; r++) {
      const double a = (double)add->a[t * rows + r];
      const esp_real *b = add->b + t * columns;
      double *products = add->c->products + r * columns;
      for (int64_t n = 0; n < columns; n++) products[n] += a * (double)b[n];
    }
}

static void add_moments(const esp_real *values, int64_t tokens, int64_t count, double *sum, double *squares) {
  for (int64_t t = 0; t < tokens; t++)
    for (int64_t i = 0; i < count; i++) {
      const double value = (double)values[t * count + i];
      sum[i] += value;
      squares[i] += value * value;
    }
}

void esp_correlation_add(esp_correlation *c, const esp_real *a, const esp_real *b, int64_t tokens) {
  addition add = {c, a, b, tokens};
  esp_parallel_for(c->rows, 8, add_products, &add);
  add_moments(a, tokens, c->rows, c->sum, c->squares);
  add_moments(b, tokens, c->columns, c->other_sum, c->other_squares);
  c->tokens += tokens;
}

static double variance(double sum, double squares, double tokens) {
  const double value = squares - sum * sum / tokens;
  return value > 1e-12 * squares ? value : 0; /* below: what rounding left of a constant */
}

void esp_correlation_gains(const esp_correlation *c, double *gain) {
  const double tokens = (double)c->tokens;
  for (int64_t r = 0; r < c->rows; r++)
    for (int64_t n = 0; n < c->columns; n++) {
      double *g = gain + r * c->columns + n;
      *g = c->tokens < 2 && r == n;
      if (c->tokens < 2) continue;
      const double spread =
          variance(c->sum[r], c->squares[r], tokens) * variance(c->other_sum[n], c->other_squares[n], tokens);
      if (spread > 0) *g = (c->products[r * c->columns + n] - c->sum[r] * c->other_sum[n] / tokens) / sqrt(spread);
    }
}

/* --- the permutation --------------------------------------------------------------------------------------- */

esp_status esp_align(int neurons, const double *gain, int32_t *place) {
  int32_t *column = esp_alloc((size_t)neurons, sizeof *column);
  const esp_status status = column ? esp_assign(neurons, gain, column) : ESP_ERR_MEMORY;
  for (int r = 0; status == ESP_OK && r < neurons; r++) place[column[r]] = r;
  esp_free(column);
  return status;
}
