#include "yaml_internal.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>

enum { NUMBER_SIZE = 40 };

void esp_phrase_add_list(phrase *to, const char *format, va_list arguments) {
  const size_t room = sizeof to->text - to->length;
  const int length = vsnprintf(to->text + to->length, room, format, arguments);
  if (length > 0) to->length += (size_t)length < room ? (size_t)length : room - 1;
}

void esp_phrase_add(phrase *to, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  esp_phrase_add_list(to, format, arguments);
  va_end(arguments);
}

/* ---- Rules and words ---- */

static bool is_number_size(uint32_t size, cyaml_type_e type) {
  return size == 4 || size == 8 || (type != CYAML_FLOAT && (size == 1 || size == 2));
}

static void check_schema(const schema_value *schema, const char *key);

static void check_fields(const schema_field *fields) {
  size_t count = 0;
  for (; fields[count].key; count++) check_schema(&fields[count].value, fields[count].key);
  if (count > MOST_KEYS) esp_panic("a settings schema has a section of %zu keys; at most %d", count, MOST_KEYS);
}

static void check_schema(const schema_value *schema, const char *key) {
  bool good = !(schema->flags & CYAML_FLAG_POINTER);
  switch (schema->type) {
  case CYAML_MAPPING:
    check_fields(schema->mapping.fields);
    break;
  case CYAML_SEQUENCE:
  case CYAML_SEQUENCE_FIXED:
    good = good && schema->sequence.max != CYAML_UNLIMITED && !is_list(schema->sequence.entry) &&
           schema->sequence.entry->type != CYAML_MAPPING;
    check_schema(schema->sequence.entry, key);
    break;
  case CYAML_STRING:
    good = good && schema->string.max < schema->data_size;
    break;
  default:
    good = good && schema->type <= CYAML_FLOAT && schema->type != CYAML_FLAGS &&
           is_number_size(schema->data_size, schema->type);
  }
  if (!good) esp_panic("the settings schema of \"%s\" is not free of pointers; see espalier/yaml.h", key);
}

void esp_schema_check(const schema_value *schema) {
  if (schema->type != CYAML_MAPPING || !(schema->flags & CYAML_FLAG_POINTER))
    esp_panic("a settings schema must be a CYAML_VALUE_MAPPING with CYAML_FLAG_POINTER");
  check_fields(schema->mapping.fields);
}

const schema_field *esp_schema_field(const schema_value *section, const char *key) {
  for (const schema_field *field = section->mapping.fields; field->key; field++)
    if (strcmp(field->key, key) == 0) return field;
  return NULL;
}

void esp_schema_add_keys(phrase *to, const schema_value *section) {
  for (const schema_field *field = section->mapping.fields; field->key; field++)
    esp_phrase_add(to, "%s%s", field == section->mapping.fields ? "" : ", ", field->key);
}

static int64_t least_int(uint32_t size) { return size >= 8 ? INT64_MIN : -((int64_t)1 << (8 * size - 1)); }
static int64_t greatest_int(uint32_t size) { return -(least_int(size) + 1); }
static uint64_t greatest_uint(uint32_t size) { return size >= 8 ? UINT64_MAX : ((uint64_t)1 << (8 * size)) - 1; }

void esp_schema_add_expectation(phrase *to, const schema_value *schema) {
  const uint32_t size = schema->data_size;
  switch (schema->type) {
  case CYAML_INT:
    esp_phrase_add(to, "a whole number from %lld to %lld", (long long)least_int(size), (long long)greatest_int(size));
    break;
  case CYAML_UINT:
    esp_phrase_add(to, "a whole number from 0 to %llu", (unsigned long long)greatest_uint(size));
    break;
  case CYAML_FLOAT:
    esp_phrase_add(to, "a finite number");
    break;
  case CYAML_BOOL:
    esp_phrase_add(to, "true or false");
    break;
  case CYAML_ENUM:
    esp_phrase_add(to, "one of ");
    for (uint32_t i = 0; i < schema->enumeration.count; i++)
      esp_phrase_add(to, "%s%s", i ? ", " : "", schema->enumeration.strings[i].str);
    break;
  case CYAML_STRING:
    esp_phrase_add(to, "a text of %u to %u bytes", schema->string.min, schema->string.max);
    break;
  case CYAML_MAPPING:
    esp_phrase_add(to, "a section with keys among ");
    esp_schema_add_keys(to, schema);
    break;
  default:
    esp_phrase_add(to, "a list of ");
    if (schema->sequence.min < schema->sequence.max) esp_phrase_add(to, "%u to ", schema->sequence.min);
    esp_phrase_add(to, "%u entries, each ", schema->sequence.max);
    esp_schema_add_expectation(to, schema->sequence.entry);
  }
}

