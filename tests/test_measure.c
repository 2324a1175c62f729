/* label: short */
/* measure/: costs against numbers worked by hand and against the tape, router changes of known rows,
 * reports. */
#include "test_measure_models.h"

#include <espalier/run_folder.h>

#include <jansson.h>

/* --- cost ----------------------------------------------------------------------------------------------- */

static void cost_of_a_transformer_is_the_one_by_hand(void **state) {
  (void)state;
  const esp_model_config config = small_config();
  esp_model *model = make(&config, NULL, 1);
  esp_model_cost cost;
  esp_model_cost_of(model, &cost);
  /* d = 8, T = 16, E = 4, k = 2, f = 20, shared f = 6, MoNE keeps 5 neurons */
  const int stem = 8 * 2 * 2 * 3 + 8 + 16 * 8, norm = 16, attention = 3 * 8 * 8 + 24 + 8 * 8 + 8, head = 5 * 8 + 5;
  const int dense = 3 * 8 * 24, router = 4 * 8, shared = 3 * 8 * 6, expert = 3 * 8 * 20;
  const int mixture = router + shared + 4 * expert, rest = stem + 3 * (2 * norm + attention) + norm + head;
  assert_int_equal(cost.parameters, rest + dense + 2 * mixture);
  assert_int_equal(cost.layer_count, 3);
  assert_string_equal(cost.layers[1].name, "blocks.1.moe");
  assert_int_equal(cost.layers[0].parameters, dense);
  assert_int_equal(cost.layers[0].activated_selected, dense);
  assert_int_equal(cost.layers[0].experts, 0);
  assert_int_equal(cost.layers[1].parameters, mixture);
  assert_int_equal(cost.layers[1].activated, router + shared + 2 * expert);
  assert_int_equal(cost.layers[1].activated_selected, router + shared + 2 * expert);
  assert_int_equal(cost.layers[1].touched, mixture);
  assert_int_equal(cost.layers[2].parameters, mixture);
  assert_int_equal(cost.layers[2].activated, router + shared + 2 * 8 * (20 + 2 * 5)); /* k d (f + 2 K) */
  assert_int_equal(cost.layers[2].activated_selected, router + shared + 2 * 3 * 8 * 5);
  assert_int_equal(cost.layers[2].stored_experts, 4);
  assert_int_equal(cost.activated, rest + dense + cost.layers[1].activated + cost.layers[2].activated);
  assert_int_equal(cost.activated_selected,
                   rest + dense + cost.layers[1].activated + cost.layers[2].activated_selected);
  assert_int_equal(cost.touched, cost.parameters);
  assert_int_equal(cost.layers[1].block_parameters, mixture + 2 * norm + attention);
  const double mixing_flops = 2 * 16 * (3 * 8 * 8 + 8 * 8) + 2 * 2 * 16 * 16 * 8;
  const double mixture_flops = 2 * 16 * (router + shared + 2 * expert);
  assert_true(cost.stem_flops == 2 * 16 * (8 * 2 * 2 * 3));
  assert_true(cost.head_flops == 2 * 5 * 8);
  assert_true(cost.layers[0].flops == 2 * 16 * dense);
  assert_true(cost.layers[1].flops == mixture_flops);
  assert_true(cost.layers[2].flops == mixture_flops);
  assert_true(cost.layers[2].flops_selected == 2.0 * 16 * (router + shared + 2 * 8 * (20 + 2 * 5)));
  assert_true(cost.layers[1].block_flops == mixture_flops + mixing_flops);
  assert_true(cost.flops == cost.stem_flops + cost.head_flops + 3 * mixing_flops + 2 * 16 * dense + 2 * mixture_flops);
  assert_true(cost.flops - cost.flops_selected == mixture_flops - cost.layers[2].flops_selected);
  esp_model_free(model);
}

