/* The linear assignment problem: each row gets a column of its own so that the sum of the gains is largest. Solved
 * exactly, by shortest augmenting paths (Jonker and Volgenant, "A shortest augmenting path algorithm for dense and
 * sparse linear assignment problems", Computing 38, 1987, without their initialisation), O(n^3) in double precision.
 *
 * Own code, because no packaged library fits: the solvers of GLPK and igraph are under the GPL, LEMON is for C++, and
 * CLP and lp_solve would treat the n^2 gains as variables of a general linear program. */
#ifndef ESPALIER_ASSIGNMENT_H
#define ESPALIER_ASSIGNMENT_H

#include <espalier/status.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* gain [n, n] -> column [n]: column[r] is row r's. Deterministic. ESP_ERR_NOT_FINITE if a gain is not finite. */
ESP_API esp_status esp_assign(int n, const double *gain, int32_t *column) ESP_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
