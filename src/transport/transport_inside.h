/* Inside of the transport: transport.c opens it, shrink.c goes on after a fault. */
#ifndef WEFTI_TRANSPORT_INSIDE_H
#define WEFTI_TRANSPORT_INSIDE_H

#include "transport/control.h"
#include "transport/gather.h"

enum { WEFTI_WIRE_WISH_BYTES = 16 };

typedef struct transport_inside transport_inside;

/* A world that is being left for another one. All of it hangs here, so that who closes the lost world, closes it. */
typedef struct wefti_transport_going {
    wefti_calls      *calls;
    wefti_calls      *announcing; /* a newcomer's */
    wefti_gather     *gather;
    uint8_t          *starts; /* [seats] how often the launcher had started each when the gathering began; NULL: it ends nobody for us */
    transport_inside *next;
} wefti_transport_going;

struct transport_inside {
    wefti_transport transport; /* first */
    wefti_place     place;
    wefti_control  *control;
    const weft_wire_kind *own_wire;
    bool            met_by_mpi; /* which is to be told how it ended */
    const wefti_network *network;
    /* For going on after a fault. Seats are the ranks of the world that was the first; they keep their doors (gather.h). */
    int32_t     seat, seats;
    int32_t    *members;        /* [size] the seat of each rank */
    wefti_socket_address *doors; /* [seats] 0 bytes: none */
    wefti_door *door;           /* this rank's; NULL: none */
    uint32_t    heard_epoch;    /* the highest that was tried from here */
    bool        left_behind;    /* this rank, by others who may have gone on */
    bool        named_doors;    /* WEFT_DOORS says where they are */
    bool        takes_newcomers; /* which may come later, too: the program waits for them */
    wefti_calls *newcomers;     /* by which they are heard: rank 0 of a world that lacks ranks; else NULL */
    char        wish[WEFTI_WIRE_WISH_BYTES]; /* the wire that was asked for, which newcomers ask for too */
    wefti_calls *calls;         /* of the world that this one follows, until it stands; NULL: it is the first */
    wefti_transport_going going;
    /* What all ranks said last, as long as it is looked at. */
    void  *said;
    size_t said_bytes;
};

weft_status wefti_transport_create(const wefti_transport_options *options, transport_inside **inside_out);
/* Comes into the world at the place that was found. */
weft_status wefti_transport_enter(transport_inside *inside, const wefti_transport_options *options, const char *wish);
/* Where WEFT_DOORS says the doors of all seats are; nothing where it says nothing. */
WEFT_MUST_CHECK weft_status wefti_transport_name_doors(transport_inside *inside);
/* Comes in place of a lost rank: `outside` is this rank before it is anywhere, with the place that it is to have. */
WEFT_MUST_CHECK weft_status wefti_transport_come_in(transport_inside *outside, const wefti_transport_options *options, wefti_transport **transport_out);
/* Whether the launcher says that nobody will be started in a lost rank's place (launcher.c). */
bool wefti_transport_is_gone(void *context, int32_t seat);
/* Notes how often each rank was started, where the launcher can end one for us; and forgets it. */
WEFT_MUST_CHECK weft_status wefti_transport_note_starts(transport_inside *lost);
void wefti_transport_forget_starts(transport_inside *lost);
/* Asks it to. */
void wefti_transport_fence(void *context, int32_t seat);
/* Ends what wefti_transport_shrink has under way. */
void wefti_transport_stop_going(transport_inside *lost);

#endif
