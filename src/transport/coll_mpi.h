/* Inside of MPI's collectives as an algorithm: coll_mpi.c does them, coll_mpi_open.c makes communicators and measures. */
#ifndef WEFTI_TRANSPORT_COLL_MPI_H
#define WEFTI_TRANSPORT_COLL_MPI_H

#include "transport/coll.h"
#include "transport/wire_mpi.h"

typedef enum coll_mpi_state {
    COLL_MPI_NONE,
    COLL_MPI_GREETS,  /* headers go around */
    COLL_MPI_READY,   /* waits for its turn */
    COLL_MPI_COUNTS,  /* MPI carries the counts of an all-to-allv … */
    COLL_MPI_VERDICT, /* … and what the members think of them */
    COLL_MPI_GIVEN,   /* MPI has the call itself */
    COLL_MPI_DONE
} coll_mpi_state;

/* One for each operation of the group. */
typedef struct coll_mpi_call {
    coll_mpi_state    state;
    bool              with_mpi; /* the request is MPI's */
    wefti_mpi_request request;
    uint64_t          number;   /* among the group's calls by MPI */
    int               code;     /* MPI's error … */
    char              text[WEFTI_MPI_TEXT_BYTES]; /* … in words */
    int              *counts;   /* [4 · size]: sent, their offsets, received, their offsets */
    uint64_t         *told;     /* [2 · size]: what an all-to-allv sends to each member, and what each says it sends here */
    int32_t           verdict, stranger; /* of those; the member whose count is another than is expected here, or -1 */
    uint8_t          *aside;    /* [aside_bytes] the result of a reduce-scatter that is in place */
    size_t            aside_bytes;
} coll_mpi_call;

struct coll_mpi {
    const wefti_mpi *mpi;
    mpiw_wire       *wire;
    wefti_mpi_comm   comm;
    bool             has_comm;
    uint64_t         begun, posted; /* calls that have a number, and that MPI was given */
    coll_mpi_call   *calls;  /* [in_flight] */
    uint64_t        *counts; /* the calls' told and counts */
    size_t           counts_bytes;
};

#endif
