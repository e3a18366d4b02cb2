/* The module that knows one MPI: compiled with that MPI's mpi.h into libweft_mpi_<flavour>.so, loaded by wire_mpi_api.c. It
 * holds MPI's types and constants, which differ from one MPI to the next, and nothing else: no state but the communicator
 * and the operations, no memory, no policy. Handles travel in 64 bits. */
#include <limits.h>
#include <mpi.h>
#include <string.h>

#include "core/iface/collective.h"
#include "transport/wire_mpi_api.h"

#ifndef WEFTI_MPI_FLAVOUR
#error "the build says which MPI this is"
#endif

enum { MOST_REQUESTS = 512 };

_Static_assert(sizeof(MPI_Request) <= sizeof(wefti_mpi_request) && sizeof(MPI_Comm) <= sizeof(wefti_mpi_comm),
               "handles fit into 64 bits");

const wefti_mpi_api *wefti_mpi_module(void);

static int  make_own_ops(void);
static void free_own_ops(void);

static MPI_Comm own = MPI_COMM_NULL;
static bool     started_here;
static wefti_mpi_combine combine;

static MPI_Request request_of(const wefti_mpi_request *request) {
    MPI_Request handle;
    memcpy(&handle, request, sizeof handle);
    return handle;
}
static void keep_request(wefti_mpi_request *request, MPI_Request handle) {
    request->handle = 0;
    memcpy(request, &handle, sizeof handle);
}
static MPI_Comm comm_of(const wefti_mpi_comm *comm) {
    MPI_Comm handle = own;
    if (comm) memcpy(&handle, comm, sizeof handle);
    return handle;
}

/* --- start and stop --- */

static bool is_running(void) {
    int initialised = 0, finalised = 0;
    return MPI_Initialized(&initialised) == MPI_SUCCESS && initialised && MPI_Finalized(&finalised) == MPI_SUCCESS && !finalised;
}

static void read_version(char *text_out, size_t text_bytes) {
    char text[MPI_MAX_LIBRARY_VERSION_STRING];
    int  length = 0;
    text_out[0] = 0;
    if (MPI_Get_library_version(text, &length) != MPI_SUCCESS) return;
    size_t used = 0;
    for (int i = 0; i < length && text[i] != ',' && text[i] != '\n' && used + 1 < text_bytes; i++)
        text_out[used++] = text[i] == '\t' ? ' ' : text[i];
    text_out[used] = 0;
}

static int start(wefti_mpi_combine function, wefti_mpi_facts *facts) {
    int  code = MPI_SUCCESS, level = 0, main_thread = 0, found = 0;
    int *most_tag = NULL;
    if (!is_running()) {
        if ((code = MPI_Init_thread(NULL, NULL, MPI_THREAD_SERIALIZED, &level)) != MPI_SUCCESS) return code;
        started_here = true;
        /* What concerns no communicator is reported to this one, whose default ends the process. */
        MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
        MPI_Comm_set_errhandler(MPI_COMM_SELF, MPI_ERRORS_RETURN);
    }
    if ((code = MPI_Query_thread(&level)) != MPI_SUCCESS || (code = MPI_Is_thread_main(&main_thread)) != MPI_SUCCESS ||
        (code = MPI_Comm_dup(MPI_COMM_WORLD, &own)) != MPI_SUCCESS ||
        (code = MPI_Comm_set_errhandler(own, MPI_ERRORS_RETURN)) != MPI_SUCCESS ||
        (code = MPI_Comm_rank(own, &facts->rank)) != MPI_SUCCESS || (code = MPI_Comm_size(own, &facts->size)) != MPI_SUCCESS ||
        (code = MPI_Comm_get_attr(own, MPI_TAG_UB, &most_tag, &found)) != MPI_SUCCESS ||
        (code = make_own_ops()) != MPI_SUCCESS)
        return code;
    combine = function;
    facts->most_tag = found ? *most_tag : 32767; /* what the standard promises at least */
    facts->started_here = started_here;
    facts->serialized = level >= MPI_THREAD_SERIALIZED;
    facts->main_thread = main_thread != 0;
    read_version(facts->version, sizeof facts->version);
    return MPI_SUCCESS;
}

static int stop(void) {
    if (!is_running()) return MPI_SUCCESS;
    free_own_ops();
    if (own != MPI_COMM_NULL) MPI_Comm_free(&own);
    return started_here ? MPI_Finalize() : MPI_SUCCESS;
}

