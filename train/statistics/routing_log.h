/* What the routers do while a model is trained: statistics of each evaluation, in CSV files with a row per mixture
 * layer and expert, pair of experts, or expert and class; and an alarm when experts go unused. */
#ifndef ESPALIER_ROUTING_LOG_H
#define ESPALIER_ROUTING_LOG_H

#include <espalier/model.h>
#include <espalier/progress.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct esp_routing_log esp_routing_log;

/* When an expert's share of its layer's slots is below `share` of an even one in `evaluations` evaluations in a row,
 * the alarm goes off, once until it recovers. share 0: never. */
typedef struct esp_routing_alarm {
  double share;
  int evaluations;
} esp_routing_alarm;

/* Opens four files in `folder`. Rows after `step` are cut off; how long experts have been unused is read from those
 * before. The words are those of statistics.h; what a policy does not have stays empty.
 *   routing.csv: step, epoch, layer, expert, original_id, wanted (slots that chose it), served (within its capacity),
 *     share (of the layer's wanted slots), gate_mass, mean_gate, router_norm (of its routing vector); and of the layer
 *     entropy (of the shares, over its largest value), imbalance (most wanted over mean), logit_rms, token_entropy,
 *     dead_experts; and of the expert gate_served (the gate mass that reached a stored expert)
 *   coactivation.csv, specialisation.csv: step, and the columns of statistics_rows.h
 *   alarms.csv: step, layer, experts (by blanks), evaluations */
ESP_API esp_status esp_routing_log_open(esp_routing_log **log, const char *folder, const esp_model *model,
                                        const esp_routing_alarm *alarm, int64_t step) ESP_MUST_CHECK;

/* Adds up what it sees until the next esp_routing_log_write(). */
ESP_API esp_observer esp_routing_log_observer(esp_routing_log *log);

/* Writes the rows of one evaluation, starts anew, and sounds the alarm on `bar` if it is due. */
ESP_API esp_status esp_routing_log_write(esp_routing_log *log, int64_t step, double epoch,
                                         esp_progress_bar *bar) ESP_MUST_CHECK;

/* Writes the rows to the disk, before a checkpoint that relies on them. */
ESP_API esp_status esp_routing_log_sync(const esp_routing_log *log) ESP_MUST_CHECK;

ESP_API esp_status esp_routing_log_close(esp_routing_log *log) ESP_MUST_CHECK; /* NULL is allowed */

#ifdef __cplusplus
}
#endif
#endif
