/* The wires that this build has, by name, and the slow link that tests put before them.
 *
 *   WEFT_WIRE_DELAY_US  microseconds that every message takes longer (for tests of overlap)
 *   WEFT_WIRE_GBPS      gigabits a second that one direction of a link carries at most
 *   WEFT_WIRE_PORT_GBPS gigabits a second that a rank sends at most, to all others together */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "transport/wire_common.h"

const wefti_wire_kind wefti_wire_kinds[] = {
    {"inproc", wefti_wire_inproc_open},
    {"shm", wefti_wire_shm_open},
    {"tcp", wefti_wire_tcp_open},
#ifdef WEFTI_HAVE_VERBS
    {"verbs", wefti_wire_verbs_open},
#endif
#ifdef WEFTI_HAVE_MPI
    {"mpi", wefti_wire_mpi_open},
#endif
    {NULL, NULL},
};

void wefti_wire_list(bool processes, char *text_out, size_t text_bytes) {
    size_t used = 0;
    text_out[0] = 0;
    for (const wefti_wire_kind *kind = wefti_wire_kinds; kind->name && used < text_bytes; kind++)
        if (!processes || strcmp(kind->name, "inproc") != 0)
            used += (size_t)snprintf(text_out + used, text_bytes - used, "%s%s", used ? ", " : "", kind->name);
}

static weft_status read_amount(const char *name, double *amount_out) {
    const char *text = getenv(name);
    *amount_out = 0;
    if (!text || !*text) return WEFT_OK;
    char *end = NULL;
    *amount_out = strtod(text, &end);
    if (end == text || *end || !(*amount_out >= 0) || *amount_out > 1e9)
        return wefti_fail(WEFT_E_INVALID, "%s=%s: expected a number from 0 on", name, text);
    return WEFT_OK;
}

weft_status wefti_wire_open(const char *name, const wefti_wire_options *options, wefti_wire **wire_out) {
    double      delay_us, gigabits, port;
    wefti_wire *wire = NULL;
    *wire_out = NULL;
    WEFTI_TRY(read_amount("WEFT_WIRE_DELAY_US", &delay_us));
    WEFTI_TRY(read_amount("WEFT_WIRE_GBPS", &gigabits));
    WEFTI_TRY(read_amount("WEFT_WIRE_PORT_GBPS", &port));
    const wefti_wire_kind *kind = wefti_wire_kinds, own = {name, wefti_wire_own_open};
    while (kind->name && strcmp(kind->name, name) != 0) kind++;
    if (!kind->name && options->own && strcmp(options->own->name, name) == 0) kind = &own;
    if (!kind->name) {
        char list[128];
        wefti_wire_list(false, list, sizeof list);
        return wefti_fail(WEFT_E_NOT_FOUND, "there is no wire '%s' in this build; there are: %s", name, list);
    }
    WEFTI_TRY(kind->open(options, &wire));
    if (options->encrypt && !(wire->can.flags & (WEFTI_WIRE_ENCRYPTS | WEFTI_WIRE_SAME_HOST))) {
        wire->ops->close(wire, 0);
        return wefti_fail(WEFT_E_UNSUPPORTED, "encryption is asked for, and the wire '%s' does not encrypt: use tcp, or shm inside one "
                          "host", name);
    }
    if (delay_us > 0 || gigabits > 0 || port > 0) {
        weft_status status = wefti_wire_delay_open(wire, (uint64_t)(delay_us * 1000), gigabits / 8, port / 8, wire_out);
        if (status != WEFT_OK) wire->ops->close(wire, 0);
        return status;
    }
    *wire_out = wire;
    return WEFT_OK;
}
