/* Everything of checkpoints/. */
#ifndef ESPALIER_CHECKPOINTS_H
#define ESPALIER_CHECKPOINTS_H

#include <espalier/checkpoint.h>

#endif
