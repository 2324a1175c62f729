/* label: short */
#include <espalier/memory.h>
#include <espalier/yaml.h>

#include <cyaml/cyaml.h>
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

/* ---- A struct with every kind of member ---- */

enum { MOST_LAYERS = 4, NAME_SIZE = 12 };

enum shade { SHADE_DARK = -1, SHADE_LIGHT = 3 };

struct model {
  unsigned experts;
  int8_t offset;
  double rate;
  float narrow;
  bool shared;
  enum shade shade;
  unsigned layers[MOST_LAYERS];
  unsigned layers_count;
};

struct run {
  char name[NAME_SIZE];
  uint64_t seed;
  int64_t low;
  double means[3];
  char tags[2][NAME_SIZE];
  uint8_t tags_count;
};

struct settings {
  struct model model;
  struct run run;
  uint16_t threads;
};

static const cyaml_strval_t shades[] = {{"dark", SHADE_DARK}, {"light", SHADE_LIGHT}};
static const cyaml_schema_value_t unsigned_entry = {CYAML_VALUE_UINT(CYAML_FLAG_DEFAULT, unsigned)};
static const cyaml_schema_value_t double_entry = {CYAML_VALUE_FLOAT(CYAML_FLAG_DEFAULT, double)};
static const cyaml_schema_value_t tag_entry = {
    CYAML_VALUE_STRING(CYAML_FLAG_DEFAULT, char[NAME_SIZE], 0, NAME_SIZE - 1)};

static const cyaml_schema_field_t model_fields[] = {
    CYAML_FIELD_UINT("experts", CYAML_FLAG_DEFAULT, struct model, experts),
    CYAML_FIELD_INT("offset", CYAML_FLAG_DEFAULT, struct model, offset),
    CYAML_FIELD_FLOAT("rate", CYAML_FLAG_DEFAULT, struct model, rate),
    CYAML_FIELD_FLOAT("narrow", CYAML_FLAG_DEFAULT, struct model, narrow),
    CYAML_FIELD_BOOL("shared", CYAML_FLAG_DEFAULT, struct model, shared),
    CYAML_FIELD_ENUM("shade", CYAML_FLAG_STRICT, struct model, shade, shades, CYAML_ARRAY_LEN(shades)),
    CYAML_FIELD_SEQUENCE("layers", CYAML_FLAG_DEFAULT, struct model, layers, &unsigned_entry, 0, MOST_LAYERS),
    CYAML_FIELD_END};

static const cyaml_schema_field_t run_fields[] = {
    CYAML_FIELD_STRING("name", CYAML_FLAG_DEFAULT, struct run, name, 0),
    CYAML_FIELD_UINT("seed", CYAML_FLAG_DEFAULT, struct run, seed),
    CYAML_FIELD_INT("low", CYAML_FLAG_DEFAULT, struct run, low),
    CYAML_FIELD_SEQUENCE_FIXED("means", CYAML_FLAG_DEFAULT, struct run, means, &double_entry, 3),
    CYAML_FIELD_SEQUENCE("tags", CYAML_FLAG_DEFAULT, struct run, tags, &tag_entry, 1, 2),
    CYAML_FIELD_END};

static const cyaml_schema_field_t settings_fields[] = {
    CYAML_FIELD_MAPPING("model", CYAML_FLAG_DEFAULT, struct settings, model, model_fields),
    CYAML_FIELD_MAPPING("run", CYAML_FLAG_DEFAULT, struct settings, run, run_fields),
    CYAML_FIELD_UINT("threads", CYAML_FLAG_DEFAULT, struct settings, threads), CYAML_FIELD_END};

static const cyaml_schema_value_t schema = {CYAML_VALUE_MAPPING(CYAML_FLAG_POINTER, struct settings, settings_fields)};

