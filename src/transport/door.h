/* A rank's door: the listening socket whose address all others know, for calls after a fault.
 *
 * Between gatherings nobody is let in, and nobody may fill the queue either: whoever runs the control channel hangs up on all who call
 * (wefti_door_drain). So strangers hold no descriptor, no memory and no handshake, for no time; a survivor who saw the fault
 * first is hung up on like them, knows that this process lives, and calls again until somebody attends to the door. (Where ranks are lacking, rank 0
 * listens to what callers want, for 5 s each and 64 of them, as one of them may be a newcomer: control_server.c.) Refused is a call only
 * where no process has the door any more. Worlds that follow one another share a door, each holding it; they drain it beside each other. */
#ifndef WEFTI_TRANSPORT_DOOR_H
#define WEFTI_TRANSPORT_DOOR_H

#include "transport/socket.h"
#include "transport/transport.h"

typedef struct wefti_door wefti_door;

/* Where WEFT_DOORS says that a rank's door is, for one process after another to open it; false: it says nothing. WEFT_E_INVALID and those of
 * wefti_socket_resolve come as *status_out. */
bool wefti_door_named(int32_t rank, int32_t ranks, wefti_socket_address *address_out, weft_status *status_out);
/* Opens one at *address, or, where that has 0 bytes, on an interface where the job may listen, and says where. NULL, with a word in the log, where
 * it cannot; *address has 0 bytes then. */
wefti_door *wefti_door_open(const wefti_place *place, const char *interface, wefti_socket_address *address);
/* The door of a rank of a network, which has no sockets; NULL where nobody is called there. */
wefti_door *wefti_door_open_network(const wefti_network *network);
wefti_door *wefti_door_retain(wefti_door *door);
void        wefti_door_release(wefti_door *door); /* NULL is fine */
/* From here on whoever attends lets callers in himself, and nobody hangs up on them; ended as often as begun. */
void wefti_door_attend(wefti_door *door, bool attends);
/* Whether nobody attends, and callers are looked at. */
bool wefti_door_is_open(const wefti_door *door, uint64_t now_ns);
/* Hangs up on those who have called, some at a time, unless somebody attends. Any thread. */
void wefti_door_drain(wefti_door *door, uint64_t now_ns);
/* The same, by whoever attends. */
void wefti_door_hang_up(wefti_door *door, uint64_t now_ns);
/* What becomes readable when there is something to drain; -1: nothing now. */
int wefti_door_descriptor(const wefti_door *door, uint64_t now_ns);
/* The next one who has called, for whoever lets callers in; -1: nobody. */
int wefti_door_accept(wefti_door *door, uint64_t now_ns);
/* The listening socket, for whoever attends; -1 in a network. */
int wefti_door_socket(const wefti_door *door);

#endif
