/* label: medium */
/* Checkpoints: what is saved comes back with the same bits, whatever was pruned; a writer that fails or is
 * killed leaves the old file alone. */
#include "checkpoint_examples.h"

#include <sys/resource.h>
#include <time.h>

/* ---- saving and loading ---- */

static void test_round_trip(void **state) {
  (void)state;
  for (int level = 0; level <= 9; level += 3) {
    const char *const path = save_to("a.h5", level);
    esp_model *loaded;
    esp_checkpoint_info read;
    assert_int_equal(esp_checkpoint_load(path, &loaded, &read), ESP_OK);
    assert_same_model(loaded);
    assert_same_info(&read);
    esp_optimizer *const again = make_optimizer(loaded, ESP_OPTIMIZER_ADAMW);
    assert_int_equal(esp_checkpoint_load_optimizer(path, again), ESP_OK);
    assert_same_optimizer(again);
    esp_optimizer_free(again);
    esp_checkpoint_info_clear(&read);
    esp_model_free(loaded);
  }
  assert_int_equal(H5Fget_obj_count((hid_t)H5F_OBJ_ALL, H5F_OBJ_ALL), 0);
}

/* No optimiser, no history, no run config; numbers that are not numbers keep their bits too. */
static void test_bare_model(void **state) {
  (void)state;
  esp_real *const values = esp_parameters_values(model->parameters);
  values[0] = NAN, values[1] = -0.0f, values[2] = INFINITY, values[3] = 1e-42f;
  esp_checkpoint_info bare = {.history_count = 0}, read;
  const char *const path = in_folder("bare.h5");
  assert_int_equal(esp_checkpoint_save(path, model, NULL, &bare, 1), ESP_OK);
  esp_model *loaded;
  assert_int_equal(esp_checkpoint_load(path, &loaded, &read), ESP_OK);
  assert_same_model(loaded);
  assert_null(read.run_config);
  assert_int_equal(read.history_count, 0);
  assert_int_equal(esp_checkpoint_load_optimizer(path, optimizer), ESP_ERR_MISMATCH);
  assert_non_null(strstr(esp_error_message(), "no optimiser state"));
  esp_model_free(loaded);
}

static void test_digest(void **state) {
  (void)state;
  char digest[ESP_DIGEST_SIZE], other[ESP_DIGEST_SIZE];
  (void)save_to("a.h5", 1);
  assert_int_equal(esp_model_digest(model, digest), ESP_OK);
  assert_int_equal(strlen(digest), 16);
  assert_string_equal(digest, info.digest);
  esp_parameters_values(model->parameters)[5] += 1;
  assert_int_equal(esp_model_digest(model, other), ESP_OK);
  assert_string_not_equal(digest, other);
  esp_parameters_values(model->parameters)[5] -= 1;
  esp_model_moe(model, 0)->layout.original_ids[0] = 9;
  assert_int_equal(esp_model_digest(model, other), ESP_OK);
  assert_string_not_equal(digest, other);
}

/* The sizes that are checked before memory is taken must hold for every kind of model. */
static void test_kinds_of_models(void **state) {
  (void)state;
  for (int kind = 0; kind < 18; kind++) {
    esp_model_config config = small_config();
    config.stem.kind = (esp_stem_kind)(kind % 3);
    config.mixing = (esp_mixing_kind)(kind / 3 % 3);
    config.norm = kind / 9 ? ESP_NORM_RMS : ESP_NORM_LAYER;
    config.width = 64;
    config.moe.shared_hidden = kind / 9 ? 0 : 32;
    esp_model *made, *loaded;
    esp_checkpoint_info bare = {.history_count = 0}, read;
    assert_int_equal(esp_model_create(&made, &config, NULL, 1), ESP_OK);
    assert_int_equal(esp_checkpoint_save(in_folder("k.h5"), made, NULL, &bare, 0), ESP_OK);
    if (esp_checkpoint_load(in_folder("k.h5"), &loaded, &read) != ESP_OK)
      fail_msg("kind %d: %s", kind, esp_error_message());
    assert_string_equal(bare.digest, read.digest);
    esp_model_free(made);
    esp_model_free(loaded);
  }
}