static const struct settings defaults = {.model = {.experts = 8,
                                                   .offset = -5,
                                                   .rate = 0.1,
                                                   .narrow = 0.2f,
                                                   .shade = SHADE_LIGHT,
                                                   .layers = {1, 3},
                                                   .layers_count = 2},
                                         .run = {.name = "first",
                                                 .seed = UINT64_MAX,
                                                 .low = INT64_MIN,
                                                 .means = {0.5, 1e-5, 3},
                                                 .tags = {"a"},
                                                 .tags_count = 1},
                                         .threads = 2};

static const char saved_defaults[] = "model:\n"
                                     "  experts: 8\n"
                                     "  offset: -5\n"
                                     "  rate: 0.1\n"
                                     "  narrow: 0.2\n"
                                     "  shared: false\n"
                                     "  shade: light\n"
                                     "  layers: [1, 3]\n"
                                     "run:\n"
                                     "  name: first\n"
                                     "  seed: 18446744073709551615\n"
                                     "  low: -9223372036854775808\n"
                                     "  means: [0.5, 1.0e-05, 3.0]\n"
                                     "  tags: [a]\n"
                                     "threads: 2\n";

static void must_save(char **text, const struct settings *settings) {
  if (esp_yaml_save(text, settings, &schema) != ESP_OK) fail_msg("%s", esp_error_message());
}

static void must_load(struct settings *settings, const char *text, const char *override) {
  if (esp_yaml_load(settings,
                    &(esp_yaml_options){.config_size = sizeof *settings,
                                        .schema = &schema,
                                        .defaults = &defaults,
                                        .overrides = &override,
                                        .override_count = override != NULL},
                    "c.yaml", text))
    fail_msg("%s", esp_error_message());
}

static void must_refuse(esp_status expected, const char *text, const char *override, const char *message) {
  struct settings settings = {.threads = 77};
  const esp_status status = esp_yaml_load(&settings,
                                          &(esp_yaml_options){.config_size = sizeof settings,
                                                              .schema = &schema,
                                                              .defaults = &defaults,
                                                              .overrides = &override,
                                                              .override_count = override != NULL},
                                          "c.yaml", text);
  if (status != expected) fail_msg("status %d for: %s%s", status, text ? text : "", override ? override : "");
  assert_string_equal(esp_error_message(), message);
  assert_int_equal(settings.threads, 77);
}

/* ---- Loading ---- */

static void defaults_alone_are_copied(void **state) {
  (void)state;
  static const char *const texts[] = {NULL, "", "# nothing\n", "---\n", "model:\nrun:\n", "{}"};
  for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
    struct settings settings;
    char *text;
    must_load(&settings, texts[i], NULL);
    must_save(&text, &settings);
    assert_string_equal(text, saved_defaults);
    esp_free(text);
  }
}

static void text_overlays_defaults(void **state) {
  (void)state;
  struct settings settings;
  must_load(&settings,
            "run: {name: 'two: #2', tags: [x, \"y z\"]} # a comment\n"
            "model:\n"
            "  layers: &list [4, 5, 6]\n"
            "  shade: dark\n"
            "  rate: 1\n"
            "  narrow: +.5e1\n"
            "  shared: true\n"
            "  offset: -128\n",
            NULL);
  assert_int_equal(settings.model.experts, 8);
  assert_int_equal(settings.model.layers_count, 3);
  assert_int_equal(settings.model.layers[2], 6);
  assert_int_equal(settings.model.shade, SHADE_DARK);
  assert_true(settings.model.rate == 1);
  assert_true(settings.model.narrow == 5.0f);
  assert_true(settings.model.shared);
  assert_int_equal(settings.model.offset, -128);
  assert_string_equal(settings.run.name, "two: #2");
  assert_string_equal(settings.run.tags[1], "y z");
  assert_int_equal(settings.run.tags_count, 2);
  assert_int_equal(settings.threads, 2);
}

static void aliases_are_resolved(void **state) {
  (void)state;
  struct settings settings;
  must_load(&settings, "threads: &n 3\nmodel: {experts: *n, layers: [*n, *n]}\n", NULL);
  assert_int_equal(settings.model.experts, 3);
  assert_int_equal(settings.model.layers[1], 3);
  must_refuse(ESP_ERR_CONFIG, "model: &m\n  layers: [*m]\n", NULL,
              "c.yaml, line 1: \"model.layers[0]\" is a section; expected a whole number from 0 to 4294967295");
}

