#include "op_times_internal.h"

#include <espalier/evaluate.h>

#include <string.h>

const char *const op_kind_names[OP_KINDS] = {"products", "attention",          "norms",      "dispatch",
                                             "combine",  "routing and losses", "elementwise"};

op_kind op_kind_of(const esp_op *op) {
  static const struct {
    const char *part;
    op_kind kind;
  } rows[] = {{"loss", OPS_ROUTING},    {"cross", OPS_ROUTING},        {"route", OPS_ROUTING},
              {"softmax", OPS_ROUTING}, {"dispatch", OPS_DISPATCH},    {"combine", OPS_COMBINE},
              {"norm", OPS_NORMS},      {"attention", OPS_ATTENTION},  {"map", OPS_PRODUCTS},
              {"matmul", OPS_PRODUCTS}, {"convolution", OPS_PRODUCTS}, {"experts", OPS_PRODUCTS}};
  for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
    if (strstr(op->name, rows[i].part)) return rows[i].kind;
  return OPS_ELEMENTWISE;
}

static void add_op(void *context, const esp_node *node, esp_op_phase phase, double begin, double end) {
  op_times *t = context;
  t->seconds[phase][op_kind_of(node->op)] += end - begin;
  if (phase == ESP_OP_FORWARD) return;
  if (t->backward_begin == 0) t->backward_begin = begin;
  t->backward_end = end;
}

void op_times_start(op_times *times, esp_tape *tape) {
  *times = (op_times){.timer = {esp_seconds, add_op, times}};
  esp_tape_set_timer(tape, &times->timer);
}
