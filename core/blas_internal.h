/* What the wrappers of OpenBLAS share. */
#ifndef ESPALIER_BLAS_INTERNAL_H
#define ESPALIER_BLAS_INTERNAL_H

/* Before the first call of all, from any thread: OpenBLAS computes single-threaded. */
void esp_use_one_blas_thread(void);

#endif
