/* Everything of measure/: costs, calibration passes, router changes, reports. */
#ifndef ESPALIER_MEASURE_H
#define ESPALIER_MEASURE_H

#include <espalier/calibration.h>
#include <espalier/comparison.h>
#include <espalier/expert_scores.h>
#include <espalier/report.h>
#include <espalier/router_change.h>
#include <espalier/stable_rank.h>
#include <espalier/sparsify.h>

#endif
