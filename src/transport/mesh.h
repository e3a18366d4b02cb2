/* The sockets of a wire: one connection for each pair of ranks, both ends of which have proved themselves.
 *
 * For wires that are carried by TCP, and for those that only meet over it. A mesh listens on one port; of a pair the higher rank
 * dials. Both prove by the handshake that they know the cookie of the listener's address and, off loopback always, the
 * job's secret. A proved socket is handed to the wire, whose it is from then on. */
#ifndef WEFTI_TRANSPORT_MESH_H
#define WEFTI_TRANSPORT_MESH_H

#include "core/iface/wire.h"
#include "transport/handshake.h"
#include "transport/seal.h"
#include "transport/socket.h"

enum { WEFTI_MESH_GUESTS = 64 }; /* callers that have not proved who they are */

typedef enum wefti_mesh_state { WEFTI_MESH_IDLE, WEFTI_MESH_WANTED, WEFTI_MESH_OVER } wefti_mesh_state;

/* The way to one peer. */
typedef struct wefti_mesh_call {
    wefti_mesh_state     state;
    int                  socket; /* while it is dialled; -1 */
    bool                 connected;
    uint64_t             redial_ns;
    wefti_socket_address address;
    uint8_t              cookie[WEFTI_COOKIE_BYTES];
    wefti_terms          terms;
    wefti_handshake      shake;
} wefti_mesh_call;

typedef struct wefti_mesh_guest {
    int             socket; /* -1: free */
    wefti_handshake shake;
} wefti_mesh_guest;

typedef struct wefti_mesh {
    const wefti_wire    *wire;
    wefti_mesh_call     *calls; /* [size] */
    wefti_terms          terms;
    char                 job[WEFTI_JOB_BYTES];
    uint8_t              secret[64];
    uint8_t              cookie[WEFTI_COOKIE_BYTES];
    wefti_socket_address address;
    int                  listener; /* readable when somebody calls */
    bool                 settled;  /* nobody is expected */
    uint64_t             served_ns, strangers;
    wefti_mesh_guest     guests[WEFTI_MESH_GUESTS];
    /* The socket to `peer`, non-blocking, and what encrypts it, or NULL; the callee owns both. */
    void (*joined)(void *context, int32_t peer, int socket, wefti_seal *seal);
    /* `peer` can never be joined: another job, secret, version, or no memory. The thread's message says why. */
    void (*refused)(void *context, int32_t peer);
    void *context;
} wefti_mesh;

/* Listens on options->interface (loopback by default). The caller has filled joined, refused and context. WEFT_E_AUTH: not
 * loopback, and no secret. Close it after a failure too. */
WEFT_MUST_CHECK weft_status wefti_mesh_open(wefti_mesh *mesh, const wefti_wire *wire, const wefti_wire_options *options);
void wefti_mesh_close(wefti_mesh *mesh);
/* The slots of a wire's table of the same names; a call that is under way, or over, is left alone. */
weft_status wefti_mesh_address(const wefti_mesh *mesh, void *address_out, size_t *bytes_out);
weft_status wefti_mesh_connect(wefti_mesh *mesh, int32_t peer, const void *address, size_t bytes);
/* Dials, accepts and shakes hands, at most every half millisecond; seldom once everyone is there. */
void wefti_mesh_service(wefti_mesh *mesh, uint64_t now_ns);

#endif