static void cost_of_an_mlp_with_two_matrices_and_biases(void **state) {
  (void)state;
  esp_model_config config = small_config();
  config.stem.kind = ESP_STEM_FLATTEN;
  config.mixing = ESP_MIXING_NONE;
  config.positions = false;
  config.norm = ESP_NORM_RMS;
  config.feed_forward.activation = ESP_ACTIVATION_GELU;
  config.feed_forward.bias = true;
  config.moe.shared_hidden = 0;
  config.blocks = 1;
  config.layers[0] = ESP_LAYER_MONE;
  esp_model *model = make(&config, NULL, 1);
  esp_model_cost cost;
  esp_model_cost_of(model, &cost);
  /* One token; k = 2 experts of [8 -> 20 -> 8] with biases, 5 neurons kept: W_up and its bias in full. */
  assert_int_equal(cost.layers[0].activated, 4 * 8 + 2 * (20 * 9 + 5 * 8 + 8));
  assert_int_equal(cost.layers[0].activated_selected, 4 * 8 + 2 * (5 * 9 + 5 * 8 + 8));
  assert_int_equal(cost.layers[0].touched, 4 * 8 + 2 * (20 * 9 + 20 * 8 + 8));
  assert_int_equal(cost.layers[0].parameters, 4 * 8 + 4 * (20 * 9 + 20 * 8 + 8));
  assert_int_equal(cost.layers[0].block_parameters, cost.layers[0].parameters + 8);
  assert_true(cost.layers[0].flops == 2 * (4 * 8 + 2 * 2 * 8 * 20));
  assert_true(cost.layers[0].flops_selected == 2 * (4 * 8 + 2 * 8 * (20 + 5)));
  assert_true(cost.layers[0].block_flops == cost.layers[0].flops);
  assert_true(cost.flops == cost.layers[0].flops + 2 * PIXELS * 8 + 2 * 5 * 8);
  esp_model_free(model);
}

static void zero_experts_cost_nothing_and_masked_ones_are_not_chosen(void **state) {
  (void)state;
  const esp_model_config config = small_config();
  const double shared_flops = 2 * 16 * (4 * 8 + 3 * 8 * 6), expert_flops = 2 * 16 * 2 * 3 * 8 * 20;
  esp_model_cost cost;
  esp_model *model = make(&config, pruned_layouts(ESP_EXPERT_ZERO, 1, -1), 1);
  esp_model_cost_of(model, &cost);
  assert_int_equal(cost.layers[1].experts, 4);
  assert_int_equal(cost.layers[1].stored_experts, 3);
  assert_int_equal(cost.layers[1].parameters, 4 * 8 + 3 * 8 * 6 + 3 * 3 * 8 * 20);
  assert_int_equal(cost.layers[1].activated, 4 * 8 + 3 * 8 * 6 + 2 * 3 * 8 * 20);
  assert_true(cost.layers[1].flops == shared_flops + 0.75 * expert_flops);
  esp_model_free(model);
  model = make(&config, pruned_layouts(ESP_EXPERT_ZERO, 0, 3), 1);
  model->config.moe.top_k = 3; /* more than are stored */
  esp_model_cost_of(model, &cost);
  assert_int_equal(cost.layers[1].activated, cost.layers[1].parameters);
  assert_int_equal(cost.layers[1].touched, cost.layers[1].parameters);
  assert_true(cost.layers[1].flops == shared_flops + 0.5 * 1.5 * expert_flops);
  esp_model_free(model);
  model = make(&config, pruned_layouts(ESP_EXPERT_MASKED, 0, 3), 1);
  esp_model_cost_of(model, &cost);
  assert_true(cost.layers[1].flops == shared_flops + expert_flops);
  esp_model_free(model);
}

/* The products among the ops of a recorded step. An attention's softmax is left out as in the count. */
static double tape_products(const esp_tape *tape) {
  static const char *const products[] = {"linear map", "convolution", "depthwise convolution", "grouped map", "matmul"};
  double flops = 0;
  for (int64_t i = 0; i < esp_tape_node_count(tape); i++) {
    const esp_node *node = esp_tape_node(tape, i);
    for (size_t p = 0; p < sizeof products / sizeof products[0]; p++)
      if (strcmp(node->op->name, products[p]) == 0) flops += node->op->cost(node).flops;
    const esp_tensor *y = node->outputs[0];
    if (strcmp(node->op->name, "attention") == 0) flops += 4.0 * (double)(esp_tensor_count(y) * y->shape[1]);
  }
  return flops;
}

static void check_against_tape(const esp_model_config *config) {
  esp_model *model = make(config, NULL, 3);
  esp_tape *tape = esp_tape_create();
  esp_model_cost cost;
  look(model, tape, NULL, 0, IMAGES, true);
  esp_model_cost_of(model, &cost);
  const double flops = tape_products(tape) / IMAGES;
  assert_true(flops > 0);
  if (fabs(flops - cost.flops) > 1e-6) fail_msg("counted %.1f FLOPs an image, but %.1f ran", cost.flops, flops);
  esp_tape_free(tape);
  esp_model_free(model);
}