/* YAML 1.2: 064 is 64, whatever C makes of it. */
static void leading_zeros_mean_nothing(void **state) {
  (void)state;
  struct settings settings;
  must_load(&settings,
            "threads: &n 064\n"
            "model: {experts: *n, offset: -0077, layers: [00, +010, 08], rate: 010.5}\n"
            "run: {seed: 00018446744073709551615, low: 000, name: 007}\n",
            NULL);
  assert_int_equal(settings.threads, 64);
  assert_int_equal(settings.model.experts, 64);
  assert_int_equal(settings.model.offset, -77);
  assert_int_equal(settings.model.layers[0], 0);
  assert_int_equal(settings.model.layers[1], 10);
  assert_int_equal(settings.model.layers[2], 8);
  assert_true(settings.model.rate == 10.5);
  assert_true(settings.run.seed == UINT64_MAX && settings.run.low == 0);
  assert_string_equal(settings.run.name, "007");
  must_load(&settings, NULL, "threads=0100");
  assert_int_equal(settings.threads, 100);
}

static void overrides_come_last_and_in_order(void **state) {
  (void)state;
  struct settings settings;
  static const char *const overrides[] = {"threads=5",       "model.layers=[2]", "model={experts: 3, rate: 1e-3}",
                                          "model.experts=4", "run.name=",        "run.low= -7",
                                          "run.tags=[a=b,c]"};
  assert_int_equal(esp_yaml_load(&settings,
                                 &(esp_yaml_options){.config_size = sizeof settings,
                                                     .schema = &schema,
                                                     .defaults = &defaults,
                                                     .overrides = overrides,
                                                     .override_count = sizeof overrides / sizeof overrides[0]},
                                 "c.yaml", "threads: 9\nmodel: {experts: 9, offset: 9}\n"),
                   ESP_OK);
  assert_int_equal(settings.threads, 5);
  assert_int_equal(settings.model.layers_count, 1);
  assert_int_equal(settings.model.layers[0], 2);
  assert_int_equal(settings.model.layers[1], 0);
  assert_int_equal(settings.model.experts, 4);
  assert_int_equal(settings.model.offset, 9);
  assert_true(settings.model.rate == 1e-3);
  assert_string_equal(settings.run.name, "");
  assert_int_equal(settings.run.low, -7);
  assert_string_equal(settings.run.tags[0], "a=b");
}

static void config_may_be_its_own_defaults(void **state) {
  (void)state;
  struct settings settings = defaults;
  static const char *const overrides[] = {"model.experts=1"};
  assert_int_equal(esp_yaml_load(&settings,
                                 &(esp_yaml_options){.config_size = sizeof settings,
                                                     .schema = &schema,
                                                     .defaults = &settings,
                                                     .overrides = overrides,
                                                     .override_count = 1},
                                 NULL, NULL),
                   ESP_OK);
  assert_int_equal(settings.model.experts, 1);
  assert_int_equal(settings.model.layers[1], 3);
}

/* ---- Saving ---- */

static void assert_round_trip(const struct settings *settings) {
  char *first, *second;
  struct settings loaded;
  must_save(&first, settings);
  must_load(&loaded, first, NULL);
  must_save(&second, &loaded);
  assert_string_equal(first, second);
  assert_memory_equal(&loaded.model.rate, &settings->model.rate, sizeof(double));
  assert_memory_equal(&loaded.model.narrow, &settings->model.narrow, sizeof(float));
  assert_memory_equal(loaded.run.means, settings->run.means, sizeof loaded.run.means);
  assert_memory_equal(loaded.run.name, settings->run.name, sizeof loaded.run.name);
  assert_int_equal(loaded.model.shade, settings->model.shade);
  assert_int_equal(loaded.run.low, settings->run.low);
  esp_free(first);
  esp_free(second);
}

