/* The control channel: what all ranks do.
 *
 * A pump that never blocks does everything, under one lock: a thread runs it (by default), or whoever waits. The thread
 * sleeps in poll on all sockets, so a peer's death is known when the kernel says so, and wakes twice a second for
 * heartbeats; in a network without sockets (network.h) the same pump runs beside the rank and sleeps by the host. The fault
 * object calls back, holding no lock of its own, when it is about to decide; the news is given to the streams there and
 * then. */
#include "transport/control.h"

#include <netdb.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "transport/control_inside.h"

void wefti_control_fail(wefti_control *control, weft_status status) {
    if (control->failed != WEFT_OK) return;
    control->failed = status;
    snprintf(control->failure, sizeof control->failure, "%s", weft_error_message());
}

/* --- verdicts --- */

static void rouse(wefti_control *control) {
    uint64_t one = 1;
    if (control->network) return; /* what is sent waits for nothing there */
    ssize_t ignored = write(control->wake, &one, sizeof one);
    (void)ignored;
}

static int32_t member_count(const wefti_control *control) { return control->place->rank == 0 ? control->place->size : 1; }

static void tell(control_member *member, weft_status status, int32_t rank, const char *cause) {
    if (member->told || !wefti_control_reaches(member)) return;
    member->told = true;
    (void)!wefti_frames_send(&member->frames, (wefti_frame){CONTROL_FAULT, (uint32_t)strlen(cause), rank, (uint32_t)status}, cause);
}

/* Gives the news to everyone who has not had any. */
static void broadcast(wefti_control *control, weft_status status, int32_t rank, const char *cause) {
    for (int32_t i = 0; i < member_count(control); i++) tell(&control->members[i], status, rank, cause);
}

/* Who was only stopped, and goes on one day, is to find its own silence in what came, and not blame us for the end of the connection. */
void wefti_control_lose(wefti_control *control, control_member *member, int32_t rank, weft_status status) {
    char cause[CONTROL_CAUSE_BYTES];
    if (status == WEFT_E_CORRUPT)
        snprintf(cause, sizeof cause, "on the control channel, %.200s", weft_error_message());
    else
        snprintf(cause, sizeof cause, status == WEFT_E_TIMEOUT ? "it has been silent for %.3g s (stopped, or cut off)" : "its process has ended",
                 (double)CONTROL_SILENCE_NS / 1e9);
    if (status == WEFT_E_TIMEOUT && wefti_fault_verdict(control->fault) == WEFT_OK) tell(member, WEFT_E_PEER, rank, cause);
    member->state = MEMBER_DEAD;
    wefti_frames_close(&member->frames);
    wefti_fault_raise(control->fault, WEFT_E_PEER, rank, cause);
}

static void decided(void *context, weft_status status, int32_t rank, const char *cause) {
    wefti_control *control = context;
    pthread_mutex_lock(&control->lock);
    broadcast(control, status, rank, cause);
    pthread_mutex_unlock(&control->lock);
    rouse(control); /* the thread may have to wait for a socket to take the rest */
}

/* The ranks but 0: rank 0 decides, so that all have one verdict. */
static bool ask(void *context, weft_status status, int32_t rank, const char *cause, bool firm) {
    wefti_control *control = context;
    pthread_mutex_lock(&control->lock);
    control_member *server = &control->members[0];
    wefti_frame     frame = {firm ? CONTROL_FAULT : CONTROL_SUSPECT, (uint32_t)strnlen(cause, CONTROL_CAUSE_BYTES - 1), rank, (uint32_t)status};
    bool            reached = wefti_control_reaches(server) && wefti_frames_send(&server->frames, frame, cause) == WEFT_OK;
    pthread_mutex_unlock(&control->lock);
    rouse(control);
    return reached;
}

/* For those who have joined since. */
static void tell_all(wefti_control *control) {
    weft_status status = wefti_fault_verdict(control->fault);
    if (status != WEFT_OK) broadcast(control, status, wefti_fault_rank(control->fault), wefti_fault_cause(control->fault));
}

