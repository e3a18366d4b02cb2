/* Snapshots as workers see them: requests that are followed by another. Once every server has its share on the disk, the first is told to
 * write the manifest; once every server has read the rows, all are told to take them, and where one could not, all to let go of theirs. */
#include <stdio.h>
#include <string.h>

#include "parallel/server/saves.h"

#define FILES_NS (UINT64_C(600) * WEFTI_SECOND_NS) /* that a server is dead is known by its link; this is for disks */

static bool can_take(const void *context) { return ((const weft_server *)context)->free_requests != NULL; }

/* Of the latest outcome: a second request leaves the first one's failure as it is. */
static bool start_next(weft_server *server, weft_request *request, wefti_frame_kind kind, int32_t only) {
    request->kind = kind;
    request->again = false;
    return wefti_client_start(server, request, only) == WEFT_OK;
}

static bool follow_save(weft_server *server, weft_request *request) {
    bool written = request->status == WEFT_OK;
    server_buffer *body = request->file_body;
    if (written) { /* what is sent is what came */
        request->file_body = request->shares;
        request->shares = body;
    }
    request->file_bytes = written ? (size_t)server->servers * sizeof(wefti_server_share) : 0;
    return start_next(server, request, WEFTI_SERVER_COMMIT, written ? 0 : -1);
}

static bool follow_load(weft_server *server, weft_request *request) {
    if (request->number != WEFTI_LOAD_PREPARE) return false;
    request->number = request->status == WEFT_OK ? WEFTI_LOAD_ADOPT : WEFTI_LOAD_DROP;
    return start_next(server, request, WEFTI_SERVER_LOAD, -1);
}

bool wefti_client_follow(weft_server *server, weft_request *request) {
    bool follows = server->failed == WEFT_OK && (request->kind == WEFTI_SERVER_SAVE   ? follow_save(server, request)
                                                 : request->kind == WEFTI_SERVER_LOAD ? follow_load(server, request)
                                                                                      : false);
    if (!follows && request->kind != WEFTI_SERVER_LOAD) server->saving = false;
    return follows;
}

/* --- calls --- */

static weft_status check_path(const weft_server *server, const char *what, const char *path) {
    if (!server || !path) return wefti_fail(WEFT_E_INVALID, "%s: the %s is NULL", what, server ? "path" : "server");
    if (!server->works)
        return wefti_fail(WEFT_E_STATE, "%s: rank %d only serves; workers are ranks 0 to %d", what, (int)server->rank, (int)server->workers - 1);
    size_t length = strlen(path);
    if (length > 0 && length < WEFTI_FRAME_BYTES && path[length - 1] != '/') return WEFT_OK;
    return wefti_fail(WEFT_E_INVALID, "%s: '%.60s' is no path of a file (1 to %d bytes, none that ends in '/')", what, path, WEFTI_FRAME_BYTES - 1);
}

static weft_status start(weft_server *server, wefti_frame_kind kind, const char *path, int64_t timeout_ns, weft_request **request_out) {
    weft_request *request = NULL;
    size_t        length = strlen(path), bytes = (size_t)server->servers * sizeof(wefti_server_share);
    WEFTI_TRY(wefti_client_take(server, false, &request));
    request->kind = kind;
    request->call.timeout_ns = timeout_ns ? timeout_ns : (int64_t)FILES_NS;
    request->number = kind == WEFTI_SERVER_LOAD ? WEFTI_LOAD_PREPARE : server->snapshots + 1;
    request->file_bytes = length;
    weft_status status = wefti_server_take(server, length, false, &request->file_body);
    if (status == WEFT_OK) status = wefti_server_take(server, bytes, false, &request->shares);
    if (status == WEFT_OK) {
        memcpy(request->file_body->data, path, length);
        status = wefti_client_start(server, request, -1);
    }
    if (status != WEFT_OK) {
        wefti_client_free(server, request);
        return status;
    }
    if (kind == WEFTI_SERVER_SAVE) {
        server->snapshots++;
        server->saving = request->state == REQUEST_FLYING;
    }
    *request_out = request;
    return WEFT_OK;
}

weft_status weft_server_start_save(weft_server *server, const char *path, int64_t timeout_ns, weft_request **request_out) {
    *request_out = NULL;
    WEFTI_TRY(check_path(server, "weft_server_start_save", path));
    if (timeout_ns < 0) return wefti_fail(WEFT_E_INVALID, "weft_server_start_save: timeout_ns is %lld", (long long)timeout_ns);
    pthread_mutex_lock(&server->lock);
    weft_status status = server->saving ? wefti_fail(WEFT_E_STATE, "weft_server_start_save: the snapshot before is not ready; wait for it first")
                                        : start(server, WEFTI_SERVER_SAVE, path, timeout_ns, request_out);
    pthread_mutex_unlock(&server->lock);
    return status;
}

static weft_status start_one(weft_server *server, wefti_frame_kind kind, const char *path, weft_request **request_out) {
    if (kind == WEFTI_SERVER_SAVE) return weft_server_start_save(server, path, 0, request_out);
    pthread_mutex_lock(&server->lock);
    /* Servers know loads by their worker. */
    weft_status status = server->loading ? wefti_fail(WEFT_E_STATE, "weft_server_load: this rank, %d, is loading a snapshot already; wait for that first",
                                                      (int)server->rank)
                                         : start(server, kind, path, 0, request_out);
    server->loading = server->loading || status == WEFT_OK;
    pthread_mutex_unlock(&server->lock);
    return status;
}

static weft_status run(weft_server *server, wefti_frame_kind kind, const char *path) {
    weft_request *request = NULL;
    weft_status   status = WEFT_E_AGAIN;
    while (status == WEFT_E_AGAIN) { /* all requests are in flight */
        status = wefti_server_wait(server, can_take, server, WEFTI_NEVER_NS);
        if (status != WEFT_OK) return wefti_fail(status, "%s", server->failure);
        status = start_one(server, kind, path, &request);
    }
    if (status != WEFT_OK) return status;
    status = weft_request_wait(request, 0);
    if (kind == WEFTI_SERVER_SAVE) return status;
    pthread_mutex_lock(&server->lock);
    server->loading = false;
    pthread_mutex_unlock(&server->lock);
    return status;
}

weft_status weft_server_save(weft_server *server, const char *path) {
    WEFTI_TRY(check_path(server, "weft_server_save", path));
    return run(server, WEFTI_SERVER_SAVE, path);
}

weft_status weft_server_load(weft_server *server, const char *path) {
    WEFTI_TRY(check_path(server, "weft_server_load", path));
    return run(server, WEFTI_SERVER_LOAD, path);
}
