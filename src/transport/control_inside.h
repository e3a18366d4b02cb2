/* Inside of the control channel: control.c has what all ranks do, control_server.c what rank 0 does, control_client.c
 * what the others do. All of it runs under the channel's lock. */
#ifndef WEFTI_TRANSPORT_CONTROL_INSIDE_H
#define WEFTI_TRANSPORT_CONTROL_INSIDE_H

#include <pthread.h>
#include <stdatomic.h>

#include "transport/control.h"
#include "transport/frames.h"
#include "transport/handshake.h"
#include "transport/socket.h"

enum { CONTROL_MOST_GUESTS = 64, CONTROL_CAUSE_BYTES = 256, CONTROL_TELL_BYTES = 12 << 10, CONTROL_KEPT_BYTES = 64 << 10 };
#define CONTROL_WINDOW_NS (2 * WEFTI_SECOND_NS) /* over which waiting is compared */
#define CONTROL_STRAGGLER_SHARE 0.1             /* of it, that all others wait more than the straggler */
#define CONTROL_BEAT_NS (WEFTI_SECOND_NS / 2)
#define CONTROL_SILENCE_NS (4 * WEFTI_SECOND_NS)
#define CONTROL_PAUSE_NS WEFTI_SECOND_NS /* between two pumps: more than that, and this process was stopped */
#define CONTROL_GRACE_NS (WEFTI_SECOND_NS * 3 / 10)
#define CONTROL_PATIENCE_NS (2 * WEFTI_SECOND_NS) /* with rank 0, which decides */

typedef enum control_kind {
    CONTROL_EXCHANGE = 1, /* payload: name, then the rank's bytes; value: the round */
    CONTROL_RESULT,       /* payload: everyone's bytes; value: the round */
    CONTROL_BEAT,
    CONTROL_FAULT,        /* payload: the cause; rank and status (value) of the verdict, or what is put to rank 0 as such */
    CONTROL_BYE,
    CONTROL_ASK,          /* rank: who asks what everyone is doing; value: the question's number */
    CONTROL_TELL,         /* payload: the answer. To rank 0: rank is the asker; from rank 0: who answers */
    CONTROL_SUSPECT,      /* to rank 0; payload: the cause; rank: who is suspected */
    CONTROL_JOIN          /* to rank 0, in a network, first of all; rank: who it is; value: the epoch that it joins */
} control_kind;

typedef enum control_member_state { MEMBER_ABSENT, MEMBER_HERE, MEMBER_LEFT, MEMBER_DEAD } control_member_state;

typedef struct control_member {
    wefti_frames         frames;
    control_member_state state;
    bool                 beats; /* it has sent a heartbeat, so its silence means something */
    bool                 told;  /* of the verdict */
    bool                 came;  /* to this round */
} control_member;

typedef struct control_guest {
    int             socket; /* -1: free */
    wefti_handshake shake;
} control_guest;

/* The same in a network: a stream that has not yet said whose it is. */
typedef struct control_caller {
    wefti_frames frames;
    int32_t      seat;
} control_caller;

/* One exchange, as rank 0 gathers it and the others wait for it. */
typedef struct control_round {
    uint32_t    number;  /* of the one that goes on, or comes next */
    bool        open;    /* rank 0: somebody has come */
    bool        done;    /* the result is in `all` */
    char        name[WEFTI_EXCHANGE_NAME_BYTES];
    size_t      bytes;
    int32_t     first;   /* rank that came first, to be named in a disagreement */
    size_t      room[2]; /* bytes of … */
    uint8_t    *all[2];  /* [size] parts of a round's `bytes` by rank, by the round's parity: the others may begin the next
                            round before rank 0 has taken this one's result */
} control_round;

/* What a rank's heartbeats say of its waiting, now and at the beginning of the window. */
typedef struct control_wait {
    uint64_t waited_ns, operations;
    uint64_t waited_before_ns, operations_before;
} control_wait;

/* A question of this rank that is being answered. */
typedef struct control_question {
    bool        open;
    uint32_t    number;
    int32_t     answered;
    wefti_text *answers; /* [size] */
} control_question;

