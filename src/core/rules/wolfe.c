/* Strong Wolfe line search (Nocedal & Wright 2006, algorithms 3.5 and 3.6): steps double until a minimum lies between two of them, and cubic
 * interpolation shrinks that bracket. Costs one probe a try and no memory. */
#include "core/rules/wolfe.h"

#include <math.h>

static const double sufficient = 1e-4, curvature = 0.9;

/* Minimiser of the cubic through two samples, kept inside the middle 80 % of the interval. */
static double interpolate(wefti_wolfe_point a, wefti_wolfe_point b) {
    double d1 = a.slope + b.slope - 3 * (a.value - b.value) / (a.t - b.t);
    double square = d1 * d1 - a.slope * b.slope;
    double low = fmin(a.t, b.t), high = fmax(a.t, b.t), middle = 0.5 * (low + high);
    if (!(square >= 0)) return middle;
    double d2 = b.t > a.t ? sqrt(square) : -sqrt(square);
    double t = b.t - (b.t - a.t) * ((b.slope + d2 - d1) / (b.slope - a.slope + 2 * d2));
    return isfinite(t) ? fmin(fmax(t, low + 0.1 * (high - low)), high - 0.1 * (high - low)) : middle;
}

static bool too_high(const wefti_wolfe *s, wefti_wolfe_point at, wefti_wolfe_point low) {
    return !(at.value <= s->value0 + sufficient * at.t * s->slope0) || at.value >= low.value;
}

/* Shrinks a bracket until the strong Wolfe conditions hold; the latest probe is the accepted point, or the best one. */
static weft_status zoom(const wefti_wolfe *s, wefti_wolfe_point low, wefti_wolfe_point high, int32_t tries, wefti_wolfe_point *found_out) {
    while (tries-- > 0 && fabs(high.t - low.t) * fabs(s->slope0) > 1e-16 * fmax(1, fabs(s->value0))) {
        wefti_wolfe_point at = {.t = isfinite(high.value) && isfinite(high.slope) ? interpolate(low, high) : 0.5 * (low.t + high.t)};
        WEFTI_TRY(s->probe(s->context, at.t, &at.value, &at.slope));
        if (too_high(s, at, low)) {
            high = at;
            continue;
        }
        if (fabs(at.slope) <= -curvature * s->slope0) {
            *found_out = at;
            return WEFT_OK;
        }
        if (at.slope * (high.t - low.t) >= 0) high = low;
        low = at;
    }
    WEFTI_TRY(s->probe(s->context, low.t, &low.value, &low.slope));
    *found_out = low;
    return WEFT_OK;
}

weft_status wefti_wolfe_search(const wefti_wolfe *s, double first, int32_t tries, wefti_wolfe_point *found_out) {
    wefti_wolfe_point before = {0, s->value0, s->slope0}, at = {.t = first};
    for (int32_t i = 0; i < tries; i++, before = at, at.t *= 2) {
        WEFTI_TRY(s->probe(s->context, at.t, &at.value, &at.slope));
        if (!isfinite(at.value) || too_high(s, at, i ? before : (wefti_wolfe_point){0, INFINITY, 0}))
            return zoom(s, before, at, tries - i, found_out);
        if (fabs(at.slope) <= -curvature * s->slope0) break;
        if (at.slope >= 0) return zoom(s, at, before, tries - i, found_out);
        if (i == tries - 1) break;
    }
    *found_out = at;
    return WEFT_OK;
}
