/* label: medium */
/* Checkpoints that are damaged, cut short or made up: each is refused with a message, none crashes, none gives
 * another model than was saved. */
#include "checkpoint_examples.h"

/* ---- damaged files ---- */

/* Either a message or just what was saved. Returns whether it was loaded. */
static bool load_damaged(const char *path, esp_optimizer *again) {
  esp_model *loaded;
  esp_checkpoint_info read;
  const esp_status status = esp_checkpoint_load(path, &loaded, &read);
  if (status == ESP_OK) {
    assert_same_model(loaded);
    assert_same_info(&read);
  } else {
    assert_null(loaded);
    assert_null(read.run_config);
    assert_ptr_equal(strstr(esp_error_message(), path), esp_error_message());
  }
  esp_checkpoint_info_clear(&read);
  esp_model_free(loaded);
  const esp_status second = esp_checkpoint_load_optimizer(path, again);
  if (second == ESP_OK) assert_same_optimizer(again);
  return status == ESP_OK && second == ESP_OK;
}

static void test_flipped_bits(void **state) {
  (void)state;
  const char *const path = save_to("a.h5", 1);
  const bytes all = get_file(path);
  esp_optimizer *const again = make_optimizer(model, ESP_OPTIMIZER_ADAMW);
  assert_true(load_damaged(path, again));
  const int flips = 300;
  int unnoticed = 0;
  for (int i = 0; i < flips; i++) {
    const size_t bit = (size_t)((double)i / flips * 8 * (double)all.size) + (size_t)i % 8;
    all.data[bit / 8] ^= (unsigned char)(1u << bit % 8);
    put_file(in_folder("damaged.h5"), all.data, all.size);
    unnoticed += load_damaged(in_folder("damaged.h5"), again);
    all.data[bit / 8] ^= (unsigned char)(1u << bit % 8);
  }
  print_message("%d of %d flipped bits were in unused space (%zu bytes)\n", unnoticed, flips, all.size);
  assert_int_equal(H5Fget_obj_count((hid_t)H5F_OBJ_ALL, H5F_OBJ_ALL), 0);
  esp_optimizer_free(again);
  esp_free(all.data);
}

static void test_cut_short(void **state) {
  (void)state;
  const bytes all = get_file(save_to("a.h5", 1));
  esp_optimizer *const again = make_optimizer(model, ESP_OPTIMIZER_ADAMW);
  for (size_t i = 0; i < 100; i++) {
    put_file(in_folder("short.h5"), all.data, i < 50 ? i * 2 : all.size * i / 100);
    assert_false(load_damaged(in_folder("short.h5"), again));
  }
  put_file(in_folder("short.h5"), all.data, all.size - 1); /* still whole for HDF5 */
  (void)load_damaged(in_folder("short.h5"), again);
  esp_optimizer_free(again);
  esp_free(all.data);
}

/* ---- made-up files ---- */

static void put(hid_t file, const char *name, hid_t type, int rank, const hsize_t *shape, const void *values) {
  if (H5Lexists(file, name, H5P_DEFAULT) > 0) H5Ldelete(file, name, H5P_DEFAULT);
  const hid_t space = H5Screate_simple(rank, shape, NULL), list = H5Pcreate(H5P_DATASET_CREATE);
  if (!values) H5Pset_chunk(list, rank, (const hsize_t[]){1, 1, 1, 1}); /* claims space, takes none */
  const hid_t data = H5Dcreate2(file, name, type, space, H5P_DEFAULT, list, H5P_DEFAULT);
  assert_true(data >= 0);
  if (values) assert_true(H5Dwrite(data, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, values) >= 0);
  H5Dclose(data), H5Sclose(space), H5Pclose(list);
}

static void put_number(hid_t file, const char *group, const char *name, int64_t value) {
  const hid_t place = H5Oopen(file, group, H5P_DEFAULT), space = H5Screate(H5S_SCALAR);
  H5Adelete(place, name);
  const hid_t attribute = H5Acreate2(place, name, H5T_STD_I64LE, space, H5P_DEFAULT, H5P_DEFAULT);
  assert_true(attribute >= 0 && H5Awrite(attribute, H5T_NATIVE_INT64, &value) >= 0);
  H5Aclose(attribute), H5Sclose(space), H5Oclose(place);
}

