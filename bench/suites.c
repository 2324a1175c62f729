/* The table of suites. */
#include "suites_internal.h"

const esp_bench_suite esp_bench_suites[] = {
    {"gemm", "what this machine's BLAS gives at the shapes of a training step: the limit", esp_bench_gemm},
    {"train", "a training step by phase and kind of op, and its share of the limit", esp_bench_train},
    {"mone", "latency of a MoNE against an MoE, for one token and for one image, at several shares of neurons kept",
     esp_bench_mone},
    {"gather", "from how many rows an expert, and which share, gathering a MoNE's neurons beats masking them",
     esp_bench_gather},
    {"selection", "what the selection of neurons adds to a training step of a MoNE's experts", esp_bench_selection},
    {NULL, NULL, NULL},
};
