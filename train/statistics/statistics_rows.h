/* Rows of CSV files of statistics, the same in a run's folder and in a report's. */
#ifndef ESPALIER_STATISTICS_ROWS_H
#define ESPALIER_STATISTICS_ROWS_H

#include <espalier/statistics.h>

#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The columns' names, without a line's end. */
#define ESP_COACTIVATION_COLUMNS "layer,expert,other,tokens,together_share"
#define ESP_SPECIALISATION_COLUMNS "layer,expert,class,slots,served,share,class_share"

/* A row for each pair of a layer's experts that a token can choose together, once each pair: the tokens that did, and
 * their share of those that chose the rarer of the two. `start` is what each row starts with ("" or "120,"). */
ESP_API void esp_coactivation_rows(FILE *file, const char *start, const esp_statistics *statistics, int layer);

/* A row for each expert of a layer and class: slots of tokens of the class's images, those of them that reached a
 * stored expert, their share of the expert's slots and of the class's slots in the layer. None with Soft MoE. */
ESP_API void esp_specialisation_rows(FILE *file, const char *start, const esp_statistics *statistics, int layer);

#ifdef __cplusplus
}
#endif
#endif
