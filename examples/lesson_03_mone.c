/* Lesson 3: from an MoE to a MoNE. The same weights, of which a token uses only some neurons of each expert; what that
 * does to the gradient; and how many neurons a trained MoE and a trained MoNE can do without.
 *
 * Introduces: esp_model_create, esp_observer, esp_training_step, esp_sparsify. */
#include <espalier/core.h>
#include <espalier/layers.h>
#include <espalier/measure.h>
#include <espalier/train.h>

#include <stdio.h>
#include <string.h>

enum { STEPS = 200, BATCH = 32, TEST_IMAGES = 200 };

static const char settings[] = "model:\n"
                               "  stem: {kind: patch, patch: 4}\n"
                               "  width: 16\n"
                               "  blocks: 2\n"
                               "  mixing: none\n"
                               "  layers: [moe]\n"
                               "  feed_forward: {activation: swiglu}\n"
                               "  moe: {experts: 4, top_k: 2, hidden: 32}\n"
                               "optimizer: {learning_rate: 0.01}\n";

typedef struct lesson {
  esp_dataset *dataset;
  esp_normalisation normalisation;
  esp_run_config config;
  esp_loader *loader;
  const esp_batch *batch; /* the first one */
} lesson;

static esp_status open_loader(const lesson *l, esp_loader **loader) {
  const esp_loader_options options = {.batch = BATCH, .shuffle = true, .normalisation = l->normalisation, .seed = 1};
  return esp_loader_create(loader, l->dataset, ESP_TRAIN, &options, 0);
}

/* kept: share of an expert's neurons that a token uses; 0: an MoE. A parameter's start depends on seed and name only,
 * so that all these models start alike. */
static esp_model *make_model(const lesson *l, double kept) {
  esp_model_config config = l->config.model;
  config.layers[0] = kept > 0 ? ESP_LAYER_MONE : ESP_LAYER_MOE;
  if (kept > 0) config.moe.neurons_kept = kept;
  esp_model *model;
  return esp_model_create(&model, &config, NULL, 1) == ESP_OK ? model : NULL;
}

/* --- the same weights, the same bits --------------------------------------------------------------------- */

static esp_tensor *forward(const lesson *l, esp_tape *tape, const esp_model *model, const esp_observer *observer) {
  esp_tape_reset(tape, true);
  esp_tensor *images = esp_batch_images(tape, l->batch, &model->config);
  return images ? esp_model_forward(model, tape, images, &(esp_pass){.observer = observer}).logits : NULL;
}

/* A new head is zero, so that nothing would show: this one passes on what comes. */
static void open_head(esp_model *model) {
  for (int64_t i = 0; i < esp_tensor_count(model->head.weight); i++) model->head.weight->data[i] = (float)(i % 7) - 3;
}

static int compare_bits(const lesson *l, esp_tape *tape) {
  esp_model *moe = make_model(l, 0), *all = make_model(l, 1), *half = make_model(l, 0.5);
  if (!moe || !all || !half) return 1;
  open_head(moe);
  open_head(all);
  open_head(half);
  float logits[BATCH * 16];
  const esp_tensor *y = forward(l, tape, moe, NULL);
  if (!y || esp_tensor_count(y) > BATCH * 16) return 1;
  const size_t bytes = (size_t)esp_tensor_count(y) * sizeof *logits;
  memcpy(logits, y->data, bytes);
  y = forward(l, tape, all, NULL);
  printf("a MoNE that keeps all neurons: %s\n", y && !memcmp(logits, y->data, bytes) ? "the MoE's bits" : "differs");
  y = forward(l, tape, half, NULL);
  printf("a MoNE that keeps half of them: %s\n", y && !memcmp(logits, y->data, bytes) ? "the MoE's bits" : "differs");
  esp_model_free(moe);
  esp_model_free(all);
  esp_model_free(half);
  return 0;
}

/* --- unselected neurons get no gradient ------------------------------------------------------------------ */

/* Which neurons of the first layer's experts any token of the batch selected. */
typedef struct selection {
  bool used[4][32];
} selection;

static void note_selection(void *context, const esp_moe_record *record) {
  selection *s = context;
  if (record->layer->block) return;
  for (int e = 0; e < record->layer->bank.experts; e++)
    for (int64_t row = record->routing->first_row[e]; row < record->routing->first_row[e + 1]; row++)
      for (int64_t j = 0; j < 32; j++) s->used[e][j] |= record->experts.mask[row * 32 + j];
}

/* Neurons whose row of `bank` [4, n x 32, width], n = 1 or 2 (gate | up), has a gradient other than 0, counted twice if
 * both have; and whether any of them was not selected. */
static int rows_with_gradient(const esp_tensor *bank, const selection *s, bool *surprise) {
  const int64_t rows = bank->shape[1], width = bank->shape[2];
  int count = 0;
  for (int64_t i = 0; i < 4 * rows; i++) {
    bool any = false;
    for (int64_t c = 0; c < width; c++) any |= bank->grad[i * width + c] != 0;
    count += any;
    *surprise |= any && !s->used[i / rows][i % rows % 32];
  }
  return count;
}

