/* label: short */
/* Distillation: the loss by hand, an identical teacher, ensembles, and teachers that do not fit. (Its gradient is
 * checked against finite differences with those of all ops.) */
#include "test_measure_models.h"

#include <espalier/ops.h>
#include <espalier/train.h>

static const esp_distillation_config settings = {.weight = 0.5, .temperature = 2};

static esp_tape *tape;

static int set_up(void **state) {
  (void)state;
  fill_normal(pixels, IMAGES * PIXELS, 3);
  tape = esp_tape_create();
  return tape ? 0 : -1;
}

static int tear_down(void **state) {
  (void)state;
  esp_tape_free(tape);
  return 0;
}

/* The heads start with zeros, so that untrained models would all agree. */
static esp_model *speaking(const esp_model_config *config, uint64_t seed) {
  esp_model *model = make(config, NULL, seed);
  esp_tensor *head = &esp_parameters_find(model->parameters, "head.weight")->tensor;
  fill_normal(head->data, esp_tensor_count(head), seed + 100);
  return model;
}

static esp_model_output forward(const esp_model *model, esp_tensor *images) {
  *images = (esp_tensor){.data = pixels, .rank = 4, .shape = {IMAGES, 8, 8, 3}};
  esp_tape_reset(tape, true);
  return esp_model_forward(model, tape, images, &(esp_pass){.training = true, .seed = 1});
}

/* The loss the teacher adds, after a forward pass of the student. */
static esp_auxiliary_loss taught(const esp_model *student, const esp_model *teacher, esp_model_output *output) {
  static esp_tensor images;
  esp_distillation *distillation;
  *output = forward(student, &images);
  const int before = output->auxiliary.count;
  assert_int_equal(esp_distillation_create(&distillation, &settings, teacher), ESP_OK);
  assert_int_equal(esp_distillation_add(distillation, tape, &images, output), ESP_OK);
  assert_int_equal(output->auxiliary.count, before + 1);
  const esp_auxiliary_loss loss = output->auxiliary.loss[before];
  assert_int_equal(loss.kind, ESP_LOSS_DISTILLATION);
  assert_true(loss.weight == settings.weight);
  esp_distillation_free(distillation);
  return loss;
}

static void an_identical_teacher_gives_0_and_no_gradient(void **state) {
  (void)state;
  const esp_model_config config = small_config();
  esp_model *model = speaking(&config, 1);
  esp_model_output output;
  const esp_auxiliary_loss loss = taught(model, model, &output);
  assert_true(loss.raw->data[0] == 0);
  assert_int_equal(esp_tape_backward(tape, loss.raw), ESP_OK);
  for (int64_t i = 0; i < esp_parameters_count(model->parameters); i++) {
    const esp_tensor *p = &esp_parameters_at(model->parameters, i)->tensor;
    for (int64_t j = 0; p->grad_written && j < esp_tensor_count(p); j++) assert_true(p->grad[j] == 0);
  }
  esp_model_free(model);
}

/* KL of softmax(teacher / T) from softmax(student / T), added up in double precision. */
static double divergence(const esp_real *student, const esp_real *teacher, int classes, double temperature) {
  double p_sum = 0, q_sum = 0, sum = 0;
  for (int j = 0; j < classes; j++) {
    p_sum += exp((double)teacher[j] / temperature);
    q_sum += exp((double)student[j] / temperature);
  }
  for (int j = 0; j < classes; j++) {
    const double p = exp((double)teacher[j] / temperature) / p_sum, q = exp((double)student[j] / temperature) / q_sum;
    sum += p * log(p / q);
  }
  return sum;
}

static void the_loss_is_the_mean_divergence_of_the_batch(void **state) {
  (void)state;
  esp_real student[] = {0, (esp_real)log(4.0), 1, -2}, teacher[] = {0, 0, 3, 0.5F};
  esp_tensor s = {.data = student, .rank = 2, .shape = {2, 2}};
  const esp_tensor t = {.data = teacher, .rank = 2, .shape = {2, 2}};
  /* Row 1 at T = 2: the student's odds are 1 : 2, the teacher's 1 : 1. */
  const double first = 0.5 * log(0.5 / (1 / 3.0)) + 0.5 * log(0.5 / (2 / 3.0));
  const double expected = (first + divergence(student + 2, teacher + 2, 2, 2)) / 2;
  const esp_tensor *loss = esp_distillation_loss(tape, &s, &t, 2);
  assert_true(fabs((double)loss->data[0] - expected) < 1e-6 && expected > 0.01);
}

static double mean_divergence(const esp_tensor *student, const esp_tensor *teacher) {
  double sum = 0;
  const int classes = (int)esp_tensor_columns(student);
  const int64_t rows = esp_tensor_rows(student), teachers = esp_tensor_rows(teacher);
  for (int64_t i = 0; i < rows; i++)
    sum +=
        divergence(student->data + i * classes, teacher->data + i % teachers * classes, classes, settings.temperature);
  return sum / (double)rows;
}

