#include <espalier/assignment.h>
#include <espalier/memory.h>

#include <math.h>

/* Costs are negative gains. The price of a column and, implied by it, that of its row keep every reduced cost
 * (cost - price of the row - price of the column) at least 0, and at 0 where a row has its column. */
typedef struct solver {
  int n;
  const double *gain;
  int32_t *column; /* [n] of each row; -1: none yet */
  int32_t *row;    /* [n] of each column; -1: none yet */
  double *price;   /* [n] of columns */
  double *length;  /* [n] of the shortest path found so far from the free row to each column */
  int32_t *from;   /* [n] the row before that column on its path */
  bool *final;     /* [n] whether the path cannot get shorter */
} solver;

/* Lengthens paths by the edges of `row`, which lies at the end of a path of length `length`. */
static void relax(solver *s, int32_t row, double length) {
  const double *gain = s->gain + (int64_t)row * s->n;
  const double base = s->column[row] < 0 ? 0 : -gain[s->column[row]] - s->price[s->column[row]];
  for (int j = 0; j < s->n; j++) {
    const double through = length + (-gain[j] - s->price[j] - base);
    if (s->final[j] || through >= s->length[j]) continue;
    s->length[j] = through;
    s->from[j] = row;
  }
}

static int32_t nearest(const solver *s) {
  int32_t best = -1;
  for (int32_t j = 0; j < s->n; j++)
    if (!s->final[j] && (best < 0 || s->length[j] < s->length[best])) best = j;
  return best;
}

/* Dijkstra's algorithm from a free row to the nearest free column, which is returned. */
static int32_t shortest_path(solver *s, int32_t start) {
  for (int j = 0; j < s->n; j++) {
    s->length[j] = HUGE_VAL;
    s->final[j] = false;
  }
  relax(s, start, 0);
  for (;;) {
    const int32_t j = nearest(s);
    if (s->row[j] < 0) return j;
    s->final[j] = true;
    relax(s, s->row[j], s->length[j]);
  }
}

static void augment(solver *s, int32_t start) {
  int32_t j = shortest_path(s, start);
  for (int k = 0; k < s->n; k++)
    if (s->final[k]) s->price[k] += s->length[k] - s->length[j];
  for (int32_t row = -1; row != start;) {
    row = s->from[j];
    const int32_t given_up = s->column[row];
    s->row[j] = row;
    s->column[row] = j;
    j = given_up;
  }
}

static esp_status solve(solver *s) {
  const size_t n = (size_t)s->n;
  s->row = esp_alloc(n, sizeof *s->row);
  s->price = esp_alloc(n, sizeof *s->price);
  s->length = esp_alloc(n, sizeof *s->length);
  s->from = esp_alloc(n, sizeof *s->from);
  s->final = esp_alloc(n, sizeof *s->final);
  if (!s->row || !s->price || !s->length || !s->from || !s->final) return ESP_ERR_MEMORY;
  for (int i = 0; i < s->n; i++) s->row[i] = s->column[i] = -1;
  for (int32_t i = 0; i < s->n; i++) augment(s, i);
  return ESP_OK;
}

esp_status esp_assign(int n, const double *gain, int32_t *column) {
  for (int64_t i = 0; i < (int64_t)n * n; i++)
    if (!isfinite(gain[i]))
      return esp_fail(ESP_ERR_NOT_FINITE, "the gain of row %lld and column %lld is not finite", (long long)(i / n),
                      (long long)(i % n));
  solver s = {.n = n, .gain = gain, .column = column};
  const esp_status status = solve(&s);
  esp_free(s.row);
  esp_free(s.price);
  esp_free(s.length);
  esp_free(s.from);
  esp_free(s.final);
  return status;
}