static int look_at_gradients(const lesson *l, esp_tape *tape) {
  esp_model *model = make_model(l, 0.125);
  if (!model) return 1;
  open_head(model);
  selection s = {{{false}}};
  const esp_observer observer = {note_selection, &s};
  lesson one = *l;
  const esp_batch first = {.count = 1, .images = l->batch->images};
  one.batch = &first;
  esp_tensor *logits = forward(&one, tape, model, &observer);
  esp_tensor *loss = logits ? esp_cross_entropy(tape, logits, &(esp_targets){.labels = l->batch->labels}) : NULL;
  if (!loss || esp_tape_backward(tape, loss) != ESP_OK) return 1;
  int used = 0;
  for (int i = 0; i < 4 * 32; i++) used += s.used[i / 32][i % 32];
  bool surprise = false;
  const esp_moe *moe = esp_model_moe(model, 0);
  const int up = rows_with_gradient(moe->bank.up, &s, &surprise),
            down = rows_with_gradient(moe->bank.down, &s, &surprise);
  printf("one image, 4 of an expert's 32 neurons a token: some of the 128 neurons are never selected: %s\n",
         used < 128 ? "yes" : "no");
  printf("  rows of gate and up with a gradient: twice the selected neurons: %s; of down: as many: %s\n",
         up == 2 * used ? "yes" : "no", down == used ? "yes" : "no");
  printf("  an unselected neuron with a gradient: %s\n", surprise ? "yes" : "none");
  esp_model_free(model);
  return 0;
}

/* --- both trained, then thinned out ---------------------------------------------------------------------- */

static int train(const lesson *l, esp_tape *tape, esp_model *model) {
  esp_optimizer *optimizer;
  if (esp_optimizer_create(&optimizer, &l->config.optimizer, model->parameters) != ESP_OK) return 1;
  esp_loader *loader; /* of its own, so that both models see the same images in the same order */
  esp_status status = open_loader(l, &loader);
  for (int step = 0; status == ESP_OK && step < STEPS; step++) {
    const esp_batch *batch;
    const esp_pass pass = {.training = true, .seed = 1, .step = (uint64_t)step};
    esp_step_result result;
    status = esp_loader_next(loader, &batch);
    if (status == ESP_OK)
      status = esp_training_step(model, optimizer, tape, batch,
                                 &(esp_step_options){.pass = pass, .learning_rate_multiplier = 1}, &result);
  }
  esp_loader_close(loader);
  esp_optimizer_free(optimizer);
  return status != ESP_OK;
}

/* Points of the curves that are shown, and roughly: how well a model does to the digit depends on the processor. */
static const int shown[] = {0, 3, 8, 11};
enum { SHOWN = (int)(sizeof shown / sizeof shown[0]) };

static const char *roughly(double accuracy) {
  return accuracy > 0.95 ? "over .95" : accuracy > 0.5 ? "over .5" : "below .5";
}

static int show_curves(const lesson *l, esp_tape *tape, const char *name, double kept) {
  const esp_sparsify_options options = {.evaluation = {.split = ESP_TEST, .limit = TEST_IMAGES}, .seed = 1};
  esp_sparsify_point points[ESP_SPARSIFY_ORDERS * ESP_SPARSIFY_SHARES];
  esp_model *model = make_model(l, kept);
  if (!model || train(l, tape, model)) return 1;
  if (esp_sparsify(model, l->dataset, &l->normalisation, &options, points) != ESP_OK) return 1;
  for (int order = ESP_SPARSIFY_SMALLEST; order <= ESP_SPARSIFY_LARGEST; order++) {
    printf("%-5s %-9s", name, esp_sparsify_order_name((esp_sparsify_order)order));
    for (int i = 0; i < SHOWN; i++) printf(" %9s", roughly(points[order * ESP_SPARSIFY_SHARES + shown[i]].accuracy));
    putchar('\n');
  }
  esp_model_free(model);
  return 0;
}

static esp_status start(lesson *l) {
  ESP_TRY(esp_run_config_parse(&l->config, "the lesson", settings, NULL, 0));
  ESP_TRY(esp_dataset_open(&l->dataset, "synthetic:narrow"));
  const esp_dataset_info *data = esp_dataset_info_of(l->dataset);
  l->config.model.image_height = data->height;
  l->config.model.image_width = data->width;
  l->config.model.image_channels = data->channels;
  l->config.model.classes = data->classes;
  esp_dataset_normalisation(l->dataset, &l->normalisation);
  ESP_TRY(open_loader(l, &l->loader));
  return esp_loader_next(l->loader, &l->batch);
}

int main(void) {
  lesson l = {.dataset = NULL};
  esp_tape *tape = esp_tape_create();
  if (!tape || start(&l) != ESP_OK) {
    fprintf(stderr, "%s\n", esp_error_message());
    return 1;
  }
  int failed = compare_bits(&l, tape) || look_at_gradients(&l, tape);
  printf("accuracy when a share of the neurons a token uses is left out, of smallest or largest |gate activation|:\n");
  printf("               ");
  for (int i = 0; i < SHOWN; i++) printf(" %7g %%", 100 * esp_sparsify_shares[shown[i]]);
  putchar('\n');
  failed = failed || show_curves(&l, tape, "MoE", 0) || show_curves(&l, tape, "MoNE", 0.5);
  esp_loader_close(l.loader);
  esp_dataset_close(l.dataset);
  esp_tape_free(tape);
  return failed;
}

/* Output:
a MoNE that keeps all neurons: the MoE's bits
a MoNE that keeps half of them: differs
one image, 4 of an expert's 32 neurons a token: some of the 128 neurons are never selected: yes
  rows of gate and up with a gradient: twice the selected neurons: yes; of down: as many: yes
  an unselected neuron with a gradient: none
accuracy when a share of the neurons a token uses is left out, of smallest or largest |gate activation|:
                      0 %      30 %      80 %      99 %
MoE   smallest   over .95  over .95  over .95  below .5
MoE   largest    over .95   over .5  below .5  below .5
MoNE  smallest   over .95  over .95  over .95  below .5
MoNE  largest    over .95   over .5  below .5  below .5
*/