/* ---- Values ---- */

static bool is_digit(char c) { return c >= '0' && c <= '9'; }

static size_t digits(const char *text) {
  size_t count = 0;
  while (is_digit(text[count])) count++;
  return count;
}

static bool is_whole_number(const char *text) {
  if (*text == '+' || *text == '-') text++;
  const size_t count = digits(text);
  return count && !text[count];
}

static bool is_decimal_number(const char *text) {
  if (*text == '+' || *text == '-') text++;
  const size_t whole = digits(text);
  text += whole;
  const size_t fraction = *text == '.' ? digits(text + 1) : 0;
  if (*text == '.') text += 1 + fraction;
  if (!whole && !fraction) return false;
  if (*text == 'e' || *text == 'E') {
    text++;
    if (*text == '+' || *text == '-') text++;
    const size_t exponent = digits(text);
    if (!exponent) return false;
    text += exponent;
  }
  return !*text;
}

static bool fits_int(const char *text, uint32_t size) {
  errno = 0;
  const long long value = strtoll(text, NULL, 10);
  return is_whole_number(text) && !errno && value >= least_int(size) && value <= greatest_int(size);
}

static bool fits_uint(const char *text, uint32_t size) {
  errno = 0;
  const unsigned long long value = strtoull(text, NULL, 10);
  return is_whole_number(text) && *text != '-' && !errno && value <= greatest_uint(size);
}

static bool fits_float(const char *text, uint32_t size) {
  if (!is_decimal_number(text)) return false;
  return size == sizeof(float) ? isfinite(strtof(text, NULL)) : isfinite(strtod(text, NULL));
}

static bool is_name(const char *text, const schema_value *schema) {
  for (uint32_t i = 0; i < schema->enumeration.count; i++)
    if (strcmp(schema->enumeration.strings[i].str, text) == 0) return true;
  return false;
}

bool esp_schema_fits(const schema_value *schema, const char *text) {
  const size_t length = strlen(text);
  switch (schema->type) {
  case CYAML_INT:
    return fits_int(text, schema->data_size);
  case CYAML_UINT:
    return fits_uint(text, schema->data_size);
  case CYAML_FLOAT:
    return fits_float(text, schema->data_size);
  case CYAML_BOOL:
    return strcmp(text, "true") == 0 || strcmp(text, "false") == 0;
  case CYAML_ENUM:
    return is_name(text, schema);
  default:
    return length >= schema->string.min && length <= schema->string.max;
  }
}

size_t esp_schema_zeros(const schema_value *schema, const char *text) {
  size_t count = 0;
  if (schema->type != CYAML_INT && schema->type != CYAML_UINT) return 0;
  while (text[count] == '0' && is_digit(text[count + 1])) count++;
  return count;
}

/* ---- The document of a struct ----
 * libcyaml's saver is not used: it prints 0.1 as 1.0000000000000001e-01, in buffers that threads share. */

/* The shortest text that reads to the same bits, with a point, so that any YAML reader takes it for a float. */
static void print_float(char text[NUMBER_SIZE], double value, bool is_narrow) {
  for (int precision = 6; precision <= 17; precision++) {
    snprintf(text, NUMBER_SIZE - 2, "%.*g", precision, value);
    if ((is_narrow ? (double)strtof(text, NULL) : strtod(text, NULL)) == value) break;
  }
  if (strpbrk(text, ".n")) return; /* has a point, or is inf or nan */
  char *end = text + strcspn(text, "e");
  memmove(end + 2, end, strlen(end) + 1);
  memcpy(end, ".0", 2);
}

