#include <espalier/compress.h>
#include <espalier/factors.h>
#include <espalier/lapack.h>
#include <espalier/memory.h>
#include <espalier/ops.h>

#include <math.h>
#include <stdio.h>
#include <string.h>

/* --- decomposition --- */

static esp_status check_layer(const esp_moe *moe, const esp_compression_config *config) {
  const int most = moe->bank.hidden < moe->bank.width ? moe->bank.hidden : moe->bank.width;
  if (moe->bank.rank)
    return esp_fail(ESP_ERR_MISMATCH,
                    "the experts of %s are factored already, with rank %d; compress the model from before", moe->scope,
                    moe->bank.rank);
  if (moe->bank.widths)
    return esp_fail(ESP_ERR_MISMATCH,
                    "the experts of %s differ in width, and such layers cannot be factored; exclude it by "
                    "compression.exclude",
                    moe->scope);
  if (config->rank <= most) return ESP_OK;
  return esp_fail(ESP_ERR_CONFIG, "compression.rank is %d, but the experts of %s have matrices of %d x %d: at most %d",
                  config->rank, moe->scope, moe->bank.hidden, moe->bank.width, most);
}

/* Each pattern of the list must match a layer. */
static esp_status check_patterns(const esp_model *model, const char *patterns) {
  char pattern[sizeof((esp_compression_config *)NULL)->exclude];
  while (*patterns) {
    const size_t length = strcspn(patterns, ",");
    snprintf(pattern, sizeof pattern, "%.*s", (int)length, patterns);
    bool matches = false;
    for (int i = 0; i < esp_model_moe_count(model); i++)
      matches = matches || esp_name_matches(pattern, esp_model_moe(model, i)->scope);
    if (!matches)
      return esp_fail(ESP_ERR_CONFIG, "compression.exclude: no mixture layer matches \"%s\"; the first one is \"%s\"",
                      pattern, esp_model_moe(model, 0)->scope);
    patterns += length + (patterns[length] == ',');
  }
  return ESP_OK;
}

static void plan_layout(esp_expert_layout *layout, const esp_moe *moe, const esp_compression_config *config) {
  *layout = moe->layout;
  layout->rank = config->rank;
  layout->pruning = true;
  for (int side = 0; side < ESP_SIDES; side++)
    for (int e = 0; e < layout->stored; e++) layout->sparse_rows[side][e] = (int32_t)esp_factors_rows(&moe->bank, side);
}

static esp_status plan_layouts(esp_expert_layout *layouts, const esp_model *model,
                               const esp_compression_config *config) {
  int factored = 0;
  if (esp_model_moe_count(model) == 0)
    return esp_fail(ESP_ERR_MISMATCH, "the model has no mixture layers, so there are no experts to compress");
  ESP_TRY(check_patterns(model, config->exclude));
  for (int i = 0; i < esp_model_moe_count(model); i++) {
    const esp_moe *moe = esp_model_moe(model, i);
    layouts[moe->block] = moe->layout;
    if (esp_name_matches(config->exclude, moe->scope)) continue;
    ESP_TRY(check_layer(moe, config));
    plan_layout(&layouts[moe->block], moe, config);
    factored++;
  }
  if (factored) return ESP_OK;
  return esp_fail(ESP_ERR_CONFIG, "compression.exclude \"%s\" leaves no layer to compress", config->exclude);
}

