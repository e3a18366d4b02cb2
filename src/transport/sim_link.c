/* What lies between the ranks of a simulated world: the time that messages take, their pool, and the streams of the control
 * channel.
 *
 * Each rank has two ports, one inside of its host and one to others, out and in. A message leaves when the port has carried what was given
 * to it before, is on the way for the latency of the link, and then takes its turn at the other port, which may have begun to receive it
 * meanwhile: alone, it takes the latency and its bytes over the bandwidth. What has no bytes, as what says that a large message was taken,
 * waits at no port: on a network the packets of several messages take turns, so that it waits for packets and not for whole messages.
 * Jitter and repeated sends come on top, for that message alone. Memory: the most messages that ever were on the way at once. */
#include <string.h>

#include "transport/sim_inside.h"

static const size_t class_bytes[SIM_CLASSES] = {0, 256, 2048, 9216, 32768, SIM_MOST_CHUNK};

sim_message *wefti_sim_message(wefti_sim *sim, size_t data_bytes) {
    int size_class = 0;
    while (class_bytes[size_class] < data_bytes) size_class++;
    sim_message *message = sim->pool[size_class];
    if (message)
        sim->pool[size_class] = message->next;
    else if (wefti_alloc_raw(sizeof *message + class_bytes[size_class], WEFTI_CACHE_LINE, "a simulated message", &message) != WEFT_OK)
        return NULL;
    *message = (sim_message){.size_class = (uint8_t)size_class, .data = size_class ? (uint8_t *)(message + 1) : NULL};
    return message;
}

void wefti_sim_message_free(wefti_sim *sim, sim_message *message) {
    if (message->op) message->op->scratch[1] = 0;
    message->next = sim->pool[message->size_class];
    sim->pool[message->size_class] = message;
}

void wefti_sim_pool_free(wefti_sim *sim) {
    for (int size_class = 0; size_class < SIM_CLASSES; size_class++)
        for (sim_message *message = sim->pool[size_class], *next; message; message = next) {
            next = message->next;
            wefti_free(message, sizeof *message + class_bytes[size_class]);
        }
}

static uint64_t later(uint64_t a, uint64_t b) { return a > b ? a : b; }

static void drop(wefti_sim *sim, sim_message *message) {
    wefti_sim_note(sim, "drop", message->from, message->to, message->tag, message->bytes);
    wefti_sim_message_free(sim, message);
}

/* A message goes back on the other end of its stream, as something else. */
static void turn_back(wefti_sim *sim, sim_message *message, sim_kind kind) {
    sim_stream *here = message->stream;
    message->kind = (uint8_t)kind;
    message->stream = here->other;
    message->from = here->seat;
    message->to = here->other->seat;
    wefti_sim_send(sim, message, 0, here->last_ns);
    here->last_ns = message->event.at_ns;
}

/* What a host does with a call, also while the process there is stopped. */
static void knock_arrived(wefti_sim *sim, sim_message *message) {
    sim_stream *stream = message->stream;
    sim_seat   *seat = &sim->seats[stream->seat];
    if (seat->dead || seat->doors == 0) {
        turn_back(sim, message, SIM_REFUSED);
        return;
    }
    if (seat->last_caller)
        seat->last_caller->next_caller = stream;
    else
        seat->callers = stream;
    seat->last_caller = stream;
    turn_back(sim, message, SIM_TAKEN);
    wefti_sim_wake(seat);
}

static void stream_arrived(wefti_sim *sim, sim_message *message) {
    sim_stream *stream = message->stream;
    if (message->kind == SIM_KNOCK) {
        knock_arrived(sim, message);
        return;
    }
    if (message->kind == SIM_TAKEN) stream->taken_up = true;
    if (message->kind == SIM_REFUSED) stream->refused = true;
    if (message->kind == SIM_CHUNK && !stream->closed) {
        message->next = NULL;
        if (stream->last)
            stream->last->next = message;
        else
            stream->first = message;
        stream->last = message;
    } else {
        if (message->kind == SIM_CHUNK_END) stream->ended = true;
        wefti_sim_message_free(sim, message);
    }
    wefti_sim_wake(&sim->seats[stream->seat]);
}