static void floats_keep_their_bits(void **state) {
  (void)state;
  static const double values[] = {0.0,  -0.0,      1.0 / 3.0, 0.1 + 0.2,          DBL_MAX, -DBL_MIN, 4.9e-324,
                                  1e22, 123456789, 1e6,       1.5707963267948966, -2.5};
  for (size_t i = 0; i < sizeof values / sizeof values[0]; i++) {
    struct settings settings = defaults;
    settings.model.rate = settings.run.means[2] = values[i];
    settings.model.narrow = fabs(values[i]) < (double)FLT_MAX ? (float)values[i] : FLT_MAX;
    assert_round_trip(&settings);
  }
}

static void texts_keep_their_bytes(void **state) {
  (void)state;
  static const char *const names[] = {"",     " ",      "a: b",   "#",  "- x",         "null", "true",       "a\nb\n",
                                      "'\"'", "\t\x01", "[1, 2]", "~",  "caf\xc3\xa9", "&a",   "!tag",       "%d",
                                      "*",    "---",    "? x",    "\\", "trail ",      "x:",   "eleven byte"};
  for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
    struct settings settings = defaults;
    memset(settings.run.name, 0, sizeof settings.run.name);
    memcpy(settings.run.name, names[i], strlen(names[i]));
    settings.model.layers_count = 0;
    settings.model.shade = SHADE_DARK;
    settings.run.low = -1;
    assert_round_trip(&settings);
  }
}

static void must_not_save(const struct settings *settings, const char *message) {
  char *text = (char *)(uintptr_t)1;
  assert_int_equal(esp_yaml_save(&text, settings, &schema), ESP_ERR_CONFIG);
  assert_null(text);
  assert_string_equal(esp_error_message(), message);
}

static void what_yaml_cannot_hold_is_not_saved(void **state) {
  (void)state;
  struct settings settings = defaults;
  settings.run.means[1] = (double)INFINITY;
  must_not_save(&settings, "\"run.means\" cannot be saved as YAML: it is inf; expected a finite number");
  settings = defaults;
  settings.model.narrow = NAN;
  must_not_save(&settings, "\"model.narrow\" cannot be saved as YAML: it is nan; expected a finite number");
  settings = defaults;
  settings.model.shade = (enum shade)2;
  must_not_save(&settings, "\"model.shade\" cannot be saved as YAML: it is (a number without a name); expected one of "
                           "dark, light");
  settings = defaults;
  settings.model.layers_count = 5;
  must_not_save(&settings,
                "\"model.layers\" cannot be saved as YAML: it is a list of another length; expected a list of "
                "0 to 4 entries, each a whole number from 0 to 4294967295");
  settings = defaults;
  memset(settings.run.name, 'x', sizeof settings.run.name);
  must_not_save(&settings,
                "\"run.name\" cannot be saved as YAML: it is a text without end; expected a text of 0 to 11 bytes");
  settings = defaults;
  memcpy(settings.run.name, "\xff", 2);
  must_not_save(&settings,
                "\"run.name\" cannot be saved as YAML: it is not in UTF-8; expected a text of 0 to 11 bytes");
}

/* ---- Bad input ---- */

#define MODEL_KEYS "experts, offset, rate, narrow, shared, shade, layers"

static void unknown_keys_are_named(void **state) {
  (void)state;
  must_refuse(
      ESP_ERR_CONFIG, "\n\nmodel:\n  rate: 1\n  expert: 3\n", NULL,
      "c.yaml, line 5: unknown key \"model.expert\"; did you mean \"experts\"? Known keys of \"model\": " MODEL_KEYS);
  must_refuse(ESP_ERR_CONFIG, NULL, "model.expert=3",
              "setting model.expert=3: unknown key \"model.expert\"; did you mean \"experts\"? "
              "Known keys of \"model\": " MODEL_KEYS);
  must_refuse(
      ESP_ERR_CONFIG, "experts: 3\n", NULL,
      "c.yaml, line 1: unknown key \"experts\"; did you mean \"model.experts\"? Known keys: model, run, threads");
  must_refuse(ESP_ERR_CONFIG, NULL, "model={zzzzzzzzzz: 3}",
              "setting model={zzzzzzzzzz: 3}: unknown key \"model.zzzzzzzzzz\". Known keys of \"model\": " MODEL_KEYS);
  must_refuse(ESP_ERR_CONFIG, "[a]: 3\n", NULL,
              "c.yaml, line 1: unknown key \"(not a word)\". Known keys: model, run, threads");
}

