#include "expert_passes_internal.h"

#include <espalier/evaluate.h>
#include <espalier/memory.h>
#include <espalier/ops.h>

#include <math.h>
#include <string.h>

/* --- what experts see --------------------------------------------------------------------------------------- */

static esp_status take_inputs(expert_inputs *in, const esp_moe *moe) {
  *in = (expert_inputs){.experts = moe->layout.experts, .width = moe->bank.width, .neurons = moe->bank.hidden};
  const size_t experts = (size_t)in->experts, width = (size_t)in->width;
  in->count = esp_alloc(experts, sizeof *in->count);
  in->logits = esp_alloc(experts * experts, sizeof *in->logits);
  in->features = esp_alloc(experts * width, sizeof *in->features);
  in->absolute = esp_alloc(experts * width, sizeof *in->absolute);
  in->squares = esp_alloc(experts * width, sizeof *in->squares);
  in->hidden = esp_alloc(experts * (size_t)in->neurons, sizeof *in->hidden);
  return in->count && in->logits && in->features && in->absolute && in->squares && in->hidden ? ESP_OK : ESP_ERR_MEMORY;
}

static void add_logits(expert_inputs *in, const esp_moe_record *record) {
  const esp_real *z = record->logits->data;
  const int64_t tokens = esp_tensor_rows(record->logits);
  for (int64_t t = 0; t < tokens; t++, z += in->experts)
    for (int i = 0; esp_record_counts(record, t) && i < in->experts; i++)
      for (int j = 0; j < in->experts; j++) in->logits[i * in->experts + j] += (double)z[i] * (double)z[j];
}

static void add_token(expert_inputs *in, int e, const esp_real *x, const esp_real *hidden) {
  const int64_t at = (int64_t)e * in->width;
  for (int j = 0; j < in->width; j++) {
    const double value = (double)x[j];
    in->features[at + j] += value;
    in->absolute[at + j] += fabs(value);
    in->squares[at + j] += value * value;
  }
  for (int n = 0; hidden && n < in->neurons; n++)
    in->hidden[(int64_t)e * in->neurons + n] += (double)hidden[n] * (double)hidden[n];
}

typedef struct input_pass {
  expert_inputs *layers;
  int seen, count;
} input_pass;

static void observe_inputs(void *context, const esp_moe_record *record) {
  input_pass *pass = context;
  expert_inputs *in = &pass->layers[pass->seen++ % pass->count];
  const esp_routing *r = record->routing;
  if (record->logits && esp_tensor_columns(record->logits) == in->experts) add_logits(in, record);
  for (int64_t s = 0; s < r->slots; s++) {
    if (r->token && !esp_record_counts(record, r->token[s])) continue;
    in->slots++;
    in->count[r->choice[s]]++;
    if (!r->token) continue; /* Soft MoE: a slot is no token */
    const esp_real *hidden = r->row[s] < 0 ? NULL : record->experts.selected->data + (int64_t)r->row[s] * in->neurons;
    add_token(in, r->choice[s], record->input->data + (int64_t)r->token[s] * in->width, hidden);
  }
}

esp_status esp_expert_inputs_make(expert_inputs **inputs, const esp_model *model, const esp_calibration *calibration) {
  input_pass pass = {.count = esp_model_moe_count(model)};
  *inputs = NULL;
  pass.layers = esp_alloc((size_t)pass.count, sizeof *pass.layers);
  esp_status status = pass.layers ? ESP_OK : ESP_ERR_MEMORY;
  for (int i = 0; status == ESP_OK && i < pass.count; i++)
    status = take_inputs(&pass.layers[i], esp_model_moe(model, i));
  const esp_observer observer = {observe_inputs, &pass};
  if (status == ESP_OK) status = esp_calibration_pass(model, calibration, &observer);
  if (status == ESP_OK) *inputs = pass.layers;
  else esp_expert_inputs_free(pass.layers, pass.count);
  return status;
}

void esp_expert_inputs_free(expert_inputs *inputs, int layers) {
  for (int i = 0; inputs && i < layers; i++) {
    esp_free(inputs[i].count);
    esp_free(inputs[i].logits);
    esp_free(inputs[i].features);
    esp_free(inputs[i].absolute);
    esp_free(inputs[i].squares);
    esp_free(inputs[i].hidden);
  }
  esp_free(inputs);
}

/* --- neurons side by side ----------------------------------------------------------------------------------- */

typedef struct match_pass {
  const esp_model *model;
  neuron_match *matches;
  int count, seen, layers;
  esp_tape *tape; /* of the experts run aside */
  esp_status status;
} match_pass;

