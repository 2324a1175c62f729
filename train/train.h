/* Everything of train/: settings, the loop, evaluation, metrics, statistics of a pass, run folders. */
#ifndef ESPALIER_TRAIN_H
#define ESPALIER_TRAIN_H

#include <espalier/csv.h>
#include <espalier/distillation.h>
#include <espalier/evaluate.h>
#include <espalier/figure.h>
#include <espalier/json_file.h>
#include <espalier/metrics.h>
#include <espalier/predictions.h>
#include <espalier/progress.h>
#include <espalier/routing_log.h>
#include <espalier/row_pruning.h>
#include <espalier/run.h>
#include <espalier/run_config.h>
#include <espalier/run_folder.h>
#include <espalier/statistics.h>
#include <espalier/statistics_rows.h>
#include <espalier/trainer.h>
#include <espalier/whitening.h>

#endif
