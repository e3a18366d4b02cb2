/* The server as a whole: roles, links, the thread, and leaving.
 *
 * The rank's thread moves everything while the program computes; who waits for a request moves it himself, and the thread stands back, so
 * that an answer does not pass from one thread to the other. Whoever finds nothing to do spins for a moment, lets others run, and then sleeps
 * on the wire's descriptor. */
#include <poll.h>
#include <string.h>
#include <time.h>

#include "core/base/pause.h"
#include "core/iface/collective.h"
#include "parallel/server/follow.h"
#include "parallel/server/resize.h"
#include "parallel/server/saves.h"

/* How often links, deadlines and the world's verdict are looked at. */
#define LOOK_NS (5 * WEFTI_MILLISECOND_NS)
enum { SPINS = 64, YIELDS = 192 }; /* in vain, before one sleeps */
enum { POLLS_A_CLOCK = 8, POLLS_A_LOOK = 16, BRIEF_SPINS = 64 };
#define REST_NS WEFTI_MILLISECOND_NS

/* --- progress --- */

void wefti_server_fail(weft_server *server, weft_status status, const char *text) {
    if (server->failed != WEFT_OK) return;
    server->failed = status;
    snprintf(server->failure, sizeof server->failure, "%s", text);
    server->wire->ops->abort(server->wire, status, -1);
}

bool wefti_server_is_gone(const weft_server *server, int32_t rank) {
    if (rank == server->rank) return false;
    wefti_wire_link link = server->wire->ops->link(server->wire, rank);
    return link == WEFTI_LINK_DOWN || link == WEFTI_LINK_LEFT || server->gone[rank];
}

/* The world notices ranks that are silent; links only those that break. Its rank 0 does so for all: who has lost that one, or is cut off from
 * it, hears of nobody else. */
static void hear_verdict(weft_server *server, uint64_t now_ns) {
    wefti_fault *fault = server->world->group ? server->world->group->fault : NULL;
    char         message[WEFTI_MESSAGE_BYTES], text[WEFTI_SERVER_TEXT_BYTES];
    if (!fault) return;
    snprintf(message, sizeof message, "%s", weft_error_message()); /* progress is made between a request's failure and its caller, too */
    weft_status status = wefti_fault_status(fault);
    snprintf(text, sizeof text, "%.600s", weft_error_message());
    if (status != WEFT_OK) (void)wefti_fail(WEFT_OK, "%s", message);
    server->world_failed = status != WEFT_OK;
    int32_t rank = status == WEFT_E_PEER ? wefti_fault_rank(fault) : -1;
    if (rank < 0 || rank >= server->size) return;
    if (rank == server->rank) {
        snprintf(message, sizeof message, "the others have given up this rank, %d, and go on without it: %s", (int)rank, text);
        wefti_server_fail(server, WEFT_E_PEER, message);
        return;
    }
    server->gone[rank] = true;
    if (rank == 0 && !server->alone_ns) server->alone_ns = now_ns;
}

/* The world's rank 0 may also have left in good order. */
static void look_for_watch(weft_server *server, uint64_t now_ns) {
    if (server->rank == 0 || server->alone_ns) return;
    wefti_wire_link link = server->wire->ops->link(server->wire, 0);
    if (link == WEFTI_LINK_LEFT || link == WEFTI_LINK_DOWN) server->alone_ns = now_ns;
}

static void look(weft_server *server, uint64_t now_ns) {
    if (now_ns - server->looked_ns < LOOK_NS) return;
    server->looked_ns = now_ns;
    hear_verdict(server, now_ns);
    look_for_watch(server, now_ns);
    if (server->serves) wefti_serve_look(server, now_ns);
    wefti_client_look(server, now_ns);
}

static weft_status progress(weft_server *server, bool clock, bool *moved_out);

static void move_twin(weft_server *server, bool clock, bool *moved_out) {
    bool moved = false;
    if (progress(server->twin, clock, &moved) != WEFT_OK) wefti_server_fail(server, server->twin->failed, server->twin->failure);
    *moved_out = *moved_out || moved;
}

