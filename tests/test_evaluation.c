/* label: medium */
/* One model and one split have one accuracy and one loss, whoever asks, in whatever batches it was trained, with any
 * number of threads, also where a token's fate depends on the images that it shares a routing group with. */
#include "testing.h"

#include <espalier/core.h>
#include <espalier/train.h>

enum { CLASSES = 5, TEST_IMAGES = 1000, LIMIT = 300, CHECKED = 40 };

#define GROUPED "model={moe: {top_k: 2, router: {policy: token_choice, evaluation_capacity: 0.7, "

/* The routers under which images meet; the last entry is the images of a group. */
static const struct {
  const char *name, *setting, *other;
  int group;
} routers[] = {
    {"capacity", GROUPED "evaluation_group: 6}}}", NULL, 6},
    {"groups of the training", GROUPED "group_images: 5}}}", NULL, 5},
    {"no groups in training", GROUPED "group_images: 0}}}", NULL, ESP_EVALUATION_IMAGES},
    {"batch priority", GROUPED "batch_priority: true, capacity: 1, group_images: 0, evaluation_group: 150}}}", NULL,
     150},
    {"expert choice", "model={moe: {router: {policy: expert_choice, renormalise: false, evaluation_group: 7}}}",
     "model.moe.router.balance_weight=0", 7},
    {"E3", GROUPED "evaluation_group: 9}}}", "model.moe.members=2", 9},
};

enum { ROUTERS = sizeof routers / sizeof routers[0] };

typedef struct fixture {
  char folder[TESTING_PATH_SIZE];
  esp_dataset *data;
  esp_run_config config;
  esp_model *model;
  esp_checkpoint_info info;
  esp_training_result result;
} fixture;

static void expect_ok(esp_status status) {
  if (status != ESP_OK) fail_msg("%s", esp_error_message());
}

/* Trains for four steps. */
static void set_up(fixture *f, int router, const char *batch, const char *epochs) {
  const char *settings[] = {"model.stem.patch=8",
                            "model.width=16",
                            "model.blocks=2",
                            "model.mixing=none",
                            "model.layers=[moe]",
                            "model.moe={experts: 4, hidden: 8}",
                            batch,
                            epochs,
                            routers[router].setting,
                            routers[router].other};
  *f = (fixture){.model = NULL};
  make_folder(f->folder);
  expect_ok(esp_dataset_open(&f->data, "synthetic:narrow"));
  expect_ok(esp_run_config_load(&f->config, NULL, settings, routers[router].other ? 10 : 9));
  expect_ok(esp_dataset_hold_out(f->data, f->config.data.validation));
  esp_model_config *model = &f->config.model;
  model->image_height = model->image_width = 32;
  model->image_channels = 3;
  model->classes = CLASSES;
  expect_ok(esp_model_create(&f->model, model, NULL, 1));
  fill_parameters(f->model->parameters, 0.5); /* routers that differ, and a head that is not zero */
  esp_dataset_normalisation(f->data, &f->info.normalisation);
  f->info.history_count = 1;
  const esp_training_job job = {.model = f->model,
                                .dataset = f->data,
                                .config = &f->config,
                                .folder = f->folder,
                                .info = &f->info,
                                .final_examples = LIMIT,
                                .quiet = true};
  expect_ok(esp_train(&job, &f->result));
}

static void tear_down(fixture *f) {
  esp_model_free(f->model);
  esp_checkpoint_info_clear(&f->info);
  esp_dataset_close(f->data);
  remove_folder(f->folder);
}

static esp_evaluation evaluate(const fixture *f, const esp_model *model, int64_t limit, float *logits) {
  esp_evaluation e;
  const esp_evaluation_options options = {.split = ESP_TEST, .limit = limit, .logits = logits};
  expect_ok(esp_evaluate(model, f->data, &f->info.normalisation, &options, &e));
  return e;
}

