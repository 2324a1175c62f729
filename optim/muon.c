/* Muon: momentum whose matrix is replaced by the nearest orthogonal one. */
#include <espalier/blas.h>
#include <espalier/memory.h>
#include <espalier/parallel.h>

#include "muon_internal.h"

#include <math.h>

enum { ELEMENTS_PER_RANGE = 16384, ITERATIONS = 5 };

bool esp_muon_takes(const esp_parameter *p) { return p->matrices > 0; }

typedef struct stack {
  int64_t count, rows, columns, size, shorter; /* size: elements of a matrix */
} stack;

static stack stack_of(const esp_parameter *p) {
  stack s = {.count = p->matrices, .rows = p->matrix_rows, .size = p->count / p->matrices};
  s.columns = s.size / s.rows;
  s.shorter = s.rows < s.columns ? s.rows : s.columns;
  return s;
}

static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

esp_status esp_muon_create(esp_muon *muon, const esp_parameters *parameters) {
  int64_t elements = 0, grams = 0, count = 0;
  for (int64_t i = 0; i < esp_parameters_count(parameters); i++) {
    const esp_parameter *p = esp_parameters_at(parameters, i);
    if (!esp_muon_takes(p)) continue;
    const stack s = stack_of(p);
    elements = larger(elements, p->count);
    grams = larger(grams, s.count * s.shorter * s.shorter);
    count = larger(count, s.count);
  }
  *muon = (esp_muon){.memory = esp_alloc((size_t)(2 * elements + 1), sizeof(esp_real)),
                     .gram = esp_alloc((size_t)(2 * grams + 1), sizeof(esp_real)),
                     .products = esp_alloc((size_t)(count + 1), sizeof(esp_gemm))};
  if (!muon->memory || !muon->gram || !muon->products) {
    esp_muon_free(muon);
    return ESP_ERR_MEMORY;
  }
  muon->x = muon->memory;
  muon->next = muon->x + elements;
  muon->polynomial = muon->gram + grams;
  return ESP_OK;
}

void esp_muon_free(esp_muon *muon) {
  esp_free(muon->memory);
  esp_free(muon->gram);
  esp_free(muon->products);
  *muon = (esp_muon){0};
}

/* --- the nearest orthogonal matrix ---------------------------------------------------------------------------
 * Newton and Schulz's iteration with the coefficients of Jordan et al. ("Muon: an optimizer for hidden layers in neural
 * networks", 2024): X of Frobenius norm 1, then five times X <- a X + (b A + c A^2) X, A = X X^T, or with A = X^T X
 * from the right where that is smaller. Singular values end between 0.7 and 1.2, which is near enough. */

static const esp_real a = (esp_real)3.4445, b = (esp_real)-4.7750, c = (esp_real)2.0315;

typedef struct moving {
  esp_parameter *p;
  esp_real *moment, *x;
  const esp_muon_update *update;
} moving;

ESP_HOT static void move_moment(void *context, int64_t begin, int64_t end) {
  const moving *s = context;
  const esp_real scale = (esp_real)s->update->scale, momentum = (esp_real)s->update->momentum;
  const esp_real *restrict g = s->p->tensor.grad;
  esp_real *restrict m = s->moment, *restrict x = s->x;
  for (int64_t i = begin; i < end; i++) {
    m[i] = momentum * m[i] + scale * g[i];
    x[i] = scale * g[i] + momentum * m[i];
  }
}

ESP_HOT static void scale_to_norm_one(void *context, int64_t begin, int64_t end) {
  const moving *s = context;
  const int64_t size = s->p->count / s->p->matrices;
  for (int64_t n = begin; n < end; n++) {
    esp_real *restrict x = s->x + n * size;
    double squares = 0;
    ESP_SUMS(squares)
    for (int64_t i = 0; i < size; i++) squares += (double)x[i] * (double)x[i];
    const esp_real factor = (esp_real)(1 / (sqrt(squares) + 1e-12));
    for (int64_t i = 0; i < size; i++) x[i] *= factor;
  }
}

typedef struct blend {
  const esp_real *x;
  esp_real *y;
  esp_real factor; /* y += factor x */
} blend;

