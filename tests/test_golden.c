/* label: short */
/* Every layer, and three training steps of a small ViT-MoE, against PyTorch: golden/make_golden.py says what the
 * files hold. They were computed in double precision, so all differences are this library's rounding. */
#include "testing.h"

#include <espalier/layers.h>
#include <espalier/memory.h>
#include <espalier/ops.h>
#include <espalier/optimizer.h>
#include <hdf5.h>

/* A value of a layer is a sum of at most a few hundred products of numbers around 1, rounded by 2^-24 = 6e-8 each, and
 * passes through a handful of such sums: 1e-5 where terms cancel, and hardly more than 1e-5 of the value. In training
 * the numbers are smaller: losses are means, a parameter moves by about 1e-2 and is rounded at 1e-8 or less each
 * time. */
static const double relative = 1e-5, absolute_layers = 1e-5, absolute_training = 1e-6;

/* --- reading ------------------------------------------------------------------------------------------------ */

static hid_t open_golden(const char *path) {
  const hid_t file = H5Fopen(path, H5F_ACC_RDONLY, H5P_DEFAULT);
  if (file < 0) fail_msg("cannot open %s: the test runs in the folder tests/", path);
  return file;
}

/* A text attribute; freed by esp_free(). */
static char *read_text(hid_t object, const char *name) {
  const hid_t attribute = H5Aopen(object, name, H5P_DEFAULT);
  assert_true(attribute >= 0);
  const hid_t type = H5Aget_type(attribute);
  char *text = esp_alloc(H5Tget_size(type) + 1, 1);
  assert_non_null(text);
  assert_true(H5Aread(attribute, type, text) >= 0);
  H5Tclose(type);
  H5Aclose(attribute);
  return text;
}

static double read_number(hid_t object, const char *name) {
  double value;
  const hid_t attribute = H5Aopen(object, name, H5P_DEFAULT);
  assert_true(attribute >= 0);
  assert_true(H5Aread(attribute, H5T_NATIVE_DOUBLE, &value) >= 0);
  H5Aclose(attribute);
  return value;
}

typedef struct array {
  int rank;
  int64_t count, shape[ESP_MAX_RANK + 1];
  double *data; /* freed by esp_free() */
} array;

static array read_array(hid_t group, const char *name) {
  array a = {.count = 1};
  hsize_t shape[ESP_MAX_RANK + 1];
  const hid_t set = H5Dopen(group, name, H5P_DEFAULT);
  if (set < 0) fail_msg("the golden file lacks %s", name);
  const hid_t space = H5Dget_space(set);
  a.rank = H5Sget_simple_extent_dims(space, NULL, NULL);
  assert_in_range(a.rank, 0, ESP_MAX_RANK + 1);
  H5Sget_simple_extent_dims(space, shape, NULL);
  for (int i = 0; i < a.rank; i++) a.count *= a.shape[i] = (int64_t)shape[i];
  a.data = esp_alloc((size_t)a.count, sizeof *a.data);
  assert_non_null(a.data);
  assert_true(H5Dread(set, H5T_NATIVE_DOUBLE, H5S_ALL, H5S_ALL, H5P_DEFAULT, a.data) >= 0);
  H5Sclose(space);
  H5Dclose(set);
  return a;
}

static void copy_rounded(esp_real *to, const double *from, int64_t count) {
  for (int64_t i = 0; i < count; i++) to[i] = (esp_real)from[i];
}

/* A leaf of the tape with the numbers of data set `name`. */
static esp_tensor *read_tensor(esp_tape *tape, hid_t group, const char *name) {
  const array a = read_array(group, name);
  assert_true(a.rank <= ESP_MAX_RANK);
  esp_tensor *tensor = esp_tape_tensor(tape, a.rank, a.shape);
  assert_non_null(tensor);
  copy_rounded(tensor->data, a.data, a.count);
  esp_free(a.data);
  return tensor;
}

/* Calls visit(parameter, its numbers in the data set `set`) for each name in the attribute `names`; all parameters
 * must be named. */
typedef void visitor(esp_parameter *parameter, const double *numbers);

