/* A data set that all tests of a file use, opened and closed by set-up and tear-down. SHARED_DATA, defined
 * before, names it. */
#ifndef ESPALIER_SHARED_DATA_H
#define ESPALIER_SHARED_DATA_H

#include "testing.h"

#include <espalier/dataset.h>

static esp_dataset *data;

static inline int open_data(void **state) {
  (void)state;
  return esp_dataset_open(&data, SHARED_DATA) == ESP_OK ? 0 : -1;
}

static inline int close_data(void **state) {
  (void)state;
  esp_dataset_close(data);
  return 0;
}

#endif
