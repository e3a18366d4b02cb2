/* The module that knows one MPI: compiled with that MPI's mpi.h into libweft_mpi_<flavour>.so, loaded by wire_mpi_api.c. It
 * holds MPI's types and constants, which differ from one MPI to the next, and nothing else: no state but the communicator,
 * no memory, no policy. Handles travel in 64 bits. */
#include <limits.h>
#include <mpi.h>
#include <string.h>

#include "core/iface/reduce.h"
#include "transport/wire_mpi_api.h"

#ifndef WEFTI_MPI_FLAVOUR
#error "the build says which MPI this is"
#endif

enum { MOST_REQUESTS = 512 };

_Static_assert(sizeof(MPI_Request) <= sizeof(wefti_mpi_request) && sizeof(MPI_Comm) <= sizeof(wefti_mpi_comm),
               "handles fit into 64 bits");

const wefti_mpi_api *wefti_mpi_module(void);

static MPI_Comm own = MPI_COMM_NULL;
static bool     started_here;

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

static int start(wefti_mpi_facts *facts) {
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
        (code = MPI_Comm_get_attr(own, MPI_TAG_UB, &most_tag, &found)) != MPI_SUCCESS)
        return code;
    facts->most_tag = found ? *most_tag : 32767; /* what the standard promises at least */
    facts->started_here = started_here;
    facts->serialized = level >= MPI_THREAD_SERIALIZED;
    facts->main_thread = main_thread != 0;
    read_version(facts->version, sizeof facts->version);
    return MPI_SUCCESS;
}

static int stop(void) {
    if (!is_running()) return MPI_SUCCESS;
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

static int ibarrier(const wefti_mpi_comm *comm, wefti_mpi_request *request_out) {
    MPI_Request request = MPI_REQUEST_NULL;
    int         code = MPI_Ibarrier(comm_of(comm), &request);
    keep_request(request_out, request);
    return code;
}

static int ibcast(const wefti_mpi_comm *comm, void *buffer, size_t bytes, int root, wefti_mpi_request *request_out) {
    MPI_Request request = MPI_REQUEST_NULL;
    if (bytes > INT_MAX) return MPI_ERR_COUNT;
    int code = MPI_Ibcast(buffer, (int)bytes, MPI_BYTE, root, comm_of(comm), &request);
    keep_request(request_out, request);
    return code;
}

static int iallgather(const wefti_mpi_comm *comm, const void *mine, void *all, size_t each_bytes, wefti_mpi_request *request_out) {
    MPI_Request request = MPI_REQUEST_NULL;
    if (each_bytes > INT_MAX) return MPI_ERR_COUNT;
    int code = MPI_Iallgather(mine ? mine : MPI_IN_PLACE, (int)each_bytes, MPI_BYTE, all, (int)each_bytes, MPI_BYTE,
                              comm_of(comm), &request);
    keep_request(request_out, request);
    return code;
}

static int ialltoall(const wefti_mpi_comm *comm, const void *mine, void *all, size_t each_bytes, wefti_mpi_request *request_out) {
    MPI_Request request = MPI_REQUEST_NULL;
    if (each_bytes > INT_MAX) return MPI_ERR_COUNT;
    int code = MPI_Ialltoall(mine ? mine : MPI_IN_PLACE, (int)each_bytes, MPI_BYTE, all, (int)each_bytes, MPI_BYTE,
                             comm_of(comm), &request);
    keep_request(request_out, request);
    return code;
}

/* Halves would be rounded at each step, and truth values have other operations there: ours are asked for those. */
static MPI_Datatype type_of(int dtype) {
    switch ((weft_dtype)dtype) {
    case WEFT_F32: return MPI_FLOAT;
    case WEFT_F64: return MPI_DOUBLE;
    case WEFT_I64: return MPI_INT64_T;
    case WEFT_I32: return MPI_INT32_T;
    case WEFT_U8: return MPI_UINT8_T;
    default: return MPI_DATATYPE_NULL;
    }
}
static MPI_Op op_of(int op) {
    switch ((wefti_reduce_op)op) {
    case WEFTI_REDUCE_SUM:
    case WEFTI_REDUCE_AVG: return MPI_SUM;
    case WEFTI_REDUCE_PROD: return MPI_PROD;
    case WEFTI_REDUCE_MIN: return MPI_MIN;
    case WEFTI_REDUCE_MAX: return MPI_MAX;
    default: return MPI_OP_NULL;
    }
}

static int can_reduce(int dtype, int op) { return type_of(dtype) != MPI_DATATYPE_NULL && op_of(op) != MPI_OP_NULL; }

static int iallreduce(const wefti_mpi_comm *comm, const void *send, void *receive, size_t count, int dtype, int op,
                      wefti_mpi_request *request_out) {
    MPI_Request request = MPI_REQUEST_NULL;
    if (count > INT_MAX) return MPI_ERR_COUNT;
    int code = MPI_Iallreduce(send ? send : MPI_IN_PLACE, receive, (int)count, type_of(dtype), op_of(op), comm_of(comm), &request);
    keep_request(request_out, request);
    return code;
}

static int ireduce_scatter(const wefti_mpi_comm *comm, const void *send, void *receive, size_t count, int dtype, int op,
                           wefti_mpi_request *request_out) {
    MPI_Request request = MPI_REQUEST_NULL;
    if (count > INT_MAX) return MPI_ERR_COUNT;
    int code = MPI_Ireduce_scatter_block(send ? send : MPI_IN_PLACE, receive, (int)count, type_of(dtype), op_of(op),
                                         comm_of(comm), &request);
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
                                      .ibarrier = ibarrier,
                                      .ibcast = ibcast,
                                      .iallgather = iallgather,
                                      .ialltoall = ialltoall,
                                      .can_reduce = can_reduce,
                                      .iallreduce = iallreduce,
                                      .ireduce_scatter = ireduce_scatter};
    return &api;
}
