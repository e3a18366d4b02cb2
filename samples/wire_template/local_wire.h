/* A wire of one's own, to copy: Unix sockets between the processes of one host. */
#ifndef LOCAL_WIRE_H
#define LOCAL_WIRE_H

#include "weft/wire.h"

extern const weft_wire_kind local_wire;

#endif
