/* A wire for SimGrid's simulation of MPI (SMPI): what the collective engine needs, and no more.
 *
 * A post is an MPI_Isend or MPI_Irecv; MPI matches. Whoever waits blocks in MPI_Waitsome, so that simulated time passes until the next of its
 * messages has arrived and nothing polls. Time is MPI_Wtime. There are no regions, and nobody dies here: the simulated wire of the
 * library has that. */
#ifndef WEFT_SIMGRID_WIRE_SMPI_H
#define WEFT_SIMGRID_WIRE_SMPI_H

#include "core/iface/wire.h"

/* What one message costs on the described cluster, for the first choice of algorithms. */
typedef struct smpi_link {
    uint64_t latency_ns;
    double bytes_per_ns;
} smpi_link;

weft_status smpi_wire_open(int32_t rank, int32_t size, smpi_link link, wefti_wire **wire_out);

#endif
