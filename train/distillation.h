/* Knowledge distillation: a trained model, the teacher, adds KL(teacher || student) at a temperature to the loss of
 * another one, the student (Hinton et al., arXiv 1503.02531; as MC-SMoE does it: arXiv 2310.01334, section 4 and
 * code). */
#ifndef ESPALIER_DISTILLATION_H
#define ESPALIER_DISTILLATION_H

#include <espalier/checkpoint.h>
#include <espalier/run_config.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct esp_distillation esp_distillation;

/* ESP_ERR_MISMATCH, with the reason, unless the teacher sees the student's images as they are normalised for it and
 * knows as many classes. */
ESP_API esp_status esp_distillation_check(const esp_model *teacher, const esp_checkpoint_info *teacher_info,
                                          const esp_model_config *student,
                                          const esp_normalisation *normalisation) ESP_MUST_CHECK;

/* The teacher is the caller's and must live as long. ESP_ERR_CONFIG if the weight is 0. Freed by
 * esp_distillation_free(), which allows NULL. */
ESP_API esp_status esp_distillation_create(esp_distillation **distillation, const esp_distillation_config *config,
                                           const esp_model *teacher) ESP_MUST_CHECK;
ESP_API void esp_distillation_free(esp_distillation *distillation);

/* Runs the teacher, in evaluation, over the step's images on a tape of its own that records nothing, and appends the
 * loss to the student's auxiliary ones: the mean over the batch. With E3 on both sides and as many members, each
 * member learns from its counterpart, so that members stay different; otherwise each learns from the teacher's
 * prediction as a whole (reconstruction: the paper has no ensembles). */
ESP_API esp_status esp_distillation_add(esp_distillation *distillation, esp_tape *tape, esp_tensor *images,
                                        esp_model_output *output) ESP_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