struct wefti_control {
    const wefti_host  *host;
    const wefti_place *place;
    const wefti_network *network; /* NULL: sockets and a thread */
    wefti_fault       *fault;
    wefti_watch       *watch;      /* NULL: nothing to tell */
    wefti_terms        terms;
    pthread_mutex_t    lock;       /* recursive: a fault that is found under it is told under it */
    pthread_cond_t     changed;
    pthread_t          thread;
    void              *spawned;    /* by the network, instead of the thread */
    bool               has_thread, no_thread;
    _Atomic bool       stop;
    int                wake;       /* eventfd: the thread shall look */
    wefti_door        *door;       /* that is drained; NULL: none */
    wefti_calls       *calls;      /* NULL where the world follows no fault */
    const int32_t     *members_seats; /* [size] of the ranks, for the calls */
    wefti_calls       *newcomers;  /* rank 0, where ranks are lacking that may come; else NULL */
    _Atomic uint64_t   listened_ns;
    uint64_t           pumped_ns, beat_ns;
    bool               suspects;   /* the fault has a suspicion */
    weft_status        failed;     /* joining has failed for good … */
    char               failure[WEFTI_MESSAGE_BYTES]; /* … for this reason */
    uint64_t           strangers;
    control_round      round;
    control_question   question;
    int                signalled;  /* eventfd that a signal's handler rings; -1: none */
    _Atomic uint64_t   straggler;  /* 1 + rank (0: nobody) << 32, and the permille of its share */
    control_wait      *waits;      /* rank 0: [size] */
    uint64_t           window_ns;  /* when the window began */
    wefti_socket_address address;  /* of the store */
    control_member    *members;    /* rank 0: [size]; others: [1], which is rank 0 */
    /* rank 0 */
    int            listener;
    control_guest *guests;
    control_caller *callers;       /* [CONTROL_MOST_GUESTS] in a network; NULL where all are connected from the start */
    /* others */
    int             dialled;       /* -1: not */
    bool            connected, shaking;
    int             port_try;
    uint64_t        redial_ns, wordless_ns; /* wordless: since when whoever is at the store's port hangs up without a word; 0: he does not */
    wefti_handshake shake;
    char            last_refusal[WEFTI_MESSAGE_BYTES];
};

/* Whether there is a connection to the member. */
static inline bool wefti_control_reaches(const control_member *member) {
    return member->state == MEMBER_HERE && wefti_frames_are_open(&member->frames);
}
/* Makes room for everyone's bytes of a round. */
weft_status wefti_control_room(control_round *round, uint32_t number, size_t bytes);
/* Remembers that joining has failed, with the thread's message. */
void wefti_control_fail(wefti_control *control, weft_status status);
/* Gives up a member whose connection has ended (WEFT_E_LINK), that sent nonsense (WEFT_E_CORRUPT) or that is silent (WEFT_E_TIMEOUT). */
void wefti_control_lose(wefti_control *control, control_member *member, int32_t rank, weft_status status);
/* What all frames but those of exchanges mean; `from` is the sender. */
void wefti_control_hear(wefti_control *control, control_member *member, int32_t from, const wefti_frame *frame,
                        const uint8_t *payload);

/* Lets go of the lock until something may have changed, or for a moment. */
void wefti_control_wait(wefti_control *control);

/* control_ask.c */
void wefti_control_hear_question(wefti_control *control, int32_t from, const wefti_frame *frame, const uint8_t *payload);
void wefti_control_keep_answer(wefti_control *control, int32_t rank, uint32_t number, const char *text, size_t bytes);
/* Writes what this rank has been doing to standard error where the signal's eventfd has rung. */
void wefti_control_answer_signal(wefti_control *control);
/* The rank that waits less than all others, and by what share of the window; -1 where it is no tenth. */
int32_t     wefti_straggler_find(const control_wait *waits, int32_t size, uint64_t window_ns, double *share_out);
void        wefti_control_name_straggler(wefti_control *control, int32_t rank, uint32_t permille);
wefti_frame wefti_control_beat_frame(wefti_control *control, uint64_t now_ns, uint64_t payload_out[2]);
void        wefti_control_hear_beat(wefti_control *control, int32_t from, const wefti_frame *frame, const uint8_t *payload);

weft_status wefti_control_server_open(wefti_control *control);
weft_status wefti_control_server_admit(void *context, int32_t rank);
void        wefti_control_server_pump(wefti_control *control, uint64_t now_ns);
/* Attends to the door where newcomers are heard. */
void        wefti_control_server_hear_newcomers(wefti_control *control, uint64_t now_ns);
/* Has everyone come at once, by streams of the network. */
weft_status wefti_control_server_meet(wefti_control *control);
/* Puts a rank's bytes into the round, rank 0's own too. */
void wefti_control_server_take(wefti_control *control, int32_t rank, uint32_t number, const uint8_t *payload,
                               size_t bytes);
/* Names who has not come; what a timeout says. */
void wefti_control_server_missing(wefti_control *control, const char *name, double seconds, wefti_text *text,
                                  int32_t *first_out);
void wefti_control_client_pump(wefti_control *control, uint64_t now_ns);
weft_status wefti_control_client_meet(wefti_control *control);
/* Rank 0 is there. */
void        wefti_control_client_met(wefti_control *control);
uint32_t    wefti_control_client_most_bytes(const wefti_control *control);

/* control_network.c: joining after a fault, in a network. */
weft_status wefti_control_network_open(wefti_control *control);
void        wefti_control_network_close(wefti_control *control);
void        wefti_control_network_let_in(wefti_control *control, uint64_t now_ns); /* rank 0 */
void        wefti_control_network_join(wefti_control *control, uint64_t now_ns);   /* the others */

#endif
