/* Lesson 2: a mixture layer, op by op: route, dispatch, two grouped products, combine. Then the same layer as a MoNE,
 * which differs by one op.
 *
 * Introduces: esp_route, esp_routing, esp_dispatch, esp_grouped_map, esp_neuron_top_k, esp_combine. */
#include <espalier/core.h>
#include <espalier/layers.h>

#include <stdio.h>

enum { TOKENS = 4, WIDTH = 2, EXPERTS = 3, NEURONS = 2, TOP_K = 2 };

/* Expert e scales by e + 1: its gate and up rows and its down rows are multiples of the identity. */
static void fill_experts(float up[EXPERTS][2][NEURONS][WIDTH], float down[EXPERTS][NEURONS][WIDTH]) {
  for (int e = 0; e < EXPERTS; e++)
    for (int n = 0; n < NEURONS; n++)
      for (int j = 0; j < WIDTH; j++) {
        up[e][0][n][j] = up[e][1][n][j] = n == j; /* the rows of the gate, then those of up */
        down[e][n][j] = (float)((e + 1) * (n == j));
      }
}

static void print_routing(const float *tokens, const esp_tensor *gates, const esp_routing *routing) {
  for (int t = 0; t < TOKENS; t++)
    printf("token (%2.0f, %2.0f): expert %d with gate %.3f, expert %d with gate %.3f\n", (double)tokens[2 * t],
           (double)tokens[2 * t + 1], routing->choice[2 * t], (double)gates->data[2 * t], routing->choice[2 * t + 1],
           (double)gates->data[2 * t + 1]);
  for (int e = 0; e < EXPERTS; e++)
    printf("expert %d gets %lld rows\n", e, (long long)(routing->first_row[e + 1] - routing->first_row[e]));
}

int main(void) {
  /* Four tokens; the router's rows point right, up and left, so a token goes where it points. */
  float token_data[TOKENS * WIDTH] = {2, 0, 0, 2, -2, 0, 1, 1};
  float router_data[EXPERTS * WIDTH] = {1, 0, 0, 1, -1, 0};
  float up_data[EXPERTS][2][NEURONS][WIDTH], down_data[EXPERTS][NEURONS][WIDTH];
  fill_experts(up_data, down_data);
  esp_tensor tokens = {.data = token_data, .shape = {TOKENS, WIDTH}, .rank = 2};
  esp_tensor router = {.data = router_data, .shape = {EXPERTS, WIDTH}, .rank = 2};
  esp_tensor gate_up = {.data = &up_data[0][0][0][0], .shape = {EXPERTS, 2 * NEURONS, WIDTH}, .rank = 3};
  esp_tensor down = {.data = &down_data[0][0][0], .shape = {EXPERTS, NEURONS, WIDTH}, .rank = 3};

  esp_tape *tape = esp_tape_create();
  if (!tape) return 1;
  esp_expert_layout layout;
  esp_expert_layout_full(&layout, EXPERTS);
  const esp_router_config config = {.score = ESP_SCORE_SOFTMAX, .renormalise = true};

  esp_tensor *logits = esp_linear_map(tape, &tokens, &router, NULL);
  const esp_route_request request = esp_plain_request(&config, &layout, TOP_K, TOKENS);
  esp_routed routed = {0};
  esp_tensor *gates = esp_route(tape, logits, &request, &routed);
  if (!gates) return 1;
  const esp_routing *routing = routed.routing;
  print_routing(token_data, gates, routing);

  const esp_grouped_map_options up = {.first_row = routing->first_row, .groups = EXPERTS, .transpose = true};
  const esp_grouped_map_options back = {.first_row = routing->first_row, .groups = EXPERTS};
  esp_tensor *rows = esp_dispatch(tape, &tokens, routing);
  esp_tensor *pre = esp_grouped_map(tape, rows, &gate_up, NULL, &up);
  esp_tensor *hidden = esp_swiglu(tape, pre);
  esp_tensor *moe = esp_combine(tape, esp_grouped_map(tape, hidden, &down, NULL, &back), gates, routing);

  esp_tensor *selected =
      esp_neuron_top_k(tape, hidden, pre, &(esp_neuron_selection){.kept = 1, .ranking = ESP_GATE_SILU},
                       NULL); /* the one op more: the neuron with the larger |SiLU(gate)| */
  esp_tensor *mone = esp_combine(tape, esp_grouped_map(tape, selected, &down, NULL, &back), gates, routing);
  if (!moe || !mone) return 1;
  for (int t = 0; t < TOKENS; t++)
    printf("token %d: MoE (%.3f, %.3f)  MoNE (%.3f, %.3f)\n", t, (double)moe->data[2 * t], (double)moe->data[2 * t + 1],
           (double)mone->data[2 * t], (double)mone->data[2 * t + 1]);
  esp_tape_free(tape);
  return 0;
}

/* Output:
token ( 2,  0): expert 0 with gate 0.881, expert 1 with gate 0.119
token ( 0,  2): expert 1 with gate 0.881, expert 0 with gate 0.119
token (-2,  0): expert 2 with gate 0.881, expert 1 with gate 0.119
token ( 1,  1): expert 0 with gate 0.500, expert 1 with gate 0.500
expert 0 gets 3 rows
expert 1 gets 4 rows
expert 2 gets 1 rows
token 0: MoE (3.943, 0.000)  MoNE (3.943, 0.000)
token 1: MoE (0.000, 6.626)  MoNE (0.000, 6.626)
token 2: MoE (1.374, 0.000)  MoNE (1.374, 0.000)
token 3: MoE (1.097, 1.097)  MoNE (1.097, 0.000)
*/
