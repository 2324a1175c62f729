#include <espalier/yaml.h>

#include "yaml_internal.h"

typedef struct key_walk {
  esp_yaml_key_visitor *visit;
  void *context;
  yaml_document_t *document;
} key_walk;

static esp_status visit_keys(const key_walk *walk, const char *path, const yaml_node_t *node) {
  if (node->type != YAML_MAPPING_NODE) return walk->visit(walk->context, path);
  for (size_t i = 0; i < pair_count(node); i++) {
    const yaml_node_pair_t pair = node->data.mapping.pairs.start[i];
    const char *name = scalar_text(node_at(walk->document, pair.key));
    char inner[PATH_SIZE];
    join_path(inner, path, name ? name : "");
    ESP_TRY(visit_keys(walk, inner, node_at(walk->document, pair.value)));
  }
  return ESP_OK;
}

esp_status esp_yaml_visit_keys(const char *path, const char *text, esp_yaml_key_visitor *visit, void *context) {
  yaml_parser_t parser;
  yaml_document_t document;
  if (!yaml_parser_initialize(&parser)) return fail_memory();
  yaml_parser_set_input_string(&parser, (const unsigned char *)text, strlen(text));
  const bool parsed = yaml_parser_load(&parser, &document);
  yaml_parser_delete(&parser);
  if (!parsed) return fail_memory(); /* it has been parsed before */
  const key_walk walk = {visit, context, &document};
  const yaml_node_t *root = yaml_document_get_root_node(&document);
  const esp_status status = root ? visit_keys(&walk, path, root) : ESP_OK;
  yaml_document_delete(&document);
  return status;
}

esp_status esp_yaml_visit_override(const char *override, esp_yaml_key_visitor *visit, void *context) {
  const char *equals = strchr(override, '=');
  char path[PATH_SIZE];
  snprintf(path, sizeof path, "%.*s", equals ? (int)(equals - override) : 0, override);
  return esp_yaml_visit_keys(path, equals ? equals + 1 : "", visit, context);
}