/* With `clock` it asks for the time, which costs more than a look into an empty wire; without, it is a moment behind. */
static weft_status progress(weft_server *server, bool clock, bool *moved_out) {
    wefti_wire_op *ops[64];
    int32_t        count = 0;
    if (clock || server->host->wakes) server->now_ns = wefti_host_now(server->host);
    uint64_t now_ns = server->now_ns;
    *moved_out = false;
    do {
        weft_status status = server->wire->ops->poll(server->wire, now_ns, ops, (int32_t)WEFTI_COUNT(ops), &count);
        if (status != WEFT_OK) wefti_server_fail(server, status, weft_error_message());
        for (int32_t i = 0; i < count; i++) {
            server_event *event = ops[i]->user;
            event->done(server, event);
        }
        if (count) *moved_out = true;
    } while (count == (int32_t)WEFTI_COUNT(ops));
    wefti_server_post_again(server);
    if (server->copying) wefti_follow_take(server, moved_out);
    look(server, now_ns);
    if (server->twin) move_twin(server, clock, moved_out);
    if (server->pending) { /* others may have taken it */
        bool moved = false;
        (void)!progress(server->pending->fresh, clock, &moved);
        *moved_out = *moved_out || moved;
    }
    return server->failed;
}

weft_status wefti_server_progress(weft_server *server, bool *moved_out) { return progress(server, true, moved_out); }

/* --- waiting --- */

/* Sleeps until something may have come; not under the lock. */
static void rest(weft_server *server, uint64_t limit_ns) {
    wefti_wire *wire = server->wire;
    if (!(wire->can.flags & WEFTI_WIRE_WAIT_DESCRIPTOR)) {
        uint64_t step_ns = server->host->wakes ? limit_ns : 50000;
        server->host->sleep(server->host->context, step_ns < limit_ns ? step_ns : limit_ns);
        return;
    }
    pthread_mutex_lock(&server->lock);
    wefti_wire *other = server->twin ? server->twin->wire : NULL;
    weft_status status = wire->ops->arm(wire);
    if (other && status == WEFT_OK) status = other->ops->arm(other);
    struct pollfd wait[2] = {{.fd = wire->ops->descriptor(wire), .events = POLLIN}, {.fd = other ? other->ops->descriptor(other) : -1, .events = POLLIN}};
    bool        waits = server->unposted || (server->twin && server->twin->unposted);
    pthread_mutex_unlock(&server->lock);
    if (status != WEFT_OK) return;
    if (waits && limit_ns > 50000) limit_ns = 50000;
    struct timespec limit = {.tv_sec = (time_t)(limit_ns / WEFTI_SECOND_NS), .tv_nsec = (long)(limit_ns % WEFTI_SECOND_NS)};
    ppoll(wait, 2, &limit, NULL);
}

/* Where a look is a load and nobody needs this core, one looks a few times while one has the lock: what comes is seen at once. */
bool wefti_server_is_hot(const weft_server *server) { return wefti_server_maps(server) && !server->host->wakes && server->host->cores >= server->size; }

void wefti_server_spin(weft_server *server, const weft_request *request) {
    bool moved;
    if (!wefti_server_is_hot(server)) return;
    atomic_store_explicit(&server->calls, atomic_load_explicit(&server->calls, memory_order_relaxed) + 1, memory_order_relaxed);
    for (int i = 0; i < BRIEF_SPINS && request->state != REQUEST_ENDED; i++)
        if (progress(server, false, &moved) != WEFT_OK) return;
}

static void stand_by(weft_server *server, int32_t vain, uint64_t limit_ns) {
    if (vain < SPINS && server->host->cores >= server->size) wefti_pause_core();
    else if (vain < SPINS + YIELDS) server->host->yield(server->host->context);
    else rest(server, limit_ns);
}

weft_status wefti_server_wait(weft_server *server, bool (*over)(const void *context), const void *context, uint64_t until_ns) {
    const bool hot = wefti_server_is_hot(server);
    int32_t    vain = 0;
    atomic_fetch_add(&server->callers, 1);
    for (uint32_t polls = 0;; polls++) {
        bool moved = false;
        pthread_mutex_lock(&server->lock);
        weft_status status = progress(server, polls % POLLS_A_CLOCK == 0 || vain > SPINS, &moved);
        bool        is_over = over(context);
        for (int i = hot ? POLLS_A_LOOK : 0; i > 0 && !moved && !is_over && status == WEFT_OK && vain <= SPINS; i--) {
            status = progress(server, false, &moved);
            if (moved) is_over = over(context);
        }
        uint64_t    now_ns = server->now_ns;
        pthread_mutex_unlock(&server->lock);
        if (is_over || status != WEFT_OK || now_ns >= until_ns) {
            atomic_fetch_sub(&server->callers, 1);
            return is_over ? WEFT_OK : status != WEFT_OK ? status : WEFT_E_AGAIN;
        }
        vain = moved ? 0 : vain + 1;
        stand_by(server, vain, until_ns - now_ns < REST_NS ? until_ns - now_ns : REST_NS);
    }
}

