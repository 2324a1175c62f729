#include <espalier/memory.h>
#include <espalier/zip.h>

#include <math.h>

typedef struct clustering {
  int count;
  double *likeness; /* [count, count] mean between clusters */
  int32_t *parent;  /* [count] the cluster a neuron's cluster went into; itself: still a cluster */
  int32_t *best;    /* [count] of a cluster, the later one it is most like; -1: none */
  int *size;        /* [count] neurons of a cluster */
} clustering;

static double like(const clustering *c, int64_t i, int64_t j) { return c->likeness[i * c->count + j]; }

static void find_best(clustering *c, int32_t i) {
  c->best[i] = -1;
  for (int32_t j = i + 1; j < c->count; j++)
    if (c->parent[j] == j && (c->best[i] < 0 || like(c, i, j) > like(c, i, c->best[i]))) c->best[i] = j;
}

/* Cluster j, the later one, goes into i. */
static void unite(clustering *c, int32_t i, int32_t j) {
  const double a = c->size[i], b = c->size[j];
  c->parent[j] = i;
  c->size[i] += c->size[j];
  for (int32_t k = 0; k < c->count; k++) {
    if (c->parent[k] != k || k == i) continue;
    const double mean = (a * like(c, i, k) + b * like(c, j, k)) / (a + b);
    c->likeness[(int64_t)i * c->count + k] = c->likeness[(int64_t)k * c->count + i] = mean;
  }
  for (int32_t k = 0; k <= j; k++) {
    if (c->parent[k] != k) continue;
    if (k == i || c->best[k] == i || c->best[k] == j) find_best(c, k);
    else if (k < i && like(c, k, i) > like(c, k, c->best[k])) c->best[k] = i;
  }
}

static void unite_best(clustering *c) {
  int32_t found = -1;
  for (int32_t i = 0; i < c->count; i++)
    if (c->parent[i] == i && c->best[i] >= 0 && (found < 0 || like(c, i, c->best[i]) > like(c, found, c->best[found])))
      found = i;
  unite(c, found, c->best[found]);
}

static void number(const clustering *c, int32_t *place) {
  int32_t next = 0;
  for (int32_t i = 0; i < c->count; i++) { /* parents come before their children */
    int32_t root = c->parent[i];
    while (c->parent[root] != root) root = c->parent[root];
    place[i] = root == i ? next++ : place[root];
  }
}

esp_status esp_zip(int count, int clusters, double *likeness, int32_t *place) {
  clustering c = {.count = count, .likeness = likeness};
  for (int64_t i = 0; i < (int64_t)count * count; i++)
    if (!isfinite(likeness[i])) return esp_fail(ESP_ERR_NOT_FINITE, "the likeness of two neurons is not finite");
  c.parent = esp_alloc((size_t)count, sizeof *c.parent);
  c.best = esp_alloc((size_t)count, sizeof *c.best);
  c.size = esp_alloc((size_t)count, sizeof *c.size);
  const bool ready = c.parent && c.best && c.size;
  for (int32_t i = 0; ready && i < count; i++) {
    c.parent[i] = i;
    c.size[i] = 1;
  }
  for (int32_t i = 0; ready && i < count; i++) find_best(&c, i);
  for (int left = count; ready && left > clusters; left--) unite_best(&c);
  if (ready) number(&c, place);
  esp_free(c.parent);
  esp_free(c.best);
  esp_free(c.size);
  return ready ? ESP_OK : ESP_ERR_MEMORY;
}