static void put_config(hid_t file, const esp_model_config *config, const char *text) {
  char *made = NULL;
  if (config) assert_int_equal(esp_model_config_save(&made, config), ESP_OK);
  const hid_t type = H5Tcopy(H5T_C_S1);
  H5Tset_size(type, strlen(made ? made : text) + 1);
  put(file, "architecture/config", type, 1, (const hsize_t[]){1}, made ? made : text);
  H5Tclose(type);
  esp_free(made);
}

#define ONE ((const hsize_t[]){1})
#define LAYER "architecture/layers/blocks.1.moe"

static void no_format(hid_t file) { H5Adelete(file, "format"); }
static void newer(hid_t file) { put_number(file, ".", "format_version", 2); }
static void missing(hid_t file) { H5Ldelete(file, "parameters/head.bias", H5P_DEFAULT); }
static void extra(hid_t file) { put(file, "parameters/tail.bias", H5T_IEEE_F32LE, 1, ONE, &(float){1}); }
static void misshapen(hid_t file) { put(file, "parameters/head.bias", H5T_IEEE_F32LE, 1, ONE, &(float){1}); }
static void doubles(hid_t file) { put(file, "parameters/head.bias", H5T_NATIVE_DOUBLE, 1, ONE, &(double){1}); }
static void huge(hid_t file) {
  put(file, "parameters/head.bias", H5T_IEEE_F32LE, 2, (const hsize_t[]){1 << 20, 1 << 20}, NULL);
}
static void no_parameters(hid_t file) { H5Ldelete(file, "parameters", H5P_DEFAULT); }
static void many(hid_t file) {
  for (int i = 0; i < 8; i++) {
    char name[64];
    snprintf(name, sizeof name, "parameters/extra.%d", i);
    put(file, name, H5T_IEEE_F32LE, 1, ONE, &(float){1});
  }
}
static void other_value(hid_t file) {
  put(file, "parameters/head.bias", H5T_IEEE_F32LE, 1, (const hsize_t[]){3}, (const float[]){1, 2, 3});
}
static void wide_config(hid_t file) {
  esp_model_config config = small_config();
  config.width = 1 << 20;
  config.moe.hidden = 1 << 20;
  put_config(file, &config, NULL);
}
/* Possible, but not with what the file holds. */
static void large_config(hid_t file) {
  esp_model_config config = small_config();
  config.width = config.moe.hidden = 1 << 15;
  put_config(file, &config, NULL);
}
static void bad_heads(hid_t file) {
  esp_model_config config = small_config();
  config.heads = 3;
  put_config(file, &config, NULL);
}
static void wild_pools(hid_t file) {
  esp_model_config config = small_config();
  config.stem.kind = ESP_STEM_CONVOLUTION;
  config.stem.pools[0] = config.stem.pools[1] = 1 << 16;
  put_config(file, &config, NULL);
}
static void wild_pixels(hid_t file) {
  esp_model_config config = small_config();
  config.image_height = config.image_width = config.image_channels = 1 << 20;
  put_config(file, &config, NULL);
}
static void other_kinds(hid_t file) {
  esp_model_config config = small_config();
  config.layers_count = 1;
  put_config(file, &config, NULL);
}
static void no_yaml(hid_t file) { put_config(file, NULL, "width: [1\n"); }
static void empty_config(hid_t file) { put_config(file, NULL, ""); }
static void numeric_config(hid_t file) { put(file, "architecture/config", H5T_NATIVE_INT, 1, ONE, &(int){1}); }
static void outside(hid_t file) {
  put(file, LAYER "/index", H5T_NATIVE_INT32, 1, (const hsize_t[]){4}, (const int32_t[]){0, 1, 2, 0});
}
static void below(hid_t file) {
  put(file, LAYER "/index", H5T_NATIVE_INT32, 1, (const hsize_t[]){4}, (const int32_t[]){0, 1, -3, 0});
}
static void all_masked(hid_t file) {
  put(file, LAYER "/index", H5T_NATIVE_INT32, 1, (const hsize_t[]){4}, (const int32_t[]){0, -2, -2, -2});
}
static void wild_ids(hid_t file) {
  put(file, LAYER "/original_ids", H5T_NATIVE_INT32, 1, (const hsize_t[]){4}, (const int32_t[]){0, -1, 0, 0});
}
#define RAGGED_LAYER "architecture/layers/blocks.2.mone"
static void no_width(hid_t file) {
  put(file, RAGGED_LAYER "/widths", H5T_NATIVE_INT32, 1, (const hsize_t[]){3}, (const int32_t[]){6, 0, 5});
}
static void wider(hid_t file) {
  put(file, RAGGED_LAYER "/widths", H5T_NATIVE_INT32, 1, (const hsize_t[]){3}, (const int32_t[]){6, 2, 6});
}
static void huge_width(hid_t file) {
  put(file, RAGGED_LAYER "/widths", H5T_NATIVE_INT32, 1, (const hsize_t[]){3}, (const int32_t[]){6, 2, INT32_MAX});
}
static void widths_for_all(hid_t file) {
  put(file, RAGGED_LAYER "/widths", H5T_NATIVE_INT32, 1, (const hsize_t[]){4}, (const int32_t[]){6, 2, 5, 1});
}
static void idle_widths(hid_t file) {
  put(file, LAYER "/widths", H5T_NATIVE_INT32, 1, (const hsize_t[]){2}, (const int32_t[]){6, 6});
}
static void other_widths(hid_t file) {
  put(file, RAGGED_LAYER "/widths", H5T_NATIVE_INT32, 1, (const hsize_t[]){3}, (const int32_t[]){2, 6, 5});
}
static void no_widths(hid_t file) { H5Ldelete(file, RAGGED_LAYER "/widths", H5P_DEFAULT); }
static void too_many_experts(hid_t file) { put_number(file, LAYER, "experts", 5000); }
static void fewer_experts(hid_t file) { put_number(file, LAYER, "experts", 3); }
static void more_stored(hid_t file) { put_number(file, LAYER, "stored_experts", 5); }
static void no_stored(hid_t file) { put_number(file, LAYER, "stored_experts", 0); }
static void no_layer(hid_t file) { H5Ldelete(file, LAYER, H5P_DEFAULT); }
static void no_progress(hid_t file) { H5Ldelete(file, "progress", H5P_DEFAULT); }
static void plain_progress(hid_t file) { put(file, "progress", H5T_NATIVE_INT, 1, ONE, &(int){1}); }
static void other_columns(hid_t file) {
  const hid_t type = H5Tcreate(H5T_COMPOUND, sizeof(int));
  H5Tinsert(type, "step", 0, H5T_NATIVE_INT);
  put(file, "progress", type, 1, ONE, &(int){1});
  H5Tclose(type);
}
static void long_history(hid_t file) {
  const hid_t data = H5Dopen2(file, "history", H5P_DEFAULT), type = H5Dget_type(data);
  H5Dclose(data);
  put(file, "history", type, 1, (const hsize_t[]){ESP_MAX_HISTORY + 1}, NULL);
  H5Tclose(type);
}
static void before_start(hid_t file) {
  const hid_t data = H5Dopen2(file, "progress", H5P_DEFAULT), type = H5Tcreate(H5T_COMPOUND, sizeof(int64_t));
  H5Tinsert(type, "step", 0, H5T_NATIVE_INT64);
  H5Dwrite(data, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, &(int64_t){-1});
  H5Tclose(type), H5Dclose(data);
}

