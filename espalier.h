/* All of Espalier. Where to begin:
 *   esp_dataset_open()                              images                              (dataset.h)
 *   esp_run_config_parse(), esp_run_config_load()   settings                            (run_config.h)
 *   esp_run_train()                                 a trained model, kept in a folder   (run.h)
 *   esp_trained_load(), esp_trained_save()          the same from a file, and into one  (trained.h)
 *   esp_evaluate()                                  accuracy and loss                   (evaluate.h)
 *   esp_method_apply()                              a smaller model                     (method.h)
 * What can fail returns an esp_status, and esp_error_message() says why (status.h). examples/train.c uses all of
 * these. */
#ifndef ESPALIER_H
#define ESPALIER_H

#include <espalier/checkpoints.h>
#include <espalier/core.h>
#include <espalier/data.h>
#include <espalier/layers.h>
#include <espalier/measure.h>
#include <espalier/optim.h>
#include <espalier/prune.h>
#include <espalier/train.h>

#endif
