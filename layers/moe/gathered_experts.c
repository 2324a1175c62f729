/* A MoNE's experts without what they do not use: gate in full, then the selected neurons' rows of up and down. */
#include "moe_ops_internal.h"
#include <espalier/row_products.h>

#include <string.h>

/* --- gathered experts: with S the selection among G = act(W_gate x), y = sum over j in S of G_j (W_up[j] x) W_down[j]
 * (two matrices: y = sum over j in S of act(W_up[j] x) W_down[j], the selection being among all act(W_up x)).
 *
 * Each row has neurons of its own, so nothing is left of a matrix product but products with single rows of weights.
 * The rows of an expert are taken ROWS_PER_TILE at a time through blocks of neurons whose weights stay in the
 * second-level cache meanwhile. Where there are few rows, a row's neurons are cut into NEURON_PARTS parts, whose sums
 * are added in order, to give every core something to do. Tiles, blocks and parts depend on the sizes only. */

enum { ROWS_PER_TILE = 32, NEURON_PARTS = 4, FEW_TILES = 4, CACHED_WEIGHTS = 65536, WEIGHTS_PER_TASK = 32768 };

/* Where the working memory of a node is. */
typedef struct gathered_work {
  esp_gemm *products; /* [groups] */
  esp_real *gate;     /* [rows, neurons of the widest expert] before the activation */
  esp_real *ranking;  /* the same shape; later the first entries of a row are the selected neurons' values */
  uint8_t *mask;      /* the same shape */
  int32_t *index;     /* [rows, kept] the selected neurons, ascending */
  esp_real *partial;  /* [NEURON_PARTS, rows, width]; unused if there is one part */
} gathered_work;

static int64_t most_neurons(const esp_gathered_options *at) {
  int64_t most = 0;
  for (int64_t e = 0; e < at->groups; e++)
    if (at->experts[e].neurons > most) most = at->experts[e].neurons;
  return most;
}

static int64_t tiles_of(const esp_gathered_options *at, int64_t group) {
  return (at->first_row[group + 1] - at->first_row[group] + ROWS_PER_TILE - 1) / ROWS_PER_TILE;
}

static int64_t count_tiles(const esp_gathered_options *at) {
  int64_t tiles = 0;
  for (int64_t e = 0; e < at->groups; e++) tiles += tiles_of(at, e);
  return tiles;
}

static int64_t count_parts(const esp_node *node) {
  const esp_gathered_options *at = node->attributes;
  const int64_t weights = at->selection.kept * esp_tensor_columns(node->inputs[0]);
  return count_tiles(at) < FEW_TILES && weights >= WEIGHTS_PER_TASK ? NEURON_PARTS : 1;
}

/* Deals out aligned pieces of a block; of NULL it only counts the bytes. */
static void *deal(char *block, size_t *used, int64_t bytes) {
  char *piece = block ? block + *used : NULL;
  *used += ((size_t)bytes + 63) / 64 * 64;
  return piece;
}

static gathered_work place_work(const esp_node *node, char *block, size_t *used) {
  const esp_gathered_options *at = node->attributes;
  const int64_t rows = esp_tensor_rows(node->inputs[0]), width = esp_tensor_columns(node->inputs[0]);
  const int64_t neurons = rows * most_neurons(at), parts = count_parts(node), real = (int64_t)sizeof(esp_real);
  *used = 0;
  return (gathered_work){.products = deal(block, used, at->groups * (int64_t)sizeof(esp_gemm)),
                         .gate = deal(block, used, neurons * real),
                         .ranking = deal(block, used, neurons * real),
                         .mask = deal(block, used, neurons),
                         .index = deal(block, used, rows * at->selection.kept * (int64_t)sizeof(int32_t)),
                         .partial = deal(block, used, parts > 1 ? parts * rows * width * real : 0)};
}

static gathered_work work_of(const esp_node *node) {
  size_t used;
  return place_work(node, node->saved, &used);
}

static void gathered_prepare(esp_node *node) {
  const esp_gathered_options *at = node->attributes;
  const esp_tensor *x = node->inputs[0];
  esp_require(node, at->first_row[at->groups] == esp_tensor_rows(x), "the groups do not cover the rows");
  esp_require(node, at->selection.kept > 0, "must keep at least one neuron");
  esp_set_output_same(node);
  (void)place_work(node, NULL, &node->saved_bytes);
}

/* --- first: the gate of all neurons ----------------------------------------------------------------------- */

