#include "wire_smpi.h"

#include <limits.h>
#include <mpi.h>
#include <stdlib.h>
#include <string.h>

#include "transport/wire_common.h"

enum { MOST_UNDER_WAY = 4096, EARLY_BYTES = 1 << 16 /* of no use: MPI keeps what comes early */ };

typedef struct smpi_wire {
    wefti_wire_base base;
    wefti_host host;
    int count; /* under way */
    MPI_Request requests[MOST_UNDER_WAY];
    wefti_wire_op *ops[MOST_UNDER_WAY];
    int done[MOST_UNDER_WAY];
    MPI_Status statuses[MOST_UNDER_WAY];
} smpi_wire;

/* --- the host: simulated time --- */

static uint64_t now_ns(void *context) { return (void)context, (uint64_t)(MPI_Wtime() * 1e9); }

/* Until something that is under way has arrived; at once where nothing is. */
static void wait_for_some(void *context) {
    smpi_wire *wire = context;
    int        done = 0;
    if (wire->count == 0) return;
    MPI_Waitsome(wire->count, wire->requests, &done, wire->done, wire->statuses);
    for (int i = 0; i < done; i++) {
        wefti_wire_op *op = wire->ops[wire->done[i]];
        int            bytes = (int)op->bytes;
        if (op->kind == WEFTI_WIRE_RECV) MPI_Get_count(&wire->statuses[i], MPI_BYTE, &bytes);
        wire->ops[wire->done[i]] = NULL;
        if (op->kind == WEFTI_WIRE_RECV) wefti_wire_finish_recv(&wire->base, op, op->peer, (size_t)bytes);
        else wefti_wire_finish(&wire->base, op, WEFT_OK, op->peer, op->bytes);
    }
    int kept = 0;
    for (int i = 0; i < wire->count; i++) {
        if (!wire->ops[i]) continue;
        wire->ops[kept] = wire->ops[i];
        wire->requests[kept++] = wire->requests[i];
    }
    wire->count = kept;
}
static void sleep_for(void *context, uint64_t duration_ns) { (void)duration_ns, wait_for_some(context); }
static weft_status random_bytes(void *context, void *bytes, size_t size_bytes) {
    return (void)context, memset(bytes, 7, size_bytes), WEFT_OK; /* nothing here is secret */
}

/* --- the table --- */

static wefti_wire_link link_state(const wefti_wire *wire, int32_t peer) { return (void)wire, (void)peer, WEFTI_LINK_UP; }

static weft_status post(wefti_wire *self, wefti_wire_op *op) {
    smpi_wire *wire = (smpi_wire *)self;
    /* Operation and step of the engine's tag are all that differs between messages of one group. */
    int tag = (int)((op->tag >> 20 & 0x3ffff) << 6 | (op->tag & 0x3f)), code;
    if (wire->count == MOST_UNDER_WAY) return WEFT_E_AGAIN;
    /* Questions of ranks that wait in vain: no rank does here, and MPI would have to match them among all tags. */
    if (op->peer < 0) return wefti_fail(WEFT_E_UNSUPPORTED, "smpi: what any rank may have sent is not received");
    if (op->bytes > INT_MAX) return wefti_fail(WEFT_E_OVERFLOW, "smpi: %zu bytes in one message", op->bytes);
    op->done = false;
    if (op->kind == WEFTI_WIRE_SEND) {
        code = MPI_Isend(op->buffer, (int)op->bytes, MPI_BYTE, op->peer, tag, MPI_COMM_WORLD, &wire->requests[wire->count]);
        wire->base.counts.sent_bytes += op->bytes;
        wire->base.counts.sent_messages++;
    } else if (op->kind == WEFTI_WIRE_RECV) {
        code = MPI_Irecv(op->buffer, (int)op->bytes, MPI_BYTE, op->peer, tag, MPI_COMM_WORLD, &wire->requests[wire->count]);
    } else {
        return wefti_fail(WEFT_E_UNSUPPORTED, "smpi: there are no regions");
    }
    if (code != MPI_SUCCESS) return wefti_fail(WEFT_E_LINK, "smpi: MPI gives error %d", code);
    wire->ops[wire->count++] = op;
    return WEFT_OK;
}

static weft_status poll(wefti_wire *self, uint64_t now, wefti_wire_op **ops_out, int32_t capacity, int32_t *count_out) {
    (void)now;
    *count_out = wefti_wire_hand_out((wefti_wire_base *)self, ops_out, capacity);
    return WEFT_OK;
}

static weft_status cancel(wefti_wire *self, wefti_wire_op *op) { return (void)self, (void)op, WEFT_E_STATE; }
static void        abort_all(wefti_wire *self, weft_status status, int32_t rank) { (void)self, (void)status, (void)rank; }
static int         descriptor(wefti_wire *self) { return (void)self, -1; }
static void        close_wire(wefti_wire *self, uint64_t linger_ns) {
    (void)linger_ns;
    wefti_wire_base_close((wefti_wire_base *)self);
    free(self);
}

weft_status smpi_wire_open(int32_t rank, int32_t size, smpi_link link, wefti_wire **wire_out) {
    static const wefti_wire_ops ops = {.link = link_state, .post = post, .poll = poll, .cancel = cancel, .abort = abort_all,
                                       .descriptor = descriptor, .counts = wefti_wire_read_counts, .close = close_wire};
    smpi_wire *wire = calloc(1, sizeof *wire);
    if (!wire) return wefti_fail(WEFT_E_NO_MEMORY, "smpi: no memory for a wire");
    wire->host = (wefti_host){.now_ns = now_ns, .yield = wait_for_some, .sleep = sleep_for, .random = random_bytes, .context = wire,
                              .cores = 1 /* who finds nothing lets simulated time pass at once */};
    weft_status status = wefti_wire_base_open(&wire->base, &(wefti_wire_options){.host = &wire->host, .rank = rank, .size = size}, &ops, EARLY_BYTES);
    if (status != WEFT_OK) {
        free(wire);
        return status;
    }
    wire->base.wire.can = (wefti_wire_capabilities){.name = "smpi", .latency_ns = link.latency_ns, .bytes_per_ns = link.bytes_per_ns,
                                                    .eager_bytes = 64 << 10, .max_message_bytes = (size_t)1 << 30};
    *wire_out = &wire->base.wire;
    return WEFT_OK;
}
