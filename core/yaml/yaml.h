/* Settings from YAML: any plain struct, described by a libcyaml schema, is read as defaults, overlaid by a
 * file, overlaid by "key=value" overrides, and written back so that it reads to the same bits.
 *
 * A schema must be free of pointers below its top level, so that the struct is copied by assignment and
 * nothing in it is ever freed:
 *   top       CYAML_VALUE_MAPPING(CYAML_FLAG_POINTER, struct settings, fields)
 *   sections  CYAML_FIELD_MAPPING(key, CYAML_FLAG_DEFAULT, ...) on a struct member
 *   scalars   CYAML_FIELD_INT, _UINT, _BOOL, _ENUM; CYAML_FIELD_FLOAT on a double or a float
 *   texts     CYAML_FIELD_STRING(key, CYAML_FLAG_DEFAULT, struct, member, 0) on a char array
 *   lists     CYAML_FIELD_SEQUENCE(key, CYAML_FLAG_DEFAULT, struct, member, entry, min, max) on an array of
 *             `max` entries, with the count in `member_count`; or CYAML_FIELD_SEQUENCE_FIXED; the entries
 *             are scalars or texts
 * A schema that breaks these rules ends in esp_panic(). Members that it does not describe are loaded as zero. */
#ifndef ESPALIER_YAML_H
#define ESPALIER_YAML_H

#include <espalier/status.h>

#ifdef __cplusplus
extern "C" {
#endif

/* libcyaml's cyaml_schema_value_t, declared here so that users of this header need not have <cyaml/cyaml.h>. */
struct cyaml_schema_value;

typedef struct esp_yaml_options {
  size_t config_size;                      /* bytes of the settings struct ... */
  const struct cyaml_schema_value *schema; /* ... which the schema describes */
  const void *defaults;                    /* a struct of the same kind */
  const char *const *overrides;            /* [override_count] "section.key=value" */
  size_t override_count;
} esp_yaml_options;

/* Sets *config to the defaults, overlaid by the YAML document `text` (NULL or empty: none), overlaid by the
 * overrides in their order. Sections are
 * merged; scalars and lists are replaced whole. An override's value is YAML: "model.layers=[1, 3]".
 * `name` is how messages call the text: the name of its file. *config may be *defaults, and is left alone on
 * failure: ESP_ERR_CONFIG for what the text or an override holds (unknown or doubled key, wrong type, value
 * out of range, bad YAML; the message gives line or override and what was expected), ESP_ERR_USAGE for an
 * override without key or '=', ESP_ERR_MEMORY. */
ESP_API esp_status esp_yaml_load(void *config, const esp_yaml_options *options, const char *name, const char *text);

/* The same with the text of the file `path`, of at most 1 MiB; besides ESP_ERR_IO if it cannot be read. */
ESP_API esp_status esp_yaml_load_file(void *config, const esp_yaml_options *options, const char *path);

/* Sets *text to the whole struct as YAML, from esp_alloc(); the caller frees it. Loading it gives the same
 * bits. Fails with ESP_ERR_CONFIG if a number is not finite, an enum has no name or a text is not UTF-8;
 * *text is then NULL. */
ESP_API esp_status esp_yaml_save(char **text, const void *config, const struct cyaml_schema_value *schema);

/* ESP_ERR_CONFIG if a number of the struct is 0, 1 or infinite in single precision and is not so itself: a learning
 * rate of 1e-50 would train nothing, a dropout of 0.9999999999 drop everything. */
ESP_API esp_status esp_yaml_check_single(const void *config, const struct cyaml_schema_value *schema);

/* Whether the key "section.key" is wanted. */
typedef bool esp_yaml_key_filter(void *context, const char *key);

/* esp_yaml_save() of the keys that `keep` says. What is left out has its default when the text is loaded. */
ESP_API esp_status esp_yaml_save_some(char **text, const void *config, const struct cyaml_schema_value *schema,
                                      esp_yaml_key_filter *keep, void *context);

/* Called for each key that has a value, as "section.key"; what is not ESP_OK ends the visit and is returned. */
typedef esp_status esp_yaml_key_visitor(void *context, const char *key);

/* Visits the keys of a YAML document that esp_yaml_load() has accepted, in its order. `path` is what they stand in; ""
 * for a whole document. Besides the visitor's status ESP_ERR_MEMORY. */
ESP_API esp_status esp_yaml_visit_keys(const char *path, const char *text, esp_yaml_key_visitor *visit, void *context);

/* The same with the file `path`; besides ESP_ERR_IO. */
ESP_API esp_status esp_yaml_visit_file(const char *path, esp_yaml_key_visitor *visit, void *context);

/* The same with an override "section.key=value". */
ESP_API esp_status esp_yaml_visit_override(const char *override, esp_yaml_key_visitor *visit, void *context);

#ifdef __cplusplus
}
#endif
#endif