static void flops_are_those_of_the_recorded_products(void **state) {
  (void)state;
  esp_model_config config = small_config();
  check_against_tape(&config);
  config.stem = (esp_stem_config){
      .kind = ESP_STEM_CONVOLUTION, .channels = {6}, .channels_count = 1, .pools = {2, 2}, .pools_count = 2};
  config.mixing = ESP_MIXING_CONVOLUTION;
  config.kernel = 3;
  config.feed_forward.activation = ESP_ACTIVATION_RELU;
  config.feed_forward.bias = true;
  config.moe.top_k = 1;
  check_against_tape(&config);
  config.norm = ESP_NORM_BATCH;
  config.stem.extra_convolutions = 2;
  config.stem.whitening = 5;
  check_against_tape(&config);
  config.stem.kind = ESP_STEM_FLATTEN;
  config.mixing = ESP_MIXING_NONE;
  config.moe.shared_hidden = 0;
  check_against_tape(&config);
}

/* --- router change -------------------------------------------------------------------------------------- */

static void set_row(esp_model *model, int layer, int row, double x, double y) {
  esp_moe *moe = esp_model_moe(model, layer);
  memset(moe->router->data + row * 8, 0, 8 * sizeof(esp_real));
  moe->router->data[row * 8 + 2] = (esp_real)x;
  moe->router->data[row * 8 + 7] = (esp_real)y;
}

static void assert_change(const esp_router_change *c, double norm, double before, double difference) {
  assert_near(c->norm, norm);
  assert_near(c->reference_norm, before);
  assert_near(c->signed_change, norm - before);
  assert_near(c->absolute_change, fabs(norm - before));
  assert_near(c->difference_norm, difference);
}

static void router_change_of_known_rows(void **state) {
  (void)state;
  const esp_model_config config = small_config();
  esp_model *now = make(&config, NULL, 1), *before = make(&config, NULL, 1);
  const double rows[4][4] = {{3, 4, 6, 8}, {0, 2, 2, 0}, {1, 0, 1, 0}, {0, -12, 5, 0}}; /* w, w0 */
  for (int e = 0; e < 4; e++) {
    set_row(now, 0, e, rows[e][0], rows[e][1]);
    set_row(before, 0, e, rows[e][2], rows[e][3]);
  }
  esp_router_changes *changes;
  assert_int_equal(esp_router_changes_create(&changes, now, before), ESP_OK);
  assert_int_equal(changes->layer_count, 2);
  assert_string_equal(changes->layers[0].scope, "blocks.1.moe");
  assert_string_equal(changes->layers[1].scope, "blocks.2.moe");
  assert_int_equal(changes->layers[0].block, 1);
  assert_int_equal(changes->layers[0].expert_count, 4);
  assert_change(&changes->layers[0].experts[0], 5, 10, 5); /* shrank: -5 */
  assert_true(changes->layers[0].experts[0].signed_change < 0);
  assert_change(&changes->layers[0].experts[1], 2, 2, sqrt(8)); /* turned: the difference has a norm, the norms none */
  assert_change(&changes->layers[0].experts[2], 1, 1, 0);
  assert_change(&changes->layers[0].experts[3], 12, 5, 13);
  for (int e = 0; e < 4; e++) assert_true(changes->layers[1].experts[e].difference_norm == 0);
  assert_near(esp_router_norm(esp_model_moe(now, 0), 3), 12);
  esp_router_changes_free(changes);
  esp_model_free(now);
  esp_model_free(before);
}

/* A model whose rows are experts 3 and 1 of the unpruned layer. */
static esp_model *make_small_mixture(int32_t first_id) {
  esp_model_config config = small_config();
  config.moe.experts = 2;
  esp_expert_layout layouts[3];
  for (int i = 0; i < 3; i++) {
    esp_expert_layout_full(&layouts[i], 2);
    layouts[i].original_ids[0] = first_id;
    layouts[i].original_ids[1] = 1;
  }
  return make(&config, layouts, 9);
}

