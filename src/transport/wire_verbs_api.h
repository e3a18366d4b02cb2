/* The functions of libibverbs that the verbs wire calls, as one table: the library is loaded at run time, so that one
 * program starts on machines without it, and tests put a table of their own in its place. Each slot is what libibverbs has
 * under that name; what verbs.h defines inline goes through the context and needs no library. */
#ifndef WEFTI_TRANSPORT_WIRE_VERBS_API_H
#define WEFTI_TRANSPORT_WIRE_VERBS_API_H

#include <infiniband/verbs.h>

#include "core/iface/wire.h"

typedef struct wefti_verbs_api {
    struct ibv_device **(*get_device_list)(int *count_out);
    void (*free_device_list)(struct ibv_device **list);
    const char *(*get_device_name)(struct ibv_device *device);
    struct ibv_context *(*open_device)(struct ibv_device *device);
    int (*close_device)(struct ibv_context *context);
    int (*query_device)(struct ibv_context *context, struct ibv_device_attr *attributes_out);
    int (*query_port)(struct ibv_context *context, uint8_t port, struct ibv_port_attr *attributes_out);
    int (*query_gid)(struct ibv_context *context, uint32_t port, uint32_t index, struct ibv_gid_entry *entry_out,
                     uint32_t flags, size_t entry_bytes);
    struct ibv_pd *(*alloc_pd)(struct ibv_context *context);
    int (*dealloc_pd)(struct ibv_pd *pd);
    struct ibv_mr *(*reg_mr)(struct ibv_pd *pd, void *memory, size_t bytes, int access);
    int (*dereg_mr)(struct ibv_mr *mr);
    struct ibv_comp_channel *(*create_comp_channel)(struct ibv_context *context);
    int (*destroy_comp_channel)(struct ibv_comp_channel *channel);
    struct ibv_cq *(*create_cq)(struct ibv_context *context, int entries, void *user, struct ibv_comp_channel *channel,
                                int vector);
    int (*destroy_cq)(struct ibv_cq *cq);
    int (*get_cq_event)(struct ibv_comp_channel *channel, struct ibv_cq **cq_out, void **user_out);
    void (*ack_cq_events)(struct ibv_cq *cq, unsigned int count);
    struct ibv_qp *(*create_qp)(struct ibv_pd *pd, struct ibv_qp_init_attr *attributes);
    int (*modify_qp)(struct ibv_qp *qp, struct ibv_qp_attr *attributes, int mask);
    int (*destroy_qp)(struct ibv_qp *qp);
    /* NULL in libraries before rdma-core 34 */
    struct ibv_mr *(*reg_dmabuf_mr)(struct ibv_pd *pd, uint64_t offset, size_t bytes, uint64_t address, int descriptor, int access);
    /* inline in verbs.h */
    int (*poll_cq)(struct ibv_cq *cq, int capacity, struct ibv_wc *completions_out);
    int (*req_notify_cq)(struct ibv_cq *cq, int solicited_only);
    int (*post_send)(struct ibv_qp *qp, struct ibv_send_wr *request, struct ibv_send_wr **bad_out);
    int (*post_recv)(struct ibv_qp *qp, struct ibv_recv_wr *request, struct ibv_recv_wr **bad_out);
} wefti_verbs_api;

/* libibverbs of this machine; loaded once, kept for the life of the process. WEFT_E_UNSUPPORTED where there is none, or
 * one that lacks a function: named, with what to install. */
WEFT_MUST_CHECK weft_status wefti_verbs_api_load(const wefti_verbs_api **api_out);

/* Which port of which device carries what is said first, for tools that measure beside it: "rxe0", its port, the index of its GID. */
void wefti_verbs_first_rail(const wefti_wire *wire, char device[static 64], int *port_out, int *gid_out);

/* Opens a verbs wire over the given table. wefti_wire_verbs_open is this with the library's. */
WEFT_MUST_CHECK weft_status wefti_verbs_open_with(const wefti_verbs_api *api, const wefti_wire_options *options,
                                                  wefti_wire **wire_out);

#endif