static void doubled_keys_are_refused(void **state) {
  (void)state;
  must_refuse(ESP_ERR_CONFIG, "model:\n  rate: 1\n  rate: 2\n", NULL,
              "c.yaml, line 3: the key \"model.rate\" is there for the second time; remove one");
  must_refuse(ESP_ERR_CONFIG, NULL, "run={seed: 1, seed: 1}",
              "setting run={seed: 1, seed: 1}: the key \"run.seed\" is there for the second time; remove one");
}

static void wrong_types_are_named(void **state) {
  (void)state;
  static const struct {
    const char *override, *message;
  } cases[] = {
      {"model.experts=many", "\"model.experts\" is \"many\"; expected a whole number from 0 to 4294967295"},
      {"model.experts=-1", "\"model.experts\" is \"-1\"; expected a whole number from 0 to 4294967295"},
      {"model.experts=4294967296", "\"model.experts\" is \"4294967296\"; expected a whole number from 0 to 4294967295"},
      {"model.experts=1.5", "\"model.experts\" is \"1.5\"; expected a whole number from 0 to 4294967295"},
      {"model.experts=0x10", "\"model.experts\" is \"0x10\"; expected a whole number from 0 to 4294967295"},
      {"model.experts=0o10", "\"model.experts\" is \"0o10\"; expected a whole number from 0 to 4294967295"},
      {"model.offset=-0129", "\"model.offset\" is \"-0129\"; expected a whole number from -128 to 127"},
      {"model.experts=", "\"model.experts\" is \"\"; expected a whole number from 0 to 4294967295"},
      {"model.experts=[1]", "\"model.experts\" is a list of 1; expected a whole number from 0 to 4294967295"},
      {"model.experts={a: 1}", "\"model.experts\" is a section; expected a whole number from 0 to 4294967295"},
      {"model.experts.a=1", "\"model.experts\" is a section; expected a whole number from 0 to 4294967295"},
      {"model.offset=128", "\"model.offset\" is \"128\"; expected a whole number from -128 to 127"},
      {"model.offset=-129", "\"model.offset\" is \"-129\"; expected a whole number from -128 to 127"},
      {"threads=65536", "\"threads\" is \"65536\"; expected a whole number from 0 to 65535"},
      {"run.seed=18446744073709551616",
       "\"run.seed\" is \"18446744073709551616\"; expected a whole number from 0 to 18446744073709551615"},
      {"run.low=9223372036854775808", "\"run.low\" is \"9223372036854775808\"; expected a whole number from "
                                      "-9223372036854775808 to 9223372036854775807"},
      {"model.rate=.nan", "\"model.rate\" is \".nan\"; expected a finite number"},
      {"model.rate=inf", "\"model.rate\" is \"inf\"; expected a finite number"},
      {"model.rate=1e999", "\"model.rate\" is \"1e999\"; expected a finite number"},
      {"model.narrow=1e39", "\"model.narrow\" is \"1e39\"; expected a finite number"},
      {"model.rate=0x10", "\"model.rate\" is \"0x10\"; expected a finite number"},
      {"model.rate=1e", "\"model.rate\" is \"1e\"; expected a finite number"},
      {"model.rate=.", "\"model.rate\" is \".\"; expected a finite number"},
      {"model.shared=yes", "\"model.shared\" is \"yes\"; expected true or false"},
      {"model.shade=drak", "\"model.shade\" is \"drak\"; expected one of dark, light; did you mean \"dark\"?"},
      {"model.shade=3", "\"model.shade\" is \"3\"; expected one of dark, light"},
      {"model.layers=2", "\"model.layers\" is \"2\"; expected a list of 0 to 4 entries, each a whole number from 0 to "
                         "4294967295"},
      {"model.layers=[1,2,3,4,5]",
       "\"model.layers\" is a list of 5; expected a list of 0 to 4 entries, each a whole number "
       "from 0 to 4294967295"},
      {"model.layers=[1,x]", "\"model.layers[1]\" is \"x\"; expected a whole number from 0 to 4294967295"},
      {"run.means=[1,2]", "\"run.means\" is a list of 2; expected a list of 3 entries, each a finite number"},
      {"run.tags=[]", "\"run.tags\" is a list of 0; expected a list of 1 to 2 entries, each a text of 0 to 11 bytes"},
      {"run.name=twelve bytes", "\"run.name\" is \"twelve bytes\"; expected a text of 0 to 11 bytes"},
      {"run.name=\"a\\0b\"", "\"run.name\" is \"a\"; expected a text of 0 to 11 bytes"},
      {"model=3", "\"model\" is \"3\"; expected a section with keys among " MODEL_KEYS},
  };
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    char message[512];
    snprintf(message, sizeof message, "setting %s: %s", cases[i].override, cases[i].message);
    must_refuse(ESP_ERR_CONFIG, NULL, cases[i].override, message);
  }
  must_refuse(ESP_ERR_CONFIG, "threads: 1\nmodel:\n  experts:\n", NULL,
              "c.yaml, line 3: \"model.experts\" is empty; expected a whole number from 0 to 4294967295");
  must_refuse(
      ESP_ERR_CONFIG, "- a\n", NULL,
      "c.yaml, line 1: \"the document\" is a list of 1; expected a section with keys among model, run, threads");
}

