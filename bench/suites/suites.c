/* The table of suites. */
#include "suites_internal.h"

const esp_bench_suite esp_bench_suites[] = {
    {"gemm", "what this machine's BLAS gives at the shapes of a training step: the limit", esp_bench_gemm},
    {"train", "a training step by phase and kind of op, and its share of the limit", esp_bench_train},
    {"moe", "a mixture layer, forward and backward, against a dense layer of equal FLOPs, at several loads",
     esp_bench_moe},
    {"infer", "inference of batches of 1, 8 and 128 images", esp_bench_infer},
    {"checkpoint", "saving and loading a model with its optimiser's state, at several levels of compression",
     esp_bench_checkpoint},
    {"data", "batches per second of the loader, against what training takes", esp_bench_data},
    {"step-reference", "a training step of the reference model alone, for bench/peer.sh", esp_bench_step_reference},
    {"step-reference-bf16", "the same in bf16", esp_bench_step_reference_bf16},
    {"step-teaching", "a training step of the teaching model alone, for bench/peer.sh", esp_bench_step_teaching},
    {"images-reference", "inference of 128 images by the reference model alone, for bench/peer.sh",
     esp_bench_images_reference},
    {"image-reference", "inference of one image by the reference model alone, for bench/peer.sh",
     esp_bench_image_reference},
    {"mone", "latency of a MoNE against an MoE, for one token and for one image, at several shares of neurons kept",
     esp_bench_mone},
    {"gather", "from how many rows an expert, and which share, gathering a MoNE's neurons beats masking them",
     esp_bench_gather},
    {"selection", "what the selection of neurons adds to a training step of a MoNE's experts", esp_bench_selection},
    {NULL, NULL, NULL},
};
