/* Cases of MPI's own collectives; see own.c. */
#ifndef WEFT_TESTS_MPI_OWN_H
#define WEFT_TESTS_MPI_OWN_H

#include "transport/conformance.h"

/* The case of that name; NULL where there is none. */
void (*own_find(const char *name))(rank_world *world);

#endif