static void bad_overrides_are_wrong_usage(void **state) {
  (void)state;
  static const char *const overrides[] = {"threads", "=3",         "",       ".threads=3", "model.=3",
                                          "a..b=3",  "mod el.x=3", "\xff=3", ".=1",        "model.layers[0]=1"};
  for (size_t i = 0; i < sizeof overrides / sizeof overrides[0]; i++) {
    char message[256];
    snprintf(message, sizeof message, "setting %s: expected key=value with a key like section.name", overrides[i]);
    must_refuse(ESP_ERR_USAGE, NULL, overrides[i], message);
  }
}

static void bad_yaml_is_located(void **state) {
  (void)state;
  must_refuse(
      ESP_ERR_CONFIG, "threads: 1\nmodel: [1\n", NULL,
      "c.yaml, line 3, column 1: not valid YAML: did not find expected ',' or ']' (while parsing a flow sequence "
      "that began on line 2)");
  must_refuse(ESP_ERR_CONFIG, "a: b: c\n", NULL,
              "c.yaml, line 1, column 5: not valid YAML: mapping values are not allowed in this context");
  must_refuse(ESP_ERR_CONFIG, "threads: 1\n---\nthreads: 2\n", NULL,
              "c.yaml, line 2, column 1: a second YAML document begins; expected only one");
  must_refuse(ESP_ERR_CONFIG, "threads: *none\n", NULL,
              "c.yaml, line 1, column 10: not valid YAML: found undefined alias");
  must_refuse(ESP_ERR_CONFIG, "threads: \xff\n", NULL, "c.yaml, byte 9: not valid YAML: invalid leading UTF-8 octet");
  must_refuse(ESP_ERR_CONFIG, NULL, "model.layers=[1",
              "setting model.layers=[1: not valid YAML: did not find expected ',' or ']' (while parsing a "
              "flow sequence that began on line 1)");
}

/* No text, however broken, may crash or leak: every prefix, and every byte replaced by each of a few. */
static void mangled_texts_do_no_harm(void **state) {
  (void)state;
  static const char bytes[] = "[]{}:,-#&*!|>'\"%@`\n\t \x01\xff";
  char text[sizeof saved_defaults];
  struct settings settings;
  for (size_t i = 0; i < sizeof text; i++) {
    memcpy(text, saved_defaults, sizeof text);
    text[i] = '\0';
    (void)esp_yaml_load(&settings,
                        &(esp_yaml_options){.config_size = sizeof settings, .schema = &schema, .defaults = &defaults},
                        "c.yaml", text);
    for (size_t j = 0; i + 1 < sizeof text && j + 1 < sizeof bytes; j++) {
      text[i] = bytes[j];
      (void)esp_yaml_load(&settings,
                          &(esp_yaml_options){.config_size = sizeof settings, .schema = &schema, .defaults = &defaults},
                          "c.yaml", text);
    }
  }
}