ESP_HOT static void add_multiple(void *context, int64_t begin, int64_t end) {
  const blend *s = context;
  const esp_real *restrict x = s->x;
  esp_real *restrict y = s->y;
  for (int64_t i = begin; i < end; i++) y[i] += s->factor * x[i];
}

/* A: X X^T, or X^T X where X is higher than wide. */
static void make_grams(esp_muon *muon, const stack *s) {
  const int64_t n = s->shorter;
  const bool wide = s->rows <= s->columns;
  for (int64_t i = 0; i < s->count; i++) {
    const esp_real *x = muon->x + i * s->size;
    muon->products[i] = (esp_gemm){.transpose_a = !wide,
                                   .transpose_b = wide,
                                   .m = n,
                                   .n = n,
                                   .k = s->size / n,
                                   .a = x,
                                   .lda = s->columns,
                                   .b = x,
                                   .ldb = s->columns,
                                   .c = muon->gram + i * n * n,
                                   .ldc = n,
                                   .alpha = 1};
  }
  esp_gemm_run(muon->products, s->count);
}

/* b A + c A^2. */
static void make_polynomials(esp_muon *muon, const stack *s) {
  const int64_t n = s->shorter;
  for (int64_t i = 0; i < s->count; i++) {
    const esp_real *gram = muon->gram + i * n * n;
    muon->products[i] = (esp_gemm){.m = n,
                                   .n = n,
                                   .k = n,
                                   .a = gram,
                                   .lda = n,
                                   .b = gram,
                                   .ldb = n,
                                   .c = muon->polynomial + i * n * n,
                                   .ldc = n,
                                   .alpha = c};
  }
  esp_gemm_run(muon->products, s->count);
  blend linear = {muon->gram, muon->polynomial, b};
  esp_parallel_for(s->count * n * n, ELEMENTS_PER_RANGE, add_multiple, &linear);
}

/* The polynomial times X, from the side on which it was made, and a X. */
static void make_next(esp_muon *muon, const stack *s) {
  const int64_t n = s->shorter;
  const bool wide = s->rows <= s->columns;
  for (int64_t i = 0; i < s->count; i++) {
    const esp_real *polynomial = muon->polynomial + i * n * n, *x = muon->x + i * s->size;
    muon->products[i] = (esp_gemm){.m = s->rows,
                                   .n = s->columns,
                                   .k = n,
                                   .a = wide ? polynomial : x,
                                   .lda = wide ? n : s->columns,
                                   .b = wide ? x : polynomial,
                                   .ldb = wide ? s->columns : n,
                                   .c = muon->next + i * s->size,
                                   .ldc = s->columns,
                                   .alpha = 1};
  }
  esp_gemm_run(muon->products, s->count);
  blend linear = {muon->x, muon->next, a};
  esp_parallel_for(s->count * s->size, ELEMENTS_PER_RANGE, add_multiple, &linear);
}

static void iterate(esp_muon *muon, const stack *s) {
  make_grams(muon, s);
  make_polynomials(muon, s);
  make_next(muon, s);
  esp_real *kept = muon->x;
  muon->x = muon->next;
  muon->next = kept;
}

typedef struct descent {
  esp_real *w;
  const esp_real *x;
  esp_real rate, factor, decay;
} descent;

ESP_HOT static void descend(void *context, int64_t begin, int64_t end) {
  const descent *s = context;
  esp_real *restrict w = s->w;
  const esp_real *restrict x = s->x;
  for (int64_t i = begin; i < end; i++) w[i] -= s->rate * (s->factor * x[i] + s->decay * w[i]);
}

void esp_muon_step(esp_muon *muon, esp_parameter *p, esp_real *moment, const esp_muon_update *update) {
  const stack s = stack_of(p);
  moving moved = {p, moment, muon->x, update};
  esp_parallel_for(p->count, ELEMENTS_PER_RANGE, move_moment, &moved);
  esp_parallel_for(s.count, 1, scale_to_norm_one, &moved);
  for (int i = 0; i < ITERATIONS; i++) iterate(muon, &s);
  descent step = {p->tensor.data, muon->x, (esp_real)update->rate,
                  (esp_real)(0.2 * sqrt((double)larger(s.rows, s.columns))), (esp_real)update->decay};
  esp_parallel_for(p->count, ELEMENTS_PER_RANGE, descend, &step);
}
