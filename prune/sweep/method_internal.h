#ifndef ESPALIER_METHOD_INTERNAL_H
#define ESPALIER_METHOD_INTERNAL_H

#include <espalier/method.h>

/* Carries out a plan for the inputs' model and keeps its JSON. */
esp_status esp_apply_method_plan(const esp_method_inputs *inputs, const esp_plan *plan,
                                 esp_compressed *made) ESP_MUST_CHECK;

/* method_smoe.c: MC-SMoE's U V + S, alone and after merging. */
esp_status esp_make_factored(const esp_method *method, const esp_method_inputs *inputs, esp_compressed *made);
esp_status esp_make_merged_and_factored(const esp_method *method, const esp_method_inputs *inputs,
                                        esp_compressed *made);

#endif
