/* Inside of the simulator.
 *
 * sim.c         the queue of events, the clock, ranks and what befalls them
 * sim_fiber.c   fibers: switching stacks, waiting, ending
 * sim_link.c    how long messages take, their pool, and the streams of the control channel
 * wire_sim.c    the wire */
#ifndef WEFTI_TRANSPORT_SIM_INSIDE_H
#define WEFTI_TRANSPORT_SIM_INSIDE_H

#include "transport/sim.h"
#include "transport/wire_common.h"

enum { SIM_LOOK_NS = 5, SIM_CLASSES = 6, SIM_MOST_CHUNK = 64 << 10 };

typedef struct sim_event   sim_event;
typedef struct sim_fiber   sim_fiber;
typedef struct sim_message sim_message;
typedef struct sim_seat    sim_seat;
typedef struct sim_wire    sim_wire;
typedef struct sim_stream  sim_stream;

struct sim_event {
    uint64_t at_ns, order;
    size_t   place; /* 1 + its index in the queue; 0: it is not there */
    void (*fire)(wefti_sim *sim, sim_event *event);
};

/* --- fibers --- */

typedef struct sim_stack {
    void  *pointer, *fake; /* fake: AddressSanitizer's */
    void  *bottom;
    size_t bytes;
    void  *saved; /* ucontext, where the stack is not switched by hand */
} sim_stack;

struct sim_fiber {
    sim_event  event; /* first: when it goes on */
    wefti_sim *sim;
    sim_seat  *seat;
    sim_fiber *next; /* of the same seat */
    sim_stack  stack;
    uint8_t   *memory; /* of the stack */
    void (*function)(void *argument);
    void    *argument;
    uint64_t local_ns; /* its clock, ahead of the simulator's by what it has computed */
    bool     is_program, begun, waits, held, ended;
    char     message[WEFTI_MESSAGE_BYTES]; /* of its last error, which is kept by thread elsewhere */
};

weft_status wefti_sim_fiber_create(sim_seat *seat, void (*function)(void *), void *argument, bool is_program, sim_fiber **fiber_out);
void        wefti_sim_fiber_free(sim_fiber *fiber);
/* Makes ready the stack that fibers are run from. */
weft_status wefti_sim_fibers_begin(wefti_sim *sim);
void        wefti_sim_fibers_end(wefti_sim *sim);
/* Waits until a time, or until something comes to the rank; advances the clock where no fiber runs. */
void wefti_sim_wait(wefti_sim *sim, uint64_t duration_ns);

/* --- messages --- */

typedef enum sim_kind {
    SIM_DATA,    /* with its bytes; its send is done */
    SIM_LARGE,   /* its bytes are still the sender's */
    SIM_WRITE,
    SIM_NOTICE,  /* of a WRITE */
    SIM_READ,    /* the way there … */
    SIM_ANSWER,  /* … and back */
    SIM_ACK,     /* op is done */
    SIM_BYE,
    SIM_RESET,
    SIM_CHUNK,   /* of a stream */
    SIM_CHUNK_END,
    SIM_KNOCK,   /* of a stream that is dialled: the way there … */
    SIM_TAKEN,   /* … and back, from where somebody listens … */
    SIM_REFUSED  /* … or nobody */
} sim_kind;

struct sim_message {
    sim_event      event; /* first: its arrival */
    sim_message   *next, *previous; /* in flight, or where it arrived */
    wefti_wire_op *op;              /* the sender's that waits for it, which knows it in scratch[1]; or NULL */
    sim_stream    *stream;          /* CHUNK: where it goes */
    uint64_t       tag, bytes, offset;
    uint32_t       region, wire; /* wire: its number at the seat that it goes to */
    int32_t        from, to; /* seats */
    int32_t        rank;     /* the sender's, in the world of its wire */
    uint8_t        kind, size_class;
    uint8_t       *data;
};

/* One direction between two seats. */
typedef struct sim_way {
    uint64_t     last_ns; /* when the last of it arrives */
    sim_message *first, *last; /* in flight */
} sim_way;

