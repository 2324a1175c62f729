#include <espalier/yaml.h>

#include "yaml_internal.h"
#include <espalier/input_file.h>
#include <espalier/memory.h>

#include <errno.h>
#include <locale.h>

enum { FILE_LIMIT = 1 << 20, DEEPEST = 32, MOST_NODES = 1 << 15, MOST_ANCHORS = 256 };

/* A growing text, always terminated. */
typedef struct text_buffer {
  char *bytes;
  size_t length, capacity;
} text_buffer;

static int append_bytes(void *context, unsigned char *bytes, size_t count) {
  text_buffer *buffer = context;
  if (buffer->length + count + 1 > buffer->capacity) {
    const size_t capacity = 2 * buffer->capacity + count + 1;
    char *grown = esp_alloc(capacity, 1);
    if (!grown) return 0;
    if (buffer->length) memcpy(grown, buffer->bytes, buffer->length);
    esp_free(buffer->bytes);
    buffer->bytes = grown;
    buffer->capacity = capacity;
  }
  memcpy(buffer->bytes + buffer->length, bytes, count);
  buffer->length += count;
  buffer->bytes[buffer->length] = '\0';
  return 1;
}

/* ---- What libcyaml is given ---- */

enum { BLOCK_HEADER = 64 }; /* keeps the size of a block in front of it, aligned */

static void *resize_block(void *context, void *block, size_t size) {
  (void)context;
  char *old = block ? (char *)block - BLOCK_HEADER : NULL;
  char *fresh = NULL;
  if (size) {
    fresh = esp_alloc(1, size + BLOCK_HEADER);
    if (!fresh) return NULL;
    memcpy(fresh, &size, sizeof size);
  }
  if (old && fresh) {
    size_t old_size;
    memcpy(&old_size, old, sizeof old_size);
    memcpy(fresh + BLOCK_HEADER, block, old_size < size ? old_size : size);
  }
  esp_free(old);
  return fresh ? fresh + BLOCK_HEADER : NULL;
}

ESP_PRINTF(3, 0)
static void keep_log_line(cyaml_log_t level, void *context, const char *format, va_list arguments) {
  (void)level;
  phrase *log = context;
  esp_phrase_add_list(log, format, arguments);
  while (log->length && log->text[log->length - 1] == '\n') log->text[--log->length] = '\0';
  esp_phrase_add(log, "; ");
}

/* Loads `text`, which has passed the schema, into a fresh struct; *loaded is from resize_block(). */
static esp_status load_struct(cyaml_data_t **loaded, const schema_value *schema, const text_buffer *text) {
  phrase log = {0};
  const cyaml_config_t settings = {.log_fn = keep_log_line,
                                   .log_ctx = &log,
                                   .mem_fn = resize_block,
                                   .log_level = CYAML_LOG_ERROR,
                                   .flags = CYAML_CFG_NO_ALIAS};
  const cyaml_err_t error =
      cyaml_load_data((const uint8_t *)text->bytes, text->length, &settings, schema, loaded, NULL);
  if (error == CYAML_OK) return ESP_OK;
  if (error == CYAML_ERR_OOM) return fail_memory();
  return esp_fail(ESP_ERR_CONFIG, "the settings cannot be loaded: %s (%s)", cyaml_strerror(error), log.text);
}

/* ---- Parsing ---- */

/* An override has one line, which the message shows anyway. */
static void add_place(phrase *to, const overlay *layer, const yaml_mark_t *mark) {
  if (layer->is_override) esp_phrase_add(to, "setting %.120s", layer->name);
  else esp_phrase_add(to, "%s, line %zu, column %zu", layer->name, mark->line + 1, mark->column + 1);
}

static esp_status fail_parse(const yaml_parser_t *parser, const overlay *layer) {
  if (parser->error == YAML_MEMORY_ERROR) return fail_memory();
  phrase message = {0};
  if (parser->error == YAML_READER_ERROR)
    esp_phrase_add(&message, "%s%s, byte %zu", layer->is_override ? "setting " : "", layer->name,
                   parser->problem_offset);
  else add_place(&message, layer, &parser->problem_mark);
  esp_phrase_add(&message, ": not valid YAML: %s", parser->problem);
  if (parser->context)
    esp_phrase_add(&message, " (%s that began on line %zu)", parser->context, parser->context_mark.line + 1);
  return esp_fail(ESP_ERR_CONFIG, "%s", message.text);
}

