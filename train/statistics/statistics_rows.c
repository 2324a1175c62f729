#include <espalier/statistics_rows.h>

static double share_of(int64_t part, int64_t whole) { return whole ? (double)part / (double)whole : 0; }

static esp_layer_statistics layer_of(const esp_statistics *statistics, int layer) {
  esp_layer_statistics result;
  esp_statistics_layer(statistics, layer, &result);
  return result;
}

static int64_t count_of(const esp_statistics *statistics, int layer, int expert) {
  esp_expert_statistics result;
  esp_statistics_expert(statistics, layer, expert, &result);
  return result.count;
}

void esp_coactivation_rows(FILE *file, const char *start, const esp_statistics *statistics, int layer) {
  const esp_layer_statistics of_layer = layer_of(statistics, layer);
  for (int a = 0; a < of_layer.experts; a++)
    for (int b = a + 1; b < of_layer.experts; b++) {
      if (!esp_statistics_can_pair(statistics, layer, a, b)) continue;
      const int64_t first = count_of(statistics, layer, a), second = count_of(statistics, layer, b);
      const int64_t both = esp_statistics_pair(statistics, layer, a, b);
      fprintf(file, "%s%s,%d,%d,%lld,%.9g\n", start, of_layer.scope, a, b, (long long)both,
              share_of(both, first < second ? first : second));
    }
}

void esp_specialisation_rows(FILE *file, const char *start, const esp_statistics *statistics, int layer) {
  const esp_layer_statistics of_layer = layer_of(statistics, layer);
  for (int c = 0; c < esp_statistics_classes(statistics, layer); c++) {
    int64_t of_class = 0;
    for (int e = 0; e < of_layer.experts; e++) of_class += esp_statistics_class(statistics, layer, e, c);
    for (int e = 0; e < of_layer.experts; e++) {
      const int64_t slots = esp_statistics_class(statistics, layer, e, c);
      fprintf(file, "%s%s,%d,%d,%lld,%lld,%.9g,%.9g\n", start, of_layer.scope, e, c, (long long)slots,
              (long long)esp_statistics_class_served(statistics, layer, e, c),
              share_of(slots, count_of(statistics, layer, e)), share_of(slots, of_class));
    }
  }
}
