/* The suites; each is a file of its own and a row in suites.c. */
#ifndef ESPALIER_SUITES_INTERNAL_H
#define ESPALIER_SUITES_INTERNAL_H

#include <espalier/bench.h>

esp_status esp_bench_gemm(esp_bench *bench);
esp_status esp_bench_train(esp_bench *bench);
esp_status esp_bench_moe(esp_bench *bench);
esp_status esp_bench_infer(esp_bench *bench);
esp_status esp_bench_checkpoint(esp_bench *bench);
esp_status esp_bench_data(esp_bench *bench);
esp_status esp_bench_step_reference(esp_bench *bench);
esp_status esp_bench_step_reference_bf16(esp_bench *bench);
esp_status esp_bench_step_teaching(esp_bench *bench);
esp_status esp_bench_images_reference(esp_bench *bench);
esp_status esp_bench_image_reference(esp_bench *bench);
esp_status esp_bench_mone(esp_bench *bench);
esp_status esp_bench_gather(esp_bench *bench);
esp_status esp_bench_selection(esp_bench *bench);

#endif
