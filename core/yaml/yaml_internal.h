/* How settings' YAML is handled: libcyaml loads whole documents and cannot overlay one on another. So the
 * overlaying happens on libyaml's document trees: the defaults (yaml_schema.c makes the tree of a struct), then
 * file and overrides, each checked against the schema for messages with lines and names (yaml_check.c), and
 * merged; the merged text is what libcyaml loads (yaml.c). */
#ifndef ESPALIER_YAML_INTERNAL_H
#define ESPALIER_YAML_INTERNAL_H

#include <espalier/status.h>
#include <espalier/yaml.h>

#include <cyaml/cyaml.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <yaml.h>

typedef cyaml_schema_value_t schema_value;
typedef cyaml_schema_field_t schema_field;

enum { PATH_SIZE = 256, PHRASE_SIZE = 1024, MOST_KEYS = 256 };

/* Part of a message; what does not fit is cut off. */
typedef struct phrase {
  size_t length;
  char text[PHRASE_SIZE];
} phrase;

void esp_phrase_add(phrase *to, const char *format, ...) ESP_PRINTF(2, 3);
void esp_phrase_add_list(phrase *to, const char *format, va_list arguments) ESP_PRINTF(2, 0);

static inline esp_status fail_memory(void) {
  return esp_fail(ESP_ERR_MEMORY, "out of memory while handling the settings' YAML");
}

/* Sets `path` to "section.key"; the top section's path is "". */
static inline void join_path(char path[PATH_SIZE], const char *section, const char *key) {
  snprintf(path, PATH_SIZE, "%s%s%s", section, *section ? "." : "", key);
}

/* ---- Schemas ---- */

static inline bool is_list(const schema_value *schema) {
  return schema->type == CYAML_SEQUENCE || schema->type == CYAML_SEQUENCE_FIXED;
}

/* Panics unless `schema` keeps the rules of <espalier/yaml.h>. */
void esp_schema_check(const schema_value *schema);

/* NULL if the section has no such key. */
const schema_field *esp_schema_field(const schema_value *section, const char *key);

/* "a, b, c", and "a whole number from 0 to 255". */
void esp_schema_add_keys(phrase *to, const schema_value *section);
void esp_schema_add_expectation(phrase *to, const schema_value *schema);

/* Whether `text` is a value of the scalar that `schema` describes. */
bool esp_schema_fits(const schema_value *schema, const char *text);

/* Leading zeros that a value that fits begins with, behind its sign: YAML 1.2 has them mean nothing, but
 * libcyaml would take what follows them for octal. */
size_t esp_schema_zeros(const schema_value *schema, const char *text);

typedef struct key_filter {
  esp_yaml_key_filter *keep; /* NULL: all keys */
  void *context;
} key_filter;

/* Makes the document of the struct `config`, with the keys that `filter` keeps. On success the caller deletes
 * *document. */
esp_status esp_schema_document(yaml_document_t *document, const schema_value *schema, const void *config,
                               key_filter filter);

/* ---- Documents ---- */

static inline yaml_node_t *node_at(yaml_document_t *document, int number) {
  return yaml_document_get_node(document, number);
}

static inline size_t pair_count(const yaml_node_t *node) {
  return (size_t)(node->data.mapping.pairs.top - node->data.mapping.pairs.start);
}

static inline size_t item_count(const yaml_node_t *node) {
  return (size_t)(node->data.sequence.items.top - node->data.sequence.items.start);
}

/* The text of a scalar; NULL for other nodes and for texts with a zero byte. */
static inline const char *scalar_text(const yaml_node_t *node) {
  if (node->type != YAML_SCALAR_NODE) return NULL;
  const char *text = (const char *)node->data.scalar.value;
  return strlen(text) == node->data.scalar.length ? text : NULL;
}

/* The number of the value of `key` among the first `count` pairs of a section; 0 if it is not there. */
static inline int find_pair(yaml_document_t *document, const yaml_node_t *section, size_t count, const char *key) {
  const yaml_node_pair_t *pairs = section->data.mapping.pairs.start;
  for (size_t i = 0; i < count; i++) {
    const char *name = scalar_text(node_at(document, pairs[i].key));
    if (name && strcmp(name, key) == 0) return pairs[i].value;
  }
  return 0;
}

/* Adds a scalar and returns its number; 0 if memory is short or the text is not UTF-8. */
static inline int add_text(yaml_document_t *document, const char *text, size_t length) {
  return yaml_document_add_scalar(document, NULL, (const unsigned char *)text, (int)length,
                                  length ? YAML_ANY_SCALAR_STYLE : YAML_SINGLE_QUOTED_SCALAR_STYLE);
}

/* One layer of settings above the defaults: a file's text or an override. */
typedef struct overlay {
  const char *name;
  bool is_override;
  const schema_value *schema;
  yaml_document_t document;
  int root; /* a node's number in `document`; 0 if there is none */
} overlay;

/* Fails, with the line and what was expected, if a key or value of the layer does not fit its schema. */
esp_status esp_yaml_check(overlay *layer);

#endif