static void rows_of_pruned_models_are_matched_by_original_ids(void **state) {
  (void)state;
  const esp_model_config config = small_config();
  esp_model *before = make(&config, NULL, 1), *now = make_small_mixture(3);
  set_row(before, 0, 3, 6, 8);
  set_row(now, 0, 0, 3, 4);
  set_row(before, 0, 1, 5, 0);
  set_row(now, 0, 1, 5, 12);
  esp_router_changes *changes;
  assert_int_equal(esp_router_changes_create(&changes, now, before), ESP_OK);
  assert_int_equal(changes->layers[0].expert_count, 2);
  assert_change(&changes->layers[0].experts[0], 5, 10, 5);
  assert_change(&changes->layers[0].experts[1], 13, 5, 12);
  esp_router_changes_free(changes);
  esp_model *other = make_small_mixture(3); /* a pruned reference: its rows are not where its ids say */
  set_row(other, 0, 0, 6, 8);
  set_row(other, 0, 1, 5, 0);
  assert_int_equal(esp_router_changes_create(&changes, now, other), ESP_OK);
  assert_change(&changes->layers[0].experts[0], 5, 10, 5);
  assert_change(&changes->layers[0].experts[1], 13, 5, 12);
  esp_router_changes_free(changes);
  esp_model_free(other);
  assert_int_equal(esp_router_changes_create(&changes, before, now), ESP_ERR_MISMATCH);
  assert_null(changes);
  assert_non_null(strstr(esp_error_message(),
                         "expert 0 of blocks.1.moe is expert 0 of the unpruned layer, which is not among "
                         "the 2 of the reference's blocks.1.moe"));
  esp_model_free(before);
  esp_model_free(now);
}

static void assert_refused(const esp_model *model, const esp_model_config *config, const char *text) {
  esp_model *reference = make(config, NULL, 1);
  esp_router_changes *changes;
  assert_int_equal(esp_router_changes_create(&changes, model, reference), ESP_ERR_MISMATCH);
  assert_null(changes);
  if (!strstr(esp_error_message(), text)) fail_msg("\"%s\" lacks \"%s\"", esp_error_message(), text);
  esp_model_free(reference);
}

static void a_reference_of_another_architecture_is_refused(void **state) {
  (void)state;
  esp_model_config config = small_config();
  esp_model *model = make(&config, NULL, 1);
  config.blocks = 2;
  assert_refused(model, &config, "the model has 3 blocks, but the reference has 2");
  config = small_config();
  config.width = 16;
  assert_refused(model, &config, "routing vectors have 8 elements, but the reference's have 16");
  config = small_config();
  config.layers[1] = ESP_LAYER_DENSE;
  assert_refused(model, &config, "the model has blocks.1.moe where the reference has blocks.1.ffn");
  config = small_config();
  config.layers_count = 1;
  esp_model *dense = make(&config, NULL, 1);
  assert_refused(dense, &config, "no mixture layer");
  esp_model_free(dense);
  esp_model_free(model);
}

/* --- reports -------------------------------------------------------------------------------------------- */

/* A pruned model, its statistics and changes, and what is to be reported. */
typedef struct subject {
  esp_model *model, *reference;
  esp_statistics *statistics;
  esp_router_changes *changes;
  esp_evaluation evaluation;
  esp_measurement measurement;
} subject;

static void set_subject(subject *s) {
  const esp_model_config config = small_config();
  s->model = make(&config, pruned_layouts(ESP_EXPERT_ZERO, 2, -1), 1);
  s->reference = make(&config, NULL, 2);
  s->statistics = pass_over(s->model, (int[]){0, IMAGES}, 1);
  assert_int_equal(esp_router_changes_create(&s->changes, s->model, s->reference), ESP_OK);
  s->evaluation = (esp_evaluation){.accuracy = 0.5, .loss = 1.25, .examples = IMAGES};
  s->measurement = (esp_measurement){.model = s->model,
                                     .checkpoint = "runs/a",
                                     .reference = "runs/b",
                                     .data = "synthetic",
                                     .statistics = s->statistics,
                                     .changes = s->changes,
                                     .evaluation = &s->evaluation};
}

static void free_subject(subject *s) {
  esp_model_free(s->model);
  esp_model_free(s->reference);
  esp_statistics_free(s->statistics);
  esp_router_changes_free(s->changes);
}

static double number(const json_t *object, const char *key) {
  const json_t *value = json_object_get(object, key);
  if (!json_is_number(value)) fail_msg("%s is missing", key);
  return json_number_value(value);
}