/* W = svd->matrix before the decomposition, again in `w` [out, in]. S is what the rounded U and V leave of W. */
static void fill_matrix(const esp_expert_bank *bank, int expert, const esp_expert_matrix *m, const esp_svd *svd,
                        const double *w) {
  const esp_factors *f = &bank->factors[m->side];
  const int64_t rank = bank->rank, place = (int64_t)expert * f->parts + m->part;
  esp_real *u = f->u->data + place * m->out * rank, *v = f->v->data + place * rank * m->in;
  const int64_t first = esp_first_sparse_row(f, expert) + m->part * m->out;
  for (int64_t k = 0; k < rank; k++) {
    const double root = sqrt(svd->sigma[k]);
    for (int64_t o = 0; o < m->out; o++) u[o * rank + k] = (esp_real)(svd->left[o * svd->n + k] * root);
    for (int64_t i = 0; i < m->in; i++) v[k * m->in + i] = (esp_real)(root * svd->right[k * m->in + i]);
  }
  for (int64_t o = 0; o < m->out; o++) {
    f->rows->data[first + o] = (esp_real)(m->part * m->out + o);
    for (int64_t i = 0; i < m->in; i++) {
      double product = 0;
      for (int64_t k = 0; k < rank; k++) product += (double)u[o * rank + k] * (double)v[k * m->in + i];
      f->s->data[(first + o) * m->in + i] = (esp_real)(w[o * m->in + i] - product);
    }
  }
}

static esp_status factor_matrix(const esp_moe *target, const esp_moe *source, int expert, int index) {
  const esp_expert_matrix m = esp_expert_matrix_at(&source->bank, expert, index);
  esp_svd svd;
  ESP_TRY(esp_svd_create(&svd, m.out, m.in));
  double *w = esp_alloc((size_t)(m.out * m.in), sizeof *w);
  esp_status status = w ? ESP_OK : ESP_ERR_MEMORY;
  if (w) {
    esp_expert_matrix_read(&source->bank, expert, &m, w);
    memcpy(svd.matrix, w, (size_t)(m.out * m.in) * sizeof *w);
    status = esp_svd_run(&svd);
    if (status != ESP_OK) status = esp_fail_in(status, "%s, expert %d, %s", source->scope, expert, m.name);
  }
  if (status == ESP_OK) fill_matrix(&target->bank, expert, &m, &svd, w);
  esp_free(w);
  esp_svd_free(&svd);
  return status;
}

static void copy_tensor(const esp_tensor *target, const esp_tensor *source) {
  if (target) memcpy(target->data, source->data, (size_t)esp_tensor_count(target) * sizeof *target->data);
}

/* Copies the whole bank of a layer that stays as it is, else the biases. */
static void copy_rest(const esp_moe *target, const esp_moe *source) {
  copy_tensor(target->bank.up_bias, source->bank.up_bias);
  copy_tensor(target->bank.down_bias, source->bank.down_bias);
  if (target->bank.rank != source->bank.rank) return;
  copy_tensor(target->bank.up, source->bank.up);
  copy_tensor(target->bank.down, source->bank.down);
}

static esp_status factor_all(esp_model *factored, const esp_model *model) {
  ESP_TRY(esp_model_copy_parameters(factored, model, "*.experts.*"));
  for (int i = 0; i < esp_model_moe_count(model); i++) {
    const esp_moe *target = esp_model_moe(factored, i), *source = esp_model_moe(model, i);
    copy_rest(target, source);
    for (int e = 0; target->bank.rank && e < source->bank.experts; e++)
      for (int m = 0; m < esp_expert_matrix_count(&source->bank); m++) ESP_TRY(factor_matrix(target, source, e, m));
  }
  return ESP_OK;
}

/* Makes the model and fills it, or leaves NULL. */
static esp_status make(esp_model **made, const esp_model *model, const esp_expert_layout *layouts,
                       esp_status (*fill)(esp_model *, const esp_model *)) {
  ESP_TRY(esp_model_create(made, &model->config, layouts, 0));
  const esp_status status = fill(*made, model);
  if (status == ESP_OK) return ESP_OK;
  esp_model_free(*made);
  *made = NULL;
  return status;
}

esp_status esp_factor_experts(esp_model **factored, const esp_model *model, const esp_compression_config *config) {
  *factored = NULL;
  ESP_TRY(esp_compression_config_check(config));
  esp_expert_layout *layouts = esp_alloc((size_t)model->config.blocks, sizeof *layouts);
  if (!layouts) return ESP_ERR_MEMORY;
  esp_status status = plan_layouts(layouts, model, config);
  if (status == ESP_OK) status = make(factored, model, layouts, factor_all);
  esp_free(layouts);
  return status;
}

/* --- what is left --- */

