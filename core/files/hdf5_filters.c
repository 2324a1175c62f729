#include <espalier/hdf5_filters.h>

static const struct {
  int number;
  const char *name;
} filters[] = {{1, "deflate"},        {2, "shuffle"}, {3, "Fletcher-32"}, {4, "szip"},      {5, "nbit"},
               {6, "scaleoffset"},    {307, "bzip2"}, {32000, "lzf"},     {32001, "blosc"}, {32004, "lz4"},
               {32008, "bitshuffle"}, {32013, "zfp"}, {32015, "zstd"},    {32017, "sz"},    {32026, "blosc2"}};

const char *esp_hdf5_filter_name(int number) {
  for (size_t i = 0; i < sizeof filters / sizeof *filters; i++)
    if (filters[i].number == number) return filters[i].name;
  return "a filter that is not well known";
}