static void expect_same(const char *what, const esp_evaluation *a, const esp_evaluation *b) {
  if (memcmp(&a->accuracy, &b->accuracy, sizeof a->accuracy) || memcmp(&a->loss, &b->loss, sizeof a->loss))
    fail_msg("%s: accuracy %.17g and %.17g, loss %.17g and %.17g", what, a->accuracy, b->accuracy, a->loss, b->loss);
}

/* Trained in batches of one, seven, fifty and more: what the run says at its end is what its checkpoint evaluates
 * to. */
static void runs_and_evaluations_agree_whatever_batch_and_threads(void **state) {
  (void)state;
  static const char *const batches[][2] = {{"training.batch=1", "training.epochs=0.0008"},
                                           {"training.batch=7", "training.epochs=0.0059"},
                                           {"training.batch=50", "training.epochs=0.042"},
                                           {"training.batch=128", "training.epochs=0.11"}};
  for (int router = 0; router < ROUTERS; router++)
    for (int b = 0; b < 4; b++) {
      fixture f;
      char path[TESTING_PATH_SIZE + 16];
      esp_model *kept;
      esp_checkpoint_info info;
      esp_threads_set(2);
      set_up(&f, router, batches[b][0], batches[b][1]);
      snprintf(path, sizeof path, "%s/last.h5", f.folder);
      expect_ok(esp_checkpoint_load(path, &kept, &info));
      const esp_evaluation two = evaluate(&f, kept, LIMIT, NULL);
      esp_threads_set(1);
      const esp_evaluation one = evaluate(&f, kept, LIMIT, NULL);
      expect_same(routers[router].name, &f.result.final, &two);
      expect_same("one thread and two", &one, &two);
      assert_true(two.accuracy > 0.1 && two.accuracy < 0.999 && two.loss > 0);
      esp_model_free(kept);
      esp_checkpoint_info_clear(&info);
      tear_down(&f);
    }
}

/* Logits of images [first, first + count) of the test split in a pass by themselves. */
static void look_at_group(const fixture *f, esp_tape *tape, int64_t first, int64_t count, double *logits) {
  esp_tape_reset(tape, false);
  esp_tensor *x = esp_tape_tensor(tape, 4, (const int64_t[]){count, 32, 32, 3});
  for (int64_t i = 0; i < count; i++)
    esp_augment_image(f->data, ESP_TEST, first + i,
                      &(esp_augment_options){.normalisation = &f->info.normalisation, .seed = 1},
                      x->data + i * 32 * 32 * 3);
  const esp_model_output output = esp_model_forward(f->model, tape, x, &(esp_pass){.training = false});
  const esp_tensor *y = esp_ensemble_prediction(tape, &output);
  assert_non_null(y);
  for (int64_t i = 0; i < count * CLASSES; i++) logits[i] = (double)y->data[i];
}

/* Each group, cut out of the split by its place alone and looked at alone, gets the logits that the evaluation saw; the
 * last group is what is left. */
static void groups_are_cut_by_the_place_in_the_split(void **state) {
  (void)state;
  static float seen[TEST_IMAGES * CLASSES];
  static double alone[TEST_IMAGES * CLASSES];
  for (int router = 0; router < ROUTERS; router++) {
    fixture f;
    set_up(&f, router, "training.batch=32", "training.epochs=0.02");
    evaluate(&f, f.model, 0, seen);
    esp_tape *tape = esp_tape_create();
    const int group = routers[router].group;
    for (int64_t first = 0; first < TEST_IMAGES; first += group) {
      const int64_t count = TEST_IMAGES - first < group ? TEST_IMAGES - first : group;
      look_at_group(&f, tape, first, count, alone + first * CLASSES);
    }
    esp_tape_free(tape);
    assert_close(routers[router].name, seen, alone, TEST_IMAGES * CLASSES, 1e-4, 1e-4);
    tear_down(&f);
  }
}

