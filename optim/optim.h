/* Everything of optim/. */
#ifndef ESPALIER_OPTIM_H
#define ESPALIER_OPTIM_H

#include <espalier/optimizer.h>

#endif