static void arrive(wefti_sim *sim, sim_event *event) {
    sim_message *message = (sim_message *)event;
    sim_way     *way = &sim->ways[(size_t)message->from * (size_t)sim->options.size + (size_t)message->to];
    if (message->previous)
        message->previous->next = message->next;
    else
        way->first = message->next;
    if (message->next)
        message->next->previous = message->previous;
    else
        way->last = message->previous;
    message->next = message->previous = NULL;
    bool gone = sim->seats[message->to].dead && message->kind != SIM_KNOCK; /* a host answers for a process that has ended */
    if (sim->seats[message->from].cut || sim->seats[message->to].cut || gone) {
        drop(sim, message);
        return;
    }
    wefti_sim_note(sim, wefti_sim_kind_name(message->kind), message->from, message->to, message->tag, message->bytes);
    if (message->kind >= SIM_CHUNK)
        stream_arrived(sim, message);
    else
        wefti_sim_wire_arrived(sim, message);
}

/* Gives the ports to a message, and says when it arrives. */
static uint64_t carry(wefti_sim *sim, sim_seat *from, sim_seat *to, size_t bytes) {
    bool                  far = from->node != to->node;
    const wefti_sim_link *link = far ? &sim->options.far : &sim->options.near;
    uint64_t now_ns = wefti_sim_clock(sim), carry_ns = (uint64_t)((double)bytes / link->bytes_per_ns);
    if (bytes == 0) return now_ns + link->latency_ns;
    uint64_t leaves_ns = later(now_ns, from->ports[far].out_free_ns);
    from->ports[far].out_free_ns = leaves_ns + carry_ns;
    return to->ports[far].in_free_ns = later(leaves_ns + link->latency_ns, to->ports[far].in_free_ns) + carry_ns;
}

void wefti_sim_send(wefti_sim *sim, sim_message *message, size_t bytes, uint64_t not_before_ns) {
    sim_way *way = &sim->ways[(size_t)message->from * (size_t)sim->options.size + (size_t)message->to];
    const wefti_sim_options *options = &sim->options;
    uint64_t at_ns = carry(sim, &sim->seats[message->from], &sim->seats[message->to], bytes);
    if (options->jitter_ns) at_ns += wefti_sim_random(sim) % (options->jitter_ns + 1);
    uint32_t lost = message->kind < SIM_CHUNK ? options->lost : options->lost_control;
    if (lost && wefti_sim_random(sim) % 1000000 < lost) at_ns += options->again_ns;
    at_ns = later(at_ns, not_before_ns);
    way->last_ns = later(way->last_ns, at_ns);
    message->next = NULL;
    message->previous = way->last;
    if (way->last)
        way->last->next = message;
    else
        way->first = message;
    way->last = message;
    message->event = (sim_event){.fire = arrive};
    wefti_sim_schedule(sim, &message->event, at_ns);
}

/* --- streams --- */

static weft_status stream_send(wefti_stream *base, const void *bytes, size_t count, size_t *sent_out) {
    sim_stream *stream = (sim_stream *)base;
    if (stream->ended) return wefti_fail(WEFT_E_LINK, "the control connection has ended");
    size_t       part = count < SIM_MOST_CHUNK ? count : SIM_MOST_CHUNK;
    sim_message *message = wefti_sim_message(stream->sim, part);
    if (!message) return WEFT_E_AGAIN;
    message->kind = SIM_CHUNK;
    message->stream = stream->other;
    message->from = stream->seat;
    message->to = stream->other->seat;
    message->bytes = part;
    memcpy(message->data, bytes, part);
    wefti_sim_send(stream->sim, message, part, stream->last_ns);
    stream->last_ns = message->event.at_ns;
    *sent_out = part;
    return WEFT_OK;
}

static void drop_first(sim_stream *stream) {
    sim_message *message = stream->first;
    stream->first = message->next;
    if (!stream->first) stream->last = NULL;
    stream->taken = 0;
    wefti_sim_message_free(stream->sim, message);
}

static weft_status stream_receive(wefti_stream *base, void *bytes, size_t most, size_t *received_out) {
    sim_stream  *stream = (sim_stream *)base;
    sim_message *message = stream->first;
    if (!message) return stream->ended ? wefti_fail(WEFT_E_LINK, "the control connection was closed") : WEFT_E_AGAIN;
    size_t left = (size_t)message->bytes - stream->taken, part = left < most ? left : most;
    memcpy(bytes, message->data + stream->taken, part);
    stream->taken += part;
    if (stream->taken == message->bytes) drop_first(stream);
    *received_out = part;
    return WEFT_OK;
}

