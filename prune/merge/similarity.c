#include "similarity_internal.h"

#include <espalier/memory.h>
#include <espalier/random.h>

#include <math.h>
#include <string.h>

static const char *const names[ESP_SIMILARITY_KINDS] = {"router-logits",          "router-weights", "expert-weights",
                                                        "weights-features",       "gradients",      "mean-features",
                                                        "mean-absolute-features", "random"};

const char *esp_similarity_name(esp_similarity_kind kind) { return names[kind]; }

esp_status esp_similarity_parse(esp_similarity_kind *kind, const char *name) {
  int index;
  ESP_TRY(esp_find_name(&index, "similarity", name, names, ESP_SIMILARITY_KINDS));
  *kind = (esp_similarity_kind)index;
  return ESP_OK;
}

/* (cosine + 1) / 2; of a zero vector as if it were at right angles to all. */
static double from_products(double product, double a, double b) {
  return a > 0 && b > 0 ? (product / sqrt(a * b) + 1) / 2 : 0.5;
}

static double cosine(const double *a, const double *b, int64_t count) {
  double product = 0, aa = 0, bb = 0;
  for (int64_t i = 0; i < count; i++) {
    product += a[i] * b[i];
    aa += a[i] * a[i];
    bb += b[i] * b[i];
  }
  return from_products(product, aa, bb);
}

/* --- what an expert is as one vector ------------------------------------------------------------------------ */

/* Writes each row, entries times scale[j] if there is one, at its neuron's place. */
static double *put_rows(double *to, const esp_real *rows, int64_t neurons, int64_t width, const int32_t *place,
                        const double *column_squares, const double *row_squares) {
  if (!rows) return to;
  for (int64_t n = 0; n < neurons; n++)
    for (int64_t j = 0; j < width; j++) {
      const double scale = column_squares ? sqrt(column_squares[j]) : row_squares ? sqrt(row_squares[n]) : 1;
      to[(place ? place[n] : n) * width + j] = scale * (double)rows[n * width + j];
    }
  return to + neurons * width;
}

static void put_expert(double *to, const similarity_source *s, const esp_expert_bank *bank, bool scaled, int e) {
  const esp_expert_weights v = esp_expert_weights_of(bank, s->moe->layout.index[e]);
  const int64_t f = v.neurons, width = bank->width;
  const int32_t *place = s->plan->place ? s->plan->place + e * f : NULL;
  const double *squares = scaled ? s->inputs->squares + e * width : NULL;
  const double *hidden = scaled ? s->inputs->hidden + (int64_t)e * s->inputs->neurons : NULL;
  to = put_rows(to, v.gate, f, width, place, squares, NULL);
  to = put_rows(to, v.up, f, width, place, squares, NULL);
  put_rows(to, v.down, f, width, place, NULL, hidden);
}

static void put_vector(double *to, esp_similarity_kind kind, const similarity_source *s, int64_t size, int e) {
  const double *features = kind == ESP_SIMILARITY_MEAN_FEATURES ? s->inputs->features : s->inputs->absolute;
  switch (kind) {
  case ESP_SIMILARITY_ROUTER_WEIGHTS:
    for (int64_t i = 0; i < size; i++) to[i] = (double)s->moe->router->data[e * size + i];
    break;
  case ESP_SIMILARITY_MEAN_FEATURES: /* sums: their angles are the same */
  case ESP_SIMILARITY_MEAN_ABSOLUTE:
    memcpy(to, features + e * size, (size_t)size * sizeof *to);
    break;
  case ESP_SIMILARITY_GRADIENTS:
    put_expert(to, s, s->gradient, false, e);
    break;
  default:
    put_expert(to, s, &s->moe->bank, kind == ESP_SIMILARITY_WEIGHTS_FEATURES, e);
  }
}

