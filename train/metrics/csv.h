/* CSV files that grow with a run and are cut back when it is resumed. */
#ifndef ESPALIER_CSV_H
#define ESPALIER_CSV_H

#include <espalier/run_folder.h>

#include <stdint.h>
#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct esp_csv {
  FILE *file; /* for rows; what it takes goes to the file whole, at the end of a row or when it is flushed */
  char *text; /* what it took */
  size_t length;
  int descriptor;
  int64_t size; /* of the file, whole rows */
  char path[ESP_PATH_SIZE];
  char last[64]; /* how the last row begins that was there and stays; "" if there is none */
} esp_csv;

/* Opens folder/name, whose first column is the step. Rows after `step` (of a run that is being resumed), and one that
 * was not written to its end, are cut off; with step 0 all of them. A new file gets `header`, a line without its end. A
 * file of a resumed run whose header is another (an older program wrote it) is set aside as NAME.old. */
ESP_API esp_status esp_csv_open(esp_csv *csv, const char *folder, const char *name, const char *header,
                                int64_t step) ESP_MUST_CHECK;

/* Ends a row and hands it to the system; ESP_ERR_IO if any of it could not be written. */
ESP_API esp_status esp_csv_end_row(esp_csv *csv) ESP_MUST_CHECK;

/* After whole rows were written: hands them to the system; ESP_ERR_IO if any of it could not be written. */
ESP_API esp_status esp_csv_flush(esp_csv *csv) ESP_MUST_CHECK;

/* Writes the rows to the disk, before a checkpoint that relies on them. */
ESP_API esp_status esp_csv_sync(const esp_csv *csv) ESP_MUST_CHECK;

/* Syncs and closes. */
ESP_API esp_status esp_csv_close(esp_csv *csv) ESP_MUST_CHECK;

/* A comma and the number, or nothing after it unless the number is finite. */
ESP_API void esp_csv_put_number(FILE *file, double value);

#ifdef __cplusplus
}
#endif
#endif