static void check_json(const json_t *json, const subject *s) {
  assert_string_equal(json_string_value(json_object_get(json, "reference")), "runs/b");
  assert_true(number(json, "accuracy") == 0.5 && number(json, "loss") == 1.25 && number(json, "examples") == IMAGES);
  const json_t *layers = json_object_get(json, "layers"), *layer = json_array_get(layers, 1);
  assert_int_equal(json_array_size(layers), 2);
  assert_string_equal(json_string_value(json_object_get(layer, "name")), "blocks.2.moe");
  assert_string_equal(json_string_value(json_object_get(layer, "kind")), "mone");
  assert_true(number(layer, "stored_experts") == 3 && number(layer, "neurons_kept") == 5 &&
              number(layer, "top_k") == 2);
  assert_true(number(layer, "tokens") == IMAGES * 16 && number(layer, "slots") == IMAGES * 32);
  const char *const numbers[] = {"served",    "entropy",      "normalised_entropy", "token_entropy",
                                 "imbalance", "dead_experts", "logit_rms"};
  for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) number(layer, numbers[i]);
  number(json_object_get(layer, "near_zero"), "0.001");
  number(json_object_get(layer, "near_zero"), "0.1");
  number(json_object_get(layer, "top_mass"), "1");
  number(json_object_get(layer, "top_mass"), "50");
  const json_t *histogram = json_object_get(layer, "histogram");
  assert_int_equal(json_array_size(json_object_get(histogram, "counts")), ESP_HISTOGRAM_BINS);
  assert_int_equal(json_array_size(json_object_get(histogram, "edges")), ESP_HISTOGRAM_BINS + 1);
  assert_near(json_number_value(json_array_get(json_object_get(histogram, "edges"), 0)), -2.025);
  const json_t *experts = json_object_get(layer, "experts"), *expert = json_array_get(experts, 2);
  const esp_router_change *change = &s->changes->layers[1].experts[2];
  assert_int_equal(json_array_size(experts), 4);
  assert_true(number(expert, "index") == 2 && number(expert, "original_id") == 2 &&
              number(expert, "stored") == ESP_EXPERT_ZERO);
  assert_near(number(expert, "router_norm_change"), change->signed_change);
  assert_near(number(expert, "absolute_change"), change->absolute_change);
  assert_near(number(expert, "difference_norm"), change->difference_norm);
  assert_near(number(expert, "router_norm"), change->norm);
  const char *const counts[] = {"count",     "share",      "first_choices", "gate_mass",
                                "mean_gate", "mean_score", "reference_norm"};
  for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) number(expert, counts[i]);
}

static void json_has_the_keys_that_others_read(void **state) {
  (void)state;
  subject s;
  set_subject(&s);
  json_t *json = esp_measurement_json(&s.measurement);
  check_json(json, &s);
  json_decref(json);
  esp_model_moe(s.model, 0)->router->data[0] = NAN;
  json = esp_measurement_json(&(esp_measurement){.model = s.model}); /* nothing measured */
  assert_null(json_object_get(json, "accuracy"));
  json_t *layer = json_array_get(json_object_get(json, "layers"), 0);
  assert_null(json_object_get(layer, "tokens"));
  json_t *expert = json_array_get(json_object_get(layer, "experts"), 0);
  assert_null(json_object_get(expert, "router_norm_change"));
  assert_null(json_object_get(expert, "count"));
  assert_true(json_is_null(json_object_get(expert, "router_norm")));
  json_decref(json);
  free_subject(&s);
}

static void cost_json_has_all_blocks(void **state) {
  (void)state;
  const esp_model_config config = small_config();
  esp_model *model = make(&config, NULL, 1);
  esp_model_cost cost;
  esp_model_cost_of(model, &cost);
  json_t *json = esp_model_cost_json(&cost), *layers = json_object_get(json, "layers"),
         *layer = json_array_get(layers, 2);
  assert_true(number(json, "parameters") == (double)cost.parameters && number(json, "flops_per_image") == cost.flops);
  assert_true(number(json, "activated_parameters") == (double)cost.activated);
  assert_true(number(json, "activated_parameters_selected") == (double)cost.activated_selected);
  assert_int_equal(json_array_size(layers), 3);
  assert_string_equal(json_string_value(json_object_get(layer, "kind")), "mone");
  assert_true(number(layer, "experts") == 4 && number(layer, "stored_experts") == 4);
  assert_true(number(layer, "flops_selected") == cost.layers[2].flops_selected);
  json_decref(json);
  esp_model_free(model);
}

