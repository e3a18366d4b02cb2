/* What a proved peer says over the TCP wire: headers and payloads land in receives and in the region or end the link, and every
 * operation ends. */
#include "fuzz_net.h"
#include "transport/wire_tcp.h"

enum { room = 512 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    wefti_wire        *self = NULL;
    wefti_wire_region *region = NULL;
    int                sockets[2];
    uint8_t            address[WEFTI_WIRE_ADDRESS_BYTES], got[3][room];
    size_t             bytes = 0;
    wefti_wire_op      ops[4] = {wefti_wire_recv(1, 7, got[0], room), wefti_wire_recv(1, 8, got[1], 8),
                                 wefti_wire_recv(WEFTI_WIRE_ANY_PEER, 9, got[2], room), wefti_wire_send(1, 7, address, sizeof address)};
    if (wefti_wire_tcp_open(&(wefti_wire_options){.host = &fuzz_host, .size = 2}, &self) != WEFT_OK) abort();
    if (self->ops->address(self, address, &bytes) != WEFT_OK || self->ops->connect(self, 1, address, bytes) != WEFT_OK) abort();
    tcp_wire *wire = (tcp_wire *)self;
    fuzz_sockets(sockets, data, size, 1);
    wire->mesh.calls[1].state = WEFTI_MESH_OVER;
    wire->mesh.joined(wire->mesh.context, 1, sockets[0], NULL);
    if (self->ops->region_create(self, 4096, &region) != WEFT_OK) abort();
    for (size_t i = 0; i < WEFTI_COUNT(ops); i++) {
        ops[i].flags = WEFTI_WIRE_SILENT;
        (void)!wefti_wire_post(self, &ops[i]);
    }
    for (int i = 0; i < 100 && self->ops->link(self, 1) == WEFTI_LINK_UP; i++) (void)!wefti_wire_progress(self, fuzz_now(NULL));
    self->ops->abort(self, WEFT_E_ABORTED, -1);
    for (size_t i = 0; i < WEFTI_COUNT(ops) - 1; i++)
        if (!ops[i].done || (ops[i].status == WEFT_OK && ops[i].done_bytes > ops[i].bytes && ops[i].kind == WEFTI_WIRE_RECV && i != 2))
            abort();
    self->ops->close(self, 0);
    close(sockets[1]);
    return 0;
}