static void walk(esp_parameters *parameters, hid_t names_of, hid_t group, const char *set, visitor *visit) {
  char *names = read_text(names_of, "names");
  const array a = read_array(group, set);
  int64_t offset = 0, visited = 0;
  for (char *name = names, *end; *name; name = end, visited++) {
    end = name + strcspn(name, " ");
    if (*end) *end++ = '\0';
    esp_parameter *p = esp_parameters_find(parameters, name);
    if (!p) fail_msg("the library has no parameter %s", name);
    else {
      assert_true(offset + p->count <= a.count);
      visit(p, a.data + offset);
      offset += p->count;
    }
  }
  assert_int_equal(offset, a.count);
  assert_int_equal(visited, esp_parameters_count(parameters));
  esp_free(a.data);
  esp_free(names);
}

static void fill_parameter(esp_parameter *p, const double *numbers) { copy_rounded(p->tensor.data, numbers, p->count); }

/* --- comparing ---------------------------------------------------------------------------------------------- */

static const char *current; /* case */
static double absolute;
static double worst;
static char worst_name[192];

/* Remembers the worst share of the tolerance that was needed, and fails if it is above 1. */
static void compare(const char *part, const esp_real *actual, const double *expected, int64_t count) {
  char what[160];
  snprintf(what, sizeof what, "%s: %s", current, part);
  for (int64_t i = 0; i < count; i++) {
    const double share = fabs((double)actual[i] - expected[i]) / (absolute + relative * fabs(expected[i]));
    if (share <= worst) continue;
    worst = share;
    snprintf(worst_name, sizeof worst_name, "%s[%lld]", what, (long long)i);
  }
  assert_close(what, actual, expected, count, relative, absolute);
}

static void compare_set(hid_t group, const char *set, const esp_real *actual, int64_t count) {
  const array a = read_array(group, set);
  assert_int_equal(a.count, count);
  compare(set, actual, a.data, count);
  esp_free(a.data);
}

static void compare_gradient(esp_parameter *p, const double *numbers) {
  assert_true(p->tensor.grad_written);
  compare(p->tensor.name, p->tensor.grad, numbers, p->count);
}

static int report_worst(void **state) {
  (void)state;
  print_message("at most %.3f of the tolerance was needed, by %s\n", worst, worst_name);
  return 0;
}

/* --- layers ------------------------------------------------------------------------------------------------- */

/* One layer of any kind; the first word of a case's name is its kind. */
typedef struct subject {
  char kind[16];
  esp_model_config config;
  esp_parameters *parameters;
  esp_norm norm;
  esp_stem stem;
  esp_mixing mixing;
  esp_expert_bank dense;
  esp_moe moe;
  esp_auxiliary_losses losses;
} subject;

static bool is(const subject *s, const char *kind) { return strcmp(s->kind, kind) == 0; }

static esp_status declare(subject *s) {
  const esp_model_config *c = &s->config;
  if (is(s, "norm")) return esp_norm_declare(&s->norm, s->parameters, "norm", c->norm, c->width);
  if (is(s, "stem")) return esp_stem_declare(&s->stem, s->parameters, c);
  if (is(s, "mixing")) return esp_mixing_declare(&s->mixing, s->parameters, "mixing", c, 1);
  if (is(s, "ffn"))
    return esp_expert_bank_declare(
        &s->dense, s->parameters, "ffn",
        &(esp_expert_bank_options){
            .width = c->width, .hidden = c->feed_forward.hidden, .config = &c->feed_forward, .residual_scale = 1});
  return esp_moe_declare(&s->moe, s->parameters, "moe", &(esp_moe_options){.config = c, .residual_scale = 1});
}

static esp_tensor *forward(subject *s, esp_tape *tape, esp_tensor *x) {
  static int64_t first_row[2];
  if (is(s, "norm")) return esp_norm_forward(&s->norm, tape, x, true);
  if (is(s, "stem")) return esp_stem_forward(&s->stem, tape, x, true);
  if (is(s, "mixing")) return esp_mixing_forward(&s->mixing, tape, x);
  if (!is(s, "ffn")) return esp_moe_forward(&s->moe, tape, x, &(esp_pass){.training = false}, &s->losses);
  first_row[1] = esp_tensor_rows(x);
  return esp_expert_bank_forward(&s->dense, tape, x, first_row, NULL, NULL);
}

/* The sum of y * upstream, whose gradient by y is `upstream`. */
static esp_tensor *project(esp_tape *tape, esp_tensor *y, esp_tensor *upstream) {
  esp_tensor *same = esp_reshape(tape, y, upstream->rank, upstream->shape);
  return esp_scale(tape, esp_mean(tape, esp_multiply(tape, same, upstream)), (double)esp_tensor_count(upstream));
}

