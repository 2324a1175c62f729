/* label: short */
/* Upcycling: a mixture whose experts are copies of a dense layer. */
#include "test_measure_models.h"

#include <espalier/upcycle.h>

static esp_model_config dense_config(void) {
  esp_model_config config = small_config();
  config.layers_count = 1;
  config.layers[0] = ESP_LAYER_DENSE;
  config.feed_forward.bias = true;
  return config;
}

/* Every second block becomes a mixture of 4 experts with two a token. */
static esp_model_config mixture_config(const esp_model_config *dense) {
  esp_model_config config = *dense;
  config.layers_count = 2;
  config.layers[1] = ESP_LAYER_MOE;
  config.moe.hidden = dense->feed_forward.hidden;
  config.moe.shared_hidden = 0;
  return config;
}

/* No parameter is zero, norms and biases included. */
static esp_model *make_dense(const esp_model_config *config) {
  esp_model *model = make(config, NULL, 1);
  fill_parameters(model->parameters, 0.4);
  fill_normal(pixels, IMAGES * PIXELS, 9);
  return model;
}

static esp_model *upcycle(const esp_model *dense, const esp_model_config *config, double noise) {
  esp_model *model;
  if (esp_upcycle(&model, dense, config, noise, 7) != ESP_OK) fail_msg("%s", esp_error_message());
  return model;
}

static void logits_of(const esp_model *model, esp_real *logits) {
  esp_tape *tape = esp_tape_create();
  esp_tape_reset(tape, false);
  esp_tensor images = {.data = pixels, .rank = 4, .shape = {IMAGES, 8, 8, 3}};
  const esp_tensor *y = esp_model_forward(model, tape, &images, &(esp_pass){.training = false}).logits;
  assert_non_null(y);
  memcpy(logits, y->data, IMAGES * 5 * sizeof *logits);
  esp_tape_free(tape);
}

static double largest_difference(const esp_model *a, const esp_model *b) {
  esp_real x[IMAGES * 5], y[IMAGES * 5];
  logits_of(a, x);
  logits_of(b, y);
  double most = 0;
  for (int i = 0; i < IMAGES * 5; i++) most = fmax(most, fabs((double)(x[i] - y[i])));
  return most;
}

static void gates_that_sum_to_one_keep_the_function(void **state) {
  (void)state;
  const esp_model_config before = dense_config();
  esp_model *dense = make_dense(&before);
  for (int k = 1; k <= 4; k++) {
    esp_model_config config = mixture_config(&before);
    config.moe.top_k = k;
    esp_model *model = upcycle(dense, &config, 0);
    assert_true(esp_upcycling_keeps_function(&config));
    const double difference = largest_difference(dense, model);
    if (difference > 1e-5) fail_msg("k = %d: %g", k, difference);
    esp_model_free(model);
  }
  esp_model_config raw = mixture_config(&before);
  raw.moe.router.renormalise = false;
  esp_model *model = upcycle(dense, &raw, 0);
  assert_false(esp_upcycling_keeps_function(&raw));
  assert_true(largest_difference(dense, model) > 1e-3);
  esp_model_free(model);
  esp_model_free(dense);
}

static void experts_are_copies_and_noise_sets_them_apart(void **state) {
  (void)state;
  const esp_model_config before = dense_config(), config = mixture_config(&before);
  esp_model *dense = make_dense(&before), *copies = upcycle(dense, &config, 0), *noisy = upcycle(dense, &config, 0.1);
  const esp_tensor *up = dense->blocks[1].dense.up;
  const int64_t size = esp_tensor_count(up);
  double squares = 0, changes = 0;
  for (int e = 0; e < 4; e++) {
    assert_same_bits("expert", copies->blocks[1].moe.bank.up->data + e * size, up->data, size);
    for (int64_t i = 0; i < size; i++) {
      const double change = (double)(noisy->blocks[1].moe.bank.up->data[e * size + i] - up->data[i]);
      changes += change * change;
      squares += (double)up->data[i] * (double)up->data[i];
    }
  }
  assert_true(fabs(sqrt(changes / squares) - 0.1) < 0.005);
  assert_true(noisy->blocks[1].moe.bank.up->data[0] != noisy->blocks[1].moe.bank.up->data[size]);
  assert_same_bits("biases", noisy->blocks[1].moe.bank.down_bias->data, dense->blocks[1].dense.down_bias->data, 8);
  assert_same_bits("dense block", noisy->blocks[0].dense.up->data, dense->blocks[0].dense.up->data, size);
  assert_same_bits("norm", noisy->blocks[1].layer_norm.gain->data, dense->blocks[1].layer_norm.gain->data, 8);
  esp_model_free(noisy);
  esp_model_free(copies);
  esp_model_free(dense);
}

static void what_does_not_fit_is_refused(void **state) {
  (void)state;
  const esp_model_config before = dense_config(), good = mixture_config(&before);
  esp_model *dense = make_dense(&before), *mixture = upcycle(dense, &good, 0), *made;
  esp_model_config hidden = good, shared = good, wider = good, none = good;
  hidden.moe.hidden = 12;
  shared.moe.shared_hidden = 4;
  wider.heads = 4;
  none.layers_count = 1;
  const struct {
    const esp_model *from;
    const esp_model_config *config;
    double noise;
    const char *words;
  } cases[] = {{dense, &hidden, 0, "model.moe.hidden is 12, but the dense layer"},
               {dense, &shared, 0, "model.moe.shared_hidden is 4"},
               {dense, &wider, 0, "model.layers and model.moe only"},
               {dense, &none, 0, "no block would become a mixture"},
               {dense, &good, -1, "noise on the copies is -1"},
               {mixture, &good, 0, "block 1 is a moe already"}};
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    assert_int_equal(esp_upcycle(&made, cases[i].from, cases[i].config, cases[i].noise, 1), ESP_ERR_CONFIG);
    assert_null(made);
    if (!strstr(esp_error_message(), cases[i].words))
      fail_msg("\"%s\" does not say \"%s\"", esp_error_message(), cases[i].words);
  }
  esp_model_free(mixture);
  esp_model_free(dense);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(gates_that_sum_to_one_keep_the_function),
      cmocka_unit_test(experts_are_copies_and_noise_sets_them_apart),
      cmocka_unit_test(what_does_not_fit_is_refused),
  };
  return cmocka_run_group_tests_name("upcycling", tests, NULL, NULL);
}