/* What a text has so far, event by event. */
typedef struct extent {
  int depth, nodes, anchors;
} extent;

static void count_event(extent *e, const yaml_event_t *event) {
  const bool opens = event->type == YAML_SEQUENCE_START_EVENT || event->type == YAML_MAPPING_START_EVENT;
  const bool closes = event->type == YAML_SEQUENCE_END_EVENT || event->type == YAML_MAPPING_END_EVENT;
  e->depth += opens - closes;
  e->nodes += opens || event->type == YAML_SCALAR_EVENT || event->type == YAML_ALIAS_EVENT;
  e->anchors += (event->type == YAML_SCALAR_EVENT && event->data.scalar.anchor) ||
                (event->type == YAML_SEQUENCE_START_EVENT && event->data.sequence_start.anchor) ||
                (event->type == YAML_MAPPING_START_EVENT && event->data.mapping_start.anchor);
}

/* libyaml takes time that grows with the square of the depth and of the number of anchors: 500 KB of `[` take 20 s.
 * What is not YAML ends the look, for the parser to say what is wrong. */
static esp_status check_extent(const overlay *layer, const char *text, size_t length) {
  yaml_parser_t parser;
  yaml_event_t event;
  extent e = {0};
  phrase place = {0};
  if (!yaml_parser_initialize(&parser)) return fail_memory();
  yaml_parser_set_input_string(&parser, (const unsigned char *)text, length);
  bool ends = false;
  while (!ends && e.depth <= DEEPEST && e.nodes <= MOST_NODES && e.anchors <= MOST_ANCHORS) {
    if (!yaml_parser_parse(&parser, &event)) break;
    ends = event.type == YAML_STREAM_END_EVENT;
    count_event(&e, &event);
    yaml_event_delete(&event);
  }
  add_place(&place, layer, &parser.mark);
  yaml_parser_delete(&parser);
  if (e.depth <= DEEPEST && e.nodes <= MOST_NODES && e.anchors <= MOST_ANCHORS) return ESP_OK;
  return esp_fail(ESP_ERR_CONFIG, "%s: more than %d levels, %d values or %d anchors; expected settings", place.text,
                  DEEPEST, MOST_NODES, MOST_ANCHORS);
}

static esp_status expect_end(yaml_parser_t *parser, const overlay *layer) {
  yaml_document_t next;
  if (!yaml_parser_load(parser, &next)) return fail_parse(parser, layer);
  const bool at_end = !yaml_document_get_root_node(&next);
  phrase place = {0};
  add_place(&place, layer, &next.start_mark);
  yaml_document_delete(&next);
  if (at_end) return ESP_OK;
  return esp_fail(ESP_ERR_CONFIG, "%s: a second YAML document begins; expected only one", place.text);
}

/* On success the caller deletes layer->document. */
static esp_status parse_document(overlay *layer, const char *text, size_t length) {
  yaml_parser_t parser;
  ESP_TRY(check_extent(layer, text, length));
  if (!yaml_parser_initialize(&parser)) return fail_memory();
  yaml_parser_set_input_string(&parser, (const unsigned char *)text, length);
  esp_status status;
  if (!yaml_parser_load(&parser, &layer->document)) {
    status = fail_parse(&parser, layer);
  } else {
    layer->root = yaml_document_get_root_node(&layer->document) != NULL;
    status = layer->root ? expect_end(&parser, layer) : ESP_OK;
    if (status != ESP_OK) yaml_document_delete(&layer->document);
  }
  yaml_parser_delete(&parser);
  return status;
}

/* Wraps the root in {key: root}. */
static bool wrap_root(overlay *layer, const char *key, size_t length) {
  const int section = yaml_document_add_mapping(&layer->document, NULL, YAML_BLOCK_MAPPING_STYLE);
  const int name = section ? add_text(&layer->document, key, length) : 0;
  const bool done = name && yaml_document_append_mapping_pair(&layer->document, section, name, layer->root);
  layer->root = section;
  return done;
}

/* Turns the value V of an override "a.b.c=V" into {a: {b: {c: V}}}. */
static esp_status wrap_in_sections(overlay *layer, const char *path, size_t length) {
  if (!layer->root) layer->root = add_text(&layer->document, "", 0);
  bool done = layer->root != 0;
  for (size_t end = length; done; end--) {
    size_t start = end;
    while (start && path[start - 1] != '.') start--;
    done = wrap_root(layer, path + start, end - start);
    end = start;
    if (!start) break;
  }
  return done ? ESP_OK : fail_memory();
}

