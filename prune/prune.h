/* Everything of prune/: criteria, plans, overlap of plans, the surgeon, methods, sweeps. */
#ifndef ESPALIER_PRUNE_H
#define ESPALIER_PRUNE_H

#include <espalier/alignment.h>
#include <espalier/assignment.h>
#include <espalier/compress.h>
#include <espalier/criteria.h>
#include <espalier/grouping.h>
#include <espalier/layer_cache.h>
#include <espalier/merge.h>
#include <espalier/method.h>
#include <espalier/neurons.h>
#include <espalier/overlap.h>
#include <espalier/plan.h>
#include <espalier/recombine.h>
#include <espalier/similarity.h>
#include <espalier/skip.h>
#include <espalier/surgeon.h>
#include <espalier/sweep.h>
#include <espalier/zip.h>

#endif
