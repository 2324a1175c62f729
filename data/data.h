/* Everything of data/: data sets, augmentation, the loader, contact sheets. */
#ifndef ESPALIER_DATA_H
#define ESPALIER_DATA_H

#include <espalier/dataset.h>
#include <espalier/augment.h>
#include <espalier/loader.h>
#include <espalier/preview.h>

#endif
