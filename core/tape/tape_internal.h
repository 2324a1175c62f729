/* What the parts of the tape share: tape.c records, tape_memory.c reuses memory within a step, tape_backward.c walks
 * the nodes back, tape_diagnosis.c finds the first node that went wrong. */
#ifndef ESPALIER_TAPE_INTERNAL_H
#define ESPALIER_TAPE_INTERNAL_H

#include <espalier/tape.h>

/* A block whose life ended before the step did: a gradient that was used, or a result that was forgotten. */
enum { ESP_SPARE_BLOCKS = 256, ESP_SPARE_GRAIN = 64 };

typedef struct esp_spare_block {
  char *block;
  size_t bytes; /* a multiple of ESP_SPARE_GRAIN */
} esp_spare_block;

struct esp_tape {
  esp_arena *arena;
  esp_spare_block spares[ESP_SPARE_BLOCKS]; /* by address; neighbours are joined */
  int spare_count;
  esp_tensor *loss; /* of the last backward pass; NULL before it */
  esp_node **nodes; /* the nodes lie in the arena; this list of them is kept from step to step */
  int64_t count, capacity;
  const char *scope;
  esp_status status;
  bool record;
  esp_precision precision;
  const esp_tape_timer *timer; /* or NULL */
};

/* The smallest spare block that fits, or new memory; NULL if memory is short, and the tape's status then says so. */
void *esp_tape_take_block(esp_tape *tape, size_t bytes);

/* Makes a block spare. NULL is left alone; a block that finds no room in the list waits for the next step. */
void esp_tape_give_block(esp_tape *tape, void *block, size_t bytes);

/* The size of a tensor's data, and of its gradient. */
size_t esp_tensor_bytes(const esp_tensor *tensor);

/* Gives a tensor memory for its data; false if memory is short. */
bool esp_tape_take_data(esp_tape *tape, esp_tensor *tensor);

/* Runs one of an op's functions, and tells the timer. */
void esp_tape_run_phase(const esp_tape *tape, esp_node *node, esp_op_phase phase);

/* Has a forgotten tensor computed again, and what it was computed from where that is forgotten, too. */
esp_status esp_tape_recall(esp_tape *tape, esp_tensor *tensor) ESP_MUST_CHECK;

/* Gives the loss its gradient, 1, as if no backward pass had been. */
esp_status esp_tape_start_backward(esp_tape *tape, esp_tensor *loss) ESP_MUST_CHECK;

/* Runs one node backwards unless no gradient reached it. Outputs that none reached count as zero. */
esp_status esp_tape_run_backward(esp_tape *tape, esp_node *node) ESP_MUST_CHECK;

#endif
