/* label: short */
/* Matched and mismatched calibration on a model that is made by hand so that two domains use disjoint experts; and
 * Delta from files against Delta in memory. */
#include "testing.h"

#include <espalier/evaluate.h>
#include <espalier/method.h>
#include <espalier/router_change.h>

enum { SIDE = 8, PIXELS = SIDE * SIDE, IMAGES = 40, WIDTH = 4, CLASSES = 10 };

static char folder[TESTING_PATH_SIZE];

/* --- images: all bright or all dark ------------------------------------------------------------------------- */

static void write_idx(const char *name, const char *file, int dimensions, const uint8_t *bytes, size_t size) {
  char path[2 * TESTING_PATH_SIZE];
  const uint8_t header[16] = {0, 0, 8, (uint8_t)dimensions, 0, 0, 0, IMAGES, 0, 0, 0, SIDE, 0, 0, 0, SIDE};
  snprintf(path, sizeof path, "%s/%s/%s", folder, name, file);
  FILE *out = fopen(path, "wb");
  assert_non_null(out);
  assert_int_equal(fwrite(header, 1, dimensions == 3 ? 16 : 8, out), dimensions == 3 ? 16 : 8);
  assert_int_equal(fwrite(bytes, 1, size, out), size);
  assert_int_equal(fclose(out), 0);
}

/* `level` and a little above it; all of class 0. */
static esp_dataset *open_domain(const char *name, int level) {
  static uint8_t images[IMAGES * PIXELS], labels[IMAGES];
  char path[2 * TESTING_PATH_SIZE], spec[2 * TESTING_PATH_SIZE + 8];
  for (int i = 0; i < IMAGES * PIXELS; i++) images[i] = (uint8_t)(level + i * 7 % 20);
  snprintf(path, sizeof path, "%s/%s", folder, name);
  assert_int_equal(mkdir(path, 0777), 0);
  write_idx(name, "train-images-idx3-ubyte", 3, images, sizeof images);
  write_idx(name, "t10k-images-idx3-ubyte", 3, images, sizeof images);
  write_idx(name, "train-labels-idx1-ubyte", 1, labels, sizeof labels);
  write_idx(name, "t10k-labels-idx1-ubyte", 1, labels, sizeof labels);
  esp_dataset *dataset;
  snprintf(spec, sizeof spec, "mnist:%s", path);
  if (esp_dataset_open(&dataset, spec) != ESP_OK) fail_msg("%s", esp_error_message());
  return dataset;
}

/* --- the model ----------------------------------------------------------------------------------------------- */

static esp_real *values(const esp_model *model, const char *name) {
  const esp_parameter *p = esp_parameters_find(model->parameters, name);
  if (!p) fail_msg("no parameter %s", name);
  memset(p->tensor.data, 0, (size_t)p->count * sizeof *p->tensor.data);
  return p->tensor.data;
}

/* One token an image, its brightness in entry 0. Experts 0 and 1 take bright ones and add to entry 2, which speaks for
 * class
 * 0; experts 2 and 3 take dark ones and take away from it. */
static esp_model *make_model(void) {
  esp_model_config c = esp_model_defaults;
  c.image_height = c.image_width = SIDE;
  c.image_channels = 1;
  c.classes = CLASSES;
  c.stem = (esp_stem_config){.kind = ESP_STEM_PATCH, .patch = SIDE};
  c.width = WIDTH;
  c.blocks = 1;
  c.mixing = ESP_MIXING_NONE;
  c.positions = false;
  c.feed_forward.activation = ESP_ACTIVATION_RELU;
  c.layers[0] = ESP_LAYER_MOE;
  c.layers_count = 1;
  c.moe.experts = 4;
  c.moe.top_k = 2;
  c.moe.hidden = 2;
  c.moe.router.renormalise = true;
  esp_model *model;
  assert_int_equal(esp_model_create(&model, &c, NULL, 1), ESP_OK);
  esp_real *stem = values(model, model->stem.weight->name);
  for (int i = 0; i < PIXELS; i++) stem[i] = 1.0F / PIXELS, stem[PIXELS + i] = -1.0F / PIXELS;
  const esp_moe *moe = &model->blocks[0].moe;
  esp_real *router = values(model, moe->router->name), *up = values(model, moe->bank.up->name);
  esp_real *down = values(model, moe->bank.down->name), *head = values(model, model->head.weight->name);
  for (int e = 0; e < 4; e++) {
    router[e * WIDTH] = (e < 2 ? 1.0F : -1.0F) * (e % 2 ? 2 : 3);
    for (int n = 0; n < 2; n++) {
      up[(e * 2 + n) * WIDTH] = n ? -1 : 1; /* the two neurons' sum is |brightness| */
      down[(e * 2 + n) * WIDTH + 2] = e < 2 ? 5 : -5;
    }
  }
  head[2] = 2;
  return model;
}

