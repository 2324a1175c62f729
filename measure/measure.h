/* Everything of measure/: costs, calibration passes, router changes, statistics of a pass, reports. */
#ifndef ESPALIER_MEASURE_H
#define ESPALIER_MEASURE_H

#include <espalier/calibration.h>
#include <espalier/comparison.h>
#include <espalier/cost.h>
#include <espalier/expert_scores.h>
#include <espalier/report.h>
#include <espalier/router_change.h>
#include <espalier/stable_rank.h>
#include <espalier/sparsify.h>
#include <espalier/statistics.h>

#endif