static bool is_key_path(const char *path, size_t length) {
  static const char letters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-";
  bool at_start = true; /* of a key */
  for (size_t i = 0; i < length; i++) {
    const bool is_dot = path[i] == '.';
    if (is_dot ? at_start : !strchr(letters, path[i])) return false;
    at_start = is_dot;
  }
  return !at_start;
}

static esp_status parse_override(overlay *layer) {
  const char *equals = strchr(layer->name, '=');
  const size_t length = equals ? (size_t)(equals - layer->name) : 0;
  if (!equals || !is_key_path(layer->name, length))
    return esp_fail(ESP_ERR_USAGE, "setting %.120s: expected key=value with a key like section.name", layer->name);
  ESP_TRY(parse_document(layer, equals + 1, strlen(equals + 1)));
  const esp_status status = wrap_in_sections(layer, layer->name, length);
  if (status != ESP_OK) yaml_document_delete(&layer->document);
  return status;
}

/* ---- Merging: builds a new document, node by node; 0 stands for "out of memory" ---- */

static int copy_text(yaml_document_t *to, const yaml_node_t *node) {
  return add_text(to, (const char *)node->data.scalar.value, node->data.scalar.length);
}

static int copy_value(yaml_document_t *to, yaml_document_t *from, const yaml_node_t *node) {
  if (node->type == YAML_SCALAR_NODE) return copy_text(to, node);
  const int list = yaml_document_add_sequence(to, NULL, YAML_FLOW_SEQUENCE_STYLE);
  for (size_t i = 0; list && i < item_count(node); i++) {
    const int item = copy_text(to, node_at(from, node->data.sequence.items.start[i]));
    if (!item || !yaml_document_append_sequence_item(to, list, item)) return 0;
  }
  return list;
}

/* `base` overlaid by `over` (NULL: nothing), which has passed the schema, so that lists hold scalars. */
static int merge_node(yaml_document_t *to, yaml_document_t *base_document, const yaml_node_t *base,
                      yaml_document_t *over_document, const yaml_node_t *over) {
  if (base->type != YAML_MAPPING_NODE)
    return over ? copy_value(to, over_document, over) : copy_value(to, base_document, base);
  const size_t over_count = over && over->type == YAML_MAPPING_NODE ? pair_count(over) : 0;
  const int section = yaml_document_add_mapping(to, NULL, YAML_BLOCK_MAPPING_STYLE);
  for (size_t i = 0; section && i < pair_count(base); i++) {
    const yaml_node_pair_t pair = base->data.mapping.pairs.start[i];
    const yaml_node_t *key = node_at(base_document, pair.key);
    const int other = over_count ? find_pair(over_document, over, over_count, scalar_text(key)) : 0;
    const int name = copy_text(to, key);
    const int value = merge_node(to, base_document, node_at(base_document, pair.value), over_document,
                                 other ? node_at(over_document, other) : NULL);
    if (!name || !value || !yaml_document_append_mapping_pair(to, section, name, value)) return 0;
  }
  return section;
}

/* Replaces *base by itself overlaid by `layer`. */
static esp_status merge_overlay(yaml_document_t *base, overlay *layer) {
  yaml_document_t merged;
  if (!yaml_document_initialize(&merged, NULL, NULL, NULL, 1, 1)) return fail_memory();
  const yaml_node_t *over = node_at(&layer->document, layer->root);
  const bool done = merge_node(&merged, base, yaml_document_get_root_node(base), &layer->document, over) != 0;
  yaml_document_delete(done ? base : &merged);
  if (!done) return fail_memory();
  *base = merged;
  return ESP_OK;
}

/* Checks and merges one layer on top of *base. */
static esp_status apply_overlay(yaml_document_t *base, overlay *layer, const char *text, size_t length) {
  ESP_TRY(layer->is_override ? parse_override(layer) : parse_document(layer, text, length));
  esp_status status = ESP_OK;
  if (layer->root) {
    status = esp_yaml_check(layer);
    if (status == ESP_OK) status = merge_overlay(base, layer);
  }
  yaml_document_delete(&layer->document);
  return status;
}

