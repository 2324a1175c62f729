#include <espalier/factors.h>

#include <stdio.h>
#include <string.h>

static bool is_gated(const esp_expert_bank *bank) { return esp_activation_is_gated(bank->activation); }

static int parts_of(const esp_expert_bank *bank, int side) { return side == ESP_SIDE_UP && is_gated(bank) ? 2 : 1; }

int64_t esp_factors_rows(const esp_expert_bank *bank, int side) {
  return side == ESP_SIDE_UP ? (int64_t)parts_of(bank, side) * bank->hidden : bank->width;
}

int64_t esp_factors_columns(const esp_expert_bank *bank, int side) {
  return side == ESP_SIDE_UP ? bank->width : bank->hidden;
}

/* --- declaration --- */

typedef struct declaration {
  esp_parameters *parameters;
  const char *scope, *name;
} declaration;

static esp_status declare(const declaration *d, esp_tensor **place, const char *ending,
                          const esp_parameter_options *options) {
  char name[48];
  snprintf(name, sizeof name, "%s_%s", d->name, ending);
  return esp_take_parameter(place, esp_parameters_add(d->parameters, d->scope, name, options));
}

static esp_status declare_side(esp_factors *f, const declaration *d, const esp_expert_bank *bank,
                               const esp_expert_layout *layout, int side) {
  const int64_t experts = bank->experts, in = esp_factors_columns(bank, side), rank = layout->rank;
  *f = (esp_factors){.parts = parts_of(bank, side), .counts = layout->sparse_rows[side]};
  const int64_t listed = esp_first_sparse_row(f, bank->experts), n = listed ? listed : 1;
  const esp_parameter_options list = {.kind = ESP_KIND_STATE, .rank = 1, .shape = {n}};
  ESP_TRY(declare(d, &f->u, "u",
                  &(esp_parameter_options){
                      .kind = ESP_KIND_WEIGHT, .rank = 3, .shape = {experts, esp_factors_rows(bank, side), rank}}));
  ESP_TRY(
      declare(d, &f->v, "v",
              &(esp_parameter_options){.kind = ESP_KIND_WEIGHT, .rank = 3, .shape = {experts, f->parts * rank, in}}));
  ESP_TRY(declare(d, &f->s, "s", &(esp_parameter_options){.kind = ESP_KIND_WEIGHT, .rank = 2, .shape = {n, in}}));
  ESP_TRY(declare(d, &f->rows, "rows", &list));
  if (!layout->pruning) return ESP_OK;
  ESP_TRY(declare(d, &f->importance, "importance", &list));
  return declare(d, &f->last_importance, "last_importance", &list);
}

esp_status esp_factors_declare(esp_expert_bank *bank, esp_parameters *parameters, const char *scope,
                               const esp_expert_layout *layout) {
  const declaration up = {parameters, scope, is_gated(bank) ? "gate_up" : "up"}, down = {parameters, scope, "down"};
  bank->rank = layout->rank;
  ESP_TRY(declare_side(&bank->factors[ESP_SIDE_UP], &up, bank, layout, ESP_SIDE_UP));
  return declare_side(&bank->factors[ESP_SIDE_DOWN], &down, bank, layout, ESP_SIDE_DOWN);
}

/* --- sparse rows --- */

int64_t esp_first_sparse_row(const esp_factors *factors, int expert) {
  int64_t first = 0;
  for (int e = 0; e < expert; e++) first += factors->counts[e];
  return first;
}

bool esp_sparse_row_is_zero(const esp_factors *factors, int64_t row) {
  const int64_t columns = esp_tensor_columns(factors->s);
  for (int64_t i = 0; i < columns; i++)
    if (factors->s->data[row * columns + i] != 0) return false;
  return true;
}

static esp_status check_list(const esp_factors *f, int expert, int64_t out) {
  const esp_real *list = f->rows->data + esp_first_sparse_row(f, expert);
  for (int64_t i = 0; i < f->counts[expert]; i++) {
    const double least = i ? (double)list[i - 1] + 1 : 0, row = (double)list[i];
    if (row >= least && row < (double)out && row == (double)(int64_t)row) continue;
    return esp_fail(ESP_ERR_FORMAT, "`%s`: row %lld of expert %d is number %g; expected a whole number from %g to %lld",
                    f->rows->name, (long long)i, expert, row, least, (long long)out - 1);
  }
  return ESP_OK;
}

