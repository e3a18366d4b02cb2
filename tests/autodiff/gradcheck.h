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

/* Narrower dtypes than f64 are too coarse for differences: their gradients are held against those of the same graph in f64, on the same
 * inputs. So the same checks are made twice, in the same order: with floating leaves of f64 after gradcheck_keep, which rounds what goes
 * in to `dtype` and keeps the gradients, then with leaves of `dtype` after gradcheck_compare. gradcheck_end fails where their numbers
 * differ. */
void gradcheck_keep(weft_dtype dtype);
void gradcheck_compare(void);
void gradcheck_end(void);

#endif
