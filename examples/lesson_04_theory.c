/* Lesson 4: why the change of a router's norm tells which experts matter. A mixture of 16 experts is trained on a task
 * that four of them know something of (theory.h); their routing vectors grow, those of the others stay. Dropping the 12
 * that grew least costs nothing, dropping the 12 that grew most is as bad as guessing.
 *
 * Introduces: esp_parameters, esp_optimizer, esp_route_experts, ESP_EXPERT_ZERO. */
#include "theory.h"

#include <stdio.h>

static esp_status show(theory *t) {
  static const int counts[] = {0, 4, 8, 12};
  bool gone[THEORY_EXPERTS];
  double kept_large = 0, kept_small = 0;
  ESP_TRY(theory_train(t));
  for (int s = 0; s < THEORY_EXPERTS; s++)
    printf("expert %2d, %s: its routing vector grew by %.1f\n", s, s < THEORY_RELEVANT ? "relevant  " : "irrelevant",
           fabs(t->change[s]) < 0.05 ? 0.0 : t->change[s]);
  for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
    theory_choose(t, counts[i], false, gone);
    ESP_TRY(theory_accuracy(t, gone, 32, &kept_large));
    theory_choose(t, counts[i], true, gone);
    ESP_TRY(theory_accuracy(t, gone, 32, &kept_small));
    printf("without %2d experts: accuracy %.1f if those that grew least go, %.1f if those that grew most go\n",
           counts[i], kept_large, kept_small);
  }
  return ESP_OK;
}

int main(void) {
  theory t;
  esp_status status = theory_create(&t, 64, 5);
  if (status == ESP_OK) status = show(&t);
  if (status != ESP_OK) fprintf(stderr, "%s\n", esp_error_message());
  theory_free(&t);
  return status != ESP_OK;
}

/* Output:
expert  0, relevant  : its routing vector grew by 1.5
expert  1, relevant  : its routing vector grew by 1.5
expert  2, relevant  : its routing vector grew by 1.3
expert  3, relevant  : its routing vector grew by 1.5
expert  4, irrelevant: its routing vector grew by 0.0
expert  5, irrelevant: its routing vector grew by 0.0
expert  6, irrelevant: its routing vector grew by 0.0
expert  7, irrelevant: its routing vector grew by 0.0
expert  8, irrelevant: its routing vector grew by 0.0
expert  9, irrelevant: its routing vector grew by 0.0
expert 10, irrelevant: its routing vector grew by 0.0
expert 11, irrelevant: its routing vector grew by 0.0
expert 12, irrelevant: its routing vector grew by 0.0
expert 13, irrelevant: its routing vector grew by 0.0
expert 14, irrelevant: its routing vector grew by 0.0
expert 15, irrelevant: its routing vector grew by 0.0
without  0 experts: accuracy 1.0 if those that grew least go, 1.0 if those that grew most go
without  4 experts: accuracy 1.0 if those that grew least go, 0.6 if those that grew most go
without  8 experts: accuracy 1.0 if those that grew least go, 0.6 if those that grew most go
without 12 experts: accuracy 1.0 if those that grew least go, 0.5 if those that grew most go
*/
