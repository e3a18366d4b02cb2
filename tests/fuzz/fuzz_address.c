/* Addresses of wires, as another rank gives them: connected to, or refused. The first byte says of which wire. */
#include "fuzz_net.h"
#include "transport/wire_common.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const wefti_wire_kind kinds[] = {{"tcp", wefti_wire_tcp_open}, {"shm", wefti_wire_shm_open}};
    wefti_wire *wire = NULL;
    if (size == 0 || size > WEFTI_WIRE_ADDRESS_BYTES + 1) return 0;
    if (kinds[data[0] & 1].open(&(wefti_wire_options){.rank = 1, .size = 2}, &wire) != WEFT_OK) abort();
    weft_status status = wire->ops->connect(wire, 0, data + 1, size - 1);
    if (status != WEFT_OK && status != WEFT_E_CORRUPT && status != WEFT_E_UNSUPPORTED) abort();
    for (uint64_t i = 0; i < 10; i++) (void)!wefti_wire_progress(wire, wefti_host_now(wire->host) + i * WEFTI_MILLISECOND_NS);
    if (wire->ops->link(wire, 0) == WEFTI_LINK_UP) abort();
    wire->ops->close(wire, 0);
    return 0;
}
