/* The tape: define-by-run automatic differentiation. An op computes its result at once and leaves a node;
 * esp_tape_backward() walks the nodes from last to first. One tape serves all steps: esp_tape_reset() forgets
 * the step, its tensors and its nodes, and keeps the memory.
 *
 * Failure: an op that runs out of memory returns NULL, an op with a NULL input returns NULL, and
 * esp_tape_status() says why. So a whole forward pass is written without checks and checked once. */
#ifndef ESPALIER_TAPE_H
#define ESPALIER_TAPE_H

#include <espalier/blas.h>
#include <espalier/memory.h>
#include <espalier/tensor.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { ESP_MAX_INPUTS = 6, ESP_MAX_OUTPUTS = 3 };

typedef struct esp_op esp_op;
typedef struct esp_tape esp_tape;

/* One op that ran. */
typedef struct esp_node {
  const esp_op *op;
  const char *scope;                  /* the part of the model it ran in: "blocks.3.ffn" */
  esp_tensor *inputs[ESP_MAX_INPUTS]; /* an optional input that is absent is NULL */
  esp_tensor *outputs[ESP_MAX_OUTPUTS];
  int input_count, output_count;
  void *attributes; /* the op's own struct, copied into the step arena */
  void *saved;      /* what forward keeps for backward: `saved_bytes` bytes */
  void *scratch;    /* what backward needs for itself: `scratch_bytes` bytes */
  size_t saved_bytes, scratch_bytes;
  esp_precision precision; /* of its heavy products, forward and backward */
  unsigned unread;         /* ESP_UNREAD_... of the values that backward does not look at; 0: it reads them all */
  unsigned passes;         /* ESP_PASSES(i) of the inputs whose gradient is that of the only output as it is */
  bool overwrites;         /* backward may write input 0's gradient over its data, whose life is over then */
} esp_node;

/* Bits of esp_node.unread: the data of input i, those of the outputs. */
#define ESP_UNREAD_INPUT(i) (1u << (i))
#define ESP_UNREAD_OUTPUTS (1u << ESP_MAX_INPUTS)

#define ESP_PASSES(i) (1u << (i))

/* What an op costs. FLOPs count a multiply-add as two; bytes are read and written once. */
typedef struct esp_cost {
  double flops;
  double bytes;
} esp_cost;

/* How an op's gradient is to be checked against central differences in double. */
typedef struct esp_gradcheck {
  double step;
  double tolerance;  /* of |analytic - numeric| / max(1, |analytic|, |numeric|) */
  const char *kinks; /* where the op is not differentiable, in words; NULL if nowhere */
} esp_gradcheck;

/* A row of the op table. */
struct esp_op {
  const char *name;
  /* Checks the inputs' shapes (esp_panic_shape() on a mistake), sets output_count, the outputs' rank and
   * shape, saved_bytes and scratch_bytes, and what may be `unread`, passed on or overwritten. */
  void (*prepare)(esp_node *node);
  void (*forward)(esp_node *node);
  /* Adds to the inputs' gradients through esp_grad(). NULL: no gradient flows through this op. Not called where all
   * gradients are passed on: the inputs then take the output's memory. */
  void (*backward)(esp_node *node);
  esp_cost (*cost)(const esp_node *node);
  esp_gradcheck gradcheck;
};

ESP_API esp_tape *esp_tape_create(void); /* NULL if memory is short */
ESP_API void esp_tape_free(esp_tape *tape);

/* Forgets the step. With `record` false the next step keeps no nodes: for evaluation. */
ESP_API void esp_tape_reset(esp_tape *tape, bool record);

/* ESP_OK, or why an op since the last reset returned NULL (the message is esp_error_message()). */
ESP_API esp_status esp_tape_status(const esp_tape *tape);

ESP_API esp_arena *esp_tape_arena(esp_tape *tape);
ESP_API bool esp_tape_records(const esp_tape *tape);

typedef enum esp_op_phase {
  ESP_OP_FORWARD,
  ESP_OP_AGAIN,   /* forward once more, in the backward pass, of a result that was forgotten */
  ESP_OP_BACKWARD /* without what had to be computed again for it */
} esp_op_phase;