static void stream_close(wefti_stream *base) {
    sim_stream *stream = (sim_stream *)base;
    if (stream->closed) return;
    stream->closed = true;
    while (stream->first) drop_first(stream);
    sim_message *message = wefti_sim_message(stream->sim, 0);
    if (!message) return; /* the other one learns by silence */
    message->kind = SIM_CHUNK_END;
    message->stream = stream->other;
    message->from = stream->seat;
    message->to = stream->other->seat;
    wefti_sim_send(stream->sim, message, 0, stream->last_ns);
    stream->last_ns = message->event.at_ns;
}

static const wefti_stream_ops stream_ops = {stream_send, stream_receive, stream_close};

static sim_stream *find(sim_seat *seat, int32_t peer) {
    sim_stream *found = NULL; /* the oldest, which is the last of the list */
    for (sim_stream *at = seat->streams; at; at = at->next)
        if (!at->asked && at->other->seat == peer) found = at;
    return found;
}

static weft_status make_stream(sim_seat *seat, int32_t peer, sim_stream **own_out) {
    wefti_sim  *sim = seat->sim;
    sim_stream *ends[2] = {NULL, NULL};
    for (int i = 0; i < 2; i++) {
        weft_status status = wefti_alloc(sizeof *ends[i], "a simulated stream", &ends[i]);
        if (status != WEFT_OK) {
            if (i == 1) wefti_free(ends[0], sizeof *ends[0]);
            return status;
        }
    }
    for (int i = 0; i < 2; i++) {
        sim_seat *here = i ? &sim->seats[peer] : seat;
        *ends[i] = (sim_stream){.base = {&stream_ops}, .sim = sim, .other = ends[1 - i], .next = here->streams, .seat = here->index};
        here->streams = ends[i];
    }
    *own_out = ends[0];
    return WEFT_OK;
}

weft_status wefti_sim_stream(void *context, int32_t peer, wefti_stream **stream_out) {
    sim_stream *own = find(context, peer);
    if (!own) WEFTI_TRY(make_stream(context, peer, &own));
    own->asked = true;
    *stream_out = &own->base;
    return WEFT_OK;
}

/* --- dialling --- */

weft_status wefti_sim_dial(void *context, int32_t peer, int purpose, wefti_stream **stream_out) {
    sim_seat    *seat = context;
    sim_message *message = wefti_sim_message(seat->sim, 0);
    sim_stream  *own = NULL;
    if (!message) return WEFT_E_NO_MEMORY;
    weft_status status = make_stream(seat, peer, &own);
    if (status != WEFT_OK) {
        wefti_sim_message_free(seat->sim, message);
        return status;
    }
    own->asked = own->other->asked = true;
    own->other->purpose = purpose;
    message->kind = SIM_KNOCK;
    message->stream = own->other;
    message->from = seat->index;
    message->to = peer;
    wefti_sim_send(seat->sim, message, 0, 0);
    own->last_ns = message->event.at_ns;
    *stream_out = &own->base;
    return WEFT_OK;
}

weft_status wefti_sim_connected(const wefti_stream *base) {
    const sim_stream *stream = (const sim_stream *)base;
    if (stream->refused) return wefti_fail(WEFT_E_PEER, "rank %d has ended", (int)stream->other->seat);
    return stream->taken_up ? WEFT_OK : WEFT_E_AGAIN;
}

weft_status wefti_sim_accept(void *context, int32_t *peer_out, int *purpose_out, wefti_stream **stream_out) {
    sim_seat   *seat = context;
    sim_stream *caller = seat->callers;
    if (!caller) return WEFT_E_AGAIN;
    seat->callers = caller->next_caller;
    if (!seat->callers) seat->last_caller = NULL;
    *peer_out = caller->other->seat;
    *purpose_out = caller->purpose;
    *stream_out = &caller->base;
    return WEFT_OK;
}

void wefti_sim_listen(void *context, bool listens) {
    sim_seat     *seat = context;
    int32_t       peer;
    int           purpose;
    wefti_stream *stream;
    seat->doors += listens ? 1 : -1;
    while (seat->doors == 0 && wefti_sim_accept(seat, &peer, &purpose, &stream) == WEFT_OK) stream_close(stream);
}

void wefti_sim_streams_break(sim_seat *seat) {
    for (sim_stream *stream = seat->streams; stream; stream = stream->next) stream_close(&stream->base);
}

void wefti_sim_streams_free(sim_seat *seat) {
    for (sim_stream *stream = seat->streams, *next; stream; stream = next) {
        next = stream->next;
        while (stream->first) drop_first(stream);
        wefti_free(stream, sizeof *stream);
    }
    seat->streams = NULL;
}