static const char reader[] =
    "import sys, numpy, h5py\n"
    "f = h5py.File(sys.argv[1], 'r')\n"
    "assert f.attrs['format'].decode() == 'espalier checkpoint' and f.attrs['format_version'] == 1\n"
    "assert 'experts: 4' in f['architecture/config'][0].decode()\n"
    "layer = f['architecture/layers/blocks.3.moe']\n"
    "assert layer.attrs['kind'].decode() == 'moe' and layer.attrs['stored_experts'] == 2\n"
    "assert layer['index'][:].tolist() == [0, -2, 1, 1]\n"
    "w = f['parameters/blocks.1.moe.experts.gate_up']\n"
    "assert w.shape == (2, 12, 8) and w.dtype == '<f4' and w.fletcher32 and w.shuffle\n"
    "assert (w[:].ravel() == numpy.fromfile(sys.argv[2], '<f4')).all()\n"
    "assert f['progress'][0]['seed'] == 2**64 - 2 and f['progress'][0]['best_accuracy'] == 0.1 + 0.2\n"
    "assert f['history'][0]['detail'].decode() == 'synthetic, 20 classes: é'\n"
    "assert f['data'][0]['mean'][1] == 0.25 and f['run/config'][0].startswith(b'training')\n"
    "assert f['optimizer/second_moment/head.bias'].shape == (3,) and f['optimizer/steps'][0] == 40\n";

static void test_h5py(void **state) {
  (void)state;
  if (system("/usr/bin/python3 -c 'import h5py, numpy' 2>/dev/null") != 0) {
    print_message("h5py is not installed: not tested\n");
    skip();
  }
  const esp_parameter *p = esp_parameters_find(model->parameters, "blocks.1.moe.experts.gate_up");
  put_file(in_folder("values"), p->tensor.data, (size_t)p->count * sizeof(float));
  put_file(in_folder("reader.py"), reader, strlen(reader));
  (void)save_to("a.h5", 1);
  char command[4 * TESTING_PATH_SIZE];
  snprintf(command, sizeof command, "/usr/bin/python3 %s/reader.py %s/a.h5 %s/values", folder, folder, folder);
  assert_int_equal(system(command), 0);
}

static void test_resolve(void **state) {
  (void)state;
  char path[TESTING_PATH_SIZE], tiny[4];
  assert_int_equal(esp_checkpoint_resolve(path, sizeof path, folder), ESP_ERR_NOT_FOUND);
  assert_non_null(strstr(esp_error_message(), "has no last.h5"));
  (void)save_to("last.h5", 1);
  assert_int_equal(esp_checkpoint_resolve(path, sizeof path, folder), ESP_OK);
  assert_string_equal(path, in_folder("last.h5"));
  assert_int_equal(esp_checkpoint_resolve(path, sizeof path, in_folder("last.h5")), ESP_OK);
  assert_string_equal(path, in_folder("last.h5"));
  assert_int_equal(esp_checkpoint_resolve(path, sizeof path, in_folder("nothing")), ESP_ERR_NOT_FOUND);
  assert_non_null(strstr(esp_error_message(), "nothing"));
  assert_int_equal(esp_checkpoint_resolve(tiny, sizeof tiny, folder), ESP_ERR_USAGE);
}

/* ---- writers that fail ---- */

static int count_files(void) {
  int count = 0;
  DIR *const open = opendir(folder);
  for (const struct dirent *entry; (entry = readdir(open));) count += entry->d_name[0] != '.';
  closedir(open);
  return count;
}

static void test_unwritable(void **state) {
  (void)state;
  (void)save_to("file", 0);
  const char *const paths[] = {"missing/a.h5", "file/a.h5"};
  for (int i = 0; i < 2; i++) {
    assert_int_equal(esp_checkpoint_save(in_folder(paths[i]), model, NULL, &info, 0), ESP_ERR_IO);
    assert_non_null(strstr(esp_error_message(), i ? "Not a directory" : "No such file or directory"));
  }
  assert_int_equal(mkdir(in_folder("taken.h5"), 0777), 0);
  assert_int_equal(esp_checkpoint_save(in_folder("taken.h5"), model, NULL, &info, 0), ESP_ERR_USAGE);
  assert_non_null(strstr(esp_error_message(), "is a folder, and would be replaced"));
  assert_int_equal(count_files(), 2);
}

