/* The criteria that score neurons. A new one is a function and a row of the table. */
#include "neurons_internal.h"
#include <espalier/random.h>

#include <math.h>
#include <string.h>

static const char prefix[] = "neuron-";

static double norm_of(const esp_real *row, int64_t count) {
  double squares = 0;
  for (int64_t i = 0; row && i < count; i++) squares += (double)row[i] * (double)row[i];
  return sqrt(squares);
}

/* --- without data -------------------------------------------------------------------------------------------- */

static esp_status score_weight_norm(const esp_neuron_criterion *self, const esp_criterion_inputs *inputs,
                                    esp_plan *plan) {
  (void)self;
  for (int i = 0; i < plan->layer_count; i++) {
    const esp_expert_bank *bank = &esp_model_moe(inputs->model, i)->bank;
    double *score = plan->layers[i].neuron.score;
    for (int s = 0; s < bank->experts; s++) {
      const esp_expert_weights w = esp_expert_weights_of(bank, s);
      for (int64_t j = 0, at = 0; j < w.neurons; j++, at += bank->width) {
        const double gate = w.gate ? norm_of(w.gate + at, bank->width) : 0;
        *score++ = hypot(hypot(gate, norm_of(w.up + at, bank->width)), norm_of(w.down + at, bank->width));
      }
    }
  }
  return ESP_OK;
}

static esp_status score_random(const esp_neuron_criterion *self, const esp_criterion_inputs *inputs, esp_plan *plan) {
  (void)self;
  for (int i = 0; i < plan->layer_count; i++) {
    esp_random stream =
        esp_random_stream(inputs->seed, ESP_PURPOSE_PRUNE, (uint64_t)esp_model_moe(inputs->model, i)->block);
    for (int64_t j = 0; j < plan->layers[i].neuron.count; j++)
      plan->layers[i].neuron.score[j] = esp_random_uniform(&stream);
  }
  return ESP_OK;
}

/* --- by a pass of calibration data --------------------------------------------------------------------------- */

/* value: of neuron `index`, whose row of down is `down`, by its sums; divided by the expert's rows, of which there are
 * some. */
typedef double neuron_value(const esp_neuron_sums *sums, int64_t index, const esp_real *down, int64_t width);

static void set_scores(esp_layer_plan *layer, const esp_moe *moe, const esp_neuron_sums *sums, neuron_value *value) {
  int64_t index = 0;
  layer->unrouted = 0;
  for (int s = 0; s < sums->stored; s++) {
    const esp_expert_weights w = esp_expert_weights_of(&moe->bank, s);
    layer->unrouted += sums->rows[s] == 0;
    for (int64_t j = 0; j < w.neurons; j++, index++)
      layer->neuron.score[index] =
          sums->rows[s] ? value(sums, index, w.down + j * moe->bank.width, moe->bank.width) / (double)sums->rows[s] : 0;
  }
}

static esp_status score_by_pass(const esp_criterion_inputs *inputs, neuron_value *value, esp_plan *plan) {
  esp_neuron_sums *sums;
  ESP_TRY(esp_neuron_sums_collect(&sums, inputs));
  for (int i = 0; i < plan->layer_count; i++)
    set_scores(&plan->layers[i], esp_model_moe(inputs->model, i), &sums[i], value);
  esp_neuron_sums_free(sums, plan->layer_count);
  return ESP_OK;
}

static double selected(const esp_neuron_sums *sums, int64_t index, const esp_real *down, int64_t width) {
  (void)down, (void)width;
  return sums->selected[index];
}

static double activation(const esp_neuron_sums *sums, int64_t index, const esp_real *down, int64_t width) {
  (void)down, (void)width;
  return sums->activation[index];
}

static double contribution(const esp_neuron_sums *sums, int64_t index, const esp_real *down, int64_t width) {
  return sums->contribution[index] * norm_of(down, width);
}

static esp_status score_frequency(const esp_neuron_criterion *self, const esp_criterion_inputs *inputs,
                                  esp_plan *plan) {
  (void)self;
  return score_by_pass(inputs, selected, plan);
}

static esp_status score_activation(const esp_neuron_criterion *self, const esp_criterion_inputs *inputs,
                                   esp_plan *plan) {
  (void)self;
  return score_by_pass(inputs, activation, plan);
}

static esp_status score_contribution(const esp_neuron_criterion *self, const esp_criterion_inputs *inputs,
                                     esp_plan *plan) {
  (void)self;
  return score_by_pass(inputs, contribution, plan);
}

/* --- the table ----------------------------------------------------------------------------------------------- */

static const esp_neuron_criterion table[] = {
    {"neuron-frequency", "the share of its expert's rows in which a MoNE selects it", true, false, true,
     score_frequency},
    {"neuron-activation", "mean |h_j| over its expert's rows, before any selection", true, false, false,
     score_activation},
    {"neuron-contribution", "mean |h_j| after the selection x the norm of its row of down", true, false, false,
     score_contribution},
    {"neuron-weight-norm", "L2 norm of its rows of gate, up and down together", false, false, false, score_weight_norm},
    {"neuron-random", "a uniform number, keyed by the seed and the layer", false, true, false, score_random},
};
enum { ROWS = sizeof table / sizeof table[0] };

size_t esp_neuron_criterion_list(const esp_neuron_criterion **criteria) {
  *criteria = table;
  return ROWS;
}

bool esp_is_neuron_criterion(const char *name) { return strncmp(name, prefix, sizeof prefix - 1) == 0; }

esp_status esp_neuron_criterion_find(const esp_neuron_criterion **criterion, const char *name) {
  const char *names[ROWS];
  int index;
  for (size_t i = 0; i < ROWS; i++) names[i] = table[i].name;
  ESP_TRY(esp_find_name(&index, "criterion", name, names, ROWS));
  *criterion = &table[index];
  return ESP_OK;
}
