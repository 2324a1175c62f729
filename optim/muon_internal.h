/* Muon's step for one stack of matrices. */
#ifndef ESPALIER_MUON_INTERNAL_H
#define ESPALIER_MUON_INTERNAL_H

#include <espalier/blas.h>
#include <espalier/parameters.h>

/* Room for the largest stack of a store. */
typedef struct esp_muon {
  esp_real *memory;            /* of both of these */
  esp_real *x, *next;          /* as long as the parameter */
  esp_real *gram, *polynomial; /* [matrices, n, n], n the shorter side */
  esp_gemm *products;          /* [matrices] */
} esp_muon;

/* Whether Muon moves it; AdamW does what it does not. */
bool esp_muon_takes(const esp_parameter *p);

esp_status esp_muon_create(esp_muon *muon, const esp_parameters *parameters) ESP_MUST_CHECK;
void esp_muon_free(esp_muon *muon);

/* With g = scale x gradient:  m = momentum m + g;  u = g + momentum m;  O = u's nearest orthogonal matrix, about;
 * w -= rate (0.2 sqrt(max(rows, columns)) O + decay w). */
typedef struct esp_muon_update {
  double rate, decay, scale, momentum;
} esp_muon_update;

void esp_muon_step(esp_muon *muon, esp_parameter *p, esp_real *moment, const esp_muon_update *update);

#endif
