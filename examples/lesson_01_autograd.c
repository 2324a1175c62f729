/* Lesson 1: the tape. Fits a line to four points by hand-written gradient descent.
 *
 * Introduces: esp_tape_create, leaf tensors, ops, esp_tape_backward, esp_tape_reset. */
#include <espalier/core.h>

#include <stdio.h>

int main(void) {
  float x_data[] = {0, 1, 2, 3}, y_data[] = {1, 3, 5, 7}; /* y = 2 x + 1 */
  float w_data[] = {0}, w_grad[1], b_data[] = {0}, b_grad[1];

  /* Leaves are the caller's: ops read their data, and backward fills grad where it is required. */
  esp_tensor x = {.data = x_data, .shape = {4, 1}, .rank = 2};
  esp_tensor minus_y = {.data = y_data, .shape = {4, 1}, .rank = 2};
  esp_tensor w = {.data = w_data, .grad = w_grad, .shape = {1, 1}, .rank = 2, .requires_grad = true};
  esp_tensor b = {.data = b_data, .grad = b_grad, .shape = {1}, .rank = 1, .requires_grad = true};
  for (int i = 0; i < 4; i++) y_data[i] = -y_data[i];

  esp_tape *tape = esp_tape_create();
  if (!tape) return 1;
  for (int step = 0; step <= 40; step++) {
    esp_tape_reset(tape, true);                                                    /* forget the last step */
    esp_tensor *error = esp_add(tape, esp_linear_map(tape, &x, &w, &b), &minus_y); /* w x + b - y */
    esp_tensor *loss = esp_mean(tape, esp_multiply(tape, error, error));           /* its mean square */
    if (!loss || esp_tape_backward(tape, loss) != ESP_OK) return 1;
    if (step % 10 == 0)
      printf("step %3d  loss %.5f  w %.3f  b %.3f  dloss/dw %.3f\n", step, (double)loss->data[0], (double)w_data[0],
             (double)b_data[0], (double)w_grad[0]);
    w_data[0] -= 0.1f * w_grad[0];
    b_data[0] -= 0.1f * b_grad[0];
  }

  printf("the last step left %lld nodes on the tape:", (long long)esp_tape_node_count(tape));
  for (int64_t i = 0; i < esp_tape_node_count(tape); i++)
    printf(" %s%s", i ? "-> " : "", esp_tape_node(tape, i)->op->name);
  putchar('\n');
  esp_tape_free(tape);
  return 0;
}

/* Output:
step   0  loss 21.00000  w 0.000  b 0.000  dloss/dw -17.000
step  10  loss 0.00029  w 2.013  b 0.972  dloss/dw 0.008
step  20  loss 0.00008  w 2.007  b 0.985  dloss/dw 0.004
step  30  loss 0.00002  w 2.004  b 0.992  dloss/dw 0.002
step  40  loss 0.00001  w 2.002  b 0.996  dloss/dw 0.001
the last step left 4 nodes on the tape: linear map -> add -> multiply -> mean
*/