static bool is_among(const int32_t *experts, int count, int32_t e) {
  for (int i = 0; i < count; i++)
    if (experts[i] == e) return true;
  return false;
}

/* Inputs of the tokens that chose any of the match's experts, each once; NULL: no such token, or no memory. */
static esp_tensor *gather_tokens(esp_tape *tape, const neuron_match *m, const esp_moe_record *record) {
  const esp_routing *r = record->routing;
  const int64_t width = esp_tensor_columns(record->input);
  bool *wanted = esp_tape_take(tape, (size_t)r->tokens * sizeof *wanted);
  if (!wanted) return NULL;
  memset(wanted, 0, (size_t)r->tokens * sizeof *wanted);
  int64_t tokens = 0;
  for (int64_t s = 0; s < r->slots; s++) {
    const bool chosen =
        is_among(m->rows, m->row_count, r->choice[s]) || is_among(m->columns, m->column_count, r->choice[s]);
    if (!chosen || wanted[r->token[s]] || !esp_record_counts(record, r->token[s])) continue;
    wanted[r->token[s]] = true;
    tokens++;
  }
  if (tokens == 0) return NULL;
  esp_tensor *x = esp_tape_tensor(tape, 2, (const int64_t[]){tokens, width});
  for (int64_t t = 0, to = 0; x && t < r->tokens; t++)
    if (wanted[t]) memcpy(x->data + width * to++, record->input->data + t * width, (size_t)width * sizeof *x->data);
  return x;
}

/* [1, ..] of a bank's tensor: one expert's part of it. */
static esp_tensor *part_of(esp_tape *tape, const esp_tensor *tensor, int stored) {
  esp_tensor *part = tensor ? esp_tape_take(tape, sizeof *part) : NULL;
  if (!part) return NULL;
  *part =
      (esp_tensor){.data = tensor->data + stored * (esp_tensor_count(tensor) / tensor->shape[0]), .rank = tensor->rank};
  memcpy(part->shape, tensor->shape, sizeof part->shape);
  part->shape[0] = 1;
  return part;
}

/* The activations of one expert for x, before any selection of neurons. */
static const esp_tensor *activations(esp_tape *tape, const esp_moe *moe, int expert, esp_tensor *x) {
  const int stored = moe->layout.index[expert];
  esp_expert_bank bank = moe->bank;
  bank.experts = 1;
  bank.up = part_of(tape, moe->bank.up, stored);
  bank.up_bias = part_of(tape, moe->bank.up_bias, stored);
  bank.down = part_of(tape, moe->bank.down, stored);
  bank.down_bias = part_of(tape, moe->bank.down_bias, stored);
  int64_t *first_row = esp_tape_take(tape, 2 * sizeof *first_row);
  if (!first_row || !bank.up || !bank.down) return NULL;
  first_row[0] = 0;
  first_row[1] = esp_tensor_rows(x);
  esp_bank_trace trace;
  return esp_expert_bank_forward(&bank, tape, x, first_row, NULL, &trace) ? trace.activation : NULL;
}

/* [tokens, count x neurons], expert beside expert. */
static esp_real *side_by_side(esp_tape *tape, const esp_moe *moe, const int32_t *experts, int count, esp_tensor *x) {
  const int64_t tokens = esp_tensor_rows(x), f = moe->bank.hidden;
  esp_real *all = esp_tape_take(tape, (size_t)(tokens * count * f) * sizeof *all);
  for (int i = 0; all && i < count; i++) {
    const esp_tensor *a = activations(tape, moe, experts[i], x);
    if (!a) return NULL;
    for (int64_t t = 0; t < tokens; t++) memcpy(all + (t * count + i) * f, a->data + t * f, (size_t)f * sizeof *all);
  }
  return all;
}

static esp_status add_match(match_pass *pass, neuron_match *m, const esp_moe_record *record) {
  esp_tape_reset(pass->tape, false);
  esp_tensor *x = gather_tokens(pass->tape, m, record);
  if (!x) return esp_tape_status(pass->tape);
  const esp_real *a = side_by_side(pass->tape, record->layer, m->rows, m->row_count, x);
  const esp_real *b = a ? side_by_side(pass->tape, record->layer, m->columns, m->column_count, x) : NULL;
  if (!b) return esp_tape_status(pass->tape);
  esp_correlation_add(&m->correlation, a, b, esp_tensor_rows(x));
  return ESP_OK;
}

static void observe_matches(void *context, const esp_moe_record *record) {
  match_pass *pass = context;
  const int layer = pass->seen++ % pass->layers;
  for (int i = 0; i < pass->count; i++)
    if (pass->status == ESP_OK && pass->matches[i].layer == layer)
      pass->status = add_match(pass, &pass->matches[i], record);
}

