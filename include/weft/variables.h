/* Variables: the values of a graph's parameters and states, by name.
 *
 * A graph says what a parameter is and how it starts; a weft_variables holds its memory, on the world's device. Any number
 * of plans (training, evaluation, other batch sizes) share one set, so what a training step writes is what the next
 * evaluation reads. A variable keeps its address as long as the set lives.
 *
 * Values start as the graph says; random ones are drawn by counter from the graph's seed, the variable's name and the
 * element's index, so that they are the same bits under any number of threads and ranks.
 *
 * A set is used by one thread at a time, and not while a plan that holds it runs. Reading and writing copies between
 * host and device and blocks until that is done. Nothing here waits for other ranks. Under a strategy that splits parameters a rank
 * has its part of them alone; shapes and bytes here are those of the whole variable, whose values only a checkpoint has. (Where ranks share memory, a trainer's solver
 * states may be kept up to date in parts; reading one fetches the rest from the memory of its peers.)
 * Source: src/core/plan/variables.c. */
#ifndef WEFT_VARIABLES_H
#define WEFT_VARIABLES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "weft/dtype.h"
#include "weft/graph.h"
#include "weft/shape.h"
#include "weft/status.h"
#include "weft/world.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct weft_variables weft_variables;

typedef enum weft_variable_kind {
    WEFT_VARIABLE_PARAMETER, /* learnt */
    WEFT_VARIABLE_STATE      /* kept from step to step: running statistics, solver states */
} weft_variable_kind;

/* What a variable is. `name` lives as long as the set. */
typedef struct weft_variable_info {
    const char        *name;
    weft_variable_kind kind;
    weft_dtype         dtype;
    weft_shape         shape;
    int64_t            bytes;         /* of its elements */
    bool               frozen;        /* a parameter that is never updated */
    bool               unregularised; /* a parameter that the regulariser leaves out */
} weft_variable_info;

/* Allocates and initialises every PARAMETER and STATE leaf of `graph`, in the order in which they were added. The graph may be
 * released afterwards; the world must outlive the set. *variables_out gets one reference, NULL on error: WEFT_E_INVALID for
 * NULL, a graph's own first error, WEFT_E_NO_MEMORY naming the bytes. */
WEFT_MUST_CHECK weft_status weft_variables_create(weft_world *world, weft_graph *graph, weft_variables **variables_out);
/* Adds the leaves of `graph` that the set does not have yet, as create does; those it has stay as they are. Nothing is
 * added on an error: WEFT_E_MISMATCH where a leaf has the name of a variable with another dtype, shape or kind. */
WEFT_MUST_CHECK weft_status weft_variables_extend(weft_variables *variables, weft_graph *graph);

/* One more reference. Gives the set; NULL gives NULL. Thread-safe. */
weft_variables *weft_variables_retain(weft_variables *variables);
/* Gives up one reference; the last one frees. NULL is allowed. Thread-safe. */
void weft_variables_release(weft_variables *variables);

/* How many there are, and the bytes of memory that they hold on this rank (each aligned to 64, for every rank that shares it). */
int32_t weft_variables_count(const weft_variables *variables);
int64_t weft_variables_bytes(const weft_variables *variables);
/* Variable `index` from 0, in the order of creation; WEFT_E_INVALID past the end. */
WEFT_MUST_CHECK weft_status weft_variables_info(const weft_variables *variables, int32_t index, weft_variable_info *info_out);
/* The index of the variable called `name`, or -1. */
int32_t weft_variables_find(const weft_variables *variables, const char *name);

/* Copies the variable's elements, row-major, to host memory: `bytes` must be its size. WEFT_E_NOT_FOUND (a like name is
 * suggested), WEFT_E_MISMATCH where the bytes differ; WEFT_E_STATE for a solver state that another rank has overwritten since the last
 * step, while this one wants to know what it was, and for a variable of which a strategy gives this rank a part alone. */
WEFT_MUST_CHECK weft_status weft_variables_get(const weft_variables *variables, const char *name, void *values_out,
                                               size_t bytes);
/* Copies host memory into the variable; dtype and shape must be its own (WEFT_E_DTYPE, WEFT_E_SHAPE, WEFT_E_NOT_FOUND;
 * WEFT_E_STATE as get). */
WEFT_MUST_CHECK weft_status weft_variables_set(weft_variables *variables, const char *name, weft_dtype dtype,
                                               weft_shape shape, const void *values);
/* Gives every variable the value that it was created with. */
WEFT_MUST_CHECK weft_status weft_variables_reset(weft_variables *variables);

#ifdef __cplusplus
}
#endif
#endif