/* Each member learns from its counterpart, or from the prediction of a teacher with another number of members. */
static void members_of_an_ensemble_are_taught(void **state) {
  (void)state;
  esp_model_config config = small_config();
  esp_model *plain = speaking(&config, 3);
  config.moe.members = 2;
  config.moe.top_k = 1;
  esp_model *ensemble = speaking(&config, 1), *student = speaking(&config, 2);
  esp_model_output output;
  esp_tape *aside = esp_tape_create();
  esp_tensor images = {.data = pixels, .rank = 4, .shape = {IMAGES, 8, 8, 3}};
  const esp_pass pass = {.training = false};

  esp_model_output known = esp_model_forward(ensemble, aside, &images, &pass);
  esp_auxiliary_loss loss = taught(student, ensemble, &output);
  assert_int_equal(esp_tensor_rows(output.logits), 2 * IMAGES);
  assert_true(fabs((double)loss.raw->data[0] - mean_divergence(output.logits, known.logits)) < 1e-5);

  known = esp_model_forward(plain, aside, &images, &pass);
  loss = taught(student, plain, &output);
  assert_true(fabs((double)loss.raw->data[0] - mean_divergence(output.logits, known.logits)) < 1e-5);

  known = esp_model_forward(ensemble, aside, &images, &pass);
  loss = taught(plain, ensemble, &output);
  assert_int_equal(esp_tensor_rows(output.logits), IMAGES);
  const esp_tensor *prediction = esp_ensemble_prediction(aside, &known);
  assert_true(fabs((double)loss.raw->data[0] - mean_divergence(output.logits, prediction)) < 1e-5);
  esp_tape_free(aside);
  esp_model_free(plain);
  esp_model_free(ensemble);
  esp_model_free(student);
}

static void the_square_of_the_temperature_is_a_choice(void **state) {
  (void)state;
  const esp_model_config config = small_config();
  esp_model *student = speaking(&config, 1), *teacher = speaking(&config, 2);
  const esp_distillation_config squared = {.weight = 0.5, .temperature = 3, .squared = true};
  esp_tensor images;
  esp_distillation *distillation;
  esp_model_output output = forward(student, &images);
  assert_int_equal(esp_distillation_create(&distillation, &squared, teacher), ESP_OK);
  assert_int_equal(esp_distillation_add(distillation, tape, &images, &output), ESP_OK);
  assert_true(output.auxiliary.loss[output.auxiliary.count - 1].weight == 4.5);
  esp_distillation_free(distillation);
  const esp_distillation_config nothing = {.weight = 0, .temperature = 2};
  assert_int_equal(esp_distillation_create(&distillation, &nothing, teacher), ESP_ERR_CONFIG);
  assert_null(distillation);
  esp_model_free(student);
  esp_model_free(teacher);
}

static void expect_refusal(const esp_model *teacher, const esp_checkpoint_info *info, const esp_model_config *student,
                           const char *words) {
  const esp_normalisation normalisation = {.mean = {0.5F, 0.5F, 0.5F}, .deviation = {1, 1, 1}};
  assert_int_equal(esp_distillation_check(teacher, info, student, &normalisation), ESP_ERR_MISMATCH);
  if (!strstr(esp_error_message(), words)) fail_msg("\"%s\" does not say \"%s\"", esp_error_message(), words);
}

static void a_teacher_of_other_images_is_refused(void **state) {
  (void)state;
  const esp_model_config config = small_config();
  esp_model *teacher = make(&config, NULL, 1);
  esp_checkpoint_info info = {.normalisation = {.mean = {0.5F, 0.5F, 0.5F}, .deviation = {1, 1, 1}}};
  assert_int_equal(esp_distillation_check(teacher, &info, &config, &info.normalisation), ESP_OK);
  esp_model_config other = config;
  other.image_width = 16;
  expect_refusal(teacher, &info, &other, "8 x 8 x 3, but the student's are 8 x 16 x 3");
  other = config;
  other.classes = 7;
  expect_refusal(teacher, &info, &other, "knows 5 classes, but the student 7");
  info.normalisation.deviation[2] = 2;
  expect_refusal(teacher, &info, &config, "normalised otherwise");
  esp_model_free(teacher);
}

#define TEST(function) cmocka_unit_test_setup_teardown(function, set_up, tear_down)

int main(void) {
  const struct CMUnitTest tests[] = {
      TEST(an_identical_teacher_gives_0_and_no_gradient),
      TEST(the_loss_is_the_mean_divergence_of_the_batch),
      TEST(members_of_an_ensemble_are_taught),
      TEST(the_square_of_the_temperature_is_a_choice),
      TEST(a_teacher_of_other_images_is_refused),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
