/* A simulated world: all ranks in one process and one thread, in virtual time, the same in every run of a seed.
 *
 * Each rank is a fiber that runs ordinary blocking code with the host and the wire that it is given here; whoever waits lets the
 * next one run, and time jumps to whatever comes next. Messages take the latency and bandwidth of their link, are held up, overtake
 * each other where the wire's contract lets them, and get lost; ranks stop, die, and fall silent when they are told to. */
#ifndef WEFTI_TRANSPORT_SIM_H
#define WEFTI_TRANSPORT_SIM_H

#include "core/iface/reduce.h"
#include "transport/network.h"

typedef struct wefti_sim wefti_sim;

typedef struct wefti_sim_link {
    uint64_t latency_ns;
    double   bytes_per_ns; /* of one direction of a rank's port, which all of its messages of this kind share */
} wefti_sim_link;

/* Zero means the default. */
typedef struct wefti_sim_options {
    uint64_t       seed;
    int32_t        size;      /* ranks */
    const int32_t *nodes;     /* [size] which host each rank runs on, as any number; copied; NULL: each on its own */
    wefti_sim_link near, far; /* inside of a host; between hosts: 500 ns, 20 bytes/ns; 2 µs, 12.5 bytes/ns */
    uint64_t       jitter_ns; /* a message may take as much longer; those of other tags overtake it then */
    uint32_t       lost;      /* of a million messages so many are lost, and come when they are sent again … */
    uint64_t       again_ns;  /* … after so long; 200 ms */
    uint32_t       lost_control; /* the same of a million pieces of the control channel's streams */
    uint64_t       post_ns;   /* of a core, for a message that is sent, and for one that is taken; 200 */
    double         core_bytes_per_ns; /* that the reducer reads or writes, or the engine copies; 12.5 */
    size_t         most_bytes; /* of one message, at least 4 KiB; 1 GiB */
    size_t         stack_bytes; /* of a fiber */
    uint64_t       limit_ns;  /* of virtual time, after which the run ends as hung; an hour */
    /* Ranks may have others ended that hang; hears of each, after its end. NULL: they may not. */
    void (*fenced)(void *context, int32_t rank);
    void *fenced_context;
    /* Hears of every event, as a line of text; NULL: nobody. */
    void (*trace)(void *context, const char *line);
    void *trace_context;
} wefti_sim_options;

typedef enum wefti_sim_act {
    WEFTI_SIM_KILL, /* its process ends: its links and streams break */
    WEFTI_SIM_STOP, /* it does not run; what is sent to it waits */
    WEFTI_SIM_CUT   /* nothing comes from it or reaches it any more, and nobody is told */
} wefti_sim_act;

typedef struct wefti_sim_fault {
    wefti_sim_act act;
    int32_t       rank;
    uint64_t      message; /* just before the rank sends its message of this number, from 1 on; 0: at a time */
    uint64_t      at_ns;
    uint64_t      for_ns;  /* STOP: how long; 0: for ever */
} wefti_sim_fault;

WEFT_MUST_CHECK weft_status wefti_sim_create(const wefti_sim_options *options, wefti_sim **sim_out);
/* After everything that ranks opened is closed, also by ranks that died: their objects are closed by whoever made the simulator,
 * outside of its fibers. NULL is fine. */
void wefti_sim_release(wefti_sim *sim);

/* A rank's host and network; they live as long as the simulator. */
const wefti_host    *wefti_sim_host(wefti_sim *sim, int32_t rank);
const wefti_network *wefti_sim_network(wefti_sim *sim, int32_t rank);
/* Reduces as wefti_reducer_host does, and takes its time for it. */
const wefti_reducer *wefti_sim_reducer(wefti_sim *sim);

/* Gives a rank its program, which begins when the simulator runs. */
WEFT_MUST_CHECK weft_status wefti_sim_start(wefti_sim *sim, int32_t rank, void (*program)(void *argument), void *argument);
/* Starts another process in a rank's seat at a time, if the one there has died by then. What the former one made stays, as of any that died. */
WEFT_MUST_CHECK weft_status wefti_sim_start_again(wefti_sim *sim, int32_t rank, uint64_t at_ns, void (*program)(void *argument), void *argument);
/* Plans a fault. Of one rank's faults by message, the one planned last counts. */
WEFT_MUST_CHECK weft_status wefti_sim_plan(wefti_sim *sim, const wefti_sim_fault *fault);
/* Spares a rank all further faults: it is about to leave. */
void wefti_sim_spare(wefti_sim *sim, int32_t rank);
/* Runs until every program has ended, or its rank died or was stopped for ever. WEFT_E_TIMEOUT names who is still there at the
 * limit of time, WEFT_E_INTERNAL a fiber that left its stack. */
WEFT_MUST_CHECK weft_status wefti_sim_run(wefti_sim *sim);
/* Ends the calling rank's program where it stands; in a fiber only. */
_Noreturn void wefti_sim_leave(wefti_sim *sim);
/* Takes time of the calling rank's core. */
void wefti_sim_spend(wefti_sim *sim, uint64_t duration_ns);

uint64_t wefti_sim_now(const wefti_sim *sim);
/* Of all events so far: equal in every run of the same seed and programs. */
uint64_t wefti_sim_hash(const wefti_sim *sim);
uint64_t wefti_sim_events(const wefti_sim *sim);
/* Messages that a rank has sent by its wires. */
uint64_t wefti_sim_messages(const wefti_sim *sim, int32_t rank);
bool     wefti_sim_is_gone(const wefti_sim *sim, int32_t rank); /* died, or stopped for ever */
bool     wefti_sim_is_cut(const wefti_sim *sim, int32_t rank);

/* The simulated wire: options.shared is the simulator, options.host a host of its. */
WEFT_MUST_CHECK weft_status wefti_wire_sim_open(const wefti_wire_options *options, wefti_wire **wire_out);

#endif
