/* Line search for methods that know value and slope along a direction, wherever their vectors are. */
#ifndef WEFTI_WOLFE_H
#define WEFTI_WOLFE_H

#include "core/base/base.h"

/* A place along the direction. */
typedef struct wefti_wolfe_point { double t, value, slope; } wefti_wolfe_point;

typedef struct wefti_wolfe {
    /* Value and slope at step length t. The caller keeps what belongs to the latest one. */
    weft_status (*probe)(void *context, double t, double *value_out, double *slope_out);
    void *context;
    double value0, slope0; /* at t = 0; slope0 < 0 */
} wefti_wolfe;

/* A step length at which the strong Wolfe conditions hold (1e-4, 0.9), beginning with `first`; the latest probe was the one that is found. Where `tries`
 * probes or the precision of the values do not do, the best of those that went: its value may then not be below value0. Errors: the probe's. */
WEFT_MUST_CHECK weft_status wefti_wolfe_search(const wefti_wolfe *search, double first, int32_t tries, wefti_wolfe_point *found_out);

#endif