/* Rank 0 hears what others found, and decides; the others hear its verdict. */
static void hear_fault(wefti_control *control, control_member *member, int32_t from, const wefti_frame *frame, const uint8_t *payload) {
    char        cause[CONTROL_CAUSE_BYTES];
    size_t      length = frame->length < sizeof cause - 1 ? frame->length : sizeof cause - 1;
    bool        known = frame->value > WEFT_END && frame->value < WEFT_STATUS_COUNT;
    weft_status status = known ? (weft_status)frame->value : WEFT_E_PEER;
    int32_t     rank = frame->rank >= -1 && frame->rank < control->place->size ? frame->rank : from;
    memcpy(cause, payload, length);
    cause[length] = 0;
    if (frame->kind == CONTROL_SUSPECT) {
        if (control->place->rank == 0) wefti_fault_suspect(control->fault, rank, cause);
    } else if (control->place->rank == 0) {
        wefti_fault_raise(control->fault, status, rank, cause); /* which tells all, the sender too, of the first one */
    } else {
        member->told = true;
        wefti_fault_learn(control->fault, status, rank, cause);
    }
}

void wefti_control_hear(wefti_control *control, control_member *member, int32_t from, const wefti_frame *frame,
                        const uint8_t *payload) {
    switch ((control_kind)frame->kind) {
    case CONTROL_BEAT:
        member->beats = true;
        wefti_control_hear_beat(control, from, frame, payload);
        break;
    case CONTROL_ASK:
    case CONTROL_TELL: wefti_control_hear_question(control, from, frame, payload); break;
    case CONTROL_BYE: member->state = MEMBER_LEFT; break;
    case CONTROL_FAULT:
    case CONTROL_SUSPECT: hear_fault(control, member, from, frame, payload); break;
    default: break; /* of a later version */
    }
}

/* --- the pump --- */

static void beat(wefti_control *control, uint64_t now_ns) {
    if (control->no_thread || now_ns < control->beat_ns) return;
    control->beat_ns = now_ns + CONTROL_BEAT_NS;
    uint64_t    waits[2];
    wefti_frame frame = wefti_control_beat_frame(control, now_ns, waits);
    for (int32_t i = 0; i < member_count(control); i++)
        if (wefti_control_reaches(&control->members[i]))
            (void)!wefti_frames_send(&control->members[i].frames, frame, waits);
}

/* A process that was stopped (SIGTSTP, a debugger) or starved has not listened: its own absence is nobody's silence. */
static void forgive_own_pause(wefti_control *control, uint64_t now_ns) {
    bool paused = control->pumped_ns && now_ns > control->pumped_ns + CONTROL_PAUSE_NS;
    for (int32_t i = 0; paused && i < member_count(control); i++) control->members[i].frames.heard_ns = now_ns;
    control->pumped_ns = now_ns;
}

static void pump(wefti_control *control, uint64_t now_ns) {
    forgive_own_pause(control, now_ns);
    if (control->place->rank == 0)
        wefti_control_server_pump(control, now_ns);
    else
        wefti_control_client_pump(control, now_ns);
    if (control->newcomers) wefti_control_server_hear_newcomers(control, now_ns);
    else if (control->door) wefti_door_drain(control->door, now_ns);
    beat(control, now_ns);
    control->suspects = wefti_fault_settle(control->fault);
    tell_all(control);
    wefti_control_answer_signal(control);
    pthread_cond_broadcast(&control->changed);
}

static nfds_t descriptors(wefti_control *control, struct pollfd *list) {
    nfds_t count = 0;
    int    door = wefti_door_descriptor(control->door, wefti_host_now(control->host));
    list[count++] = (struct pollfd){.fd = control->wake, .events = POLLIN};
    if (control->signalled >= 0) list[count++] = (struct pollfd){.fd = control->signalled, .events = POLLIN};
    if (control->listener >= 0) list[count++] = (struct pollfd){.fd = control->listener, .events = POLLIN};
    if (door >= 0) list[count++] = (struct pollfd){.fd = door, .events = POLLIN};
    for (int i = 0; control->guests && i < CONTROL_MOST_GUESTS; i++)
        if (control->guests[i].socket >= 0)
            list[count++] = (struct pollfd){.fd = control->guests[i].socket, .events = POLLIN};
    if (control->dialled >= 0)
        list[count++] = (struct pollfd){.fd = control->dialled, .events = control->connected ? POLLIN : POLLOUT};
    for (int32_t i = 0; i < member_count(control); i++) {
        const wefti_frames *frames = &control->members[i].frames;
        if (wefti_control_reaches(&control->members[i]) && frames->socket >= 0)
            list[count++] = (struct pollfd){.fd = frames->socket,
                                            .events = (short)(POLLIN | (frames->out_have ? POLLOUT : 0))};
    }
    return count;
}

