/* The verbs wire: memory of an attached device.
 *
 * It is registered as a dma-buf where the driver and the kernel have them, else at its address, which works where a module of the kernel (nvidia_peermem)
 * knows such addresses; where neither works its bytes go through the stages, copied by the device. Which of these it is, is tried once, with a
 * sample, when the device is attached (WEFT_VERBS_DEVICE_MEMORY chooses one), so no message waits for what is refused; a piece that is
 * refused later on is copied, and said once. The descriptor of a dma-buf is closed as soon as it is registered: that holds on to the memory by
 * itself, which is why a device says beforehand what it gives back. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "transport/wire_verbs.h"

static const char *const settings[] = {[VERBS_WAY_AUTO] = "auto", [VERBS_WAY_DMABUF] = "dmabuf", [VERBS_WAY_PEER] = "peer", [VERBS_WAY_COPIES] = "copies"};
static const char *const names[] = {[VERBS_WAY_DMABUF] = "dma-buf", [VERBS_WAY_PEER] = "peer memory", [VERBS_WAY_COPIES] = "copies"};

static weft_status register_dmabuf(verbs_wire *wire, void *memory, size_t bytes, int access, struct ibv_mr *registered_out[VERBS_RAILS]) {
    int      descriptor = -1;
    uint64_t offset = 0;
    memset(registered_out, 0, VERBS_RAILS * sizeof *registered_out);
    if (!wire->api->reg_dmabuf_mr) return wefti_fail(WEFT_E_UNSUPPORTED, "libibverbs has no ibv_reg_dmabuf_mr; rdma-core 34 or newer has");
    WEFTI_TRY(wire->foreign->open_dmabuf(wire->foreign->context, memory, bytes, &descriptor, &offset));
    weft_status status = WEFT_OK;
    for (int32_t r = 0; r < wire->rail_count && status == WEFT_OK; r++) {
        errno = 0;
        registered_out[r] = wire->api->reg_dmabuf_mr(wire->rails[r].pd, offset, bytes, (uintptr_t)memory, descriptor, access);
        if (!registered_out[r])
            status = wefti_fail(errno == ENOMEM ? WEFT_E_NO_MEMORY : WEFT_E_UNSUPPORTED, "%s takes none: %s", wire->rails[r].name,
                                errno ? strerror(errno) : "no reason given");
    }
    close(descriptor);
    if (status != WEFT_OK) wefti_verbs_deregister(wire, registered_out);
    return status;
}

/* By one way. */
static weft_status register_by(verbs_wire *wire, verbs_way way, void *memory, size_t bytes, int access, struct ibv_mr *registered_out[VERBS_RAILS]) {
    if (way == VERBS_WAY_DMABUF) return register_dmabuf(wire, memory, bytes, access, registered_out);
    if (way == VERBS_WAY_PEER) return wefti_verbs_register(wire, wire->rail_count, memory, bytes, access, "a device's memory", registered_out);
    return wefti_fail(WEFT_E_UNSUPPORTED, "nothing of it can be registered here");
}

weft_status wefti_verbs_register_foreign(verbs_wire *wire, void *memory, size_t bytes, int access, struct ibv_mr *registered_out[VERBS_RAILS]) {
    char        why[400];
    weft_status status = register_by(wire, wire->way, memory, bytes, access, registered_out);
    if (status == WEFT_OK || status == WEFT_E_NO_MEMORY) return status;
    snprintf(why, sizeof why, "%s", weft_error_message());
    return wefti_fail(WEFT_E_UNSUPPORTED, "verbs: %zu bytes of a device's memory cannot be registered, by %s: %.350s", bytes, names[wire->way], why);
}

bool wefti_verbs_copy(const verbs_wire *wire, verbs_link *link, const wefti_wire_op *op, void *to, const void *from, size_t bytes) {
    if (!(op->flags & WEFTI_WIRE_FOREIGN)) return memcpy(to, from, bytes), true;
    if (wire->foreign->copy(wire->foreign->context, to, from, bytes) == WEFT_OK) return true;
    wefti_verbs_break(link, false, "this rank's device does not copy: %.150s", weft_error_message());
    return false;
}

bool wefti_verbs_arrived(const verbs_wire *wire, verbs_link *link, const wefti_wire_op *op) {
    if (!(op->flags & WEFTI_WIRE_FOREIGN) || wire->foreign->arrived(wire->foreign->context) == WEFT_OK) return true;
    wefti_verbs_break(link, false, "this rank's device does not see what came: %.140s", weft_error_message());
    return false;
}

/* --- attaching --- */

static weft_status read_wish(verbs_way *wish_out) {
    const char *text = getenv("WEFT_VERBS_DEVICE_MEMORY");
    *wish_out = VERBS_WAY_AUTO;
    if (!text || !*text) return WEFT_OK;
    for (int way = VERBS_WAY_AUTO; way <= VERBS_WAY_COPIES; way++)
        if (strcmp(text, settings[way]) == 0) return *wish_out = (verbs_way)way, WEFT_OK;
    return wefti_fail(WEFT_E_INVALID, "verbs: WEFT_VERBS_DEVICE_MEMORY is '%s'; there is: auto, dmabuf, peer (memory, by nvidia_peermem), copies", text);
}

/* Whether the sample can be registered so, by as much as regions need. */
static bool works(verbs_wire *wire, verbs_way way, void *sample, size_t bytes) {
    struct ibv_mr *registered[VERBS_RAILS];
    if (register_by(wire, way, sample, bytes, VERBS_FOR_REGIONS, registered) != WEFT_OK) return false;
    wefti_verbs_deregister(wire, registered);
    return true;
}

void wefti_verbs_detach(verbs_wire *wire) {
    if (!wire->foreign) return;
    wire->foreign->listen(wire->foreign->context, NULL, NULL);
    wefti_verbs_foreign_lost(wire, NULL, UINTPTR_MAX);
    wire->foreign = NULL;
    wire->base.wire.can.flags &= ~(uint32_t)(WEFTI_WIRE_MEMORY_FOREIGN | WEFTI_WIRE_REACHES_FOREIGN);
}

weft_status wefti_verbs_attach(wefti_wire *self, const wefti_foreign *foreign, void *sample, size_t bytes, char *way_out, size_t way_bytes) {
    verbs_wire *wire = (verbs_wire *)self;
    verbs_way   wish;
    char        why[2][200] = {"", ""};
    wefti_verbs_detach(wire);
    if (!foreign) return WEFT_OK;
    WEFTI_TRY(read_wish(&wish));
    wire->foreign = foreign;
    wire->way = VERBS_WAY_COPIES;
    for (int way = VERBS_WAY_DMABUF; way <= VERBS_WAY_PEER && wire->way == VERBS_WAY_COPIES; way++) {
        if (wish != VERBS_WAY_AUTO && (int)wish != way) continue;
        if (works(wire, (verbs_way)way, sample, bytes)) wire->way = (verbs_way)way;
        else snprintf(why[way - VERBS_WAY_DMABUF], sizeof why[0], "; no %s: %.150s", names[way], weft_error_message());
    }
    foreign->listen(foreign->context, wefti_verbs_foreign_lost, wire);
    self->can.flags |= WEFTI_WIRE_MEMORY_FOREIGN | (wire->way == VERBS_WAY_COPIES ? 0 : WEFTI_WIRE_REACHES_FOREIGN);
    snprintf(way_out, way_bytes, "%s%s%s", names[wire->way], why[0], why[1]);
    return WEFT_OK;
}
