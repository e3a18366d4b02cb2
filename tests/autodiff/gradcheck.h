/* Gradients against central differences, in f64: of first order, and of the gradient's product with a fixed vector. */
#ifndef TESTS_AUTODIFF_GRADCHECK_H
#define TESTS_AUTODIFF_GRADCHECK_H

#include "common/interp.h"

typedef struct gradcheck {
    const char *name;         /* in messages */
    bool        first_only;   /* the ops cannot be differentiated again */
    bool        evaluation;   /* not training */
    double      low, high;    /* values of inputs are spread in here; both 0: -1 to 1 */
    double      integers;     /* integer inputs are 0 .. this - 1 */
    double      tolerance;    /* 0: 1e-6 relative to the largest gradient */
} gradcheck;

/* Checks `y` (any shape, floating) of a graph of f64 leaves: sum(y*w) for a fixed w is differentiated with respect to
 * every floating input and parameter. The graph is extended. */
void check_gradients(weft_tensor *y, gradcheck options);

#endif