/* A limit on the size of files stands for a full disk. */
static void test_full_disk(void **state) {
  (void)state;
  const char *const path = save_to("a.h5", 0);
  const bytes before = get_file(path);
  fflush(NULL);
  const pid_t child = fork();
  if (child == 0) {
    signal(SIGXFSZ, SIG_IGN);
    bool right = true;
    for (rlim_t most = 0; most < before.size && right; most += 7919) {
      setrlimit(RLIMIT_FSIZE, &(struct rlimit){most, RLIM_INFINITY});
      right = esp_checkpoint_save(path, model, optimizer, &info, 0) == ESP_ERR_IO &&
              strstr(esp_error_message(), "File too large");
    }
    _exit(right ? 0 : 1);
  }
  int status;
  assert_int_equal(waitpid(child, &status, 0), child);
  assert_int_equal(status, 0);
  const bytes after = get_file(path);
  assert_int_equal(after.size, before.size);
  assert_memory_equal(after.data, before.data, before.size);
  assert_int_equal(count_files(), 1);
  esp_free(before.data);
  esp_free(after.data);
}

static void test_short_memory(void **state) {
  (void)state;
  const char *const path = save_to("a.h5", 1);
  const bytes before = get_file(path);
  esp_status status = ESP_ERR_MEMORY;
  for (int64_t calls = 0; status != ESP_OK; calls++) {
    esp_alloc_fail_after(calls);
    status = esp_checkpoint_save(path, model, optimizer, &info, 1);
    esp_alloc_fail_after(-1);
    if (status != ESP_OK && status != ESP_ERR_MEMORY) fail_msg("%s", esp_error_message());
    if (status == ESP_ERR_MEMORY) assert_int_equal(count_files(), 1);
  }
  for (int64_t calls = 0;; calls++) {
    esp_model *loaded;
    esp_checkpoint_info read;
    esp_alloc_fail_after(calls);
    status = esp_checkpoint_load(path, &loaded, &read);
    esp_alloc_fail_after(-1);
    esp_checkpoint_info_clear(&read);
    esp_model_free(loaded);
    if (status == ESP_OK) break;
    assert_int_equal(status, ESP_ERR_MEMORY);
    assert_null(loaded);
  }
  assert_int_equal(H5Fget_obj_count((hid_t)H5F_OBJ_ALL, H5F_OBJ_ALL), 0);
  esp_free(before.data);
}

static void test_killed_writer(void **state) {
  (void)state;
  const char *const path = save_to("a.h5", 0);
  esp_random random = esp_random_stream(TESTING_SEED, ESP_PURPOSE_TEST, 99);
  for (int round = 0; round < 20; round++) {
    fflush(NULL);
    const pid_t child = fork();
    if (child == 0)
      for (;;) (void)!esp_checkpoint_save(path, model, optimizer, &info, 0);
    nanosleep(&(struct timespec){0, 1000000 + (long)esp_random_below(&random, 20000000)}, NULL);
    kill(child, SIGKILL);
    assert_int_equal(waitpid(child, NULL, 0), child);
    esp_model *loaded;
    esp_checkpoint_info read;
    if (esp_checkpoint_load(path, &loaded, &read) != ESP_OK) fail_msg("%s", esp_error_message());
    assert_same_model(loaded);
    esp_checkpoint_info_clear(&read);
    esp_model_free(loaded);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      TEST(test_round_trip),   TEST(test_bare_model),    TEST(test_digest),     TEST(test_kinds_of_models),
      TEST(test_h5py),         TEST(test_resolve),       TEST(test_unwritable), TEST(test_full_disk),
      TEST(test_short_memory), TEST(test_killed_writer),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