static int64_t vector_size(esp_similarity_kind kind, const esp_moe *moe) {
  const int64_t width = moe->bank.width, parts = esp_expert_weights_of(&moe->bank, 0).gate ? 3 : 2;
  switch (kind) {
  case ESP_SIMILARITY_ROUTER_WEIGHTS:
    return esp_router_vector_size(moe);
  case ESP_SIMILARITY_MEAN_FEATURES:
  case ESP_SIMILARITY_MEAN_ABSOLUTE:
    return width;
  default:
    return parts * width * moe->bank.hidden;
  }
}

static esp_status compare_vectors(double *similarity, esp_similarity_kind kind, const similarity_source *s) {
  const int64_t size = vector_size(kind, s->moe);
  const int experts = s->moe->layout.experts;
  double *vectors = esp_alloc((size_t)(2 * size), sizeof *vectors);
  if (!vectors) return ESP_ERR_MEMORY;
  for (int i = 0; i < experts; i++) {
    if (s->moe->layout.index[i] < 0) continue;
    put_vector(vectors, kind, s, size, i);
    for (int j = i + 1; j < experts; j++) {
      if (s->moe->layout.index[j] < 0) continue;
      put_vector(vectors + size, kind, s, size, j);
      similarity[i * experts + j] = similarity[j * experts + i] = cosine(vectors, vectors + size, size);
    }
  }
  esp_free(vectors);
  return ESP_OK;
}

/* --- the others --------------------------------------------------------------------------------------------- */

static void compare_logits(double *similarity, const similarity_source *s) {
  const int experts = s->moe->layout.experts;
  const double *z = s->inputs->logits;
  for (int i = 0; i < experts; i++)
    for (int j = 0; j < experts; j++)
      similarity[i * experts + j] = from_products(z[i * experts + j], z[i * experts + i], z[j * experts + j]);
}

static void draw(double *similarity, const similarity_source *s) {
  const int experts = s->moe->layout.experts;
  esp_random stream = esp_random_stream(s->seed, ESP_PURPOSE_PRUNE, (uint64_t)s->moe->block);
  for (int i = 0; i < experts; i++)
    for (int j = i + 1; j < experts; j++)
      similarity[i * experts + j] = similarity[j * experts + i] = esp_random_uniform(&stream);
}

static esp_status check_kind(esp_similarity_kind kind, const esp_moe *moe) {
  const bool soft = moe->config.router.policy == ESP_ROUTER_SOFT;
  const bool by_logits = kind == ESP_SIMILARITY_ROUTER_LOGITS, by_rows = kind == ESP_SIMILARITY_ROUTER_WEIGHTS;
  const bool by_tokens = kind == ESP_SIMILARITY_MEAN_FEATURES || kind == ESP_SIMILARITY_MEAN_ABSOLUTE ||
                         kind == ESP_SIMILARITY_WEIGHTS_FEATURES;
  const bool by_matrices = kind == ESP_SIMILARITY_EXPERT_WEIGHTS || kind == ESP_SIMILARITY_WEIGHTS_FEATURES ||
                           kind == ESP_SIMILARITY_GRADIENTS;
  if (by_matrices && (moe->bank.widths || moe->bank.rank))
    return esp_fail(ESP_ERR_MISMATCH, "the experts of %s %s, so their %s cannot be compared", moe->scope,
                    moe->bank.rank ? "are factored" : "have different widths", names[kind]);
  if (!((by_logits || by_rows) && !moe->router) && !((by_logits || by_tokens) && soft)) return ESP_OK;
  return esp_fail(ESP_ERR_MISMATCH,
                  "the similarity %s cannot be had of %s, whose router is %s; use another one, expert-weights say",
                  names[kind], moe->scope, moe->policy->name);
}

esp_status esp_similarities(double *similarity, esp_similarity_kind kind, const similarity_source *source) {
  ESP_TRY(check_kind(kind, source->moe));
  if (kind != ESP_SIMILARITY_ROUTER_LOGITS && kind != ESP_SIMILARITY_RANDOM)
    return compare_vectors(similarity, kind, source);
  if (kind == ESP_SIMILARITY_RANDOM) draw(similarity, source);
  else compare_logits(similarity, source);
  return ESP_OK;
}