static const struct {
  void (*change)(hid_t file);
  const char *message;
} changes[] = {
    {no_format, "`format` is missing"},
    {newer, "written by format 2, this program reads 1: update espalier"},
    {missing, "missing `head.bias`"},
    {extra, "extra `tail.bias`"},
    {misshapen, "misshapen `head.bias` is [1], expected [3]"},
    {doubles, "`head.bias` holds another type of values; expected floating-point numbers of 4 bytes each"},
    {huge, "`head.bias` claims the shape [1048576, 1048576]"},
    {no_parameters, "`parameters` is missing"},
    {many, "extra `extra.4`; and 3 more"},
    {other_value, "damaged or changed by hand"},
    {wide_config, "the model would have more than 1e11 parameters"},
    {large_config, "describes a model of about"},
    {bad_heads, "model.heads is 3"},
    {wild_pools, "beyond any use"},
    {wild_pixels, "beyond any use"},
    {other_kinds, "does not belong to the model"},
    {no_yaml, "architecture/config"},
    {empty_config, "model.image_height"},
    {numeric_config, "expected text of fixed length"},
    {outside, "expert 2 of the layer blocks.1.moe is stored at place 2"},
    {below, "stored at place -3"},
    {all_masked, "can route to 1 experts"},
    {wild_ids, "original number -1"},
    {no_width, "`widths`: stored expert 1 has 0 neurons"},
    {wider, "misshapen `blocks.2.moe.experts.gate_up` is [26, 8], expected [28, 8]"},
    {huge_width, "describes a model of about"},
    {widths_for_all, "`widths` has the shape [4]; expected [3]"},
    {idle_widths, "the widths of the layer blocks.1.moe are all 6, as its config says"},
    {other_widths, "damaged or changed by hand"},
    {no_widths, "misshapen `blocks.2.moe.experts.gate_up`"},
    {too_many_experts, "5000 experts"},
    {fewer_experts, "`index` has the shape [4]; expected [3]"},
    {more_stored, "5 of them stored"},
    {no_stored, "0 of them stored"},
    {no_layer, "`blocks.1.moe` is missing"},
    {no_progress, "`progress` is missing"},
    {plain_progress, "expected a table"},
    {other_columns, "other columns"},
    {long_history, "claims the shape"},
    {before_start, "step -1"},
};

