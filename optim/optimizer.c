#include <espalier/memory.h>
#include <espalier/optimizer.h>
#include <espalier/parallel.h>
#include <espalier/vector_math.h>

#include "muon_internal.h"

#include <math.h>
#include <string.h>

enum { ELEMENTS_PER_RANGE = 16384 };

struct esp_optimizer {
  esp_optimizer_config config;
  esp_parameters *parameters;
  int64_t steps;
  esp_real *first, *second; /* SGD has no second */
  esp_muon muon;
};

esp_status esp_optimizer_create(esp_optimizer **optimizer, const esp_optimizer_config *config,
                                esp_parameters *parameters) {
  *optimizer = NULL;
  ESP_TRY(esp_optimizer_config_check(config));
  esp_optimizer *made = esp_alloc(1, sizeof *made);
  if (!made) return ESP_ERR_MEMORY;
  const size_t size = (size_t)esp_parameters_size(parameters);
  *made = (esp_optimizer){.config = *config, .parameters = parameters, .first = esp_alloc(size, sizeof(esp_real))};
  const bool adapts = config->kind != ESP_OPTIMIZER_SGD;
  if (adapts) made->second = esp_alloc(size, sizeof(esp_real));
  esp_status status = made->first && (made->second || !adapts) ? ESP_OK : ESP_ERR_MEMORY;
  if (status == ESP_OK && config->kind == ESP_OPTIMIZER_MUON) status = esp_muon_create(&made->muon, parameters);
  if (status != ESP_OK) {
    esp_optimizer_free(made);
    return status;
  }
  *optimizer = made;
  return ESP_OK;
}

void esp_optimizer_free(esp_optimizer *optimizer) {
  if (!optimizer) return;
  esp_free(optimizer->first);
  esp_free(optimizer->second);
  esp_muon_free(&optimizer->muon);
  esp_free(optimizer);
}

ESP_HOT static double sum_squares(void *context, int64_t begin, int64_t end) {
  const esp_real *g = context;
  double sum = 0;
  ESP_SUMS(sum)
  for (int64_t i = begin; i < end; i++) sum += (double)g[i] * (double)g[i];
  return sum;
}

double esp_gradient_norm(const esp_parameters *parameters) {
  double sum = 0;
  for (int64_t i = 0; i < esp_parameters_count(parameters); i++) {
    const esp_parameter *p = esp_parameters_at(parameters, i);
    if (!p->tensor.frozen && p->tensor.grad_written) sum += esp_parallel_sum(p->count, sum_squares, p->tensor.grad);
  }
  return sqrt(sum);
}

/* One parameter's update; the scalars are the same for all of its elements. */
typedef struct update {
  esp_real *w, *g, *m, *v;
  esp_real rate, decay, scale, momentum, beta1, beta2, epsilon, correction1, correction2;
  esp_real rest1, rest2; /* 1 - beta, which single precision would get from beta with an error of 1e-5 of it */
} update;

ESP_HOT static void sgd_range(void *context, int64_t begin, int64_t end) {
  const update *u = context;
  esp_real *restrict w = u->w, *restrict m = u->m;
  const esp_real *restrict g = u->g;
  for (int64_t i = begin; i < end; i++) {
    m[i] = u->momentum * m[i] + u->scale * g[i];
    w[i] -= u->rate * (m[i] + u->decay * w[i]);
  }
}

ESP_HOT static void adamw_range(void *context, int64_t begin, int64_t end) {
  const update *u = context;
  esp_real *restrict w = u->w, *restrict m = u->m, *restrict v = u->v;
  const esp_real *restrict g = u->g;
  for (int64_t i = begin; i < end; i++) {
    const esp_real gradient = u->scale * g[i];
    m[i] = u->beta1 * m[i] + u->rest1 * gradient;
    v[i] = u->beta2 * v[i] + u->rest2 * gradient * gradient;
    const esp_real step = m[i] * u->correction1 / (esp_sqrt(v[i] * u->correction2) + u->epsilon);
    w[i] -= u->rate * (step + u->decay * w[i]);
  }
}

static update make_update(const esp_optimizer *o, const esp_parameter *p, double learning_rate_multiplier,
                          double gradient_norm) {
  const esp_optimizer_config *c = &o->config;
  const double decay_share = p->kind == ESP_KIND_WEIGHT ? 1 : p->kind == ESP_KIND_ROUTER ? c->router_decay : 0;
  const bool clips = c->clip_norm > 0 && gradient_norm > c->clip_norm;
  return (update){.w = p->tensor.data,
                  .g = p->tensor.grad,
                  .m = o->first + p->offset,
                  .v = o->second ? o->second + p->offset : NULL,
                  .rate = (esp_real)(learning_rate_multiplier * c->learning_rate *
                                     (p->kind == ESP_KIND_ROUTER ? c->router_rate : 1)),
                  .decay = (esp_real)(decay_share * c->weight_decay),
                  .scale = (esp_real)(clips ? c->clip_norm / gradient_norm : 1),
                  .momentum = (esp_real)c->momentum,
                  .beta1 = (esp_real)c->beta1,
                  .beta2 = (esp_real)c->beta2,
                  .rest1 = (esp_real)(1 - c->beta1),
                  .rest2 = (esp_real)(1 - c->beta2),
                  .epsilon = (esp_real)c->epsilon,
                  .correction1 = (esp_real)(1 / (1 - pow(c->beta1, (double)o->steps))),
                  .correction2 = (esp_real)(1 / (1 - pow(c->beta2, (double)o->steps)))};
}

void esp_optimizer_step(esp_optimizer *optimizer, double learning_rate_multiplier, double gradient_norm) {
  optimizer->steps++;
  esp_range_body *range = optimizer->config.kind == ESP_OPTIMIZER_SGD ? sgd_range : adamw_range;
  for (int64_t i = 0; i < esp_parameters_count(optimizer->parameters); i++) {
    esp_parameter *p = esp_parameters_at(optimizer->parameters, i);
    if (p->tensor.frozen || p->kind == ESP_KIND_STATE) continue;
    if (!p->tensor.grad_written) memset(p->tensor.grad, 0, (size_t)p->count * sizeof *p->tensor.grad);
    p->tensor.grad_written = false;
    update u = make_update(optimizer, p, learning_rate_multiplier, gradient_norm);
    if (optimizer->config.kind == ESP_OPTIMIZER_MUON && esp_muon_takes(p)) {
      const esp_muon_update muon = {(double)u.rate, (double)u.decay, (double)u.scale, (double)u.momentum};
      esp_muon_step(&optimizer->muon, p, u.m, &muon);
      continue;
    }
    esp_parallel_for(p->count, ELEMENTS_PER_RANGE, range, &u);
  }
}

int64_t esp_optimizer_steps(const esp_optimizer *optimizer) { return optimizer->steps; }

void esp_optimizer_set_steps(esp_optimizer *optimizer, int64_t steps) { optimizer->steps = steps; }

const esp_parameters *esp_optimizer_parameters(const esp_optimizer *optimizer) { return optimizer->parameters; }

esp_real *esp_optimizer_state(const esp_optimizer *optimizer, int index, const char **name) {
  const bool adam = optimizer->config.kind != ESP_OPTIMIZER_SGD;
  static const char *const sgd_names[] = {"momentum"}, *const adam_names[] = {"first_moment", "second_moment"};
  if (index < 0 || index >= (adam ? 2 : 1)) return NULL;
  *name = adam ? adam_names[index] : sgd_names[index];
  return index == 0 ? optimizer->first : optimizer->second;
}
