/* The libcyaml schema of esp_model_config, for structs that hold one. */
#ifndef ESPALIER_MODEL_SCHEMA_H
#define ESPALIER_MODEL_SCHEMA_H

#include <espalier/model_config.h>

#include <cyaml/cyaml.h>

ESP_API extern const cyaml_schema_field_t esp_model_fields[];

#endif