/* How long nothing needs to be done but what sockets bring. */
static int idle_ms(const wefti_control *control) {
    bool joining = control->place->rank == 0 ? control->listener >= 0 : control->members[0].state == MEMBER_ABSENT;
    return joining || control->suspects || control->newcomers ? 20 : 200; /* newcomers' sockets are not looked at */
}

static void *run_thread(void *context) {
    wefti_control *control = context;
    struct pollfd *list = (struct pollfd *)(control + 1); /* room for all, see open */
    while (!atomic_load(&control->stop)) {
        pthread_mutex_lock(&control->lock);
        pump(control, wefti_host_now(control->host));
        nfds_t count = descriptors(control, list);
        int    wait_ms = idle_ms(control);
        pthread_mutex_unlock(&control->lock);
        poll(list, count, wait_ms);
        if (list[0].revents) {
            uint64_t rings;
            ssize_t  ignored = read(control->wake, &rings, sizeof rings);
            (void)ignored;
        }
    }
    return NULL;
}

/* The same, beside others of a network; its host wakes who sleeps as soon as something comes. */
static void run_spawned(void *context) {
    wefti_control *control = context;
    while (!atomic_load(&control->stop)) {
        pthread_mutex_lock(&control->lock);
        pump(control, wefti_host_now(control->host));
        uint64_t idle_ns = (uint64_t)idle_ms(control) * WEFTI_MILLISECOND_NS;
        pthread_mutex_unlock(&control->lock);
        control->host->sleep(control->host->context, idle_ns);
    }
}

/* Called by wefti_fault_status, so by every wait: while somebody is suspected, or where there is no thread. */
static void listen_now(void *context) {
    wefti_control *control = context;
    uint64_t       now_ns = wefti_host_now(control->host);
    if (now_ns < atomic_load_explicit(&control->listened_ns, memory_order_relaxed) + WEFTI_MILLISECOND_NS) return;
    if (pthread_mutex_trylock(&control->lock) != 0) return;
    atomic_store_explicit(&control->listened_ns, now_ns, memory_order_relaxed);
    pump(control, now_ns);
    pthread_mutex_unlock(&control->lock);
}

/* --- exchanging --- */

static weft_status time_out(wefti_control *control, const char *name, uint64_t timeout_ns) {
    wefti_text text = {0};
    int32_t    first = 0;
    if (control->place->rank == 0) {
        wefti_control_server_missing(control, name, (double)timeout_ns / 1e9, &text, &first);
        wefti_fault_raise(control->fault, WEFT_E_TIMEOUT, first, text.bytes);
    } else if (control->members[0].state == MEMBER_ABSENT) {
        wefti_text_add(&text, "rank 0 of %d was not found at %s within %.3g s: %s", (int)control->place->size,
                       control->place->store, (double)timeout_ns / 1e9, control->last_refusal);
    } else {
        wefti_text_add(&text, "rank 0 did not finish '%s' within %.3g s", name, (double)timeout_ns / 1e9);
    }
    weft_status status = wefti_fail(WEFT_E_TIMEOUT, "%s", text.bytes ? text.bytes : "out of memory");
    wefti_text_release(&text);
    return status;
}

void wefti_control_wait(wefti_control *control) {
    if (control->network) {
        if (control->no_thread) pump(control, wefti_host_now(control->host));
        pthread_mutex_unlock(&control->lock);
        control->host->sleep(control->host->context, 20 * WEFTI_MILLISECOND_NS);
        pthread_mutex_lock(&control->lock);
        return;
    }
    if (!control->no_thread) {
        struct timespec until;
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_nsec += 20 * 1000 * 1000;
        if (until.tv_nsec >= 1000000000) {
            until.tv_nsec -= 1000000000;
            until.tv_sec++;
        }
        pthread_cond_timedwait(&control->changed, &control->lock, &until);
        return;
    }
    pump(control, wefti_host_now(control->host));
    if (control->round.done) return;
    struct pollfd *list = (struct pollfd *)(control + 1);
    nfds_t         count = descriptors(control, list);
    pthread_mutex_unlock(&control->lock);
    poll(list + 1, count - 1, 5);
    pthread_mutex_lock(&control->lock);
}

weft_status wefti_control_room(control_round *round, uint32_t number, size_t bytes) {
    int which = (int)(number % 2);
    if (bytes <= round->room[which]) return WEFT_OK;
    WEFTI_TRY(wefti_grow(&round->all[which], round->room[which], bytes, "an exchange"));
    round->room[which] = bytes;
    return WEFT_OK;
}