/* `count` times `part`; freed by the caller. */
static char *repeated(const char *part, size_t count) {
  const size_t length = strlen(part);
  char *const text = malloc(length * count + 1);
  assert_non_null(text);
  for (size_t i = 0; i < count; i++) memcpy(text + i * length, part, length);
  text[length * count] = '\0';
  return text;
}

static void must_be_too_much(const char *text) {
  struct settings settings;
  const esp_yaml_options options = {.config_size = sizeof settings, .schema = &schema, .defaults = &defaults};
  assert_int_equal(esp_yaml_load(&settings, &options, "c.yaml", text), ESP_ERR_CONFIG);
  if (!strstr(esp_error_message(), "more than 32 levels")) fail_msg("%.20s: %s", text, esp_error_message());
}

/* libyaml's time grows with the square of the depth and of the number of anchors; that these end at all is the test,
 * within its time. */
static void bombs_are_refused_at_once(void **state) {
  (void)state;
  static const char *const parts[] = {"[", "{a: ", "- ", "? ", "&a b, "};
  for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
    char *const text = repeated(parts[i], 500000 / strlen(parts[i]));
    if (i == 4) text[0] = '[';
    must_be_too_much(text);
    free(text);
  }
  char *const deep = repeated("[", 33);
  must_be_too_much(deep);
  free(deep);
}

static void every_failing_allocation_is_reported(void **state) {
  (void)state;
  esp_status status = ESP_ERR_MEMORY;
  int64_t calls = 0;
  for (; status != ESP_OK && calls < 1000; calls++) {
    struct settings settings = {.threads = 77};
    char *text = NULL;
    static const char *const overrides[] = {"model.experts=5"};
    esp_alloc_fail_after(calls);
    status = esp_yaml_load(&settings,
                           &(esp_yaml_options){.config_size = sizeof settings,
                                               .schema = &schema,
                                               .defaults = &defaults,
                                               .overrides = overrides,
                                               .override_count = 1},
                           "c.yaml", saved_defaults);
    if (status == ESP_OK) status = esp_yaml_save(&text, &settings, &schema);
    esp_alloc_fail_after(-1);
    esp_free(text);
    if (status != ESP_OK) assert_int_equal(status, ESP_ERR_MEMORY);
  }
  assert_in_range(calls, 4, 999);
}

/* ---- Programmers' mistakes ---- */

static void must_panic(const cyaml_schema_value_t *wrong) {
  const pid_t child = fork();
  if (child == 0) {
    (void)freopen("/dev/null", "w", stderr);
    (void)signal(SIGABRT, SIG_DFL); /* instead of cmocka's handler */
    struct settings settings;
    (void)esp_yaml_load(&settings,
                        &(esp_yaml_options){.config_size = sizeof settings, .schema = wrong, .defaults = &defaults},
                        NULL, NULL);
    _exit(0);
  }
  int status = 0;
  assert_int_equal(waitpid(child, &status, 0), child);
  assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
}

static void schemas_with_pointers_panic(void **state) {
  (void)state;
  static const cyaml_schema_value_t flat = {CYAML_VALUE_MAPPING(CYAML_FLAG_DEFAULT, struct settings, settings_fields)};
  static const cyaml_schema_value_t smaller = {CYAML_VALUE_MAPPING(CYAML_FLAG_POINTER, struct model, model_fields)};
  static const cyaml_schema_field_t endless_fields[] = {
      CYAML_FIELD_SEQUENCE("layers", CYAML_FLAG_POINTER, struct model, layers, &unsigned_entry, 0, MOST_LAYERS),
      CYAML_FIELD_END};
  static const cyaml_schema_value_t endless = {
      CYAML_VALUE_MAPPING(CYAML_FLAG_POINTER, struct settings, endless_fields)};
  must_panic(&flat);
  must_panic(&smaller);
  must_panic(&endless);
}

