/* Everything of checkpoints/. */
#ifndef ESPALIER_CHECKPOINTS_H
#define ESPALIER_CHECKPOINTS_H

#include <espalier/checkpoint.h>
#include <espalier/routing_trace.h>
#include <espalier/trained.h>

#endif