/* What all said in the round before is no more needed: a large one gives its memory back. */
static void leave_room(control_round *round) {
    int which = (int)((round->number - 1) % 2);
    if (round->room[which] <= CONTROL_KEPT_BYTES) return;
    wefti_free(round->all[which], round->room[which]);
    round->all[which] = NULL;
    round->room[which] = 0;
}

/* Sends this rank's part, once it has joined. */
static void contribute(wefti_control *control, const uint8_t *payload, size_t bytes, bool *sent) {
    if (*sent || control->members[0].state != MEMBER_HERE) return;
    *sent = true;
    if (control->place->rank == 0)
        wefti_control_server_take(control, 0, control->round.number, payload, bytes);
    else
        (void)!wefti_frames_send(&control->members[0].frames,
                                 (wefti_frame){CONTROL_EXCHANGE, (uint32_t)bytes, control->place->rank, control->round.number},
                                 payload);
    rouse(control); /* the thread may have to wait for the socket to take the rest */
}

weft_status wefti_control_exchange(wefti_control *control, const char *name, const void *mine, size_t bytes,
                                   uint64_t timeout_ns, void *all_out) {
    uint8_t     payload[WEFTI_EXCHANGE_NAME_BYTES + WEFTI_EXCHANGE_MOST_BYTES] = {0};
    weft_status status = WEFT_E_AGAIN;
    bool        sent = false;
    if (bytes > WEFTI_EXCHANGE_MOST_BYTES)
        return wefti_fail(WEFT_E_OVERFLOW, "an exchange of %zu bytes; at most %d", bytes, WEFTI_EXCHANGE_MOST_BYTES);
    snprintf((char *)payload, WEFTI_EXCHANGE_NAME_BYTES, "%s", name);
    if (bytes) memcpy(payload + WEFTI_EXCHANGE_NAME_BYTES, mine, bytes);
    /* The others wait a second longer than rank 0, which knows who is missing and says so. */
    uint64_t patience_ns = timeout_ns + (control->place->rank == 0 ? 0 : WEFTI_SECOND_NS);
    uint64_t deadline_ns = wefti_deadline_after(wefti_host_now(control->host), patience_ns);
    pthread_mutex_lock(&control->lock);
    control->round.done = false;
    if (wefti_control_room(&control->round, control->round.number, bytes * (size_t)control->place->size) != WEFT_OK) {
        pthread_mutex_unlock(&control->lock);
        return WEFT_E_NO_MEMORY;
    }
    if (control->place->rank != 0) {
        control->round.open = true;
        control->round.bytes = bytes;
    }
    while (status == WEFT_E_AGAIN) {
        contribute(control, payload, WEFTI_EXCHANGE_NAME_BYTES + bytes, &sent);
        if (!control->round.done && control->place->rank != 0 && control->members[0].state == MEMBER_LEFT)
            wefti_fault_raise(control->fault, WEFT_E_PEER, 0, "it has left, and others wait for it");
        if (control->round.done)
            status = WEFT_OK;
        else if (wefti_fault_verdict(control->fault) != WEFT_OK)
            status = wefti_fault_status(control->fault);
        else if (control->failed != WEFT_OK)
            status = wefti_fail(control->failed, "%s", control->failure);
        else if (wefti_host_now(control->host) >= deadline_ns)
            status = time_out(control, name, timeout_ns);
        else
            wefti_control_wait(control);
    }
    if (status == WEFT_OK && bytes)
        memcpy(all_out, control->round.all[(control->round.number - 1) % 2], bytes * (size_t)control->place->size);
    if (status == WEFT_OK) leave_room(&control->round);
    pthread_mutex_unlock(&control->lock);
    return status;
}

/* --- opening and closing --- */

/* Descriptors beside the members' and guests': to wake, the signal's, the listener, what is dialled, the door. */
enum { CONTROL_DESCRIPTORS = 5 };

static size_t control_bytes(const wefti_place *place) {
    return sizeof(wefti_control) + ((size_t)place->size + CONTROL_MOST_GUESTS + CONTROL_DESCRIPTORS) * sizeof(struct pollfd);
}