/* Appends the text of *document, which is deleted in any case. */
static esp_status print_document(text_buffer *text, yaml_document_t *document) {
  yaml_emitter_t emitter;
  if (!yaml_emitter_initialize(&emitter)) {
    yaml_document_delete(document);
    return fail_memory();
  }
  yaml_emitter_set_output(&emitter, append_bytes, text);
  yaml_emitter_set_unicode(&emitter, 1);
  yaml_emitter_set_width(&emitter, -1);
  const bool done = yaml_emitter_dump(&emitter, document) && yaml_emitter_flush(&emitter);
  yaml_emitter_delete(&emitter);
  return done ? ESP_OK : fail_memory();
}

/* ---- The public functions ---- */

/* Numbers are written with a point in all locales; this sets the thread's. Returns what leave_locale() takes. */
static locale_t enter_c_locale(void) {
  const locale_t c = newlocale(LC_ALL_MASK, "C", (locale_t)0);
  return c ? uselocale(c) : (locale_t)0;
}

static void leave_c_locale(locale_t before) {
  if (before) freelocale(uselocale(before));
}

typedef struct request {
  esp_yaml_options options;
  const char *name, *text;
  size_t length;
} request;

static esp_status apply_overlays(yaml_document_t *document, const request *wanted) {
  if (wanted->text) {
    overlay file = {.name = wanted->name, .schema = wanted->options.schema};
    ESP_TRY(apply_overlay(document, &file, wanted->text, wanted->length));
  }
  for (size_t i = 0; i < wanted->options.override_count; i++) {
    overlay override = {.name = wanted->options.overrides[i], .schema = wanted->options.schema, .is_override = true};
    ESP_TRY(apply_overlay(document, &override, NULL, 0));
  }
  return ESP_OK;
}

static esp_status resolve(text_buffer *text, const request *wanted) {
  yaml_document_t document;
  ESP_TRY(esp_schema_document(&document, wanted->options.schema, wanted->options.defaults, (key_filter){0}));
  const esp_status status = apply_overlays(&document, wanted);
  if (status == ESP_OK) return print_document(text, &document);
  yaml_document_delete(&document);
  return status;
}

static esp_status load(void *config, const request *wanted) {
  const size_t config_size = wanted->options.config_size;
  esp_schema_check(wanted->options.schema);
  if (wanted->options.schema->data_size != config_size)
    esp_panic("a settings struct of %zu bytes was given with a schema of one of %u bytes", config_size,
              wanted->options.schema->data_size);
  const locale_t locale = enter_c_locale();
  text_buffer text = {0};
  cyaml_data_t *loaded = NULL;
  esp_status status = resolve(&text, wanted);
  if (status == ESP_OK) status = load_struct(&loaded, wanted->options.schema, &text);
  if (status == ESP_OK) memcpy(config, loaded, config_size);
  resize_block(NULL, loaded, 0);
  esp_free(text.bytes);
  leave_c_locale(locale);
  return status;
}

esp_status esp_yaml_load(void *config, const esp_yaml_options *options, const char *name, const char *text) {
  return load(config, &(request){*options, name, text, text ? strlen(text) : 0});
}

esp_status esp_yaml_load_file(void *config, const esp_yaml_options *options, const char *path) {
  char *text = NULL;
  size_t length = 0;
  esp_status status = esp_input_read(&text, &length, path, "a file of settings", FILE_LIMIT);
  if (status == ESP_OK) status = load(config, &(request){*options, path, text, length});
  esp_free(text);
  return status;
}

esp_status esp_yaml_visit_file(const char *path, esp_yaml_key_visitor *visit, void *context) {
  char *text = NULL;
  size_t length = 0;
  esp_status status = esp_input_read(&text, &length, path, "a file of settings", FILE_LIMIT);
  if (status == ESP_OK) status = esp_yaml_visit_keys("", text, visit, context);
  esp_free(text);
  return status;
}

esp_status esp_yaml_save_some(char **text, const void *config, const struct cyaml_schema_value *schema,
                              esp_yaml_key_filter *keep, void *context) {
  esp_schema_check(schema);
  *text = NULL;
  const locale_t locale = enter_c_locale();
  text_buffer buffer = {0};
  yaml_document_t document;
  esp_status status = esp_schema_document(&document, schema, config, (key_filter){keep, context});
  if (status == ESP_OK) status = print_document(&buffer, &document);
  leave_c_locale(locale);
  if (status == ESP_OK) *text = buffer.bytes;
  else esp_free(buffer.bytes);
  return status;
}

esp_status esp_yaml_save(char **text, const void *config, const struct cyaml_schema_value *schema) {
  return esp_yaml_save_some(text, config, schema, NULL, NULL);
}