esp_status esp_factors_check(const esp_expert_bank *bank) {
  for (int side = 0; bank->rank && side < ESP_SIDES; side++)
    for (int e = 0; e < bank->experts; e++) ESP_TRY(check_list(&bank->factors[side], e, esp_factors_rows(bank, side)));
  return ESP_OK;
}

/* --- one matrix --- */

int esp_expert_matrix_count(const esp_expert_bank *bank) { return is_gated(bank) ? 3 : 2; }

esp_expert_matrix esp_expert_matrix_at(const esp_expert_bank *bank, int expert, int index) {
  static const char *const names[] = {"gate", "up", "down"};
  const int last = esp_expert_matrix_count(bank) - 1, side = index == last ? ESP_SIDE_DOWN : ESP_SIDE_UP;
  const int64_t neurons = esp_expert_width(bank, expert);
  const bool down = side == ESP_SIDE_DOWN;
  return (esp_expert_matrix){names[index + 2 - last], side, down ? 0 : index, down ? bank->width : neurons,
                             down ? neurons : bank->width};
}

/* Takes the listed rows of this part: their numbers start at part x out. */
static bool is_of_part(const esp_expert_matrix *m, int64_t row) { return row / m->out == m->part; }

static void read_factors(const esp_factors *f, int expert, const esp_expert_matrix *m, double *w) {
  const int64_t rank = f->u->shape[2], first = esp_first_sparse_row(f, expert);
  const esp_real *u = f->u->data + (expert * f->parts + m->part) * m->out * rank;
  const esp_real *v = f->v->data + (expert * f->parts + m->part) * rank * m->in;
  memset(w, 0, (size_t)(m->out * m->in) * sizeof *w);
  for (int64_t o = 0; o < m->out; o++)
    for (int64_t k = 0; k < rank; k++)
      for (int64_t i = 0; i < m->in; i++) w[o * m->in + i] += (double)u[o * rank + k] * (double)v[k * m->in + i];
  for (int64_t n = first; n < first + f->counts[expert]; n++) {
    const int64_t row = (int64_t)f->rows->data[n];
    if (!is_of_part(m, row)) continue;
    for (int64_t i = 0; i < m->in; i++) w[row % m->out * m->in + i] += (double)f->s->data[n * m->in + i];
  }
}

/* `down` is stored by neurons: transposed. */
static void read_plain(const esp_expert_bank *bank, int expert, const esp_expert_matrix *m, double *w) {
  const esp_expert_weights weights = esp_expert_weights_of(bank, expert);
  const esp_real *from = m->side == ESP_SIDE_DOWN       ? weights.down
                         : weights.gate && m->part == 0 ? weights.gate
                                                        : weights.up;
  const bool transposed = m->side == ESP_SIDE_DOWN;
  for (int64_t o = 0; o < m->out; o++)
    for (int64_t i = 0; i < m->in; i++) w[o * m->in + i] = (double)from[transposed ? i * m->out + o : o * m->in + i];
}

void esp_expert_matrix_read(const esp_expert_bank *bank, int expert, const esp_expert_matrix *matrix, double *w) {
  if (bank->rank) read_factors(&bank->factors[matrix->side], expert, matrix, w);
  else read_plain(bank, expert, matrix, w);
}

int64_t esp_expert_matrix_sparse_rows(const esp_expert_bank *bank, int expert, const esp_expert_matrix *matrix) {
  if (!bank->rank) return 0;
  const esp_factors *f = &bank->factors[matrix->side];
  int64_t count = 0;
  for (int64_t n = esp_first_sparse_row(f, expert); n < esp_first_sparse_row(f, expert + 1); n++)
    count += is_of_part(matrix, (int64_t)f->rows->data[n]);
  return count;
}
