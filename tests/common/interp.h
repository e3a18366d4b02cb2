/* A graph run one call at a time on the plain CPU kernels: nothing is fused, planned, or reused. What tests hold plans
 * and gradients against. Failures fail the test. */
#ifndef TESTS_COMMON_INTERP_H
#define TESTS_COMMON_INTERP_H

#include "core/graph/graph.h"

typedef struct interp interp;

/* Makes ready to compute `targets` (tensors of the graph): with `training`, MODE gives its first input. Variables and
 * inputs start as zeros. The graph must outlive it. */
interp *interp_open(weft_graph *graph, weft_tensor *const *targets, int32_t count, bool training);
void    interp_close(interp *in);
/* Sets every element of a leaf, in row-major order. */
void interp_set(interp *in, const weft_tensor *leaf, const double *values);
void interp_set_one(interp *in, const weft_tensor *leaf, int64_t element, double value);
/* Computes everything that the targets need. */
void interp_run(interp *in, int64_t step);
/* Reads a tensor that was computed, or a leaf. */
double interp_get(const interp *in, const weft_tensor *tensor, int64_t element);
/* Its elements in memory, as the device left them. */
const void *interp_data(const interp *in, const weft_tensor *tensor);

#endif
