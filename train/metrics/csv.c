#include <espalier/csv.h>
#include <espalier/output_file.h>

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { LINE_SIZE = 4096 };

static esp_status failed(const esp_csv *csv) {
  return esp_fail(ESP_ERR_IO, "%s cannot be written: %s", csv->path, strerror(errno));
}

/* Rows after `step`, and one that has no end, are not kept. */
static esp_status find_end(esp_csv *csv, FILE *file, int64_t step) {
  char line[LINE_SIZE];
  bool first = true;
  while (fgets(line, sizeof line, file)) {
    if (!strchr(line, '\n') || (!first && strtoll(line, NULL, 10) > step)) break;
    if (!first) snprintf(csv->last, sizeof csv->last, "%.*s", (int)sizeof csv->last - 1, line);
    first = false;
    csv->size = ftell(file);
  }
  return ferror(file) ? esp_fail(ESP_ERR_IO, "%s cannot be read: %s", csv->path, strerror(errno)) : ESP_OK;
}

/* An empty file, of a run that was stopped at once, has the right columns, too. */
static bool has_columns(FILE *file, const char *header) {
  char line[LINE_SIZE] = "";
  const bool is_empty = !fgets(line, sizeof line, file);
  const size_t length = strlen(header);
  rewind(file);
  return is_empty || (strncmp(line, header, length) == 0 && line[length] == '\n');
}

/* Rows of other columns than before would make no sense below the old header. */
static esp_status set_aside(const esp_csv *csv) {
  char old[ESP_PATH_SIZE + 8];
  snprintf(old, sizeof old, "%s.old", csv->path);
  return rename(csv->path, old) == 0 ? ESP_OK : failed(csv);
}

/* What of the file stays: csv->size bytes, 0 if it is set aside or not there. */
static esp_status look_back(esp_csv *csv, const char *header, int64_t step) {
  FILE *const file = fopen(csv->path, "r");
  if (!file && errno == ENOENT) return ESP_OK;
  if (!file) return esp_fail(ESP_ERR_IO, "%s cannot be read: %s", csv->path, strerror(errno));
  const bool continues = has_columns(file, header);
  const esp_status status = continues ? find_end(csv, file, step) : set_aside(csv);
  fclose(file);
  return status;
}

static esp_status open_rows(esp_csv *csv) {
  csv->file = open_memstream(&csv->text, &csv->length);
  if (!csv->file) return esp_fail(ESP_ERR_MEMORY, "%s cannot be written: out of memory", csv->path);
  do csv->descriptor = open(csv->path, O_WRONLY | O_CREAT | O_CLOEXEC | O_NONBLOCK, 0666);
  while (csv->descriptor < 0 && errno == EINTR);
  if (csv->descriptor < 0 || ftruncate(csv->descriptor, csv->size) != 0) return failed(csv);
  return lseek(csv->descriptor, csv->size, SEEK_SET) == csv->size ? ESP_OK : failed(csv);
}

static esp_status start(esp_csv *csv, const char *header, int64_t step) {
  ESP_TRY(esp_output_check(csv->path));
  if (step > 0) ESP_TRY(look_back(csv, header, step));
  ESP_TRY(open_rows(csv));
  if (csv->size > 0) return ESP_OK;
  fputs(header, csv->file);
  return esp_csv_end_row(csv);
}

static void release(esp_csv *csv) {
  if (csv->file) fclose(csv->file);
  if (csv->descriptor >= 0) close(csv->descriptor);
  free(csv->text);
  csv->file = NULL;
  csv->text = NULL;
  csv->descriptor = -1;
}

esp_status esp_csv_open(esp_csv *csv, const char *folder, const char *name, const char *header, int64_t step) {
  *csv = (esp_csv){.file = NULL, .descriptor = -1};
  ESP_TRY(esp_folder_path(csv->path, folder, name));
  const esp_status status = start(csv, header, step);
  if (status != ESP_OK) release(csv);
  return status;
}

static bool write_rows(const esp_csv *csv) {
  size_t done = 0;
  while (done < csv->length) {
    const ssize_t got = write(csv->descriptor, csv->text + done, csv->length - done);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return false;
    done += (size_t)got;
  }
  return true;
}

/* Rows that are written in part are taken back. */
static esp_status take_back(const esp_csv *csv) {
  const esp_status status = failed(csv);
  (void)!ftruncate(csv->descriptor, csv->size);
  (void)!lseek(csv->descriptor, csv->size, SEEK_SET);
  return status;
}

/* All rows since the last time in one write(), so that a process that dies has written all of them or none. */
esp_status esp_csv_flush(esp_csv *csv) {
  if (fflush(csv->file) != 0 || ferror(csv->file))
    return esp_fail(ESP_ERR_MEMORY, "%s cannot be written: out of memory", csv->path);
  if (!write_rows(csv)) return take_back(csv);
  csv->size += (int64_t)csv->length;
  rewind(csv->file);
  return ESP_OK;
}

esp_status esp_csv_end_row(esp_csv *csv) {
  fputc('\n', csv->file);
  return esp_csv_flush(csv);
}

esp_status esp_csv_sync(const esp_csv *csv) {
  int done;
  do done = fsync(csv->descriptor);
  while (done != 0 && errno == EINTR);
  return done == 0 ? ESP_OK : failed(csv);
}

esp_status esp_csv_close(esp_csv *csv) {
  if (!csv->file) return ESP_OK;
  const esp_status status = esp_csv_sync(csv);
  release(csv);
  return status;
}

void esp_csv_put_number(FILE *file, double value) {
  fputc(',', file);
  if (isfinite(value)) fprintf(file, "%.9g", value);
}