static void compute_gate(const esp_node *node, const gathered_work *w) {
  const esp_gathered_options *at = node->attributes;
  const int64_t width = esp_tensor_columns(node->inputs[0]), stride = most_neurons(at);
  for (int64_t e = 0; e < at->groups; e++) {
    const esp_expert_weights *expert = &at->experts[e];
    const esp_real *matrix = expert->gate ? expert->gate : expert->up;
    const esp_real *bias = expert->gate ? expert->gate_bias : expert->up_bias;
    w->products[e] = (esp_gemm){.transpose_b = true,
                                .m = at->first_row[e + 1] - at->first_row[e],
                                .n = expert->neurons,
                                .k = width,
                                .a = node->inputs[0]->data + at->first_row[e] * width,
                                .lda = width,
                                .b = matrix,
                                .ldb = width,
                                .c = w->gate + at->first_row[e] * stride,
                                .ldc = stride,
                                .alpha = 1,
                                .bias = bias};
  }
  esp_gemm_run(w->products, at->groups);
}

/* --- second: the selected neurons of each row -------------------------------------------------------------- */

static int64_t group_of_row(const esp_gathered_options *at, int64_t row) {
  int64_t low = 0, high = at->groups;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    if (at->first_row[middle] <= row) low = middle;
    else high = middle;
  }
  return low;
}

static int64_t kept_of(const esp_gathered_options *at, int64_t group) {
  const int64_t neurons = at->experts[group].neurons;
  return at->selection.kept < neurons ? at->selection.kept : neurons;
}

/* Selected neurons and their gate values, in order. Every neuron is written, and the place moves on if it was selected:
 * a jump that is guessed wrong costs more. */
static void gather_gates(const uint8_t *mask, const esp_real *gate, int64_t neurons, int64_t kept, int32_t *index,
                         esp_real *values) {
  int64_t count = 0;
  for (int64_t j = 0; count < kept && j < neurons; j++) {
    index[count] = (int32_t)j;
    values[count] = gate[j];
    count += mask[j];
  }
}

static void select_rows(void *context, int64_t begin, int64_t end) {
  const esp_node *node = context;
  const esp_gathered_options *at = node->attributes;
  const gathered_work w = work_of(node);
  const int64_t stride = most_neurons(at);
  esp_threshold_search search = {.guess = 1};
  for (int64_t r = begin; r < end; r++) {
    const int64_t group = group_of_row(at, r), neurons = at->experts[group].neurons, kept = kept_of(at, group);
    esp_real *gate = w.gate + r * stride, *ranking = w.ranking + r * stride;
    esp_gate_values(at->selection.ranking, gate, neurons, ranking);
    esp_neuron_mask(&search, ranking, neurons, kept, w.mask + r * stride);
    gather_gates(w.mask + r * stride, gate, neurons, kept, w.index + r * at->selection.kept, ranking);
    esp_gate_values(at->activation, ranking, kept, ranking);
  }
}

/* --- third: their up and down rows ------------------------------------------------------------------------- */

/* Some rows of one expert, and the part of its neurons that is looked at. */
typedef struct gathered_tile {
  const esp_expert_weights *expert;
  int64_t first_row, end_row, kept, first_neuron, end_neuron;
  esp_real *output; /* [rows, width], of all rows */
} gathered_tile;

/* How many of the ascending entries are below `bound`, known that the first `from` are. */
static int64_t entries_below(const int32_t *index, int64_t from, int64_t count, int64_t bound) {
  while (from < count && index[from] < bound) from++;
  return from;
}

/* y += the part of one row that the neurons index[from .. to - 1] make. */
ESP_HOT static void add_neurons(const esp_expert_weights *expert, int64_t width, const esp_real *x,
                                const int32_t *index, int64_t count, esp_real *restrict values, esp_real *y) {
  enum { AT_ONCE = 128 };
  esp_real up[AT_ONCE];
  for (int64_t done = 0; done < count; done += AT_ONCE) {
    const int64_t some = count - done < AT_ONCE ? count - done : AT_ONCE;
    const int32_t *restrict chosen = index + done;
    esp_real *restrict factor = values + done;
    if (expert->gate) {
      esp_dot_rows(x, width, &(esp_row_list){expert->up, width, some, chosen}, up);
      for (int64_t i = 0; i < some; i++) factor[i] *= up[i] + (expert->up_bias ? expert->up_bias[chosen[i]] : 0);
    }
    esp_add_rows(y, width, &(esp_row_list){expert->down, width, some, chosen}, factor);
  }
}

static void run_tile(const esp_node *node, const gathered_work *w, const gathered_tile *t) {
  const esp_gathered_options *at = node->attributes;
  const int64_t width = esp_tensor_columns(node->inputs[0]), stride = most_neurons(at);
  const int64_t block = CACHED_WEIGHTS / width > 16 ? CACHED_WEIGHTS / width : 16;
  int64_t done[ROWS_PER_TILE];
  for (int64_t r = t->first_row; r < t->end_row; r++) {
    memset(t->output + r * width, 0, (size_t)width * sizeof(esp_real));
    done[r - t->first_row] = entries_below(w->index + r * at->selection.kept, 0, t->kept, t->first_neuron);
  }
  for (int64_t first = t->first_neuron; first < t->end_neuron; first += block) {
    const int64_t end = first + block < t->end_neuron ? first + block : t->end_neuron;
    for (int64_t r = t->first_row; r < t->end_row; r++) {
      int64_t *from = &done[r - t->first_row];
      const int32_t *index = w->index + r * at->selection.kept;
      const int64_t to = entries_below(index, *from, t->kept, end);
      add_neurons(t->expert, width, node->inputs[0]->data + r * width, index + *from, to - *from,
                  w->ranking + r * stride + *from, t->output + r * width);
      *from = to;
    }
  }
}