static double read_float(const char *data, bool is_narrow) {
  float narrow;
  double wide;
  if (is_narrow) {
    memcpy(&narrow, data, sizeof narrow);
    return (double)narrow;
  }
  memcpy(&wide, data, sizeof wide);
  return wide;
}

static uint64_t read_uint(const char *data, uint32_t size) {
  uint8_t one;
  uint16_t two;
  uint32_t four;
  uint64_t eight;
  switch (size) {
  case 1:
    return memcpy(&one, data, size), one;
  case 2:
    return memcpy(&two, data, size), two;
  case 4:
    return memcpy(&four, data, size), four;
  default:
    return memcpy(&eight, data, sizeof eight), eight;
  }
}

static int64_t read_int(const char *data, uint32_t size) {
  const uint64_t bits = read_uint(data, size);
  const uint64_t wrap = bits > (uint64_t)greatest_int(size) ? ~greatest_uint(size) : 0;
  return (int64_t)(bits | wrap);
}

static const char *enum_name(const schema_value *schema, uint64_t bits) {
  const uint64_t mask = greatest_uint(schema->data_size);
  for (uint32_t i = 0; i < schema->enumeration.count; i++)
    if (((uint64_t)schema->enumeration.strings[i].val & mask) == bits) return schema->enumeration.strings[i].str;
  return "(a number without a name)";
}

/* The scalar's text, in `number` or elsewhere; not terminated if it is a text that fills its array. */
static const char *print_scalar(char number[NUMBER_SIZE], const schema_value *schema, const char *data) {
  const uint32_t size = schema->data_size;
  switch (schema->type) {
  case CYAML_STRING:
    return data;
  case CYAML_ENUM:
    return enum_name(schema, read_uint(data, size));
  case CYAML_BOOL:
    return read_uint(data, size) ? "true" : "false";
  case CYAML_FLOAT:
    print_float(number, read_float(data, size == sizeof(float)), size == sizeof(float));
    break;
  case CYAML_INT:
    snprintf(number, NUMBER_SIZE, "%lld", (long long)read_int(data, size));
    break;
  default:
    snprintf(number, NUMBER_SIZE, "%llu", (unsigned long long)read_uint(data, size));
  }
  return number;
}

static esp_status fail_save(const char *path, const schema_value *schema, const char *found) {
  phrase expected = {0};
  esp_schema_add_expectation(&expected, schema);
  return esp_fail(ESP_ERR_CONFIG, "\"%s\" cannot be saved as YAML: it is %.60s; expected %s", path, found,
                  expected.text);
}

static esp_status add_scalar(yaml_document_t *to, int *number, const char *path, const schema_value *schema,
                             const char *data) {
  char printed[NUMBER_SIZE];
  const char *text = print_scalar(printed, schema, data);
  if (schema->type == CYAML_STRING && !memchr(text, '\0', schema->data_size))
    return fail_save(path, schema, "a text without end");
  if (!esp_schema_fits(schema, text)) return fail_save(path, schema, text);
  *number = add_text(to, text, strlen(text));
  if (*number) return ESP_OK;
  /* libyaml says neither "no memory" nor "not UTF-8": see whether another text can be added */
  return add_text(to, "", 0) ? fail_save(path, schema, "not in UTF-8") : fail_memory();
}

static esp_status add_list(yaml_document_t *to, int *number, const char *path, const schema_field *field,
                           const char *section) {
  const schema_value *schema = &field->value;
  uint64_t count = schema->sequence.max;
  if (schema->type == CYAML_SEQUENCE) count = read_uint(section + field->count_offset, field->count_size);
  if (count < schema->sequence.min || count > schema->sequence.max)
    return fail_save(path, schema, "a list of another length");
  *number = yaml_document_add_sequence(to, NULL, YAML_FLOW_SEQUENCE_STYLE);
  if (!*number) return fail_memory();
  for (uint64_t i = 0; i < count; i++) {
    int item;
    const char *data = section + field->data_offset + i * schema->data_size;
    ESP_TRY(add_scalar(to, &item, path, schema->sequence.entry, data));
    if (!yaml_document_append_sequence_item(to, *number, item)) return fail_memory();
  }
  return ESP_OK;
}

