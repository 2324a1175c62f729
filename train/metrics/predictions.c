#include <espalier/memory.h>
#include <espalier/ops.h>
#include <espalier/predictions.h>

#include <math.h>

esp_status esp_predictions_start(esp_predictions *p, int classes, const char *const *names) {
  const size_t count = (size_t)classes;
  const bool has_matrix = classes <= ESP_CONFUSION_CLASSES;
  *p = (esp_predictions){.classes = classes, .names = names};
  p->of_class = esp_alloc(count, sizeof *p->of_class);
  p->predicted_as = esp_alloc(count, sizeof *p->predicted_as);
  p->correct = esp_alloc(count, sizeof *p->correct);
  if (has_matrix) p->confusion = esp_alloc(count * count, sizeof *p->confusion);
  if (p->of_class && p->predicted_as && p->correct && (p->confusion || !has_matrix)) return ESP_OK;
  esp_predictions_clear(p);
  return ESP_ERR_MEMORY;
}

void esp_predictions_clear(esp_predictions *p) {
  esp_free(p->of_class);
  esp_free(p->predicted_as);
  esp_free(p->correct);
  esp_free(p->confusion);
  *p = (esp_predictions){.classes = 0};
}

/* exp(row[best]) / sum of exp(row), where row[best] is the largest. */
static double top_probability(const esp_real *row, int classes, int32_t best) {
  double sum = 0;
  for (int c = 0; c < classes; c++) sum += exp((double)row[c] - (double)row[best]);
  return 1 / sum;
}

/* Logits that are not finite have no probability; the evaluation fails by its loss then. */
static int bin_of(double probability) {
  const double above = ceil(probability * ESP_CALIBRATION_BINS) - 1;
  if (!(above > 0)) return 0;
  return above < ESP_CALIBRATION_BINS ? (int)above : ESP_CALIBRATION_BINS - 1;
}

static void add_row(esp_predictions *p, const esp_real *row, int32_t label) {
  int32_t top[ESP_TOP];
  const int count = p->classes < ESP_TOP ? p->classes : ESP_TOP;
  esp_top_k_of(row, p->classes, count, top);
  const bool is_right = top[0] == label;
  for (int i = 0; i < count; i++) p->in_top += top[i] == label;
  p->images++;
  p->of_class[label]++;
  p->predicted_as[top[0]]++;
  p->correct[label] += is_right;
  if (p->confusion) p->confusion[(int64_t)label * p->classes + top[0]]++;
  const double probability = top_probability(row, p->classes, top[0]);
  esp_calibration_bin *bin = &p->bins[bin_of(probability)];
  bin->images++;
  bin->correct += is_right;
  bin->confidence += probability;
}

void esp_predictions_add(esp_predictions *p, const esp_tensor *logits, const int32_t *labels) {
  for (int64_t i = 0; i < esp_tensor_rows(logits); i++) add_row(p, logits->data + i * p->classes, labels[i]);
}

static double share(int64_t part, int64_t whole) { return whole ? (double)part / (double)whole : (double)NAN; }

double esp_top_accuracy(const esp_predictions *p) {
  return p->classes > ESP_TOP ? share(p->in_top, p->images) : (double)NAN;
}

double esp_class_accuracy(const esp_predictions *p, int class_number) {
  return share(p->correct[class_number], p->of_class[class_number]);
}

/* n_b cancels. */
double esp_calibration_error(const esp_predictions *p) {
  double sum = 0;
  for (int b = 0; b < ESP_CALIBRATION_BINS; b++) sum += fabs((double)p->bins[b].correct - p->bins[b].confidence);
  return p->images ? sum / (double)p->images : (double)NAN;
}

double esp_mean_confidence(const esp_predictions *p) {
  double sum = 0;
  for (int b = 0; b < ESP_CALIBRATION_BINS; b++) sum += p->bins[b].confidence;
  return p->images ? sum / (double)p->images : (double)NAN;
}