/* Someone who wants to know where a step's time goes. */
typedef struct esp_tape_timer {
  double (*clock)(void); /* in seconds */
  /* Called after each op's function has run, on the thread that runs the step; the spans of two calls do not
   * overlap. */
  void (*op)(void *context, const esp_node *node, esp_op_phase phase, double begin, double end);
  void *context;
} esp_tape_timer;

/* The timer measures from now on, until another is set; NULL: none, as at first. *timer must outlive its use. Without
 * one no clock is read. */
ESP_API void esp_tape_set_timer(esp_tape *tape, const esp_tape_timer *timer);

/* The precision of the heavy products (linear maps, expert banks, convolutions) of the next ops, until another is set;
 * fp32 at first. One that esp_precision_check() allows. */
ESP_API void esp_tape_set_precision(esp_tape *tape, esp_precision precision);
ESP_API esp_precision esp_tape_precision(const esp_tape *tape);

/* Names the part of the model the next ops run in. `scope` must outlive the step. */
ESP_API void esp_tape_scope(esp_tape *tape, const char *scope);

/* A tensor of the given shape in the step arena; its data are not set. NULL if memory is short. */
ESP_API esp_tensor *esp_tape_tensor(esp_tape *tape, int rank, const int64_t *shape);

/* `bytes` bytes in the step arena, not set. NULL if memory is short; the tape's status then says so. */
ESP_API void *esp_tape_take(esp_tape *tape, size_t bytes);

/* Says that the rest of the forward pass will not look at `tensor`, an op's result (or a view of one; NULL and leaves
 * are left alone): its memory goes to the next results. If backward needs its values, its op computes them once more
 * (recomputation, or activation checkpointing), so this is for results that are cheap to compute or that no backward
 * reads. */
ESP_API void esp_tape_forget(esp_tape *tape, esp_tensor *tensor);

/* The same in a pass that records nothing, where no backward will follow; otherwise nothing. */
ESP_API void esp_tape_release(esp_tape *tape, esp_tensor *tensor);

/* Runs an op. `attributes` (attributes_size bytes) are copied. Returns the node, NULL on failure. */
ESP_API esp_node *esp_tape_run(esp_tape *tape, const esp_op *op, esp_tensor *const *inputs, int input_count,
                               const void *attributes, size_t attributes_size);

/* The same for ops with one output, which it returns. */
ESP_API esp_tensor *esp_tape_apply(esp_tape *tape, const esp_op *op, esp_tensor *const *inputs, int input_count,
                                   const void *attributes, size_t attributes_size);

/* d loss / d (every leaf that requires it); `loss` has one element. Gradients of results live only until the node that
 * made the result has used them, and may take the memory of a result that nobody is left to read: its data are NULL
 * then. */
ESP_API esp_status esp_tape_backward(esp_tape *tape, esp_tensor *loss) ESP_MUST_CHECK;

/* Tells backward functions where the gradient of `tensor` goes. `*accumulate` says whether to add to what is
 * there or to overwrite it (it is not set before). NULL if the tensor needs no gradient. */
ESP_API esp_real *esp_grad(esp_tensor *tensor, bool *accumulate);

/* The nodes of this step, in the order they ran. */
ESP_API int64_t esp_tape_node_count(const esp_tape *tape);
ESP_API const esp_node *esp_tape_node(const esp_tape *tape, int64_t index);

/* The first node with a result that is not finite; NULL if all are finite. */
ESP_API const esp_node *esp_tape_first_not_finite(esp_tape *tape);

/* The first node, in backward order, that gives one of its inputs a gradient that is not finite; NULL if there is none,
 * no backward pass has been, or memory is short. Runs the backward pass once more, because gradients of results are
 * given up as soon as they have been used. */
ESP_API const esp_node *esp_tape_first_gradient_not_finite(esp_tape *tape);

/* Aborts with "op NAME in SCOPE: WHAT; inputs [..] [..]". */
ESP_API void esp_panic_shape(const esp_node *node, const char *what) __attribute__((noreturn));

#ifdef __cplusplus
}
#endif
#endif
