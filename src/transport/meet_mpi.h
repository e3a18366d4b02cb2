/* The rendezvous over MPI. */
#ifndef WEFTI_TRANSPORT_MEET_MPI_H
#define WEFTI_TRANSPORT_MEET_MPI_H

#include "transport/transport.h"

/* Fills the place's store, its port, job and secret, and rank 0's listening socket, from what rank 0 says over MPI. Starts MPI;
 * collective over all its processes, which must be the world's ranks; after it, wefti_mpi_leave is due. `host_number`: equal on ranks of one host. */
WEFT_MUST_CHECK weft_status wefti_meet_by_mpi(wefti_place *place, const wefti_host *host, uint64_t host_number, uint64_t timeout_ns);

#endif