static bool is_wanted(const key_filter *filter, const char *path, const schema_field *field) {
  return !filter->keep || field->value.type == CYAML_MAPPING || filter->keep(filter->context, path);
}

/* Adds the struct `data`; *number is its node's. */
static esp_status add_section(yaml_document_t *to, int *number, const char *path, const schema_value *schema,
                              const char *data, const key_filter *filter) {
  *number = yaml_document_add_mapping(to, NULL, YAML_BLOCK_MAPPING_STYLE);
  if (!*number) return fail_memory();
  for (const schema_field *field = schema->mapping.fields; field->key; field++) {
    int value;
    char field_path[PATH_SIZE];
    join_path(field_path, path, field->key);
    if (!is_wanted(filter, field_path, field)) continue;
    if (field->value.type == CYAML_MAPPING)
      ESP_TRY(add_section(to, &value, field_path, &field->value, data + field->data_offset, filter));
    else if (is_list(&field->value)) ESP_TRY(add_list(to, &value, field_path, field, data));
    else ESP_TRY(add_scalar(to, &value, field_path, &field->value, data + field->data_offset));
    const int key = add_text(to, field->key, strlen(field->key));
    if (!key || !yaml_document_append_mapping_pair(to, *number, key, value)) return fail_memory();
  }
  return ESP_OK;
}

esp_status esp_schema_document(yaml_document_t *document, const schema_value *schema, const void *config,
                               key_filter filter) {
  if (!yaml_document_initialize(document, NULL, NULL, NULL, 1, 1)) return fail_memory();
  int root;
  const esp_status status = add_section(document, &root, "", schema, config, &filter);
  if (status != ESP_OK) yaml_document_delete(document);
  return status;
}

/* ---- Single precision ---- */

static esp_status check_single(const char *path, double value) {
  const float single = (float)value;
  if (isinf(value) || isnan(value) || (double)single == value || (single != 0 && single != 1 && !isinf(single)))
    return ESP_OK;
  return esp_fail(ESP_ERR_CONFIG, "%s is %.17g, which is %g in single precision, in which models compute; give %s",
                  path, value, (double)single,
                  isinf(single) ? "a smaller number" : "just that, or a number further from it");
}

static esp_status check_single_list(const char *path, const schema_field *field, const char *section) {
  const schema_value *entry = field->value.sequence.entry;
  uint64_t count = field->value.sequence.max;
  if (field->value.type == CYAML_SEQUENCE) count = read_uint(section + field->count_offset, field->count_size);
  for (uint64_t i = 0; i < count && entry->type == CYAML_FLOAT; i++)
    ESP_TRY(check_single(path, read_float(section + field->data_offset + i * field->value.data_size,
                                          entry->data_size == sizeof(float))));
  return ESP_OK;
}

static esp_status check_single_section(const char *path, const schema_value *schema, const char *data) {
  for (const schema_field *field = schema->mapping.fields; field->key; field++) {
    const schema_value *value = &field->value;
    char inner[PATH_SIZE];
    join_path(inner, path, field->key);
    if (value->type == CYAML_MAPPING) ESP_TRY(check_single_section(inner, value, data + field->data_offset));
    else if (is_list(value)) ESP_TRY(check_single_list(inner, field, data));
    else if (value->type == CYAML_FLOAT)
      ESP_TRY(check_single(inner, read_float(data + field->data_offset, value->data_size == sizeof(float))));
  }
  return ESP_OK;
}

esp_status esp_yaml_check_single(const void *config, const struct cyaml_schema_value *schema) {
  return check_single_section("", schema, config);
}
