/* What a run's logs cost at default settings. */
#ifndef ESPALIER_LOGGING_INTERNAL_H
#define ESPALIER_LOGGING_INTERNAL_H

#include "stages_internal.h"

#include <espalier/bench.h>

/* An observer with a clock around it: context of what bench_watched_observer() returns. */
typedef struct bench_watched {
  esp_observer observer;
  double seconds; /* it has taken so far */
} bench_watched;

esp_observer bench_watched_observer(bench_watched *watched);

/* Reports the share of the time of steps of `step` seconds that metrics and the routing log take: the observer of each
 * step, the rows of metrics.csv, and for an evaluation after each epoch (50 000 images to train on, 10 000 to evaluate,
 * as CIFAR-10 has) the routing log's observer and rows. */
esp_status bench_logging(const esp_bench *bench, model_stage *stage, double step) ESP_MUST_CHECK;

#endif
