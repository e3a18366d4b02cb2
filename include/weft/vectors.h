/* Vectors on a parameter server: dense tables taken as vectors, and arithmetic that is done where they lie.
 *
 *     weft_vector_command commands[] = {{.op = WEFT_VECTOR_AXPY, .x = direction, .y = point, .scale = 0.5},
 *                                       {.op = WEFT_VECTOR_DOT, .x = point, .y = point}};
 *     double results[2];
 *     if ((s = weft_vectors_run(server, commands, 2, results)) != WEFT_OK) goto done;
 *
 * Any worker gives commands, in messages whose size does not depend on that of the vectors: what methods are made of that need whole vectors
 * (L-BFGS: weft/lbfgs.h). Vectors are dense tables of F32 or F64 with as many rows of one width, so the same parts of them lie on a server. */
#ifndef WEFT_VECTORS_H
#define WEFT_VECTORS_H

#include "weft/server.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum weft_vector_op {
    WEFT_VECTOR_FILL,     /* y = scale */
    WEFT_VECTOR_COPY,     /* y = x */
    WEFT_VECTOR_SCALE,    /* y *= scale */
    WEFT_VECTOR_AXPY,     /* y += scale*x */
    WEFT_VECTOR_MULTIPLY, /* y *= x, element by element */
    WEFT_VECTOR_DOT       /* the result is the sum of x*y */
} weft_vector_op;

typedef struct weft_vector_command {
    weft_vector_op op;
    weft_table    *x, *y; /* x: COPY, AXPY, MULTIPLY, DOT; may be y */
    double         scale; /* FILL, SCALE, AXPY; in the tables' dtype */
} weft_vector_command;

/* Carries out `count` commands in their order on every server, and waits. results_out [count]: of DOT; 0 for the others; NULL where there is no DOT.
 * Sums are F64, in an order that the rows of each server fix, and servers' in the order of their ranks: the same bits in every run on as many servers.
 * Rows change at once, whatever the table's rule and clock, and states stay, as with WEFT_SET: not beside pushes to the same tables. Commands and requests of
 * one worker take effect in the order in which they were started. Up to 96 go in one message, and a server begins
 * none of these before it has checked all. WEFT_E_INVALID (a table that is missing, sparse, or of another server), WEFT_E_SHAPE, WEFT_E_DTYPE, WEFT_E_UNSUPPORTED (FTRL,
 * whose rows follow from their states), WEFT_E_PEER, WEFT_E_TIMEOUT. From src/parallel/server/vectors.c. */
WEFT_MUST_CHECK weft_status weft_vectors_run(weft_server *server, const weft_vector_command *commands, int32_t count, double *results_out);

#ifdef __cplusplus
}
#endif
#endif