static void error_text(int code, char *text_out, size_t text_bytes) {
    char text[MPI_MAX_ERROR_STRING] = "unknown error";
    int  length = 0;
    MPI_Error_string(code, text, &length);
    for (char *at = text; *at; at++)
        if (*at == '\n') *at = ' ';
    strncpy(text_out, text, text_bytes - 1);
    text_out[text_bytes - 1] = 0;
}

/* --- messages --- */

static int send_bytes(const void *buffer, size_t bytes, int target, int tag, wefti_mpi_request *request_out) {
    MPI_Request request = MPI_REQUEST_NULL;
    if (bytes > INT_MAX) return MPI_ERR_COUNT;
    int code = MPI_Isend(buffer, (int)bytes, MPI_BYTE, target, tag, own, &request);
    keep_request(request_out, request);
    return code;
}

static int receive_bytes(void *buffer, size_t bytes, int source, int tag, wefti_mpi_request *request_out) {
    MPI_Request request = MPI_REQUEST_NULL;
    if (bytes > INT_MAX) return MPI_ERR_COUNT;
    int code = MPI_Irecv(buffer, (int)bytes, MPI_BYTE, source == WEFTI_MPI_ANY ? MPI_ANY_SOURCE : source, tag, own, &request);
    keep_request(request_out, request);
    return code;
}

static void tell(const MPI_Status *status, int error, wefti_mpi_status *status_out) {
    int cancelled = 0, bytes = 0;
    MPI_Test_cancelled(status, &cancelled);
    if (MPI_Get_count(status, MPI_BYTE, &bytes) != MPI_SUCCESS || bytes == MPI_UNDEFINED) bytes = 0;
    *status_out = (wefti_mpi_status){status->MPI_SOURCE, error, cancelled != 0, (size_t)bytes};
}

static int test(wefti_mpi_request *request, bool *done_out, wefti_mpi_status *status_out) {
    MPI_Request handle = request_of(request);
    MPI_Status  status;
    int         done = 0, code;
    memset(&status, 0, sizeof status);
    code = MPI_Test(&handle, &done, &status);
    keep_request(request, handle);
    *done_out = done || code != MPI_SUCCESS;
    if (*done_out) tell(&status, code, status_out);
    return MPI_SUCCESS;
}

static int test_some(wefti_mpi_request *requests, int count, int *done_out, int *indices_out, wefti_mpi_status *statuses_out) {
    MPI_Request handles[MOST_REQUESTS];
    MPI_Status  statuses[MOST_REQUESTS];
    int         done = 0;
    *done_out = 0;
    if (count > MOST_REQUESTS) return MPI_ERR_COUNT;
    for (int i = 0; i < count; i++) handles[i] = request_of(&requests[i]);
    int code = MPI_Testsome(count, handles, &done, indices_out, statuses);
    if (done == MPI_UNDEFINED || (code != MPI_SUCCESS && code != MPI_ERR_IN_STATUS)) return code;
    for (int i = 0; i < done; i++) {
        keep_request(&requests[indices_out[i]], handles[indices_out[i]]);
        tell(&statuses[i], code == MPI_ERR_IN_STATUS ? statuses[i].MPI_ERROR : MPI_SUCCESS, &statuses_out[i]);
    }
    *done_out = done;
    return MPI_SUCCESS;
}

static int cancel(wefti_mpi_request *request) {
    MPI_Request handle = request_of(request);
    return handle == MPI_REQUEST_NULL ? MPI_SUCCESS : MPI_Cancel(&handle);
}

static int forget(wefti_mpi_request *request) {
    MPI_Request handle = request_of(request);
    int         code = handle == MPI_REQUEST_NULL ? MPI_SUCCESS : MPI_Request_free(&handle);
    keep_request(request, handle);
    return code;
}

/* --- collectives --- */

static int comm_create(const int *ranks, int size, int tag, wefti_mpi_comm *comm_out) {
    MPI_Group all = MPI_GROUP_NULL, some = MPI_GROUP_NULL;
    MPI_Comm  comm = MPI_COMM_NULL;
    int       code = MPI_Comm_group(own, &all);
    if (code == MPI_SUCCESS) code = MPI_Group_incl(all, size, ranks, &some);
    if (code == MPI_SUCCESS) code = MPI_Comm_create_group(own, some, tag, &comm);
    if (code == MPI_SUCCESS) code = MPI_Comm_set_errhandler(comm, MPI_ERRORS_RETURN);
    if (some != MPI_GROUP_NULL) MPI_Group_free(&some);
    if (all != MPI_GROUP_NULL) MPI_Group_free(&all);
    comm_out->handle = 0;
    memcpy(comm_out, &comm, sizeof comm);
    return code;
}