static void free_all(wefti_control *control) {
    const wefti_place *place = control->place;
    for (int32_t i = 0; control->members && i < member_count(control); i++) wefti_frames_close(&control->members[i].frames);
    for (int i = 0; control->guests && i < CONTROL_MOST_GUESTS; i++)
        if (control->guests[i].socket >= 0) close(control->guests[i].socket);
    if (control->listener >= 0) close(control->listener);
    if (control->dialled >= 0) close(control->dialled);
    if (control->wake >= 0) close(control->wake);
    wefti_free(control->members, (size_t)member_count(control) * sizeof *control->members);
    wefti_free(control->waits, (size_t)place->size * sizeof *control->waits);
    wefti_control_network_close(control);
    wefti_free(control->guests, CONTROL_MOST_GUESTS * sizeof *control->guests);
    for (int i = 0; i < 2; i++) wefti_free(control->round.all[i], control->round.room[i]);
    pthread_cond_destroy(&control->changed);
    pthread_mutex_destroy(&control->lock);
    wefti_free(control, control_bytes(place));
}

static weft_status start_thread(wefti_control *control) {
    if (control->network) {
        WEFTI_TRY(control->network->spawn(control->network->context, run_spawned, control, &control->spawned));
        control->has_thread = true;
        return WEFT_OK;
    }
    sigset_t all, before;
    sigfillset(&all); /* signals are the program's: none is to land here */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&control->thread, NULL, run_thread, control);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error) return wefti_fail(WEFT_E_NO_MEMORY, "cannot start the control thread: %s", strerror(error));
    control->has_thread = true;
    return WEFT_OK;
}

/* A pod's name is known some time after the pod was started: rank 0's may come after the others. */
static weft_status find_store(wefti_control *control, uint64_t timeout_ns) {
    bool     comes_late = strcmp(control->place->launcher, "Kubernetes") == 0;
    uint64_t deadline_ns = wefti_deadline_after(wefti_host_now(control->host), timeout_ns);
    for (;;) {
        weft_status status = wefti_socket_resolve(control->place->store, &control->address);
        if (status != WEFT_E_NOT_FOUND || !comes_late || wefti_host_now(control->host) >= deadline_ns) return status;
        control->host->sleep(control->host->context, WEFTI_SECOND_NS / 5);
    }
}

static weft_status set_up(wefti_control *control, uint64_t timeout_ns) {
    const wefti_place *place = control->place;
    WEFTI_TRY(wefti_alloc((size_t)member_count(control) * sizeof *control->members, "members", &control->members));
    for (int32_t i = 0; i < member_count(control); i++) control->members[i].frames.socket = -1;
    if (place->rank == 0 && control->watch)
        WEFTI_TRY(wefti_alloc((size_t)place->size * sizeof *control->waits, "how long ranks wait", &control->waits));
    if (control->network) {
        control->members[0].state = place->rank == 0 ? MEMBER_HERE : MEMBER_ABSENT;
        if (control->calls) return wefti_control_network_open(control);
        return place->rank == 0 ? wefti_control_server_meet(control) : wefti_control_client_meet(control);
    }
    control->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (control->wake < 0) return wefti_fail_errno("cannot create an eventfd for the control thread");
    if (place->store[0]) WEFTI_TRY(find_store(control, timeout_ns));
    if (place->rank == 0) {
        WEFTI_TRY(wefti_alloc(CONTROL_MOST_GUESTS * sizeof *control->guests, "guests", &control->guests));
        for (int i = 0; i < CONTROL_MOST_GUESTS; i++) control->guests[i].socket = -1;
        control->members[0].state = MEMBER_HERE;
        WEFTI_TRY(wefti_control_server_open(control));
        control->terms.admit = wefti_control_server_admit;
        control->terms.context = control;
    }
    if (!wefti_socket_is_loopback(&control->address) && (!place->secret_bytes || !wefti_can_authenticate()))
        return wefti_fail(WEFT_E_AUTH, "the rendezvous at %s is not on loopback, which demands a secret: %s",
                          wefti_socket_text(&control->address).text,
                          wefti_can_authenticate() ? "set WEFT_SECRET, or WEFT_SECRET_FILE to a file of mode 0600, on every rank"
                                                   : "but this build lacks libsodium");
    return WEFT_OK;
}