static char *read_text(const char *folder, const char *name) {
  char path[ESP_PATH_SIZE];
  static char text[1 << 17];
  assert_int_equal(esp_folder_path(path, folder, name), ESP_OK);
  FILE *file = fopen(path, "r");
  if (!file) fail_msg("%s is missing", name);
  text[fread(text, 1, sizeof text - 1, file)] = '\0';
  fclose(file);
  return text;
}

/* Every row of a CSV file has as many cells as its header. Returns the rows without it. */
static int check_csv(const char *text) {
  int rows = -1, header = -1;
  for (const char *line = text; *line; line = strchr(line, '\n') + 1) {
    int commas = 0;
    assert_non_null(strchr(line, '\n'));
    for (const char *c = line; *c != '\n'; c++) commas += *c == ',';
    if (header < 0) header = commas;
    assert_int_equal(commas, header);
    rows++;
  }
  return rows;
}

static void clear_folder(const char *folder) {
  const char *const names[] = {"measure.json",     "experts.csv",        "routing.csv",     "sparsity.csv",
                               "coactivation.csv", "specialisation.csv", "activations.csv", "neurons.csv"};
  char path[ESP_PATH_SIZE];
  for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
    assert_int_equal(esp_folder_path(path, folder, names[i]), ESP_OK);
    assert_int_equal(unlink(path), 0);
  }
  assert_int_equal(rmdir(folder), 0); /* nothing else was left there */
}

static void files_have_a_row_for_everything(void **state) {
  (void)state;
  char folder[TESTING_PATH_SIZE];
  make_folder(folder);
  subject s;
  set_subject(&s);
  assert_int_equal(esp_measurement_write(&s.measurement, folder), ESP_OK);
  const char *text = read_text(folder, "experts.csv");
  assert_int_equal(check_csv(text), 2 * 4);
  assert_non_null(strstr(text, "\nblocks.2.moe,mone,2,2,-1,"));
  assert_int_equal(check_csv(read_text(folder, "routing.csv")), 2);
  assert_int_equal(check_csv(read_text(folder, "sparsity.csv")), 2);
  assert_int_equal(check_csv(read_text(folder, "coactivation.csv")), 2 * 6);
  assert_int_equal(check_csv(read_text(folder, "specialisation.csv")), 2 * 4 * s.model->config.classes);
  assert_int_equal(check_csv(read_text(folder, "activations.csv")), 2 * (ESP_HISTOGRAM_BINS + 2));
  assert_int_equal(check_csv(read_text(folder, "neurons.csv")), 3 * 20); /* stored experts of the MoNE */
  json_t *json = json_loads(read_text(folder, "measure.json"), 0, NULL);
  assert_non_null(json);
  check_json(json, &s);
  json_decref(json);
  assert_int_equal(esp_measurement_write(&(esp_measurement){.model = s.model}, folder), ESP_OK);
  assert_int_equal(check_csv(read_text(folder, "experts.csv")), 2 * 4);
  clear_folder(folder);
  assert_int_equal(esp_measurement_write(&s.measurement, folder), ESP_ERR_IO);
  assert_non_null(strstr(esp_error_message(), "measure.json"));
  free_subject(&s);
}

static void assert_prints(const char *text, const char *part) {
  if (!strstr(text, part)) fail_msg("\"%s\" is missing in:\n%s", part, text);
}

static void tables_say_what_was_measured(void **state) {
  (void)state;
  subject s;
  set_subject(&s);
  char *text = NULL;
  size_t size;
  FILE *file = open_memstream(&text, &size);
  esp_measurement_print(&s.measurement, file);
  esp_model_cost cost;
  esp_model_cost_of(s.model, &cost);
  esp_model_cost_print(&cost, file);
  fclose(file);
  assert_prints(text, "blocks.1.moe: moe, 4 experts (3 stored) of 20 neurons, 2 a token\n");
  assert_prints(text, "5 neurons kept");
  assert_prints(text, "zero");
  assert_prints(text, "accuracy 50.00 %, loss 1.2500 (6 images)");
  assert_prints(text, "  3 of 4\n");
  for (const char *line = text, *end; (end = strchr(line, '\n')); line = end + 1)
    if (end - line > 110) fail_msg("too wide: %.*s", (int)(end - line), line);
  if (getenv("SHOW_TABLES")) fputs(text, stderr);
  free(text);
  free_subject(&s);
}

