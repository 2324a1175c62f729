/* The libcyaml schema of esp_optimizer_config, for structs that hold one. */
#ifndef ESPALIER_OPTIMIZER_SCHEMA_H
#define ESPALIER_OPTIMIZER_SCHEMA_H

#include <espalier/optimizer.h>

#include <cyaml/cyaml.h>

ESP_API extern const cyaml_schema_field_t esp_optimizer_fields[];

#endif