/* A task is one part of one tile. */
static void run_tasks(void *context, int64_t begin, int64_t end) {
  const esp_node *node = context;
  const esp_gathered_options *at = node->attributes;
  const gathered_work w = work_of(node);
  const int64_t parts = count_parts(node), size = esp_tensor_count(node->outputs[0]);
  for (int64_t task = begin; task < end; task++) {
    int64_t tile = task / parts, group = 0;
    const int64_t part = task % parts;
    for (; tile >= tiles_of(at, group); group++) tile -= tiles_of(at, group);
    const esp_expert_weights *expert = &at->experts[group];
    const int64_t first = at->first_row[group] + tile * ROWS_PER_TILE, last = at->first_row[group + 1];
    run_tile(node, &w,
             &(gathered_tile){.expert = expert,
                              .first_row = first,
                              .end_row = first + ROWS_PER_TILE < last ? first + ROWS_PER_TILE : last,
                              .kept = kept_of(at, group),
                              .first_neuron = expert->neurons * part / parts,
                              .end_neuron = expert->neurons * (part + 1) / parts,
                              .output = parts > 1 ? w.partial + part * size : node->outputs[0]->data});
  }
}

/* --- last: what the parts make together, and the bias -------------------------------------------------------- */

ESP_HOT static void add_row(esp_real *restrict y, const esp_real *restrict x, int64_t width) {
  for (int64_t i = 0; i < width; i++) y[i] += x[i];
}

static void finish_rows(void *context, int64_t begin, int64_t end) {
  const esp_node *node = context;
  const esp_gathered_options *at = node->attributes;
  const gathered_work w = work_of(node);
  const int64_t parts = count_parts(node), width = esp_tensor_columns(node->inputs[0]);
  const int64_t size = esp_tensor_count(node->outputs[0]);
  for (int64_t r = begin; r < end; r++) {
    esp_real *y = node->outputs[0]->data + r * width;
    const esp_real *bias = at->experts[group_of_row(at, r)].down_bias;
    if (parts > 1) memset(y, 0, (size_t)width * sizeof *y);
    for (int64_t part = 0; parts > 1 && part < parts; part++) add_row(y, w.partial + part * size + r * width, width);
    if (bias) add_row(y, bias, width);
  }
}

static void gathered_forward(esp_node *node) {
  const esp_gathered_options *at = node->attributes;
  const gathered_work w = work_of(node);
  const int64_t rows = esp_tensor_rows(node->inputs[0]), width = esp_tensor_columns(node->inputs[0]);
  const int64_t tasks = count_tiles(at) * count_parts(node);
  compute_gate(node, &w);
  esp_parallel_rows(rows, most_neurons(at), select_rows, node);
  if (rows * at->selection.kept * width < WEIGHTS_PER_TASK) run_tasks(node, 0, tasks);
  else esp_parallel_for_uneven(tasks, 1, run_tasks, node);
  esp_parallel_rows(rows, width, finish_rows, node);
}

static esp_cost gathered_cost(const esp_node *node) {
  const esp_gathered_options *at = node->attributes;
  const double width = (double)esp_tensor_columns(node->inputs[0]);
  double flops = 0, weights = 0;
  for (int64_t e = 0; e < at->groups; e++) {
    const double neurons = (double)at->experts[e].neurons, kept = (double)kept_of(at, e);
    const double rows = (double)(at->first_row[e + 1] - at->first_row[e]);
    const double of_row = width * (neurons + kept * (at->experts[e].gate ? 2 : 1));
    flops += 2 * rows * of_row;
    weights += rows > 0 ? of_row : 0; /* at least: rows may select different neurons */
  }
  return (esp_cost){flops, (weights + 2 * (double)esp_tensor_count(node->inputs[0])) * (double)sizeof(esp_real)};
}

const esp_op esp_op_gathered_experts = {"gathered experts", gathered_prepare,  gathered_forward, NULL,
                                        gathered_cost,      {1e-4, 1e-7, NULL}};

esp_tensor *esp_gathered_experts(esp_tape *tape, esp_tensor *x, const esp_gathered_options *options) {
  return esp_tape_apply(tape, &esp_op_gathered_experts, &x, 1, options, sizeof *options);
}