static void count_rows(esp_expert_layout *layout, const esp_moe *moe) {
  *layout = moe->layout;
  layout->pruning = false;
  for (int side = 0; side < ESP_SIDES; side++) {
    const esp_factors *f = &moe->bank.factors[side];
    int64_t row = 0;
    for (int e = 0; e < moe->bank.experts; e++) {
      int32_t count = 0;
      for (int64_t end = row + f->counts[e]; row < end; row++) count += !esp_sparse_row_is_zero(f, row);
      layout->sparse_rows[side][e] = count;
    }
  }
}

/* The rows that are not 0. */
static void copy_rows(const esp_factors *target, const esp_factors *source, int experts) {
  const int64_t columns = esp_tensor_columns(source->s);
  int64_t to = 0;
  for (int64_t from = 0; from < esp_first_sparse_row(source, experts); from++) {
    if (esp_sparse_row_is_zero(source, from)) continue;
    target->rows->data[to] = source->rows->data[from];
    memcpy(target->s->data + to++ * columns, source->s->data + from * columns, (size_t)columns * sizeof(esp_real));
  }
}

static esp_status copy_compact(esp_model *compact, const esp_model *model) {
  ESP_TRY(esp_model_copy_parameters(compact, model, "*.experts.*_s,*.experts.*_rows,*.experts.*_importance"));
  for (int i = 0; i < esp_model_moe_count(model); i++) {
    const esp_expert_bank *target = &esp_model_moe(compact, i)->bank, *source = &esp_model_moe(model, i)->bank;
    for (int side = 0; source->rank && side < ESP_SIDES; side++)
      copy_rows(&target->factors[side], &source->factors[side], source->experts);
  }
  return ESP_OK;
}

esp_status esp_remove_zero_rows(esp_model **compact, const esp_model *model) {
  *compact = NULL;
  esp_expert_layout *layouts = esp_alloc((size_t)model->config.blocks, sizeof *layouts);
  if (!layouts) return ESP_ERR_MEMORY;
  int pruned = 0;
  for (int i = 0; i < esp_model_moe_count(model); i++) {
    const esp_moe *moe = esp_model_moe(model, i);
    layouts[moe->block] = moe->layout;
    if (!moe->layout.pruning) continue;
    count_rows(&layouts[moe->block], moe);
    pruned++;
  }
  const esp_status status =
      pruned ? make(compact, model, layouts, copy_compact)
             : esp_fail(ESP_ERR_MISMATCH, "no layer of the model is being compressed, so there are no rows to remove");
  esp_free(layouts);
  return status;
}

/* --- without training --- */

/* No optimiser takes the gradients, so that the next step would add to them. */
static void forget_gradients(const esp_parameters *parameters) {
  for (int64_t i = 0; i < esp_parameters_count(parameters); i++)
    esp_parameters_at(parameters, i)->tensor.grad_written = false;
}

static esp_status calibrate(const esp_model *model, esp_tape *tape, const esp_batch *batch) {
  esp_tape_reset(tape, true);
  forget_gradients(model->parameters);
  esp_tensor *images = esp_batch_images(tape, batch, &model->config);
  if (!images) return esp_tape_status(tape);
  const esp_pass pass = {.training = false};
  const esp_model_output output = esp_model_forward(model, tape, images, &pass);
  esp_tensor *logits = esp_ensemble_prediction(tape, &output);
  esp_tensor *loss = logits ? esp_cross_entropy(tape, logits, &(esp_targets){.labels = batch->labels}) : NULL;
  if (!loss) return esp_tape_status(tape);
  if (!isfinite(loss->data[0])) return esp_fail(ESP_ERR_NOT_FINITE, "the loss of the calibration images is not finite");
  return esp_tape_backward(tape, loss);
}

/* What the passes hold. */
typedef struct calibration {
  esp_row_pruning *pruning;
  esp_loader *loader;
  esp_tape *tape;
  esp_real *start; /* all parameters as they were */
} calibration;