static void *run_thread(void *context) {
    weft_server *server = context;
    int32_t      vain = 0;
    unsigned     calls = 0;
    while (!atomic_load(&server->stop)) {
        bool     moved = false;
        unsigned seen = atomic_load_explicit(&server->calls, memory_order_relaxed);
        if (atomic_load(&server->callers) > 0 || seen != calls) {
            calls = seen;
            atomic_fetch_add(&server->parked, 1);
            server->host->sleep(server->host->context, REST_NS / 5);
            continue;
        }
        pthread_mutex_lock(&server->lock);
        weft_status status = wefti_server_progress(server, &moved);
        pthread_mutex_unlock(&server->lock);
        vain = moved ? SPINS : vain + 8;
        if (status != WEFT_OK) server->host->sleep(server->host->context, REST_NS);
        else stand_by(server, vain, REST_NS);
    }
    return NULL;
}

/* Who is counted since then has not looked at the split: callers were there already. */
void wefti_server_park(weft_server *server) {
    atomic_fetch_add(&server->callers, 1);
    if (!server->threaded) return;
    for (unsigned seen = atomic_load(&server->parked); atomic_load(&server->parked) == seen;) server->host->sleep(server->host->context, REST_NS / 10);
}

void wefti_server_unpark(weft_server *server) { atomic_fetch_sub(&server->callers, 1); }

/* --- opening --- */

weft_status wefti_server_check_options(const weft_server_options *o, int32_t size) {
    if (o->servers < 0 || o->servers > size)
        return wefti_fail(WEFT_E_INVALID, "weft_server_create: %d servers among %d ranks", (int)o->servers, (int)size);
    if (o->dedicated && (o->servers == 0 || o->servers == size))
        return wefti_fail(WEFT_E_INVALID, "weft_server_create: all of %d ranks would serve and none work: name fewer .servers, or leave them beside "
                          "workers (without .dedicated)", (int)size);
    if (o->replicas < 0 || o->replicas > 1 || (o->replicas && (o->servers ? o->servers : size) < 2))
        return wefti_fail(WEFT_E_INVALID, "weft_server_create: %d replicas with %d servers; it is 0, or 1 with at least two servers", (int)o->replicas,
                          (int)(o->servers ? o->servers : size));
    if (o->in_flight < 0 || o->in_flight > 4096 || o->timeout_ns < 0)
        return wefti_fail(WEFT_E_INVALID, "weft_server_create: in_flight %d (1 to 4096), timeout_ns %lld (not negative)", (int)o->in_flight,
                          (long long)o->timeout_ns);
    if (o->function_count < 0 || (o->function_count > 0 && !o->functions))
        return wefti_fail(WEFT_E_INVALID, "weft_server_create: %d functions at %s", (int)o->function_count, o->functions ? "an address" : "NULL");
    for (int32_t i = 0; i < o->function_count; i++) {
        const weft_table_function *f = &o->functions[i];
        if (!f->name || !*f->name || strlen(f->name) > WEFT_TABLE_NAME_BYTES || !f->apply || f->states < 0 || f->states > WEFTI_RULE_STATES)
            return wefti_fail(WEFT_E_INVALID, "weft_server_create: function %d ('%.60s') wants a name of 1 to %d bytes, a function, and 0 to %d states",
                              (int)i, f->name ? f->name : "", WEFT_TABLE_NAME_BYTES, WEFTI_RULE_STATES);
    }
    return WEFT_OK;
}

static weft_status fill(weft_server *server, const weft_server_options *o) {
    weft_world *world = server->world;
    server->host = world->links->host;
    server->rank = world->rank;
    server->size = world->size;
    server->servers = o->servers ? o->servers : world->size;
    server->first_server = world->size - server->servers;
    server->dedicated = o->dedicated;
    server->workers = o->dedicated ? server->first_server : world->size;
    server->works = world->rank < server->workers;
    server->serves = world->rank >= server->first_server;
    server->in_flight = server->works ? o->in_flight ? o->in_flight : 64 : 1;
    server->timeout_ns = (uint64_t)(o->timeout_ns ? o->timeout_ns : world->timeout_ns);
    server->functions = o->functions;
    server->function_count = o->function_count;
    WEFTI_TRY(wefti_copy_string(o->spill, &server->spill));
    WEFTI_TRY(wefti_alloc((size_t)server->size * sizeof *server->gone, "who is gone", &server->gone));
    WEFTI_TRY(wefti_alloc((size_t)server->size * sizeof *server->stuck, "whose link is busy", &server->stuck));
    WEFTI_TRY(world->links->open_wire(world, server->shift ? "parameter server's replicas" : "parameter server", &server->wire));
    WEFTI_TRY(wefti_client_open(server));
    if (server->serves) WEFTI_TRY(wefti_serve_open(server));
    return WEFT_OK; /* workers may ask at once: what comes before its receive is kept by the wire */
}

