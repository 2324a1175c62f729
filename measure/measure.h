/* Everything of measure/: costs, router changes, statistics of a pass, reports. */
#ifndef ESPALIER_MEASURE_H
#define ESPALIER_MEASURE_H

#include <espalier/cost.h>
#include <espalier/report.h>
#include <espalier/router_change.h>
#include <espalier/statistics.h>

#endif
