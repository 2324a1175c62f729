#include "yaml_internal.h"

/* Looks for `key` in all sections; sets `path` to the first that has it. */
static bool find_elsewhere(char path[PATH_SIZE], const schema_value *section, const char *section_path,
                           const char *key) {
  for (const schema_field *field = section->mapping.fields; field->key; field++) {
    char field_path[PATH_SIZE];
    join_path(field_path, section_path, field->key);
    if (strcmp(field->key, key) == 0) {
      memcpy(path, field_path, sizeof field_path);
      return true;
    }
    if (field->value.type == CYAML_MAPPING && find_elsewhere(path, &field->value, field_path, key)) return true;
  }
  return false;
}

static void start_message(phrase *to, const overlay *layer, const yaml_mark_t *mark) {
  if (layer->is_override) esp_phrase_add(to, "setting %.120s: ", layer->name);
  else esp_phrase_add(to, "%s, line %zu: ", layer->name, mark->line + 1);
}

static bool is_empty(const yaml_node_t *node) {
  return node->type == YAML_SCALAR_NODE && node->data.scalar.style == YAML_PLAIN_SCALAR_STYLE &&
         node->data.scalar.length == 0;
}

static void add_finding(phrase *to, const yaml_node_t *node) {
  if (is_empty(node)) esp_phrase_add(to, "empty");
  else if (node->type == YAML_SCALAR_NODE) esp_phrase_add(to, "\"%.60s\"", (const char *)node->data.scalar.value);
  else if (node->type == YAML_SEQUENCE_NODE) esp_phrase_add(to, "a list of %zu", item_count(node));
  else esp_phrase_add(to, "a section");
}

static const char *nearest_name(const schema_value *schema, const char *text) {
  const char *names[MOST_KEYS];
  size_t count = 0;
  for (; count < schema->enumeration.count && count < MOST_KEYS; count++)
    names[count] = schema->enumeration.strings[count].str;
  return esp_nearest(text, names, count);
}

static esp_status fail_value(const overlay *layer, const char *path, const schema_value *schema,
                             const yaml_node_t *node) {
  phrase message = {0};
  start_message(&message, layer, &node->start_mark);
  esp_phrase_add(&message, "\"%s\" is ", path);
  add_finding(&message, node);
  esp_phrase_add(&message, "; expected ");
  esp_schema_add_expectation(&message, schema);
  const char *text = scalar_text(node);
  (void)esp_fail(ESP_ERR_CONFIG, "%s", message.text);
  return esp_suggest(ESP_ERR_CONFIG, schema->type == CYAML_ENUM && text ? nearest_name(schema, text) : NULL);
}

static const char *nearest_key(const schema_value *section, const char *key) {
  const char *keys[MOST_KEYS];
  size_t count = 0;
  for (const schema_field *field = section->mapping.fields; field->key; field++) keys[count++] = field->key;
  return esp_nearest(key, keys, count);
}

static esp_status fail_unknown_key(const overlay *layer, const char *section_path, const schema_value *section,
                                   const yaml_node_t *node, const char *key) {
  char path[PATH_SIZE], elsewhere[PATH_SIZE];
  join_path(path, section_path, key);
  phrase place = {0}, known = {0};
  start_message(&place, layer, &node->start_mark);
  if (*section_path) esp_phrase_add(&known, " of \"%s\"", section_path);
  esp_phrase_add(&known, ": ");
  esp_schema_add_keys(&known, section);
  const char *near = find_elsewhere(elsewhere, layer->schema, "", key) ? elsewhere : nearest_key(section, key);
  (void)esp_fail(ESP_ERR_CONFIG, "%sunknown key \"%s\"", place.text, path);
  (void)esp_suggest(ESP_ERR_CONFIG, near);
  return esp_fail(ESP_ERR_CONFIG, "%s%s Known keys%s", esp_error_message(), near ? "" : ".", known.text);
}

static esp_status check_node(overlay *layer, const char *path, const schema_value *schema, yaml_node_t *node);

static esp_status check_pair(overlay *layer, const char *path, const schema_value *schema, const yaml_node_t *section,
                             size_t index) {
  const yaml_node_pair_t pair = section->data.mapping.pairs.start[index];
  const yaml_node_t *key = node_at(&layer->document, pair.key);
  const char *name = scalar_text(key);
  const schema_field *field = name ? esp_schema_field(schema, name) : NULL;
  if (!field) return fail_unknown_key(layer, path, schema, key, name ? name : "(not a word)");
  char field_path[PATH_SIZE];
  join_path(field_path, path, name);
  if (find_pair(&layer->document, section, index, name)) {
    phrase message = {0};
    start_message(&message, layer, &key->start_mark);
    return esp_fail(ESP_ERR_CONFIG, "%sthe key \"%s\" is there for the second time; remove one", message.text,
                    field_path);
  }
  return check_node(layer, field_path, &field->value, node_at(&layer->document, pair.value));
}

static esp_status check_section(overlay *layer, const char *path, const schema_value *schema, const yaml_node_t *node) {
  if (is_empty(node)) return ESP_OK; /* "model:" with all its lines commented out */
  if (node->type != YAML_MAPPING_NODE) return fail_value(layer, *path ? path : "the document", schema, node);
  for (size_t i = 0; i < pair_count(node); i++) ESP_TRY(check_pair(layer, path, schema, node, i));
  return ESP_OK;
}

static esp_status check_list(overlay *layer, const char *path, const schema_value *schema, const yaml_node_t *node) {
  if (node->type != YAML_SEQUENCE_NODE || item_count(node) < schema->sequence.min ||
      item_count(node) > schema->sequence.max)
    return fail_value(layer, path, schema, node);
  for (size_t i = 0; i < item_count(node); i++) {
    char entry_path[PATH_SIZE];
    snprintf(entry_path, sizeof entry_path, "%.200s[%zu]", path, i);
    yaml_node_t *item = node_at(&layer->document, node->data.sequence.items.start[i]);
    ESP_TRY(check_node(layer, entry_path, schema->sequence.entry, item));
  }
  return ESP_OK;
}

/* Takes a number's leading zeros out of the document. */
static void drop_zeros(const schema_value *schema, yaml_node_t *node) {
  char *text = (char *)node->data.scalar.value;
  if (*text == '+' || *text == '-') text++;
  const size_t zeros = esp_schema_zeros(schema, text);
  memmove(text, text + zeros, strlen(text) + 1 - zeros);
  node->data.scalar.length -= zeros;
}

static esp_status check_node(overlay *layer, const char *path, const schema_value *schema, yaml_node_t *node) {
  if (schema->type == CYAML_MAPPING) return check_section(layer, path, schema, node);
  if (is_list(schema)) return check_list(layer, path, schema, node);
  const char *text = scalar_text(node);
  if (!text || !esp_schema_fits(schema, text)) return fail_value(layer, path, schema, node);
  drop_zeros(schema, node);
  return ESP_OK;
}

esp_status esp_yaml_check(overlay *layer) {
  return check_section(layer, "", layer->schema, node_at(&layer->document, layer->root));
}