sim_message *wefti_sim_message(wefti_sim *sim, size_t data_bytes); /* NULL: no memory */
void         wefti_sim_message_free(wefti_sim *sim, sim_message *message);
void         wefti_sim_pool_free(wefti_sim *sim);
/* Puts a message on its way; it takes the time of `bytes`, and arrives no earlier than `not_before_ns`. */
void wefti_sim_send(wefti_sim *sim, sim_message *message, size_t bytes, uint64_t not_before_ns);
const char *wefti_sim_kind_name(int kind);
uint64_t    wefti_sim_random(wefti_sim *sim);

/* --- streams --- */

struct sim_stream {
    wefti_stream base; /* first */
    wefti_sim   *sim;
    sim_stream  *other, *next; /* next: of the same seat */
    int32_t      seat;
    bool         asked, closed, ended; /* ended: the other end has gone */
    bool         taken_up, refused;    /* what became of dialling */
    int          purpose;
    sim_stream  *next_caller;          /* at the same seat's door */
    uint64_t     last_ns;              /* when the last that was sent from here arrives */
    sim_message *first, *last;         /* that came */
    size_t       taken;                /* bytes of the first */
};
weft_status wefti_sim_stream(void *seat, int32_t peer, wefti_stream **stream_out);
void        wefti_sim_listen(void *seat, bool listens);
weft_status wefti_sim_dial(void *seat, int32_t peer, int purpose, wefti_stream **stream_out);
weft_status wefti_sim_connected(const wefti_stream *stream);
weft_status wefti_sim_accept(void *seat, int32_t *peer_out, int *purpose_out, wefti_stream **stream_out);
void        wefti_sim_streams_break(sim_seat *seat);
void        wefti_sim_streams_free(sim_seat *seat);

/* --- seats --- */

struct sim_seat {
    wefti_sim    *sim;
    int32_t       index, node;
    wefti_host    host;
    wefti_network network;
    sim_fiber    *fibers;
    sim_wire     *wires;   /* open ones */
    uint32_t      opened;  /* wires so far */
    sim_stream   *streams;
    sim_stream   *callers, *last_caller; /* that were dialled, and not yet accepted */
    int32_t       doors;   /* that are open */
    struct {
        uint64_t out_free_ns, in_free_ns; /* when the port has carried what was given to it */
    } ports[2]; /* inside of its host; to others */
    uint64_t      sent;
    bool          dead, cut, stopped, spared, over; /* over: its program has ended, or never will */
    wefti_sim_fault by_message;
};

struct wefti_sim {
    wefti_sim_options options;
    uint64_t          now_ns, order, random, hash, events;
    sim_event       **queue; /* a heap */
    size_t            queued, queue_capacity;
    sim_seat         *seats; /* [size] */
    sim_way          *ways;  /* [size * size] from, to */
    sim_fiber        *running; /* NULL: the scheduler */
    sim_stack         scheduler;
    int32_t           programs; /* that have yet to end */
    sim_message      *pool[SIM_CLASSES];
    wefti_reducer     reducer;
    weft_status       failed;
    bool              overflowed; /* some fiber left its stack */
};

/* Puts an event into the queue, or moves it. */
void wefti_sim_schedule(wefti_sim *sim, sim_event *event, uint64_t at_ns);
void wefti_sim_unschedule(wefti_sim *sim, sim_event *event);
/* The clock of whoever runs. */
uint64_t wefti_sim_clock(const wefti_sim *sim);
/* Lets the fibers of a rank look. */
void wefti_sim_wake(sim_seat *seat);
/* Before a rank sends a message: counts it, and does what is planned. May not return. */
void wefti_sim_about_to_send(sim_seat *seat);
void wefti_sim_note(wefti_sim *sim, const char *what, int32_t from, int32_t to, uint64_t tag, uint64_t bytes);
void wefti_sim_program_over(sim_seat *seat);

/* --- the wire, for the simulator --- */

/* A message has arrived; takes it. */
void wefti_sim_wire_arrived(wefti_sim *sim, sim_message *message);
/* The rank has died: tells the others. */
void wefti_sim_wires_break(sim_seat *seat);

#endif