/* Rows that were set to 0 come back: what is pruned is decided anew in each step. */
static void restore_rows(const esp_model *model, const esp_real *start) {
  for (int i = 0; i < esp_model_moe_count(model); i++) {
    const esp_moe *moe = esp_model_moe(model, i);
    for (int side = 0; moe->layout.pruning && side < ESP_SIDES; side++) {
      const esp_tensor *s = moe->bank.factors[side].s;
      memcpy(s->data, start + (s->data - esp_parameters_values(model->parameters)),
             (size_t)esp_tensor_count(s) * sizeof *s->data);
    }
  }
}

static esp_status prepare(calibration *c, const esp_model *model, const esp_dataset *dataset,
                          const esp_normalisation *normalisation, const esp_zero_shot_options *options) {
  const esp_loader_options loading = {
      .batch = options->batch, .shuffle = true, .normalisation = *normalisation, .seed = options->seed};
  ESP_TRY(esp_check_data_fits(&model->config, dataset, true));
  ESP_TRY(esp_row_pruning_create(&c->pruning, model));
  if (!c->pruning) return esp_fail(ESP_ERR_MISMATCH, "no layer of the model is ready for pruning of rows");
  ESP_TRY(esp_loader_create(&c->loader, dataset, ESP_TRAIN, &loading, 0));
  c->tape = esp_tape_create();
  const size_t size = (size_t)esp_parameters_size(model->parameters);
  c->start = esp_alloc(size, sizeof *c->start);
  if (!c->tape || !c->start) return ESP_ERR_MEMORY;
  memcpy(c->start, esp_parameters_values(model->parameters), size * sizeof *c->start);
  return ESP_OK;
}

static esp_status run(const calibration *c, const esp_model *model, const esp_compression_config *config,
                      int64_t steps) {
  for (int64_t step = 1; step <= steps; step++) {
    const esp_batch *batch;
    ESP_TRY(esp_loader_next(c->loader, &batch));
    ESP_TRY(calibrate(model, c->tape, batch));
    restore_rows(model, c->start);
    esp_row_pruning_step(c->pruning, config->beta, esp_compression_share(config, step, steps));
  }
  return ESP_OK;
}

esp_status esp_prune_rows_zero_shot(esp_model *model, const esp_dataset *dataset,
                                    const esp_normalisation *normalisation, const esp_compression_config *config,
                                    const esp_zero_shot_options *options) {
  if (options->samples < 1 || options->batch < 1)
    return esp_fail(ESP_ERR_USAGE, "calibration on %lld images in batches of %lld: both must be at least 1",
                    (long long)options->samples, (long long)options->batch);
  ESP_TRY(esp_compression_config_check(config));
  calibration c = {.pruning = NULL};
  esp_status status = prepare(&c, model, dataset, normalisation, options);
  if (status == ESP_OK) status = run(&c, model, config, (options->samples + options->batch - 1) / options->batch);
  esp_tape_free(c.tape);
  esp_free(c.start);
  esp_loader_close(c.loader);
  esp_row_pruning_free(c.pruning);
  return status;
}

esp_status esp_compress_zero_shot(esp_model **compressed, const esp_model *model, const esp_dataset *dataset,
                                  const esp_normalisation *normalisation, const esp_compression_config *config,
                                  const esp_zero_shot_options *options) {
  esp_model *factored;
  *compressed = NULL;
  ESP_TRY(esp_factor_experts(&factored, model, config));
  esp_status status = esp_prune_rows_zero_shot(factored, dataset, normalisation, config, options);
  if (status == ESP_OK) status = esp_remove_zero_rows(compressed, factored);
  esp_model_free(factored);
  return status;
}

esp_status esp_compress(esp_model **compressed, const esp_training_job *job, esp_training_result *result) {
  esp_model *factored;
  *compressed = NULL;
  ESP_TRY(esp_factor_experts(&factored, job->model, &job->config->compression));
  esp_training_job own = *job;
  own.model = factored;
  esp_status status = esp_train(&own, result);
  if (status == ESP_OK) status = esp_remove_zero_rows(compressed, factored);
  esp_model_free(factored);
  return status;
}
