#include <espalier/csv.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { LINE_SIZE = 4096 };

static esp_status failed(const esp_csv *csv) {
  return esp_fail(ESP_ERR_IO, "%s cannot be written: %s", csv->path, strerror(errno));
}

static esp_status write_header(esp_csv *csv, const char *header) {
  fputs(header, csv->file);
  return esp_csv_end_row(csv);
}

static esp_status cut_after(esp_csv *csv, const char *header, int64_t step) {
  char line[LINE_SIZE];
  long keep = 0;
  bool first = true;
  while (fgets(line, sizeof line, csv->file)) {
    if (!strchr(line, '\n') || (!first && strtoll(line, NULL, 10) > step)) break;
    if (!first) snprintf(csv->last, sizeof csv->last, "%.*s", (int)sizeof csv->last - 1, line);
    first = false;
    keep = ftell(csv->file);
  }
  if (fseek(csv->file, keep, SEEK_SET) != 0 || ftruncate(fileno(csv->file), keep) != 0) return failed(csv);
  return keep ? ESP_OK : write_header(csv, header);
}

/* An empty file, of a run that was stopped at once, has the right columns, too. */
static bool has_columns(const char *path, const char *header) {
  char line[LINE_SIZE] = "";
  FILE *file = fopen(path, "r");
  if (!file) return true; /* it will be opened again, and the failure told */
  const bool is_empty = !fgets(line, sizeof line, file);
  fclose(file);
  const size_t length = strlen(header);
  return is_empty || (strncmp(line, header, length) == 0 && line[length] == '\n');
}

/* Rows of other columns than before would make no sense below the old header. */
static esp_status set_aside_other_columns(const esp_csv *csv, const char *header) {
  char old[ESP_PATH_SIZE + 8];
  if (has_columns(csv->path, header)) return ESP_OK;
  snprintf(old, sizeof old, "%s.old", csv->path);
  return rename(csv->path, old) == 0 ? ESP_OK : failed(csv);
}

esp_status esp_csv_open(esp_csv *csv, const char *folder, const char *name, const char *header, int64_t step) {
  *csv = (esp_csv){.file = NULL};
  ESP_TRY(esp_folder_path(csv->path, folder, name));
  if (step > 0) ESP_TRY(set_aside_other_columns(csv, header));
  const bool continues = step > 0 && esp_file_exists(csv->path);
  csv->file = fopen(csv->path, continues ? "r+" : "w");
  if (!csv->file) return failed(csv);
  const esp_status status = continues ? cut_after(csv, header, step) : write_header(csv, header);
  if (status == ESP_OK) return ESP_OK;
  fclose(csv->file);
  csv->file = NULL;
  return status;
}

esp_status esp_csv_flush(esp_csv *csv) { return fflush(csv->file) != 0 || ferror(csv->file) ? failed(csv) : ESP_OK; }

esp_status esp_csv_end_row(esp_csv *csv) {
  fputc('\n', csv->file);
  return esp_csv_flush(csv);
}

esp_status esp_csv_close(esp_csv *csv) {
  if (!csv->file) return ESP_OK;
  const esp_status status = fclose(csv->file) == 0 ? ESP_OK : failed(csv);
  csv->file = NULL;
  return status;
}
