/* Examples of ops: small computations with every input filled away from the op's kinks, ending in one number. The
 * tests walk them: gradients against central differences (in double), equal bits for any number of threads, lack of
 * memory. To add one, write a builder and give it a row in op_examples.c. */
#ifndef ESPALIER_OP_EXAMPLES_H
#define ESPALIER_OP_EXAMPLES_H

#include <espalier/tape.h>

enum { EXAMPLE_MAX_LEAVES = 12 };

typedef struct example example;

/* A row of the table of examples. */
typedef struct op_example {
  const char *op;                   /* esp_op.name; the builder must run it */
  const char *description;          /* what is special about this one */
  esp_tensor *(*build)(example *e); /* runs the op on e->tape and returns a loss [1] */
} op_example;

/* All examples; ends with a row whose op is NULL. */
extern const op_example op_examples[];

/* A leaf: an input the builder asked for. Those without a gradient are the fixed weights of example_loss(). */
struct example {
  const op_example *row;
  esp_tape *tape;
  esp_tensor leaves[EXAMPLE_MAX_LEAVES];
  int leaf_count, next;
  uint64_t stream; /* of the leaves' numbers: differs from row to row */
};

/* --- for builders --------------------------------------------------------------------------------------- */

#define SHAPE(...) \
  (int)(sizeof((const int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), (const int64_t[]) { __VA_ARGS__ }

/* The next input, with a gradient: example_normal(e, SHAPE(2, 3)) has normal numbers; example_apart() numbers with
 * at least 0.02 between any two and between each and 0, so that a difference step crosses no kink. A second build
 * finds the same tensors again. */
esp_tensor *example_normal(example *e, int rank, const int64_t *shape);
esp_tensor *example_apart(example *e, int rank, const int64_t *shape);

/* The sum of y times fixed normal weights -> [1]; NULL if y is. For ops with more outputs, esp_add() the losses. */
esp_tensor *example_loss(example *e, esp_tensor *y);

/* --- for tests ------------------------------------------------------------------------------------------ */

/* Makes the tape and, by one build, the leaves. */
void example_create(example *e, const op_example *row);
void example_free(example *e);

/* Resets the tape, then builds `times` times on it and returns the sum of the losses; NULL on failure. */
esp_tensor *example_build(example *e, int times);

/* The same and backward: the leaves' gradients are then in their `grad`. */
esp_status example_run(example *e, int times);

/* The node of the tape that runs the example's op, NULL if none does. */
const esp_node *example_node(const example *e);

#endif