/* ---- Files ---- */

static char folder[256], path[300];

static int make_folder(void **state) {
  (void)state;
  const char *base = getenv("TMPDIR");
  snprintf(folder, sizeof folder, "%s/espalier_yaml_XXXXXX", base ? base : "/tmp");
  if (!mkdtemp(folder)) return -1;
  snprintf(path, sizeof path, "%s/c.yaml", folder);
  return 0;
}

static int remove_folder(void **state) {
  (void)state;
  (void)unlink(path);
  return rmdir(folder);
}

static void write_file(const char *bytes, size_t count, size_t times) {
  FILE *file = fopen(path, "wb");
  assert_non_null(file);
  for (size_t i = 0; i < times; i++) assert_int_equal(fwrite(bytes, 1, count, file), count);
  assert_int_equal(fclose(file), 0);
}

static esp_status load_file(struct settings *settings, const char *name) {
  return esp_yaml_load_file(
      settings, &(esp_yaml_options){.config_size = sizeof *settings, .schema = &schema, .defaults = &defaults}, name);
}

static void files_are_loaded(void **state) {
  (void)state;
  struct settings settings;
  write_file("threads: 6\n", 11, 1);
  assert_int_equal(load_file(&settings, path), ESP_OK);
  assert_int_equal(settings.threads, 6);
}

static void bad_files_are_named(void **state) {
  (void)state;
  struct settings settings;
  char message[512];
  assert_int_equal(load_file(&settings, folder), ESP_ERR_USAGE);
  snprintf(message, sizeof message, "%s: is a folder; expected a file of settings", folder);
  assert_string_equal(esp_error_message(), message);

  (void)unlink(path);
  assert_int_equal(load_file(&settings, path), ESP_ERR_NOT_FOUND);
  snprintf(message, sizeof message, "%s: cannot be opened: No such file or directory; expected a file of settings",
           path);
  assert_string_equal(esp_error_message(), message);

  write_file("#comment\n#a line\n", 17, 1 << 16);
  assert_int_equal(load_file(&settings, path), ESP_ERR_CONFIG);
  snprintf(message, sizeof message, "%s: is larger than 1048576 bytes; expected a file of settings", path);
  assert_string_equal(esp_error_message(), message);

  write_file("threads: 6\n\0x", 13, 1);
  assert_int_equal(load_file(&settings, path), ESP_ERR_CONFIG);
  snprintf(message, sizeof message, "%s, byte 11: not valid YAML: control characters are not allowed", path);
  assert_string_equal(esp_error_message(), message);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(defaults_alone_are_copied),
      cmocka_unit_test(text_overlays_defaults),
      cmocka_unit_test(aliases_are_resolved),
      cmocka_unit_test(leading_zeros_mean_nothing),
      cmocka_unit_test(overrides_come_last_and_in_order),
      cmocka_unit_test(config_may_be_its_own_defaults),
      cmocka_unit_test(floats_keep_their_bits),
      cmocka_unit_test(texts_keep_their_bytes),
      cmocka_unit_test(what_yaml_cannot_hold_is_not_saved),
      cmocka_unit_test(unknown_keys_are_named),
      cmocka_unit_test(doubled_keys_are_refused),
      cmocka_unit_test(wrong_types_are_named),
      cmocka_unit_test(bad_overrides_are_wrong_usage),
      cmocka_unit_test(bad_yaml_is_located),
      cmocka_unit_test(mangled_texts_do_no_harm),
      cmocka_unit_test(bombs_are_refused_at_once),
      cmocka_unit_test(every_failing_allocation_is_reported),
      cmocka_unit_test(schemas_with_pointers_panic),
      cmocka_unit_test_setup_teardown(files_are_loaded, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(bad_files_are_named, make_folder, remove_folder),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