static void load_subject(subject *s, const char *name, hid_t group) {
  *s = (subject){.parameters = esp_parameters_create()};
  snprintf(s->kind, sizeof s->kind, "%.*s", (int)strcspn(name, " "), name);
  char *text = read_text(group, "model");
  if (esp_model_config_load(&s->config, name, text) != ESP_OK) fail_msg("%s", esp_error_message());
  esp_free(text);
  assert_int_equal(declare(s), ESP_OK);
  assert_int_equal(esp_parameters_allocate(s->parameters, 1), ESP_OK);
  walk(s->parameters, group, group, "parameters", fill_parameter);
}

static void check_case(hid_t file, const char *name) {
  subject s;
  const hid_t group = H5Gopen(file, name, H5P_DEFAULT);
  assert_true(group >= 0);
  current = name;
  absolute = absolute_layers;
  load_subject(&s, name, group);
  esp_tape *tape = esp_tape_create();
  esp_tensor *x = read_tensor(tape, group, "input"), *upstream = read_tensor(tape, group, "upstream");
  x->requires_grad = true;
  esp_tensor *y = forward(&s, tape, x);
  assert_int_equal(esp_tape_status(tape), ESP_OK);
  compare_set(group, "output", y->data, esp_tensor_count(y));
  esp_tensor *loss = esp_total_loss(tape, project(tape, y, upstream), &s.losses);
  assert_int_equal(esp_tape_backward(tape, loss), ESP_OK);
  for (int i = 0; i < s.losses.count; i++)
    compare_set(group, esp_loss_kind_name(s.losses.loss[i].kind), s.losses.loss[i].raw->data, 1);
  compare_set(group, "d_input", x->grad, esp_tensor_count(x));
  walk(s.parameters, group, group, "gradients", compare_gradient);
  assert_int_equal(s.losses.count, H5Lexists(group, "balance", H5P_DEFAULT) + H5Lexists(group, "z", H5P_DEFAULT));
  esp_tape_free(tape);
  esp_parameters_free(s.parameters);
  H5Gclose(group);
}

/* All cases whose names begin with `kind`. */
static void check_kind(const char *kind, int least) {
  const hid_t file = open_golden("golden/layers.h5");
  H5G_info_t info;
  int checked = 0;
  assert_true(H5Gget_info(file, &info) >= 0);
  for (hsize_t i = 0; i < info.nlinks; i++) {
    char name[64];
    assert_true(H5Lget_name_by_idx(file, ".", H5_INDEX_NAME, H5_ITER_INC, i, name, sizeof name, H5P_DEFAULT) > 0);
    if (strncmp(name, kind, strlen(kind)) != 0) continue;
    check_case(file, name);
    checked++;
  }
  H5Fclose(file);
  assert_true(checked >= least);
}

static void norms(void **state) { (void)state, check_kind("norm ", 2); }
static void stems(void **state) { (void)state, check_kind("stem ", 4); }
static void mixings(void **state) { (void)state, check_kind("mixing ", 2); }
static void dense_layers(void **state) { (void)state, check_kind("ffn ", 5); }
static void mixtures(void **state) { (void)state, check_kind("moe ", 14); }
static void mixtures_of_neurons(void **state) { (void)state, check_kind("mone ", 4); }

/* --- training ----------------------------------------------------------------------------------------------- */

typedef struct training {
  hid_t file, run; /* `run`: the optimiser's group */
  esp_model *model;
  esp_optimizer *optimizer;
  esp_tape *tape;
} training;

static esp_optimizer_config read_optimizer(hid_t run, esp_optimizer_kind kind) {
  return (esp_optimizer_config){.kind = kind,
                                .learning_rate = read_number(run, "learning_rate"),
                                .router_rate = read_number(run, "router_rate"),
                                .weight_decay = read_number(run, "weight_decay"),
                                .router_decay = 1,
                                .momentum = read_number(run, "momentum"),
                                .beta1 = read_number(run, "beta1"),
                                .beta2 = read_number(run, "beta2"),
                                .epsilon = read_number(run, "epsilon"),
                                .clip_norm = read_number(run, "clip_norm")};
}