weft_status wefti_server_start_thread(weft_server *server, const weft_server_options *o) {
    if (o->no_thread || server->host->wakes) return WEFT_OK;
    int error = pthread_create(&server->thread, NULL, run_thread, server);
    if (error) return wefti_fail(WEFT_E_NO_MEMORY, "weft_server_create: no thread (%s)", strerror(error));
    server->threaded = true;
    return WEFT_OK;
}

static void close_wire(weft_server *server) {
    if (server->wire) server->wire->ops->close(server->wire, WEFTI_SECOND_NS);
    server->wire = NULL;
}

static void free_server(weft_server *server) {
    weft_server *twin = server->twin;
    if (server->threaded) {
        atomic_store(&server->stop, true);
        pthread_join(server->thread, NULL);
    }
    close_wire(server);
    if (twin) close_wire(twin); /* it may be sending what goes below */
    wefti_saves_close(server);
    wefti_tables_close(server);
    wefti_serve_close(server);
    wefti_client_close(server);
    while (server->buffers) {
        server_buffer *buffer = server->buffers;
        server->buffers = buffer->next;
        wefti_server_free_buffer(server, buffer);
    }
    while (server->lent) {
        server_buffer *buffer = server->lent;
        server->lent = buffer->next;
        wefti_server_free_buffer(server, buffer);
    }
    wefti_resize_close(server);
    wefti_free_string(server->spill);
    if (server->gone) wefti_free(server->gone, (size_t)server->size * sizeof *server->gone);
    if (server->stuck) wefti_free(server->stuck, (size_t)server->size * sizeof *server->stuck);
    pthread_mutex_destroy(&server->lock);
    wefti_free(server, sizeof *server);
    if (twin) free_server(twin);
}

void wefti_server_bury(weft_server *server) {
    if (server) free_server(server);
}

static weft_status add_twin(weft_server *server, const weft_server_options *options) {
    weft_server *twin = NULL;
    WEFTI_TRY(wefti_alloc(sizeof *twin, "replicas of the parameter server", &twin));
    server->twin = twin;
    twin->of = server;
    twin->shift = 1;
    twin->world = server->world;
    pthread_mutex_init(&twin->lock, NULL);
    return fill(twin, options);
}

weft_status wefti_server_open(weft_world *world, const weft_server_options *options, weft_server **server_out) {
    weft_server *server = NULL;
    *server_out = NULL;
    WEFTI_TRY(wefti_alloc(sizeof *server, "the parameter server", &server));
    *server_out = server;
    server->world = world;
    server->renews = options->renews;
    pthread_mutex_init(&server->lock, NULL);
    WEFTI_TRY(fill(server, options));
    return options->replicas ? add_twin(server, options) : WEFT_OK;
}

weft_status weft_server_create(weft_world *world, const weft_server_options *options, weft_server **server_out) {
    static const weft_server_options defaults;
    weft_server                     *server = NULL;
    *server_out = NULL;
    if (!world) return wefti_fail(WEFT_E_INVALID, "weft_server_create: the world is NULL");
    if (!options) options = &defaults;
    WEFTI_TRY(wefti_server_check_options(options, world->size));
    weft_status status = wefti_resize_create(world, options, &server);
    if (status == WEFT_OK) status = wefti_server_start_thread(server, options);
    if (status != WEFT_OK) {
        char message[WEFTI_MESSAGE_BYTES];
        snprintf(message, sizeof message, "%s", weft_error_message());
        wefti_server_bury(server);
        return wefti_fail(status, "%s", message);
    }
    *server_out = server;
    return WEFT_OK;
}

/* --- leaving --- */

static bool nothing_flies(const void *context) { return ((const weft_server *)context)->flying == 0; }
static bool all_have_left(const void *context) {
    const weft_server *server = context;
    return wefti_serve_is_over(server) && (!server->twin || wefti_serve_is_over(server->twin));
}

/* They have left, or want another split, or this rank is to hear of the world's verdict. */
static bool serving_is_over(const void *context) {
    const weft_server *server = context;
    bool               ready = wefti_serve_is_ready(server, server->resizes + 1) && (!server->twin || wefti_serve_is_ready(server->twin, server->resizes + 1));
    return ready || (server->renews && server->world_failed);
}

static weft_status wait_for_workers(weft_server *server, bool (*over)(const void *context)) {
    pthread_mutex_lock(&server->lock);
    server->leaves = true;
    if (server->twin) server->twin->leaves = true;
    pthread_mutex_unlock(&server->lock);
    weft_status status = wefti_server_wait(server, over, server, WEFTI_NEVER_NS);
    pthread_mutex_lock(&server->lock);
    server->leaves = false;
    if (server->twin) server->twin->leaves = false;
    pthread_mutex_unlock(&server->lock);
    return status;
}