esp_status esp_match_neurons(neuron_match *matches, int count, const esp_model *model,
                             const esp_calibration *calibration) {
  match_pass pass = {.model = model, .matches = matches, .count = count, .layers = esp_model_moe_count(model)};
  pass.tape = esp_tape_create();
  if (!pass.tape) return ESP_ERR_MEMORY;
  const esp_observer observer = {observe_matches, &pass};
  const esp_status status = esp_calibration_pass(model, calibration, &observer);
  esp_tape_free(pass.tape);
  return status == ESP_OK ? pass.status : status;
}

/* --- gradients ---------------------------------------------------------------------------------------------- */

typedef struct gradient_pass {
  const esp_model *model;
  esp_tape *tape;
  esp_loader *loader;
  int64_t size;
  double *sum, *squares;
} gradient_pass;

static esp_status add_gradients(gradient_pass *pass, const esp_batch *batch) {
  esp_tape_reset(pass->tape, true);
  esp_tensor *images = esp_batch_images(pass->tape, batch, &pass->model->config);
  if (!images) return esp_tape_status(pass->tape);
  const esp_model_output output = esp_model_forward(pass->model, pass->tape, images, &(esp_pass){.training = false});
  esp_tensor *prediction = output.logits ? esp_ensemble_prediction(pass->tape, &output) : NULL;
  esp_tensor *loss =
      prediction ? esp_cross_entropy(pass->tape, prediction, &(esp_targets){.labels = batch->labels}) : NULL;
  if (!loss) return esp_tape_status(pass->tape);
  ESP_TRY(esp_tape_backward(pass->tape, loss));
  const esp_real *gradients = esp_parameters_gradients(pass->model->parameters);
  for (int64_t i = 0; i < pass->size; i++) {
    const double g = (double)gradients[i];
    pass->sum[i] += g;
    pass->squares[i] += g * g;
  }
  return ESP_OK;
}

static esp_status run_gradients(gradient_pass *pass, const esp_calibration *c) {
  const esp_loader_options loading = {.batch = esp_calibration_batch(c, &pass->model->config),
                                      .normalisation = *c->normalisation,
                                      .seed = c->seed,
                                      .example_limit = esp_calibration_images(c),
                                      .sample = true};
  ESP_TRY(esp_check_data_fits(&pass->model->config, c->dataset, true));
  pass->sum = esp_alloc((size_t)pass->size, sizeof *pass->sum);
  pass->squares = esp_alloc((size_t)pass->size, sizeof *pass->squares);
  pass->tape = esp_tape_create();
  if (!pass->sum || !pass->squares || !pass->tape) return ESP_ERR_MEMORY;
  ESP_TRY(esp_loader_create(&pass->loader, c->dataset, c->split, &loading, 0));
  for (int64_t left = esp_loader_batches_per_epoch(pass->loader); left > 0; left--) {
    const esp_batch *batch;
    ESP_TRY(esp_loader_next(pass->loader, &batch));
    ESP_TRY(add_gradients(pass, batch));
  }
  return ESP_OK;
}

static esp_real *rounded(const double *values, int64_t count) {
  esp_real *copy = esp_alloc((size_t)count, sizeof *copy);
  for (int64_t i = 0; copy && i < count; i++) copy[i] = (esp_real)values[i];
  return copy;
}

esp_status esp_sum_gradients(esp_real **sum, esp_real **squares, const esp_model *model,
                             const esp_calibration *calibration) {
  gradient_pass pass = {.model = model, .size = esp_parameters_size(model->parameters)};
  *sum = *squares = NULL;
  esp_status status = run_gradients(&pass, calibration);
  if (status == ESP_OK) {
    *sum = rounded(pass.sum, pass.size);
    *squares = rounded(pass.squares, pass.size);
    if (!*sum || !*squares) status = ESP_ERR_MEMORY;
  }
  esp_free(pass.sum);
  esp_free(pass.squares);
  esp_tape_free(pass.tape);
  esp_loader_close(pass.loader);
  return status;
}

esp_expert_bank esp_bank_in(const esp_expert_bank *bank, const esp_model *model, esp_real *values,
                            esp_tensor *tensors) {
  esp_expert_bank other = *bank;
  esp_tensor **parts[] = {&other.up, &other.up_bias, &other.down, &other.down_bias};
  for (int i = 0; i < 4; i++) {
    if (!*parts[i]) continue;
    tensors[i] = **parts[i];
    tensors[i].data = values + ((*parts[i])->data - esp_parameters_values(model->parameters));
    *parts[i] = &tensors[i];
  }
  return other;
}
