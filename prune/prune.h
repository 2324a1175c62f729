/* Everything of prune/: criteria, plans, overlap of plans, the surgeon. */
#ifndef ESPALIER_PRUNE_H
#define ESPALIER_PRUNE_H

#include <espalier/compress.h>
#include <espalier/criteria.h>
#include <espalier/overlap.h>
#include <espalier/plan.h>
#include <espalier/surgeon.h>

#endif