static void say_goodbye(weft_server *server) {
    weft_request *request = NULL;
    pthread_mutex_lock(&server->lock);
    if (wefti_client_take(server, true, &request) == WEFT_OK) {
        request->kind = WEFTI_SERVER_LEAVE;
        if (wefti_client_start(server, request, -1) != WEFT_OK) wefti_client_free(server, request);
    }
    pthread_mutex_unlock(&server->lock);
    (void)!wefti_server_wait(server, nothing_flies, server, WEFTI_NEVER_NS); /* each request has a deadline */
}

void weft_server_release(weft_server *server) {
    if (!server) return;
    char message[WEFTI_MESSAGE_BYTES]; /* leaving is not to hide why */
    snprintf(message, sizeof message, "%s", weft_error_message());
    if (server->works && server->failed == WEFT_OK && !server->pending) say_goodbye(server);
    if (server->serves && server->failed == WEFT_OK && !server->pending) (void)!wait_for_workers(server, all_have_left);
    free_server(server);
    (void)wefti_fail(WEFT_OK, "%s", message);
}

weft_status weft_server_serve(weft_server *server) {
    if (!server->serves) return wefti_fail(WEFT_E_STATE, "weft_server_serve: rank %d is no server", (int)server->rank);
    weft_status status = server->pending ? WEFT_OK : wait_for_workers(server, serving_is_over);
    if (status != WEFT_OK) return wefti_fail(status, "%s", server->failure);
    pthread_mutex_lock(&server->lock);
    bool left = all_have_left(server), failed = server->pending || (server->renews && server->world_failed);
    pthread_mutex_unlock(&server->lock);
    if (left) return WEFT_OK;
    if (!failed) return wefti_fail(WEFT_E_AGAIN, "rank %d: the workers want another split of the rows: call weft_server_resize, as they do", (int)server->rank);
    status = wefti_fault_status(server->world->group ? server->world->group->fault : NULL);
    return status != WEFT_OK ? status : wefti_fail(WEFT_E_PEER, "rank %d: a change of the split has failed in its last moment", (int)server->rank);
}

weft_status weft_server_poll(weft_server *server) {
    bool moved = false;
    pthread_mutex_lock(&server->lock);
    weft_status status = wefti_server_progress(server, &moved);
    pthread_mutex_unlock(&server->lock);
    return status == WEFT_OK ? WEFT_OK : wefti_fail(status, "%s", server->failure);
}

/* --- looking --- */

weft_world *wefti_server_world(const weft_server *server) { return server->world; }
int64_t     wefti_server_timeout(const weft_server *server) { return (int64_t)server->timeout_ns; }

bool    weft_server_is_worker(const weft_server *server) { return server->works; }
bool    weft_server_is_serving(const weft_server *server) { return server->serves; }
int32_t weft_server_workers(const weft_server *server) { return server->workers; }

void wefti_server_add_counts(weft_server *server, weft_server_counts *counts) {
    wefti_wire_counts moved;
    server->wire->ops->counts(server->wire, &moved);
    counts->sent_bytes += moved.sent_bytes + server->sent_in_place;
    counts->received_bytes += moved.received_bytes + server->received_in_place;
    counts->sent_messages += moved.sent_messages;
    counts->received_messages += moved.received_messages;
    counts->requests += server->request_count;
    counts->served += server->served_count;
    counts->repeated += server->repeated_count;
    counts->late += server->late_count;
    counts->key_bytes += server->key_bytes;
    counts->sent_key_bytes += server->sent_key_bytes;
    counts->value_bytes += server->value_bytes;
    counts->moved_value_bytes += server->moved_value_bytes;
    for (const served_table *table = server->served; table; table = table->next) {
        wefti_spill_counts spilled;
        wefti_store_count_spill(table->store, &spilled);
        counts->held_bytes += wefti_store_bytes(table->store);
        counts->spilled_bytes += spilled.total - spilled.resident;
        counts->spill_found += spilled.found;
        counts->spill_loaded += spilled.loaded;
        counts->spill_written += spilled.written;
    }
    if (server->twin) wefti_server_add_counts(server->twin, counts);
}

void weft_server_count(weft_server *server, weft_server_counts *counts_out) {
    pthread_mutex_lock(&server->lock);
    *counts_out = server->before;
    wefti_server_add_counts(server, counts_out);
    pthread_mutex_unlock(&server->lock);
}
