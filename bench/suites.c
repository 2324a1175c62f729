/* The table of suites. */
#include "suites_internal.h"

const esp_bench_suite esp_bench_suites[] = {
    {"mone", "latency of a MoNE against an MoE, for one token and for one image, at several shares of neurons kept",
     esp_bench_mone},
    {NULL, NULL, NULL},
};