static void test_made_up(void **state) {
  (void)state;
  for (size_t i = 0; i < sizeof changes / sizeof changes[0]; i++) {
    const char *const path = save_to("made.h5", 1);
    const hid_t file = H5Fopen(path, H5F_ACC_RDWR, H5P_DEFAULT);
    changes[i].change(file);
    assert_true(H5Fclose(file) >= 0);
    esp_model *loaded = model;
    esp_checkpoint_info read;
    const esp_status status = esp_checkpoint_load(path, &loaded, &read);
    if (status != ESP_ERR_FORMAT || loaded) fail_msg("case %zu (%s) has status %d", i, changes[i].message, status);
    if (!strstr(esp_error_message(), changes[i].message))
      fail_msg("case %zu: \"%s\" does not say \"%s\"", i, esp_error_message(), changes[i].message);
    assert_int_equal(H5Fget_obj_count((hid_t)H5F_OBJ_ALL, H5F_OBJ_ALL), 0);
  }
}

static void test_no_checkpoint(void **state) {
  (void)state;
  put_file(in_folder("text.h5"), "no checkpoint", 13);
  put_file(in_folder("empty.h5"), "", 0);
  H5Fclose(H5Fcreate(in_folder("plain.h5"), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT));
  const struct {
    const char *name, *message;
    esp_status status;
  } cases[] = {{"text.h5", "is not an HDF5 file", ESP_ERR_FORMAT},
               {"empty.h5", "is not an HDF5 file", ESP_ERR_FORMAT},
               {"plain.h5", "`format` is missing", ESP_ERR_FORMAT},
               {"none.h5", "No such file", ESP_ERR_NOT_FOUND},
               {".", "is a folder; expected a checkpoint", ESP_ERR_USAGE}};
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    esp_model *loaded;
    esp_checkpoint_info read;
    assert_int_equal(esp_checkpoint_load(in_folder(cases[i].name), &loaded, &read), cases[i].status);
    assert_non_null(strstr(esp_error_message(), cases[i].message));
    assert_non_null(strstr(esp_error_message(), cases[i].name));
  }
}

static void test_other_optimizer(void **state) {
  (void)state;
  const char *const path = save_to("a.h5", 1);
  esp_optimizer *const sgd = make_optimizer(model, ESP_OPTIMIZER_SGD);
  assert_int_equal(esp_checkpoint_load_optimizer(path, sgd), ESP_ERR_MISMATCH);
  assert_non_null(strstr(esp_error_message(), "first_moment, second_moment; expected momentum"));
  esp_optimizer_free(sgd);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      TEST(test_flipped_bits),  TEST(test_cut_short),       TEST(test_made_up),
      TEST(test_no_checkpoint), TEST(test_other_optimizer),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