static int comm_free(wefti_mpi_comm *comm) {
    MPI_Comm handle = comm_of(comm);
    return handle == MPI_COMM_NULL ? MPI_SUCCESS : MPI_Comm_free(&handle);
}

/* Moved elements are whole numbers of their size, so that MPI's ints count elements and not bytes. */
static MPI_Datatype unit_of(int element_bytes) {
    switch (element_bytes) {
    case 2: return MPI_UINT16_T;
    case 4: return MPI_UINT32_T;
    case 8: return MPI_UINT64_T;
    default: return MPI_BYTE;
    }
}

/* What MPI's reductions are given for ours: its own where they do the same, else operations of ours (see own_op). */
static MPI_Datatype type_of(int dtype) {
    switch ((weft_dtype)dtype) {
    case WEFT_F32: return MPI_FLOAT;
    case WEFT_F64: return MPI_DOUBLE;
    case WEFT_F16:
    case WEFT_BF16: return MPI_UINT16_T;
    case WEFT_I64: return MPI_INT64_T;
    case WEFT_I32: return MPI_INT32_T;
    case WEFT_U8:
    case WEFT_BOOL: return MPI_UINT8_T;
    default: return MPI_DATATYPE_NULL;
    }
}

/* MPI knows no halves, and its minimum of a NaN is anything: these are reduced by Weft's own function. */
enum { OWN_OPS = WEFTI_REDUCE_MAX + 1 };
static MPI_Op own_ops[WEFT_DTYPE_COUNT][OWN_OPS];

#define OWN(dtype, op)                                                                                \
    static void own_##dtype##_##op(void *more, void *into, int *count, MPI_Datatype *type) {          \
        (void)type;                                                                                   \
        combine(into, more, (size_t)*count, WEFT_##dtype, WEFTI_REDUCE_##op);                         \
    }
#define ALL_OWN(DO) \
    DO(F16, SUM) DO(F16, PROD) DO(F16, MIN) DO(F16, MAX) DO(BF16, SUM) DO(BF16, PROD) DO(BF16, MIN) DO(BF16, MAX) \
    DO(F32, MIN) DO(F32, MAX) DO(F64, MIN) DO(F64, MAX)
ALL_OWN(OWN)

