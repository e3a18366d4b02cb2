/* Making a communicator, which MPI does not do without blocking: its call waits for the other members, and for ever where one of them
 * has died. So a thread of its own is in that call, with the lock, while the caller waits for it, for a fault and for its deadline. A
 * thread that hangs there is left behind: MPI is poisoned, and nobody wants the lock any more.
 *
 * The two share the making, which belongs to whoever is the last to look at it. */
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "transport/wire_mpi_api.h"

#define LOOK_NS (50 * UINT64_C(1000))

enum { UNDER_WAY, MADE, LEFT };

typedef struct making {
    const wefti_mpi_api *api;
    _Atomic int          state;
    size_t               bytes; /* of all this */
    int                  size, tag, code;
    wefti_mpi_comm       comm;
    int                  ranks[];
} making;

static void *make(void *argument) {
    making *it = argument;
    int     under_way = UNDER_WAY;
    if (wefti_mpi_lock(true)) {
        it->code = it->api->comm_create(it->ranks, it->size, it->tag, &it->comm);
        wefti_mpi_unlock();
    } else {
        it->code = -1; /* poisoned */
    }
    if (!atomic_compare_exchange_strong(&it->state, &under_way, MADE)) wefti_free(it, it->bytes);
    return NULL;
}

static weft_status outcome(making *it, wefti_mpi_comm *comm_out) {
    char text[WEFTI_MPI_TEXT_BYTES];
    if (wefti_mpi_poisoned()) return wefti_fail(WEFT_E_PEER, "MPI cannot go on in this process: %s", wefti_mpi_poisoned());
    if (it->code == 0) {
        *comm_out = it->comm;
        return WEFT_OK;
    }
    it->api->error_text(it->code, text, sizeof text);
    return wefti_fail(WEFT_E_LINK, "MPI makes no communicator of %d ranks: %s", it->size, text);
}

weft_status wefti_mpi_comm_open(const wefti_mpi *mpi, const wefti_host *host, const int *ranks, int size, int tag, uint64_t deadline_ns,
                                weft_status (*stop)(void *context), void *context, wefti_mpi_comm *comm_out) {
    making     *it = NULL;
    pthread_t   thread;
    size_t      bytes = sizeof *it + (size_t)size * sizeof *ranks;
    weft_status status = WEFT_OK;
    int         under_way = UNDER_WAY;
    if (!mpi->facts.serialized) return wefti_fail(WEFT_E_UNSUPPORTED, "the program lets one thread alone call MPI");
    WEFTI_TRY(wefti_alloc(bytes, "a communicator's members", &it));
    it->api = mpi->api;
    it->bytes = bytes;
    it->size = size;
    it->tag = tag;
    memcpy(it->ranks, ranks, (size_t)size * sizeof *ranks);
    if (pthread_create(&thread, NULL, make, it) != 0) {
        wefti_free(it, bytes);
        return wefti_fail(WEFT_E_NO_MEMORY, "there is no thread to make MPI's communicator");
    }
    pthread_detach(thread);
    while (atomic_load(&it->state) == UNDER_WAY && status == WEFT_OK) {
        host->sleep(host->context, LOOK_NS);
        status = stop(context);
        if (status == WEFT_OK && wefti_host_now(host) >= deadline_ns)
            status = wefti_fail(WEFT_E_TIMEOUT, "MPI made no communicator of %d ranks in time", size);
    }
    if (status != WEFT_OK && atomic_compare_exchange_strong(&it->state, &under_way, LEFT)) {
        wefti_mpi_poison("a communicator was not made, and MPI still waits for its members"); /* the thread frees it, if it ever ends */
        return status;
    }
    status = outcome(it, comm_out);
    wefti_free(it, bytes);
    return status;
}
