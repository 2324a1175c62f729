#include <espalier/distillation.h>
#include <espalier/memory.h>
#include <espalier/ops.h>

struct esp_distillation {
  const esp_model *teacher;
  double weight, temperature; /* weight includes the square of the temperature where asked for */
  esp_tape *tape;             /* the teacher's */
};

esp_status esp_distillation_check(const esp_model *teacher, const esp_checkpoint_info *teacher_info,
                                  const esp_model_config *student, const esp_normalisation *normalisation) {
  const esp_model_config *t = &teacher->config;
  if (t->image_height != student->image_height || t->image_width != student->image_width ||
      t->image_channels != student->image_channels)
    return esp_fail(ESP_ERR_MISMATCH, "the teacher takes images of %d x %d x %d, but the student's are %d x %d x %d",
                    t->image_height, t->image_width, t->image_channels, student->image_height, student->image_width,
                    student->image_channels);
  if (t->classes != student->classes)
    return esp_fail(ESP_ERR_MISMATCH,
                    "the teacher knows %d classes, but the student %d; the teacher must have been trained on this data",
                    t->classes, student->classes);
  for (int c = 0; c < student->image_channels; c++)
    if (teacher_info->normalisation.mean[c] != normalisation->mean[c] ||
        teacher_info->normalisation.deviation[c] != normalisation->deviation[c])
      return esp_fail(
          ESP_ERR_MISMATCH,
          "the teacher was trained on %s, whose images are normalised otherwise than the student's; the teacher "
          "must have been trained on this data",
          teacher_info->data_name);
  return ESP_OK;
}

esp_status esp_distillation_create(esp_distillation **distillation, const esp_distillation_config *config,
                                   const esp_model *teacher) {
  *distillation = NULL;
  if (!(config->weight > 0))
    return esp_fail(ESP_ERR_CONFIG, "there is a teacher, but distillation.weight is %g: it would teach nothing",
                    config->weight);
  esp_distillation *made = esp_alloc(1, sizeof *made);
  if (!made) return ESP_ERR_MEMORY;
  const double square = config->temperature * config->temperature;
  made->teacher = teacher;
  made->temperature = config->temperature;
  made->weight = config->weight * (config->squared ? square : 1);
  made->tape = esp_tape_create();
  if (!made->tape) {
    esp_free(made);
    return ESP_ERR_MEMORY;
  }
  *distillation = made;
  return ESP_OK;
}

void esp_distillation_free(esp_distillation *distillation) {
  if (!distillation) return;
  esp_tape_free(distillation->tape);
  esp_free(distillation);
}

esp_status esp_distillation_add(esp_distillation *d, esp_tape *tape, esp_tensor *images, esp_model_output *output) {
  esp_tape_reset(d->tape, false);
  const esp_pass pass = {.training = false};
  const esp_model_output known = esp_model_forward(d->teacher, d->tape, images, &pass);
  esp_tensor *logits = known.logits;
  if (logits && known.members != output->members)
    logits = esp_tile(d->tape, esp_ensemble_prediction(d->tape, &known), output->members);
  if (!logits) return esp_tape_status(d->tape);
  esp_tape_scope(tape, "loss");
  esp_tensor *raw = esp_distillation_loss(tape, output->logits, logits, d->temperature);
  if (!raw) return esp_tape_status(tape);
  output->auxiliary.loss[output->auxiliary.count++] = (esp_auxiliary_loss){ESP_LOSS_DISTILLATION, -1, d->weight, raw};
  return ESP_OK;
}