static int make_own_ops(void) {
    int code = MPI_SUCCESS;
    for (int dtype = 0; dtype < WEFT_DTYPE_COUNT; dtype++)
        for (int op = 0; op < OWN_OPS; op++) own_ops[dtype][op] = MPI_OP_NULL;
#define MAKE(dtype, op) \
    if (code == MPI_SUCCESS) code = MPI_Op_create(own_##dtype##_##op, 1, &own_ops[WEFT_##dtype][WEFTI_REDUCE_##op]);
    ALL_OWN(MAKE)
#undef MAKE
    return code;
}
static void free_own_ops(void) {
    for (int dtype = 0; dtype < WEFT_DTYPE_COUNT; dtype++)
        for (int op = 0; op < OWN_OPS; op++)
            if (own_ops[dtype][op] != MPI_OP_NULL) MPI_Op_free(&own_ops[dtype][op]);
}

static MPI_Op op_of(int dtype, int op) {
    if (op == WEFTI_REDUCE_AVG) op = WEFTI_REDUCE_SUM;
    if (dtype < 0 || dtype >= WEFT_DTYPE_COUNT || op < 0 || op >= OWN_OPS) return MPI_OP_NULL;
    if (own_ops[dtype][op] != MPI_OP_NULL) return own_ops[dtype][op];
    bool truth = dtype == WEFT_BOOL; /* 0 and 1: or is the larger, and the smaller */
    switch ((wefti_reduce_op)op) {
    case WEFTI_REDUCE_SUM: return truth ? MPI_MAX : MPI_SUM;
    case WEFTI_REDUCE_PROD: return truth ? MPI_MIN : MPI_PROD;
    case WEFTI_REDUCE_MIN: return MPI_MIN;
    default: return MPI_MAX;
    }
}

static bool can_reduce(int dtype, int op) {
    return type_of(dtype) != MPI_DATATYPE_NULL && op_of(dtype, op) != MPI_OP_NULL && !(dtype == WEFT_BOOL && op == WEFTI_REDUCE_AVG);
}

static int reduce(MPI_Comm comm, const wefti_mpi_call *call, MPI_Request *request) {
    MPI_Datatype type = type_of(call->dtype);
    MPI_Op       op = op_of(call->dtype, call->op);
    int          count = (int)call->count;
    const void  *send = call->in_place ? MPI_IN_PLACE : call->send;
    switch ((wefti_collective_kind)call->kind) {
    case WEFTI_ALLREDUCE: return MPI_Iallreduce(send, call->receive, count, type, op, comm, request);
    case WEFTI_REDUCE_TO: return MPI_Ireduce(send, call->receive, count, type, op, call->root, comm, request);
    case WEFTI_REDUCE_SCATTER: return MPI_Ireduce_scatter_block(send, call->receive, count, type, op, comm, request);
    case WEFTI_REDUCE_SCATTER_V: return MPI_Ireduce_scatter(send, call->receive, call->counts, type, op, comm, request);
    default: return MPI_ERR_OP;
    }
}

static int move(MPI_Comm comm, const wefti_mpi_call *call, MPI_Request *request) {
    MPI_Datatype unit = unit_of(call->element_bytes);
    int          count = (int)call->count, rank = 0;
    const void  *send = call->in_place ? MPI_IN_PLACE : call->send;
    switch ((wefti_collective_kind)call->kind) {
    case WEFTI_BARRIER: return MPI_Ibarrier(comm, request);
    case WEFTI_BROADCAST: return MPI_Ibcast(call->receive, count, unit, call->root, comm, request);
    case WEFTI_ALLGATHER: return MPI_Iallgather(send, count, unit, call->receive, count, unit, comm, request);
    case WEFTI_GATHER: return MPI_Igather(send, count, unit, call->receive, count, unit, call->root, comm, request);
    case WEFTI_SCATTER:
        return MPI_Iscatter(call->send, count, unit, call->in_place ? MPI_IN_PLACE : call->receive, count, unit, call->root, comm, request);
    case WEFTI_ALLTOALL: return MPI_Ialltoall(call->send, count, unit, call->receive, count, unit, comm, request);
    case WEFTI_ALLGATHER_V:
        if (MPI_Comm_rank(comm, &rank) != MPI_SUCCESS) return MPI_ERR_COMM;
        return MPI_Iallgatherv(send, call->counts[rank], unit, call->receive, call->counts, call->offsets, unit, comm, request);
    case WEFTI_ALLTOALL_V:
        return MPI_Ialltoallv(call->send, call->counts, call->offsets, unit, call->receive, call->receive_counts, call->receive_offsets,
                              unit, comm, request);
    default: return MPI_ERR_OTHER;
    }
}

static int collective(const wefti_mpi_comm *comm, const wefti_mpi_call *call, wefti_mpi_request *request_out) {
    MPI_Request request = MPI_REQUEST_NULL;
    if (call->count > INT_MAX) return MPI_ERR_COUNT;
    bool reduces = call->kind == WEFTI_ALLREDUCE || call->kind == WEFTI_REDUCE_TO || call->kind == WEFTI_REDUCE_SCATTER ||
                   call->kind == WEFTI_REDUCE_SCATTER_V;
    int code = reduces ? reduce(comm_of(comm), call, &request) : move(comm_of(comm), call, &request);
    keep_request(request_out, request);
    return code;
}

const wefti_mpi_api *wefti_mpi_module(void) {
    static const wefti_mpi_api api = {.version = WEFTI_MPI_TABLE_VERSION,
                                      .flavour = WEFTI_MPI_FLAVOUR,
                                      .start = start,
                                      .stop = stop,
                                      .is_running = is_running,
                                      .error_text = error_text,
                                      .isend = send_bytes,
                                      .irecv = receive_bytes,
                                      .test = test,
                                      .test_some = test_some,
                                      .cancel = cancel,
                                      .forget = forget,
                                      .comm_create = comm_create,
                                      .comm_free = comm_free,
                                      .can_reduce = can_reduce,
                                      .collective = collective};
    return &api;
}