static void running_out_of_memory_leaves_nothing_behind(void **state) {
  (void)state;
  const esp_model_config config = small_config();
  esp_model *model = make(&config, NULL, 1);
  esp_statistics *statistics;
  esp_router_changes *changes;
  for (int calls = 0; calls < 8; calls++) { /* two layers of three arrays, their list, the whole */
    esp_alloc_fail_after(calls);
    assert_int_equal(esp_statistics_create(&statistics, model, 1), ESP_ERR_MEMORY);
    assert_null(statistics);
  }
  for (int calls = 0; calls < 4; calls++) {
    esp_alloc_fail_after(calls);
    assert_int_equal(esp_router_changes_create(&changes, model, model), ESP_ERR_MEMORY);
    assert_null(changes);
  }
  esp_alloc_fail_after(-1);
  esp_model_free(model);
}

/* methods 5.2, without biases: of an expert d (d_e + 2 K) count if W_gate does, else 3 d K, of which 2 d K are not
 * W_gate's; whatever the gate, and with a K of each layer. */
static void counts_of_a_mone_are_the_formulas(void **state) {
  (void)state;
  static const esp_activation_kind gates[] = {ESP_ACTIVATION_SWIGLU, ESP_ACTIVATION_GLU, ESP_ACTIVATION_GEGLU,
                                              ESP_ACTIVATION_REGLU, ESP_ACTIVATION_SQUARED_REGLU};
  enum { D = 8, D_E = 20, K_EXPERTS = 2, TOKENS_OF_IMAGE = 16 };
  const int kept[] = {5, 13};
  for (size_t g = 0; g < sizeof gates / sizeof gates[0]; g++) {
    esp_model_config config = small_config();
    config.blocks = 2;
    config.layers[0] = config.layers[1] = ESP_LAYER_MONE;
    config.layers_count = 2;
    config.moe.shared_hidden = 0;
    config.feed_forward.activation = gates[g];
    config.moe.neurons_kept_per_layer_count = 2;
    config.moe.neurons_kept_per_layer[0] = 0.25;
    config.moe.neurons_kept_per_layer[1] = 13;
    esp_model_cost cost;
    esp_config_cost(&config, NULL, &cost);
    for (int i = 0; i < 2; i++) {
      const esp_layer_cost *l = &cost.layers[i];
      const int router = 4 * D, k = kept[i];
      assert_int_equal(l->neurons_kept, k);
      assert_int_equal(l->activated - router, K_EXPERTS * D * (D_E + 2 * k));
      assert_int_equal(l->activated_selected - router, K_EXPERTS * (2 * D * k + D * k));
      assert_int_equal(l->parameters - router, 4 * 3 * D * D_E);
      assert_true(l->flops == 2.0 * TOKENS_OF_IMAGE * (router + K_EXPERTS * 3 * D * D_E));
      assert_true(l->flops_selected == 2.0 * TOKENS_OF_IMAGE * (router + K_EXPERTS * D * (D_E + 2 * k)));
    }
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(cost_of_a_transformer_is_the_one_by_hand),
      cmocka_unit_test(cost_of_an_mlp_with_two_matrices_and_biases),
      cmocka_unit_test(zero_experts_cost_nothing_and_masked_ones_are_not_chosen),
      cmocka_unit_test(flops_are_those_of_the_recorded_products),
      cmocka_unit_test(router_change_of_known_rows),
      cmocka_unit_test(rows_of_pruned_models_are_matched_by_original_ids),
      cmocka_unit_test(a_reference_of_another_architecture_is_refused),
      cmocka_unit_test(running_out_of_memory_leaves_nothing_behind),
      cmocka_unit_test(json_has_the_keys_that_others_read),
      cmocka_unit_test(cost_json_has_all_blocks),
      cmocka_unit_test(files_have_a_row_for_everything),
      cmocka_unit_test(tables_say_what_was_measured),
      cmocka_unit_test(counts_of_a_mone_are_the_formulas),
  };
  fill_normal(pixels, IMAGES * PIXELS, 1);
  return cmocka_run_group_tests(tests, NULL, NULL);
}
