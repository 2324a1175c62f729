/* Trains a small mixture of experts, evaluates it, drops half of its experts, evaluates and saves what is left, and
 * finetunes it.
 *
 * To build a copy of it on its own, install Espalier (cmake --install build/release --prefix PREFIX), then:
 *   export PKG_CONFIG_PATH=PREFIX/lib/pkgconfig LD_LIBRARY_PATH=PREFIX/lib
 *   cc -std=c11 train.c -o train $(pkg-config --cflags --libs espalier)
 *   ./train
 */
#include <espalier/espalier.h>

#include <stdio.h>

static const char settings[] = "model: {width: 32, blocks: 2, mixing: convolution, layers: [moe],\n"
                               "        moe: {experts: 8, top_k: 2, hidden: 32}}\n"
                               "optimizer: {learning_rate: 0.003}\n"
                               "training: {epochs: 2, batch: 64}\n";

static esp_status report(const char *what, const esp_trained *trained, const esp_dataset *data) {
  const esp_evaluation_options options = {.split = ESP_TEST};
  esp_evaluation e;
  ESP_TRY(esp_evaluate(trained->model, data, &trained->info.normalisation, &options, &e));
  printf("%s: test accuracy %.0f %%\n", what, 100 * e.accuracy);
  return ESP_OK;
}

static esp_status experiment(esp_dataset **data, esp_trained *whole, esp_trained *pruned, esp_trained *tuned) {
  esp_run_config config;
  esp_training_result result;
  ESP_TRY(esp_dataset_open(data, "synthetic"));
  ESP_TRY(esp_run_config_parse(&config, "settings", settings, NULL, 0));
  ESP_TRY(esp_run_train(&(esp_run){.config = &config, .dataset = *data, .folder = "runs/train"}, whole, &result));
  ESP_TRY(report("8 experts", whole, *data));

  const esp_calibration images = {.dataset = *data, .normalisation = &whole->info.normalisation, .images = 256};
  ESP_TRY(esp_method_apply("reap", whole, &(esp_method_inputs){.calibration = &images, .ratio = 0.5}, pruned));
  ESP_TRY(report("4 experts", pruned, *data));
  ESP_TRY(esp_trained_save(pruned, "runs/train/pruned.h5"));

  ESP_TRY(esp_run_train(&(esp_run){.from = pruned, .dataset = *data, .folder = "runs/train/tuned"}, tuned, &result));
  return report("4 experts, finetuned", tuned, *data);
}

int main(void) {
  esp_dataset *data = NULL;
  esp_trained whole = {0}, pruned = {0}, tuned = {0};
  const esp_status status = experiment(&data, &whole, &pruned, &tuned);
  if (status != ESP_OK) fprintf(stderr, "train: %s\n", esp_error_message());
  esp_trained_clear(&tuned);
  esp_trained_clear(&pruned);
  esp_trained_clear(&whole);
  esp_dataset_close(data);
  return status == ESP_OK ? 0 : 1;
}

/* Output:
8 experts: test accuracy 65 %
4 experts: test accuracy 40 %
4 experts, finetuned: test accuracy 79 %
*/