static double loss_on(const esp_model *model, const esp_dataset *dataset, const esp_normalisation *normalisation) {
  const esp_evaluation_options options = {.split = ESP_TEST};
  esp_evaluation evaluation = {0};
  if (esp_evaluate(model, dataset, normalisation, &options, &evaluation) != ESP_OK) fail_msg("%s", esp_error_message());
  return evaluation.loss;
}

static void matched_calibration_keeps_its_domain(void **state) {
  (void)state;
  static const char *const methods[] = {"frequency", "seer", "ean", "squared-gate-energy", "reconstruction"};
  esp_checkpoint_info info = {.normalisation = {.mean = {0.5F}, .deviation = {0.5F}}};
  esp_dataset *bright = open_domain("bright", 220), *dark = open_domain("dark", 10);
  esp_model *model = make_model();
  const double before = loss_on(model, bright, &info.normalisation);
  for (size_t i = 0; i < sizeof methods / sizeof methods[0]; i++) {
    double after[2];
    for (int mismatched = 0; mismatched < 2; mismatched++) {
      const esp_calibration calibration = {
          .dataset = mismatched ? dark : bright, .normalisation = &info.normalisation, .split = ESP_TRAIN};
      const esp_method_inputs inputs = {
          .model = model, .info = &info, .calibration = &calibration, .seed = 1, .ratio = 0.5};
      esp_method method;
      esp_compressed made;
      assert_int_equal(esp_method_find(&method, methods[i]), ESP_OK);
      if (esp_method_make(&method, &inputs, &made) != ESP_OK) fail_msg("%s", esp_error_message());
      after[mismatched] = loss_on(made.model, bright, &info.normalisation);
      esp_compressed_clear(&made);
    }
    if (fabs(after[0] - before) > 1e-6 || !(after[1] > before + 0.5))
      fail_msg("%s: the loss %g becomes %g with matched and %g with mismatched calibration", methods[i], before,
               after[0], after[1]);
  }
  esp_model_free(model);
  esp_dataset_close(bright);
  esp_dataset_close(dark);
}

/* --- checkpoints side by side ---------------------------------------------------------------------------------- */

static esp_model *through_file(const esp_model *model, const char *name) {
  char path[2 * TESTING_PATH_SIZE];
  esp_checkpoint_info info = {.data_name = "none", .normalisation = {.deviation = {1}}};
  esp_model *read;
  snprintf(path, sizeof path, "%s/%s", folder, name);
  if (esp_checkpoint_save(path, model, NULL, &info, 1) != ESP_OK) fail_msg("%s", esp_error_message());
  if (esp_checkpoint_load(path, &read, &info) != ESP_OK) fail_msg("%s", esp_error_message());
  esp_checkpoint_info_clear(&info);
  return read;
}

static void delta_from_files_is_delta_in_memory(void **state) {
  (void)state;
  esp_model *before = make_model(), *now = make_model();
  fill_normal(now->blocks[0].moe.router->data, 4 * WIDTH, 1);
  esp_model *before_read = through_file(before, "before.h5"), *now_read = through_file(now, "now.h5");
  esp_router_changes *memory, *files;
  assert_int_equal(esp_router_changes_create(&memory, now, before), ESP_OK);
  assert_int_equal(esp_router_changes_create(&files, now_read, before_read), ESP_OK);
  for (int e = 0; e < 4; e++) {
    const esp_router_change *a = &memory->layers[0].experts[e], *b = &files->layers[0].experts[e];
    assert_true(a->signed_change != 0);
    assert_memory_equal(a, b, sizeof *a);
  }
  esp_router_changes_free(memory);
  esp_router_changes_free(files);
  esp_model_free(before);
  esp_model_free(now);
  esp_model_free(before_read);
  esp_model_free(now_read);
}

static int begin(void **state) {
  (void)state;
  make_folder(folder);
  return 0;
}

static int end(void **state) {
  (void)state;
  remove_folder(folder);
  return 0;
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(matched_calibration_keeps_its_domain),
      cmocka_unit_test(delta_from_files_is_delta_in_memory),
  };
  return cmocka_run_group_tests_name("domains", tests, begin, end);
}
