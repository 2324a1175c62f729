/* What a run's logs cost at default settings. */
#ifndef ESPALIER_LOGGING_INTERNAL_H
#define ESPALIER_LOGGING_INTERNAL_H

#include "stages_internal.h"

#include <espalier/bench.h>

/* Reports the share of the time of steps of `step` seconds that metrics and the routing log take: the observer of each
 * step, the rows of metrics.csv, and for an evaluation after each epoch (50 000 images to train on, 10 000 to evaluate, as
 * CIFAR-10 has) the routing log's observer and rows. */
esp_status bench_logging(const esp_bench *bench, model_stage *stage, double step) ESP_MUST_CHECK;

#endif
