/* HDF5's filters by their registered numbers: its own, and those that files of other programs have most. */
#ifndef ESPALIER_HDF5_FILTERS_H
#define ESPALIER_HDF5_FILTERS_H

#include <espalier/status.h>

#ifdef __cplusplus
extern "C" {
#endif

/* "lzf" of 32000; "a filter that is not well known" of others. */
ESP_API const char *esp_hdf5_filter_name(int number);

/* Its arguments are the number and the name. */
#define ESP_FILTER_MESSAGE                                                                                        \
  "is packed by HDF5's filter %d (%s), which is not read; expected shuffle, deflate and Fletcher-32 at most. "    \
  "Filters from HDF5_PLUGIN_PATH are never loaded: copy the file with `h5repack -f SHUF -f GZIP=1 FILE NEW`, or " \
  "in h5py with compression=\"gzip\""

#ifdef __cplusplus
}
#endif
#endif