/* In groups of another size images meet others: the settings above are such that this shows. */
static void other_groups_give_other_logits(void **state) {
  (void)state;
  static float seen[TEST_IMAGES * CLASSES], otherwise[TEST_IMAGES * CLASSES];
  for (int router = 0; router < ROUTERS; router++) {
    fixture f;
    set_up(&f, router, "training.batch=32", "training.epochs=0.02");
    evaluate(&f, f.model, 0, seen);
    for (int i = 0; i < esp_model_moe_count(f.model); i++)
      esp_model_moe(f.model, i)->config.router.evaluation_group = 2;
    evaluate(&f, f.model, 0, otherwise);
    int differ = 0;
    for (int i = 0; i < TEST_IMAGES * CLASSES; i++) differ += fabsf(seen[i] - otherwise[i]) > 1e-3f;
    if (differ < CHECKED) fail_msg("%s: %d logits differ", routers[router].name, differ);
    tear_down(&f);
  }
}

/* The loss is a sum in double: the same to its precision as one that is taken from the logits here. */
static void losses_are_summed_in_double(void **state) {
  (void)state;
  static float logits[TEST_IMAGES * CLASSES];
  fixture f;
  set_up(&f, 0, "training.batch=32", "training.epochs=0.02");
  const esp_evaluation e = evaluate(&f, f.model, 0, logits);
  double sum = 0;
  for (int i = 0; i < TEST_IMAGES; i++) {
    double mass = 0;
    for (int c = 0; c < CLASSES; c++) mass += exp((double)logits[i * CLASSES + c]);
    sum += log(mass) - (double)logits[i * CLASSES + esp_dataset_label(f.data, ESP_TEST, i)];
  }
  if (fabs(e.loss - sum / TEST_IMAGES) > 1e-13 * (1 + e.loss)) fail_msg("%.17g, not %.17g", e.loss, sum / TEST_IMAGES);
  tear_down(&f);
}

static void passes_hold_whole_groups(void **state) {
  (void)state;
  esp_model_config config = esp_model_defaults;
  esp_router_config *router = &config.moe.router;
  assert_int_equal(esp_evaluation_batch(&config, 50), 50); /* nothing is shared */
  router->evaluation_capacity = 1;
  assert_int_equal(esp_evaluation_batch(&config, 50), 48);
  assert_int_equal(esp_evaluation_batch(&config, 5), 8);
  router->group_images = 0;
  assert_int_equal(esp_evaluation_batch(&config, 50), ESP_EVALUATION_IMAGES);
  router->evaluation_group = 15;
  assert_int_equal(esp_evaluation_batch(&config, 50), 45);
  router->evaluation_capacity = ESP_UNLIMITED_CAPACITY;
  router->policy = ESP_ROUTER_EXPERT_CHOICE;
  assert_int_equal(esp_evaluation_batch(&config, 128), 120);
}

/* What was saved before there was the setting says nothing of it. */
static void a_model_that_does_not_say_its_group_has_the_default(void **state) {
  (void)state;
  char *text;
  esp_model_config config = esp_model_defaults, loaded;
  expect_ok(esp_model_config_save(&text, &config));
  char *line = strstr(text, "evaluation_group");
  assert_non_null(line);
  char *begin = line, *end = strchr(line, '\n');
  while (begin > text && begin[-1] != '\n') begin--;
  memmove(begin, end + 1, strlen(end + 1) + 1);
  expect_ok(esp_model_config_load(&loaded, "an old checkpoint", text));
  assert_int_equal(loaded.moe.router.evaluation_group, 0);
  assert_int_equal(esp_evaluation_group(&loaded.moe.router), 8);
  esp_free(text);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(runs_and_evaluations_agree_whatever_batch_and_threads),
      cmocka_unit_test(groups_are_cut_by_the_place_in_the_split),
      cmocka_unit_test(other_groups_give_other_logits),
      cmocka_unit_test(losses_are_summed_in_double),
      cmocka_unit_test(passes_hold_whole_groups),
      cmocka_unit_test(a_model_that_does_not_say_its_group_has_the_default),
  };
  return cmocka_run_group_tests_name("evaluation", tests, NULL, NULL);
}
