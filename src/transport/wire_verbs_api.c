/* Loading libibverbs. The table is filled once; a failure is remembered in words, so that every caller hears the reason. */
#include "transport/wire_verbs_api.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

static wefti_verbs_api table;
static char            trouble[256];

static int poll_completions(struct ibv_cq *cq, int capacity, struct ibv_wc *completions_out) {
    return ibv_poll_cq(cq, capacity, completions_out);
}
static int request_notice(struct ibv_cq *cq, int solicited_only) { return ibv_req_notify_cq(cq, solicited_only); }
static int send_request(struct ibv_qp *qp, struct ibv_send_wr *request, struct ibv_send_wr **bad_out) {
    return ibv_post_send(qp, request, bad_out);
}
static int receive_request(struct ibv_qp *qp, struct ibv_recv_wr *request, struct ibv_recv_wr **bad_out) {
    return ibv_post_recv(qp, request, bad_out);
}

/* Where each function goes, and its name in the library. */
static const struct {
    void      **slot;
    const char *name;
} functions[] = {
    {(void **)&table.get_device_list, "ibv_get_device_list"},
    {(void **)&table.free_device_list, "ibv_free_device_list"},
    {(void **)&table.get_device_name, "ibv_get_device_name"},
    {(void **)&table.open_device, "ibv_open_device"},
    {(void **)&table.close_device, "ibv_close_device"},
    {(void **)&table.query_device, "ibv_query_device"},
    {(void **)&table.query_port, "ibv_query_port"},
    {(void **)&table.query_gid, "_ibv_query_gid_ex"},
    {(void **)&table.alloc_pd, "ibv_alloc_pd"},
    {(void **)&table.dealloc_pd, "ibv_dealloc_pd"},
    {(void **)&table.reg_mr, "ibv_reg_mr"},
    {(void **)&table.dereg_mr, "ibv_dereg_mr"},
    {(void **)&table.create_comp_channel, "ibv_create_comp_channel"},
    {(void **)&table.destroy_comp_channel, "ibv_destroy_comp_channel"},
    {(void **)&table.create_cq, "ibv_create_cq"},
    {(void **)&table.destroy_cq, "ibv_destroy_cq"},
    {(void **)&table.get_cq_event, "ibv_get_cq_event"},
    {(void **)&table.ack_cq_events, "ibv_ack_cq_events"},
    {(void **)&table.create_qp, "ibv_create_qp"},
    {(void **)&table.modify_qp, "ibv_modify_qp"},
    {(void **)&table.destroy_qp, "ibv_destroy_qp"},
};
/* Each pointer in the table is either looked up, there or not (one), or defined inline (four). */
_Static_assert(WEFTI_COUNT(functions) + 1 + 4 == sizeof(wefti_verbs_api) / sizeof(void *), "a function of the table is missing");

static void load(void) {
    static const char library_name[] = "libibverbs.so.1";
    void             *library = dlopen(library_name, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        snprintf(trouble, sizeof trouble, "%.200s", dlerror());
        return;
    }
    for (size_t i = 0; i < WEFTI_COUNT(functions); i++) {
        *functions[i].slot = dlsym(library, functions[i].name);
        if (*functions[i].slot) continue;
        snprintf(trouble, sizeof trouble, "%s lacks %s; rdma-core 32 or newer is needed", library_name, functions[i].name);
        return;
    }
    void *optional = dlsym(library, "ibv_reg_dmabuf_mr");
    memcpy(&table.reg_dmabuf_mr, &optional, sizeof optional);
    table.poll_cq = poll_completions;
    table.req_notify_cq = request_notice;
    table.post_send = send_request;
    table.post_recv = receive_request;
}

weft_status wefti_verbs_api_load(const wefti_verbs_api **api_out) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, load);
    if (trouble[0])
        return wefti_fail(WEFT_E_UNSUPPORTED, "verbs: libibverbs cannot be used: %s (Debian: libibverbs1 and "
                          "ibverbs-providers); the tcp wire needs neither", trouble);
    *api_out = &table;
    return WEFT_OK;
}