weft_status wefti_control_open(const wefti_control_options *options, wefti_control **control_out) {
    const wefti_place *place = options->place;
    wefti_control     *control = NULL;
    WEFTI_TRY(wefti_alloc(control_bytes(place), "the control channel", &control));
    if (place->secret_bytes && !wefti_can_authenticate())
        wefti_log(WEFT_LOG_WARNING, "the job's secret is not used: this build lacks libsodium, and meets over loopback only");
    control->host = options->host;
    control->place = place;
    control->network = options->network;
    control->fault = options->fault;
    control->no_thread = options->no_thread;
    control->watch = options->watch;
    control->door = options->door;
    control->calls = options->calls;
    control->members_seats = options->members;
    control->newcomers = options->newcomers;
    control->listener = control->dialled = control->wake = control->signalled = -1;
    control->terms = (wefti_terms){.host = options->host, .purpose = WEFTI_FOR_STORE, .rank = place->rank, .size = place->size,
                                   .epoch = place->epoch, .job = place->job, .secret = place->secret, .secret_bytes = place->secret_bytes,
                                   .encrypt = place->encrypt};
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutexattr_t recursive;
    pthread_mutexattr_init(&recursive);
    pthread_mutexattr_settype(&recursive, PTHREAD_MUTEX_RECURSIVE);
    pthread_mutex_init(&control->lock, &recursive);
    pthread_mutexattr_destroy(&recursive);
    pthread_cond_init(&control->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    weft_status status = set_up(control, options->timeout_ns);
    if (status == WEFT_OK) {
        wefti_fault_set_hooks(control->fault, &(wefti_fault_hooks){.decided = decided,
                                                                   .ask = place->rank ? ask : NULL,
                                                                   .listen = listen_now,
                                                                   .unattended = control->no_thread,
                                                                   .context = control,
                                                                   .grace_ns = CONTROL_GRACE_NS,
                                                                   .patience_ns = CONTROL_PATIENCE_NS});
        if (!control->no_thread) status = start_thread(control);
        if (status == WEFT_OK) {
            *control_out = control;
            return WEFT_OK;
        }
        wefti_fault_set_hooks(control->fault, NULL);
    }
    free_all(control);
    return status;
}

void wefti_control_close(wefti_control *control) {
    if (!control) return;
    wefti_fault_set_hooks(control->fault, NULL);
    atomic_store(&control->stop, true);
    rouse(control);
    if (control->spawned)
        control->network->join(control->network->context, control->spawned);
    else if (control->has_thread)
        pthread_join(control->thread, NULL);
    tell_all(control); /* a verdict goes before the goodbye, so that nobody takes our end for the first fault */
    for (int32_t i = 0; i < member_count(control); i++)
        if (wefti_control_reaches(&control->members[i]))
            (void)!wefti_frames_send(&control->members[i].frames, (wefti_frame){CONTROL_BYE, 0, control->place->rank, 0}, NULL);
    /* What the socket did not take at once (a peer that does not read) is given a moment. */
    uint64_t until_ns = wefti_host_now(control->host) + WEFTI_SECOND_NS / 5;
    for (int32_t i = 0; i < member_count(control); i++)
        while (wefti_control_reaches(&control->members[i]) && control->members[i].frames.out_have && wefti_host_now(control->host) < until_ns &&
               wefti_frames_flush(&control->members[i].frames) == WEFT_OK)
            control->host->sleep(control->host->context, WEFTI_MILLISECOND_NS);
    free_all(control);
}

void wefti_control_interface(wefti_control *control, char *text_out, size_t most_bytes) {
    wefti_socket_address here = control->address;
    pthread_mutex_lock(&control->lock);
    if (control->place->rank != 0 && wefti_control_reaches(&control->members[0])) {
        here.bytes = sizeof here.storage;
        getsockname(control->members[0].frames.socket, (struct sockaddr *)&here.storage, &here.bytes);
    }
    pthread_mutex_unlock(&control->lock);
    if (getnameinfo((struct sockaddr *)&here.storage, here.bytes, text_out, (socklen_t)most_bytes, NULL, 0, NI_NUMERICHOST) != 0)
        snprintf(text_out, most_bytes, "127.0.0.1");
}

void wefti_control_answer(wefti_control *control, int eventfd) {
    pthread_mutex_lock(&control->lock);
    control->signalled = eventfd;
    pthread_mutex_unlock(&control->lock);
    rouse(control);
}

void wefti_control_keep_door(wefti_control *control, wefti_door *door) {
    pthread_mutex_lock(&control->lock);
    control->door = door;
    pthread_mutex_unlock(&control->lock);
    rouse(control);
}

uint64_t wefti_control_strangers(wefti_control *control) {
    pthread_mutex_lock(&control->lock);
    uint64_t strangers = control->strangers;
    pthread_mutex_unlock(&control->lock);
    return strangers;
}