static void train_step(const training *t, int64_t step, double share) {
  const array images = read_array(t->file, "images"), labels = read_array(t->file, "labels");
  const array task = read_array(t->run, "task"), balance = read_array(t->run, "balance"),
              norm = read_array(t->run, "gradient_norm");
  const int64_t batch = labels.shape[1], size = images.count / images.shape[0];
  int32_t chosen[64];
  assert_true(batch <= 64);
  for (int64_t i = 0; i < batch; i++) chosen[i] = (int32_t)labels.data[step * batch + i];
  esp_tape_reset(t->tape, true);
  esp_tensor *x = esp_tape_tensor(t->tape, 4, images.shape + 1);
  copy_rounded(x->data, images.data + step * size, size);
  const esp_model_output out = esp_model_forward(t->model, t->tape, x, &(esp_pass){.training = true});
  esp_tensor *loss = esp_cross_entropy(t->tape, out.logits, &(esp_targets){.labels = chosen});
  assert_int_equal(esp_tape_backward(t->tape, esp_total_loss(t->tape, loss, &out.auxiliary)), ESP_OK);
  compare("task loss", loss->data, task.data + step, 1);
  assert_int_equal(out.auxiliary.count, balance.shape[1]);
  for (int i = 0; i < out.auxiliary.count; i++)
    compare("balance loss", out.auxiliary.loss[i].raw->data, balance.data + step * balance.shape[1] + i, 1);
  const double gradient_norm = esp_gradient_norm(t->model->parameters);
  compare("gradient norm", &(esp_real){(esp_real)gradient_norm}, norm.data + step, 1);
  esp_optimizer_step(t->optimizer, share, gradient_norm);
  const array *const arrays[] = {&images, &labels, &task, &balance, &norm};
  for (size_t i = 0; i < sizeof arrays / sizeof arrays[0]; i++) esp_free(arrays[i]->data);
}

/* Turns the trained values into how far they moved; the file holds the start. */
static void subtract_start(esp_parameter *p, const double *start) {
  for (int64_t i = 0; i < p->count; i++) p->tensor.data[i] = (esp_real)((double)p->tensor.data[i] - start[i]);
}

static void compare_change(esp_parameter *p, const double *changes) {
  compare(p->tensor.name, p->tensor.data, changes, p->count);
}

static void train(const char *name, esp_optimizer_kind kind) {
  training t = {.file = open_golden("golden/training.h5"), .tape = esp_tape_create()};
  current = name;
  absolute = absolute_training;
  t.run = H5Gopen(t.file, name, H5P_DEFAULT);
  char *text = read_text(t.file, "model");
  esp_model_config model_config;
  assert_int_equal(esp_model_config_load(&model_config, "golden", text), ESP_OK);
  const esp_optimizer_config config = read_optimizer(t.run, kind);
  assert_int_equal(esp_model_create(&t.model, &model_config, NULL, 1), ESP_OK);
  assert_int_equal(esp_optimizer_create(&t.optimizer, &config, t.model->parameters), ESP_OK);
  walk(t.model->parameters, t.file, t.file, "parameters", fill_parameter);
  const array shares = read_array(t.file, "shares");
  for (int64_t step = 0; step < shares.count; step++) train_step(&t, step, shares.data[step]);
  walk(t.model->parameters, t.file, t.file, "parameters", subtract_start);
  walk(t.model->parameters, t.file, t.run, "changes", compare_change);
  esp_free(shares.data);
  esp_free(text);
  esp_optimizer_free(t.optimizer);
  esp_model_free(t.model);
  esp_tape_free(t.tape);
  H5Gclose(t.run);
  H5Fclose(t.file);
}

static void three_steps_of_adamw(void **state) { (void)state, train("adamw", ESP_OPTIMIZER_ADAMW); }
static void three_steps_of_sgd(void **state) { (void)state, train("sgd", ESP_OPTIMIZER_SGD); }

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(norms),
                                     cmocka_unit_test(stems),
                                     cmocka_unit_test(mixings),
                                     cmocka_unit_test(dense_layers),
                                     cmocka_unit_test(mixtures),
                                     cmocka_unit_test(mixtures_of_neurons),
                                     cmocka_unit_test_teardown(three_steps_of_adamw, report_worst),
                                     cmocka_unit_test_teardown(three_steps_of_sgd, report_worst)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
