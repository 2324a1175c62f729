/* Where the time of a step goes: ops by kind, forward, backward and computed again. */
#ifndef ESPALIER_OP_TIMES_INTERNAL_H
#define ESPALIER_OP_TIMES_INTERNAL_H

#include <espalier/tape.h>

typedef enum op_kind {
  OPS_PRODUCTS, /* linear and grouped maps, convolutions, with the biases in them */
  OPS_ATTENTION,
  OPS_NORMS,
  OPS_DISPATCH,
  OPS_COMBINE,
  OPS_ROUTING,     /* routing and all losses, the task's too */
  OPS_ELEMENTWISE, /* the rest */
  OP_KINDS
} op_kind;

enum { OP_PHASES = 3 }; /* of esp_op_phase */

extern const char *const op_kind_names[OP_KINDS];

/* The op's name decides: a new op is elementwise unless its name says what it is. */
op_kind op_kind_of(const esp_op *op);

typedef struct op_times {
  esp_tape_timer timer;
  double seconds[OP_PHASES][OP_KINDS];
  double backward_begin, backward_end; /* of the first and of the last op's function in the backward pass; 0: none */
} op_times;

/* Times the next steps of the tape from zero; *times must stay where it is until the tape's timer is set anew. */
void op_times_start(op_times *times, esp_tape *tape);

#endif
