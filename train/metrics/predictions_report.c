/* What the predictions of an evaluation say, as CSV, as JSON and for people. */
#include <espalier/csv.h>
#include <espalier/escape.h>
#include <espalier/predictions.h>

#include <jansson.h>
#include <math.h>
#include <string.h>

enum { NAME_SIZE = 64 };

/* ---- CSV ---- */

static void write_classes(const void *context, FILE *file) {
  const esp_predictions *p = context;
  fputs("class,name,images,correct,predicted,accuracy\n", file);
  for (int c = 0; c < p->classes; c++) {
    fprintf(file, "%d,", c);
    esp_csv_text(file, p->names ? p->names[c] : "");
    fprintf(file, ",%lld,%lld,%lld", (long long)p->of_class[c], (long long)p->correct[c],
            (long long)p->predicted_as[c]);
    esp_csv_put_number(file, esp_class_accuracy(p, c));
    fputc('\n', file);
  }
}

static void write_confusion(const void *context, FILE *file) {
  const esp_predictions *p = context;
  fputs("true", file);
  for (int c = 0; c < p->classes; c++) fprintf(file, ",predicted.%d", c);
  fputc('\n', file);
  for (int label = 0; label < p->classes; label++) {
    fprintf(file, "%d", label);
    for (int c = 0; c < p->classes; c++)
      fprintf(file, ",%lld", (long long)p->confusion[(int64_t)label * p->classes + c]);
    fputc('\n', file);
  }
}

static void write_bins(const void *context, FILE *file) {
  const esp_predictions *p = context;
  fputs("above,to,images,confidence,accuracy\n", file);
  for (int b = 0; b < ESP_CALIBRATION_BINS; b++) {
    const esp_calibration_bin *bin = &p->bins[b];
    fprintf(file, "%.9g,%.9g,%lld", (double)b / ESP_CALIBRATION_BINS, (double)(b + 1) / ESP_CALIBRATION_BINS,
            (long long)bin->images);
    esp_csv_put_number(file, bin->confidence / (double)bin->images);
    esp_csv_put_number(file, (double)bin->correct / (double)bin->images);
    fputc('\n', file);
  }
}

static esp_status write_table(const esp_predictions *p, const char *folder, const char *prefix, const char *name,
                              esp_text_writer *write) {
  char file[NAME_SIZE];
  snprintf(file, sizeof file, "%s%s.csv", prefix, name);
  return esp_file_compose(folder, file, write, p);
}

esp_status esp_predictions_write(const esp_predictions *p, const char *folder, const char *prefix) {
  ESP_TRY(write_table(p, folder, prefix, "classes", write_classes));
  if (p->confusion) ESP_TRY(write_table(p, folder, prefix, "confusion", write_confusion));
  return write_table(p, folder, prefix, "calibration", write_bins);
}

/* ---- JSON ---- */

static json_t *real_json(double value) { return isfinite(value) ? json_real(value) : json_null(); }

static json_t *classes_json(const esp_predictions *p) {
  json_t *list = json_array();
  for (int c = 0; c < p->classes; c++)
    json_array_append_new(list, json_pack("{s:i, s:s?, s:I, s:o}", "class", c, "name", p->names ? p->names[c] : NULL,
                                          "images", (json_int_t)p->of_class[c], "recall",
                                          real_json(esp_class_accuracy(p, c))));
  return list;
}

static json_t *confusion_json(const esp_predictions *p) {
  if (!p->confusion) return json_null();
  json_t *rows = json_array();
  for (int label = 0; label < p->classes; label++) {
    json_t *row = json_array();
    for (int c = 0; c < p->classes; c++)
      json_array_append_new(row, json_integer((json_int_t)p->confusion[(int64_t)label * p->classes + c]));
    json_array_append_new(rows, row);
  }
  return rows;
}

bool esp_predictions_put(const esp_predictions *p, const char *prefix, json_t *json) {
  const struct {
    const char *key;
    json_t *value;
  } entries[] = {{"top5_accuracy", real_json(esp_top_accuracy(p))},
                 {"calibration_error", real_json(esp_calibration_error(p))},
                 {"per_class", classes_json(p)},
                 {"confusion", confusion_json(p)}};
  bool is_whole = true;
  for (size_t i = 0; i < sizeof entries / sizeof entries[0]; i++) {
    char key[NAME_SIZE];
    snprintf(key, sizeof key, "%s%s", prefix, entries[i].key);
    is_whole &= json_object_set_new(json, key, entries[i].value) == 0;
  }
  return is_whole;
}

/* ---- for people ---- */

static bool is_worse(const esp_predictions *p, int class_number, int than) {
  const double one = esp_class_accuracy(p, class_number), other = esp_class_accuracy(p, than);
  return one < other || (!(other < one) && class_number < than);
}

/* The worst class that is better than `after` (-1: of all) and has a mistake; -1: none is left. */
static int next_worst(const esp_predictions *p, int after) {
  int worst = -1;
  for (int c = 0; c < p->classes; c++) {
    const bool has_mistakes = p->correct[c] < p->of_class[c], is_left = after < 0 || is_worse(p, after, c);
    if (has_mistakes && is_left && c != after && (worst < 0 || is_worse(p, c, worst))) worst = c;
  }
  return worst;
}

static void print_class_name(const esp_predictions *p, int class_number, FILE *file) {
  fprintf(file, "%d", class_number);
  if (p->names) fprintf(file, " (%s)", esp_shown(p->names[class_number]));
}

static void print_mistakes(const esp_predictions *p, int class_number, FILE *file) {
  const int64_t *row = p->confusion + (int64_t)class_number * p->classes;
  int most = -1;
  for (int c = 0; c < p->classes; c++)
    if (c != class_number && row[c] > 0 && (most < 0 || row[c] > row[most])) most = c;
  fprintf(file, ", %lld taken for ", (long long)row[most]);
  print_class_name(p, most, file);
}

void esp_predictions_print(const esp_predictions *p, int worst, FILE *file) {
  if (p->classes > ESP_TOP) fprintf(file, "top-5 accuracy %.2f %%, ", 100 * esp_top_accuracy(p));
  fprintf(file, "calibration error (ECE, %d bins) %.2f %% at a mean confidence of %.2f %%\n", ESP_CALIBRATION_BINS,
          100 * esp_calibration_error(p), 100 * esp_mean_confidence(p));
  for (int c = next_worst(p, -1); c >= 0 && worst > 0; c = next_worst(p, c), worst--) {
    fputs("  worst: class ", file);
    print_class_name(p, c, file);
    fprintf(file, ", accuracy %.2f %% of %lld images", 100 * esp_class_accuracy(p, c), (long long)p->of_class[c]);
    if (p->confusion) print_mistakes(p, c, file);
    fputc('\n', file);
  }
}
