/* Settings that would change nothing, told from those that nobody set. */
#ifndef ESPALIER_UNUSED_SETTINGS_INTERNAL_H
#define ESPALIER_UNUSED_SETTINGS_INTERNAL_H

#include <espalier/run_config.h>

/* ESP_ERR_CONFIG if a key that the YAML file `path` sets has no effect in `config`, which is the defaults overlaid by
 * that file alone: overrides may make others of its settings idle, as model.layers=[dense] does. */
esp_status esp_refuse_unused_keys(const esp_run_config *config, const char *path);

/* The same for overrides "section.key=value"; `config` is all settings together. */
esp_status esp_refuse_unused_overrides(const esp_run_config *config, const char *const *overrides, size_t count);

/* A filter of keys that leaves out those without effect; `config` is an esp_run_config. */
bool esp_is_used(void *config, const char *key);

#endif
